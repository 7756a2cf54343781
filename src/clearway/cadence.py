"""Steps of time without a row: from a column of times to the hours, or days, that are missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clearway.frames import Frame
from clearway.schema import Cadence

_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_QUARTER = 900
"""Seconds in which every time zone's day begins: local days are told from quarters of an hour."""
EXAMPLES = 5
_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
_TICK = "\x00tick"
_FEW = 100
"""Combinations of ``by`` up to which each gets places of its own."""
_SPARSE = 8
"""Places of steps per row of a table, beyond which they are not laid out one by one."""


@dataclass(frozen=True)
class MissingSteps:
    """What a cadence lacks."""

    missing: int
    expected: int
    """Steps from the first to the last row, of all combinations together."""
    examples: tuple[dict[str, Any], ...]
    """The first missing steps of the earliest combinations: when they begin, in UTC (of days: the day)."""


def missing_steps(frame: Frame, cadence: Cadence) -> MissingSteps:
    """Count the steps in which no row lies, for each combination of the columns ``by``.

    Rows without a time, or outside ``hours``, are left out. Steps are counted from the first one that has a row.
    """
    length, unit = int(cadence.every[:-1]), cadence.every[-1]
    seconds = _QUARTER if unit == "d" else _SECONDS[unit]
    dtype = frame.lazy.collect_schema()[cadence.column]
    parts = _PER_SECOND[dtype.time_unit if isinstance(dtype, pl.Datetime) else "us"]  # a column of nothing has none
    tick = (pl.col(cadence.column).to_physical().cast(pl.Int64) // (seconds * parts)).alias(_TICK)
    ticks = _distinct(frame, cadence.by, tick)
    local = pl.from_epoch(pl.col(_TICK) * seconds).dt.replace_time_zone("UTC").dt.convert_time_zone(cadence.zone)
    if unit == "d":
        days = local.dt.date().cast(pl.Int32).cast(pl.Int64)
        ticks = ticks.with_columns(days.alias(_TICK)).unique()
        seconds = _SECONDS["d"]
    ticks = ticks.sort(*cadence.by, _TICK, nulls_last=True)
    missing = expected = 0
    examples: list[dict[str, Any]] = []
    groups = ticks.partition_by(cadence.by, maintain_order=True) if cadence.by else [ticks]
    if not len(ticks):
        return MissingSteps(0, 0, ())
    begin, end = int(ticks[_TICK].min()), int(ticks[_TICK].max())  # type: ignore[arg-type]
    working = _within_hours(np.arange(begin, end + 1) * seconds, cadence)
    for group in groups:
        there = group[_TICK].to_numpy()
        steps = np.arange(there[0], there[-1] + 1, length)
        wanted = working[steps - begin]
        found = np.zeros(len(steps), dtype=bool)
        found[(there - there[0]) // length] = True
        gaps = steps[wanted & ~found]
        expected += int(wanted.sum())
        missing += len(gaps)
        own = {name: group[name][0] for name in cadence.by}
        examples += [{**own, cadence.column: _begin(int(step) * seconds, unit)} for step in gaps[:EXAMPLES]]
    return MissingSteps(missing, expected, tuple(examples[:EXAMPLES]))


def _distinct(frame: Frame, by: Sequence[str], tick: pl.Expr) -> pl.DataFrame:
    """Each combination of ``by`` and step that some row has.

    In memory every combination gets a row of places, one per step: far quicker than a set of what was seen. They are
    told apart by 64-bit hashes: among 100 of them, two share one with a chance of 1 in 10^15.
    """
    if frame.streamed:
        return frame.collect(frame.lazy.select(*by, tick).filter(pl.col(_TICK).is_not_null()).unique())
    rows = frame.collect(frame.lazy.select(*by, tick))
    if rows[_TICK].null_count():
        rows = rows.filter(pl.col(_TICK).is_not_null())
    if not len(rows):
        return rows
    steps = rows[_TICK].to_numpy()
    first, last = int(steps.min()), int(steps.max())
    span, combinations = last - first + 1, np.zeros(1, dtype=np.uint64)
    if by:
        hashes = rows.select((pl.struct(by) if len(by) > 1 else pl.col(by[0])).hash()).to_series().to_numpy()
        ordered = np.sort(hashes)
        combinations = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    if len(combinations) > _FEW or len(combinations) * span > _SPARSE * len(rows) + 1_000_000:
        return rows.unique()  # many combinations, or one time in the wrong century
    place = np.empty(len(rows), dtype=np.int32)  # half the memory is half the time here
    np.subtract(steps, first, out=place, casting="unsafe")
    for combination in combinations[:-1]:
        place += (hashes > combination) * np.int32(span)
    moved = np.flatnonzero(np.append(True, place[1:] != place[:-1]))  # of rows in order of time, few
    places = np.full(len(combinations) * span, -1)
    places[place[moved]] = moved
    return rows[places[places >= 0]]


def _within_hours(epochs: NDArray[np.int64], cadence: Cadence) -> NDArray[np.bool_]:
    """Which steps begin in the hours of the day in which rows are expected; days always do."""
    if cadence.hours is None or cadence.every.endswith("d"):
        return np.ones(len(epochs), dtype=bool)
    first, last = cadence.hours
    times = pl.from_epoch(pl.Series(epochs)).dt.replace_time_zone("UTC").dt.convert_time_zone(cadence.zone)
    hours = times.dt.hour().to_numpy()
    return (hours >= first) & (hours <= last) if first <= last else (hours >= first) | (hours <= last)


def _begin(epoch: int, unit: str) -> str:
    moment = datetime.fromtimestamp(epoch, UTC)
    return f"{moment:%Y-%m-%d}" if unit == "d" else f"{moment:%Y-%m-%dT%H:%MZ}"
