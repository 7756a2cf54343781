"""Where a rollout stands: its step, and the verdicts so far. The ledger says what is live, this what was judged."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from clearway.canary import CanaryVerdict
from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes, write_json
from clearway.instants import EPOCH
from clearway.ledger import Entry
from clearway.params import describe


class StepVerdict(BaseModel):
    """The latest verdict on one step, when it was given, and the ledger revisions whose answers it judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since_revision: int
    last_revision: int
    at: AwareDatetime = EPOCH
    """Of a verdict that a version of Clearway recorded which did not say it: long ago."""
    verdict: CanaryVerdict


class CanaryState(BaseModel):
    """``canary.json``: the rollout of one digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    weight: int = Field(ge=1, le=99)
    since_revision: int
    """Ledger entry that opened the current step: only answers since then count for it."""
    opened: str = ""
    """Hash of the ledger entry that opened the rollout: what another environment's, or another history's, judge said of
    the same version at the same weight is nothing to this one."""
    verdicts: tuple[StepVerdict, ...] = ()
    """One per step, the current step last once it has been judged."""

    @property
    def current(self) -> StepVerdict | None:
        """The latest verdict on the current step; None before it was judged."""
        last = self.verdicts[-1] if self.verdicts else None
        return last if last is not None and last.since_revision == self.since_revision else None

    def judged(self, verdict: CanaryVerdict, last_revision: int, at: datetime) -> "CanaryState":
        """The state after a verdict on the current step, which replaces an earlier one on the same step."""
        earlier = tuple(step for step in self.verdicts if step.since_revision < self.since_revision)
        step = StepVerdict(since_revision=self.since_revision, last_revision=last_revision, at=at, verdict=verdict)
        return self.model_copy(update={"verdicts": (*earlier, step)})


class Stretch(BaseModel):
    """Revisions in a row at which a rollout had one weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since_revision: int
    last_revision: int
    weight: int


class Provisional(BaseModel):
    """A promotion that waits for labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    stable_before: str
    """What it replaced, and what it goes back to if labels speak against it."""
    stretches: tuple[Stretch, ...]
    """Of its trial."""


def stretches(entries: Sequence[Entry]) -> tuple[Stretch, ...]:
    """The open rollout's stretches of one weight, from its beginning; none if no canary is open."""
    if not entries or entries[-1].canary is None:
        return ()
    now = entries[-1]
    found: list[Stretch] = []
    for entry in reversed(entries):
        if (entry.canary, entry.stable) != (now.canary, now.stable):
            break
        if found and found[-1].weight == entry.canary_weight:
            found[-1] = found[-1].model_copy(update={"since_revision": entry.sequence})
        else:
            found.append(
                Stretch(since_revision=entry.sequence, last_revision=entry.sequence, weight=entry.canary_weight)
            )
    return tuple(reversed(found))


def provisional(entries: Sequence[Entry]) -> Provisional | None:
    """The promotion of the version that is stable now, if it still waits for labels; a canary may be open beside it."""
    for entry in reversed(entries):
        if entry.stable != entries[-1].stable:
            return None
        if entry.action == "promote":
            waits = entry.evidence.get("labels") == "provisional"
            trial = stretches(entries[: entry.sequence - 1])
            if not waits or not trial or entry.previous_stable is None:
                return None
            return Provisional(digest=entry.stable, stable_before=entry.previous_stable, stretches=trial)
    return None


def canary_file(folder: Path) -> Path:
    return folder / "canary.json"


def follow(saved: CanaryState | None, entries: Sequence[Entry]) -> CanaryState | None:
    """The state that goes with the ledger: ``saved`` if it speaks of the open step, else carried on or begun anew.

    A command killed between ledger and ``canary.json`` thus costs nothing but a verdict, which is judged again.
    None if no canary is open.
    """
    if not entries or entries[-1].canary is None:
        return None
    now = entries[-1]
    since, began = now.sequence, now.sequence
    for entry in reversed(entries):
        if entry.canary != now.canary:
            break
        began = entry.sequence
    for entry in reversed(entries[began - 1 :]):
        if (entry.stable, entry.canary_weight) != (now.stable, now.canary_weight):
            break
        since = entry.sequence
    verdicts: tuple[StepVerdict, ...] = ()
    opened = entries[began - 1].hash
    if saved is not None and (saved.digest, saved.opened) == (now.canary, opened):
        verdicts = tuple(step for step in saved.verdicts if began <= step.since_revision <= since)
    assert now.canary is not None
    head = {"digest": now.canary, "weight": now.canary_weight, "since_revision": since, "opened": opened}
    return CanaryState.model_validate({**head, "verdicts": verdicts})


def read_state(folder: Path, entries: Sequence[Entry]) -> CanaryState | None:
    """Where the rollout in ``folder`` stands, as its ledger allows; None if no canary is open.

    Raises
    ------
    ClearwayError
        ``canary.json`` is damaged.
    """
    path = canary_file(folder)
    try:
        saved = CanaryState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        saved = None
    except ValidationError as error:
        raise ClearwayError(
            f"{path} is damaged ({describe(error)}): delete it, and the step will be judged again"
        ) from None
    return follow(saved, entries)


def write_state(folder: Path, state: CanaryState) -> None:
    """Write ``canary.json``, whole or not at all."""
    write_json(canary_file(folder), state.model_dump(mode="json"))


def as_evidence(verdict: CanaryVerdict) -> dict[str, str]:
    """A verdict in the ledger's words; ``canary_report`` is the hash of all of it, as ``canary.json`` keeps it."""
    found = {
        "canary_verdict": verdict.verdict,
        "canary_weight": str(verdict.weight),
        "canary_requests": str(verdict.n_canary),
        "stable_requests": str(verdict.n_stable),
        "canary_report": sha256_bytes(canonical_json(verdict.model_dump(mode="json"))),
    }
    if verdict.provisional:
        found["labels"] = "provisional"
    for metric in verdict.metrics:
        found[metric.name] = f"{metric.status}: {metric.lower:+.4f} to {metric.upper:+.4f}, margin {metric.margin:g}"
    return found
