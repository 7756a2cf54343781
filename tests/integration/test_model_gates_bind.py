"""The gates bind: a challenger that learned nothing, lies or was damaged never becomes a bundle."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import yaml

from clearway.bundle import keep, payload_digest, verify
from clearway.drift_reference import reference_of
from clearway.errors import ClearwayError, UsageError
from clearway.files import read_json, sha256_file, write_json
from clearway.holdout_uses import count_uses
from clearway.model import load_estimator, load_model
from clearway.model_validation import Validation, validate
from clearway.packaging import package
from clearway.params import Params, load_params
from clearway.registry import register
from clearway.training import train
from clearway.workspace import Workspace

NUMERIC, CATEGORICAL = ("size", "weight", "noise"), ("colour",)


def flat_project(root: Path, **changes: Any) -> tuple[Params, Workspace]:
    """A flat project with its feature tables, as the stages before training leave them."""
    content: dict[str, Any] = {
        "project": {"name": "flat"},
        "seed": 7,
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {"arguments": {"max_iter": 30, "min_samples_leaf": 20}},
        "gates": {"floors": {"roc_auc": 0.7}, "resamples": 200, "baseline_gain": -0.05, "through_server": False},
        "environments": {"production": {"port": 0}},
    }
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    (root / "schema.yaml").write_text("tables: {}\n")
    workspace = Workspace(root)
    rows(workspace)
    write_json(workspace.snapshot, {"as_of": None, "tables": {}})
    write_json(
        workspace.champion / "champion.json", {"environment": "production", "bootstrap": True, "reason": "first"}
    )
    return load_params(workspace.params_file), workspace


def rows(workspace: Workspace, *, seed: int = 1, learnable: bool = True) -> None:
    random = np.random.default_rng(seed)
    counts = {"training": 1500, "holdout": 800}
    workspace.features.mkdir(parents=True, exist_ok=True)
    for window, count in counts.items():
        frame = pd.DataFrame({name: random.normal(size=count) for name in NUMERIC})
        frame["colour"] = pd.Series(random.choice(["red", "green", "blue"], count), dtype="string")
        odds = 2.5 * frame["weight"].abs() + frame["size"] + (frame["colour"] == "red") - 2.5
        chance = 1 / (1 + np.exp(-odds)) if learnable else np.full(count, 0.4)
        frame["label"] = (random.random(count) < chance).astype("float64")
        frame.loc[random.random(count) < 0.1, "size"] = np.nan
        frame.loc[random.random(count) < 0.1, "colour"] = pd.NA
        frame.insert(0, "row_id", [f"{window}-{i}" for i in range(count)])
        frame.insert(1, "entity", pd.Series(pd.NA, index=frame.index, dtype="string"))
        frame.to_parquet(workspace.features / f"{window}.parquet")
    described = {
        "numeric": NUMERIC,
        "categorical": CATEGORICAL,
        "declared": {},
        "definitions_sha256": "0" * 64,
        "rows": counts,
    }
    write_json(workspace.features / "features.json", described)


def judge(params: Params, workspace: Workspace) -> Validation:
    """What the stages after training do."""
    count_uses(workspace, at=datetime(2026, 1, 1, tzinfo=UTC))
    return validate(params, workspace)


def failed(validation: Validation) -> set[str]:
    return {gate.name for gate in validation.verdict.gates if gate.status != "pass"}


def assert_nothing_deployable(params: Params, workspace: Workspace) -> None:
    assert package(params, workspace).digest is None
    assert sorted(path.name for path in workspace.bundle.iterdir()) == ["outcome.json"]
    assert not list(workspace.bundles.glob("*"))
    assert register(params, workspace) is None


def replace_onnx(workspace: Workspace, change: Mapping[str, float]) -> None:
    """Damage the exported graph and re-seal the payload, as a wrong export would: p → scale · p + shift."""
    path = workspace.model / "model.onnx"
    model = onnx.load_from_string(path.read_bytes())
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "probabilities" else name for name in node.output]
        node.input[:] = ["raw" if name == "probabilities" else name for name in node.input]
    for name, value in change.items():
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [value]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["raw", "scale"], ["scaled"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["scaled", "shift"], ["probabilities"]))
    path.write_bytes(model.SerializeToString())
    training = read_json(workspace.reports / "training.json")
    training["challenger"]["digest"] = payload_digest(workspace.model)
    write_json(workspace.reports / "training.json", training)


def promote(params: Params, workspace: Workspace) -> str:
    """Make the packaged challenger the champion of the next run."""
    outcome = package(params, workspace)
    assert outcome.digest is not None
    bundle = workspace.bundles / outcome.digest
    lineage = json.loads((bundle / "evidence" / "lineage.json").read_text())
    champion = {"environment": "production", "bootstrap": False, "reason": "stable", "digest": outcome.digest}
    write_json(workspace.champion / "champion.json", {**champion, "lineage": lineage})
    keep(bundle, workspace.champion / "kept", outcome.digest)
    (workspace.champion / "kept" / outcome.digest).rename(workspace.champion / "bundle")
    return outcome.digest


def test_a_good_model_passes_and_its_bundle_answers_as_it_was_trained(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "passed", validation.verdict.reason
    assert "bootstrap: first" in validation.verdict.reason

    outcome = package(params, workspace)
    assert outcome.digest is not None
    model = load_model(workspace.bundles / outcome.digest, outcome.digest)
    golden = read_json(workspace.bundles / outcome.digest / "evidence" / "golden.json")
    matrix = model.schema.encode(pd.DataFrame(golden["rows"]))
    assert len(golden["rows"]) == 64
    np.testing.assert_allclose(model.score(matrix), golden["scores"], atol=1e-5)
    assert outcome.baseline_digest is not None
    for digest in (outcome.digest, outcome.baseline_digest):
        bundle = verify(workspace.bundles / digest, digest)
        past, scorer = reference_of(bundle), load_model(bundle.path, digest)
        assert past.calibration is not None
        assert past.calibration.features == {}  # rows without a time are exchangeable
        assert past.score_map is not None
        assert past.score_map.rows == 800
        np.testing.assert_allclose(past.rows["score"], scorer.score(scorer.schema.encode(past.rows)), atol=1e-5)
        assert past.rows["label"].notna().all()
    report = read_json(workspace.reports / "model_validation.json")
    assert report["metrics"]["champion"] is None
    assert report["metrics"]["challenger"]["roc_auc"] > 0.75
    assert read_json(workspace.reports / "metrics.json") == report["metrics"]["challenger"]
    assert (workspace.reports / "plots" / "roc.csv").read_text().startswith("false_positive_rate,true_positive_rate\n")
    assert "ROC curve" in (workspace.reports / "model_validation.html").read_text()


def test_random_labels_are_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    rows(workspace, learnable=False)
    train(params, workspace)
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "rejected"
    assert {"floor_roc_auc", "gain_over_constant"} <= failed(validation)
    assert "floor_roc_auc failed" in validation.verdict.reason
    assert_nothing_deployable(params, workspace)


def test_inverted_scores_are_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    replace_onnx(workspace, {"scale": -1.0, "shift": 1.0})
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "rejected"
    assert {"onnx_parity", "floor_roc_auc", "gain_over_baseline"} <= failed(validation)
    assert_nothing_deployable(params, workspace)


def test_a_constant_model_is_rejected_even_without_floors(tmp_path: Path) -> None:
    arguments = {"max_iter": 1, "min_samples_leaf": 5000}
    params, workspace = flat_project(
        tmp_path, gates={"floors": {}, "baseline_gain": -1.0}, train={"arguments": arguments}
    )
    train(params, workspace)
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "rejected"
    assert failed(validation) == {"gain_over_constant"}
    assert_nothing_deployable(params, workspace)


def test_scores_that_are_not_numbers_are_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    replace_onnx(workspace, {"scale": float("nan"), "shift": 0.0})
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "rejected"
    assert {"finite_scores", "onnx_parity", "floor_roc_auc"} <= failed(validation)
    assert validation.metrics["challenger"] == {}
    assert_nothing_deployable(params, workspace)


def test_a_payload_changed_after_training_stops(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    (workspace.model / "params.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"build/model has changed since it was trained: expected digest"):
        judge(params, workspace)


def test_a_payload_changed_after_its_verdict_is_not_packaged(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    assert judge(params, workspace).verdict.verdict == "passed"
    (workspace.model / "schema.json").write_text("{}")
    with pytest.raises(ClearwayError, match="build/model has changed"):
        package(params, workspace)
    assert not workspace.bundle.exists()


def test_a_corrupted_champion_stops_and_names_gate_and_file(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    judge(params, workspace)
    promote(params, workspace)
    network = workspace.champion / "bundle" / "payload" / "model.onnx"
    before = sha256_file(network)
    network.write_bytes(network.read_bytes()[:-1] + b"\0")
    with pytest.raises(ClearwayError) as caught:
        judge(params, workspace)
    assert str(caught.value).startswith("gate champion: ")
    assert str(network) in str(caught.value)
    assert before in str(caught.value)


def test_the_same_model_again_is_unchanged(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    judge(params, workspace)
    digest = promote(params, workspace)
    assert train(params, workspace).digest == digest
    validation = judge(params, workspace)
    assert validation.verdict.verdict == "unchanged"
    assert validation.verdict.gates == ()
    assert validation.metrics["challenger"] == validation.metrics["champion"]
    assert package(params, workspace).digest is None


def test_a_worse_model_than_the_champion_is_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    judge(params, workspace)
    digest = promote(params, workspace)
    weaker = {"train": {"arguments": {"max_iter": 1, "max_leaf_nodes": 2}}}
    changed, _ = flat_project(tmp_path / "weaker", gates={"floors": {"roc_auc": 0.52}, "baseline_gain": -1.0}, **weaker)
    train(changed, workspace)
    validation = judge(changed, workspace)
    assert validation.verdict.verdict == "rejected"
    assert "champion" in failed(validation)
    assert all(name == "champion" or name.startswith("slice_discovered_") for name in failed(validation))
    assert f"compared with champion {digest[:12]}" in validation.verdict.reason


def test_a_model_that_is_broken_in_one_slice_is_rejected_and_the_slice_is_named(tmp_path: Path) -> None:
    gates = {"champion": {"margin": 0.5}, "slices": {"declared": ["colour"], "min_rows": 100}, "floors": {}}
    params, workspace = flat_project(tmp_path, gates={**gates, "baseline_gain": None})
    train(params, workspace)
    judge(params, workspace)
    promote(params, workspace)
    path = workspace.features / "training.parquet"
    frame = pd.read_parquet(path)
    red = (frame["colour"] == "red").fillna(False)
    frame.loc[red, "label"] = 1 - frame.loc[red, "label"]
    frame.to_parquet(path)
    train(params, workspace)
    validation = judge(params, workspace)
    assert "slice_colour=red" in failed(validation)
    assert not failed(validation) & {"champion", "slice_colour=green", "slice_colour=blue"}
    assert "slice_colour=red" in validation.verdict.reason
    assert package(params, workspace).digest is None


def test_a_threshold_worse_than_the_champions_is_rejected(tmp_path: Path) -> None:
    """The scores are the champion's, so only its own threshold tells the two apart."""
    gates = {"champion": {"metric": "f1", "margin": 0.01}, "baseline_gain": None}
    params, workspace = flat_project(tmp_path, gates=gates)
    train(params, workspace)
    before = judge(params, workspace).metrics["challenger"]
    promote(params, workspace)
    path = workspace.params_file
    changed = yaml.safe_load(path.read_text())
    changed["train"]["threshold"] = 0.95
    path.write_text(yaml.safe_dump(changed))
    params = load_params(path)
    train(params, workspace)
    validation = judge(params, workspace)
    assert validation.metrics["champion"] == before
    assert validation.verdict.verdict == "rejected"
    assert "champion" in failed(validation)


