"""The prediction log as Parquet: finished segments become parts by day, small parts one, old days go.

Whatever is taken away or becomes visible does so in one step (:func:`clearway.log_files.commit`), so that a reader
sees each record once, before, during and after, and so does the next compaction where this one was killed.

Features, inputs and probabilities are JSON text: versions differ in their fields and in the types of these, which
neither a struct nor columns of their own would survive, and numbers come back bit by bit.
"""

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from clearway.errors import ClearwayError
from clearway.files import held, remove_path
from clearway.log_files import (
    DAMAGED,
    LOSSES,
    PARQUET,
    Loss,
    changing,
    commit,
    finish_commit,
    forget_tallies,
    is_free,
    segment_day,
    settle,
    unsettled,
)
from clearway.log_records import GROUPS, LOG_COLUMNS, parse, typed, uncollected

_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("revision", pa.int64()),
        ("version", pa.string()),
        ("role", pa.string()),
        ("entity", pa.string()),
        ("asked_at", _TIME),
        ("served_at", _TIME),
        ("status", pa.int64()),
        ("latency_ms", pa.float64()),
        ("score", pa.float64()),
        *((name, pa.string()) for name in GROUPS),
        ("hidden", pa.string()),
        ("asked_text", pa.string()),
        ("other", pa.string()),
    ]
)
"""``asked_text`` is ``asked_at`` as the caller wrote it; ``other`` holds what a record of another release has besides,
as JSON."""
SEGMENTS_AT_ONCE = 16
"""Segments that become Parquet together, a gigabyte at most: what a kill makes one do again."""
CHUNK_LINES = 5_000
"""Lines parsed together: their records fit into the processor's memory."""
GROUP_ROWS = 100_000
SMALL_ROWS = 1_000_000
"""Parts of a past day below this become one."""
BUSY_SECONDS = 0.0

_FEW = ["version", "role", "entity", "hidden"]
"""Columns of few values, which are written once in each group of rows."""


@dataclass
class CompactionReport:
    """What one compaction did."""

    segments: int = 0
    records: int = 0
    damaged: int = 0
    """Lines set aside."""
    merged: int = 0
    """Parts that became one with others."""
    removed_days: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    """Of writers that ended since the last compaction."""

    @property
    def sentence(self) -> str:
        parts = [f"{self.records:,} records of {self.segments:,} segments compacted"]
        parts += [f"{self.damaged:,} damaged lines set aside under {DAMAGED}/"] if self.damaged else []
        parts += [f"{self.merged:,} parts merged"] if self.merged else []
        if self.removed_days:
            parts += [f"{len(self.removed_days)} days up to {max(self.removed_days)} removed"]
        return "; ".join([*parts, *(loss.sentence for loss in self.losses)])


def compact(
    folder: Path, now: datetime, *, retention_days: int | None = None, needed_from: datetime | None = None
) -> CompactionReport:
    """Turn what is finished into Parquet, then remove days that are past retention.

    Parameters
    ----------
    folder : Path
        Of the log; one that does not exist is empty.
    now : datetime
        Wall time, UTC: decides which days are past.
    retention_days : int, optional
        Whole days to keep beside today; None keeps all.
    needed_from : datetime, optional
        Records served then or later stay whatever their age: an open rollout is judged by them.

    Raises
    ------
    ClearwayError
        Another compaction is at it, readers do not end, or the disk is full; the log is then as it was, or as after
        some of the steps.
    """
    report = CompactionReport()
    if not folder.is_dir():
        return report
    with held(folder / "compacting.lock", BUSY_SECONDS):
        try:
            finish_commit(folder)
            _remove_unfinished(folder)
            # in this order: the last segment of a writer that ends in between must still be there to be counted
            finished = [path for path in sorted(folder.glob("*.jsonl")) if is_free(path)]
            report.losses = [loss for mark in unsettled(folder) if (loss := settle(folder, mark)) is not None]
            for first in range(0, len(finished), SEGMENTS_AT_ONCE):
                _compact_segments(folder, finished[first : first + SEGMENTS_AT_ONCE], now, report)
            _merge(folder, now, report)
            if retention_days is not None:
                cutoff = now.date() - timedelta(days=retention_days)
                if needed_from is not None:
                    cutoff = min(cutoff, needed_from.date())
                _remove_before(folder, cutoff, report)
            forget_tallies()
        except OSError as error:
            raise ClearwayError(
                f"{folder} cannot be compacted ({error.strerror or error}): nothing is lost; make room and run again"
            ) from None
    return report


