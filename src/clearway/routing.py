"""Who answers: a routing table, and the salted hash that gives an entity one version through a rollout."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clearway.errors import ClearwayError
from clearway.files import write_text
from clearway.ledger import Entry, kept_warm
from clearway.params import describe

Role = Literal["stable", "canary"]

BUCKETS = 10_000


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
        return "canary" if bucket(key, self.salt) < self.canary_weight * BUCKETS // 100 else "stable"


def bucket(key: str, salt: str) -> int:
    """Map a key to one of ``BUCKETS`` equal buckets by a salted BLAKE2b hash."""
    digest = hashlib.blake2b(key.encode("utf-8"), key=salt.encode("utf-8")[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def project_routing(entries: Sequence[Entry], salt: str) -> RoutingTable | None:
    """The routing table that the ledger's head asks for; None if nothing was ever deployed.

    The salt is the project's and the canary's: through one rollout an entity keeps its version, and the next rollout
    tries its luck on others.
    """
    if not entries:
        return None
    now, (warm, until) = entries[-1], kept_warm(entries) or (None, None)
    return RoutingTable(
        environment=now.environment,
        revision=now.sequence,
        ledger_hash=now.hash,
        salt=f"{now.canary[:16]}:{salt}" if now.canary else salt,
        stable=now.stable,
        canary=now.canary,
        canary_weight=now.canary_weight,
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


def write_routing(path: Path, table: RoutingTable) -> None:
    """Write a routing table, whole or not at all."""
    write_text(path, table.model_dump_json(indent=2) + "\n")
