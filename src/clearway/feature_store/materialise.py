"""Bring the online store to exactly one time: incrementally onwards, whole where the past changed or time goes back.

``online.json`` (:mod:`clearway.online_record`) says how far the store is filled and from what. It is marked before the
store is touched and completed after, so a crash at any moment leaves a state that the next call repairs.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureStore, FeatureView, RepoConfig
from filelock import FileLock, Timeout

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.definitions import Definitions
from clearway.feature_store.embedded import EmbeddedOnlineStore, table_name
from clearway.feature_store.event_rows import EventRows, columns_of
from clearway.feature_store.store import is_redis, open_store, register, registry_file, without_secrets
from clearway.files import canonical_json, sha256_bytes, sha256_file
from clearway.instants import micros
from clearway.online_record import (
    OnlineRecord,
    TableRecord,
    config_sha256,
    count_rows,
    is_filled,
    read_record,
    record_path,
    write_record,
)
from clearway.params import Params
from clearway.project import StoredProject, definitions_sha256
from clearway.workspace import Workspace

Progress = Callable[[str, int, int], None]
"""Called with the view, the rows of it written so far, and how many there are to write."""

ROWS_AT_ONCE = 10_000
KEYS_LOOKED_UP = 100
KEYS_AT_ONCE = 1000
LOCK_SECONDS = 600.0
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What only a file system says, never a network."""
_NUMBER, _TYPED = Struct("<I"), Struct("<II")


@dataclass(frozen=True)
class Filled:
    """What one call has done."""

    rows: dict[str, int]
    """Rows written, by view."""
    full: bool
    """Whether the store was emptied first."""
    as_of: datetime


def fill_online(
    params: Params, workspace: Workspace, project: StoredProject, as_of: datetime, progress: Progress | None = None
) -> Filled:
    """Make the online store hold, of each key, the newest row of ``data/feature_tables`` known at ``as_of``.

    Registers the definitions. Only keys with new rows are written, unless time goes back, the definitions or the
    configuration changed, the rows known before changed (late or corrected events), rows were pushed, or the store lost
    rows: then it is filled whole. The embedded store's readers see the old state until the new one is complete.

    Parameters
    ----------
    as_of
        Aware. A row known at this instant counts, a later one never does.

    Raises
    ------
    ClearwayError
        An event table is missing or wrong, the store cannot be reached, its file is no database, the disk is full, or
        another process fills it and does not end.
    """
    _check_aware(as_of)
    with _lock(workspace, LOCK_SECONDS):
        if is_filled(params, workspace, as_of):
            return Filled(dict.fromkeys(_tables_of(workspace), 0), full=False, as_of=as_of)
        filling = _Filling(params, workspace, project)
        filling.prepare(as_of)
        files = {view.name: workspace.feature_tables / f"{view.name}.parquet" for view in filling.views}
        hashes = {name: _hash(path) for name, path in files.items()}  # first: a file may be replaced at any time
        rows = [_from_file(files[view.name], view) for view in filling.views]
        return filling.fill(rows, as_of, "filled", hashes, progress)


def push(params: Params, workspace: Workspace, project: StoredProject, view_name: str, rows: pd.DataFrame) -> int:
    """Write the newest of ``rows`` of each key, unless the store holds a newer one; how many were sent.

    One process at a time does so, or fills. From then on ``online.json`` says that the store holds more than it was
    filled with: the next :func:`fill_online` fills it whole.

    Parameters
    ----------
    rows
        The view's join keys, timestamp field, created column if any, and fields.

    Raises
    ------
    UsageError
        The project has no such view in its online store.
    ClearwayError
        The rows do not fit the view, the store was never filled or refuses, or another process fills it and does not
        end.
    """
    filling = _Filling(params, workspace, project)
    views = {view.name: view for view in filling.views}
    if view_name not in views:
        raise UsageError(
            f"no feature view {view_name!r} is kept online: there are {', '.join(sorted(views)) or 'none'}"
        )
    events = _from_pandas(rows, views[view_name])
    newest = events.newest(0, len(events))
    with _lock(workspace, LOCK_SECONDS):
        filling.mark_feeding()
        with _asked(filling.store.config):
            return _write(filling.store, events, newest)


