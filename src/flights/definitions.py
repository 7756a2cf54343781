"""The flights' features as Feast sees them: what they are found by, how long they hold, who answers for them.

How their values are made is in :mod:`flights.features`.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.types import Float64, Int64, PrimitiveFeastType, String

from clearway.feature_store.definitions import Definitions, on_demand_view
from clearway.point_in_time import KNOWN_AT
from flights import features

OWNER = "flight-operations"
WEATHER_TTL = timedelta(hours=6)
AIRCRAFT_TTL = timedelta(days=3)
"""An aircraft last seen longer ago than this has been elsewhere, or in the hangar, since."""
TRAFFIC_TTL = timedelta(days=1)
"""The longest window of what is counted: without a row for that long, what the last one said is over."""


def _entity(name: str, key: str, description: str) -> Entity:
    return Entity(name=name, join_keys=[key], value_type=ValueType.STRING, description=description, owner=OWNER)


ORIGIN = _entity("origin", "origin", "An airport of New York that flights leave from: EWR, JFK or LGA.")
CARRIER = _entity("carrier", "carrier", "An airline, by its two-letter code.")
DESTINATION = _entity("destination", "dest", "An airport that flights go to, by its three-letter code.")
AIRCRAFT = _entity("aircraft", "tailnum", "An aircraft, by its registration; a cancelled flight may have none.")


def _view(name: str, entity: Entity, ttl: timedelta, description: str, *fields: Field) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=entity.join_key, dtype=String), *fields],
        source=FileSource(path=f"data/feature_tables/{name}.parquet", timestamp_field=KNOWN_AT),
        description=description,
        owner=OWNER,
    )


def _number(name: str, description: str, dtype: PrimitiveFeastType = Float64) -> Field:
    return Field(name=name, dtype=dtype, description=description)


WEATHER = _view(
    "weather",
    ORIGIN,
    WEATHER_TTL,
    "The last weather observed at the origin, known when its hour is over.",
    _number("temp", "Temperature, °F."),
    _number("dewp", "Dew point, °F."),
    _number("humid", "Relative humidity, percent."),
    _number("wind_dir", "Where the wind comes from, degrees; 0 is calm."),
    _number("wind_speed", "Wind speed, mph."),
    _number("precip", "Precipitation of the hour, inches."),
    _number("pressure", "Pressure at sea level, millibar."),
    _number("visib", "Visibility, miles; 10 is 10 or more."),
)
ORIGIN_TRAFFIC = _view(
    "origin_traffic",
    ORIGIN,
    TRAFFIC_TTL,
    "How departures from the origin are doing.",
    _number("origin_departure_delay_2h", "Mean departure delay of the flights that left in the last 2 hours, minutes."),
    _number("origin_departure_delay_24h", "The same of the last 24 hours, minutes."),
    _number("origin_overdue", "Flights 15 minutes to 6 hours past their schedule that have not left.", Int64),
    _number("scheduled_departures", "Departures scheduled in the hour that ends two hours from now.", Int64),
)
CARRIER_TRAFFIC = _view(
    "carrier_traffic",
    CARRIER,
    TRAFFIC_TTL,
    "How the carrier's flights out of New York are doing.",
    _number("carrier_arrival_delay_2h", "Mean arrival delay of the flights that landed in the last 2 hours, minutes."),
    _number("carrier_arrival_delay_24h", "The same of the last 24 hours, minutes."),
    _number("carrier_overdue", "Flights 15 minutes to 6 hours past their schedule that have not left.", Int64),
)
DESTINATION_TRAFFIC = _view(
    "destination_traffic",
    DESTINATION,
    TRAFFIC_TTL,
    "How flights from New York arrive at the destination.",
    _number("dest_arrival_delay_2h", "Mean arrival delay of the flights that landed in the last 2 hours, minutes."),
    _number("dest_arrival_delay_24h", "The same of the last 24 hours, minutes."),
)
AIRCRAFT_LANDING = _view(
    "aircraft_landing",
    AIRCRAFT,
    AIRCRAFT_TTL,
    "The aircraft's last landing that is known.",
    _number("aircraft_arrival_delay", "How late it was, minutes."),
    _number("landed_at", "When it was, seconds since 1970, UTC."),
)
AIRCRAFT_DEPARTURE = _view(
    "aircraft_departure",
    AIRCRAFT,
    AIRCRAFT_TTL,
    "The aircraft's last departure from New York that is known.",
    _number("aircraft_departure_delay", "How late it was, minutes."),
    _number("left_at", "When it was, seconds since 1970, UTC."),
)
PLANES = _view(
    "planes",
    AIRCRAFT,
    timedelta(0),  # it holds without an end
    "The register of aircraft.",
    _number("plane_built", "Year in which the aircraft was built.", Int64),
    _number("plane_seats", "Seats.", Int64),
)

SCHEDULED = [
    Field(name="scheduled_departure", dtype=String, description="ISO 8601 with its offset from UTC."),
    Field(name="scheduled_arrival", dtype=String, description="ISO 8601 with its offset from UTC."),
]
ASKED = [_number("prediction_time", "When the question is asked, seconds since 1970, UTC.")]
REQUEST = RequestSource(
    name="question",
    schema=[*SCHEDULED, _number("distance", "Length of the flight, miles."), *ASKED],
    description="What whoever asks knows of the flight.",
    owner=OWNER,
)
# the parts of it that features are computed from: each is made of no more than it needs
SCHEDULED_TIMES = RequestSource(name="scheduled_times", schema=SCHEDULED, owner=OWNER)
ASKED_AT = RequestSource(name="asked_at", schema=ASKED, owner=OWNER)
SCHEDULE = on_demand_view(
    "schedule",
    features.schedule,
    [
        _number("departure_minute", "Scheduled departure, minute of the day in New York.", Int64),
        _number("weekday", "Its day of the week in New York; 0 is Monday.", Int64),
        _number("scheduled_minutes", "From scheduled departure to scheduled arrival, minutes."),
    ],
    [SCHEDULED_TIMES],
    description="The flight's own schedule.",
    owner=OWNER,
)
SINCE_LANDING = on_demand_view(
    "since_landing",
    features.since_landing,
    [_number("aircraft_arrival_hours", "Since the aircraft's last known landing, hours.")],
    [ASKED_AT, AIRCRAFT_LANDING[["landed_at"]]],
    description="How long ago the aircraft landed.",
    owner=OWNER,
)
SINCE_DEPARTURE = on_demand_view(
    "since_departure",
    features.since_departure,
    [_number("aircraft_departure_hours", "Since the aircraft's last known departure, hours.")],
    [ASKED_AT, AIRCRAFT_DEPARTURE[["left_at"]]],
    description="How long ago the aircraft left.",
    owner=OWNER,
)
PLANE_AGE = on_demand_view(
    "plane_age",
    features.plane_age,
    [_number("plane_age", "Years since the aircraft was built.", Int64)],
    [ASKED_AT, PLANES[["plane_built"]]],
    description="How old the aircraft is.",
    owner=OWNER,
)

DEFINITIONS = Definitions(
    entities=(ORIGIN, CARRIER, DESTINATION, AIRCRAFT),
    views=(
        WEATHER,
        ORIGIN_TRAFFIC,
        CARRIER_TRAFFIC,
        DESTINATION_TRAFFIC,
        AIRCRAFT_LANDING,
        AIRCRAFT_DEPARTURE,
        PLANES,
    ),
    events={
        "weather": features.weather,
        "origin_traffic": features.origin_traffic,
        "carrier_traffic": features.carrier_traffic,
        "destination_traffic": features.destination_traffic,
        "aircraft_landing": features.aircraft_landing,
        "aircraft_departure": features.aircraft_departure,
        "planes": features.planes,
    },
    request=REQUEST,
    on_demand=(SCHEDULE, SINCE_LANDING, SINCE_DEPARTURE, PLANE_AGE),
)
