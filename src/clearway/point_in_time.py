"""Joins that cannot see the future: what was known about a thing when a question about it was asked.

Every event has a known time: the moment from which it could have been read. A question asked at time t is joined
only to events known at or before t. The joins keep every question, its order and its index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError

KNOWN_AT = "known_at"
"""The column of an event table that says when each event became known; UTC, never null."""
AGE = "age"
"""The column of a joined table with the time from an event's being known to the question; null without an event."""

Keys = str | Sequence[str]

_NEVER = np.iinfo(np.int64).min
"""The known time of no event: what pandas stores for a missing time."""


def last_known(
    questions: pd.DataFrame,
    events: pd.DataFrame,
    by: Keys,
    columns: Sequence[str] = (),
    *,
    known_at: str = KNOWN_AT,
    ttl: pd.Timedelta | None = None,
) -> pd.DataFrame:
    """The last event of each question's key that was known when it was asked.

    Of events known at the same instant the last one in the table's order wins.

    Parameters
    ----------
    questions : DataFrame of n rows
        With ``prediction_time`` (UTC) and the key columns.
    events : DataFrame
        With ``known_at`` (UTC), the key columns and the value columns.
    by : str or sequence of str
        Key columns, present in both tables; an empty sequence joins every question to every event.
    columns : sequence of str
        Value columns to bring over.
    known_at : str
        Name of the column that says when an event became known.
    ttl : Timedelta, optional
        Events older than this count as not known (an event exactly this old still counts).

    Returns
    -------
    DataFrame of n rows
        ``columns`` and ``age`` (timedelta), on the questions' index. A question without an event, or with a null key,
        is null throughout.

    Raises
    ------
    ClearwayError
        A column is missing, a time is missing or has no time zone, or an event of the future was joined.

    Examples
    --------
    >>> at = lambda hour: pd.Timestamp(f"2024-01-01T{hour:02d}:00Z")
    >>> questions = pd.DataFrame({"prediction_time": [at(9), at(12)], "sensor": ["a", "a"]})
    >>> events = pd.DataFrame({"known_at": [at(10), at(11)], "sensor": ["a", "a"], "reading": [1.0, 2.0]})
    >>> last_known(questions, events, "sensor", ["reading"])["reading"].tolist()
    [nan, 2.0]
    """
    join = _prepare(questions, events, by, known_at, columns)
    position = join.position(join.asked)
    known = np.append(join.known, _NEVER)[position]
    found = position >= 0
    if ttl is not None:
        found &= known >= join.asked - ttl.value
    refuse_future(join.asked[found], known[found])
    source = np.where(found, np.append(join.rows, -1)[position], -1)
    joined = events[list(columns)].reset_index(drop=True).reindex(source)  # no row is called −1: it gives null
    age = np.where(found, join.asked - np.where(found, known, 0), _NEVER)
    joined[AGE] = age.view("m8[ns]")
    return joined.set_axis(questions.index)


def trailing_count(
    questions: pd.DataFrame,
    events: pd.DataFrame,
    by: Keys,
    *,
    window: pd.Timedelta | None,
    known_at: str = KNOWN_AT,
) -> pd.Series:
    """How many events of each question's key became known in the window that ends when it is asked.

    The window of a question asked at t is (t − ``window``, t], or all the time up to t where ``window`` is None. The
    count is exact: the difference of two running counts, each found by an as-of look-up. Parameters and errors are
    those of :func:`last_known`.

    Returns
    -------
    Series of n rows
        float64; 0 where the key has no event in the window, NaN where a key is null.
    """
    join = _prepare(questions, events, by, known_at, ())
    (count,) = join.gained(window, np.ones(len(events)))
    return pd.Series(np.where(join.keyed, count, np.nan), index=questions.index, name="trailing_count")


