"""An online store in one SQLite file that Feast loads by class path: the newest event of each key, exactly.

Feast's own SQLite store lets an older event overwrite a newer one, and keeps times to the second and in the machine's
time zone. Here a table holds one row per view and entity key: event and created time in microseconds since 1970 (UTC),
and all values in one blob of Feast's protos. One process may write while many read: a reader sees the state before a
transaction or after it.
"""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, Value
from feast.repo_config import FeastConfigBaseModel
from filelock import FileLock, Timeout
from pydantic import StrictStr

from clearway.errors import ClearwayError
from clearway.instants import EPOCH, micros
from clearway.online_record import quoted

BUSY_SECONDS = 10.0
KEYS_PER_QUERY = 10_000
CACHE_KIB = 64 * 1024
WAL_BYTES = 16 * 1024 * 1024
GIVE_BACK_SECONDS = 1.0
"""How long readers are waited for when space on the disk is given back."""
LITTLE_SPACE = 1024 * 1024
"""Bytes. With less than this on its disk, SQLite's input and output errors say that the disk is full."""

EncodedRow = tuple[bytes, int, int | None, bytes]
"""Entity key as Feast serialises it, event and created time in µs since 1970, and a Feast ``Map`` of the values."""

_UPSERT = """
INSERT INTO {table} (key, event, created, features) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET event = excluded.event, created = excluded.created, features = {features}
WHERE excluded.event > event
   OR (excluded.event = event AND ifnull(excluded.created, {never}) >= ifnull(created, {never}))
"""
_NEVER = -(2**63)
_inherited: list[sqlite3.Connection] = []
"""Connections of a parent process. Closing one after a fork could harm the parent's."""


class EmbeddedOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The ``online_store`` section of ``feature_store.yaml``."""

    type: Literal["clearway.feature_store.embedded.EmbeddedOnlineStore"] = (
        "clearway.feature_store.embedded.EmbeddedOnlineStore"
    )
    path: StrictStr = "var/feature_store/online.db"
    """The SQLite file, relative to the folder of the project."""


class EmbeddedOnlineStore(OnlineStore):  # type: ignore[misc]
    """Newest event wins, whatever the order of arrival; of two events of one instant, the one created later.

    Every method raises :class:`ClearwayError` where the file is missing or empty, locked for 10 s, or no database of
    this store, and where its disk is full.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows, each unless the store holds a newer event of its key.

        A row without some of the view's features leaves those as they are, as Feast's stores do.
        """
        names = {field.name for field in table.features}
        whole = [_encode(config, *row) for row in data if names <= row[1].keys()]
        partial = [_encode(config, *row) for row in data if not names <= row[1].keys()]
        with self.transaction(config) as connection:
            connection.executemany(_upsert(config, table, "excluded.features"), whole)
            connection.executemany(_upsert(config, table, "merged(features, excluded.features)"), partial)
        if progress:
            progress(len(data))

    def write_encoded(self, config: RepoConfig, table: FeatureView, rows: Iterable[EncodedRow]) -> None:
        """As :meth:`online_write_batch` for rows that carry all features of the view and are encoded already."""
        with self.transaction(config) as connection:
            connection.executemany(_upsert(config, table, "excluded.features"), rows)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time (UTC, exact) and values of each key, in the order of the keys; ``(None, None)`` if it has none.

        A feature that the stored row does not hold, or that the view no longer has, is an unset value.
        """
        known = [field.name for field in table.features]
        wanted = known if requested_features is None else requested_features
        dropped = frozenset(wanted).difference(known)
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(key, entity_key_serialization_version=version) for key in entity_keys]
        distinct = list(dict.fromkeys(keys))
        found: dict[bytes, tuple[datetime, bytes]] = {}
        with self._asked(config) as connection:
            for start in range(0, len(distinct), KEYS_PER_QUERY):
                part = distinct[start : start + KEYS_PER_QUERY]
                for key, event, features in connection.execute(_select(config, table, len(part)), part).fetchall():
                    found[key] = (EPOCH + timedelta(microseconds=event), features)
        result: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for key in keys:
            if key not in found:
                result.append((None, None))
                continue
            time, features = found[key]
            values = Map.FromString(features).val
            # asking a Map for a name that it lacks gives an unset value
            result.append((time, {name: Value() if name in dropped else values[name] for name in wanted}))
        return result

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,
    ) -> None:
        """Make the tables of the views to keep, and drop those of the views to delete."""
        with self.transaction(config) as connection:
            for view in tables_to_keep:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_table(config, view)} (key BLOB PRIMARY KEY, event INTEGER NOT NULL, "
                    "created INTEGER, features BLOB NOT NULL) WITHOUT ROWID"
                )
            for view in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, view)}")

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Any]) -> None:
        """Drop the tables. The file stays: other processes have it open, and would go on reading a removed one."""
        if _path(config).exists():
            self.update(config, tables, [], entities, [], partial=False)

    @contextmanager
    def transaction(self, config: RepoConfig, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """All that this thread writes in the block, through any method: readers see all of it, or nothing.

        Without ``durable`` the last transactions may be undone by a power cut, never by the end of a process.
        """
        with self._asked(config, create=True) as connection:
            if self._pinned() and self._local.reading:
                raise RuntimeError("nothing can be written to the online store inside reading()")
            if connection.in_transaction:
                yield connection
                return
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                with self._pin(reading=False):
                    yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some errors, such as a full disk
                with suppress(sqlite3.DatabaseError):
                    connection.execute("ROLLBACK")
                _give_back(connection)
                raise

    @contextmanager
    def reading(self, config: RepoConfig) -> Iterator[None]:
        """All that this thread reads in the block, of any views, is one state of the store.

        It is the state at the first read. It stays readable if the file is deleted or replaced meanwhile. Keep the
        block short: what others write cannot be moved from SQLite's log into the file before it ends.

        Raises
        ------
        RuntimeError
            Something is written in the block.
        """
        with self._asked(config) as connection:
            if connection.in_transaction:
                yield
                return
            connection.execute("BEGIN")
            try:
                with self._pin(reading=True):
                    yield
            finally:
                with suppress(sqlite3.DatabaseError):  # SQLite itself has ended it after some errors
                    connection.execute("COMMIT")

    def wait_for_no_lock(self) -> None:
        """Have this thread's reads and writes fail at once where another process holds a lock.

        To be said before its first.
        """
        self._local.patience = 0.0

    def checkpoint(self, config: RepoConfig) -> None:
        """Move SQLite's log into the file and empty it, unless others are reading: a large write then starts small.

        What is in the log cannot be given back when a write fails on a full disk.
        """
        with self._asked(config, create=True) as connection:
            if not connection.in_transaction:
                _give_back(connection)

    @contextmanager
    def _asked(self, config: RepoConfig, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """This thread's connection; what SQLite says of the file is told as one line."""
        path = _path(config)
        try:
            yield self._connection(path, create)
        except sqlite3.DatabaseError as error:
            raise ClearwayError(_explained(path, error)) from error

    def _connection(self, path: Path, create: bool) -> sqlite3.Connection:
        if self._pinned():
            within: sqlite3.Connection = self._local.held[1]
            return within
        status = _status(path)
        if status is None:
            if not create:
                what = "empty" if path.exists() else "missing"
                raise ClearwayError(f"{path} is {what}: the online store is not filled: run scripts/build_features.py")
            status = _create(path)
        # another file may have taken the name since, and a connection does not survive a fork
        identity = (os.getpid(), status.st_dev, status.st_ino)
        held = getattr(self._local, "held", None)
        if held is not None and held[0] == identity:
            connection: sqlite3.Connection = held[1]
            return connection
        if held is not None and held[0][0] != identity[0]:
            _inherited.append(held[1])
        connection = _connect(path, getattr(self._local, "patience", BUSY_SECONDS))
        self._local.held = (identity, connection)
        return connection

    def _pinned(self) -> bool:
        """Whether this thread is within a block that stays with one connection, even if the file is replaced."""
        return getattr(self._local, "pinned", None) == os.getpid()

    @contextmanager
    def _pin(self, *, reading: bool) -> Iterator[None]:
        self._local.pinned, self._local.reading = os.getpid(), reading
        try:
            yield
        finally:
            self._local.pinned = None


def encode_values(values: Mapping[str, Value]) -> bytes:
    """What a row's ``features`` hold: a Feast ``Map`` from name to value."""
    encoded = Map()
    for name, value in values.items():
        encoded.val[name].CopyFrom(value)
    content: bytes = encoded.SerializeToString()
    return content


def _encode(
    config: RepoConfig, key: EntityKey, values: dict[str, Value], event: datetime, created: datetime | None
) -> EncodedRow:
    version = config.entity_key_serialization_version
    key_bytes = serialize_entity_key(key, entity_key_serialization_version=version)
    return key_bytes, micros(event), None if created is None else micros(created), encode_values(values)


def _merged(older: bytes, newer: bytes) -> bytes:
    """The values of two rows, the newer one's where both have one: of two entries of a name, protos keep the last."""
    content: bytes = Map.FromString(older + newer).SerializeToString()
    return content


def table_name(config: RepoConfig, view: FeatureView) -> str:
    """Name of the table that holds the rows of ``view``."""
    name: str = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    return name


def _status(path: Path) -> os.stat_result | None:
    """None if the file is missing or empty: SQLite's never is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClearwayError(f"{path} cannot be read ({error.strerror}): it must be the online store's file") from None
    return status if status.st_size else None


def _create(path: Path) -> os.stat_result:
    """Make the database, by one process at a time.

    SQLite would take what a deleted file left beside itself, and what another process still has open, for the new
    file's own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=BUSY_SECONDS):
            status = _status(path)
            if status is None:
                for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                    name.unlink(missing_ok=True)
                _connect(path, BUSY_SECONDS).close()
                status = path.stat()
            return status
    except Timeout:
        raise ClearwayError(f"another process holds {path}.lock for over {BUSY_SECONDS:.0f} s: end it") from None
    except OSError as error:
        raise ClearwayError(
            f"{path} cannot be made ({error.strerror}): its folder must be writable, with space on its disk"
        ) from None


def _give_back(connection: sqlite3.Connection) -> None:
    """Move SQLite's log into the file and give its space back, if that can be done now."""
    with suppress(sqlite3.DatabaseError):
        connection.execute(f"PRAGMA busy_timeout = {GIVE_BACK_SECONDS * 1000:.0f}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with suppress(sqlite3.DatabaseError):
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.create_function("merged", 2, _merged, deterministic=True)
    return connection


def _path(config: RepoConfig) -> Path:
    return _joined(str(config.repo_path or "."), str(config.online_store.path))


@lru_cache
def _joined(folder: str, path: str) -> Path:
    return Path(folder) / path


def _table(config: RepoConfig, view: FeatureView) -> str:
    return quoted(table_name(config, view))


def _upsert(config: RepoConfig, view: FeatureView, features: str) -> str:
    return _UPSERT.format(table=_table(config, view), features=features, never=_NEVER)


def _select(config: RepoConfig, view: FeatureView, keys: int) -> str:
    marks = ",".join("?" * keys)
    return f"SELECT key, event, features FROM {_table(config, view)} WHERE key IN ({marks})"  # noqa: S608  # quoted


def _explained(path: Path, error: sqlite3.DatabaseError) -> str:
    text = str(error)
    if text.startswith("no such table"):
        view = text.partition(": ")[2]
        return f"{path} has no table {view}: the online store is not filled with it: run scripts/build_features.py"
    if "locked" in text:
        return f"{path} is locked by another process for over {BUSY_SECONDS:.0f} s: wait for it to end, or end it"
    if _is_full(path, getattr(error, "sqlite_errorcode", 0)):
        return f"there is no space left on the disk of {path} ({text}): free some; the online store is as it was"
    return f"{path} cannot be used as the online store ({text}): delete it and run scripts/build_features.py"


def _is_full(path: Path, code: int) -> bool:
    """Whether SQLite's error, by its extended code, says that the disk is full."""
    if code & 0xFF != sqlite3.SQLITE_IOERR:
        return code == sqlite3.SQLITE_FULL
    try:
        return shutil.disk_usage(path.parent).free < LITTLE_SPACE
    except OSError:
        return False
