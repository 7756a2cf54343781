"""The raw tables as the world knew them at ``as_of``, frozen on disk with their hashes, and read back verified."""

import io
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_directory, read_json, sha256_bytes, sha256_file, write_json
from clearway.params import Params, describe
from clearway.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from clearway.project import AnyProject

HELD_ROWS = 2_000_000
"""Rows up to which a table is held in memory for its checks; a larger one is read in pieces."""
STALE_DAYS = 14
"""A table whose last row is this many days before ``as_of`` has ended: ``as_of`` lies outside it."""


class TableSnapshot(BaseModel):
    """One table of a snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    bytes: int
    sha256: str
    source: str


class Snapshot(BaseModel):
    """``data/raw/snapshot.json``: no wall-clock time is in it, so the same ``as_of`` gives the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: AwareDatetime | None
    tables: dict[str, TableSnapshot]

    @property
    def rows(self) -> int:
        """Rows of all tables together."""
        return sum(table.rows for table in self.tables.values())


def take_snapshot(params: Params, workspace: Workspace, project: "AnyProject") -> Snapshot:
    """Read every source as of ``params.as_of`` and write it to ``data/raw``, whole or not at all.

    Raises
    ------
    ClearwayError
        A source cannot be read.
    UsageError
        ``as_of`` lies outside the data, or a source cannot work here.
    """
    from clearway.sources import describe_source

    as_of = params.time()
    tables: dict[str, TableSnapshot] = {}
    with atomic_directory(workspace.raw) as folder:
        for name in params.sources:
            table = _read(params, workspace, project, name, as_of, check_range=True)
            path = folder / f"{name}.parquet"
            _write(table, path)
            tables[name] = TableSnapshot(
                rows=table.num_rows,
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
                source=describe_source(params.sources[name]),
            )
        snapshot = Snapshot(as_of=as_of, tables=tables)
        write_json(folder / "snapshot.json", snapshot.model_dump(mode="json"))
    return snapshot


def load_snapshot(workspace: Workspace) -> Snapshot:
    """Read ``data/raw/snapshot.json``.

    Raises
    ------
    ClearwayError
        It is missing or not what ingest writes.
    """
    content = read_json(workspace.snapshot, made_by="scripts/ingest.py")
    try:
        return Snapshot.model_validate(content)
    except ValidationError as error:
        raise ClearwayError(f"{workspace.snapshot}: {describe(error)}; run scripts/ingest.py again") from None


def load_tables(workspace: Workspace, params: Params) -> "dict[str, pd.DataFrame]":
    """The tables of ``data/raw``, one per source, each verified against ``snapshot.json``.

    Raises
    ------
    ClearwayError
        The snapshot is of another ``as_of`` or other sources, or a table is missing or was changed since.
    """
    snapshot = _matching_snapshot(workspace, params)
    return {name: _load(workspace.raw_table(name), snapshot.tables[name]) for name in params.sources}


def scan_tables(workspace: Workspace, params: Params) -> "dict[str, pl.DataFrame | pl.LazyFrame]":
    """The tables of :func:`load_tables` for Polars: small ones in memory, large ones to be read in pieces.

    Each is verified against ``snapshot.json`` first.

    Raises
    ------
    ClearwayError
        As :func:`load_tables`.
    """
    import polars as pl

    snapshot = _matching_snapshot(workspace, params)
    tables: dict[str, pl.DataFrame | pl.LazyFrame] = {}
    for name in params.sources:
        path, expected = workspace.raw_table(name), snapshot.tables[name]
        if not path.is_file():
            raise _table_missing(path)
        _check_hash(path, sha256_file(path), expected)
        tables[name] = pl.read_parquet(path) if expected.rows <= HELD_ROWS else pl.scan_parquet(path)
    return tables


def _matching_snapshot(workspace: Workspace, params: Params) -> Snapshot:
    """The snapshot, having seen that it is of the ``as_of`` and the sources that params.yaml names."""
    snapshot, again = load_snapshot(workspace), "run scripts/ingest.py again"
    if snapshot.as_of != params.time():
        wanted = f"{workspace.params_file} says as_of = {_day(params.time())}"
        raise ClearwayError(f"{workspace.snapshot} is as of {_day(snapshot.as_of)}, but {wanted}: {again}")
    if set(snapshot.tables) != set(params.sources):
        there, wanted = ", ".join(sorted(snapshot.tables)), ", ".join(sorted(params.sources))
        raise ClearwayError(f"{workspace.snapshot} has the tables {there}, but sources are {wanted}: {again}")
    return snapshot


