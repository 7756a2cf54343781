"""Training: the same rows, parameters and code give the same bytes, and a wrong parameter is named."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from clearway.bundle import payload_digest
from clearway.calibration import read_calibration
from clearway.encoding import InputSchema, learn_schema
from clearway.errors import ClearwayError, UsageError
from clearway.export import canonical_onnx, canonical_skops, to_onnx, to_skops
from clearway.files import held, read_json, write_json
from clearway.labelled_rows import read_rows
from clearway.model import TRUSTED_TYPES, load_payload, read_estimator
from clearway.parallel import joblib_backend
from clearway.params import JoblibParams, Params, load_params
from clearway.profile import read_reference
from clearway.training import Recipe, fit, make_estimator, train
from clearway.trust import trust_of
from clearway.workspace import Workspace


class Contrarian(LogisticRegression):
    """Of no library: neither skops nor ONNX knows it."""


class Breaking(LogisticRegression):
    """Fails as anybody's code may, or answers what is no answer."""

    def __init__(self, how: str = "", C: float = 1.0) -> None:
        if how == "made":
            raise ValueError("not\nso")
        super().__init__(C=C)
        self.how = how

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        if self.how == "fitted":
            raise RuntimeError("not\nso")
        if self.how == "left":
            sys.exit(0)
        return super().fit(X, y, sample_weight)

    def predict_proba(self, X: Any) -> Any:
        if self.how == "asked":
            raise KeyError("not\nso")
        answers = super().predict_proba(X)
        return {"narrow": answers[:, :1], "nan": answers * np.nan}.get(self.how, answers)


CONTRARIAN = f"{Contrarian.__module__}.{Contrarian.__qualname__}"
BREAKING = f"{Breaking.__module__}.{Breaking.__qualname__}"


class Unwritable(Contrarian):
    """Holds what nobody can store."""

    def fit(self, X: Any, y: Any) -> "Unwritable":
        super().fit(X, y)
        self.secret_ = (number for number in range(3))
        return self


def table(rows: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"size": random.normal(size=rows), "weight": random.normal(size=rows)})
    frame["colour"] = pd.Series(random.choice(["red", "green", "blue"], rows), dtype="string")
    frame["label"] = (frame["size"] + (frame["colour"] == "red") + random.normal(size=rows) > 0.3).astype("float64")
    frame.loc[random.random(rows) < 0.1, "size"] = np.nan
    frame.loc[random.random(rows) < 0.1, "colour"] = pd.NA
    return frame


FRAME = table()
SCHEMA = learn_schema(FRAME, ("colour",), ("size", "weight"))
MATRIX, LABELS = SCHEMA.encode(FRAME), FRAME["label"].to_numpy()


def recipe(estimator: str, **arguments: Any) -> Recipe:
    return Recipe("challenger", "train.estimator", estimator, "train.arguments", arguments)


def project(root: Path, *, trust: dict[str, Any] | None = None, **train_params: Any) -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "seed": 3,
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {"arguments": {"max_iter": 5}, **train_params},
        "environments": {"production": {"port": 0}},
        "trust": trust or {},
    }
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(root)
    workspace.features.mkdir(parents=True, exist_ok=True)
    FRAME.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["size", "weight"],
        "categorical": ["colour"],
        "declared": {},
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    return load_params(workspace.params_file), workspace


SUPPORTED = [
    ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 10}),
    ("sklearn.linear_model.LogisticRegression", {}),
    ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 10}),
    ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 10}),
    ("sklearn.tree.DecisionTreeClassifier", {"max_depth": 5}),
    ("sklearn.neighbors.KNeighborsClassifier", {}),
    ("sklearn.naive_bayes.GaussianNB", {}),
    ("sklearn.neural_network.MLPClassifier", {"hidden_layer_sizes": [8], "max_iter": 20}),
    ("sklearn.linear_model.SGDClassifier", {"loss": "log_loss"}),
]


