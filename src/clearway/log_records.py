"""The records of a prediction log: their fields, what a sound one holds, and how lines of JSON become columns."""

import contextlib
import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:  # the server writes records, and does not wait for pandas
    import pandas as pd

LOG_COLUMNS = (
    "id",
    "revision",
    "version",
    "role",
    "entity",
    "asked_at",
    "served_at",
    "status",
    "latency_ms",
    "score",
    "features",
    "inputs",
    "probabilities",
    "hidden",
)
"""Fields of one record. ``score`` is one number whatever is answered (:mod:`clearway.target`), ``probabilities`` that
of each class by its name, null where there are not several. ``features`` is what the model saw; ``inputs`` is what a
request by key carried, from which the features were looked up, null where it carried them itself. ``hidden`` names
fields that were left out or hashed by ``serving.log``, as ``entity,features.weight``; null where none was."""

ABOUT_RECORDS = ("asked_text", "where")
"""What can be read beside the fields: ``asked_at`` as the record writes it, and where the record is: file and line, or
file and id."""

GROUPS = ("features", "inputs", "probabilities")
"""Fields that are objects."""


@dataclass(frozen=True)
class Parsed:
    """The records of some lines, as columns, and the lines that are none."""

    values: dict[str, list[Any]]
    lines: list[int]
    """Of each record, from 1."""
    faulty: list[tuple[int, str]]
    """Line and what is wrong with it, in their order; an empty text for one that is no JSON record."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from walking, again and again, a million new objects that all stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def parse(
    content: Sequence[bytes],
    fields: Sequence[str],
    since_revision: int | None = None,
    revisions: Collection[int] | None = None,
    others: list[dict[str, Any] | None] | None = None,
) -> Parsed:
    """Take the ``fields`` of each line whose revision is asked for.

    Parameters
    ----------
    content : sequence of bytes
        Lines; empty ones are nothing.
    fields : sequence of str
        Of :data:`LOG_COLUMNS`. A value of the wrong type in any of them makes its record faulty.
    since_revision, revisions
        As of :func:`clearway.prediction_log.read_log`.
    others : list, optional
        Where to put the fields of each record that are not in :data:`LOG_COLUMNS`.
    """
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    faulty: list[tuple[int, str]] = []
    for number, line in enumerate(content, start=1):
        if not line:
            continue
        try:
            record = orjson.loads(line)
            revision = record["revision"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            faulty.append((number, ""))
            continue
        if type(revision) is not int:
            faulty.append((number, f"revision is {_brief(revision)}"))
        elif (since_revision is None or revision >= since_revision) and (revisions is None or revision in revisions):
            records.append(record)
            numbers.append(number)
    # whole columns are judged first: nearly always all is sound, and record by record takes much longer
    values = {name: [record.get(name) for record in records] for name in fields}
    if not all(_all_sound(name, column) for name, column in values.items()):
        faults = [next((f"{name} is {_brief(record.get(name))}" for name in fields
                        if not _all_sound(name, (record.get(name),))), "") for record in records]  # fmt: skip
        faulty += [(number, fault) for number, fault in zip(numbers, faults, strict=True) if fault]
        records = [record for record, fault in zip(records, faults, strict=True) if not fault]
        numbers = [number for number, fault in zip(numbers, faults, strict=True) if not fault]
        values = {name: [record.get(name) for record in records] for name in fields}
    if others is not None:
        for record in records:
            rest = record.keys() - _KNOWN
            others.append({name: record[name] for name in sorted(rest)} if rest else None)
    return Parsed(values, numbers, sorted(faulty))


def typed(name: str, values: list[Any]) -> "pd.Series[Any]":
    """A column as :func:`clearway.prediction_log.read_log` returns it."""
    import pandas as pd

    if name in ("asked_at", "served_at"):
        texts = pd.Series(values, dtype="object")
        times = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce").astype("datetime64[ns, UTC]")
        for place in texts.index[times.isna() & texts.notna()]:  # callers may write what pandas does not read
            times[place] = _time(texts[place])
        return times.dt.floor("us")  # as it is stored
    kinds = {"revision": "int64", "status": "int64", "latency_ms": "float64", "score": "float64"}
    return pd.Series(values, dtype=kinds.get(name, "object"))


def _time(text: str) -> Any:
    """A time in any form that Python reads; NaT for what is none, or is too far away for nanoseconds."""
    import pandas as pd

    try:
        time = pd.Timestamp(datetime.fromisoformat(text))
        return (time.tz_localize("UTC") if time.tz is None else time.tz_convert("UTC")).as_unit("ns")
    except (ValueError, OverflowError):  # pandas' own error of times out of bounds is a ValueError
        return pd.NaT


def _brief(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _all_sound(name: str, column: Collection[Any]) -> bool:
    """Whether all values of a field are what a server writes there: of its types, and objects flat."""
    if not _TYPES[name].issuperset(map(type, column)):
        return False
    inner = _INNER.get(name)
    return inner is None or all(value is None or inner.issuperset(map(type, value.values())) for value in column)


_NULL = type(None)
_KNOWN = frozenset(LOG_COLUMNS)
_TEXT = frozenset[type]((str, _NULL))
_NUMBER = frozenset[type]((float, int, _NULL))
_OBJECT = frozenset[type]((dict, _NULL))
_TYPES: dict[str, frozenset[type]] = {
    "id": _TEXT,
    "revision": frozenset[type]((int,)),
    "version": frozenset[type]((str,)),
    "role": _TEXT,
    "entity": _TEXT,
    "asked_at": _TEXT,
    "served_at": _TEXT,
    "status": frozenset[type]((int,)),
    "latency_ms": _NUMBER,
    "score": _NUMBER,
    "features": _OBJECT,
    "inputs": _OBJECT,
    "probabilities": _OBJECT,
    "hidden": _TEXT,
}
_INNER: dict[str, frozenset[type]] = {
    "features": frozenset[type]((float, int, str, bool, _NULL)),
    "inputs": frozenset[type]((float, int, str, bool, _NULL)),
    "probabilities": frozenset[type]((float, int)),
}
