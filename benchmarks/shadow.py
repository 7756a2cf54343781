"""What a shadow costs callers: latency under a steady load without one, and beside one that works, hangs and dies.

One model, trained by the line itself, serves; another answers copies. Requests fall due by chance at a fixed rate
(``tools/load.py``), so that whatever keeps the server busy is seen in their latency.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _servers
import numpy as np
import pandas as pd
import psutil
import yaml
from _figures import HERE, Figures, arguments

from clearway.bundle import pack, payload_digest
from clearway.columns import LABEL
from clearway.deployment import deploy, end_shadow, open_shadow
from clearway.encoding import InputSchema
from clearway.files import write_json
from clearway.local_target import Server, describe_server, find_server, stop
from clearway.model import load_estimator
from clearway.params import Params, load_params
from clearway.training import train
from clearway.workspace import Workspace

ENVIRONMENT = "staging"
NUMERIC = [f"number_{position}" for position in range(10)]
CLIENTS, RATE, ROWS, REQUESTS = 32, 400, 5000, 1000
WHO = {"actor": "benchmark", "reason": "measured"}
QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


def make(workspace: Workspace, table: pd.DataFrame, seed: int) -> str:
    """Train, pack and keep a version as the line does; its digest."""
    environments = {ENVIRONMENT: {"port": 0}, "production": {"port": 0, "requires": ENVIRONMENT}}
    params = {
        "project": {"name": "numbers"},
        "seed": seed,
        "sources": {"numbers": {"kind": "csv", "path": "numbers.csv"}},
        "data": {"table": "numbers", "label": "yes"},
        "environments": environments,
    }
    workspace.params_file.write_text(yaml.safe_dump(params))
    workspace.features.mkdir(parents=True, exist_ok=True)
    table.to_parquet(workspace.features / "training.parquet")
    described = {"numeric": NUMERIC, "categorical": [], "declared": {}, "definitions_sha256": "0" * 64}
    write_json(workspace.features / "features.json", described)
    train(load_params(workspace.params_file), workspace)
    digest, golden = payload_digest(workspace.model), table[NUMERIC].head(16)
    schema = InputSchema.model_validate_json((workspace.model / "schema.json").read_bytes())
    scores = load_estimator(workspace.model, digest).predict_proba(schema.encode(golden))[:, 1]
    content = {"rows": golden.to_dict(orient="records"), "scores": scores.tolist()}
    pack(workspace.model, {"golden.json": json.dumps(content).encode()}, workspace.bundles / digest)
    return digest


def numbers(random: np.random.Generator) -> pd.DataFrame:
    table = pd.DataFrame(random.normal(100, 30, (ROWS, len(NUMERIC))).round(2), columns=NUMERIC)
    table[LABEL] = (table["number_0"] - table["number_1"] + random.normal(0, 30, ROWS) > 20).astype("float64")
    return table


def load(server: Server, plan: Path, seconds: float) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "tools" / "load.py"), "open", str(server.port), str(plan)]
    done = subprocess.run([*command, str(CLIENTS), str(RATE), str(seconds)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def signalled(server: Server, number: signal.Signals, every: float) -> Iterator[None]:
    """Send a signal to the shadow's process again and again, whichever that is."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(((describe_server(server) or {}).get("shadow") or {}).get("pid"), number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def measure(
    figures: Figures, params: Params, workspace: Workspace, versions: list[str], seconds: float, rounds: int
) -> None:
    stable, shadow = versions
    plan = workspace.root / "requests.json"
    random = np.random.default_rng(8)
    rows = numbers(random)[NUMERIC].head(REQUESTS).to_dict(orient="records")
    bodies = [json.dumps({"entity": f"e{number}", **row}) for number, row in enumerate(rows)]
    plan.write_text(json.dumps({"path": "/predict", "holds": '"score"', "bodies": bodies}))
    deploy(params, workspace, ENVIRONMENT, stable, **WHO)
    server = find_server(workspace, ENVIRONMENT)
    assert server is not None
    load(server, plan, 2.0)  # warm
    troubles = {"none": None, "working": None, "hanging": (signal.SIGSTOP, 1.0), "dying": (signal.SIGKILL, 2.0)}
    measured: dict[str, list[float]] = {}
    for _ in range(rounds):  # in turn, so that what else the machine does meets all of them
        for name, trouble in troubles.items():
            end_shadow(params, workspace, ENVIRONMENT, **WHO)
            if name != "none":
                open_shadow(params, workspace, ENVIRONMENT, shadow, **WHO)
            spent = processor_seconds(server)
            with signalled(server, *trouble) if trouble else contextlib.nullcontext():
                found = load(server, plan, seconds)
            spent = processor_seconds(server) - spent
            for quantile in QUANTILES:
                measured.setdefault(f"shadow {name}: {quantile}", []).append(found[quantile])
            measured.setdefault(f"shadow {name}: server's processor ms a request", []).append(
                1000 * spent / max(found["requests"], 1)
            )
            measured.setdefault(f"shadow {name}: errors", []).append(found["errors"])
    for figure, values in measured.items():
        figures.add(figure, max(values) if figure.endswith("errors") else statistics.median(values))


def processor_seconds(server: Server) -> float:
    """Of the server's process itself, so far; neighbours change it less than any wait."""
    spent = psutil.Process(server.pid).cpu_times()
    return float(spent.user + spent.system)


def main() -> int:
    options = arguments(__doc__ or "")
    figures = Figures("shadow")
    os.environ.update(_servers.environment())
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        table = numbers(np.random.default_rng(12))
        versions = [make(workspace, table, 1), make(workspace, table.head(ROWS // 2), 2)]
        try:
            params = load_params(workspace.params_file)
            measure(figures, params, workspace, versions, *((3.0, 1) if options.quick else (15.0, 3)))
        finally:
            stop(workspace, ENVIRONMENT)
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
