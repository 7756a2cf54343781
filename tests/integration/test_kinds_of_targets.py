"""Classes and numbers through every stage: from a CSV to a bundle, a server, a log, a champion to beat, and an alarm.

Each stage is the function that its script calls, in this process; ``scripts/run_line.py`` calls the same.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from live_server import deploy
from sklearn.datasets import load_diabetes, load_wine

from clearway.bundle import payload_digest, verify
from clearway.champion import fetch_champion
from clearway.decision_history import write_past
from clearway.drift_report import check_drift
from clearway.evidence import gather_evidence
from clearway.features import build_features
from clearway.holdout_uses import count_uses
from clearway.labels import import_outcomes, read_outcomes
from clearway.model import load_model, recorded_target
from clearway.model_report import show, summary
from clearway.model_validation import Validation, validate
from clearway.monitor import monitor
from clearway.packaging import package
from clearway.params import Params, load_params
from clearway.prediction_log import PredictionLog, read_log
from clearway.project import load_project
from clearway.replay import Traffic
from clearway.schema import flat_columns
from clearway.serving.app import build_app
from clearway.serving.state import Follower
from clearway.snapshot import take_snapshot
from clearway.training import train
from clearway.validation import validate_snapshot
from clearway.workspace import Workspace

NAMES = np.array(['Barolo "DOC"', "Grignolino | <b>", "Barbera, $x$"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def wine() -> tuple[pd.DataFrame, str]:
    bunch = load_wine(as_frame=True)
    table = pd.concat([bunch.data] * 5, ignore_index=True).rename(columns=lambda name: name.replace("/", "_"))
    table += np.random.default_rng(1).normal(size=table.shape) * bunch.data.std().to_numpy() * 0.6
    table["cultivar"] = np.tile(NAMES[bunch.target], 5)
    return table, "cultivar"


def diabetes() -> tuple[pd.DataFrame, str]:
    bunch = load_diabetes(as_frame=True, scaled=False)
    random = np.random.default_rng(1)
    table = pd.concat([bunch.data] * 2, ignore_index=True)
    table += random.normal(size=table.shape) * bunch.data.std().to_numpy() * 0.2
    table["sex"] = np.tile(np.where(bunch.data["sex"] == 1, "F", "M"), 2)
    table["progression"] = 1e5 + 1e3 * (np.tile(bunch.target, 2) + random.normal(size=len(table)) * 5)
    return table, "progression"


def write_project(folder: Path, kind: str) -> Params:
    """A flat table in which one answer in fifty is missing, its schema, and params that ask for every kind of gate."""
    table, label = wine() if kind == "multiclass" else diabetes()
    table.loc[::50, label] = None
    folder.mkdir()
    table.to_csv(folder / "rows.csv", index=False)
    columns: dict[str, dict[str, Any]] = {
        name: {"kind": "str" if table[name].dtype.kind not in "if" else "float", "nullable": name == label}
        for name in table.columns
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump({"tables": {"rows": {"columns": columns}}}))
    gates: dict[str, Any] = {
        "resamples": 100,
        "through_server": False,
        "champion": {"margin": 0.2},
        "noise": {"keep": 0.85},
        "baseline_gain": -0.3,
    }
    if kind == "multiclass":
        gates |= {"calibration": {"max_error": 0.4, "champion_margin": 0.4}}
        gates |= {"slices": {"declared": ["hue"], "min_rows": 20, "bins": 2, "margin": 0.3, "floor": 0.5}}
        fair = {"attributes": ["ash"], "bins": 2, "min_rows": 20, "classes": [str(NAMES[1])]}
        gates |= {"fairness": {**fair, "max_difference": 0.9, "margin": 0.5}}
    else:
        gates |= {
            "floors": {"r2": 0.1, "mae": 60e3},
            "slices": {"declared": ["sex"], "min_rows": 20, "margin": 0.9, "floor": 0.0},
        }
        gates |= {"fairness": {"attributes": ["sex"], "min_rows": 20, "max_difference": 0.9, "margin": 0.5}}
        gates |= {"behaviour": [{"name": "bmi", "column": "bmi", "add": 5, "expect": "up", "min_share": 0.5}]}
    params = {
        "project": {"name": kind},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": label},
        "target": {"kind": kind},
        "train": {"arguments": {"max_iter": 25, "min_samples_leaf": 20}},
        "gates": gates,
        "decision": {"performance": {"min_rows": 20}},
        "drift": {"domain": {"enabled": False}},
        "environments": {"production": {"port": 0}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return load_params(folder / "params.yaml")


def stages(params: Params, workspace: Workspace) -> Validation:
    """Every stage up to the bundle, in the order of dvc.yaml."""
    project = load_project(params, flat_columns(params, workspace.root))
    take_snapshot(params, workspace, project)
    assert validate_snapshot(params, workspace).verdict == "passed"
    build_features(params, workspace, project)
    fetch_champion(params, workspace)
    write_past(params, workspace)
    check_drift(params, workspace)
    train(params, workspace)
    count_uses(workspace, at=NOW, kind=params.target.kind)
    validation = validate(params, workspace)
    package(params, workspace)
    return validation


@dataclass
class Ran:
    """A project after its first run."""

    params: Params
    workspace: Workspace
    first: Validation


@pytest.fixture(scope="module", params=["multiclass", "regression"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("kinds") / request.param
    params = write_project(folder, request.param)
    workspace = Workspace(folder)
    return Ran(params, workspace, stages(params, workspace))


def test_the_first_model_passes_every_gate_that_applies(ran: Ran) -> None:
    verdict, kind = ran.first.verdict, ran.params.target.kind
    assert verdict.verdict == "passed", verdict.reason
    names = [gate.name for gate in verdict.gates]
    assert len(names) == len(set(names))
    for wanted in (
        "rows",
        "finite_scores",
        "onnx_parity",
        "gain_over_constant",
        "gain_over_baseline",
        "target_leakage",
    ):
        assert wanted in names
    assert any(name.startswith("slice_") for name in names)
    if kind == "multiclass":
        assert {"classes", "calibration", f"fairness_ash_selection_rate_of_{NAMES[1]}_difference"} <= set(names)
    else:
        assert {"floor_mae", "behaviour_bmi", "fairness_sex_mean_error_difference"} <= set(names)
        assert not {"classes", "calibration"} & set(names)
    assert kind in (ran.workspace.reports / "model_validation.html").read_text()
    show(ran.first)
    assert summary(ran.first).count("\n| ") == len(names) + 2


def test_the_bundle_knows_what_it_answers_and_the_same_training_gives_the_same_bytes(ran: Ran) -> None:
    for digest in (ran.first.digest, ran.first.baseline_digest):
        bundle = verify(ran.workspace.bundles / digest, digest)
        target = recorded_target(bundle)
        if ran.params.target.kind == "multiclass":
            assert target.classes == tuple(sorted(NAMES))
        else:
            assert target.centre == pytest.approx(2.4e5, rel=0.1)
        model = load_model(bundle.path, digest)
        golden = json.loads(bundle.evidence("golden.json").read_bytes())
        outputs = model.output(model.schema.encode(pd.DataFrame(golden["rows"])))
        assert target.differences(outputs, np.array(golden["scores"])).max() < 1e-5
        assert ("score_map.json" in bundle.evidence_manifest.files) == bool(target.classes)
    train(ran.params, ran.workspace)
    assert payload_digest(ran.workspace.model) == ran.first.digest
    assert payload_digest(ran.workspace.baseline) == ran.first.baseline_digest


async def post(app: Any, body: bytes) -> dict[str, Any]:
    """``POST /predict`` as an ASGI server calls the app."""
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return dict(json.loads(sent[1]["body"]))


async def serve(params: Params, workspace: Workspace, bodies: list[bytes]) -> list[dict[str, Any]]:
    """The answers of a server of production, whose log is written when it stops."""
    log = PredictionLog(workspace.environment("production") / "predictions")
    follower = Follower(params, workspace, "production")
    app = build_app(params.serving, "production", follower, log, params.model_name)
    async with app.router.lifespan_context(app):
        while follower.active is None:
            assert follower.error is None, follower.error
            await asyncio.sleep(0.01)
        return [await post(app, body) for body in bodies]


@pytest.fixture(scope="module")
def served(ran: Ran) -> tuple[Ran, list[dict[str, Any]]]:
    """The first model deployed, and asked the holdout as a replay asks it."""
    deploy(ran.workspace.environment("production"), ran.first.digest)
    rows = pd.read_parquet(ran.workspace.features / "holdout.parquet")
    bodies = list(Traffic(rows, cycles=1).bodies(0, len(rows)))
    return ran, asyncio.run(serve(ran.params, ran.workspace, bodies))


def test_a_server_answers_classes_by_name_and_numbers_as_they_are(served: tuple[Ran, list[dict[str, Any]]]) -> None:
    ran, answers = served
    labels = pd.read_parquet(ran.workspace.features / "holdout.parquet")["label"]
    measured = ran.first.metrics["challenger"]
    assert measured is not None
    if ran.params.target.kind == "multiclass":
        assert np.mean([one["label"] == label for one, label in zip(answers, labels, strict=True)]) == pytest.approx(
            measured["accuracy"]
        )
        for one in answers[:20]:
            assert list(one["probabilities"]) == sorted(NAMES)
            assert one["score"] == max(one["probabilities"].values()) == one["probabilities"][one["label"]]
            assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    else:
        errors = [abs(one["label"] - label) for one, label in zip(answers, labels, strict=True)]
        assert np.mean(errors) == pytest.approx(measured["mae"], rel=1e-5)
        assert "probabilities" not in answers[0]


def test_what_was_served_is_monitored_and_so_are_imported_labels(served: tuple[Ran, list[dict[str, Any]]]) -> None:
    ran, answers = served
    log = read_log(ran.workspace.environment("production") / "predictions")
    assert log["score"].tolist() == [one["score"] for one in answers]
    assert log["probabilities"].tolist() == [one.get("probabilities") for one in answers]
    report = monitor(ran.params, ran.workspace, "production", NOW)
    checks = {check.name: check for check in report.checks}
    name = ran.params.decision.performance.metric
    measured = ran.first.metrics["challenger"]
    assert measured is not None
    assert checks["performance"].status == "pass", checks["performance"].sentence
    assert checks["performance"].observed == pytest.approx(measured[name], rel=1e-5)
    assert checks["prediction_drift"].status in ("pass", "alarm")
    again = PredictionLog(ran.workspace.environment("production") / "predictions")
    again.append({**log.iloc[-1].to_dict(), "id": "of no table", "served_at": NOW, "asked_at": None})
    again.close()
    label = answers[-1]["label"]
    file = ran.workspace.root / "outcomes.csv"
    pd.DataFrame({"id": ["of no table"], "label": [label], "labelled_at": [NOW]}).to_csv(file, index=False)
    outcomes = read_outcomes(file, ran.params)
    assert import_outcomes(ran.params, ran.workspace, "production", outcomes, NOW).taken == 1
    more = {check.name: check for check in monitor(ran.params, ran.workspace, "production", NOW).checks}
    assert more["performance"].n == (checks["performance"].n or 0) + 1


def test_the_next_challenger_is_held_against_the_champion(served: tuple[Ran, list[dict[str, Any]]]) -> None:
    ran, _ = served
    before = (ran.workspace.root / "params.yaml").read_text()
    content = yaml.safe_load(before)
    content["train"]["arguments"]["max_iter"] = 26
    label = content["data"]["label"]
    table = pd.read_csv(ran.workspace.root / "rows.csv")
    classes = ran.params.target.kind == "multiclass"
    if classes:  # a class that only the holdout knows, and only in a row or two
        table.loc[[3, 7, 11, 13, 17, 19, 23, 29], label] = "Newcomer"
        table.to_csv(ran.workspace.root / "rows.csv", index=False)
    (ran.workspace.root / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(ran.workspace.root / "params.yaml")
    second = stages(params, ran.workspace)
    gates = {gate.name: gate for gate in second.verdict.gates}
    assert second.champion_digest == ran.first.digest
    assert gates["champion"].status == "pass", gates["champion"].detail
    assert ("exact McNemar" if classes else "paired bootstrap") in gates["champion"].detail
    assert gates["schema_compatibility"].status == "pass"
    drift = json.loads((ran.workspace.reports / "drift.json").read_text())
    assert {one["name"] for one in drift["outputs"]} == {"score", "label"} | ({"answered_class"} if classes else set())
    assert ("accuracy" in drift["estimate"]["metrics"]) == classes
    evidence = gather_evidence(params, ran.workspace)
    assert evidence.performance is not None
    assert evidence.performance.now is not None
    if classes:
        assert "Newcomer" in gates["classes"].detail
        assert gates["classes"].status == "unknown"
        assert "now also answers 'Newcomer'" in gates["schema_compatibility"].detail
        assert second.verdict.verdict == "rejected"


def test_a_champion_of_another_kind_is_no_champion_to_beat(served: tuple[Ran, list[dict[str, Any]]]) -> None:
    ran, _ = served
    content = yaml.safe_load((ran.workspace.root / "params.yaml").read_text())
    content["target"] = {"kind": "binary"}
    table = pd.read_csv(ran.workspace.root / "rows.csv")
    label = content["data"]["label"]
    values = table[label]
    yes = values == NAMES[0] if ran.params.target.kind == "multiclass" else values > values.median()
    table["yes"] = np.where(values.isna(), None, np.where(yes, 1, 0))
    table.drop(columns=label).rename(columns={"yes": label}).to_csv(ran.workspace.root / "rows.csv", index=False)
    schema = yaml.safe_load((ran.workspace.root / "schema.yaml").read_text())
    schema["tables"]["rows"]["columns"][label] = {"kind": "int", "nullable": True}
    (ran.workspace.root / "schema.yaml").write_text(yaml.safe_dump(schema))
    content["gates"] = {"resamples": 100, "through_server": False}
    (ran.workspace.root / "params.yaml").write_text(yaml.safe_dump(content))
    params = load_params(ran.workspace.root / "params.yaml")
    changed = stages(params, ran.workspace)
    assert changed.verdict.verdict == "rejected"
    gates = {gate.name: gate for gate in changed.verdict.gates}
    assert gates["champion"].status == gates["schema_compatibility"].status == "fail"
    assert f"the champion answers {ran.params.target.kind}, and not binary" in gates["champion"].detail
    assert f"target was {ran.params.target.kind} and is binary" in gates["schema_compatibility"].detail
    assert gather_evidence(params, ran.workspace).performance.now is None  # type: ignore[union-attr]
    said = {check.name: check for check in monitor(params, ran.workspace, "production", NOW).checks}["performance"]
    assert said.status == "unknown"
