"""A command that is forked from a warm process is, to whoever calls it, the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from act_runner import warm_python
from warm_python import WarmPython

pytestmark = [pytest.mark.lines, pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has a warm process")]


@pytest.fixture
def python(tmp_path: Path) -> str:
    warm = warm_python()
    assert warm is not None
    folder = tmp_path / "bin"
    folder.mkdir()
    warm.install(folder)
    return str(folder / "python")


def run(*command: str, **keywords: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **keywords)  # type: ignore[call-overload,no-any-return]


def both(python: str, *arguments: str, **keywords: object) -> None:
    """The stand-in answers as the interpreter does."""
    mine, real = run(python, *arguments, **keywords), run(sys.executable, *arguments, **keywords)
    assert (mine.returncode, mine.stdout) == (real.returncode, real.stdout), mine.stderr
    assert mine.stderr.replace(python, sys.executable).splitlines()[-1:] == real.stderr.splitlines()[-1:]


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_script_sees_its_callers_world(python: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = __name__\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, beside\n"
        "mask = os.umask(0)\n"
        "print(sys.argv, os.getcwd(), sys.path[:2], sorted(os.environ.items()), mask)\n"
        "print(__name__, __file__, beside.NAME)\n"
        "print(sys.stdin.read(), sys.flags.safe_path is not None)\n"
        "sys.exit(7)\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/nowhere", "WORD": "ä", "LC_CTYPE": "C.UTF-8"}
    both(python, str(script), "a b", "--c", cwd=tmp_path, env=environment, input="given")


@pytest.mark.parametrize(
    "code",
    [
        "print(1)",
        "raise SystemExit('said')",
        "raise SystemExit(300)",
        "1 / 0",
        "import atexit; atexit.register(print, 'last')",
        "import threading; threading.Timer(0.2, print, ['late']).start()",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; print(sys.stdout.isatty(), sys.stdout.encoding, sys.stderr.errors)",
        "import multiprocessing; lock = multiprocessing.RLock(); print(lock.acquire())",
    ],
)
def test_a_command_ends_as_it_would_by_itself(python: str, code: str) -> None:
    both(python, "-c", code, env={"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8"})


def test_modules_and_options_are_run(python: str) -> None:
    both(python, "-m", "json.tool", "--compact", input='{"a": 1}')
    both(python, "-c", "import sys; print(sys.flags.isolated)")
    both(python, "-I", "-c", "import sys; print(sys.flags.isolated)")
    both(python, "-m", "no_such_module")


def test_what_it_starts_is_warm_too_and_shares_nothing_random(python: str) -> None:
    code = (
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(12)'], capture_output=True).stdout)"
    )
    assert "12" in run(python, "-c", code).stdout
    random = "import random, numpy; print(random.random(), numpy.random.random())"
    assert run(python, "-c", random).stdout != run(python, "-c", random).stdout


def test_a_signal_goes_through_and_who_kills_the_stand_in_kills_its_fork(python: str) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    ends = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        process.send_signal(number)
        ends.append(process.wait(60))
        await_end(fork)
    assert ends == [9, -signal.SIGKILL]


@pytest.mark.parametrize("command", ["dvc", "pytest"])
def test_its_other_commands_are_forked_too(python: str, tmp_path: Path, command: str) -> None:
    standin = Path(python).with_name(command)
    standin.write_text(standin.read_text().replace(str(Path(sys.executable).with_name(command)), "/no/fresh/one"))
    forked, real = run(str(standin), "--version"), run(str(Path(sys.executable).with_name(command)), "--version")
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout), forked.stderr


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[tuple[WarmPython, str]]:
    """A warm process that has imported nothing, forks for one command at a time, and is this test's alone."""
    (tmp_path / "nothing").mkdir()
    warm = WarmPython(imported=(), most=1, sources=tmp_path / "nothing")
    folder = tmp_path / "bin"
    folder.mkdir()
    warm.install(folder)
    yield warm, str(folder / "python")
    warm.close()


def test_it_tells_whom_it_killed_and_why(cold: tuple[WarmPython, str]) -> None:
    warm, python = cold
    assert warm.told() == ""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    caller = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    fork = int(caller.stdout.readline())
    assert run(python, "-c", "print(2)").stdout == "2\n", "by an interpreter of its own"
    assert warm.told().endswith(": 1 commands at a time: the next one gets a fresh interpreter\n")
    caller.kill()
    caller.wait(60)
    await_end(fork)
    assert warm.told().endswith(f": {fork} is killed: its caller is gone\n")
    assert len(warm.told().splitlines()) == 2


def test_it_kills_what_runs_when_the_tests_end_and_says_that_it_ended(cold: tuple[WarmPython, str]) -> None:
    warm, python = cold
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    caller = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    fork = int(caller.stdout.readline())
    warm.end()
    await_end(fork)
    assert caller.wait(60) == -signal.SIGKILL
    told = warm.told().splitlines()
    assert told[0].endswith(f": {fork} is killed: the tests have ended")
    assert told[-1] == "warm python: ended with 0"
    assert run(python, "-c", "print(3)").stdout == "3\n", "without it every command gets an interpreter of its own"
