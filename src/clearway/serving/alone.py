"""A server that serves one bundle from a folder and follows nobody: a pod of KServe, which splits traffic outside."""

from pathlib import Path

from clearway.bundle import keep, verify
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import GENESIS, Change, append, read_ledger
from clearway.params import Params
from clearway.routing import project_routing, write_routing
from clearway.signing import check_for
from clearway.workspace import Workspace


def serve_alone(params: Params, workspace: Workspace, environment: str, folder: Path, digest: str) -> None:
    """Make ``digest``, whose files are in ``folder``, all that ``environment`` serves on this machine.

    Nothing is believed of the folder: its payload must have that digest, and be signed as the environment asks. The
    ledger it makes is the pod's own and ends with it; the one that counts is the environment's.

    Raises
    ------
    UsageError
        The environment is unknown.
    ClearwayError
        The folder does not verify, or something else was deployed here.
    """
    params.environment(environment)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise UsageError(f"--digest {digest[:80]!r}: a digest has 64 of the characters 0-9 and a-f")
    check_for(params, environment, verify(folder, digest), workspace.root)
    keep(folder, workspace.bundles, digest)
    here = workspace.environment(environment)
    here.mkdir(parents=True, exist_ok=True)
    entries = read_ledger(here, environment)
    if not entries:
        change = Change(
            action="deploy", stable=digest, actor="serve.py --bundle", reason="this process serves it alone"
        )
        entries = [append(here, environment, change, expected_head=GENESIS)]
    if len(entries) != 1 or entries[0].stable != digest:
        raise ClearwayError(
            f"{here} holds the ledger of an environment with other deployments: --bundle is for a server of its own, "
            "whose var/ is empty"
        )
    table = project_routing(entries, params.serving.salt, params.serving.routing_key)
    assert table is not None
    write_routing(here / "routing.json", table)
