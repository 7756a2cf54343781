"""What a run of the line says of a step that fails, and what it leaves behind when it is stopped."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from clearway.line import Runner, StepFailedError, only_run, stop_family
from clearway.workspace import Workspace

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = "import subprocess, sys, time; subprocess.Popen({command}, start_new_session={own}); time.sleep(60)"


def runner(folder: Path) -> Runner:
    return Runner(Workspace(folder), Console(file=io.StringIO(), width=200))


def family(own_session: bool) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(command=SLEEP, own=own_session)])
    ends = time.monotonic() + 20
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < ends:
        time.sleep(0.02)
    return parent, children[0]


def test_a_stopped_step_takes_its_children_along() -> None:
    parent, child = family(own_session=False)
    stop_family(parent.pid)
    assert not psutil.pid_exists(parent.pid)
    assert not child.is_running()


def test_a_server_with_a_session_of_its_own_outlives_its_step() -> None:
    parent, child = family(own_session=True)
    try:
        deadline = time.monotonic() + 5
        while os.getsid(child.pid) != child.pid and time.monotonic() < deadline:
            time.sleep(0.02)
        stop_family(parent.pid)
        assert not psutil.pid_exists(parent.pid)
        assert child.is_running()
    finally:
        child.kill()


def test_a_run_that_is_asked_to_end_stops_its_steps(tmp_path: Path) -> None:
    """A cancelled job sends SIGTERM to the run alone; DVC's stage must not go on writing."""
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    command = [sys.executable, "-c", PARENT.format(command=SLEEP, own=False)]
    with pytest.raises(KeyboardInterrupt), only_run(Workspace(tmp_path)):
        runner(tmp_path)._run("sleep", command, str)
    left = [child for child in psutil.Process().children(recursive=True) if "time.sleep(60)" in child.cmdline()[-1]]
    assert not left


def test_a_step_that_crashes_is_told_by_its_exception(tmp_path: Path) -> None:
    code = "import sys; print('ERROR: failed to run: it'); sys.stdout.flush(); {}['depth']"
    with pytest.raises(StepFailedError, match=r"features: KeyError: 'depth' .*features\.log") as raised:
        runner(tmp_path)._run("features", [sys.executable, "-c", code], str)
    assert "\n" not in str(raised.value)


def test_who_blocks_dvc_is_named(tmp_path: Path) -> None:
    code = "print('ERROR: build is busy, it is being blocked by:\\n\\n  (PID 7): dvc repro'); raise SystemExit(255)"
    with pytest.raises(StepFailedError, match=r"blocked by: \(PID 7\): dvc repro: wait for it") as raised:
        runner(tmp_path)._run("drift", [sys.executable, "-c", code], str)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("code", [1, 2])
def test_a_failed_stage_is_named_and_its_exit_code_kept(tmp_path: Path, code: int) -> None:
    """DVC ends with 255 whatever its stage ended with: wrong configuration must still be exit 2."""
    (tmp_path / "ingest.py").write_text(f"print('error: as_of is wrong'); raise SystemExit({code})")
    (tmp_path / "dvc.yaml").write_text("stages: {ingest: {cmd: python ingest.py}}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    with pytest.raises(StepFailedError, match=r"^ingest: as_of is wrong$") as raised:
        runner(tmp_path).stages("ingest")
    assert raised.value.exit_code == code