@pytest.mark.parametrize(("estimator", "arguments"), SUPPORTED)
def test_estimators_fit_missing_values_and_leave_as_equal_bytes(estimator: str, arguments: dict[str, Any]) -> None:
    fitted, _ = fit(recipe(estimator, **arguments), SCHEMA, MATRIX, LABELS, seed=3, threads=1)
    again, _ = fit(recipe(estimator, **arguments), SCHEMA, MATRIX, LABELS, seed=3, threads=1)
    stored, network = to_skops(fitted), to_onnx(fitted, 3)
    assert stored == to_skops(again)
    assert network == to_onnx(again, 3)
    expected = fitted.predict_proba(MATRIX)[:, 1]
    np.testing.assert_array_equal(read_estimator(stored).predict_proba(MATRIX)[:, 1], expected)
    session = onnxruntime.InferenceSession(network)
    answered = session.run(["probabilities"], {"features": MATRIX})[0][:, 1]
    np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_histogram_gradient_boosting_takes_the_matrix_as_it_is() -> None:
    made = make_estimator(recipe("sklearn.ensemble.HistGradientBoostingClassifier"), SCHEMA, seed=3)
    assert isinstance(made, HistGradientBoostingClassifier)
    assert made.random_state == 3


def test_other_estimators_get_a_preparation_scaled_unless_made_of_trees() -> None:
    linear = make_estimator(recipe("sklearn.linear_model.LogisticRegression", random_state=9), SCHEMA, seed=3)
    forest = make_estimator(recipe("sklearn.ensemble.RandomForestClassifier"), SCHEMA, seed=3)
    assert isinstance(linear, Pipeline)
    assert isinstance(forest, Pipeline)
    assert linear.named_steps["model"].random_state == 9
    assert forest.named_steps["model"].random_state == 3
    assert "StandardScaler" in repr(linear.named_steps["prepare"])
    assert "StandardScaler" not in repr(forest.named_steps["prepare"])


