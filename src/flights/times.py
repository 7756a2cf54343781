"""When things happened: the flights table gives local clock times and minutes of delay, the line needs UTC.

All functions take the flights table and return one UTC time per flight, on its index. Where a value is missing or
impossible the time is null: tables are cut at ``as_of`` before they are validated, and validation must see such rows.
"""

import numpy as np
import pandas as pd

from clearway.errors import ClearwayError
from flights.zones import NEW_YORK, ZONES

ASKED_BEFORE = pd.Timedelta(hours=2)
"""How long before its scheduled departure the question about a flight is asked."""
LONGEST = 100_000.0
"""Minutes, over two months: no delay is longer, so a greater number is an error in the data."""


def full_hour(table: str, frame: pd.DataFrame) -> pd.Series:
    """``time_hour`` of a table, UTC.

    Raises
    ------
    ClearwayError
        It was not read as a time.
    """
    hour = frame["time_hour"]
    if not isinstance(hour.dtype, pd.DatetimeTZDtype):
        raise ClearwayError(
            f"{table}: time_hour is {hour.dtype}, not a UTC time: list it in params.yaml: sources.{table}.timestamps"
        )
    return hour


def scheduled_departure(flights: pd.DataFrame) -> pd.Series:
    """``time_hour`` is the full hour, already in UTC; ``minute`` is within it.

    Raises
    ------
    ClearwayError
        ``time_hour`` was not read as a time.
    """
    return full_hour("flights", flights) + _minutes(flights["minute"])


def prediction_time(flights: pd.DataFrame) -> pd.Series:
    """When the question is asked: two hours before the scheduled departure."""
    return scheduled_departure(flights) - ASKED_BEFORE


def scheduled_arrival(flights: pd.DataFrame) -> pd.Series:
    """The first instant after the scheduled departure at which the destination's clock shows ``sched_arr_time``.

    That is the same day or the next one: no flight takes 24 hours, and none lands on an earlier date. In the hour that
    a clock change repeats, the first pass is meant; in the hour that it skips, the time moves forward by one hour.
    It is null where the destination's time zone is not known.
    """
    departure = scheduled_departure(flights)
    date = departure.dt.tz_convert(NEW_YORK).dt.tz_localize(None).dt.normalize()
    digits = pd.to_numeric(flights["sched_arr_time"], errors="coerce")
    local = date + _minutes(digits // 100 * 60 + digits % 100)
    arrival = pd.Series(pd.NaT, index=flights.index, dtype=departure.dtype)
    for zone, part in local.groupby(flights["dest"].astype("object").map(ZONES)):
        same_day = _utc(part, str(zone))
        next_day = _utc(part + pd.Timedelta(days=1), str(zone))
        arrival.loc[part.index] = same_day.where(same_day > departure[part.index], next_day)
    return arrival


def departure(flights: pd.DataFrame) -> pd.Series:
    """When the flight really left; null if it never did, or had not yet."""
    return scheduled_departure(flights) + _minutes(flights["dep_delay"])


def landing(flights: pd.DataFrame) -> pd.Series:
    """When the flight really landed at its destination; null if it was cancelled or diverted, or had not yet."""
    return scheduled_arrival(flights) + _minutes(flights["arr_delay"])


def _minutes(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    seconds = 60 * numbers.where(numbers.abs() < LONGEST).to_numpy(dtype=np.float64, na_value=np.nan)
    return pd.Series(seconds.astype("m8[s]").astype("m8[ns]"), index=values.index)  # NaN becomes NaT


def _utc(local: pd.Series, zone: str) -> pd.Series:
    first_pass = np.ones(len(local), dtype=bool)
    placed = local.dt.tz_localize(zone, ambiguous=first_pass, nonexistent="shift_forward")
    return pd.Series(placed.dt.tz_convert("UTC"))
