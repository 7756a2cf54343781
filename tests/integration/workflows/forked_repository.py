"""A fork on disk: a work tree, its bare origin, the artifacts of its runs, and what its state branch says."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from act_runner import WorkflowRun, run_workflow

from clearway.ledger import Entry, read_ledger
from clearway.local_target import stop
from clearway.state import BRANCH
from clearway.workspace import Workspace


@dataclass
class Fork:
    """A repository with its remote, the artifacts of its runs, and what its state branch says."""

    folder: Path
    runs: int = 0
    work: Path = field(init=False)
    origin: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work, self.origin = self.folder / "work", self.folder / "team" / "model.git"

    def git(self, *arguments: str) -> str:
        """Run git in the work tree as a person would."""
        identity = ("-c", "user.name=Person", "-c", "user.email=person@localhost", "-c", "init.defaultBranch=main")
        command = ["git", *identity, "-C", str(self.work), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit_and_push(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        self.git("push", "--quiet", "origin", "HEAD:main")

    def change_params(self, **sections: dict[str, Any]) -> None:
        """Merge values into sections of params.yaml."""
        path = self.work / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            params[section] = {**params.get(section, {}), **values}
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def run(
        self,
        workflow: str,
        event: str,
        payload: dict[str, Any] | None = None,
        job: str | None = None,
        **of_github: Any,
    ) -> WorkflowRun:
        """One run on GitHub, so to speak; ``of_github`` as of :func:`act_runner.run_workflow`."""
        self.runs += 1
        try:
            return run_workflow(
                self.work, workflow, event, run_id=self.runs, folder=self.folder, payload=payload, job=job, **of_github
            )
        finally:
            self._stop_servers()

    def push(self, harm: dict[str, str] | None = None, **payload: Any) -> WorkflowRun:
        return self.run("delivery.yml", "push", {"ref": "refs/heads/main", **payload}, harm=harm)

    def schedule(self) -> WorkflowRun:
        return self.run("delivery.yml", "schedule", {"schedule": "23 4 * * 1"})

    def dispatch(self, **inputs: str) -> WorkflowRun:
        return self.run(
            "delivery.yml", "workflow_dispatch", {"inputs": {"force_retrain": "false", "as_of": "", **inputs}}
        )

    def roll_back(self, **inputs: str) -> WorkflowRun:
        given = {"environment": "production", "digest": "", "reason": "it answers nonsense", **inputs}
        return self.run("rollback.yml", "workflow_dispatch", {"inputs": given})

    def ledger(self, environment: str) -> list[Entry]:
        """The environment's ledger on the state branch, verified."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("ledger.jsonl", "head.json"):
                content = self.on_branch(f"environments/{environment}/{name}")
                if content is not None:
                    (Path(folder) / name).write_bytes(content)
            return read_ledger(Path(folder), environment)

    def serves(self, environment: str) -> tuple[str, str | None]:
        """Stable and canary digest, of which the verified ledger and the routing table must say the same."""
        last = self.ledger(environment)[-1]
        table = self.json_on_branch(f"environments/{environment}/routing.json")
        assert (table["stable"], table["canary"], table["revision"]) == (last.stable, last.canary, last.sequence)
        return last.stable, last.canary

    def last_decision(self) -> dict[str, Any]:
        """The newest line of the decision history on the state branch."""
        decision: dict[str, Any] = json.loads((self.on_branch("decisions.jsonl") or b"").splitlines()[-1])["decision"]
        return decision

    def json_on_branch(self, path: str) -> Any:
        return json.loads(self.on_branch(path) or b"{}")

    def on_branch(self, path: str) -> bytes | None:
        """A file of the state branch; None if it is not there."""
        command = ["git", "-C", str(self.origin), "show", f"{BRANCH}:{path}"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def copy(self, folder: Path) -> "Fork":
        """The same repository, remote and artifacts elsewhere, to go another way from here."""
        made = Fork(folder, self.runs)
        shutil.copytree(self.origin, made.origin)
        shutil.copytree(self.work, made.work)
        shutil.copytree(self.folder / "artifacts", folder / "artifacts")
        made.git("remote", "set-url", "origin", str(made.origin))
        return made

    def _stop_servers(self) -> None:
        """End what a killed job left: each server by the record it wrote itself."""
        for record in self.folder.glob("home-*/cache/*/hostexecutor/var/environments/*/server.json"):
            stop(Workspace(record.parents[3]), record.parent.name)
