"""Limits of training: named with what was measured, enforced inside a call into C, and nothing half-written remains."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from clearway.errors import ClearwayError
from clearway.params import ResourceParams
from clearway.resources import MB, ended_by, exceeded, family_memory, names_memory, peak_bytes, peak_memory_mb

PROGRAM = """
import sys, time
from pathlib import Path
from clearway.cli import run
from clearway.files import atomic_directory, write_text
from clearway.params import ResourceParams
from clearway.resources import supervise
from clearway.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))

def main():
    supervise(ResourceParams(**LIMITS), workspace)
    with atomic_directory(workspace.model) as made:
        (made / "half").write_text("written")
BODY

run(main)
"""


def ran(folder: Path, limits: dict[str, float], body: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("LIMITS", repr(limits)).replace("BODY", textwrap.indent(textwrap.dedent(body), " " * 8))
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_within_the_limits_is_left_alone() -> None:
    limits = ResourceParams(memory_mb=100, time_limit_seconds=5)
    assert exceeded(limits, memory_bytes=100 * MB, processes=1, seconds=5) == ""
    assert exceeded(ResourceParams(), memory_bytes=10**12, processes=9, seconds=10**6) == ""


def test_the_limit_that_is_exceeded_is_named_with_what_was_measured() -> None:
    limits = ResourceParams(memory_mb=100, time_limit_seconds=5)
    memory = exceeded(limits, memory_bytes=123 * MB, processes=3, seconds=1.25)
    assert memory.startswith("train.resources.memory_mb = 100: training took 123 MB in 3 processes after 1.2 s")
    late = exceeded(limits, memory_bytes=MB, processes=1, seconds=5.5)
    assert late.startswith("train.resources.time_limit_seconds = 5: training took 5.5 s")


def test_an_end_by_the_system_is_told_from_an_end_of_its_own() -> None:
    assert ended_by(1, MB) == ""
    assert re.search(r"ended by SIGKILL, at 512 MB: the system may have run out of memory", ended_by(-9, 512 * MB))
    assert ended_by(-signal.SIGSEGV, MB) == "training was ended by SIGSEGV, at 1 MB"


def test_time_is_up_inside_a_call_that_never_lets_go_of_the_interpreter(tmp_path: Path) -> None:
    done = ran(tmp_path, {"time_limit_seconds": 0.6}, "sum(range(10**13))")
    assert done.returncode == 1
    assert re.fullmatch(r"error: train\.resources\.time_limit_seconds = 0\.6: training took .* s and .*\n", done.stderr)
    assert left(tmp_path) == []
    assert list(tmp_path.rglob(".*")) == []


def test_memory_of_a_process_that_training_started_counts(tmp_path: Path) -> None:
    hungry = "import time; held = bytearray(150 * 2**20); time.sleep(60)"
    body = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", {hungry!r}])
        Path(sys.argv[1], "pid").write_text(str(child.pid))
        child.wait()
    """
    done = ran(tmp_path, {"memory_mb": 150}, body)
    assert done.returncode == 1
    assert re.search(r"train\.resources\.memory_mb = 150: training took [\d,]+ MB in 2 processes", done.stderr)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert left(tmp_path) == ["pid"]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("from clearway.errors import UsageError; raise UsageError('no such thing')", 2, "error: no such thing\n"),
    ],
)
def test_what_ends_by_itself_ends_as_without_limits(tmp_path: Path, body: str, code: int, said: str) -> None:
    done = ran(tmp_path, {"memory_mb": 1000, "time_limit_seconds": 60}, body)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_failed_allocation_is_one_line() -> None:
    @names_memory
    def train(params: object) -> None:
        raise MemoryError("Unable to allocate 8 TiB\nfor an array")

    params = SimpleNamespace(train=SimpleNamespace(resources=ResourceParams(memory_mb=500)))
    with pytest.raises(ClearwayError, match=r"^train\.resources\.memory_mb = 500: training took [\d,]+ MB.*8 TiB for"):
        train(params)


def test_the_peak_counts_workers_that_are_there() -> None:
    hungry = "held = bytearray(100 * 2**20); print(flush=True); input()"
    alone = peak_memory_mb()
    with subprocess.Popen([sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert peak_memory_mb() > alone + 100
        taken, processes = family_memory(psutil.Process())
        assert processes >= 2
        assert taken > 100 * MB
        worker.kill()
    assert peak_bytes(worker.pid) == 0
    assert peak_bytes(os.getpid()) > 10 * MB
