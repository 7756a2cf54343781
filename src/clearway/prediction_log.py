"""The log of every prediction, written off the request path: losing a line never loses an answer.

Its files are those of :mod:`clearway.log_files`; :mod:`clearway.log_compaction` turns what is finished into Parquet.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from clearway.log_files import Contents, Tally, create_locked, mark_writer, reading, segment_name, writer_name
from clearway.log_hiding import NOTHING_HIDDEN, Hiding
from clearway.log_records import ABOUT_RECORDS as ABOUT_RECORDS
from clearway.log_records import LOG_COLUMNS as LOG_COLUMNS  # of the log, so they are this module's to give
from clearway.log_records import parse, typed

if TYPE_CHECKING:  # the server writes records, and does not wait for pandas
    import pandas as pd

FLUSH_SECONDS = 0.1
CLOSE_SECONDS = 5.0
SEGMENT_BYTES = 64 * 2**20
SEGMENT_SECONDS = 600.0
"""A segment that is longer or older is finished, so that it can be compacted."""
CAPACITY = 50_000
"""Records that may wait for the disk: ten seconds at 5,000 a second, some 25 MB."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class PredictionLog:
    """Appends records to segments of its own from a thread of its own.

    :meth:`append` and :meth:`extend` never block and never raise: a full queue or a failing disk drops records and
    counts them in ``dropped``. What was appended is in the file after at most ``2 * FLUSH_SECONDS``; what a killed
    process still had in memory is counted (:class:`clearway.log_files.Tally`), exactly where one thread appends.

    Parameters
    ----------
    folder
        Where the files go; made when first needed.
    capacity
        Records that may wait for the disk.
    hiding
        What records must not say.
    """

    def __init__(self, folder: Path, capacity: int = CAPACITY, hiding: Hiding = NOTHING_HIDDEN) -> None:
        self.written = 0
        self._folder = folder
        self._capacity = capacity
        self._hiding = hiding
        # each is counted by one side alone, since neither takes a lock
        self._refused = 0
        self._failed = 0
        # deque.append and popleft are atomic, so that a request takes no lock; one writer wakes by the clock, since
        # waking it for each record would have two threads fight over the interpreter on every request
        self._pending: deque[bytes] = deque()
        self._closing = threading.Event()
        self._name = writer_name()
        self._tally = Tally(folder, self._name)
        self._offered = self._tally.cells  # the first of them
        self._mark: int | None = None
        self._file: int | None = None
        self._day = ""
        self._began = 0.0
        self._size = 0
        self._torn = False
        with contextlib.suppress(OSError):  # with the first record, then
            self._put_mark()
        self._writer = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Records that were given and will not be in the log."""
        return self._refused + self._failed

    def append(self, record: Mapping[str, Any]) -> bool:
        """Queue one record; False if the queue was full (or the log closed) and it was dropped."""
        return self.extend([record]) == 1

    def extend(self, records: Sequence[Mapping[str, Any]], shared: Mapping[str, Any] = NOTHING) -> int:
        """Queue the records of one request; how many of them, from the first, found room.

        They are encoded here: records that wait as objects push what the next requests need out of the processor's
        caches, and whoever encodes them in another thread takes the interpreter from requests.

        Parameters
        ----------
        records
            Each with one field or more.
        shared
            Fields that all of them have beside their own: encoded once.
        """
        self._offered[0] += len(records)
        room = max(self._capacity - len(self._pending), 0)
        lines = self._lines(records if len(records) <= room else records[:room], shared)
        self._refused += len(records) - len(lines)
        self._pending.extend(lines)
        return len(lines)

    def _lines(self, records: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> list[bytes]:
        if self._hiding.fields is not None:
            records, shared = [self._hiding.apply({**shared, **record}) for record in records], NOTHING
        try:
            encode = orjson.dumps
            if not shared:
                return [encode(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]
            head = encode(shared)[:-1] + b","
            return [head + encode(record, option=orjson.OPT_APPEND_NEWLINE)[1:] for record in records]
        except TypeError:  # orjson's encode error: a record that is no JSON is lost alone
            return [line for record in records if len(records) > 1 for line in self._lines([record], shared)]

    def close(self) -> None:
        """Write what is queued, fsync, and stop. Waits at most ``CLOSE_SECONDS`` for a disk that hangs."""
        self._capacity = -1  # nothing finds room any more
        self._closing.set()
        self._writer.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            self._finish_segment()
        if not self.dropped:  # else the count stays for whoever compacts the log
            with contextlib.suppress(OSError):
                (self._folder / f"{self._name}.writer").unlink(missing_ok=True)
                self._tally.remove()
        if self._mark is not None:
            os.close(self._mark)

    def _flush(self) -> None:
        count = len(self._pending)
        if count:
            written = self._write(b"".join([self._pending.popleft() for _ in range(count)]), count)
            self.written += written
            self._failed += count - written
        if self.dropped:
            self._tally.set_dropped(self.dropped)
        if self._file is not None and self._is_over():
            self._finish_segment()

    def _is_over(self) -> bool:
        old = time.monotonic() - self._began > SEGMENT_SECONDS
        return old or self._size >= SEGMENT_BYTES or datetime.now(UTC).strftime("%Y%m%d") != self._day

    def _finish_segment(self) -> None:
        if self._file is not None:
            self._tally.set_finished(self.written)
            os.close(self._file)
            self._file = None

    def _begin_segment(self) -> int:
        self._put_mark()
        self._day, self._began = datetime.now(UTC).strftime("%Y%m%d"), time.monotonic()
        self._size, self._torn = 0, False
        self._file = create_locked(self._folder / segment_name(self._day, self._name, self.written))
        return self._file

    def _put_mark(self) -> None:
        """Say that this writer is at work, so that its end is noticed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._mark is None:
            self._mark = mark_writer(self._folder, self._name, self._tally)

    def _write(self, lines: bytes, count: int) -> int:
        """Append ``count`` lines; how many the disk took. Of one that it took in part nothing stays."""
        if not count:
            return 0
        sent, rest = 0, memoryview(b"\n" + lines if self._torn else lines)
        try:
            file = self._begin_segment() if self._file is None else self._file
            while sent < len(rest):
                sent += os.write(file, rest[sent:])
        except OSError:
            whole = bytes(rest[:sent]).rfind(b"\n") + 1
            taken = bytes(rest[:whole]).count(b"\n") - (self._torn and whole > 0)
            self._torn = self._torn and whole == 0
            self._cut(whole, sent)
            return taken
        self._size += sent
        self._torn = False
        return count

    def _cut(self, whole: int, sent: int) -> None:
        """Take a line that was written in part off the file; if that fails too, the next line has to end it."""
        if self._file is None or sent == whole:
            self._size += whole
            return
        try:
            os.ftruncate(self._file, self._size + whole)
            self._size += whole
        except OSError:
            self._size += sent
            self._torn = True


