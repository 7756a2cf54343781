"""What was known of each source table at a given time."""

from datetime import datetime

import pandas as pd

from clearway.errors import ClearwayError
from flights import times

WEATHER_KNOWN_AFTER = pd.Timedelta(hours=1)
"""A row of weather describes an hour and is known when that hour is over."""
LEFT = ("dep_time", "dep_delay")
"""What a flight's departure adds to its row."""
LANDED = ("arr_time", "arr_delay", "air_time")
"""What its landing adds."""
CUT_BY = {
    "flights": ("time_hour", "minute", "sched_arr_time", "dest", *LEFT, *LANDED),
    "weather": ("time_hour",),
}
"""The columns that say when something became known, and those that hold it."""


def known_at(table: str, frame: pd.DataFrame, as_of: datetime | None) -> pd.DataFrame:
    """``frame`` as it could have been read at ``as_of``.

    A flight appears when the question about it is asked; what its departure and its landing add to the row appears
    when they have happened. The landing time of a diverted flight is not in the data, so its arrival stays unknown.
    Planes, airports and airlines are taken as always known. Rows whose time is missing stay, for validation to find.

    A flight's aircraft is taken as known when the question is asked. The data holds only the one that flew, and none
    for some cancelled flights: an aircraft exchanged in the last two hours cannot be told from one planned all along.

    Raises
    ------
    ClearwayError
        A column that tells when things became known is missing, or is not a time.
    """
    missing = [name for name in CUT_BY.get(table, ()) if name not in frame.columns]
    if missing:
        raise ClearwayError(
            f"{table}: the source has no column {', '.join(missing)}, without which nobody can tell what was known at "
            f"as_of: correct params.yaml: sources.{table} or the data"
        )
    if as_of is None or table not in CUT_BY:
        return frame
    now = pd.Timestamp(as_of)
    if table == "weather":
        return frame[~(weather_known(frame) > now)]
    known = frame[~(times.prediction_time(frame) > now)].copy()
    left, landed = times.departure(known) <= now, times.landing(known) <= now
    for columns, happened in ((LEFT, left), (LANDED, landed)):
        for column in columns:
            known[column] = known[column].where(happened)
    return known


def weather_known(weather: pd.DataFrame) -> pd.Series:
    """When each row of weather could be read.

    Raises
    ------
    ClearwayError
        ``time_hour`` was not read as a time.
    """
    return times.full_hour("weather", weather) + WEATHER_KNOWN_AFTER
