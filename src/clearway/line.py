"""The whole line on this machine: each step a process of its own, in order, watched, and summed up for a person."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from clearway.cli import HELD, ROLLED_BACK
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.params import Params
from clearway.project_folder import HOME
from clearway.targets import target_of
from clearway.workspace import Workspace

Outcome = Literal["promoted", "nothing to do", "unchanged", "rejected", "held", "rolled back"]


@dataclass(frozen=True)
class Step:
    """One finished step: its name, its wall time in seconds and the last line it printed."""

    name: str
    seconds: float
    said: str


@dataclass(frozen=True)
class LineRun:
    """What one run of the line came to, and why."""

    outcome: Outcome
    why: str
    steps: Sequence[Step] = field(default_factory=tuple)


class StepFailedError(ClearwayError):
    """A step stopped the line; carries the step's own exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if code in (1, 2) else 1


@contextmanager
def only_run(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace for one run.

    Raises
    ------
    ClearwayError
        Another run holds it.
    """
    workspace.var.mkdir(parents=True, exist_ok=True)
    path = workspace.var / "line.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ClearwayError(f"another run of the line holds {path}: wait for it to end, then run again") from None
    # asked to end, such as by a job that is cancelled, a run leaves as after Ctrl-C: with its steps
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.release()


def stop_family(pid: int, seconds: float = 10) -> None:
    """Stop a step and all that it started, except what has a session of its own: a server that is meant to outlive it.

    A stage must not go on writing when the run that started it is gone. DVC does not pass a signal on to its stages.
    """
    try:
        step = psutil.Process(pid)
        family = [step, *step.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    members = [member for member in family if _session(member.pid) == os.getsid(0)]
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for member in members:
            with suppress(psutil.NoSuchProcess):
                ask(member)
        _, members = psutil.wait_procs(members, timeout=seconds)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


class Runner:
    """Runs steps in a project folder and shows them; decides nothing that a step has not written down."""

    def __init__(self, workspace: Workspace, console: Console, environment: dict[str, str] | None = None) -> None:
        self.steps: list[Step] = []
        self._workspace = workspace
        self._console = console
        self._logs = workspace.var / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            **(environment or {}),
            "CLEARWAY_PROJECT": ".",  # every step runs in the folder, and says paths as a person there would
            "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""),
        }

    def script(self, title: str, name: str, *arguments: str, accept: Sequence[int] = (0,)) -> int:
        """Run ``scripts/name`` on the project and return its exit code; one outside ``accept`` stops the line."""
        started, said = time.perf_counter(), [""]

        def show(line: str) -> str:
            said[0] = line or said[0]
            return f"{title}: {line}"

        command = [sys.executable, str(HOME / "scripts" / name), *arguments]
        code = self._run(title, command, show, accept)
        self._finished(title, time.perf_counter() - started, said[0])
        return code

    def endpoint_tests(self, environment: str) -> None:
        """Run the integration tests against a deployed environment."""
        started, said = time.perf_counter(), [""]

        def show(line: str) -> str:
            said[0] = line or said[0]
            return f"test {environment}: {line}"

        tests = str(HOME / "tests" / "integration")
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(HOME), "-c", str(HOME / "pyproject.toml")]
        self._run(f"test {environment}", [sys.executable, "-m", "pytest", *options, tests, "--env", environment], show)
        self._finished(f"test {environment}", time.perf_counter() - started, said[0])

    def stages(self, target: str, *options: str) -> set[str]:
        """Run the DVC stages up to ``target`` that have changed, showing each as it runs; the names of those."""
        stages = _Stages(self._finished, self._skipped)
        command = [sys.executable, "-m", "dvc", "repro", *options, target]
        self._run(f"dvc repro {target}", command, stages.show)
        stages.end()
        return stages.ran

    def _run(self, title: str, command: Sequence[str], show: Callable[[str], str], accept: Sequence[int] = (0,)) -> int:
        log = self._logs / (title.replace(" ", "-").replace("%", "") + ".log")
        errors: list[str] = []
        dvc_errors: list[str] = []
        crashes: list[str] = []
        in_traceback = False
        with log.open("w", encoding="utf-8") as stream, self._console.status(title) as status:
            process = subprocess.Popen(
                command,
                cwd=self._workspace.root,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            try:
                assert process.stdout is not None
                for raw in process.stdout:
                    stream.write(raw)
                    line = raw.strip()
                    if line.startswith("error: "):
                        errors.append(line.removeprefix("error: "))
                    if dvc_errors and dvc_errors[-1].endswith(":") and line:  # it names who blocks it in the next line
                        dvc_errors[-1] += f" {line}: wait for it to end, then run again"
                    if line.startswith("ERROR: "):
                        dvc_errors.append(line.removeprefix("ERROR: "))
                    if line.startswith("Traceback ("):
                        in_traceback = True
                    elif in_traceback and line and not raw.startswith(" "):
                        in_traceback = False
                        crashes.append(f"{line} (the whole traceback is in {log})")
                    status.update(escape(_fit(show(line), self._console.width - 4)))
                code = process.wait()
            finally:
                if process.poll() is None:
                    stop_family(process.pid)
                    process.wait()
        if code not in accept:
            self._console.print(f"[red]✗[/] {title}")
            reason = (errors or crashes or dvc_errors or [f"it ended with exit code {code}; its output is in {log}"])[0]
            for failed in filter(None, map(_STAGE_FAILED.search, dvc_errors)):
                title, code = failed[1], int(failed[2])  # DVC's own exit code says nothing of the stage's
            raise StepFailedError(f"{title}: {reason}", code)
        return code

    def _finished(self, name: str, seconds: float, said: str) -> None:
        self.steps.append(Step(name, seconds, said))
        said = said.split(": ", 1)[-1] if ": " in said[:20] else said
        said = escape(_fit(said, self._console.width - 30))
        self._console.print(f"[green]✓[/] {name:<16}{seconds:6.1f} s  [dim]{said}[/]", highlight=False, soft_wrap=True)

    def _skipped(self, name: str) -> None:
        self._console.print(f"[dim]· {name:<16}          unchanged[/]", highlight=False)


_STAGE_FAILED = re.compile(r"^failed to reproduce '([^']+)': .*exited with (-?\d+)$")
"""How DVC says which stage failed, and with which exit code."""

_SPOKEN = re.compile(r"[a-z_ ]+: ")
"""A script's own line, such as ``ingest: 4 tables``, among DVC's."""


class _Stages:
    """Reads ``dvc repro`` as it speaks: which stage runs, which is skipped, and what each script said last."""

    def __init__(self, finished: Callable[[str, float, str], None], skipped: Callable[[str], None]) -> None:
        self._finished, self._skipped = finished, skipped
        self._name, self._said, self._started = "", "", 0.0
        self.ran: set[str] = set()

    def show(self, line: str) -> str:
        if line.startswith("Running stage '"):
            self.end()
            self._name, self._said, self._started = line.split("'")[1], "", time.perf_counter()
            self.ran.add(self._name)
        elif line.startswith("Stage '"):
            self.end()
            self._skipped(line.split("'")[1])
        elif _SPOKEN.match(line):
            self._said = line
        return f"{self._name or 'dvc repro'}: {line}"

    def end(self) -> None:
        """Close the stage that was running, if any."""
        if self._name:
            self._finished(self._name, time.perf_counter() - self._started, self._said)
            self._name = ""


def run_line(
    params: Params, workspace: Workspace, console: Console, *, force_retrain: bool = False, trigger: str = "local"
) -> LineRun:
    """Take the model from raw data to production, or as far as its verdicts allow.

    Raises
    ------
    StepFailedError
        A step failed, or a check stopped the line.
    """
    for environment in params.environments:
        target_of(params, workspace, environment).check_ready()
    forced = "true" if force_retrain else "false"
    runner = Runner(workspace, console, {"CLEARWAY_TRIGGER": trigger, "CLEARWAY_FORCE_RETRAIN": forced})

    def ended(outcome: Outcome, why: str) -> LineRun:
        return LineRun(outcome, why, tuple(runner.steps))

    if "decide" not in runner.stages("decide"):
        # DVC does not know who called: a decision that it kept from an earlier run is taken again for this caller.
        runner.script("decide", "decide.py", "--force-retrain", forced, "--trigger", trigger)
    decision = read_json(workspace.reports / "decision.json", made_by="scripts/decide.py")
    champion = read_json(workspace.champion / "champion.json", made_by="scripts/fetch_champion.py")["digest"]
    production = params.production
    staging = params.environments[production].requires
    keep_serving = (production, "deploy.py", "--env", production, "--ensure-serving")
    if not decision["retrain"]:
        if champion:
            runner.script(*keep_serving)
        return ended("nothing to do", decision["sentence"])
    if force_retrain:
        runner.stages("train", "--force", "--single-item")
    runner.stages("package")
    verdict = read_json(workspace.reports / "model_validation.json", made_by="scripts/validate_model.py")
    if verdict["verdict"] != "passed":
        if champion:
            runner.script(*keep_serving)
        return ended(verdict["verdict"], verdict["reason"])
    runner.script("register", "register.py")
    if staging:
        runner.script(staging, "deploy.py", "--env", staging)
        runner.endpoint_tests(staging)
    first = params.trial_weights()[0]
    runner.script(f"canary {first}%", "deploy.py", "--env", production, "--canary", str(first))
    watch = ("--env", production, "--watch", "--replay")
    code = runner.script("watch canary", "check_canary.py", *watch, accept=(0, HELD, ROLLED_BACK))
    judged = read_json(workspace.reports / "canary.json", made_by="scripts/check_canary.py")
    why = judged["sentence"]
    if code != 0:
        return ended("held" if code == HELD else "rolled back", why)
    served_to = ("--env", production, "--digest", judged["digest"], "--rollout")
    try:
        runner.script("check skew", "check_skew.py", *served_to)
    except StepFailedError as error:  # skew, nothing compared or no check at all: nobody may be left on such a canary
        runner.script("roll back", "rollback.py", "--env", production, "--reason", str(error))
        return ended("rolled back", str(error))
    runner.script("promote", "deploy.py", "--env", production, "--canary", "100")
    return ended("promoted", why)


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