def read_log(
    folder: Path,
    since_revision: int | None = None,
    revisions: Collection[int] | None = None,
    columns: Collection[str] | None = None,
    since: datetime | None = None,
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
        Which of :data:`LOG_COLUMNS` and :data:`ABOUT_RECORDS` to return; all of the former by default. Of what is
        compacted only these are read: leaving out ``features`` and ``inputs`` saves much time and memory.
    since
        Keep records served then or later (UTC).

    Returns
    -------
    DataFrame
        One row per record, whatever its status. ``revision`` and ``status`` are int64, ``latency_ms`` and ``score``
        float64 (null is NaN), ``asked_at`` and ``served_at`` UTC times of whole microseconds (NaT for what pandas
        cannot hold), ``features`` and ``inputs`` dictionaries or None.

        ``attrs["torn_lines"]`` counts lines that are no JSON object: one in a file that is being written or whose
        writer died is normal. ``attrs["damaged_lines"]`` counts those beyond one in a file, and records with a value
        of the wrong type in a column that was asked for: they are left out. ``attrs["damaged"]`` says where the first
        of them is and what is wrong. ``attrs["losses"]`` says of each process that was killed, or dropped records, how
        many are missing.
    """
    import pandas as pd

    wanted = tuple(LOG_COLUMNS if columns is None else columns)
    if unknown := set(wanted) - {*LOG_COLUMNS, *ABOUT_RECORDS}:
        raise ValueError(f"the prediction log has no column {', '.join(sorted(unknown))}")
    kept = revisions if revisions is None or isinstance(revisions, range) else frozenset(revisions)
    for attempt in range(2):
        try:
            with reading(folder) as contents:
                frame = _read_lines(contents, wanted, since_revision, kept, since)
                if contents.parts:
                    from clearway.log_compaction import read_parts

                    old = read_parts(contents.parts, wanted, since_revision, kept, since)
                    attrs = frame.attrs
                    if len(old) or frame.empty:
                        frame = pd.concat([old, frame], ignore_index=True) if len(frame) else old
                    frame.attrs = attrs
                break
        except FileNotFoundError:  # the first compaction of all began after its lock was looked for
            if attempt:
                raise
    attrs = {**frame.attrs, "losses": contents.losses}
    frame = frame.sort_values("served_at", kind="stable", ignore_index=True)[list(wanted)]
    frame.attrs = attrs
    return frame


def _read_lines(
    contents: Contents,
    wanted: Sequence[str],
    since_revision: int | None,
    revisions: Collection[int] | None,
    since: datetime | None,
) -> "pd.DataFrame":
    """What is not compacted yet, and what cannot be."""
    import pandas as pd

    needed = (*(name for name in wanted if name in LOG_COLUMNS), "served_at")
    fields = tuple(dict.fromkeys((*needed, "asked_at") if "asked_text" in wanted else needed))
    values: dict[str, list[Any]] = {name: [] for name in (*fields, "where")}
    torn, damaged, first = 0, 0, ""
    for path in contents.segments:
        parsed = parse(path.read_bytes().split(b"\n"), fields, since_revision, revisions)
        torn_here = [number for number, fault in parsed.faulty if not fault]
        torn += len(torn_here)
        for number, fault in parsed.faulty:
            if fault or number != torn_here[0]:
                damaged += 1
                first = first or f"{path.name}:{number}: {fault or 'is no JSON record'}"
        for name in fields:
            values[name] += parsed.values[name]
        values["where"] += [f"{path.name}:{number}" for number in parsed.lines]
    if "asked_text" in wanted:
        values["asked_text"] = values["asked_at"]
    frame = pd.DataFrame({name: typed(name, column) for name, column in values.items()})
    if since is not None:
        frame = frame[frame["served_at"] >= pd.Timestamp(since)]
    frame.attrs = {"torn_lines": torn, "damaged_lines": damaged, "damaged": first}
    return frame
