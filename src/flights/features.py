"""What is known of a flight two hours before its scheduled departure.

No month and no day of the year: a model trained to June has never seen a July. Whether the aircraft is known is no
feature either: in this data only cancelled flights lack a tail number, so its absence would tell the future.
"""

import pandas as pd

from clearway.columns import PREDICTION_TIME
from clearway.point_in_time import AGE, KNOWN_AT, last_known, trailing_count, trailing_mean
from clearway.project import Tables
from flights import sources, times
from flights.zones import NEW_YORK

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
"""As observed at the origin. ``wind_gust`` is left out: four of five are missing."""
WEATHER_TTL = pd.Timedelta(hours=6)
AIRCRAFT_TTL = pd.Timedelta(days=3)
"""An aircraft last seen longer ago than this has been elsewhere, or in the hangar, since."""
WINDOWS = {"2h": pd.Timedelta(hours=2), "24h": pd.Timedelta(hours=24)}
OVERDUE_AFTER = pd.Timedelta(minutes=15)
"""A flight that has not left this long after its schedule is overdue."""
GIVEN_UP_AFTER = pd.Timedelta(hours=6)
"""From then on an overdue flight is taken as cancelled: it no longer says how the airport is doing now."""

NUMERIC = (
    "departure_minute",
    "weekday",
    "distance",
    "scheduled_minutes",
    "scheduled_departures",
    *WEATHER,
    *(f"origin_departure_delay_{window}" for window in WINDOWS),
    *(f"carrier_arrival_delay_{window}" for window in WINDOWS),
    *(f"dest_arrival_delay_{window}" for window in WINDOWS),
    "origin_overdue",
    "carrier_overdue",
    "aircraft_arrival_delay",
    "aircraft_arrival_hours",
    "aircraft_departure_delay",
    "aircraft_departure_hours",
    "plane_age",
    "plane_seats",
)
CATEGORICAL = ("origin", "carrier", "dest")


