"""The log of every prediction, written off the request path: losing a line never loses an answer."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
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
)
"""Fields of one record. ``score`` is one number whatever is answered (:mod:`clearway.target`), ``probabilities`` that
of each class by its name, null where there are not several. ``features`` is what the model saw; ``inputs`` is what a
request by key carried, from which the features were looked up, null where it carried them itself. Both are left out
where ``serving.log_features`` is off."""

ABOUT_RECORDS = ("asked_text", "where")
"""What can be read beside the fields: ``asked_at`` as the record writes it, and the file and line of the record."""

FLUSH_SECONDS = 0.1
CLOSE_SECONDS = 5.0


class PredictionLog:
    """Appends records to ``<folder>/<YYYYMMDD>-<pid>.jsonl`` from a thread of its own.

    :meth:`append` never blocks and never raises: a full queue or a failing disk drops records and counts them
    in ``dropped``. What was appended is in the file after at most ``2 * FLUSH_SECONDS``.

    Parameters
    ----------
    folder
        Where the files go; made when first needed.
    capacity
        Records that may wait for the disk.
    """

    def __init__(self, folder: Path, capacity: int = 100_000) -> None:
        self.written = 0
        self.dropped = 0
        self._folder = folder
        self._capacity = capacity
        # deque.append and popleft are atomic, so that a request takes no lock; one writer wakes by the clock, since
        # waking it for each record would have two threads fight over the interpreter on every request
        self._pending: deque[Mapping[str, Any]] = deque()
        self._closing = threading.Event()
        self._file: int | None = None
        self._day = ""
        self._torn = False
        self._writer = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._writer.start()

    def append(self, record: Mapping[str, Any]) -> bool:
        """Queue one record; False if the queue was full (or the log closed) and it was dropped."""
        if len(self._pending) >= self._capacity or self._closing.is_set():
            self.dropped += 1
            return False
        self._pending.append(record)
        return True

    def close(self) -> None:
        """Write what is queued, fsync, and stop. Waits at most ``CLOSE_SECONDS`` for a disk that hangs."""
        self._closing.set()
        self._writer.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _flush(self) -> None:
        count = len(self._pending)
        if not count:
            return
        lines, broken = bytearray(), 0
        for _ in range(count):
            try:
                lines += orjson.dumps(self._pending.popleft(), option=orjson.OPT_APPEND_NEWLINE)
            except TypeError:  # orjson's encode error: a record that is no JSON is lost alone
                broken += 1
        self.dropped += broken
        try:
            self._write(lines)
        except OSError:
            self.dropped += count - broken
        else:
            self.written += count - broken

    def _write(self, lines: bytearray) -> None:
        """Append ``lines``; after a write that failed halfway, first end the line it tore."""
        day = datetime.now(UTC).strftime("%Y%m%d")
        if self._file is None or day != self._day:
            self._folder.mkdir(parents=True, exist_ok=True)
            opened = os.open(self._folder / f"{day}-{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if self._file is not None:
                os.close(self._file)
            self._file, self._day, self._torn = opened, day, False
        rest = memoryview(b"\n" + lines if self._torn else lines)
        self._torn = True
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._torn = False


def read_log(
    folder: Path,
    since_revision: int | None = None,
    revisions: Collection[int] | None = None,
    columns: Collection[str] | None = None,
) -> "pd.DataFrame":
    """The logged predictions, in the order they were served.

    Parameters
    ----------
    folder
        ``var/environments/<env>/predictions``; one that does not exist is an empty log.
    since_revision
        Keep records of this ledger revision and later ones.
    revisions
        Keep records of exactly these ledger revisions.
    columns
        Which of :data:`LOG_COLUMNS` and :data:`ABOUT_RECORDS` to return; all of the former by default. Leaving out
        ``features`` and ``inputs`` saves much of the memory.

    Returns
    -------
    DataFrame
        One row per record, whatever its status. ``revision`` and ``status`` are int64, ``latency_ms`` and ``score``
        float64 (null is NaN), ``asked_at`` and ``served_at`` UTC times (NaT for what pandas cannot hold), ``features``
        and ``inputs`` dictionaries or None.

        ``attrs["torn_lines"]`` counts lines that are no JSON object: one in a file that is being written or whose
        writer died is normal. ``attrs["damaged_lines"]`` counts those beyond one in a file, and records with a value
        of the wrong type in a column that was asked for: they are left out. ``attrs["damaged"]`` says where the first
        of them is and what is wrong.
    """
    import pandas as pd  # late, because a server only writes

    wanted = tuple(LOG_COLUMNS if columns is None else columns)
    if unknown := set(wanted) - {*LOG_COLUMNS, *ABOUT_RECORDS}:
        raise ValueError(f"the prediction log has no column {', '.join(sorted(unknown))}")
    kept = None if revisions is None else frozenset(revisions)
    needed = (*(name for name in wanted if name in LOG_COLUMNS), "served_at")
    fields = tuple(dict.fromkeys((*needed, "asked_at") if "asked_text" in wanted else needed))
    values: dict[str, list[Any]] = {name: [] for name in (*fields, "where")}
    appends = [(name, values[name].append) for name in fields]
    checks = [(name, _SOUND[name]) for name in fields]
    torn, damaged, first = 0, 0, ""
    for path in sorted(folder.glob("*.jsonl")):
        torn_here = 0
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line:
                continue
            fault = ""
            try:
                record = orjson.loads(line)
                revision = record["revision"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                torn_here += 1
                if torn_here == 1:
                    continue
                fault = "is no JSON record"
            else:
                if type(revision) is not int:
                    fault = f"revision is {_brief(revision)}"
                elif (since_revision is not None and revision < since_revision) or (
                    kept is not None and revision not in kept
                ):
                    continue
                else:
                    wrong = next((name for name, sound in checks if not sound(record.get(name))), None)
                    fault = f"{wrong} is {_brief(record.get(wrong))}" if wrong else ""
            if fault:
                damaged += 1
                first = first or f"{path.name}:{number}: {fault}"
                continue
            for name, add in appends:
                add(record.get(name))
            values["where"].append(f"{path.name}:{number}")
        torn += torn_here
    if "asked_text" in wanted:
        values["asked_text"] = values["asked_at"]
    frame = pd.DataFrame({name: _typed(name, column) for name, column in values.items()})
    frame = frame.sort_values("served_at", kind="stable", ignore_index=True)[list(wanted)]
    frame.attrs |= {"torn_lines": torn, "damaged_lines": damaged, "damaged": first}
    return frame


def _brief(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _text_or_null(value: Any) -> bool:
    return value is None or type(value) is str


def _number_or_null(value: Any) -> bool:
    return value is None or type(value) in (float, int)


def _flat_or_null(value: Any) -> bool:
    """An object of plain values, or none."""
    return value is None or (type(value) is dict and all(type(each) in _PLAIN for each in value.values()))


def _numbers_or_null(value: Any) -> bool:
    return value is None or (type(value) is dict and all(type(one) in (float, int) for one in value.values()))


_PLAIN = frozenset((float, int, str, bool, type(None)))
_SOUND: dict[str, Callable[[Any], bool]] = {
    "id": _text_or_null,
    "revision": lambda value: type(value) is int,
    "version": lambda value: type(value) is str,
    "role": _text_or_null,
    "entity": _text_or_null,
    "asked_at": _text_or_null,
    "served_at": _text_or_null,
    "status": lambda value: type(value) is int,
    "latency_ms": _number_or_null,
    "score": _number_or_null,
    "features": _flat_or_null,
    "inputs": _flat_or_null,
    "probabilities": _numbers_or_null,
}
"""Whether a record holds of each field what a server writes there."""


def _typed(name: str, values: list[Any]) -> "pd.Series[Any]":
    import pandas as pd

    if name in ("asked_at", "served_at"):
        texts = pd.Series(values, dtype="object")
        times = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce").astype("datetime64[ns, UTC]")
        for place in texts.index[times.isna() & texts.notna()]:  # callers may write what pandas does not read
            times[place] = _time(texts[place])
        return times
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