@pytest.mark.parametrize("kinds", [((), ("size", "weight")), (("colour",), ())])
def test_a_table_of_one_kind_of_feature(kinds: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    schema: InputSchema = learn_schema(FRAME, *kinds)
    matrix = schema.encode(FRAME)
    fitted, _ = fit(recipe("sklearn.linear_model.LogisticRegression"), schema, matrix, LABELS, seed=3, threads=1)
    session = onnxruntime.InferenceSession(to_onnx(fitted, matrix.shape[1]))
    answered = session.run(["probabilities"], {"features": matrix})[0][:, 1]
    np.testing.assert_allclose(answered, fitted.predict_proba(matrix)[:, 1], atol=1e-5)


def test_a_category_never_seen_in_training_is_scored_as_missing() -> None:
    fitted, _ = fit(recipe("sklearn.linear_model.LogisticRegression"), SCHEMA, MATRIX, LABELS, seed=3, threads=1)
    unseen = FRAME.iloc[:2].assign(colour=["violet", None])
    unseen["size"] = 1.0
    unseen["weight"] = 1.0
    scores = fitted.predict_proba(SCHEMA.encode(unseen))[:, 1]
    assert scores[0] == scores[1]
    assert np.isfinite(scores).all()


def test_a_canonical_skops_file_has_no_time_and_no_address() -> None:
    fitted, _ = fit(recipe("sklearn.ensemble.RandomForestClassifier", n_estimators=3), SCHEMA, MATRIX, LABELS, 3, 1)
    raw = skops.io.dumps(fitted)
    canonical = canonical_skops(raw)
    assert canonical_skops(canonical) == canonical
    with zipfile.ZipFile(io.BytesIO(canonical)) as archive:
        entries = archive.infolist()
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
        assert all(len(entry.filename) <= len("schema.json") for entry in entries)
        assert f'"__id__":{id(fitted)}'.encode() not in archive.read("schema.json")
    loaded, original = (skops.io.loads(content, trusted=list(TRUSTED_TYPES)) for content in (canonical, raw))
    np.testing.assert_array_equal(loaded.predict_proba(MATRIX), original.predict_proba(MATRIX))


def test_a_canonical_graph_does_not_depend_on_names_or_on_the_order_of_operator_sets() -> None:
    """skl2onnx lists operator sets in the order of a set, which differs from process to process."""
    fitted, _ = fit(recipe("sklearn.linear_model.LogisticRegression"), SCHEMA, MATRIX, LABELS, seed=3, threads=1)
    network = to_onnx(fitted, 3)
    model = onnx.load_from_string(network)
    assert [opset.domain for opset in model.opset_import] == ["", "ai.onnx.ml"]
    swapped = [(opset.domain, opset.version) for opset in reversed(model.opset_import)]
    for opset, (domain, version) in zip(model.opset_import, swapped, strict=True):
        opset.domain, opset.version = domain, version
    for node in model.graph.node:
        node.name = f"{node.name}_{id(node)}"
        node.input[:] = [name if name == "features" else f"{name}_140123" for name in node.input]
        node.output[:] = [name if name in ("label", "probabilities") else f"{name}_140123" for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name += "_140123"
    for output in model.graph.output:
        assert output.name in ("label", "probabilities")
    onnx.checker.check_model(model)
    assert canonical_onnx(model) == network


def test_another_seed_makes_another_model_and_the_same_seed_the_same_digest(tmp_path: Path) -> None:
    forest = {"estimator": "sklearn.ensemble.RandomForestClassifier", "arguments": {"n_estimators": 5}}
    params, workspace = project(tmp_path, **forest)
    first = train(params, workspace)
    assert train(params, workspace).digest == first.digest == payload_digest(workspace.model)
    assert first.baseline_digest == payload_digest(workspace.baseline)
    other = train(params.model_copy(update={"seed": 4}), workspace)
    assert other.digest != first.digest


def test_what_training_writes(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    made = train(params, workspace)
    files = ["features.json", "model.onnx", "model.skops", "params.json", "schema.json"]
    assert sorted(path.name for path in workspace.model.iterdir()) == files
    assert sorted(path.name for path in workspace.baseline.iterdir()) == files
    report = read_json(workspace.reports / "training.json")
    assert (report["rows"], report["features"]) == (300, 3)
    assert report["challenger"]["digest"] == made.digest
    assert report["challenger"]["training_metrics"]["roc_auc"] > 0.7
    assert report["peak_memory_mb"] > 10
    reference = read_reference(workspace.build / "reference.parquet")
    assert list(reference.columns) == ["size", "weight", "colour", "score", "label"]
    model = load_payload(workspace.model, made.digest)
    np.testing.assert_allclose(reference["score"], model.score(model.schema.encode(reference)), atol=1e-5)
    assert b"as_of" not in (workspace.model / "params.json").read_bytes()


def test_an_estimator_that_onnx_cannot_say_is_a_model_without_a_fast_path(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, estimator="sklearn.dummy.DummyClassifier", arguments={"strategy": "prior"})
    made = train(params, workspace)
    assert train(params, workspace).digest == made.digest
    assert sorted(path.name for path in workspace.model.iterdir()) == [
        "features.json", "model.skops", "params.json", "schema.json",
    ]  # fmt: skip
    report = read_json(workspace.reports / "training.json")
    assert report["challenger"]["runtime"] == "scikit-learn"
    assert report["challenger"]["no_onnx"].startswith(
        "no ONNX, so no fast path: sklearn.dummy.DummyClassifier cannot be exported to ONNX ("
    )
    assert report["baseline"]["runtime"] == "onnx"
    assert "no_onnx" not in report["baseline"]
    model = load_payload(workspace.model, made.digest)
    assert model.runtime == "scikit-learn"
    np.testing.assert_allclose(model.score(MATRIX), LABELS.mean())


def test_onnx_that_is_not_wanted_is_not_made(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, onnx=False)
    made = train(params, workspace)
    assert load_payload(workspace.model, made.digest).runtime == "scikit-learn"
    assert load_payload(workspace.baseline, made.baseline_digest).runtime == "scikit-learn"
    assert "is not exported, as params.yaml says" in made.report["challenger"]["no_onnx"]


def test_a_class_of_the_projects_own_needs_its_name_in_params_and_says_so_in_the_payload(tmp_path: Path) -> None:
    own = {"estimator": CONTRARIAN, "arguments": {}}
    params, workspace = project(tmp_path, **own)
    with pytest.raises(UsageError, match=rf"'{CONTRARIAN}' cannot be stored: refused, .*: {CONTRARIAN};"):
        train(params, workspace)
    assert not workspace.model.exists()
    params, workspace = project(tmp_path, trust={"types": [CONTRARIAN]}, **own)
    made = train(params, workspace)
    assert read_json(workspace.model / "params.json")["train"]["types"] == [CONTRARIAN]
    with pytest.raises(ClearwayError, match=CONTRARIAN):
        load_payload(workspace.model, made.digest)
    assert load_payload(workspace.model, made.digest, trust_of(params, workspace)).runtime == "scikit-learn"


def test_a_joblib_model_opens_for_the_project_that_trained_it(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, trust={"joblib": True}, estimator=CONTRARIAN, arguments={}, format="joblib")
    made = train(params, workspace)
    assert train(params, workspace).digest == made.digest
    assert (workspace.model / "model.joblib").is_file()
    assert not (workspace.model / "model.skops").exists()
    assert (workspace.baseline / "model.onnx").is_file()
    trust = trust_of(params, workspace)
    assert trust.vouched == {made.digest, made.baseline_digest}
    assert load_payload(workspace.model, made.digest, trust).score(MATRIX).shape == (300,)
    (workspace.reports / "training.json").unlink()
    with pytest.raises(ClearwayError, match="neither a ledger nor the last training"):
        load_payload(workspace.model, made.digest, trust_of(params, workspace))


def test_a_pickle_is_of_a_fit_here_and_not_of_a_cluster(tmp_path: Path) -> None:
    where = {"backend": "dask", "address": "tcp://127.0.0.1:1", "connect_seconds": 0.1}
    params, workspace = project(tmp_path, trust={"joblib": True}, format="joblib", joblib=where)
    again = project(tmp_path / "again", trust={"joblib": True}, format="joblib")
    assert train(params, workspace).digest == train(*again).digest


def test_joblib_is_asked_for_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.format is joblib: set trust\.joblib: true too"):
        project(tmp_path, format="joblib")


def test_what_skops_cannot_store_is_named_with_the_way_out(tmp_path: Path) -> None:
    unwritable = f"{Unwritable.__module__}.{Unwritable.__qualname__}"
    params, workspace = project(tmp_path, estimator=unwritable, arguments={})
    with pytest.raises(UsageError, match=r"cannot be stored by skops: .*; joblib may \(train\.format: joblib"):
        train(params, workspace)
    params, workspace = project(tmp_path, trust={"joblib": True}, estimator=unwritable, arguments={}, format="joblib")
    with pytest.raises(UsageError, match=r"cannot be stored by joblib \(TypeError: .*generator"):
        train(params, workspace)


def test_stored_trees_hold_no_bytes_of_memory_between_their_fields() -> None:
    forest = RandomForestClassifier(n_estimators=2, random_state=3).fit(np.nan_to_num(MATRIX), LABELS)
    stored = to_skops(forest)
    read = read_estimator(stored)
    tree = read.estimators_[0].tree_
    state = tree.__getstate__()
    dirty = state["nodes"].view(np.uint8).reshape(len(state["nodes"]), -1)
    used = sum(kind.itemsize for kind, *_ in state["nodes"].dtype.fields.values())
    assert used < dirty.shape[1], "the premise: a node has a gap"
    dirty[:, used:] = 7
    tree.__setstate__(state)
    assert to_skops(read) == stored


def test_the_payload_says_how_its_features_were_defined(tmp_path: Path) -> None:
    params, workspace = project(tmp_path / "stored")
    described = read_json(workspace.features / "features.json")
    said = {"feature_service": "toy_0123456789ab", "definitions": {"size": {"sha256": "1" * 64}}}
    flat = train(params, workspace).digest
    write_json(workspace.features / "features.json", {**described, **said})
    assert train(params, workspace).digest != flat
    recorded = read_json(workspace.model / "features.json")
    kept = {key: described[key] for key in ("numeric", "categorical", "definitions_sha256")}
    assert recorded == {**kept, **said}


def test_rows_that_know_no_time_calibrate_nothing(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    train(params, workspace)
    calibration = read_calibration(workspace.build / "drift_calibration.json")
    assert not calibration.measured
    assert calibration.domain is None


def test_rows_in_time_are_calibrated_in_time_order(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    frame = pd.concat([FRAME] * 10, ignore_index=True)
    frame["prediction_time"] = pd.date_range("2013-01-01", periods=len(frame), freq="h", tz="UTC")
    frame["size"] = np.sort(frame["size"])  # a trend: each window lies apart from the rest
    frame.sample(frac=1, random_state=1).to_parquet(workspace.features / "training.parquet")
    train(params, workspace)
    calibration = read_calibration(workspace.build / "drift_calibration.json")
    assert set(calibration.features) == {"size", "weight", "colour"}
    assert set(calibration.outputs) == {"score", "baseline_score", "label"}
    assert calibration.features["size"].at("mean", 100).factor > 20
    assert calibration.features["weight"].at("mean", 100).factor < 5
    assert calibration.domain is not None
    assert "prediction_time" in read_reference(workspace.build / "reference.parquet")


TUNE: dict[str, Any] = {
    "trials": 3,
    "folds": 2,
    "space": {"learning_rate": {"kind": "float", "low": 0.01, "high": 0.5, "log": True}},
}


def test_what_a_search_found_is_fitted_and_recorded_as_the_arguments(tmp_path: Path) -> None:
    params, workspace = project(tmp_path / "searched", tune=TUNE)
    (workspace.features / "holdout.parquet").write_bytes(b"whoever reads this would fail")
    made = train(params, workspace)
    said = read_json(workspace.reports / "training.json")["tuning"]
    assert (said["metric"], said["finished"], len(said["trials"])) == ("roc_auc", 3, 3)
    recorded = read_json(workspace.model / "params.json")["train"]
    assert recorded["arguments"] == {"max_iter": 5, **said["arguments"]}
    assert recorded["tune"] == {"trials": 3}
    assert "tune" not in read_json(workspace.baseline / "params.json")["train"]
    assert load_payload(workspace.model, made.digest).digest == made.digest
    plot = pd.read_csv(workspace.reports / "plots" / "tuning.csv")
    assert plot["value"].tolist() == [trial["value"] for trial in said["trials"]]
    again = project(tmp_path / "again", tune={**TUNE, "timeout_seconds": 600})
    assert train(*again).digest == made.digest
    assert not workspace.unfinished.exists()
    fixed, workspace = project(tmp_path / "fixed", arguments=recorded["arguments"])
    train(fixed, workspace)
    searched = tmp_path / "searched" / "build" / "model" / "model.skops"
    assert (workspace.model / "model.skops").read_bytes() == searched.read_bytes()


def test_without_a_search_the_payload_and_the_report_know_of_none(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    assert "tuning" not in train(params, workspace).report
    recorded = read_json(workspace.model / "params.json")["train"]
    assert set(recorded) == {"estimator", "arguments", "threads"}
    assert (workspace.reports / "plots" / "tuning.csv").read_text() == "trial,value\n"


def test_a_search_in_time_judges_on_the_last_rows(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, tune=TUNE)
    frame = FRAME.assign(prediction_time=pd.date_range("2013-01-01", periods=len(FRAME), freq="h", tz="UTC"))
    frame["label_time"] = frame["prediction_time"] + pd.Timedelta(hours=2)
    frame.loc[frame.index[-90:], "label"] = 1.0 - frame["label"][-90:]  # what is learnt is wrong there
    frame.sample(frac=1, random_state=1).to_parquet(workspace.features / "training.parquet")
    assert train(params, workspace).report["tuning"]["best_value"] < 0.5


def test_another_training_of_the_folder_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace = project(tmp_path)
    monkeypatch.setattr("clearway.training._LOCK_SECONDS", 0.0)
    with (
        held(workspace.build / "training.lock", 0),
        pytest.raises(ClearwayError, match=r"training\.lock is held by another command"),
    ):
        train(params, workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"depth": {"kind": "int", "low": 1, "high": 2}}},
            r"train\.tune\.space\.depth is no argument of sklearn.*HistGradientBoostingClassifier; it takes .*max_iter",
        ),
        (
            {"space": {"learning_rate": {"kind": "float", "low": -2, "high": -1}}},
            r"train\.tune\.space: all 3 trials failed, the first with .*train\.tune\.space = .*'learning_rate'",
        ),
        (
            {"space": {"max_iter": {"kind": "int", "low": 6, "high": 9}}},
            r"train\.arguments\.max_iter = 5, from which the search starts, is not in train\.tune\.space\.max_iter",
        ),
        ({"folds": 200}, r"train\.tune\.folds = 200"),
    ],
)
def test_a_wrong_search_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    params, workspace = project(tmp_path, tune={**TUNE, **changes})
    with pytest.raises(UsageError, match=message) as caught:
        train(params, workspace)
    assert "\n" not in str(caught.value)
    assert not (workspace.reports / "training.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "sklearn.nowhere.Thing"}, r"train\.estimator = 'sklearn\.nowhere\.Thing' cannot be imported"),
        ({"estimator": "sklearn.ensemble.Thing"}, r"train\.estimator = 'sklearn\.ensemble\.Thing' cannot be imported"),
        ({"estimator": "Thing"}, r"train\.estimator = 'Thing' cannot be imported"),
        ({"estimator": "builtins.dict", "arguments": {}}, r"train\.estimator = 'builtins\.dict' is no classifier"),
        ({"estimator": "datetime.date", "arguments": {}}, r"train\.arguments = \{\}: .*date"),
        ({"estimator": "antigravity_that_breaks.Thing"}, r"cannot be imported \(not so\): give an importable class"),
        ({"estimator": BREAKING, "arguments": {"how": "made"}}, r"train\.arguments = \{'how': 'made'\}: not so"),
        ({"arguments": {"random_state": None}}, r"train\.arguments\.random_state = None would draw another model"),
        ({"estimator": "sklearn.metrics.roc_auc_score"}, r"train\.estimator = .* is a function, not a class"),
        (
            {"estimator": "sklearn.linear_model.LinearRegression", "arguments": {}},
            r"train\.estimator = .* no classifier",
        ),
        (
            {"estimator": "sklearn.svm.LinearSVC", "arguments": {}},
            r"train\.estimator = .* no classifier with predict_pr",
        ),
        ({"arguments": {"depth": 3}}, r"train\.arguments = \{'depth': 3\}: .*'depth'; .* takes .*max_iter"),
        ({"arguments": {"max_iter": "many"}}, r"train\.arguments = \{'max_iter': 'many'\}: .*'max_iter' parameter"),
        ({"baseline": "nowhere.Thing"}, r"train\.baseline = 'nowhere\.Thing' cannot be imported"),
        ({"baseline_arguments": {"C": -1}}, r"train\.baseline_arguments = \{'C': -1\}: .*'C' parameter"),
    ],
)
def test_a_wrong_estimator_or_argument_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "antigravity_that_breaks.py").write_text("raise RuntimeError('not\\nso')")
    monkeypatch.syspath_prepend(tmp_path)
    params, workspace = project(tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        train(params, workspace)
    assert "\n" not in str(caught.value)
    assert not (workspace.reports / "training.json").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fitted", r"cannot be fitted on these rows: RuntimeError: not so"),
        ("left", r"cannot be fitted on these rows: SystemExit: 0"),
        ("asked", r"does not answer as it must: KeyError: .*not"),
        ("narrow", r"does not answer as it must: IndexError: "),
    ],
)
def test_whatever_an_estimator_raises_is_one_line(tmp_path: Path, how: str, message: str) -> None:
    params, workspace = project(tmp_path, estimator=BREAKING, arguments={"how": how})
    with pytest.raises(ClearwayError, match=message) as caught:
        train(params, workspace)
    assert "\n" not in str(caught.value)


