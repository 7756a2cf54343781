"""Do the routing table, the server and MLflow's alias say what the ledger says? And make them say it.

The ledger is the truth; the rest repeat it. A ledger that does not verify is never repaired here: it is restored from
a copy.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from clearway.agreement import disagreement, wanted
from clearway.bundle import BundleError, verify
from clearway.deployment import BOOTSTRAP_REASON, SHOWN, serve_again
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import Entry, anchor_is_late, read_ledger
from clearway.params import Params
from clearway.routing import check_not_ahead, present_routing, project_routing
from clearway.targets import Target, target_of
from clearway.workspace import Workspace

PARTS = ("ledger", "bundles", "routing", "server", "alias")
"""What is compared, in the order in which it is repaired."""


def parts_of(only: str | None) -> tuple[str, ...]:
    """The parts that ``only`` names: one, or all.

    Raises
    ------
    UsageError
        There is no such part.
    """
    if only is not None and only not in PARTS:
        raise UsageError(f"--only {only}: choose one of {', '.join(PARTS)}")
    return PARTS if only is None else (only,)


class Finding(BaseModel):
    """What one part says, beside the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    part: str
    agrees: bool
    sentence: str


def examine(params: Params, workspace: Workspace, environment: str, parts: Sequence[str] = PARTS) -> list[Finding]:
    """Compare an environment's parts with its verified ledger; changes nothing.

    What cannot be reached does not agree: nobody knows what it says.

    Raises
    ------
    UsageError
        The environment is unknown.
    ClearwayError
        The ledger does not verify: there is no truth to compare with.
    """
    target = target_of(params, workspace, environment)
    asked = [part for part in PARTS if part in parts and (part != "alias" or environment == params.production)]
    if not asked:
        return []
    try:
        target.pull()
    except UsageError:
        raise
    except ClearwayError as error:  # only what is elsewhere has to be asked
        return [Finding(environment=environment, part=part, agrees=False, sentence=f"{error}") for part in asked]
    table = present_routing(workspace.environment(environment) / "routing.json")  # before the ledger, which may grow
    entries = read_ledger(workspace.environment(environment), environment)
    check_not_ahead(workspace.environment(environment) / "routing.json", table, entries)
    looks = {
        "ledger": lambda: _ledger(workspace, environment, entries),
        "bundles": lambda: _bundles(workspace, target, entries),
        "routing": lambda: _routing(params, workspace, environment, entries),
        "server": lambda: _server(target, entries),
        "alias": lambda: _alias(params, workspace, entries),
    }
    looked = [(part, *looks[part]()) for part in asked]
    return [Finding(environment=environment, part=part, agrees=agrees, sentence=said) for part, agrees, said in looked]


def repair(params: Params, workspace: Workspace, environment: str, parts: Sequence[str] = PARTS) -> None:
    """Have routing table, server and alias say what the ledger says.

    Raises
    ------
    ClearwayError
        The ledger does not verify, the server does not follow, or MLflow does not answer.
    """
    entries = read_ledger(workspace.environment(environment), environment)
    if {"routing", "server"} & set(parts):
        serve_again(params, workspace, environment)
    champion = wanted_alias(entries)
    if "alias" in parts and environment == params.production and champion is not None:
        from clearway.registry import set_champion

        set_champion(params, workspace, champion)


def wanted_alias(entries: Sequence[Entry]) -> str | None:
    """The digest that MLflow's ``champion`` must name; None where there is no champion, only a control."""
    moved = next((entry for entry in reversed(entries) if entry.stable != entry.previous_stable), None)
    return None if moved is None or moved.reason == BOOTSTRAP_REASON else moved.stable


def _ledger(workspace: Workspace, environment: str, entries: Sequence[Entry]) -> tuple[bool, str]:
    if anchor_is_late(workspace.environment(environment), environment):
        return True, f"{len(entries)} entries verify; the last writer was killed, and the next one completes its work"
    return True, f"{len(entries)} entries verify"


def _bundles(workspace: Workspace, target: Target, entries: Sequence[Entry]) -> tuple[bool, str]:
    now = entries[-1] if entries else None
    live = [digest for digest in (now.stable, now.canary, now.shadow) if digest is not None] if now else []
    for digest in live:
        if not target.here:  # where it is verified before it is served
            try:
                gone = target.lacks(digest)
            except ClearwayError as error:
                return False, str(error)
            if gone:
                again = "deploy it again, or go back with scripts/rollback.py"
                return False, f"{digest[:SHOWN]} is not kept where it is served: {again}"
            continue
        try:
            verify(workspace.bundles / digest, digest)
        except BundleError as error:
            return False, f"{error}: restore it, or go back with scripts/rollback.py"
    return True, f"{len(live)} live and whole"


def _routing(params: Params, workspace: Workspace, environment: str, entries: Sequence[Entry]) -> tuple[bool, str]:
    found = present_routing(workspace.environment(environment) / "routing.json")
    projected = project_routing(entries, params.serving.salt, params.serving.routing_key)
    if projected is None:
        gone = found is None
        return gone, "nothing was ever deployed" if gone else "routing.json exists, yet the ledger has no entry: lost?"
    if found is None:
        return False, "routing.json is missing or damaged"
    sentence = disagreement("routing.json", projected.model_dump(), found.model_dump())
    return sentence is None, sentence or f"routing.json follows from entry {found.revision}"


def _server(target: Target, entries: Sequence[Entry]) -> tuple[bool, str]:
    server = target.find()
    if not entries:
        idle = server is None or not target.here  # one that is elsewhere runs before anything is deployed to it
        return idle, "nothing was ever deployed" + ("" if idle else ", yet a server runs")
    if server is None:
        return False, f"no server runs, and the ledger says {entries[-1].stable[:SHOWN]} is served"
    answer = target.describe()
    if answer is None:
        return False, "the server runs and does not answer"
    if answer.get("error"):
        return False, f"the server reports: {answer['error']}"
    sentence = disagreement("the server", wanted(entries[-1]), answer)
    return sentence is None, sentence or f"the server serves entry {answer['revision']}"


def _alias(params: Params, workspace: Workspace, entries: Sequence[Entry]) -> tuple[bool, str]:
    champion = wanted_alias(entries)
    if champion is None:
        return True, "there is no champion yet"
    from clearway.registry import champion_digest

    try:
        found = champion_digest(params, workspace)
    except ClearwayError as error:
        return False, str(error)
    if found == champion:
        return True, f"champion is {champion[:SHOWN]}, as the ledger says"
    return False, f"champion is {found[:SHOWN] if found else 'nobody'}, but the ledger says {champion[:SHOWN]}"