def read_tables_at(
    params: Params, workspace: Workspace, project: "AnyProject", as_of: datetime | None
) -> "dict[str, pd.DataFrame]":
    """The tables as the world knew them at ``as_of``, straight from their sources.

    At the snapshot's own ``as_of`` they equal :func:`load_tables`. The replay of traffic calls this with a later time,
    and so does the skew check, as of the last question that was asked; nothing else may.

    Raises
    ------
    ClearwayError
        A source cannot be read.
    """
    tables = (_read(params, workspace, project, name, as_of, check_range=False) for name in params.sources)
    return {name: table.to_pandas() for name, table in zip(params.sources, tables, strict=True)}


def _read(
    params: Params, workspace: Workspace, project: "AnyProject", name: str, as_of: datetime | None, *, check_range: bool
) -> "pa.Table":
    """One table at ``as_of``: its columns of one type each, its rows in an order that no source decides."""
    from clearway.sources import read_source

    source = params.sources[name]
    key = f"sources.{name}"
    frame = read_source(source, workspace.root, key=key)
    known = project.known_at(name, frame, as_of)
    if check_range and as_of is not None and source.timestamps:
        _check_range(name, frame[list(source.timestamps)], len(known), as_of)
    return _sorted(_arrow(known, key), source.timestamps)


def _check_range(name: str, times: "pd.DataFrame", rows_known: int, as_of: datetime) -> None:
    """Refuse an ``as_of`` at which the table had not begun or had long ended.

    Raises
    ------
    UsageError
        Names ``as_of`` and the time range of the data.
    """
    import pandas as pd

    first, last = times.min().min(), times.max().max()
    if pd.isna(first):
        return
    begun = rows_known > 0 and first <= as_of
    if not begun or last < as_of - pd.Timedelta(days=STALE_DAYS):
        raise UsageError(
            f"params.yaml: as_of = {_day(as_of)} lies outside the data: table {name} runs from {_day(first)} "
            f"to {_day(last)}; set as_of within it, at most {STALE_DAYS} days after its end"
        )


def _arrow(frame: "pd.DataFrame", key: str) -> "pa.Table":
    """The table in Arrow's types. A column that mixes types becomes text, so that validation can show its values."""
    import pandas as pd
    import pyarrow as pa

    frame = frame.copy(deep=False)
    frame.columns = frame.columns.astype(str)
    for name in frame.select_dtypes(object):
        kind = pd.api.types.infer_dtype(frame[name], skipna=True)
        if kind == "decimal":
            frame[name] = frame[name].astype("float64")
        elif kind not in ("string", "boolean", "empty"):
            frame[name] = frame[name].map(str, na_action="ignore")
    try:
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, ValueError) as error:
        raise ClearwayError(f"{key} cannot be stored as Parquet: {' '.join(str(error).split())}") from None


def _sorted(table: "pa.Table", timestamps: tuple[str, ...]) -> "pa.Table":
    """Rows by time, then by every other column, so that the order in which a source returns them is not in the bytes.

    Rows that still tie are equal.
    """
    import pyarrow.compute as pc

    first = [name for name in timestamps if name in table.column_names]
    keys = [*first, *(name for name in table.column_names if name not in first)]
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in keys]))


def _write(table: "pa.Table", path: Path) -> None:
    """Parquet with everything that could vary fixed: the same table is the same bytes under one pyarrow version."""
    import pyarrow.parquet as pq

    pq.write_table(
        table, path, compression="zstd", compression_level=3, version="2.6", row_group_size=1 << 20, store_schema=True
    )


def _load(path: Path, expected: TableSnapshot) -> "pd.DataFrame":
    import pyarrow.parquet as pq

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _table_missing(path) from None
    _check_hash(path, sha256_bytes(content), expected)
    frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).to_pandas()
    return frame


def _table_missing(path: Path) -> ClearwayError:
    return ClearwayError(f"{path} is missing, though snapshot.json lists it: run scripts/ingest.py again")


def _check_hash(path: Path, found: str, expected: TableSnapshot) -> None:
    if found != expected.sha256:
        hashes = f"sha256 {found[:12]}…, snapshot.json says {expected.sha256[:12]}…"
        raise ClearwayError(f"{path} was changed after ingest ({hashes}): run scripts/ingest.py again")


def _day(time: datetime | None) -> str:
    """A time for people: its date where it is midnight."""
    if time is None:
        return "null"
    return f"{time:%Y-%m-%d}" if (time.hour, time.minute, time.second) == (0, 0, 0) else f"{time:%Y-%m-%dT%H:%M:%SZ}"