def read_parts(
    parts: Sequence[Path],
    wanted: Sequence[str],
    since_revision: int | None,
    revisions: Collection[int] | None,
    since: datetime | None,
) -> pd.DataFrame:
    """What :func:`clearway.prediction_log.read_log` returns, of compacted records and unsorted; it has ``served_at``.

    Raises
    ------
    ClearwayError
        A part is damaged.
    """
    if since is not None:
        parts = [path for path in parts if path.parent.name >= f"day={since:%Y-%m-%d}"]
    names = list(dict.fromkeys([*(name for name in wanted if name != "where"), "served_at"]))
    source = [*names, "id", "__filename"] if "where" in wanted else names
    try:
        dataset = ds.dataset([str(path) for path in parts], schema=SCHEMA, format="parquet")
        table = dataset.to_table(columns=list(dict.fromkeys(source)), filter=_filter(since_revision, revisions, since))
    except (pa.ArrowException, OSError) as error:
        raise ClearwayError(f"a part of the prediction log is damaged: {' '.join(str(error).split())}") from None
    frame = pd.DataFrame({name: _from_arrow(name, table[name]) for name in names})
    if "where" in wanted:
        files = [Path(name).name for name in table["__filename"].to_pylist()]
        frame["where"] = [f"{file} id={name}" for file, name in zip(files, table["id"].to_pylist(), strict=True)]
    return frame


def _filter(
    since_revision: int | None, revisions: Collection[int] | None, since: datetime | None
) -> "ds.Expression | None":
    tests = []
    revision = pc.field("revision")
    if since_revision is not None:
        tests.append(revision >= since_revision)
    if isinstance(revisions, range) and revisions.step == 1:
        tests.append((revision >= revisions.start) & (revision < revisions.stop))
    elif revisions is not None:
        tests.append(revision.isin(pa.array(sorted(revisions), pa.int64())))
    if since is not None:
        tests.append(pc.field("served_at") >= pa.scalar(pd.Timestamp(since).floor("us"), _TIME))
    made = None
    for test in tests:
        made = test if made is None else made & test
    return made


def _from_arrow(name: str, column: "pa.ChunkedArray") -> "pd.Series[Any]":
    if name in GROUPS:
        with uncollected():
            texts = column.to_pylist()
            return pd.Series([None if text is None else orjson.loads(text) for text in texts], dtype="object")
    made: pd.Series[Any] = column.to_pandas()
    if name in ("asked_at", "served_at"):
        return made.astype("datetime64[ns, UTC]")
    return made if name in ("revision", "status", "latency_ms", "score") else made.astype("object")


