"""Deploy the model of the project ``sensors``, and say what to ask of it: ``sensors_model.py PROJECT REQUESTS``.

Writes ``requests.json`` (to the line's server) and ``requests_feast.json`` (to ``feast serve``), each REQUESTS bodies
for sensors drawn at random; ``holds`` is what every answer must contain. ``expected.json`` has the features of some
sensors and the model's score of them, by scikit-learn.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import _feast_repository  # noqa: F401
import pandas as pd
from sensors import FIELDS, PATH, VIEW

from clearway.bundle import pack, payload_digest
from clearway.encoding import InputSchema
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.model import load_estimator
from clearway.params import load_params
from clearway.routing import RoutingTable, write_routing
from clearway.workspace import Workspace

EXPECTED = 64


def expected(workspace: Workspace, latest: pd.DataFrame) -> list[dict[str, Any]]:
    """Features and scores of some sensors, as training would have them."""
    rows = latest.head(EXPECTED)
    schema = InputSchema.model_validate_json((workspace.model / "schema.json").read_bytes())
    scores = load_estimator(workspace.model, payload_digest(workspace.model)).predict_proba(schema.encode(rows))[:, 1]
    made = rows[list(FIELDS)].to_dict(orient="records")
    return [
        {"sensor": sensor, "features": row, "score": float(score)}
        for sensor, row, score in zip(rows["sensor"], made, scores, strict=True)
    ]


def deploy(workspace: Workspace, known: list[dict[str, Any]]) -> str:
    """Pack the model with golden rows, and put it in production."""
    digest = payload_digest(workspace.model)
    golden = {"rows": [row["features"] for row in known], "scores": [row["score"] for row in known]}
    pack(workspace.model, {"golden.json": json.dumps(golden).encode()}, workspace.bundles / digest)
    environment = "production"
    folder = workspace.environment(environment)
    change = Change(action="deploy", stable=digest, canary=None, canary_weight=0, actor="benchmark", reason="measured")
    entry = append(folder, environment, change, expected_head=head_hash(read_ledger(folder, environment)))
    table = RoutingTable(
        environment=environment,
        revision=entry.sequence,
        ledger_hash=entry.hash,
        salt="benchmark",
        stable=digest,
        canary=None,
        canary_weight=0,
    )
    write_routing(folder / "routing.json", table)
    return digest


def main() -> None:
    workspace, count = Workspace(Path(sys.argv[1])), int(sys.argv[2])
    asked_at = load_params(workspace.params_file).time()
    assert asked_at is not None
    readings = pd.read_parquet(workspace.root / PATH).sort_values("known_at", kind="stable")
    latest = readings.drop_duplicates("sensor", keep="last").reset_index(drop=True)
    known = expected(workspace, latest)
    digest = deploy(workspace, known)
    chance = random.Random(11)
    sensors = [str(sensor) for sensor in latest["sensor"]]
    drawn = [chance.choice(sensors) for _ in range(count)]
    features = [f"{VIEW}:{field}" for field in FIELDS]
    plans = {
        "requests": ("/predict", '"score"', [question(sensor, asked_at.isoformat()) for sensor in drawn]),
        "requests_feast": (
            "/get-online-features",
            "PRESENT",
            [{"features": features, "entities": {"sensor": [sensor]}} for sensor in drawn],
        ),
    }
    for name, (path, holds, bodies) in plans.items():
        content = {"path": path, "holds": holds, "bodies": [json.dumps(body) for body in bodies]}
        (workspace.root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    said = [{**row, "body": question(row["sensor"], asked_at.isoformat())} for row in known]
    (workspace.root / "expected.json").write_text(json.dumps(said), encoding="utf-8")
    print(json.dumps({"digest": digest, "sensors": len(sensors)}))


def question(sensor: str, asked_at: str) -> dict[str, str]:
    """What a caller sends: the key, and no feature."""
    return {"entity": sensor, "asked_at": asked_at, "sensor": sensor}


if __name__ == "__main__":
    main()