class OnlineFeed:
    """Event rows that reach the online store as a replay's clock advances.

    While it feeds, ``online.json`` says so: the next :func:`fill_online` fills the store whole.

    Parameters
    ----------
    tables
        Event rows of each view, those of later times too.
    """

    def __init__(
        self, params: Params, workspace: Workspace, project: StoredProject, tables: Mapping[str, pd.DataFrame]
    ) -> None:
        self._workspace = workspace
        self._filling = _Filling(params, workspace, project)
        self._tables = tables
        self._rows: list[EventRows] = []
        self._sent: list[int] = []
        self._reached: datetime | None = None
        self._mark: tuple[int, int] | None = None

    def start_at(self, time: datetime) -> None:
        """Make the store hold exactly what was known at ``time``, whatever it held before.

        Raises
        ------
        ClearwayError
            As :func:`fill_online`, or a view has no table.
        """
        _check_aware(time)
        self._reached = None
        with _lock(self._workspace, LOCK_SECONDS):
            self._filling.prepare(time)
            if not self._rows:
                missing = [view.name for view in self._filling.views if view.name not in self._tables]
                if missing:
                    raise ClearwayError(f"no event table is given for the views: {', '.join(missing)}")
                self._rows = [_from_pandas(self._tables[view.name], view) for view in self._filling.views]
            self._filling.fill(self._rows, time, "feeding", {}, None)
            self._mark = self._record_on_disk()
        self._sent = [rows.count_until(micros(time)) for rows in self._rows]
        self._reached = time

    def can_advance(self, time: datetime) -> bool:
        """Whether the store is where this feed left it, and that is not after ``time``."""
        return self._reached is not None and self._reached <= time and self._record_on_disk() == self._mark

    def advance(self, time: datetime) -> int:
        """Push what became known up to ``time`` and was not pushed yet, the newest row of each key; rows written.

        Raises
        ------
        ClearwayError
            ``start_at`` was not called, ``time`` is before the last one, or another process has filled the store since.
        """
        _check_aware(time)
        if self._reached is None:
            raise ClearwayError("the online feed was not started: call start_at first")
        if time < self._reached:
            raise ClearwayError(f"the online store holds {self._reached.isoformat()} already: call start_at to go back")
        now = micros(time)
        known = [rows.count_until(now) for rows in self._rows]
        new = [(rows, sent, end) for rows, sent, end in zip(self._rows, self._sent, known, strict=True) if end > sent]
        self._reached = time
        if not new:
            return 0
        with _lock(self._workspace, LOCK_SECONDS):
            if self._record_on_disk() != self._mark:
                raise ClearwayError(
                    f"{record_path(self._workspace)} was written by another process: the online store is no longer "
                    "this replay's: run one at a time"
                )
            store = self._filling.store
            # not durable: after a crash the record, which says feeding, has the store filled anew
            with _asked(store.config), _at_once(store, durable=False):
                written = sum(_write(store, rows, rows.newest(sent, end)) for rows, sent, end in new)
        self._sent = known
        return written

    def _record_on_disk(self) -> tuple[int, int] | None:
        try:
            status = record_path(self._workspace).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class _Filling:
    """One project's store while the lock is held."""

    def __init__(self, params: Params, workspace: Workspace, project: StoredProject) -> None:
        self._workspace = workspace
        self._params = params
        self._project = project
        self._definitions = project.definitions()
        self.store = open_store(params, workspace)
        self.views = [view for view in self._definitions.views if view.online]
        self._identity = {
            "config": config_sha256(params, workspace),
            "sources": definitions_sha256(params),
            "shape": shape_sha256(self._definitions, self.store.config),
        }

    def prepare(self, time: datetime) -> None:
        """Register the definitions, after the record is marked if that may change the store."""
        record = read_record(self._workspace)
        if record is None or not self._same(record):
            self._mark_filling(time)
        with _asked(self.store.config):
            register(self.store, self._params, self._project)

    def fill(
        self,
        tables: Sequence[EventRows],
        time: datetime,
        state: str,
        files: Mapping[str, str],
        progress: Progress | None,
    ) -> Filled:
        """Bring the store to ``time``, and say in the record that it is there."""
        until = micros(time)
        record = read_record(self._workspace)
        held = None
        with _asked(self.store.config):
            since = self._filled_since(record, tables, until)
            full = since is None
            self._mark_filling(time)
            _make_space(self.store)
            with _at_once(self.store), _into_empty(self.store) if full else nullcontext():
                if full:
                    self._empty()
                written = {}
                for rows in tables:
                    start = 0 if since is None else rows.count_until(since)
                    newest = rows.newest(start, rows.count_until(until))
                    written[rows.view.name] = _write(self.store, rows, newest, progress)
                if state == "filled":
                    held = self._held()
        self._write_record(
            state=state,
            as_of=time,
            filled_until=time,
            held=held,
            tables={
                rows.view.name: TableRecord(
                    file=files.get(rows.view.name),
                    rows=rows.count_until(until),
                    history=rows.fingerprint(rows.count_until(until)),
                )
                for rows in tables
            },
        )
        return Filled(written, full=full, as_of=time)

    def mark_feeding(self) -> None:
        """Say in the record that the store gets more rows than those of one time, before it does.

        Always written, so that a replay notices. Where nothing is known of the store there is nothing to take back.
        """
        record = read_record(self._workspace)
        if record is not None and record.state != "filling":
            _store_record(self._workspace, record.model_copy(update={"state": "feeding"}))

    def _held(self) -> dict[str, int] | None:
        """Rows of each view that the embedded store holds; None of another store."""
        online, config = self.store._get_provider().online_store, self.store.config
        if not isinstance(online, EmbeddedOnlineStore):
            return None
        with online.transaction(config) as connection:
            return count_rows(connection, [table_name(config, view) for view in self.views])

    def _filled_since(self, record: OnlineRecord | None, tables: Sequence[EventRows], until: int) -> int | None:
        """The time (µs) up to which the store can be left as it is; None if it cannot."""
        if record is None or record.state != "filled" or record.filled_until is None or not self._same(record):
            return None
        since = micros(record.filled_until)
        if since > until or set(record.tables) != {rows.view.name for rows in tables}:
            return None
        if record.held != self._held():
            return None
        for rows in tables:
            before = record.tables[rows.view.name]
            end = rows.count_until(since)
            if (end, rows.fingerprint(end)) != (before.rows, before.history):
                return None
            if not _holds(self.store, rows, end):
                return None
        return since

    def _empty(self) -> None:
        """By Feast's own interface, so that every store understands it; a Redis more exactly than Feast does it."""
        provider = self.store._get_provider()
        if is_redis(self.store.config):
            _empty_redis(self.store)
            return
        provider.online_store.teardown(self.store.config, self.views, self._definitions.entities)
        provider.online_store.update(
            config=self.store.config,
            tables_to_delete=[],
            tables_to_keep=self.views,
            entities_to_delete=[],
            entities_to_keep=self._definitions.entities,
            partial=False,
        )

    def _same(self, record: OnlineRecord) -> bool:
        return record.config == self._identity["config"] and record.shape == self._identity["shape"]

    def _mark_filling(self, time: datetime) -> None:
        self._write_record(state="filling", as_of=time)

    def _write_record(self, **content: Any) -> None:
        _store_record(self._workspace, OnlineRecord(**self._identity, **content))


