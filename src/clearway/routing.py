"""Who answers: a routing table, and the salted hash that gives an entity one version through a rollout.

What a row is routed by has a name, the routing key (``serving.routing_key``). Key and salt of a rollout are those that
the ledger entry which opened it records: whoever changes them in params.yaml meanwhile changes the next rollout, and
moves nobody from one version to the other in this one.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clearway.errors import ClearwayError
from clearway.files import write_text
from clearway.ledger import Entry, kept_warm
from clearway.params import ENTITY_KEY, describe

Role = Literal["stable", "canary"]

BUCKETS = 10_000
"""Divides into whole percents, and 2^64 hashes into them with a bias below 1e-15."""
KEY_EVIDENCE, SALT_EVIDENCE = "routing_key", "routing_salt"
"""Where the entry that opens a rollout says how entities are split."""
MAX_KEY = 256


class RoutingTable(BaseModel):
    """What an environment serves, as its ledger's head says. A projection: the ledger is the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    revision: int = Field(ge=0)
    """Sequence number of the ledger entry that this table follows from."""
    ledger_hash: str
    """Hash of that entry."""
    salt: str
    stable: str
    """Digest that answers by default."""
    canary: str | None = None
    """Digest under trial."""
    canary_weight: int = Field(0, ge=0, le=100)
    """Percent of entities that the canary answers."""
    warm: str | None = None
    """Digest that answers nobody and is kept in memory until ``warm_until``, should it have to come back."""
    warm_until: AwareDatetime | None = None
    key: str = ENTITY_KEY
    """Name of the field of a row that it is routed by."""
    shadow: str | None = None
    """Digest that gets copies of what stable answers, and answers nobody."""

    @model_validator(mode="after")
    def _weight_needs_canary(self) -> Self:
        if (self.canary is None) != (self.canary_weight == 0):
            raise ValueError("a canary needs a weight above 0, and a weight needs a canary")
        if (self.warm is None) != (self.warm_until is None):
            raise ValueError("what is kept warm needs an end, and an end something warm")
        return self

    def route(self, key: str) -> Role:
        """The role that answers ``key``: always the same for one key, salt and weight.

        An entity that sees the canary at 10% still sees it at 25%: buckets below the weight only grow.
        """
        if self.canary is None:
            return "stable"
        return "canary" if bucket(key, self.salt) < self._end else "stable"

    def route_many(self, keys: Sequence[str]) -> list[Role]:
        """The role that answers each of many keys."""
        if self.canary is None:
            return ["stable"] * len(keys)
        end = self._end
        return ["canary" if place < end else "stable" for place in buckets(keys, self.salt)]

    @property
    def _end(self) -> int:
        """The first bucket that is not the canary's."""
        return self.canary_weight * BUCKETS // 100


def bucket(key: str, salt: str) -> int:
    """Map a key to one of ``BUCKETS`` equal buckets by a salted BLAKE2b hash."""
    return _bucket(key, _salted(salt))


def buckets(keys: Iterable[str], salt: str) -> list[int]:
    """The same of each of many keys."""
    salted = _salted(salt)
    return [_bucket(key, salted) for key in keys]


def _bucket(key: str, salted: hashlib.blake2b) -> int:
    hashed = salted.copy()
    hashed.update(key.encode())
    return int.from_bytes(hashed.digest(), "big") % BUCKETS


@lru_cache(maxsize=16)
def _salted(salt: str) -> hashlib.blake2b:
    """A hash that has read the salt and no key, to be copied: to begin one anew takes longer than the key."""
    secret = salt.encode("utf-8")
    if len(secret) > hashlib.blake2b.MAX_KEY_SIZE:  # cut off, two long salts could be one
        secret = hashlib.blake2b(secret).digest()
    return hashlib.blake2b(key=secret, digest_size=8)


