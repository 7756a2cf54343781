"""What a server serves right now, and how it follows the environment's routing table without dropping a request."""

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clearway.bundle import verify
from clearway.errors import ClearwayError
from clearway.ledger import Entry, quarantined, read_ledger
from clearway.online_record import read_record
from clearway.params import Params
from clearway.routing import Role, RoutingTable, read_routing
from clearway.serving.loading import (
    OwnFeatures,
    Version,
    check_definitions,
    load_version,
    open_reader,
    own_features,
)
from clearway.serving.requests import KeyedRows, RequestError, RowEncoder
from clearway.signing import check_for
from clearway.trust import trust_in
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader, ViewCounts

POLL_SECONDS = 0.1
RETRY_SECONDS = 3.0
GRACE_SECONDS = 60.0
"""How long requests that began before a swap may still read features as before it."""

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
    }
    for field, value in expected.items():
        if getattr(table, field) != value:
            raise ClearwayError(
                f"routing.json: {field} is {getattr(table, field)!r}, but entry {entry.sequence} of the ledger of "
                f"{environment} says {value!r}: it was changed by hand; scripts/rollback.py rewrites it"
            )
    for digest in {table.stable, table.canary} & quarantined(entries):
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

    @property
    def digest(self) -> str:
        return self.version.digest


class Active:
    """One routing table with all its versions loaded. Never changed, only replaced as a whole."""

    def __init__(
        self, table: RoutingTable, versions: dict[str, Version], readers: "dict[str, FeatureReader] | None" = None
    ) -> None:
        """``versions`` by digest, and the readers of those that were trained from the feature store."""
        self.table = table
        self.names = frozenset(name for version in versions.values() for name in version.model.schema.names)
        self._loaded = {
            digest: self._load(version, (readers or {}).get(digest)) for digest, version in versions.items()
        }

    def _load(self, version: Version, reader: "FeatureReader | None") -> Loaded:
        encoder = RowEncoder(version.model.schema, also_known=self.names)
        keyed = None if reader is None else _keyed_rows(reader, version, self.names)
        return Loaded(version, encoder, reader, keyed)

    @property
    def versions(self) -> dict[str, Version]:
        return {digest: loaded.version for digest, loaded in self._loaded.items()}

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
        return any(loaded.keyed is not None and loaded.keyed.looks_by_key(row) for loaded in self._loaded.values())

    @property
    def unseen(self) -> int:
        """Categories that no training saw, in requests answered under this table."""
        return sum(loaded.encoder.unseen for loaded in self._loaded.values())

    @property
    def warned(self) -> dict[str, int]:
        """Values accepted although the schema warns of them, by feature, in requests answered under this table."""
        return dict(sum((loaded.encoder.warned for loaded in self._loaded.values()), Counter()))

    def route(self, key: str) -> tuple[Role, Loaded]:
        """The version that answers ``key``, and its role."""
        role = self.table.route(key)
        digest = self.table.canary if role == "canary" else self.table.stable
        assert digest is not None  # a table has a weight only together with a canary
        return role, self._loaded[digest]

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

    def __init__(self, params: Params, workspace: Workspace, environment: str) -> None:
        self.active: Active | None = None
        self.error: str | None = None
        self._params = params
        self._workspace = workspace
        self._own: OwnFeatures | None = None
        self._counts: dict[str, ViewCounts] = {}
        self._bundles = workspace.bundles
        self._folder = workspace.environment(environment)
        self._path = self._folder / "routing.json"
        self._environment = environment
        self._tolerance = params.gates.onnx_tolerance

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
        seen: object = self  # like no fingerprint, so that a table that is missing from the start is reported too
        retry_at = 0.0
        while True:
            found = self._fingerprint()
            if found != seen or (self.error is not None and time.monotonic() >= retry_at):
                seen = found
                await self._refresh()
                retry_at = time.monotonic() + RETRY_SECONDS
            await asyncio.sleep(POLL_SECONDS)

    async def _refresh(self) -> None:
        try:
            replacement = await asyncio.to_thread(self._load)
        except ClearwayError as error:
            self._refuse(str(error))
        except Exception as error:  # whatever a broken file makes a library raise, the old version keeps answering
            logger.exception("routing.json cannot be followed")
            self._refuse(f"{self._path} cannot be followed: {type(error).__name__}: {error}")
        else:
            replaced, self.active, self.error = self.active, replacement, None
            for reader in _only_in(replaced, replacement):
                asyncio.get_running_loop().call_later(GRACE_SECONDS, reader.close)
            table = replacement.table
            canary = f", canary {table.canary[:12]} at {table.canary_weight}%" if table.canary else ""
            logger.warning("revision %d: stable %s%s", table.revision, table.stable[:12], canary)
            gc.collect()
            gc.freeze()  # what a version holds lives for hours: keep the collector from walking it during requests

    def _refuse(self, reason: str) -> None:
        if reason != self.error:
            logger.error("refused: %s", reason)
        self.error = reason

    def _load(self) -> Active:
        table = read_routing(self._path)
        check_vouched(table, self._environment, read_ledger(self._folder, self._environment))
        if self.active is not None and table.revision < self.active.table.revision:
            raise ClearwayError(
                f"routing.json is of revision {table.revision}, but revision {self.active.table.revision} is served: "
                "an old table was put back; scripts/rollback.py is the way back"
            )
        digests = [digest for digest in (table.stable, table.canary) if digest is not None]
        present = self.active.versions if self.active else {}
        versions = {digest: present.get(digest) or self._load_version(digest) for digest in digests}
        readers = self._readers(versions)
        try:
            return Active(table, versions, readers)
        except Exception:
            self._close_new(readers)
            raise

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
