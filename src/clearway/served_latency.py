"""How long a model takes to answer through the real server: HTTP, checks, encoding and log included.

The server is that of ``scripts/serve.py``, on a free port of the loopback, in a project folder made for it and removed
again: nothing of the project's own state is read or written. It is asked rows that carry all features, so that it needs
no feature store: how long a store takes says nothing of the model.
"""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml

from clearway.bundle import pack, payload_digest
from clearway.errors import ClearwayError
from clearway.files import canonical_json, read_json, write_json
from clearway.gates import Gate, Status
from clearway.ledger import GENESIS, Change, append
from clearway.local_target import Server, describe_server, find_server
from clearway.model import FEATURES, Model
from clearway.params import Params
from clearway.project_folder import HOME
from clearway.routing import RoutingTable, write_routing
from clearway.workspace import Workspace

ENVIRONMENT = "gate"
ASKED, WARM_UP = 300, 50
START_SECONDS, ASK_SECONDS, STOP_SECONDS = 60.0, 30.0, 10.0
_POLL_SECONDS = 0.02
_STORED = ("definitions", "feature_service")


@dataclass(frozen=True)
class ServedLatency:
    """What the server took; all None where it could not be measured."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    rss_mb: float | None = None
    """Resident memory afterwards of the largest process of the server, which is the one that answers; in MB of 2²⁰
    bytes."""
    requests: int = 0
    problem: str = ""
    """Why it was not measured."""


def served_latency_gate(served: ServedLatency, max_p95_ms: float, max_p99_ms: float | None = None) -> Gate:
    """The 95th percentile of answers through the server, and the 99th where it is limited; not measured is a fail."""
    name = "served_latency_p95_ms"
    p95, p99 = served.p95_ms, served.p99_ms
    if p95 is None or p99 is None or not np.isfinite([p95, p99]).all():
        detail = f"latency through the server was not measured: {served.problem or 'no number'}"
        return Gate(name, "fail", detail, threshold=max_p95_ms, n=served.requests)
    passed = p95 <= max_p95_ms and (max_p99_ms is None or p99 <= max_p99_ms)
    also = "" if max_p99_ms is None else f" and p99 at most {max_p99_ms:g} ms"
    detail = (
        f"answers through the server take p50 {served.p50_ms:.3g}, p95 {p95:.3g}, p99 {p99:.3g} ms, p95 at most "
        f"{max_p95_ms:g} ms{also} is allowed"
    )
    return Gate(name, "pass" if passed else "fail", detail, p95, threshold=max_p95_ms, n=served.requests)


def served_memory_gate(served: ServedLatency, max_mb: float) -> Gate:
    """The process that has answered takes at most ``max_mb`` (2²⁰ bytes each) of memory; not measured is a fail."""
    name = "served_memory_mb"
    if served.rss_mb is None or not np.isfinite(served.rss_mb):
        detail = f"memory of the server was not measured: {served.problem or 'no number'}"
        return Gate(name, "fail", detail, threshold=max_mb, n=served.requests)
    detail = (
        f"after {served.requests:,} requests the server's process takes {served.rss_mb:.0f} MB, at most {max_mb:g} MB "
        "are allowed"
    )
    status: Status = "pass" if served.rss_mb <= max_mb else "fail"
    return Gate(name, status, detail, served.rss_mb, threshold=max_mb, n=served.requests)


def measure_served(params: Params, payload: Path, model: Model, frame: pd.DataFrame) -> ServedLatency:
    """Serve the payload and ask it single rows over one connection that is kept alive, after a warm-up.

    Parameters
    ----------
    params : Params
        ``serving`` and ``gates.onnx_tolerance`` apply as in production.
    payload : Path
        Folder of the payload.
    model : Model
        Loaded from it: the digest that the payload must still have, and the scores that the server must find too.
    frame : DataFrame of shape (rows, …)
        Rows to ask, with the model's features; asked in turn.

    Returns
    -------
    ServedLatency
        Without numbers, and the reason, where the server does not start, or refuses a row.
    """
    with TemporaryDirectory(prefix="clearway-gate-") as folder:
        try:
            workspace = Workspace(Path(folder))
            bodies = _rows(frame, model)
            _prepare(workspace, params, payload, model, bodies)
            with _serving(workspace, own_classes=model.session is None) as server:
                return _ask(server, [json.dumps(row).encode() for row in bodies])
        except (ClearwayError, OSError, http.client.HTTPException, ValueError, psutil.Error) as error:
            return ServedLatency(problem=" ".join(f"{error}".split()) or type(error).__name__)


def _rows(frame: pd.DataFrame, model: Model) -> list[dict[str, Any]]:
    """Rows as a caller would send them."""
    if frame.empty:
        raise ClearwayError("there are no rows to ask")
    rows = frame.head(ASKED)[list(model.schema.names)]
    plain = rows.astype("object").where(rows.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict(orient="records")]


def _prepare(
    workspace: Workspace, params: Params, payload: Path, model: Model, rows: Sequence[Mapping[str, Any]]
) -> None:
    """A project of one flat table in which the payload is deployed.

    What the payload records of stored features is left out of the copy, and its digest with it: the server would import
    them and open their store, which takes seconds and is never asked.
    """
    settings = {
        "project": {"name": ENVIRONMENT},
        "sources": {ENVIRONMENT: {"kind": "csv", "path": "none.csv"}},
        "data": {"table": ENVIRONMENT, "label": "label"},
        "gates": {"onnx_tolerance": params.gates.onnx_tolerance},
        "trust": params.trust.model_dump(mode="json"),  # its own ledger vouches for what was loaded here already
        "serving": params.serving.model_dump(mode="json"),
        "environments": {ENVIRONMENT: {"host": "127.0.0.1", "port": 0}},
    }
    workspace.params_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    copied = workspace.build / "payload"
    shutil.copytree(payload, copied)
    found = payload_digest(copied)
    if found != model.digest:
        raise ClearwayError(f"{payload} has changed since it was loaded: expected digest {model.digest}, found {found}")
    described = read_json(copied / FEATURES)
    write_json(copied / FEATURES, {key: value for key, value in described.items() if key not in _STORED})
    digest = payload_digest(copied)
    golden = list(rows[:8])
    scores = model.output(model.schema.encode(pd.DataFrame(golden))).tolist()
    pack(copied, {"golden.json": canonical_json({"rows": golden, "scores": scores})}, workspace.bundles / digest)
    place = workspace.environment(ENVIRONMENT)
    change = Change(action="deploy", stable=digest, canary=None, canary_weight=0, actor="gate", reason="latency")
    entry = append(place, ENVIRONMENT, change, expected_head=GENESIS)
    table = RoutingTable(
        environment=ENVIRONMENT, revision=entry.sequence, ledger_hash=entry.hash, salt="gate", stable=digest
    )
    write_routing(place / "routing.json", table)


@contextlib.contextmanager
def _serving(workspace: Workspace, *, own_classes: bool) -> Iterator[Server]:
    """The running server of the project, ready to answer; ended by its id on leaving, whatever happened."""
    log = workspace.root / "server.log"
    command = [
        sys.executable,
        str(HOME / "scripts" / "serve.py"),
        "--env",
        ENVIRONMENT,
        "--project",
        str(workspace.root),
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=workspace.root,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_own(own_classes),
        )
    try:
        yield _await(process, workspace, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _own(own_classes: bool) -> dict[str, str]:
    """The environment without what would point a project elsewhere, and with what this process can import."""
    found = {name: value for name, value in os.environ.items() if name != "CLEARWAY_PROJECT"}
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} if own_classes else found


def _await(process: "subprocess.Popen[bytes]", workspace: Workspace, log: Path) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClearwayError(f"the server did not start: {_last_words(log)}")
        server = find_server(workspace, ENVIRONMENT)
        answer = describe_server(server) if server is not None else None
        if server is not None and answer is not None:
            if answer.get("error"):
                raise ClearwayError(f"the server refuses the model: {answer['error']}")
            if answer.get("revision"):
                return server
        time.sleep(_POLL_SECONDS)
    raise ClearwayError(f"the server was not ready after {START_SECONDS:g} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _ask(server: Server, bodies: Sequence[bytes]) -> ServedLatency:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=ASK_SECONDS)
    headers = {"content-type": "application/json"}
    taken = []
    deadline = time.monotonic() + ASK_SECONDS
    try:
        for turn in range(WARM_UP + ASKED):
            began = time.perf_counter()
            connection.request("POST", "/predict", bodies[turn % len(bodies)], headers)
            answer = connection.getresponse()
            content = answer.read()
            taken.append(1000 * (time.perf_counter() - began))
            if answer.status != 200:
                raise ClearwayError(f"the server answers {answer.status}: {content.decode('utf-8', 'replace')[:200]}")
            if time.monotonic() > deadline:
                break
    finally:
        connection.close()
    measured = taken[WARM_UP:] if len(taken) > WARM_UP else taken  # so slow a model needs no warm-up to be judged
    p50, p95, p99 = (float(value) for value in np.quantile(measured, [0.5, 0.95, 0.99]))
    return ServedLatency(p50, p95, p99, _largest_mb(server.pid), len(measured))


def _largest_mb(pid: int) -> float:
    """Resident memory of the largest process of a server: ``pid`` starts workers, and only these load the model."""
    server = psutil.Process(pid)
    return float(max(each.memory_info().rss for each in (server, *server.children(recursive=True))) / 2**20)
