"""What is known of a flight two hours before its scheduled departure: how each feature is made.

No month and no day of the year: a model trained to June has never seen a July. Whether the aircraft is known is no
feature either: in this data only cancelled flights lack a tail number, so its absence would tell the future.

The functions of the first part make the rows of one feature view each, from the raw tables: what became known of an
airport, a carrier or an aircraft, and when. Those of the second part compute what depends on the question itself, from
lists of what is sent and what is stored; they serve one question as well as a year of them.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from clearway.columns import PREDICTION_TIME
from clearway.point_in_time import KNOWN_AT, changes, trailing_count, trailing_mean
from clearway.project import Tables
from flights import sources, times
from flights.zones import NEW_YORK

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
"""As observed at the origin. ``wind_gust`` is left out: four of five are missing."""
WINDOWS = {"2h": pd.Timedelta(hours=2), "24h": pd.Timedelta(hours=24)}
SCHEDULE_WINDOW = pd.Timedelta(hours=1)
OVERDUE_AFTER = pd.Timedelta(minutes=15)
"""A flight that has not left this long after its schedule is overdue."""
GIVEN_UP_AFTER = pd.Timedelta(hours=6)
"""From then on an overdue flight is taken as cancelled: it no longer says how the airport is doing now."""
ALWAYS = pd.Timestamp(0, tz="UTC")
"""When that became known which has been known all along."""

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

# The rows of each view


def weather(tables: Tables) -> pd.DataFrame:
    """Each observation of an origin's weather, when it could be read."""
    observed = tables["weather"]
    return observed[["origin", *WEATHER]].assign(**{KNOWN_AT: sources.weather_known(observed)})


def origin_traffic(tables: Tables) -> pd.DataFrame:
    """Of each origin: mean delay of the flights that left, the number overdue, the number scheduled.

    Scheduled are those of the hour that ends two hours from now: flights scheduled later are asked about later, and
    appear only then.
    """
    flights = tables["flights"]
    left, announced, (began, ended) = departures(flights), published(flights), waiting(flights)
    moments = changes(
        "origin", (left, list(WINDOWS.values())), (announced, [SCHEDULE_WINDOW]), (began, []), (ended, [])
    )
    scheduled = trailing_count(moments, announced, "origin", window=SCHEDULE_WINDOW)
    return _rows(
        moments,
        **_mean_delays("origin_departure_delay", moments, left, "origin", "dep_delay"),
        origin_overdue=_overdue(moments, began, ended, "origin"),
        scheduled_departures=scheduled.astype("int64"),
    )


def carrier_traffic(tables: Tables) -> pd.DataFrame:
    """Of each carrier: mean delay of the flights that landed, and the number overdue.

    A row is written whenever a flight is announced too: nothing is overdue is something that one knows.
    """
    flights = tables["flights"]
    landed, announced, (began, ended) = landings(flights), published(flights), waiting(flights)
    moments = changes("carrier", (landed, list(WINDOWS.values())), (announced, []), (began, []), (ended, []))
    return _rows(
        moments,
        **_mean_delays("carrier_arrival_delay", moments, landed, "carrier", "arr_delay"),
        carrier_overdue=_overdue(moments, began, ended, "carrier"),
    )


def destination_traffic(tables: Tables) -> pd.DataFrame:
    """Of each destination: mean delay of the flights that landed there."""
    landed = landings(tables["flights"])
    moments = changes("dest", (landed, list(WINDOWS.values())))
    return _rows(moments, **_mean_delays("dest_arrival_delay", moments, landed, "dest", "arr_delay"))


def aircraft_landing(tables: Tables) -> pd.DataFrame:
    """Each landing of an aircraft: how late it was, and when."""
    landed = landings(tables["flights"])
    landed = landed[landed["tailnum"].notna()]
    return pd.DataFrame(
        {
            "tailnum": landed["tailnum"],
            KNOWN_AT: landed[KNOWN_AT],
            "aircraft_arrival_delay": landed["arr_delay"],
            "landed_at": _seconds(landed[KNOWN_AT]),
        }
    )


def aircraft_departure(tables: Tables) -> pd.DataFrame:
    """Each departure of an aircraft: how late it was, and when."""
    left = departures(tables["flights"])
    left = left[left["tailnum"].notna()]
    return pd.DataFrame(
        {
            "tailnum": left["tailnum"],
            KNOWN_AT: left[KNOWN_AT],
            "aircraft_departure_delay": left["dep_delay"],
            "left_at": _seconds(left[KNOWN_AT]),
        }
    )


def planes(tables: Tables) -> pd.DataFrame:
    """The register of aircraft, as it has always been; many that fly are not in it."""
    known = tables["planes"].drop_duplicates("tailnum")
    return pd.DataFrame(
        {
            "tailnum": known["tailnum"],
            KNOWN_AT: ALWAYS,
            "plane_built": known["year"].astype("Int64"),
            "plane_seats": known["seats"].astype("Int64"),
        }
    )


def departures(flights: pd.DataFrame) -> pd.DataFrame:
    """Each departure that happened, known when it happened."""
    events = flights[["origin", "tailnum", "dep_delay"]].assign(**{KNOWN_AT: times.departure(flights)})
    return events[events[KNOWN_AT].notna()]


def landings(flights: pd.DataFrame) -> pd.DataFrame:
    """Each landing that happened, known when it happened."""
    events = flights[["carrier", "dest", "tailnum", "arr_delay"]].assign(**{KNOWN_AT: times.landing(flights)})
    return events[events[KNOWN_AT].notna()]


def published(flights: pd.DataFrame) -> pd.DataFrame:
    """Each scheduled flight, known when the question about it is asked."""
    return flights[["origin", "carrier"]].assign(**{KNOWN_AT: times.prediction_time(flights)})


