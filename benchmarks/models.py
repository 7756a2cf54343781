"""Models without ONNX, and many models in one server: what batches bring, what loading on demand costs the others.

The model is a boosting of 100 trees on 14 numbers and 3 categories, in the shape of the flights. Every server is a
process of its own on a free port of the loopback address, asked by a process of its own (``tools/load.py``).
"""

import http.client
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import _servers
import numpy as np
import pandas as pd
import yaml
from _figures import HERE, Figures, arguments
from _servers import Serving

MANY, FIT = 100, 5
NUMBERS, CATEGORIES = 14, 3
ROWS = 20_000
SEED = 6


def params(name: str, **sections: Any) -> dict[str, Any]:
    """Of a project with one flat table."""
    return {
        "project": {"name": name},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "yes"},
        "train": {"arguments": {"max_iter": 100, "early_stopping": False}},
        "environments": {"production": {"port": 0}},
        **sections,
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """A project folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def trained(folder: Path, *, onnx: bool) -> list[dict[str, Any]]:
    """A project whose model is live in production; rows to ask it for."""
    from clearway.bundle import pack, payload_digest
    from clearway.columns import LABEL
    from clearway.encoding import InputSchema
    from clearway.files import write_json
    from clearway.model import load_estimator
    from clearway.params import load_params
    from clearway.training import train
    from clearway.workspace import Workspace

    workspace = Workspace(folder)
    write(folder, params("bench", train={"arguments": {"max_iter": 100, "early_stopping": False}, "onnx": onnx}))
    random = np.random.default_rng(SEED)
    frame = pd.DataFrame({f"number_{place}": random.normal(size=ROWS) for place in range(NUMBERS)})
    for place in range(CATEGORIES):
        frame[f"category_{place}"] = random.choice([f"c{code:02}" for code in range(15)], ROWS)
    signal = frame["number_0"] + frame["number_1"] * frame["number_2"] + (frame["category_0"] > "c07")
    frame[LABEL] = (signal + random.normal(size=ROWS) > 0.5).astype("float64")
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    names = [name for name in frame if name != LABEL]
    described = {
        "numeric": names[:NUMBERS],
        "categorical": names[NUMBERS:],
        "declared": {},
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    train(load_params(workspace.params_file), workspace)
    digest = payload_digest(workspace.model)
    rows = json.loads(frame.drop(columns=LABEL).head(500).to_json(orient="records"))
    schema = InputSchema.model_validate_json((workspace.model / "schema.json").read_bytes())
    scores = load_estimator(workspace.model, digest).predict_proba(schema.encode(frame.head(16)))[:, 1]
    golden = json.dumps({"rows": rows[:16], "scores": scores.tolist()}).encode()
    pack(workspace.model, {"golden.json": golden}, workspace.bundles / digest)
    go_live(folder, digest)
    return list(rows)


def go_live(folder: Path, digest: str) -> None:
    """What a deployment leaves behind, without its checks."""
    from clearway.ledger import Change, append, head_hash
    from clearway.routing import RoutingTable, write_routing
    from clearway.workspace import Workspace

    place = Workspace(folder).environment("production")
    change = Change(action="deploy", stable=digest, actor="benchmark", reason="benchmark")
    entry = append(place, "production", change, expected_head=head_hash([]))
    table = RoutingTable(
        environment="production", revision=entry.sequence, ledger_hash=entry.hash, salt="clearway", stable=digest
    )
    write_routing(place / "routing.json", table)


def closed(server: Serving, plan: Path, connections: int, seconds: float) -> dict[str, Any]:
    """Load in which each connection asks again as soon as it is answered."""
    tool = [sys.executable, str(HERE / "tools" / "load.py"), "closed", str(server.port), str(plan)]
    done = subprocess.run([*tool, str(connections), str(seconds)], capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def without_onnx(figures: Figures, folder: Path, seconds: float) -> None:
    """Requests a second at 1, 8 and 32 connections, and what a row costs scikit-learn by itself."""
    rows = trained(folder, onnx=False)
    plan = folder / "plan.json"
    bodies = [json.dumps(row) for row in rows]
    plan.write_text(json.dumps({"path": "/predict", "bodies": bodies, "holds": "score"}), encoding="utf-8")
    with _servers.clearway(folder, {}) as server:
        for connections in (1, 8, 32):
            report = closed(server, plan, connections, seconds)
            assert not report.get("errors"), report
            figures.add(f"without_onnx_{connections}_rps", report["requests_per_second"])
            figures.add(f"without_onnx_{connections}_p95_ms", report["p95_ms"])


def ask(port: int, path: str, body: bytes, connection: http.client.HTTPConnection | None = None) -> float:
    """Milliseconds to the answer."""
    used = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    used.request("POST", path, body, {"content-type": "application/json"})
    answer = used.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {content[:500]!r}")
    return (time.perf_counter() - began) * 1000


def many(figures: Figures, folder: Path, rounds: int) -> None:
    """A hundred models of which five fit: how long the first answer takes, what others notice, what memory is left."""
    rows = trained(folder / "m000", onnx=True)
    names = [f"m{number:03}" for number in range(MANY)]
    for name in names[1:]:
        shutil.copytree(folder / "m000" / "var", folder / name / "var")
        write(folder / name, params(name))
    shutil.copytree(folder / "m000" / "var", folder / "own" / "var")
    hosted = {name: f"../{name}" for name in names}
    environments = {"production": {"port": 0, "models": hosted}}
    write(folder / "own", params("own", environments=environments, serving={"max_loaded_models": FIT}))
    body = json.dumps(rows[0]).encode()
    with _servers.clearway(folder / "own", {}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for name in names[:FIT]:
            ask(server.port, f"/models/{name}/predict", body, connection)
        before = server.memory_mb()
        quiet = [ask(server.port, "/predict", body, connection) for _ in range(300)]
        beside: list[float] = []
        ended = threading.Event()

        def neighbour() -> None:
            own = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            while not ended.is_set():
                beside.append(ask(server.port, "/predict", body, own))

        thread = threading.Thread(target=neighbour)
        thread.start()
        first = [ask(server.port, f"/models/{name}/predict", body, connection) for name in names * rounds]
        ended.set()
        thread.join()
        time.sleep(2.5)  # memory goes back a second after the last model
        figures.add("first_answer_p50_ms", statistics.median(first))
        figures.add("first_answer_p95_ms", statistics.quantiles(first, n=20)[18])
        figures.add("own_quiet_p99_ms", statistics.quantiles(quiet, n=100)[98])
        figures.add("own_beside_loads_p99_ms", statistics.quantiles(beside, n=100)[98])
        figures.add("memory_mb", before)
        figures.add("memory_growth", server.memory_mb() / before - 1)


def main() -> int:
    chosen = arguments(__doc__ or "", ("without_onnx", "many"))
    figures = Figures("models")
    with tempfile.TemporaryDirectory() as temporary:
        if chosen.only != "many":
            without_onnx(figures, Path(temporary) / "without", 2.0 if chosen.quick else 10.0)
        if chosen.only != "without_onnx":
            many(figures, Path(temporary) / "many", 1 if chosen.quick else 5)
    return figures.finish(check=chosen.check, quick=chosen.quick, part=chosen.only)


if __name__ == "__main__":
    sys.exit(main())