def _empty_redis(store: FeatureStore) -> None:
    """Delete all that this project keeps in a Redis, of views that are no longer defined too.

    Feast's own way deletes as well what belongs to projects whose names end in this one's.
    """
    client = store._get_provider().online_store._get_client(store.config.online_store)
    project = store.project.encode()
    found = client.scan_iter(match=b"*" + project, count=KEYS_AT_ONCE)  # names of projects have no special characters
    own = (key for key in found if is_redis_key_of(key, project))
    while part := list(islice(own, KEYS_AT_ONCE)):
        with client.pipeline(transaction=False) as pipe:
            for key in part:
                pipe.delete(key)
            pipe.execute()


def is_redis_key_of(key: bytes, project: bytes) -> bool:
    """Whether Feast's Redis store made ``key`` for ``project``: an entity key (version 3), then the project's name.

    The entity key is a count, as many join keys and as many values; each is a type, a length and so many bytes.
    """
    if len(key) < _NUMBER.size:
        return False
    (count,) = _NUMBER.unpack_from(key)
    position = _NUMBER.size
    for _ in range(2 * count):
        if position + _TYPED.size > len(key):
            return False
        _, length = _TYPED.unpack_from(key, position)
        position += _TYPED.size + length
    return key[position:] == project


def shape_sha256(definitions: Definitions, config: RepoConfig) -> str:
    """Hash of what decides which rows a store holds for ``definitions`` and how: not owners, descriptions or TTLs."""
    join_keys = {entity.name: (entity.join_key, str(entity.value_type)) for entity in definitions.entities}
    views = [
        {
            "name": view.name,
            "keys": sorted(join_keys.get(name, (name, "")) for name in view.entities),
            "fields": sorted((field.name, str(field.dtype)) for field in view.features),
            "times": (view.batch_source.timestamp_field, view.batch_source.created_timestamp_column),
        }
        for view in definitions.views
        if view.online
    ]
    return sha256_bytes(canonical_json([config.project, config.entity_key_serialization_version, views]))


