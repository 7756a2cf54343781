"""A model to serve, the same for every tool: ``serving_model.py FOLDER WORKERS [onnx|sklearn]``.

Ten numbers and two categories into a gradient boosting of 100 trees. Writes FOLDER/project, whose environment
``production`` has two versions of it deployed, the second as a canary at 10%; FOLDER/pipeline.joblib, scikit-learn's
pipeline from a DataFrame to the probability, as the other tools serve it; and FOLDER/rows.json, rows and their scores.
"""

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import yaml
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from clearway.bundle import pack, payload_digest
from clearway.columns import LABEL
from clearway.files import write_json
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.params import load_params
from clearway.routing import project_routing, write_routing
from clearway.training import train
from clearway.workspace import Workspace

NUMERIC = tuple(f"number_{position}" for position in range(10))
CATEGORICAL = ("carrier", "origin")
ROWS, SERVED = 20_000, 1_000
TREES = {"max_iter": 100, "max_leaf_nodes": 31, "min_samples_leaf": 100, "early_stopping": False}


def table() -> pd.DataFrame:
    """Questions with their answers."""
    random = np.random.default_rng(12)
    frame = pd.DataFrame({name: random.normal(100, 30, ROWS).round(2) for name in NUMERIC})
    frame["carrier"] = random.choice([f"C{number}" for number in range(16)], ROWS)
    frame["origin"] = random.choice(["EWR", "JFK", "LGA"], ROWS)
    signal = (frame["number_0"] - frame["number_1"]) / 30 + (frame["origin"] == "JFK") + random.normal(0, 1, ROWS)
    frame[LABEL] = (signal > 0.8).astype("float64")
    return frame


def line_bundle(workspace: Workspace, frame: pd.DataFrame, seed: int, *, network: bool) -> str:
    """Train and pack as the line does; the digest."""
    write_params(workspace, seed, 1)
    workspace.features.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described: dict[str, Any] = {"numeric": NUMERIC, "categorical": CATEGORICAL, "declared": {}}
    write_json(workspace.features / "features.json", {**described, "definitions_sha256": "0" * 64})
    train(load_params(workspace.params_file), workspace)
    if not network:
        (workspace.model / "model.onnx").unlink()
    digest = payload_digest(workspace.model)
    from clearway.encoding import InputSchema
    from clearway.model import load_estimator

    rows = frame.drop(columns=LABEL).head(32)
    schema = InputSchema.model_validate_json((workspace.model / "schema.json").read_bytes())
    scores = load_estimator(workspace.model, digest).predict_proba(schema.encode(rows))[:, 1]
    golden = {"rows": json.loads(rows.to_json(orient="records")), "scores": scores.tolist()}
    pack(workspace.model, {"golden.json": json.dumps(golden).encode()}, workspace.bundles / digest)
    return digest


def write_params(workspace: Workspace, seed: int, workers: int) -> None:
    workspace.root.mkdir(parents=True, exist_ok=True)
    content = {
        "project": {"name": "served"},
        "seed": seed,
        "sources": {"flat": {"kind": "csv", "path": "flat.csv"}},
        "data": {"table": "flat", "label": "late"},
        "train": {"estimator": "sklearn.ensemble.HistGradientBoostingClassifier", "arguments": TREES},
        "environments": {"production": {"port": 0, "workers": workers}},
    }
    workspace.params_file.write_text(yaml.safe_dump(content))


def deploy(folder: Path, stable: str, canary: str | None) -> None:
    """An entry of the ledger, and the table that follows from it."""
    weight = 10 if canary else 0
    change = Change(
        action="deploy", stable=stable, canary=canary, canary_weight=weight, actor="benchmark", reason="measured"
    )
    append(folder, folder.name, change, expected_head=head_hash(read_ledger(folder, folder.name)))
    table = project_routing(read_ledger(folder, folder.name), "benchmark")
    assert table is not None  # there is an entry
    write_routing(folder / "routing.json", table)


def main() -> None:
    folder, workers, network = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] != ["sklearn"]
    workspace, frame = Workspace(folder / "project"), table()
    digests = [line_bundle(workspace, frame, seed, network=network) for seed in (1, 2)]
    write_params(workspace, 1, workers)
    deploy(workspace.environment("production"), digests[0], digests[1] if network else None)
    encoder = ColumnTransformer([("category", OrdinalEncoder(), list(CATEGORICAL))], remainder="passthrough")
    trees = HistGradientBoostingClassifier(**TREES, random_state=1)
    pipeline = make_pipeline(encoder, trees).fit(frame.drop(columns=LABEL), frame[LABEL])
    joblib.dump(pipeline, folder / "pipeline.joblib")
    rows = frame.drop(columns=LABEL).head(SERVED)
    scores = pipeline.predict_proba(rows)[:, 1]
    (folder / "rows.json").write_text(
        json.dumps({"rows": json.loads(rows.to_json(orient="records")), "scores": scores.tolist()})
    )
    print(json.dumps({"digests": digests}))


if __name__ == "__main__":
    main()
