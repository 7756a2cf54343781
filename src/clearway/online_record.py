"""``var/feature_store/online.json``: how far the online store is filled, and from what. Read without Feast.

Importing Feast takes seconds; a caller that fills the store often asks :func:`is_filled` first.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.errors import ClearwayError
from clearway.files import read_json, sha256_bytes, sha256_file, write_json
from clearway.params import Params, UtcTime
from clearway.project import definitions_sha256
from clearway.workspace import Workspace

EMBEDDED = "clearway.feature_store.embedded.EmbeddedOnlineStore"


class TableRecord(BaseModel):
    """One view's event table as it was when the store was filled from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str | None
    """SHA-256 of the Parquet file; None where the rows were given in memory."""
    rows: int
    """Rows known at ``filled_until``."""
    history: str
    """SHA-256 of those rows."""


class OnlineRecord(BaseModel):
    """What is written after the store, and marked before it is touched."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: Literal["filling", "filled", "feeding"]
    """``filling``: the store may hold anything, a fill began and did not end. ``filled``: it holds exactly what was
    known at ``filled_until``. ``feeding``: that, and a part of what became known since (a replay)."""
    as_of: UtcTime
    """The time it was asked to hold."""
    filled_until: UtcTime | None = None
    """The time that it holds; None while it is filled."""
    config: str
    """SHA-256 of ``feature_store.yaml`` with its name, variables unexpanded."""
    sources: str
    """SHA-256 of the project package's files: while it is the same, so are the definitions."""
    shape: str
    """SHA-256 of what the definitions say of stored rows: keys, fields, types, time columns."""
    tables: dict[str, TableRecord] = {}
    """By name of the view."""
    held: dict[str, int] | None = None
    """Rows of each of the embedded store's tables once it was filled. None: not counted, or a store on a server."""


def record_path(workspace: Workspace) -> Path:
    return workspace.feature_store / "online.json"


def read_record(workspace: Workspace) -> OnlineRecord | None:
    """The record; None where there is none or it is broken: then nothing is known of the store."""
    try:
        return OnlineRecord.model_validate(read_json(record_path(workspace)))
    except (ClearwayError, ValidationError):
        return None


def write_record(workspace: Workspace, record: OnlineRecord) -> None:
    write_json(record_path(workspace), record.model_dump(mode="json"))


def config_sha256(params: Params, workspace: Workspace) -> str:
    """Identity of the configured stores.

    Raises
    ------
    ClearwayError
        The file cannot be read.
    """
    path = workspace.root / params.feature_store
    try:
        return sha256_bytes(f"{params.feature_store}\n{sha256_file(path)}".encode())
    except OSError as error:
        raise ClearwayError(f"{path} cannot be read ({error.strerror}): it must be Feast's configuration") from None


def is_filled(params: Params, workspace: Workspace, as_of: datetime) -> bool:
    """Whether the embedded online store holds exactly what was known at ``as_of``.

    Told by hashes of the files that it was filled from, and by the number of rows in each of its tables: a store that
    was emptied, cut short or replaced since is not filled. Of a store on a server this is never said: it may have been
    restarted empty.
    """
    record = read_record(workspace)
    if record is None or record.state != "filled" or record.filled_until != as_of:
        return False
    if record.config != config_sha256(params, workspace) or record.sources != definitions_sha256(params):
        return False
    store = _embedded_file(params, workspace)
    if store is None or record.held is None or rows_of_file(store, record.held) != record.held:
        return False
    tables = {name: workspace.feature_tables / f"{name}.parquet" for name in record.tables}
    return all(path.exists() and sha256_file(path) == record.tables[name].file for name, path in tables.items())


def rows_of_file(path: Path, tables: Iterable[str]) -> dict[str, int] | None:
    """Rows of each of ``tables`` of the SQLite file, which is only read; None if that cannot be told."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return count_rows(connection, tables)
    except sqlite3.Error:
        return None


def count_rows(connection: sqlite3.Connection, tables: Iterable[str]) -> dict[str, int]:
    """Rows of each of ``tables``, counted.

    Raises
    ------
    sqlite3.Error
        A table is missing, or the file is no database or not whole.
    """
    asked = {name: f"SELECT count(*) FROM {quoted(name)}" for name in tables}  # noqa: S608  # quoted
    return {name: int(connection.execute(statement).fetchone()[0]) for name, statement in asked.items()}


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def _embedded_file(params: Params, workspace: Workspace) -> Path | None:
    content = yaml.safe_load((workspace.root / params.feature_store).read_text(encoding="utf-8"))
    online = content.get("online_store") if isinstance(content, dict) else None
    if not isinstance(online, dict) or online.get("type") != EMBEDDED or "$" in str(online.get("path")):
        return None
    return workspace.root / str(online.get("path", "var/feature_store/online.db"))