def _write(store: FeatureStore, events: EventRows, rows: list[int], progress: Progress | None = None) -> int:
    """Write the given rows in parts; how many there were."""
    provider = store._get_provider()
    online = provider.online_store
    version = store.config.entity_key_serialization_version
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        if isinstance(online, EmbeddedOnlineStore):
            online.write_encoded(store.config, events.view, events.encoded(part, version))
        elif is_redis(store.config) and store.config.online_store.skip_dedup:
            from clearway.feature_store.redis_rows import write_into_empty  # here, because it needs Redis' client

            write_into_empty(store, events, part)
        else:
            provider.online_write_batch(store.config, events.view, events.for_feast(part), None)
        if progress is not None:
            progress(events.view.name, start + len(part), len(rows))
    return len(rows)


def _holds(store: FeatureStore, events: EventRows, end: int) -> bool:
    """Whether the store has the newest of the first ``end`` rows of some keys: a server may be restarted empty."""
    newest = events.newest(0, end)
    rows = newest[:: max(1, len(newest) // KEYS_LOOKED_UP)]
    if not rows:
        return True
    try:
        found = store._get_provider().online_read(store.config, events.view, events.entity_keys(rows))
    except ClearwayError:  # the embedded store has lost the file or the table
        return False
    return [time for time, _ in found] == events.times(rows)


def _at_once(store: FeatureStore, *, durable: bool = True) -> AbstractContextManager[Any]:
    """All writes of the block in one transaction, where the store has such a thing."""
    online = store._get_provider().online_store
    if isinstance(online, EmbeddedOnlineStore):
        return online.transaction(store.config, durable=durable)
    return nullcontext()


@contextmanager
def _into_empty(store: FeatureStore) -> Iterator[None]:
    """Let Feast's Redis store not ask of each key whether it has a newer row: it has none, and each is written once."""
    settings = store.config.online_store
    if not is_redis(store.config):
        yield
        return
    before, settings.skip_dedup = settings.skip_dedup, True
    try:
        yield
    finally:
        settings.skip_dedup = before


def _make_space(store: FeatureStore) -> None:
    """Where the store has a log, empty it: should the disk become full, what is written now can be given back."""
    online = store._get_provider().online_store
    if isinstance(online, EmbeddedOnlineStore):
        online.checkpoint(store.config)


def _store_record(workspace: Workspace, record: OnlineRecord) -> None:
    with _own_files(workspace):
        write_record(workspace, record)


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first") from None


def _from_file(path: Path, view: FeatureView) -> EventRows:
    try:
        stored = pl.read_parquet_schema(path)
        frame = pl.read_parquet(path, columns=[name for name in columns_of(view) if name in stored])
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = " ".join(str(error).split())
        raise ClearwayError(f"{path} is not a Parquet file ({cause}): run scripts/build_features.py again") from None
    return EventRows(view, frame)


def _from_pandas(frame: pd.DataFrame, view: FeatureView) -> EventRows:
    columns = frame[[name for name in columns_of(view) if name in frame]]
    try:
        return EventRows(view, pl.from_pandas(columns))
    except (pa.ArrowException, TypeError) as error:  # a column that holds values of several types
        cause = " ".join(str(error).split())
        raise ClearwayError(f"event rows of view {view.name!r} hold values of another type: {cause}") from None


def _tables_of(workspace: Workspace) -> list[str]:
    record = read_record(workspace)
    return list(record.tables) if record is not None else []


def _check_aware(time: datetime) -> None:
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")


@contextmanager
def _lock(workspace: Workspace, seconds: float) -> Iterator[None]:
    path = workspace.feature_store / "online.lock"
    lock = FileLock(path, timeout=seconds)
    with _own_files(workspace):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise ClearwayError(
                f"another process fills the online store for over {seconds:.0f} s ({path}): end it"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _own_files(workspace: Workspace) -> Iterator[None]:
    """What is wrong with the folder of the record and the lock, as one line."""
    try:
        yield
    except OSError as error:
        raise _unwritable(workspace.feature_store, error) from error


def _unwritable(path: Path | str | None, error: OSError) -> ClearwayError:
    return ClearwayError(
        f"{path} cannot be written ({error.strerror or error}): it must be writable, with space on its disk"
    )


@contextmanager
def _asked(config: RepoConfig) -> Iterator[None]:
    """What a store raises, whichever it is, as one line."""
    try:
        yield
    except ClearwayError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno in _DISK or error.filename):
            # a file of ours: the registry, which is written while the store is asked
            raise _unwritable(error.filename or registry_file(config, Path(config.repo_path or ".")), error) from error
        cause = " ".join(without_secrets(config, str(error)).split())
        raise ClearwayError(
            f"the online store ({config.online_store.type}) failed: {type(error).__name__}: {cause}: is it up?"
        ) from error
