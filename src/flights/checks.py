"""Checks of the raw tables that ``schema.yaml`` calls by name: what a SQL rule cannot say of a row, as to time zones.

Each is true of a good row, and null where it cannot tell. They are built for speed: the gate runs them on every push.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from flights.zones import NEW_YORK, ZONES

KNOWN_GAPS = (
    datetime(2013, 2, 21, 6),
    datetime(2013, 8, 19, 22),
    datetime(2013, 8, 23, 2),
    datetime(2013, 10, 26, 5),
    datetime(2013, 10, 27, 2),
    datetime(2013, 11, 3, 5),
    datetime(2013, 11, 4, 16),
)
"""The hours (UTC) before which the weather of all three airports really is missing, for 1 to 5 hours each."""
SUMMER = (datetime(2013, 3, 10, 7, tzinfo=UTC), datetime(2013, 11, 3, 6, tzinfo=UTC))
"""New York's summer time in the one year that ``schema.yaml`` allows: to ask Polars for each row's takes a tenth of all
checks' time. In another year every summer row would be refused, aloud."""
MILES_PER_MINUTE = 8.0
"""Speed of an airliner over a whole flight, for the time it takes beyond that: 7 to 154 minutes in 2013."""
SHORTEST, LONGEST = -60, 170
"""Bounds of that time in minutes; an hour at the lower end is for zones without New York's summer time."""


def _days() -> pl.Expr:
    """Days from 1970 to ``year``, ``month``, ``day``; any number for a date that does not exist, never an error.

    H. Hinnant, "chrono-compatible low-level date algorithms" (2013), ``days_from_civil``, without the exceptions of
    1900 and 2100: polars.datetime is slower, and stops at the 31st of February.
    """
    month, day = pl.col("month"), pl.col("day")
    year = pl.col("year") - (month <= 2).cast(pl.Int64)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return 365 * year + year // 4 + day_of_year - 719_483


def new_york_clock() -> pl.Expr:
    """``time_hour`` (UTC), on New York's clock, is ``year`` to ``hour``; in the hour it shows twice, either will do."""
    hour = pl.col("time_hour")
    offset = pl.when(hour.is_between(*SUMMER, closed="left")).then(-4 * 3_600).otherwise(-5 * 3_600)
    return _days() * 86_400 + pl.col("hour") * 3_600 == hour.dt.epoch("s") + offset


def destination_zone() -> pl.Expr:
    """The time zone of ``dest`` is known: without it nobody can say when a flight landed."""
    return pl.col("dest").is_null() | pl.col("dest").is_in(list(ZONES))


def block_time() -> pl.Expr:
    """The time from scheduled departure to scheduled arrival, each on its own airport's clock, suits the distance."""
    block = _minute_of_day("sched_arr_time") - _minute_of_day("sched_dep_time") - _minutes_ahead()
    beyond = block - pl.col("distance") / MILES_PER_MINUTE
    return (beyond - SHORTEST) % 1_440 <= LONGEST - SHORTEST


def hours_follow() -> pl.Expr:
    """Each hour of weather follows the one before it: a gap at all airports at once is one of those that are known."""
    hour = pl.col("time_hour")
    before = hour.shift().over(pl.lit(1), order_by="time_hour")
    known = hour.is_in([gap.replace(tzinfo=UTC) for gap in KNOWN_GAPS])
    return (hour - before <= timedelta(hours=1)) | known


def _minute_of_day(column: str) -> pl.Expr:
    """Of a clock time written hhmm."""
    return pl.col(column) - 40 * (pl.col(column) // 100)


def _minutes_ahead() -> pl.Expr:
    """How far the clock of ``dest`` is ahead of New York's in winter; null where its zone is not known."""
    ahead = {airport: _utc_offset(zone) - _utc_offset(NEW_YORK) for airport, zone in ZONES.items()}
    # said to be elementwise, because Polars would otherwise hold a table whole that is to be read in pieces
    return pl.col("dest").map_batches(
        lambda codes: codes.replace_strict(ahead, default=None, return_dtype=pl.Int64),
        return_dtype=pl.Int64,
        is_elementwise=True,
    )


def _utc_offset(zone: str) -> int:
    """A zone's offset from UTC in winter, in minutes."""
    offset = datetime(2013, 1, 1, tzinfo=ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // 60


CHECKS = {
    "new_york_clock": new_york_clock(),
    "destination_zone": destination_zone(),
    "block_time": block_time(),
    "hours_follow": hours_follow(),
}