def test_a_trial_that_breaks_or_answers_no_number_is_failed_and_the_search_goes_on(tmp_path: Path) -> None:
    broken = ["made", "fitted", "left", "asked", "narrow", "nan"]
    space = {"how": {"kind": "categorical", "choices": ["", *broken]}}
    params, workspace = project(
        tmp_path, estimator=BREAKING, arguments={"how": "nan"}, trust={"types": [BREAKING]},
        tune={"trials": 20, "folds": 2, "space": space},
    )  # fmt: skip
    train(params, workspace)
    trials = read_json(workspace.reports / "training.json")["tuning"]["trials"]
    assert {trial["arguments"]["how"] for trial in trials if trial["state"] == "failed"} == set(broken)
    assert "no number" in trials[0]["reason"]
    assert read_json(workspace.model / "params.json")["train"]["arguments"] == {"how": ""}


def test_a_search_by_another_metric_does_not_go_on_from_what_a_killed_one_kept(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, tune=TUNE)

    def killed(title: str, *_: Any) -> None:
        if title.startswith("fit"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(params, workspace, killed)
    gate = params.gates.champion.model_copy(update={"metric": "log_loss"})
    gated = params.model_copy(update={"gates": params.gates.model_copy(update={"champion": gate})})
    said = train(gated, workspace).report["tuning"]
    assert (said["metric"], said["resumed_at"]) == ("roc_auc", 3), "a gate says nothing of how a model is trained"
    with pytest.raises(KeyboardInterrupt):
        train(params, workspace, killed)
    params, workspace = project(tmp_path, tune={**TUNE, "metric": "log_loss"})
    said = train(params, workspace).report["tuning"]
    assert (said["metric"], said["resumed_at"]) == ("log_loss", 0)


def test_labels_all_the_same_stop_training(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    FRAME.assign(label=1.0).to_parquet(workspace.features / "training.parquet")
    with pytest.raises(
        ClearwayError, match=r"training\.parquet: .* must be both 0 and 1, found only 1 in 300 rows.*data\.positive"
    ):
        train(params, workspace)
    assert not workspace.model.exists()


@pytest.mark.parametrize("bad", [np.nan, 2.0])
def test_a_label_that_is_none_is_named(tmp_path: Path, bad: float) -> None:
    _, workspace = project(tmp_path)
    FRAME.assign(label=np.r_[bad, LABELS[1:]]).to_parquet(workspace.features / "training.parquet")
    with pytest.raises(ClearwayError, match=rf"training\.parquet: label must be 0 or 1, found {bad:g}"):
        read_rows(workspace, "training")


def test_broken_feature_tables_are_named(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    path = workspace.features / "training.parquet"
    FRAME.assign(size=np.inf).to_parquet(path)
    with pytest.raises(ClearwayError, match=r"infinite: size"):
        train(params, workspace)
    FRAME.drop(columns="size").to_parquet(path)
    with pytest.raises(ClearwayError, match=r"training\.parquet lacks size"):
        train(params, workspace)
    FRAME.iloc[:0].to_parquet(path)
    with pytest.raises(ClearwayError, match=r"training\.parquet has no rows"):
        train(params, workspace)
    path.write_bytes(b"PAR1 truncated")
    with pytest.raises(ClearwayError, match=r"training\.parquet is not a readable Parquet file"):
        train(params, workspace)
    path.unlink()
    with pytest.raises(ClearwayError, match=r"training\.parquet is missing: run scripts/build_features\.py first"):
        train(params, workspace)


@pytest.mark.parametrize(
    ("estimator", "arguments"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 5, "early_stopping": True}),
        ("sklearn.linear_model.LogisticRegression", {}),
        ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 6}),
        ("sklearn.ensemble.BaggingClassifier", {"n_estimators": 4}),
    ],
)
def test_any_number_of_threads_makes_the_same_bytes(estimator: str, arguments: dict[str, Any]) -> None:
    random = np.random.default_rng(6)
    matrix = random.normal(size=(3000, 3)).astype(np.float32)
    matrix[:, SCHEMA.names.index("colour")] = random.integers(-1, 3, 3000)
    labels = (matrix[:, 0] + random.normal(size=3000) > 0).astype(np.float64)
    made = set()
    for threads in (1, 2, 4):
        with joblib_backend(JoblibParams(), threads):
            fitted, _ = fit(recipe(estimator, **arguments), SCHEMA, matrix, labels, seed=3, threads=threads)
        made.add((to_skops(fitted), to_onnx(fitted, 3)))
    assert len(made) == 1


