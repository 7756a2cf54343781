"""Workflows of the repository on GitHub: start a delivery when the monitor asks for one, keep crons awake.

GitHub switches the crons of a public repository off after 60 days without activity. Enabling a workflow, which its REST
API offers, counts anew. A workflow that a person switched off stays off.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from clearway.errors import ClearwayError
from clearway.github_settings import PER_PAGE, GitHub

DELIVERY = "delivery.yml"
CRONS = ("monitor.yml", DELIVERY, "security.yml")
RIGHT = "actions: write"
QUIET = timedelta(days=30)
"""After so long without a change of its state a workflow is enabled anew: half of what GitHub waits."""


def wants_delivery(retrain: bool, last: datetime | None, running: bool, now: datetime, hours: float) -> bool:
    """Whether to start a delivery: an alarm asks for a model, none is under way, and the last is ``hours`` old."""
    return retrain and not running and (last is None or now - last >= timedelta(hours=hours))


def last_delivery(github: GitHub) -> tuple[datetime | None, bool]:
    """When the last delivery began, and whether one waits or runs.

    Raises
    ------
    ClearwayError
        GitHub does not tell.
    """
    status, answer = github.ask(f"/actions/workflows/{DELIVERY}/runs?per_page=20")
    runs = answer.get("workflow_runs") if isinstance(answer, dict) else None
    if status != 200 or runs is None:
        raise ClearwayError(f"GitHub answers {status} for the runs of {DELIVERY}: the token needs permissions: {RIGHT}")
    began = [datetime.fromisoformat(run["created_at"]) for run in runs]
    return max(began, default=None), any(run["status"] != "completed" for run in runs)


def start_delivery(github: GitHub) -> None:
    """Dispatch a delivery of the default branch that trains whatever its own triggers say: they have not seen what the
    monitor has.

    Raises
    ------
    ClearwayError
        GitHub refuses.
    """
    status, repository = github.ask("")
    if status != 200:
        raise ClearwayError(f"GitHub answers {status} for the repository: the token needs permissions: {RIGHT}")
    content = {"ref": repository["default_branch"], "inputs": {"force_retrain": "true"}}
    github.send("POST", f"/actions/workflows/{DELIVERY}/dispatches", content, RIGHT)


def keep_awake(github: GitHub, now: datetime, names: Sequence[str] = CRONS) -> list[str]:
    """Enable the workflows that GitHub switched off for quiet, or soon would; one sentence for each that was off.

    Raises
    ------
    ClearwayError
        GitHub does not tell their states, or refuses.
    """
    status, answer = github.ask(f"/actions/workflows?per_page={PER_PAGE}")
    workflows = answer.get("workflows") if isinstance(answer, dict) else None
    if status != 200 or workflows is None:
        raise ClearwayError(f"GitHub answers {status} for the workflows: the token needs permissions: {RIGHT}")
    said = []
    for workflow in workflows:
        name, state = str(workflow.get("path", "")).rpartition("/")[2], workflow.get("state")
        if name not in names:
            continue
        slept = state == "disabled_inactivity"
        changed = datetime.fromisoformat(str(workflow["updated_at"]))
        if slept or (state == "active" and now - changed >= QUIET):
            github.send("PUT", f"/actions/workflows/{workflow['id']}/enable", {}, RIGHT)
        if slept:
            said.append(f"GitHub had switched the cron of {name} off after 60 quiet days: it is on again")
        elif state != "active":
            said.append(f"{name} is off ({state}): its cron does not run until somebody enables it")
    return said