def trailing_mean(
    questions: pd.DataFrame,
    events: pd.DataFrame,
    by: Keys,
    value: str,
    *,
    window: pd.Timedelta | None,
    known_at: str = KNOWN_AT,
) -> pd.Series:
    """The mean of ``value`` over the events of each question's key that became known in the window before it.

    The window is that of :func:`trailing_count`; events whose value is missing do not count. The sum is the difference
    of two running sums, each found by an as-of look-up: exact for whole numbers, and for others to the rounding of
    a float64 sum. Parameters and errors are those of :func:`last_known`.

    Returns
    -------
    Series of n rows
        float64; NaN where no event with a value is in the window, or a key is null.
    """
    join = _prepare(questions, events, by, known_at, (value,))
    values = pd.to_numeric(events[value]).to_numpy(dtype=np.float64, na_value=np.nan)
    present = ~np.isnan(values)
    count, total = join.gained(window, present.astype(np.float64), np.where(present, values, 0.0))
    some = join.keyed & (count > 0)
    mean = np.divide(total, count, out=np.full(len(questions), np.nan), where=some)
    return pd.Series(mean, index=questions.index, name=f"trailing_mean_{value}")


def changes(by: str, *entries: tuple[pd.DataFrame, Sequence[pd.Timedelta]], known_at: str = KNOWN_AT) -> pd.DataFrame:
    """When a count or mean over trailing windows may have another value than just before.

    An event moves such a value twice: when it becomes known, and when it leaves the window, a window's length later.
    Between two of these times the value is constant, so the values at them say all that there is to know.

    Parameters
    ----------
    by : str
        The key column.
    *entries : pairs of a DataFrame and a sequence of Timedelta
        Events, with ``known_at`` (UTC) and the key; and the lengths of the windows over them. Without a length,
        events are counted over all time, and never leave.
    known_at : str
        Name of the column that says when an event became known.

    Returns
    -------
    DataFrame
        The key and ``prediction_time``, each pair once, in time order: questions for :func:`trailing_count` and
        :func:`trailing_mean`. Events without a key have no part in it.

    Raises
    ------
    ClearwayError
        A column is missing, a time is missing or has no time zone.

    Examples
    --------
    >>> at = lambda hour: pd.Timestamp(f"2024-01-01T{hour:02d}:00Z")
    >>> events = pd.DataFrame({"known_at": [at(9), at(10)], "sensor": ["a", "a"]})
    >>> changes("sensor", (events, [pd.Timedelta(hours=1)]))["prediction_time"].dt.hour.tolist()
    [9, 10, 11]
    """
    times, keys = [], []
    for events, windows in entries:
        missing = [name for name in (known_at, by) if name not in events.columns]
        if missing:
            raise ClearwayError(f"point-in-time join: the events have no column {', '.join(missing)}")
        known = _nanoseconds(events[known_at], "event", known_at)
        for length in (0, *(window.value for window in windows)):
            times.append(known + length)
            keys.append(events[by])
    codes, names = pd.factorize(pd.concat(keys, ignore_index=True).astype("object"))
    moments = np.concatenate(times)
    order = np.lexsort((codes, moments))
    order = order[codes[order] >= 0]
    codes, moments = codes[order], moments[order]
    first = np.ones(len(codes), dtype=bool)  # of each pair
    first[1:] = (np.diff(codes) != 0) | (np.diff(moments) != 0)
    asked = pd.DatetimeIndex(moments[first].view("M8[ns]")).tz_localize("UTC")
    return pd.DataFrame({by: names[codes[first]], PREDICTION_TIME: asked})


def refuse_future(asked: NDArray[np.int64], known: NDArray[np.int64]) -> None:
    """The guard at the end of every join.

    Parameters
    ----------
    asked, known : int64 arrays of one shape
        Nanoseconds since 1970: when each question was asked, and when the event joined to it became known.

    Raises
    ------
    ClearwayError
        An event was not yet known when its question was asked, or has no known time.
    """
    if (known == _NEVER).any():
        raise ClearwayError(f"point-in-time join: {int((known == _NEVER).sum())} joined events have no known time")
    late = known > asked
    if late.any():
        first = int(np.argmax(late))
        raise ClearwayError(
            f"point-in-time join: {int(late.sum())} events were joined before they were known, the first one known at "
            f"{pd.Timestamp(known[first], tz='UTC')} to a question asked at {pd.Timestamp(asked[first], tz='UTC')}"
        )