def test_resources_leave_no_trace_in_a_model_and_what_changes_it_does(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, baseline="sklearn.naive_bayes.GaussianNB")
    plain = train(params, workspace)
    recorded = read_json(workspace.model / "params.json")["train"]
    assert recorded == {"estimator": params.train.estimator, "arguments": {"max_iter": 5}, "threads": 1}
    spread = {"resources": {"threads": 2, "memory_mb": 64_000}, "joblib": {"connect_seconds": 1}}
    params, _ = project(tmp_path, baseline="sklearn.naive_bayes.GaussianNB", **spread)
    assert train(params, workspace).digest == plain.digest
    learnt = {"class_weights": {0: 1, 1: 3}, "calibration": {"method": "sigmoid", "share": 0.25}}
    params, _ = project(tmp_path, baseline="sklearn.naive_bayes.GaussianNB", **learnt)
    made = train(params, workspace)
    assert made.digest != plain.digest
    assert made.baseline_digest != plain.baseline_digest
    recorded = read_json(workspace.model / "params.json")["train"]
    assert (recorded["class_weights"], recorded["calibration"]) == ({"0": 1, "1": 3}, learnt["calibration"])
    assert load_payload(workspace.model, made.digest).threshold == 0.5


def test_an_estimator_that_cannot_weigh_rows_is_named() -> None:
    with pytest.raises(UsageError, match=r"train\.class_weights: train\.estimator = .*KNeighbors.* cannot weigh rows"):
        fit(recipe("sklearn.neighbors.KNeighborsClassifier"), SCHEMA, MATRIX, LABELS, 3, 1, class_weights="balanced")


