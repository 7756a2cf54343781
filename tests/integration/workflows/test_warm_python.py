"""A command that is forked from a warm process is, to whoever calls it, the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from act_runner import warm_python

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
        deadline = time.monotonic() + 60
        while psutil.pid_exists(fork):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert ends == [9, -signal.SIGKILL]