class _Days:
    """New parts under hidden names, one for each day that comes up; :attr:`add` says what they are to be called."""

    def __init__(self, folder: Path, now: datetime) -> None:
        self.add: dict[Path, Path] = {}
        self._folder = folder
        self._name = f"part-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.parquet"
        self._open: dict[str, tuple[pq.ParquetWriter, list[pa.Table]]] = {}

    def put(self, day: str, table: pa.Table) -> None:
        if day not in self._open:
            target = self._folder / PARQUET / f"day={day}" / self._name
            target.parent.mkdir(parents=True, exist_ok=True)
            hidden = target.with_name(f".{self._name}")
            self.add[hidden] = target
            writer = pq.ParquetWriter(hidden, SCHEMA, compression="zstd", use_dictionary=_FEW)
            self._open[day] = writer, []
        writer, waiting = self._open[day]
        waiting.append(table)
        if sum(len(each) for each in waiting) >= GROUP_ROWS:
            self._write(writer, waiting)

    def close(self) -> None:
        for writer, waiting in self._open.values():
            if waiting:
                self._write(writer, waiting)
            writer.close()

    @staticmethod
    def _write(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
        writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
        waiting.clear()


def _compact_segments(folder: Path, segments: list[Path], now: datetime, report: CompactionReport) -> None:
    days, records, damaged = _Days(folder, now), 0, 0
    for path in segments:
        lines, faulty = path.read_bytes().split(b"\n"), list[bytes]()
        for first in range(0, len(lines), CHUNK_LINES):
            chunk, others = lines[first : first + CHUNK_LINES], list[dict[str, Any] | None]()
            parsed = parse(chunk, LOG_COLUMNS, others=others)
            for day, table in _by_day(_table(parsed.values, others), segment_day(path) or f"{now:%Y-%m-%d}"):
                days.put(day, table)
            faulty += [chunk[number - 1] + b"\n" for number, _ in parsed.faulty]
            records += len(parsed.lines)
        if faulty:
            (folder / DAMAGED).mkdir(exist_ok=True)
            hidden = folder / DAMAGED / f".{path.name}"
            hidden.write_bytes(b"".join(faulty))
            days.add[hidden] = folder / DAMAGED / path.name
        damaged += len(faulty)
    days.close()
    commit(folder, days.add, segments)
    report.segments += len(segments)
    report.records += records
    report.damaged += damaged


def _table(values: dict[str, list[Any]], others: list[dict[str, Any] | None]) -> pa.Table:
    """Records as parsed, as a table of :data:`SCHEMA`."""
    columns: dict[str, Any] = {"asked_text": values["asked_at"], "other": _as_json(others)}
    for name in LOG_COLUMNS:
        if name in ("asked_at", "served_at"):
            columns[name] = pa.Array.from_pandas(typed(name, values[name]), type=_TIME)
        else:
            columns[name] = _as_json(values[name]) if name in GROUPS else values[name]
    return pa.table([pa.array(columns[part.name], part.type) for part in SCHEMA], schema=SCHEMA)


def _as_json(values: Sequence[Any]) -> list[str | None]:
    dumps: Callable[[Any], bytes] = orjson.dumps
    return [None if value is None else dumps(value).decode() for value in values]


def _by_day(table: pa.Table, otherwise: str) -> Iterator[tuple[str, pa.Table]]:
    """The records of each day that they were served on; of one without such a time the day of its segment."""
    days = table["served_at"].cast(pa.date32(), safe=False).fill_null(date.fromisoformat(otherwise))
    for day in days.unique().to_pylist():
        yield f"{day:%Y-%m-%d}", table.filter(pc.equal(days, pa.scalar(day, pa.date32())))


def _merge(folder: Path, now: datetime, report: CompactionReport) -> None:
    """Make one part of the small ones of each day that is over."""
    for place in sorted((folder / PARQUET).glob("day=*")):
        parts = sorted(place.glob("part-*.parquet"))
        if place.name >= f"day={now:%Y-%m-%d}" or len(parts) < 2:
            continue
        small = [path for path in parts if pq.read_metadata(path).num_rows < SMALL_ROWS]
        if len(small) < 2:
            continue
        made = _Days(folder, now)
        for path in small:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=GROUP_ROWS // 2):
                made.put(place.name.removeprefix("day="), _conform(pa.Table.from_batches([batch])))
        made.close()
        commit(folder, made.add, small)
        report.merged += len(small)


def _conform(table: pa.Table) -> pa.Table:
    """With the columns of today: a part of an older release may lack some."""
    held_here = set(table.column_names)
    return pa.table(
        [table[part.name] if part.name in held_here else pa.nulls(len(table), part.type) for part in SCHEMA],
        schema=SCHEMA,
    )


def _remove_before(folder: Path, cutoff: date, report: CompactionReport) -> None:
    """Remove the records of days before ``cutoff``, and what is left of them."""
    limit = f"{cutoff:%Y-%m-%d}"
    days = [place for place in sorted((folder / PARQUET).glob("day=*")) if place.name < f"day={limit}"]
    parts = [path for place in days for path in place.glob("part-*.parquet")]
    damaged = [p for p in (folder / DAMAGED).glob("*.jsonl") if (segment_day(p) or "9") < limit]
    if not parts and not damaged:
        return
    commit(folder, {}, [*parts, *damaged])
    with changing(folder):
        for place in days:
            remove_path(place)
        for path in (folder / LOSSES).glob("*.json"):
            if orjson.loads(path.read_bytes())["found_at"] < np.datetime64(cutoff, "s").astype("int64"):
                path.unlink(missing_ok=True)
    report.removed_days = [place.name.removeprefix("day=") for place in days]


def _remove_unfinished(folder: Path) -> None:
    """What a compaction wrote that was killed before it was decided."""
    for path in [*(folder / PARQUET).glob("day=*/.part-*"), *(folder / DAMAGED).glob(".*")]:
        path.unlink(missing_ok=True)
