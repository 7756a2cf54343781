"""Training of classes and numbers: what is fitted, stored, exported and recorded, and that the bytes are the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from clearway.calibration import read_calibration
from clearway.encoding import learn_schema
from clearway.errors import ClearwayError, UsageError
from clearway.export import to_onnx, to_skops
from clearway.files import read_json, write_json
from clearway.model import Model, _session, estimated, load_payload, read_estimator
from clearway.params import Params, ScoreCalibrationParams, load_params
from clearway.profile import ANSWER, SCORE, read_reference
from clearway.target import learn_target
from clearway.training import Recipe, fit, train
from clearway.workspace import Workspace


class Weighed(LogisticRegression):
    """Remembers how much each class weighed."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.weighed_ = np.bincount(y, sample_weight).tolist()
        return super().fit(X, y, sample_weight)


ROWS = 240
RANDOM = np.random.default_rng(4)
FRAME = pd.DataFrame({"size": RANDOM.normal(size=ROWS), "weight": RANDOM.normal(size=ROWS)})
FRAME["colour"] = pd.Series(RANDOM.choice(["red", "green"], ROWS), dtype="string")
FRAME.loc[::9, "size"] = np.nan
SCHEMA = learn_schema(FRAME, ("colour",), ("size", "weight"))
MATRIX = SCHEMA.encode(FRAME)
DRIVER = FRAME["weight"].to_numpy() + (FRAME["colour"] == "red").to_numpy() + RANDOM.normal(size=ROWS) * 0.3
LABELS: dict[str, Any] = {
    "multiclass": np.array(["10", "$x$", "ü b"], dtype=object)[np.digitize(DRIVER, [0, 1])],
    "regression": 1e6 + 3e4 * DRIVER,
}
FITTED = [
    ("multiclass", "sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 5}),
    ("multiclass", "sklearn.linear_model.LogisticRegression", {}),
    ("multiclass", "sklearn.ensemble.RandomForestClassifier", {"n_estimators": 5}),
    ("multiclass", "sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 5}),
    ("regression", "sklearn.ensemble.HistGradientBoostingRegressor", {"max_iter": 5}),
    ("regression", "sklearn.ensemble.HistGradientBoostingRegressor", {"max_iter": 5, "loss": "poisson"}),
    ("regression", "sklearn.ensemble.HistGradientBoostingRegressor", {"max_iter": 5, "loss": "gamma"}),
    ("regression", "sklearn.linear_model.Ridge", {}),
    ("regression", "sklearn.ensemble.RandomForestRegressor", {"n_estimators": 5}),
    ("regression", "sklearn.ensemble.GradientBoostingRegressor", {"n_estimators": 5}),
    ("regression", "sklearn.neighbors.KNeighborsRegressor", {}),
    ("regression", "sklearn.svm.SVR", {"C": 1e5}),
]


def recipe(estimator: str, **arguments: Any) -> Recipe:
    return Recipe("challenger", "train.estimator", estimator, "train.arguments", arguments)


@pytest.mark.parametrize(("kind", "estimator", "arguments"), FITTED)
def test_what_is_stored_and_exported_answers_as_it_was_fitted(
    kind: Any, estimator: str, arguments: dict[str, Any]
) -> None:
    target, labels = learn_target(kind, LABELS[kind])
    (one, _), (two, _) = (fit(recipe(estimator, **arguments), SCHEMA, MATRIX, labels, 3, 1, kind) for _ in range(2))
    stored, network = to_skops(one), to_onnx(one, 3)
    assert stored == to_skops(two)
    assert network == to_onnx(two, 3)
    model = Model("d" * 64, SCHEMA, 0.5, _session(network, Path("x")), None, target)
    outputs = model.output(MATRIX)
    assert outputs.shape == ((ROWS, 3) if target.classes else (ROWS,))
    assert target.differences(outputs, estimated(read_estimator(stored), target, MATRIX)).max() < 5e-6
    assert model.score(MATRIX).shape == (ROWS,)


@pytest.mark.parametrize(
    ("kind", "estimator", "said"),
    [
        ("regression", "sklearn.linear_model.LogisticRegression", "is no regressor, but target.kind is regression"),
        ("multiclass", "sklearn.linear_model.Ridge", "is no classifier with predict_proba"),
    ],
)
def test_an_estimator_of_another_kind_is_refused(kind: Any, estimator: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fit(recipe(estimator), SCHEMA, MATRIX, learn_target(kind, LABELS[kind])[1], 3, 1, kind)


def test_labels_that_a_loss_cannot_take_are_named() -> None:
    negative = LABELS["regression"] - 2e6
    with pytest.raises(ClearwayError, match=r"train\.estimator .* cannot be fitted on these rows: .*poisson"):
        fit(recipe(FITTED[5][1], loss="poisson"), SCHEMA, MATRIX, negative, 3, 1, "regression")


def project(root: Path, kind: str, *, timed: bool = False, **train_params: Any) -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "target": {"kind": kind},
        "train": {"arguments": {"max_iter": 5}, **train_params},
        "environments": {"production": {"port": 0}},
    }
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(root)
    workspace.features.mkdir(parents=True, exist_ok=True)
    frame = FRAME.assign(label=pd.Series(LABELS[kind], dtype="string" if kind == "multiclass" else "float64"))
    if timed:
        frame["prediction_time"] = pd.date_range("2024-01-01", periods=ROWS, freq="h", tz="UTC")
    frame.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["size", "weight"],
        "categorical": ["colour"],
        "declared": {},
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    return load_params(workspace.params_file), workspace


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_a_payload_records_its_target_and_is_the_same_again(tmp_path: Path, kind: str) -> None:
    made, again = (train(*project(tmp_path / name, kind)) for name in ("one", "two"))
    assert (made.digest, made.baseline_digest) == (again.digest, again.baseline_digest)
    workspace = Workspace(tmp_path / "one")
    recorded = read_json(workspace.model / "params.json")["target"]
    assert set(recorded) == ({"kind", "classes"} if kind == "multiclass" else {"kind", "centre", "spread"})
    model = load_payload(workspace.model, made.digest)
    if kind == "multiclass":
        assert model.target.classes == ("$x$", "10", "ü b")
        assert sum(made.report["class_shares"]) == pytest.approx(1)
    reference = read_reference(workspace.build / "reference.parquet")
    np.testing.assert_allclose(reference[SCORE], model.score(MATRIX), rtol=1e-5)
    assert reference["label"].tolist() == LABELS[kind].tolist()
    assert (ANSWER in reference) == (kind == "multiclass")


def test_a_binary_payload_says_nothing_of_targets(tmp_path: Path) -> None:
    """Its bytes, and so its digest, are those of before there were other kinds."""
    _, workspace = project(tmp_path, "regression")
    content = yaml.safe_load((tmp_path / "params.yaml").read_text()) | {"target": {"kind": "binary"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    frame = pd.read_parquet(workspace.features / "training.parquet")
    frame.assign(label=(frame["label"] > 1e6).astype("float64")).to_parquet(workspace.features / "training.parquet")
    train(load_params(workspace.params_file), workspace)
    assert set(json.loads((workspace.model / "params.json").read_text())) == {"project", "seed", "threshold", "train"}


def test_rows_in_time_calibrate_the_classes_that_are_answered(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, "multiclass", timed=True)
    train(params, workspace)
    calibration = read_calibration(workspace.build / "drift_calibration.json")
    assert set(calibration.outputs) == {SCORE, ANSWER, "baseline_score", "baseline_answer", "label"}
    assert set(calibration.for_baseline().outputs) == {SCORE, ANSWER, "label"}


def test_a_feature_with_the_name_of_the_answers_is_refused(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, "multiclass")
    path = workspace.features / "training.parquet"
    pd.read_parquet(path).rename(columns={"weight": ANSWER}).to_parquet(path)
    described = read_json(workspace.features / "features.json")
    write_json(workspace.features / "features.json", {**described, "numeric": ["size", ANSWER]})
    with pytest.raises(UsageError, match="a feature is named 'answered_class'"):
        train(params, workspace)


def test_weights_are_balanced_over_the_rows_that_the_estimator_sees() -> None:
    labels = np.repeat([0.0, 1.0, 0.0, 1.0], [90, 10, 10, 90])  # the other way round later on
    times = np.arange("2013-01-01", "2013-07-20", dtype="datetime64[D]")
    calibration = ScoreCalibrationParams(method="sigmoid", share=0.5)
    chosen = Recipe("challenger", "train.estimator", f"{Weighed.__module__}.Weighed", "train.arguments", {})
    fitted, _ = fit(chosen, SCHEMA, MATRIX[:200], labels, 3, 1, class_weights="balanced", calibration=calibration,
                    times=times)  # fmt: skip
    assert fitted[-1].estimator.weighed_ == pytest.approx([50, 50])


def test_a_fold_that_lacks_a_class_says_so_though_each_has_a_weight(tmp_path: Path) -> None:
    weights = dict.fromkeys(("$x$", "10", "ü b"), 1)
    tune = {"trials": 1, "folds": 1, "space": {"max_leaf_nodes": {"kind": "int", "low": 3, "high": 5}}}
    params, workspace = project(tmp_path, "multiclass", timed=True, class_weights=weights, tune=tune)
    frame = pd.read_parquet(workspace.features / "training.parquet")
    rare = frame["label"] == "ü b"
    frame.loc[rare & (np.arange(ROWS) < 0.7 * ROWS), "label"] = "10"  # it comes late
    frame.to_parquet(workspace.features / "training.parquet")
    with pytest.raises(UsageError, match=r"all 1 trials failed, .* fold 1 has rows of 2 classes only to learn from"):
        train(params, workspace)
