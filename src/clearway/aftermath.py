"""What follows a new entry once the environment serves it: people are told, and MLflow's alias repeats the ledger.

Both depend on somebody else's server, and importing their libraries costs seconds. So each runs in a process of its own
that is ended after a time limit: a receiver or a registry that is dead, slow or broken delays nobody's rollback, fails
no command, and leaves nothing behind in a server that carries out commands. What could not be done is said, and is made
good later: the next entry tells what was not told (:mod:`clearway.alerts`), ``scripts/reconcile.py --repair`` moves the
alias.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from clearway.ledger import Entry
from clearway.params import Params
from clearway.project_folder import HOME
from clearway.workspace import Workspace

URLS_VARIABLE = "CLEARWAY_ALERT_URLS"
"""Environment variable with the addresses of Apprise, parted by spaces or commas. They are secrets."""
ALIAS_SECONDS = 120.0
"""Longest time for MLflow, which may have to make its database and register the version first."""


def follow_up(params: Params, workspace: Workspace, entry: Entry, *, projects_alias: bool = True) -> tuple[str, ...]:
    """Tell people of ``entry`` and point the alias ``champion`` at it, where either is asked for. Returns warnings.

    Without ``projects_alias`` the alias is somebody else's to move.
    """
    started = []
    if os.environ.get(URLS_VARIABLE, "").strip() and entry.action in params.alerts.events:
        command = _command("alert.py", workspace, "--env", entry.environment, "--after", str(entry.sequence - 1))
        started.append((f"nobody was told of entry {entry.sequence}", command, params.alerts.timeout_seconds))
    if projects_alias and entry.stable != entry.previous_stable and entry.environment == params.production:
        what = f"the registry's alias champion was not moved to {entry.stable[:12]}"
        started.append((what, _command("reconcile.py", workspace, "--only", "alias", "--repair"), ALIAS_SECONDS))
    running = [(what, _start(command), seconds) for what, command, seconds in started]
    begun = time.monotonic()
    found = [_await(what, process, begun + seconds) for what, process, seconds in running]
    return tuple(warning for warning in found if warning is not None)


def _command(script: str, workspace: Workspace, *arguments: str) -> Sequence[str]:
    root = str(workspace.root.resolve())
    return [sys.executable, str(HOME / "scripts" / script), "--project", root, *arguments]


def _start(command: Sequence[str]) -> "subprocess.Popen[str] | OSError":
    silent = {name: value for name, value in os.environ.items() if name not in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    try:
        return subprocess.Popen(
            command, env=silent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        return error


def _await(what: str, process: "subprocess.Popen[str] | OSError", deadline: float) -> str | None:
    if isinstance(process, OSError):
        return f"{what}: {process}"
    try:
        _, said = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"{what}: it took too long"
    if process.returncode == 0:
        return None
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    spoken = (errors or said.splitlines() or [f"exit code {process.returncode}"])[-1]
    return f"{what}: {spoken.removeprefix('error: ')}"