@dataclass(frozen=True)
class _Join:
    """Questions and events of one join as plain arrays; events are sorted by known time."""

    asked: NDArray[np.int64]
    """When each question was asked, in nanoseconds."""
    codes: NDArray[np.int64]
    """The key of each question; −1 is null."""
    known: NDArray[np.int64]
    """When each event became known, ascending."""
    event_codes: NDArray[np.int64]
    rows: NDArray[np.intp]
    """Each event's position in the caller's table."""

    @property
    def keyed(self) -> NDArray[np.bool_]:
        return self.codes >= 0

    def position(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each question, the last event of its key known at or before ``times``; −1 where there is none."""
        count = len(self.known)
        if count == 0:
            return np.full(len(times), -1, dtype=np.int64)
        # one number for key and place in time: events of a key lie together, in time order
        places = self.event_codes * (count + 1) + np.arange(count)
        order = np.argsort(places, kind="stable")
        until = self.codes * (count + 1) + np.searchsorted(self.known, times, side="right")
        last = order[np.searchsorted(places[order], until) - 1]
        found = self.keyed & (self.event_codes[last] == self.codes) & (self.known[last] <= times)
        return np.where(found, last, -1)

    def gained(self, window: pd.Timedelta | None, *values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Of each of ``values`` (in the caller's order), the sum over the window of each question."""
        last = self.position(self.asked)
        refuse_future(self.asked[last >= 0], self.known[last[last >= 0]])
        before = self.position(self.asked - window.value) if window is not None else np.full(len(last), -1)
        sums = []
        for value in values:
            running = pd.Series(value[self.rows]).groupby(self.event_codes).cumsum().to_numpy(dtype=np.float64)
            running = np.append(running, 0.0)  # position −1: nothing was known yet
            sums.append(running[last] - running[before])
        return sums


def _prepare(questions: pd.DataFrame, events: pd.DataFrame, by: Keys, known_at: str, values: Sequence[str]) -> _Join:
    """Check both tables and turn them into arrays."""
    keys = [by] if isinstance(by, str) else list(by)
    for what, frame, needed in (
        ("questions", questions, [PREDICTION_TIME, *keys]),
        ("events", events, [known_at, *keys, *values]),
    ):
        missing = [name for name in needed if name not in frame.columns]
        if missing:
            raise ClearwayError(f"point-in-time join: the {what} have no column {', '.join(missing)}")
    asked = _nanoseconds(questions[PREDICTION_TIME], "question", PREDICTION_TIME)
    known = _nanoseconds(events[known_at], "event", known_at)
    codes = _codes(questions, events, keys)
    order = np.argsort(known, kind="stable")
    return _Join(asked, codes[: len(asked)], known[order], codes[len(asked) :][order], order)


def _nanoseconds(times: pd.Series, what: str, column: str) -> NDArray[np.int64]:
    """Times as int64 nanoseconds since 1970, UTC."""
    if not isinstance(times.dtype, pd.DatetimeTZDtype):
        raise ClearwayError(f"point-in-time join: {column} of each {what} must be a UTC time, found {times.dtype}")
    missing = int(times.isna().sum())
    if missing:
        raise ClearwayError(f"point-in-time join: {missing} of {len(times)} {what}s have no {column}")
    return np.asarray(times.astype("datetime64[ns, UTC]").astype("int64"), dtype=np.int64)


def _codes(questions: pd.DataFrame, events: pd.DataFrame, keys: list[str]) -> NDArray[np.int64]:
    """One number per distinct key over both tables, questions first; −1 where any part of the key is null."""
    codes = np.zeros(len(questions) + len(events), dtype=np.int64)
    for key in keys:
        both = pd.concat([questions[key].astype("object"), events[key].astype("object")], ignore_index=True)
        part, distinct = pd.factorize(both)
        mixed = np.where((codes < 0) | (part < 0), -1, codes * len(distinct) + part)
        codes = mixed if len(keys) == 1 else np.where(mixed < 0, -1, pd.factorize(mixed)[0])
    return codes
