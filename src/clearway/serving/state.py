"""What a server serves right now, and how it follows the environment's routing table without dropping a request."""

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clearway.bundle import verify
from clearway.errors import ClearwayError
from clearway.ledger import Entry, kept_warm, quarantined, read_ledger
from clearway.log_hiding import check_hiding
from clearway.model import SingleRows, recorded_features
from clearway.online_record import read_record
from clearway.pace import Pace
from clearway.params import ENTITY_KEY, Params
from clearway.routing import Role, RoutingTable, key_text, project_routing, read_routing, salt_of, split_of
from clearway.schema import load_schema
from clearway.serving.batching import Batcher
from clearway.serving.loading import (
    OwnFeatures,
    Version,
    check_definitions,
    load_version,
    open_reader,
    own_features,
)
from clearway.serving.requests import Columns, Envelope, KeyedRows, RequestError, RowEncoder
from clearway.serving.shadow import ShadowCopies, shadow_command
from clearway.signing import check_for
from clearway.trust import trust_in
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader, ViewCounts

POLL_SECONDS = 0.1
RETRY_SECONDS = 3.0
MIN_PREFIX = 12
"""Characters of a digest that name a version."""
GRACE_SECONDS = 60.0
"""How long requests that began before a swap may still read features as before it."""

_NOTHING = object()
"""Like no fingerprint, so that a table that is missing from the start is reported too."""

logger = logging.getLogger("clearway.serving")


def check_vouched(table: RoutingTable, environment: str, entries: Sequence[Entry]) -> None:
    """Check that a verified ledger says what the routing table says.

    Raises
    ------
    ClearwayError
        The table is of another environment, follows from no entry, differs from its entry, or names a digest that
        was quarantined since.
    """
    if table.environment != environment:
        raise ClearwayError(f"routing.json: environment is {table.environment!r}, expected {environment!r}")
    entry = entries[table.revision - 1] if 1 <= table.revision <= len(entries) else None
    if entry is None:
        raise ClearwayError(
            f"routing.json: revision {table.revision} is no entry of the ledger of {environment} "
            f"({len(entries)} entries): run scripts/deploy.py or scripts/rollback.py"
        )
    expected = {
        "ledger_hash": entry.hash,
        "stable": entry.stable,
        "canary": entry.canary,
        "canary_weight": entry.canary_weight,
        "shadow": entry.shadow,
    }
    if (split := split_of(entries[: table.revision])) is not None:
        expected |= {"key": split.key, "salt": salt_of(entry.canary, split.salt)}
    for name, value in expected.items():
        if getattr(table, name) != value:
            raise ClearwayError(
                f"routing.json: {name} is {getattr(table, name)!r}, but entry {entry.sequence} of the ledger of "
                f"{environment} says {value!r}: it was changed by hand; scripts/rollback.py rewrites it"
            )
    warm = kept_warm(entries[: table.revision])
    if (table.warm, table.warm_until) != (warm or (None, None)):
        raise ClearwayError(
            f"routing.json: warm is {table.warm!r}, but the ledger of {environment} says otherwise: it was changed by "
            "hand; scripts/rollback.py rewrites it"
        )
    for digest in {table.stable, table.canary, table.shadow} & quarantined(entries):
        raise ClearwayError(f"routing.json: {digest} was quarantined after revision {table.revision}")


@dataclass(frozen=True)
class Loaded:
    """A version with what its requests need."""

    version: Version
    encoder: RowEncoder
    reader: "FeatureReader | None"
    """Reads its features by key, and no others: what another version needs cannot fail its requests. None where it was
    not trained from the feature store."""
    keyed: KeyedRows | None
    """Set with ``reader``."""
    single: SingleRows | None = None
    """Set with ONNX: scores single rows on the event loop."""
    pace: Pace = field(default_factory=Pace)
    """Of single rows: a canary scores on the event loop, beside stable, while it is quick."""
    batcher: Batcher | None = None
    """Scores what waits together in one batch; None for ONNX, whose single row costs less than to wait for others."""

    @property
    def digest(self) -> str:
        return self.version.digest


