"""What one process does with a request, by protocol: microseconds of a single row, rows a second of large batches.

The whole ASGI application is asked in this process, on one core: body read, parsed, checked, routed, encoded, scored,
logged and put into words, without a socket. Processor time is measured, which neighbours
on the same cores change less than any wait. The model is a HistGradientBoosting of 12 columns, as in the comparison of
servers.
"""

import asyncio
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pandas as pd
import yaml
from _figures import Figures, arguments

from clearway.bundle import pack, payload_digest
from clearway.columns import LABEL
from clearway.encoding import InputSchema
from clearway.files import write_json
from clearway.ledger import GENESIS, Change, append
from clearway.model import load_estimator
from clearway.params import Params, load_params
from clearway.prediction_log import PredictionLog
from clearway.routing import RoutingTable, write_routing
from clearway.serving.app import build_app
from clearway.serving.state import Follower
from clearway.training import train
from clearway.workspace import Workspace

NUMERIC = tuple(f"n{place}" for place in range(8))
CATEGORICAL = tuple(f"c{place}" for place in range(4))
BATCH = 1000
JSON = "application/json"


def make_project(folder: Path) -> tuple[Params, Workspace, pd.DataFrame]:
    """A project whose environment ``production`` serves a trained model at 90% and a simpler one at 10%."""
    params = {
        "project": {"name": "batches"},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "label"},
        "train": {"estimator": "sklearn.ensemble.HistGradientBoostingClassifier"},
        "environments": {"production": {"port": 0}},
        "serving": {"max_body_bytes": 10_000_000},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    workspace, random = Workspace(folder), np.random.default_rng(1)
    columns: dict[str, Any] = {name: random.normal(0, 1, 20_000).round(3) for name in NUMERIC}
    columns |= {name: random.choice(["a", "b", "c", "d"], 20_000) for name in CATEGORICAL}
    frame = pd.DataFrame(columns)
    frame.loc[::7, "n3"] = np.nan
    frame[LABEL] = (frame["n0"] + frame["n1"] * (frame["c0"] == "a") + random.normal(0, 1, 20_000) > 0).astype(float)
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {"numeric": NUMERIC, "categorical": CATEGORICAL, "declared": {}, "definitions_sha256": "0" * 64}
    write_json(workspace.features / "features.json", described)
    loaded = load_params(workspace.params_file)
    train(loaded, workspace)
    rows = frame.drop(columns=LABEL)
    digests = [_keep(payload, rows.head(8), workspace) for payload in (workspace.model, workspace.baseline)]
    where = workspace.environment("production")
    change = Change(
        action="deploy", stable=digests[0], canary=digests[1], canary_weight=10, actor="benchmark", reason="benchmark"
    )
    entry = append(where, "production", change, expected_head=GENESIS)
    table = RoutingTable(
        environment="production", revision=1, ledger_hash=entry.hash, salt="x", stable=digests[0], canary=digests[1],
        canary_weight=10,
    )  # fmt: skip
    write_routing(where / "routing.json", table)
    return loaded, workspace, rows


def _keep(payload: Path, golden: pd.DataFrame, workspace: Workspace) -> str:
    digest = payload_digest(payload)
    schema = InputSchema.model_validate_json((payload / "schema.json").read_bytes())
    scores = load_estimator(payload, digest).predict_proba(schema.encode(golden))[:, 1].tolist()
    content = {"rows": json.loads(golden.to_json(orient="records")), "scores": scores}
    pack(payload, {"golden.json": json.dumps(content).encode()}, workspace.bundles / digest)
    return digest


async def ask(app: Any, path: str, body: bytes, kind: str) -> int:
    """One request as an ASGI server makes it; the status."""
    headers = [(b"host", b"x"), (b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": "",
    }  # fmt: skip
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


def requests_of(frame: pd.DataFrame, name: str) -> dict[str, tuple[str, bytes, str]]:
    """The same rows in each protocol: path, body, content type."""
    plain = frame.astype("object").where(frame.notna(), None)
    rows, columns = plain.to_dict(orient="records"), plain.to_dict(orient="list")
    split = {"columns": list(columns), "data": list(zip(*columns.values(), strict=True))}
    tensors = [
        {"name": each, "shape": [len(rows)], "datatype": "BYTES" if each in CATEGORICAL else "FP64", "data": values}
        for each, values in columns.items()
    ]
    return {
        "rows": ("/predict", orjson.dumps({"rows": rows}), JSON),
        "tensors": (f"/v2/models/{name}/infer", orjson.dumps({"inputs": tensors}), JSON),
        "dataframe_split": ("/invocations", orjson.dumps({"dataframe_split": split}), JSON),
        "csv": ("/invocations", frame.to_csv(index=False).encode(), "text/csv"),
    }


async def measure(params: Params, workspace: Workspace, rows: pd.DataFrame, seconds: float, figures: Figures) -> None:
    log = PredictionLog(workspace.environment("production") / "predictions")
    follower = Follower(params, workspace, "production")
    app = build_app(params.serving, "production", follower, log, params.model_name)
    async with app.router.lifespan_context(app):
        while follower.active is None:
            await asyncio.sleep(0.01)
        single = rows.head(1).to_dict(orient="records")[0]
        many = requests_of(rows.iloc[1 : BATCH + 1], params.model_name)
        one = {"row": ("/predict", orjson.dumps(single), JSON)}
        one |= {name: asked for name, asked in requests_of(rows.iloc[1:2], params.model_name).items() if name != "rows"}
        for name, asked in one.items():
            taken = await _best(app, asked, seconds)
            if taken is not None:
                figures.add(f"µs of one row: {name}", taken * 1e6)
        for name, asked in many.items():
            taken = await _best(app, asked, seconds)
            if taken is not None:
                figures.add(f"rows/s in batches of {BATCH}: {name}", BATCH / taken)


async def _best(app: Any, asked: tuple[str, bytes, str], seconds: float) -> float | None:
    """Seconds of one request: the median of ten rounds; None where the server does not speak the protocol."""
    if await ask(app, *asked) != 200:
        return None
    rounds = []
    for _ in range(10):
        count, started = 0, time.process_time()
        while time.process_time() - started < seconds / 10:
            await ask(app, *asked)
            count += 1
        rounds.append((time.process_time() - started) / count)
        await asyncio.sleep(0)
    return float(np.median(rounds))


def main() -> int:
    chosen = arguments(__doc__ or "")
    figures = Figures(Path(__file__).stem)
    with TemporaryDirectory() as folder:
        params, workspace, rows = make_project(Path(folder))
        asyncio.run(measure(params, workspace, rows, 0.5 if chosen.quick else 5.0, figures))
    return figures.finish(check=chosen.check, quick=chosen.quick)


if __name__ == "__main__":
    raise SystemExit(main())
