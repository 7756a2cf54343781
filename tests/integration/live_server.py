"""A real server process for tests: started, deployed to, asked, and stopped by its id."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearway.bundle import pack, payload_digest
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.routing import RoutingTable, write_routing
from clearway.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Server:
    """A running server, and the hands that deploy to it."""

    workspace: Workspace
    environment: str
    process: "subprocess.Popen[str]"
    port: int
    local: threading.local = field(default_factory=threading.local)

    @property
    def folder(self) -> Path:
        return self.workspace.environment(self.environment)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null"), {k.lower(): v for k, v in answer.getheaders()}

    def predict(self, body: Any, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        return self.ask("POST", "/predict", json.dumps(body).encode(), content_type="application/json", **headers)

    def state(self) -> dict[str, Any]:
        return self.ask("GET", "/")[1]

    def deploy(self, stable: str, canary: str | None = None, weight: int = 0, wait: bool = True) -> RoutingTable:
        table = deploy(self.folder, stable, canary, weight)
        if wait:
            until(lambda: self.state()["revision"] == table.revision, f"revision {table.revision}: {self.state()}")
        return table

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


def deploy(folder: Path, stable: str, canary: str | None = None, weight: int = 0) -> RoutingTable:
    """What a deployment leaves behind: an entry of the ledger, and the table that follows from it."""
    change = Change(action="deploy", stable=stable, canary=canary, canary_weight=weight, actor="test", reason="test")
    entry = append(folder, folder.name, change, expected_head=head_hash(read_ledger(folder, folder.name)))
    table = RoutingTable(
        environment=folder.name,
        revision=entry.sequence,
        ledger_hash=entry.hash,
        salt="pepper",
        stable=stable,
        canary=canary,
        canary_weight=weight,
    )
    write_routing(folder / "routing.json", table)
    return table


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s: {what}"
        time.sleep(0.02)


def keep(payload: Path, rows: list[Any], scores: list[float], workspace: Workspace) -> str:
    digest = payload_digest(payload)
    golden = json.dumps({"rows": rows, "scores": scores}).encode()
    pack(payload, {"golden.json": golden}, workspace.bundles / digest)
    return digest


def start(workspace: Workspace, environment: str, log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "scripts/serve.py", "--env", environment, "--project", str(workspace.root)]
    with log.open("w") as stream:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT, text=True)


def _pid_in(record: Path) -> int | None:
    return int(json.loads(record.read_text())["pid"]) if record.exists() else None


@contextmanager
def running(workspace: Workspace, environment: str = "staging") -> Iterator[Server]:
    log = workspace.root / "server.log"
    process = start(workspace, environment, log)
    try:
        record = workspace.environment(environment) / "server.json"
        # a server that was killed leaves its record behind: wait for this one's own
        until(lambda: process.poll() is not None or _pid_in(record) == process.pid, "server.json")
        assert process.poll() is None, log.read_text()
        made = Server(workspace, environment, process, json.loads(record.read_text())["port"])
        if (workspace.environment(environment) / "routing.json").exists():
            until(lambda: made.ask("GET", "/v2/health/ready")[0] == 200, "ready")
        yield made
    finally:
        process.kill()
        process.wait(10)