class Active:
    """One routing table with all its versions loaded. Never changed, only replaced as a whole."""

    def __init__(
        self,
        table: RoutingTable,
        versions: dict[str, Version],
        readers: "dict[str, FeatureReader] | None" = None,
        copies: ShadowCopies | None = None,
    ) -> None:
        """``versions`` by digest, and the readers of those that were trained from the feature store.

        Raises
        ------
        ClearwayError
            An open rollout is routed by a field that no row of its versions can have.
        """
        self.table = table
        self.copies = copies
        """Where copies of what stable answers go; None without a shadow."""
        names = [version.model.schema.names for version in versions.values()]
        self.names = frozenset(copies.names if copies else ()).union(*names)
        self._loaded = {
            digest: self._load(version, (readers or {}).get(digest)) for digest, version in versions.items()
        }
        self._sides: dict[Role, tuple[Role, Loaded]] = {"stable": ("stable", self._loaded[table.stable])}
        if table.canary is not None:
            self._sides["canary"] = ("canary", self._loaded[table.canary])
        self._any_keyed = any(loaded.keyed is not None for loaded in self._loaded.values())

        self._key = None if table.key == ENTITY_KEY else table.key
        if table.canary is not None and self._key not in (None, "id", *self._fields()):
            raise ClearwayError(
                f"routing.json: key is {table.key!r}, which is no field of a request to {table.stable[:12]} or "
                f"{table.canary[:12]}: correct serving.routing_key in params.yaml, then withdraw the canary "
                f"(scripts/deploy.py --env {table.environment} --canary 0) and open it again"
            )

    def _fields(self) -> Iterator[str]:
        """All that a row may carry beside its envelope."""
        yield from self.names
        for reader in self.readers.values():
            yield from reader.inputs

    def _load(self, version: Version, reader: "FeatureReader | None") -> Loaded:
        encoder = RowEncoder(version.model.schema, also_known=self.names)
        keyed = None if reader is None else _keyed_rows(reader, version, self.names)
        if version.model.runtime == "onnx":
            return Loaded(version, encoder, reader, keyed, SingleRows(version.model))
        return Loaded(version, encoder, reader, keyed, batcher=Batcher(version.model.output))

    @property
    def versions(self) -> dict[str, Version]:
        return {digest: loaded.version for digest, loaded in self._loaded.items()}

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """All versions, stable first."""
        return tuple(self._loaded.values())

    @property
    def runtimes(self) -> dict[str, str]:
        """What answers for each version, by digest: ``onnx``, or ``scikit-learn``, which is slower."""
        return {digest: loaded.version.model.runtime for digest, loaded in self._loaded.items()}

    @property
    def stable(self) -> Loaded:
        """The version that answers all that the canary does not."""
        return self._loaded[self.table.stable]

    @property
    def readers(self) -> "dict[str, FeatureReader]":
        """Of the versions that have one, by digest; two versions that need the same features share one."""
        return {digest: loaded.reader for digest, loaded in self._loaded.items() if loaded.reader is not None}

    def looks_by_key(self, row: Mapping[str, Any]) -> bool:
        """Whether some version would take the row for one by key."""
        return self._any_keyed and any(one.keyed.looks_by_key(row) for one in self._loaded.values() if one.keyed)

    @property
    def unseen(self) -> int:
        """Categories that no training saw, in requests answered under this table."""
        return sum(loaded.encoder.unseen for loaded in self._loaded.values())

    @property
    def warned(self) -> dict[str, int]:
        """Values accepted although the schema warns of them, by feature, in requests answered under this table."""
        return dict(sum((loaded.encoder.warned for loaded in self._loaded.values()), Counter()))

    def unit(self, row: Mapping[str, Any], envelope: Envelope) -> str | None:
        """Who or what a row is routed by: the value of the routing key, else its entity; None if it has neither.

        Raises
        ------
        RequestError
            The value is none that can be one; 422.
        """
        return envelope.entity if self._key is None else self._unit(row.get(self._key), envelope.entity)

    def units(self, columns: Columns, entities: list[str | None]) -> list[str | None]:
        """The same of each of many rows.

        Raises
        ------
        RequestError
            As :meth:`unit`, of any row.
        """
        if self._key is None or self._key not in columns.values:
            return entities
        return list(map(self._unit, columns.values[self._key], entities))

    def _unit(self, value: Any, entity: str | None) -> str | None:
        try:
            return key_text(value) or entity
        except ValueError as error:
            raise RequestError(422, f"{self._key}, by which requests are routed, {error}") from None

    def route(self, key: str) -> tuple[Role, Loaded]:
        """The version that answers ``key``, and its role."""
        return self._sides[self.table.route(key)]

    def route_many(self, keys: Sequence[str]) -> list[tuple[Role, Loaded, Sequence[int]]]:
        """Each version that answers some of many keys, its role, and the places of those keys."""
        if self.table.canary is None:
            return [(*self._sides["stable"], range(len(keys)))]
        roles = self.table.route_many(keys)
        places = {role: [place for place, found in enumerate(roles) if found == role] for role in self._sides}
        return [(*self._sides[role], taken) for role, taken in places.items() if taken]

    def live_digest(self, prefix: str) -> str:
        """The digest of the one live version that begins so.

        Raises
        ------
        RequestError
            There is none, or ``prefix`` is shorter than ``MIN_PREFIX``; 404.
        """
        found = [digest for digest in self._loaded if digest.startswith(prefix)] if len(prefix) >= MIN_PREFIX else []
        if len(found) != 1:
            live = ", ".join(self._loaded)
            raise RequestError(
                404, f"version {prefix[:64]!r} is not live here (live: {live}; {MIN_PREFIX} characters do)"
            )
        return found[0]

    def chosen(self, digest: str) -> tuple[Role, Loaded]:
        """The version a tester asked for by its digest.

        Raises
        ------
        RequestError
            It is not loaded here.
        """
        if digest not in self._loaded:
            live = ", ".join(self._loaded)
            raise RequestError(422, f"x-clearway-version {digest[:64]!r} is not loaded here (live: {live})")
        return ("stable" if digest == self.table.stable else "canary"), self._loaded[digest]


