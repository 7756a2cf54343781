"""The log of every prediction, written off the request path: losing a line never loses an answer."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
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
)
"""Fields of one record. ``features`` is what the model saw; ``inputs`` is what a request by key carried, from which the
features were looked up, null where it carried them itself. Both are left out where ``serving.log_features`` is off."""

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
) -> pd.DataFrame:
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
        Which of :data:`LOG_COLUMNS` to return; all by default. Leaving out ``features`` and ``inputs`` saves much of
        the memory.

    Returns
    -------
    DataFrame
        One row per record. ``revision`` and ``status`` are int64, ``latency_ms`` and ``score`` float64 (null is NaN),
        ``asked_at`` and ``served_at`` UTC times, ``features`` and ``inputs`` dictionaries or None.
        ``attrs["torn_lines"]`` counts lines that are no JSON record: one at the end of a file that is being written
        or whose writer died is normal.
    """
    wanted = tuple(LOG_COLUMNS if columns is None else columns)
    if unknown := set(wanted) - set(LOG_COLUMNS):
        raise ValueError(f"the prediction log has no column {', '.join(sorted(unknown))}")
    kept = None if revisions is None else frozenset(revisions)
    read = tuple(dict.fromkeys((*wanted, "served_at")))
    values: dict[str, list[Any]] = {name: [] for name in read}
    appends = [(name, values[name].append) for name in read]
    torn = 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                record = orjson.loads(line)
                revision = record["revision"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                torn += bool(line)
                continue
            if (since_revision is not None and revision < since_revision) or (
                kept is not None and revision not in kept
            ):
                continue
            for name, add in appends:
                add(record.get(name))
    frame = pd.DataFrame({name: _typed(name, values[name]) for name in read})
    frame = frame.sort_values("served_at", kind="stable", ignore_index=True)[list(wanted)]
    frame.attrs["torn_lines"] = torn
    return frame


def _typed(name: str, values: list[Any]) -> "pd.Series[Any]":
    if name in ("asked_at", "served_at"):
        return pd.to_datetime(pd.Series(values, dtype="object"), utc=True, format="ISO8601", errors="coerce")
    kinds = {"revision": "int64", "status": "int64", "latency_ms": "float64", "score": "float64"}
    return pd.Series(values, dtype=kinds.get(name, "object"))
