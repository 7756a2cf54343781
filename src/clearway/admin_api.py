"""What goes over the wire to ``/admin`` of a server: requests, each with the head of the ledger that it follows on."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from clearway.errors import ClearwayError
from clearway.ledger import Digest, Entry, head_hash

API = 2
"""Raised with every change that an older client or server would misunderstand."""
TOKEN_VARIABLE = "CLEARWAY_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "CLEARWAY_ADMIN_TOKEN_FILE"  # noqa: S105 - likewise
SHORTEST_TOKEN = 32


class Head(BaseModel):
    """The last entry of a ledger; 0 and :data:`~clearway.ledger.GENESIS` of an empty one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(ge=0)
    hash: Digest

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Head":
        return cls(sequence=len(entries), hash=head_hash(entries))


class Standing(BaseModel):
    """What the sender found in the environment in which a digest must be stable first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    stable: Digest | None
    head: Head


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    expected: Head


class Order(_Request):
    """A change that is asked for."""

    reason: str = Field(min_length=1, max_length=4000)
    actor: str | None = Field(None, min_length=1, max_length=200)
    """Who the sender says it is; the ledger adds how it came in, and says instead who it is where that is proven."""
    evidence: dict[str, str] = Field(default_factory=dict, max_length=200)


class Deploy(Order):
    """``POST /admin/deploy``: replace the stable version at once."""

    digest: Digest
    required: Standing | None = None
    bootstrap: bool = False
    """The labelled baseline becomes the first control: only where nothing was ever deployed."""
    warm_minutes: float | None = Field(None, gt=0)
    """How long the version before is kept in memory, whatever strategy the server's own params.yaml names."""


class Canary(Order):
    """``POST /admin/canary``: a trial at 1 to 99 percent, its promotion (100) or its withdrawal (0)."""

    digest: Digest
    weight: int = Field(ge=0, le=100)
    required: Standing | None = None


class Rollback(Order):
    """``POST /admin/rollback``: end the open canary, or return to the last good version or to ``to``."""

    to: Digest | None = None


class Hold(Order):
    """``POST /admin/hold``: record that the last verdict left the canary where it is. The reason is the verdict's."""


class About(Order):
    """``POST /admin/quarantine`` and ``/admin/release``."""

    digest: Digest


class Judged(_Request):
    """``PUT /admin/judgement``: where the open rollout stands, as whoever watches it has judged."""

    rollout: dict[str, Any] | None = None
    """``canary.json``."""
    skew: dict[str, Any] | None = None
    """``skew.json``."""


class HeadMovedError(ClearwayError):
    """The ledger has another head than the sender decided on."""

    def __init__(self, environment: str, expected: Head, found: Head) -> None:
        super().__init__(
            f"the ledger of {environment} moved: expected entry {expected.sequence} ({expected.hash[:12]}), found "
            f"{found.sequence} ({found.hash[:12]}): look at what changed and run the command again"
        )
        self.found = found


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