def features(questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """The features of each question, on its index, which is that of the flights table.

    Delays are in minutes, aircraft ages in years, ``*_hours`` since the aircraft was last seen in hours.
    """
    flights = tables["flights"]
    keys = ["origin", "carrier", "dest", "tailnum"]
    asked = questions[[PREDICTION_TIME]].join(flights[keys])
    left, landed = departures(flights), landings(flights)
    parts = [
        schedule(questions, flights),
        weather(asked, tables["weather"]),
        delays(asked, left, landed),
        overdue(asked, flights),
        aircraft(asked, left, landed),
        plane(asked, tables["planes"]),
        asked[list(CATEGORICAL)].astype("string"),
    ]
    return pd.concat(parts, axis="columns")[[*NUMERIC, *CATEGORICAL]]


def schedule(questions: pd.DataFrame, flights: pd.DataFrame) -> pd.DataFrame:
    """The flight's own schedule, and how many departures the origin has in the hour that ends with it.

    Only the hour before: flights scheduled later than this one are asked about later, and appear only then.
    """
    own = flights.loc[questions.index]
    departure = times.scheduled_departure(own)
    local = departure.dt.tz_convert(NEW_YORK)
    published = flights[["origin"]].assign(**{KNOWN_AT: times.prediction_time(flights)})
    asked = own[["origin"]].assign(**{PREDICTION_TIME: questions[PREDICTION_TIME]})
    return pd.DataFrame(
        {
            "departure_minute": local.dt.hour * 60 + local.dt.minute,
            "weekday": local.dt.weekday,
            "distance": own["distance"],
            "scheduled_minutes": _minutes(times.scheduled_arrival(own) - departure),
            "scheduled_departures": trailing_count(asked, published, "origin", window=pd.Timedelta(hours=1)),
        }
    )


def weather(asked: pd.DataFrame, observed: pd.DataFrame) -> pd.DataFrame:
    """The last weather observed at the origin."""
    events = observed.assign(**{KNOWN_AT: sources.weather_known(observed)})
    return last_known(asked, events, "origin", WEATHER, ttl=WEATHER_TTL)[list(WEATHER)]


def delays(asked: pd.DataFrame, left: pd.DataFrame, landed: pd.DataFrame) -> pd.DataFrame:
    """Mean delays of the flights that had left from the origin, or landed for the carrier or at the destination."""
    means = {}
    for name, window in WINDOWS.items():
        means[f"origin_departure_delay_{name}"] = trailing_mean(asked, left, "origin", "dep_delay", window=window)
        means[f"carrier_arrival_delay_{name}"] = trailing_mean(asked, landed, "carrier", "arr_delay", window=window)
        means[f"dest_arrival_delay_{name}"] = trailing_mean(asked, landed, "dest", "arr_delay", window=window)
    return pd.DataFrame(means)


def overdue(asked: pd.DataFrame, flights: pd.DataFrame) -> pd.DataFrame:
    """How many flights of the origin, and of the carrier, should have left by now and have not.

    Mean delays of flights that left say nothing of those still waiting, which are the longest delays. The number
    waiting is the number that became overdue so far, less the number that left, or were given up, since.
    """
    due = times.scheduled_departure(flights)
    left = times.departure(flights)
    waits = ~(left <= due + OVERDUE_AFTER)  # a missing departure waits too
    given_up = due + GIVEN_UP_AFTER
    events = flights.loc[waits, ["origin", "carrier"]]
    began = events.assign(**{KNOWN_AT: due[waits] + OVERDUE_AFTER})
    ended = events.assign(**{KNOWN_AT: left.where(left < given_up, given_up)[waits]})
    return pd.DataFrame(
        {
            f"{key}_overdue": trailing_count(asked, began, key, window=None)
            - trailing_count(asked, ended, key, window=None)
            for key in ("origin", "carrier")
        }
    )


def aircraft(asked: pd.DataFrame, left: pd.DataFrame, landed: pd.DataFrame) -> pd.DataFrame:
    """How late the aircraft was when it was last known to land, and to leave, and how long ago that was."""
    landing = last_known(asked, landed, "tailnum", ["arr_delay"], ttl=AIRCRAFT_TTL)
    departure = last_known(asked, left, "tailnum", ["dep_delay"], ttl=AIRCRAFT_TTL)
    return pd.DataFrame(
        {
            "aircraft_arrival_delay": landing["arr_delay"],
            "aircraft_arrival_hours": _minutes(landing[AGE]) / 60,
            "aircraft_departure_delay": departure["dep_delay"],
            "aircraft_departure_hours": _minutes(departure[AGE]) / 60,
        }
    )


def plane(asked: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    """Age and seats of the aircraft; null for the many that the table of planes does not know."""
    known = planes.drop_duplicates("tailnum").set_index("tailnum")
    built = asked["tailnum"].map(known["year"]).astype("float64")
    return pd.DataFrame(
        {
            "plane_age": asked[PREDICTION_TIME].dt.year - built,
            "plane_seats": asked["tailnum"].map(known["seats"]).astype("float64"),
        }
    )


def departures(flights: pd.DataFrame) -> pd.DataFrame:
    """Each departure that happened, known when it happened."""
    events = flights[["origin", "carrier", "dest", "tailnum", "dep_delay"]].assign(
        **{KNOWN_AT: times.departure(flights)}
    )
    return events[events[KNOWN_AT].notna()]


def landings(flights: pd.DataFrame) -> pd.DataFrame:
    """Each landing that happened, known when it happened."""
    events = flights[["origin", "carrier", "dest", "tailnum", "arr_delay"]].assign(**{KNOWN_AT: times.landing(flights)})
    return events[events[KNOWN_AT].notna()]


def _minutes(span: pd.Series) -> pd.Series:
    minutes: pd.Series = span.dt.total_seconds() / 60
    return minutes