def waiting(flights: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each flight that should have left and had not: when it became overdue, and when it left or was given up.

    Mean delays of flights that left say nothing of those still waiting, which are the longest delays.
    """
    due = times.scheduled_departure(flights)
    left = times.departure(flights)
    waits = ~(left <= due + OVERDUE_AFTER)  # a missing departure waits too
    given_up = due + GIVEN_UP_AFTER
    events = flights.loc[waits, ["origin", "carrier"]]
    began = events.assign(**{KNOWN_AT: due[waits] + OVERDUE_AFTER})
    ended = events.assign(**{KNOWN_AT: left.where(left < given_up, given_up)[waits]})
    return began, ended


def _mean_delays(name: str, moments: pd.DataFrame, events: pd.DataFrame, key: str, delay: str) -> dict[str, pd.Series]:
    return {
        f"{name}_{window}": trailing_mean(moments, events, key, delay, window=length)
        for window, length in WINDOWS.items()
    }


def _overdue(moments: pd.DataFrame, began: pd.DataFrame, ended: pd.DataFrame, key: str) -> pd.Series:
    """The number that became overdue so far, less the number that left, or were given up, since."""
    waited = trailing_count(moments, began, key, window=None) - trailing_count(moments, ended, key, window=None)
    return waited.astype("int64")


def _rows(moments: pd.DataFrame, **fields: pd.Series) -> pd.DataFrame:
    return moments.rename(columns={PREDICTION_TIME: KNOWN_AT}).assign(**fields)


def _seconds(at: pd.Series) -> pd.Series:
    """Seconds since 1970, UTC: a time as a feature value."""
    return at.astype("datetime64[ns, UTC]").astype("int64") / 1e9


# What is sent with a question, and what is computed from it

_LOCAL = ZoneInfo(NEW_YORK)
HOUR, DAY = 3600, 86400
THURSDAY = 3
"""The day of the week of 1970's first day, Monday being 0."""
Lists = dict[str, list[Any]]


def inputs(questions: pd.DataFrame, flights: pd.DataFrame) -> pd.DataFrame:
    """What a caller would send with each question: keys, and the flight's schedule as text."""
    own = flights.loc[questions.index]
    keys = {name: own[name].astype("string") for name in ("origin", "carrier", "dest", "tailnum")}
    return pd.DataFrame(
        {
            **keys,
            "scheduled_departure": _text(times.scheduled_departure(own)),
            "scheduled_arrival": _text(times.scheduled_arrival(own)),
            "distance": own["distance"].astype("float64"),
        }
    )


def schedule(given: Lists) -> Lists:
    """The flight's own schedule, on New York's clock; a time that cannot be read is missing."""
    starts, ends = _instants(given["scheduled_departure"]), _instants(given["scheduled_arrival"])
    return {
        **_new_york_clock(starts),
        "scheduled_minutes": [
            (end - start) / 60 if start is not None and end is not None else None
            for start, end in zip(starts, ends, strict=True)
        ],
    }


def since_landing(given: Lists) -> Lists:
    """How long ago the aircraft landed."""
    return {"aircraft_arrival_hours": _hours(given["prediction_time"], given["landed_at"])}


def since_departure(given: Lists) -> Lists:
    """How long ago the aircraft left."""
    return {"aircraft_departure_hours": _hours(given["prediction_time"], given["left_at"])}


def plane_age(given: Lists) -> Lists:
    """How many years ago the aircraft was built."""
    days = [now // DAY for now in given["prediction_time"]]
    years = {day: datetime.fromtimestamp(day * DAY, UTC).year for day in set(days)}
    return {
        "plane_age": [
            years[day] - built if built is not None else None
            for day, built in zip(days, given["plane_built"], strict=True)
        ]
    }


def _hours(now: Iterable[float], then: Iterable[float | None]) -> list[float | None]:
    return [(to - at) / 60 / 60 if at is not None else None for to, at in zip(now, then, strict=True)]


def _instants(texts: list[str | None]) -> list[float | None]:
    """Seconds since 1970 of ISO 8601 texts; None without a text, a time zone or a date that exists."""
    instants = []
    for text in texts:
        try:
            at = datetime.fromisoformat(text) if text is not None else None
        except ValueError:
            at = None
        instants.append(at.timestamp() if at is not None and at.tzinfo is not None else None)
    return instants


def _new_york_clock(instants: list[float | None]) -> Lists:
    """Minute of the day and day of the week in New York, whose offset from UTC changes at whole hours only."""
    offsets: dict[float, float | None] = {}
    minutes: list[int | None] = []
    weekdays: list[int | None] = []
    for at in instants:
        offset = None
        if at is not None:
            hour = at // HOUR
            if hour not in offsets:
                offsets[hour] = _new_york_offset(hour * HOUR)
            offset = offsets[hour]
        if at is None or offset is None:
            minutes.append(None)
            weekdays.append(None)
        else:
            day, minute = divmod(int((at + offset) // 60), 1440)
            minutes.append(minute)
            weekdays.append((day + THURSDAY) % 7)
    return {"departure_minute": minutes, "weekday": weekdays}


def _new_york_offset(instant: float) -> float | None:
    """Seconds; None at the ends of the calendar, where New York has no date."""
    try:
        offset = datetime.fromtimestamp(instant, _LOCAL).utcoffset()
    except (OverflowError, ValueError):
        return None
    return offset.total_seconds() if offset is not None else None


def _text(at: pd.Series) -> pd.Series:
    """ISO 8601, UTC, whole seconds; null where there is no time."""
    written = np.datetime_as_string(at.dt.tz_convert(None).to_numpy(), unit="s", timezone="UTC")
    return pd.Series(written, index=at.index).where(at.notna()).astype("string")
