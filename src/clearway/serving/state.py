"""What a server serves right now, and how it follows the environment's routing table without dropping a request."""

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clearway.errors import ClearwayError
from clearway.ledger import Entry, quarantined, read_ledger
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
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader

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
    """A version with the encoder of its requests."""

    version: Version
    encoder: RowEncoder

    @property
    def digest(self) -> str:
        return self.version.digest


class Active:
    """One routing table with all its versions loaded. Never changed, only replaced as a whole."""

    def __init__(
        self, table: RoutingTable, versions: dict[str, Version], reader: "FeatureReader | None" = None
    ) -> None:
        self.table = table
        self.reader = reader
        """Reads features by key; None where no version was trained from the feature store."""
        self.keyed = None if reader is None else _keyed_rows(reader, versions)
        self.names = frozenset(name for version in versions.values() for name in version.model.schema.names)
        self._loaded = {
            digest: Loaded(version, RowEncoder(version.model.schema, also_known=self.names))
            for digest, version in versions.items()
        }

    @property
    def versions(self) -> dict[str, Version]:
        return {digest: loaded.version for digest, loaded in self._loaded.items()}

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


def _keyed_rows(reader: "FeatureReader", versions: dict[str, Version]) -> KeyedRows:
    stored = [version.model.schema.names for version in versions.values() if version.model.definitions is not None]
    names = dict.fromkeys(name for names in stored for name in names)
    fields = {name: kind.value for name, kind in reader.inputs.items() if name not in reader.join_keys}
    return KeyedRows(reader.join_keys, fields, reader.looked_up.intersection(names), names)


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
        self._bundles = workspace.bundles
        self._folder = workspace.environment(environment)
        self._path = self._folder / "routing.json"
        self._environment = environment
        self._tolerance = params.gates.onnx_tolerance

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
            if replaced is not None and replaced.reader is not None and replaced.reader is not replacement.reader:
                asyncio.get_running_loop().call_later(GRACE_SECONDS, replaced.reader.close)
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
        reader = self._reader(versions)
        try:
            return Active(table, versions, reader)
        except Exception:
            if reader is not None and (self.active is None or reader is not self.active.reader):
                reader.close()
            raise

    def _load_version(self, digest: str) -> Version:
        version = load_version(self._bundles, digest, self._tolerance)
        if version.model.definitions is not None:
            check_definitions(version, self._own_features())
        return version

    def _own_features(self) -> OwnFeatures:
        """Of the project's code, once: a process keeps the code that it has imported."""
        if self._own is None:
            self._own = own_features(self._params)
        return self._own

    def _reader(self, versions: dict[str, Version]) -> "FeatureReader | None":
        """A reader of all features that the versions look up; the present one, with what it has read, if it will do."""
        stored = [version.model.schema.names for version in versions.values() if version.model.definitions is not None]
        if not stored:
            return None
        names = {name for names in stored for name in names}
        present = self.active.reader if self.active else None
        if present is not None and names <= present.names:
            return present
        return open_reader(self._params, self._workspace, self._own_features(), names)

    def _fingerprint(self) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            status = self._path.stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
        return None