def test_the_number_of_cores_is_no_argument_of_an_estimator() -> None:
    with pytest.raises(UsageError, match=r"train\.arguments\.n_jobs = 2 .* train\.resources\.threads"):
        make_estimator(recipe("sklearn.ensemble.RandomForestClassifier", n_jobs=2), SCHEMA, seed=3)


def test_a_training_that_fails_leaves_no_report_of_an_earlier_one(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, baseline="sklearn.naive_bayes.GaussianNB")
    train(params, workspace)
    params, _ = project(tmp_path, baseline="nowhere.Thing")
    with pytest.raises(UsageError):
        train(params, workspace)
    assert not (workspace.reports / "training.json").exists()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"definitions_sha256": "0", "numeric": 3, "categorical": [], "declared": {}}']
)
def test_a_description_of_features_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    (workspace.features / "features.json").write_text(content)
    with pytest.raises(ClearwayError, match=r"features\.json is not what scripts/build_features\.py writes"):
        train(params, workspace)


def test_a_feature_without_any_value_is_named_where_an_estimator_cannot_take_it(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    FRAME.assign(size=np.nan).to_parquet(workspace.features / "training.parquet")
    with pytest.raises(ClearwayError, match=r"cannot be fitted .*\(these rows have no value of size\)"):
        train(params, workspace)