def test_a_champion_that_needs_a_feature_the_holdout_lacks_is_a_failed_gate(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    judge(params, workspace)
    promote(params, workspace)
    for window in ("training", "holdout"):
        path = workspace.features / f"{window}.parquet"
        pd.read_parquet(path).drop(columns=["noise"]).to_parquet(path)
    described = read_json(workspace.features / "features.json")
    write_json(workspace.features / "features.json", {**described, "numeric": ["size", "weight"]})
    train(params, workspace)
    validation = judge(params, workspace)
    assert failed(validation) == {"champion", "schema_compatibility"}
    assert "features missing from the table: noise" in validation.verdict.reason


def test_a_challenger_that_needs_a_column_the_holdout_lacks_stops_the_line_and_names_the_gate(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    path = workspace.features / "holdout.parquet"
    pd.read_parquet(path).drop(columns=["noise"]).to_parquet(path)
    with pytest.raises(
        ClearwayError, match=r"^gate schema_compatibility: .*holdout\.parquet: .*noise.*train\.py again"
    ):
        judge(params, workspace)


NEEDY = """
from sklearn.ensemble import HistGradientBoostingClassifier

class Needy(HistGradientBoostingClassifier):
    "Of other rows than it learned from it wants more than it is given."

    def fit(self, X, y):
        self.learned_ = len(X)
        return super().fit(X, y)

    def predict_proba(self, X):
        if len(X) != self.learned_:
            raise KeyError("credit_score")
        return super().predict_proba(X)
"""


def test_a_challenger_that_raises_on_the_holdout_stops_the_line_and_names_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy.py").write_text(NEEDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    params, workspace = flat_project(
        tmp_path, train={"estimator": "needy.Needy", "format": "joblib"}, trust={"joblib": True}
    )
    train(params, workspace)
    with pytest.raises(ClearwayError, match=r"^gate finite_scores: .*cannot score the holdout: KeyError: 'credit_sc"):
        judge(params, workspace)
    assert not (workspace.reports / "model_validation.json").exists()


def test_a_leaked_target_is_rejected_and_named(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    random = np.random.default_rng(3)
    for window in ("training", "holdout"):
        path = workspace.features / f"{window}.parquet"
        frame = pd.read_parquet(path)
        frame.assign(noise=frame["label"] + random.normal(0, 0.05, len(frame))).to_parquet(path)
    train(params, workspace)
    validation = judge(params, workspace)
    assert failed(validation) == {"target_leakage"}
    assert "noise" in validation.verdict.reason
    assert_nothing_deployable(params, workspace)


def test_rows_in_both_windows_are_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path)
    training, holdout = (pd.read_parquet(workspace.features / f"{name}.parquet") for name in ("training", "holdout"))
    pd.concat([holdout, training.head(40)]).to_parquet(workspace.features / "holdout.parquet")
    train(params, workspace)
    validation = judge(params, workspace)
    assert failed(validation) == {"split_row_ids", "split_duplicates"}
    assert_nothing_deployable(params, workspace)


def test_a_model_that_breaks_its_behaviour_is_rejected(tmp_path: Path) -> None:
    tests = [{"name": "weight_is_nothing", "column": "weight", "add": 1.0, "expect": "same"}]
    params, workspace = flat_project(tmp_path, gates={"behaviour": tests})
    train(params, workspace)
    validation = judge(params, workspace)
    assert failed(validation) == {"behaviour_weight_is_nothing"}
    assert_nothing_deployable(params, workspace)


def test_a_model_too_slow_for_its_server_is_rejected(tmp_path: Path) -> None:
    params, workspace = flat_project(tmp_path, gates={"through_server": True, "latency_ms": 0.01})
    train(params, workspace)
    validation = judge(params, workspace)
    assert failed(validation) == {"served_latency_p95_ms"}
    assert "served_latency_p95_ms" in validation.verdict.reason
    assert_nothing_deployable(params, workspace)


def test_an_unknown_metric_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gates\.floors\.auc does not fit .*: choose one of roc_auc, "):
        flat_project(tmp_path, gates={"floors": {"auc": 0.7}})


def test_the_estimator_in_the_bundle_scores_as_its_onnx_graph(tmp_path: Path) -> None:
    """For both roles, from the kept bundle alone."""
    params, workspace = flat_project(tmp_path)
    train(params, workspace)
    judge(params, workspace)
    outcome = package(params, workspace)
    frame = pd.read_parquet(workspace.features / "holdout.parquet")
    for digest in (outcome.digest, outcome.baseline_digest):
        assert digest is not None
        model = load_model(workspace.bundles / digest, digest)
        matrix = model.schema.encode(frame)
        estimated = load_estimator(workspace.bundles / digest / "payload", digest).predict_proba(matrix)[:, 1]
        np.testing.assert_allclose(model.score(matrix), estimated, atol=1e-5)
