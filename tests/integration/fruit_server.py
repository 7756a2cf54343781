"""A small model of every kind of feature, trained by the line, and the application that serves it in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from live_server import keep

from clearway.bundle import payload_digest
from clearway.columns import LABEL
from clearway.encoding import InputSchema
from clearway.files import write_json
from clearway.model import load_estimator
from clearway.params import load_params
from clearway.prediction_log import PredictionLog
from clearway.serving.app import build_app
from clearway.serving.state import Follower
from clearway.training import train
from clearway.workspace import Workspace

NAME = "fruit of the day"
"""A name that a path must quote."""
ROW: dict[str, Any] = {"weight": 180.5, "sugar": 11, "organic": True, "colour": "red", "shape": "round"}
NULLS: dict[str, Any] = {**ROW, "weight": None, "organic": None, "colour": None}
MAX_ROWS, MAX_BYTES, MAX_CONNECTIONS = 50, 65_536, 40


def make_project(root: Path) -> tuple[Workspace, str, str]:
    """A project with two bundles: the digests of the challenger and of the simple model."""
    params = {
        "project": {"name": "fruit"},
        "registry": {"model": NAME},
        "sources": {"fruit": {"kind": "csv", "path": "fruit.csv"}},
        "data": {"table": "fruit", "label": "ripe"},
        "train": {
            "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
            "arguments": {"max_iter": 5, "min_samples_leaf": 5},
        },
        "environments": {"staging": {"port": 0}, "single": {"port": 0}, "together": {"port": 0}},
        "serving": {
            "max_rows": MAX_ROWS,
            "max_body_bytes": MAX_BYTES,
            "max_connections": MAX_CONNECTIONS,
            "read_timeout_seconds": 1.5,
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    workspace, random, rows = Workspace(root), np.random.default_rng(7), 400
    frame = pd.DataFrame(
        {
            "weight": random.normal(170, 30, rows).round(1),
            "sugar": random.integers(5, 20, rows).astype("float64"),
            "organic": random.choice(["False", "True"], rows),
            "colour": random.choice(["green", "red", "yellow"], rows),
            "shape": random.choice(["long", "round"], rows),
        }
    )
    frame.loc[::9, ["weight", "organic", "colour"]] = np.nan
    frame[LABEL] = ((frame["sugar"] > 11) ^ (random.random(rows) < 0.1)).astype("float64")
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["weight", "sugar"],
        "categorical": ["organic", "colour", "shape"],
        "declared": {
            "weight": {"kind": "float", "nullable": True, "max": 1000, "severity": "warn"},
            "sugar": {"kind": "int", "min": 0, "max": 100},
            "organic": {"kind": "bool", "nullable": True},
            "colour": {"kind": "str", "nullable": True, "pattern": "[a-z]{1,12}"},
            "shape": {"kind": "str", "values": ["long", "round"]},
        },
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    train(load_params(workspace.params_file), workspace)
    golden = frame.drop(columns=LABEL).head(16)
    digests = []
    for payload in (workspace.model, workspace.baseline):
        schema = InputSchema.model_validate_json((payload / "schema.json").read_bytes())
        scores = load_estimator(payload, payload_digest(payload)).predict_proba(schema.encode(golden))[:, 1]
        digests.append(keep(payload, json.loads(golden.to_json(orient="records")), scores.tolist(), workspace))
    return workspace, digests[0], digests[1]


@asynccontextmanager
async def serving(workspace: Workspace, environment: str = "staging") -> AsyncIterator[tuple[Any, Follower]]:
    """The application that a server process would serve, once it serves what is deployed."""
    params = load_params(workspace.params_file)
    follower = Follower(params, workspace, environment)
    log = PredictionLog(workspace.environment(environment) / "predictions")
    app = build_app(params.serving, environment, follower, log, params.model_name)
    async with app.router.lifespan_context(app):
        while follower.active is None:
            assert follower.error is None, follower.error
            await asyncio.sleep(0.01)
        yield app, follower