class Split(NamedTuple):
    """How entities are told apart."""

    key: str
    """Name of the field of a row."""
    salt: str

    def as_evidence(self) -> dict[str, str]:
        """In the ledger's words."""
        return {KEY_EVIDENCE: self.key, SALT_EVIDENCE: self.salt}


def split_of(entries: Sequence[Entry]) -> Split | None:
    """The split that the open rollout began with; None if none is open, or its entry records none."""
    opening = None
    for entry in reversed(entries):
        if entry.canary is None or entry.canary != entries[-1].canary:
            break
        opening = entry
    if opening is None or KEY_EVIDENCE not in opening.evidence or SALT_EVIDENCE not in opening.evidence:
        return None
    return Split(opening.evidence[KEY_EVIDENCE], opening.evidence[SALT_EVIDENCE])


def salt_of(canary: str | None, salt: str) -> str:
    """The salt of one rollout: the project's and the canary's, so that the next one tries its luck on others."""
    return f"{canary[:16]}:{salt}" if canary else salt


def key_text(value: Any) -> str | None:
    """The value of a routing key as text: 3 and 3.0 are one entity; None where there is no value.

    Raises
    ------
    ValueError
        It is no single value, or has more than ``MAX_KEY`` characters; says what it must be.
    """
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if value is None or type(value) in (bool, int, float):
        return None if value is None else str(value)
    if type(value) is not str:
        raise ValueError("must be a string, a number, true, false or null")
    if len(value) > MAX_KEY:
        raise ValueError(f"must have at most {MAX_KEY} characters, has {len(value)}")
    return value or None


def project_routing(entries: Sequence[Entry], salt: str, key: str = ENTITY_KEY) -> RoutingTable | None:
    """The routing table that the ledger's head asks for; None if nothing was ever deployed.

    Through one rollout an entity keeps its version: ``salt`` and ``key`` count from the next one on.
    """
    if not entries:
        return None
    now, (warm, until) = entries[-1], kept_warm(entries) or (None, None)
    split = split_of(entries) or Split(key, salt)
    return RoutingTable(
        environment=now.environment,
        revision=now.sequence,
        ledger_hash=now.hash,
        salt=salt_of(now.canary, split.salt),
        stable=now.stable,
        canary=now.canary,
        canary_weight=now.canary_weight,
        key=split.key,
        shadow=now.shadow,
        warm=warm,
        warm_until=until,
    )


def read_routing(path: Path) -> RoutingTable:
    """Read a routing table.

    Raises
    ------
    ClearwayError
        It is missing or damaged.
    """
    try:
        return RoutingTable.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: nothing was deployed here yet (scripts/deploy.py)") from None
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): scripts/rollback.py rewrites it") from None


def present_routing(path: Path) -> RoutingTable | None:
    """The routing table as it stands; None if it is missing or damaged."""
    try:
        return read_routing(path)
    except ClearwayError:
        return None


def check_not_ahead(path: Path, table: RoutingTable | None, entries: Sequence[Entry]) -> None:
    """Whether the ledger still has the entry that a routing table, read before it, was made from.

    The table is a second anchor: it finds a tail that was cut together with ``head.json``, or a folder of which only a
    part was restored.

    Raises
    ------
    ClearwayError
        The ledger ends before that entry, or has another in its place.
    """
    if table is None or table.revision == 0:
        return
    found = entries[table.revision - 1].hash if table.revision <= len(entries) else None
    if found != table.ledger_hash:
        raise ClearwayError(
            f"{path} follows from entry {table.revision} ({table.ledger_hash[:12]}), but the ledger beside it "
            + (f"ends at entry {len(entries)}" if found is None else f"has {found[:12]} there")
            + ": it was cut or replaced; restore the folder from its last good copy (on GitHub: the branch "
            f"clearway-state), or, if the older ledger is meant, delete {path.name}"
        )


def write_routing(path: Path, table: RoutingTable) -> None:
    """Write a routing table, whole or not at all."""
    write_text(path, table.model_dump_json(indent=2) + "\n")
