"""The history of decisions, ``var/decisions.jsonl``, and the part of it that the next decision may weigh.

A decision weighs only what was decided *before* it, by ``as_of``; where the data knows no time, what was decided before
its snapshot was first decided on. So the same question asked again sees the same past and gets the same answer, and
``build/past_decisions.json`` can be a hashed input of the stage that decides.
"""

from collections.abc import Sequence
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from clearway.decision import WINDOWED, Decision, LastRetrain, PastWindow, TriggerName
from clearway.errors import ClearwayError
from clearway.files import add_line, held, history_lines, read_json, sha256_file, write_json
from clearway.params import Params, describe
from clearway.workspace import Workspace

LOCK_SECONDS = 30.0


class Record(BaseModel):
    """One line of the history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    """Wall time of the decision, UTC."""
    run: str | None
    """Names the run that asked."""
    decision: Decision


class PastDecision(BaseModel):
    """What was decided on one champion in one window (one ``as_of``, or one snapshot), its last word."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: AwareDatetime | None
    snapshot_sha256: str
    champion: str | None
    """Digest; None in a bootstrap."""
    retrained: bool
    """Whether any decision of that window was to retrain."""
    crossed: dict[TriggerName, bool | None]
    """Of each trigger with windows: whether this window by itself crossed its limit."""


_PAST = TypeAdapter(tuple[PastDecision, ...])


def record_decision(decision: Decision, workspace: Workspace, *, at: datetime, run: str | None = None) -> bool:
    """Append the decision to ``var/decisions.jsonl``, unless it is the last one there over again.

    Parameters
    ----------
    decision : Decision
    workspace : Workspace
    at : datetime
        Wall time of the decision, UTC.
    run : str, optional
        Names the run that asked; the same decision in another run is another decision.

    Returns
    -------
    bool
        Whether a line was added.

    Raises
    ------
    ClearwayError
        The history is damaged, or another command holds it.
    """
    path = workspace.decisions
    with held(path.with_name(f"{path.name}.lock"), LOCK_SECONDS):
        history = read_history(workspace)
        if history and (history[-1].run, history[-1].decision) == (run, decision):
            return False
        moment = at.isoformat(timespec="seconds").replace("+00:00", "Z")
        add_line(path, {"at": moment, "run": run, "decision": decision.model_dump(mode="json")})
        return True


def read_history(workspace: Workspace) -> list[Record]:
    """Every recorded decision, as recorded; empty if none was taken.

    Raises
    ------
    ClearwayError
        A line is no decision.
    """
    path = workspace.decisions
    history = []
    for number, line in enumerate(filter(None, history_lines(path)), start=1):
        try:
            history.append(Record.model_validate_json(line))
        except ValidationError:
            message = f"{path} line {number} is no decision: restore the file, or move it aside to start a new history"
            raise ClearwayError(message) from None
    return history


def past_decisions(
    history: Sequence[Record], as_of: datetime | None, snapshot_sha256: str | None
) -> tuple[PastDecision, ...]:
    """What a decision as of ``as_of``, or without time on that snapshot, may weigh: oldest window first.

    Decisions with a time and decisions without are never mixed.
    """
    seen = [record for record in history if (record.decision.evidence.as_of is None) == (as_of is None)]
    if as_of is not None:
        timed = [(record.decision.evidence.as_of, record) for record in seen]
        earlier = sorted(((when, record) for when, record in timed if when and when < as_of), key=lambda pair: pair[0])
        return _last_words([record for _, record in earlier])
    snapshots = [record.decision.evidence.snapshot_sha256 for record in seen]
    if snapshot_sha256 in snapshots:
        seen = seen[: snapshots.index(snapshot_sha256)]
    order = {snapshot: place for place, snapshot in reversed(list(enumerate(snapshots)))}
    return _last_words(sorted(seen, key=lambda record: order[record.decision.evidence.snapshot_sha256]))


def earlier_windows(past: Sequence[PastDecision], champion: str | None, count: int) -> tuple[PastWindow, ...]:
    """The last ``count`` windows in which ``champion`` was judged, oldest first."""
    mine = [one for one in past if one.champion == champion]
    return tuple(
        PastWindow(as_of=one.as_of, snapshot_sha256=one.snapshot_sha256, crossed=one.crossed)
        for one in (mine[-count:] if count else [])
    )


def last_retrain(past: Sequence[PastDecision]) -> LastRetrain | None:
    """The latest decision to retrain, whatever became of it; None if there was none."""
    snapshots: list[str] = []
    for one in reversed(past):
        if one.snapshot_sha256 not in snapshots:
            snapshots.append(one.snapshot_sha256)
        if one.retrained:
            return LastRetrain(as_of=one.as_of, snapshots_ago=len(snapshots))
    return None


def write_past(params: Params, workspace: Workspace) -> int:
    """Write ``build/past_decisions.json``, what the next decision may weigh; returns how many there are.

    Raises
    ------
    ClearwayError
        The history is damaged; or the data knows no time and there is no snapshot to tell windows apart by.
    """
    as_of, snapshot = params.time(), None
    if as_of is None:
        if not workspace.snapshot.is_file():
            raise ClearwayError(f"{workspace.snapshot} is missing: run scripts/ingest.py first")
        snapshot = sha256_file(workspace.snapshot)
    past = past_decisions(read_history(workspace), as_of, snapshot)
    write_json(workspace.past_decisions, _PAST.dump_python(past, mode="json"))
    return len(past)


def read_past(workspace: Workspace) -> tuple[PastDecision, ...]:
    """What :func:`write_past` wrote.

    Raises
    ------
    ClearwayError
        The file is missing or damaged.
    """
    path = workspace.past_decisions
    content = read_json(path, made_by="scripts/fetch_champion.py")
    try:
        return _PAST.validate_python(content)
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/fetch_champion.py again") from None


def _last_words(records: Sequence[Record]) -> tuple[PastDecision, ...]:
    """Records in order of their windows → one for each window and champion: the last, and whether any retrained."""
    words: dict[tuple[datetime | str, str | None], PastDecision] = {}
    for record in records:
        evidence = record.decision.evidence
        champion = evidence.champion.digest if evidence.champion else None
        key = (evidence.as_of or evidence.snapshot_sha256, champion)
        before = words.get(key)
        words[key] = PastDecision(
            as_of=evidence.as_of,
            snapshot_sha256=evidence.snapshot_sha256,
            champion=champion,
            retrained=record.decision.retrain or (before is not None and before.retrained),
            crossed={t.name: t.crossed for t in record.decision.triggers if t.name in WINDOWED},
        )
    return tuple(words.values())