def _keyed_rows(reader: "FeatureReader", version: Version, known: frozenset[str]) -> KeyedRows:
    """What a version reads by key; ``known`` are the features of all versions that are served."""
    fields = {name: kind.value for name, kind in reader.inputs.items() if name not in reader.join_keys}
    return KeyedRows(reader.join_keys, fields, reader.looked_up, version.model.schema.names, also_known=known)


def _only_in(replaced: Active | None, replacement: Active) -> "list[FeatureReader]":
    """The readers that nobody needs any more, each once."""
    kept = {id(reader) for reader in replacement.readers.values()}
    past = {id(reader): reader for reader in (replaced.readers if replaced else {}).values()}
    return [reader for identity, reader in past.items() if identity not in kept]


class Follower:
    """Watches ``routing.json`` and replaces :attr:`active` when a new table is vouched for and loads.

    A table is taken only if the environment's ledger says the same, and only when each of its bundles has verified
    and warmed up. Until then the old table goes on answering and :attr:`error` says why.
    """

    def __init__(self, params: Params, workspace: Workspace, environment: str, *, stored_features: bool = True) -> None:
        """Without ``stored_features`` a version that was trained from a feature store is refused."""
        self.active: Active | None = None
        self.error: str | None = None
        self._seen: object = _NOTHING
        self._stored_features = stored_features
        self._params = params
        self._workspace = workspace
        self._own: OwnFeatures | None = None
        self._warm: Version | None = None
        self._warm_until = datetime.max.replace(tzinfo=UTC)
        self._counts: dict[str, ViewCounts] = {}
        self._bundles = workspace.bundles
        self._folder = workspace.environment(environment)
        self._path = self._folder / "routing.json"
        self._environment = environment
        self._tolerance = params.gates.onnx_tolerance

    @property
    def warm(self) -> str | None:
        """The digest that is loaded and answers nobody, if there is one."""
        return None if self._warm is None else self._warm.digest

    def close(self) -> None:
        """Let go of what is served, when no request uses it any more and nothing follows."""
        if self.active is None:
            return
        for reader in self.active.readers.values():
            reader.close()
        if self.active.copies is not None:
            self.active.copies.close(wait=True)

    def online_state(self, active: Active) -> str | None:
        """What the last fill of the online store left: ``filled``, ``filling``, ``feeding``; None if nobody can say."""
        if not active.readers:
            return None
        with contextlib.suppress(ClearwayError):  # the store itself may be whole
            record = read_record(self._workspace)
            return None if record is None else record.state
        return None

    def served(self) -> dict[str, Any]:
        """What is served, and why a newer routing table is not."""
        table = self.active.table if self.active else None
        return {
            "revision": table.revision if table else None,
            "stable": table.stable if table else None,
            "canary": table.canary if table else None,
            "canary_weight": table.canary_weight if table else 0,
            "error": self.error,
        }

    async def follow(self) -> None:
        """Poll until cancelled. Loading happens in a thread; the swap is one assignment on the event loop."""
        retry_at = time.monotonic() + RETRY_SECONDS
        while True:
            if self._warm is not None and datetime.now(UTC) >= self._warm_until:
                self._warm = None
            if self._fingerprint() != self._seen or (self.error is not None and time.monotonic() >= retry_at):
                await self.catch_up()
                retry_at = time.monotonic() + RETRY_SECONDS
            await asyncio.sleep(POLL_SECONDS)

    async def catch_up(self) -> None:
        """Take the table that is there now, or say in :attr:`error` why not."""
        self._seen = self._fingerprint()
        try:
            replacement = await asyncio.to_thread(self._load)
        except ClearwayError as error:
            self._refuse(str(error))
        except Exception as error:  # whatever a broken file makes a library raise, the old version keeps answering
            logger.exception("routing.json cannot be followed")
            self._refuse(f"{self._path} cannot be followed: {type(error).__name__}: {error}")
        else:
            replaced, self.active, self.error = self.active, replacement, None
            if replacement.copies is not None:
                replacement.copies.start()
            if replaced is not None and replaced.copies is not None and replaced.copies is not replacement.copies:
                replaced.copies.close()
            for reader in _only_in(replaced, replacement):
                asyncio.get_running_loop().call_later(GRACE_SECONDS, reader.close)
            table = replacement.table
            canary = f", canary {table.canary[:12]} at {table.canary_weight}%" if table.canary else ""
            shadow = f", shadow {table.shadow[:12]}" if table.shadow else ""
            logger.warning("revision %d: stable %s%s%s", table.revision, table.stable[:12], canary, shadow)
            gc.collect()
            gc.freeze()  # what a version holds lives for hours: keep the collector from walking it during requests

    def _refuse(self, reason: str) -> None:
        if reason != self.error:
            logger.error("refused: %s", reason)
        self.error = reason

    def _table(self) -> RoutingTable:
        """The routing table, if the ledger says the same.

        A command that was killed between the two leaves a table that is late, which may name what its ledger has barred
        since. A server that serves goes on and says so; one that starts does as the ledger says.
        """
        entries = read_ledger(self._folder, self._environment)
        try:
            table = read_routing(self._path)
            check_vouched(table, self._environment, entries)
        except ClearwayError as error:
            projected = project_routing(entries, self._params.serving.salt, self._params.serving.routing_key)
            if self.active is not None or projected is None:
                raise
            logger.warning("%s: serving what the ledger says instead", error)
            return projected
        return table

    def _load(self) -> Active:
        table = self._table()
        if self.active is not None and table.revision < self.active.table.revision:
            raise ClearwayError(
                f"routing.json is of revision {table.revision}, but revision {self.active.table.revision} is served: "
                "an old table was put back; scripts/rollback.py is the way back"
            )
        digests = [digest for digest in (table.stable, table.canary) if digest is not None]
        present = dict(self.active.versions) if self.active else {}
        if self._warm is not None:
            present[self._warm.digest] = self._warm
        versions = {digest: present.get(digest) or self._load_version(digest) for digest in digests}
        readers = self._readers(versions)
        try:
            replacement = Active(table, versions, readers, self._copies(table))
            self._check_hiding(replacement)
        except Exception:
            self._close_new(readers)
            raise
        self._warm, self._warm_until = self._keep_warm(table, present), table.warm_until or self._warm_until
        return replacement

    def _check_hiding(self, replacement: Active) -> None:
        """Refuse to log in plain what ``serving.log`` means to hide."""
        if self._params.serving.log.hides:
            inputs = frozenset[str]().union(*(reader.inputs for reader in replacement.readers.values()))
            key = replacement.table.key
            check_hiding(self._params.serving.log, key, replacement.names, inputs, self._known_elsewhere)

    def _known_elsewhere(self) -> frozenset[str]:
        """Features of all versions that are kept, and columns of the schema."""
        names = set[str]()
        with contextlib.suppress(ClearwayError):  # the line says what is wrong with it
            schema = load_schema(self._workspace.root / self._params.data_schema)
            names.update(schema.features, *(table.columns for table in schema.tables.values()))
        for folder in self._bundles.glob("*"):
            with contextlib.suppress(ClearwayError):
                names.update(recorded_features(verify(folder, folder.name)))
        return frozenset(names)

    def _keep_warm(self, table: RoutingTable, present: Mapping[str, Version]) -> Version | None:
        """The version that a rollback would bring back. It answers nobody: without it everything else goes on."""
        if table.warm is None or table.warm_until is None or datetime.now(UTC) >= table.warm_until:
            return None
        try:
            return present.get(table.warm) or self._load_version(table.warm)
        except Exception as error:  # whatever a broken file makes a library raise
            logger.warning("%s is not kept warm: %s", table.warm[:12], error)
            return None

    def _copies(self, table: RoutingTable) -> ShadowCopies | None:
        """Where copies for the shadow go, as before if it is the same; nothing of it is loaded in this process."""
        if table.shadow is None:
            return None
        command = tuple(shadow_command(self._workspace, self._environment, table.shadow, table.stable))
        present = self.active.copies if self.active else None
        if present is not None and present.command == command:
            return present
        names: tuple[str, ...] = ()
        with contextlib.suppress(ClearwayError):  # its own process says what is wrong with it
            names = recorded_features(verify(self._bundles / table.shadow, table.shadow))
        return ShadowCopies(table.shadow, command, self._params.serving.shadow, names)

    def _load_version(self, digest: str) -> Version:
        """A version that the ledger names: its signature, where one is asked for, comes before anything is read."""
        folder = self._bundles / digest
        if folder.is_dir():
            warning = check_for(self._params, self._environment, verify(folder, digest), self._workspace.root)
            if warning:
                logger.warning("%s", warning)
        version = load_version(
            self._bundles, digest, self._tolerance, trust_in(self._params.trust, frozenset({digest}))
        )
        if version.model.runtime != "onnx":
            logger.warning("%s has no ONNX: it is served by scikit-learn, slower", digest[:12])
        if version.model.definitions is not None:
            if not self._stored_features:
                raise ClearwayError(
                    f"bundle {digest[:12]} looks its features up in a feature store, by code of its own project: a "
                    "server that hosts models of other projects cannot run that; give it a server of its own"
                )
            check_definitions(version, self._own_features())
        return version

    def _own_features(self) -> OwnFeatures:
        """Of the project's code, once: a process keeps the code that it has imported."""
        if self._own is None:
            self._own = own_features(self._params)
        return self._own

    def _readers(self, versions: dict[str, Version]) -> "dict[str, FeatureReader]":
        """A reader of what each version looks up, by digest; one that reads just that already goes on, with its memory.

        So a failure that only one version's features have is met by the callers of that version alone.
        """
        present = self.active.readers if self.active else {}
        by_names = {reader.names: reader for reader in present.values()}
        readers: dict[str, FeatureReader] = {}
        for digest, version in versions.items():
            if version.model.definitions is None:
                continue
            names = frozenset(version.model.schema.names)
            if names not in by_names:
                try:
                    own = self._own_features()
                    by_names[names] = open_reader(self._params, self._workspace, own, names, self._counts)
                except Exception:
                    self._close_new(readers)
                    raise
            readers[digest] = by_names[names]
        return readers

    def _close_new(self, readers: "dict[str, FeatureReader]") -> None:
        present = self.active.readers.values() if self.active else ()
        for reader in {id(reader): reader for reader in readers.values()}.values():
            if not any(reader is other for other in present):
                reader.close()

    def _fingerprint(self) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            status = self._path.stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None
