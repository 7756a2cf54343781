"""Any scorer of scikit-learn judges a floor, by its own value, resampled by rows; none that does not fit the target."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.naive_bayes import GaussianNB

from clearway.errors import UsageError
from clearway.gates import Holdout, floor_gate
from clearway.metrics import METRICS, floor_metric
from clearway.params import Kind, load_params
from clearway.scorers import scorer_metric, why_not

FLAT = """
project: {name: pets}
sources: {pets: {kind: csv, path: pets.csv}}
data: {table: pets, label: cat}
environments: {production: {port: 0}}
"""


def fitted(kind: Kind) -> tuple[object, np.ndarray, np.ndarray, np.ndarray]:
    """A model, its questions, their labels, and what it puts out."""
    if kind == "regression":
        asked, labels = make_regression(200, 4, noise=30, random_state=1)
        labels = np.abs(labels) + 1
        model = LinearRegression().fit(asked, labels)
        return model, asked, labels, model.predict(asked)
    classes = 2 if kind == "binary" else 3
    asked, labels = make_classification(200, 6, n_informative=4, n_classes=classes, flip_y=0.2, random_state=1)
    model = GaussianNB().fit(asked, labels)
    outputs = model.predict_proba(asked)
    return model, asked, labels.astype(np.float64), outputs[:, 1] if kind == "binary" else outputs


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_each_scorer_has_the_value_that_scikit_learn_gives_the_model(kind: Kind) -> None:
    model, asked, labels, outputs = fitted(kind)
    fitting = [name for name in get_scorer_names() if not why_not(name, kind)]
    assert len(fitting) >= 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in fitting:
            if kind == "regression" and name.endswith("_deviance"):
                continue  # of this model's few negative answers there is none
            truth = labels if kind == "regression" else labels.astype(int)
            expected = get_scorer(name)(model, asked, truth)
            assert scorer_metric(name, kind).value(labels, outputs, 0.5) == pytest.approx(expected), name


def test_the_threshold_is_the_models_own() -> None:
    _, _, labels, outputs = fitted("binary")
    recall = scorer_metric("recall", "binary")
    assert recall.value(labels, outputs, 0.1) > recall.value(labels, outputs, 0.9)
    assert recall.value(labels, outputs, 0.3) == pytest.approx(METRICS["recall"].value(labels, outputs, 0.3))


@pytest.mark.parametrize(("kind", "name"), [("binary", "jaccard"), ("regression", "neg_median_absolute_error")])
def test_a_weight_repeats_a_row(kind: Kind, name: str) -> None:
    _, _, labels, outputs = fitted(kind)
    weights = np.random.default_rng(3).integers(0, 4, len(labels))
    rows = np.repeat(np.arange(len(labels)), weights)
    made = scorer_metric(name, kind)
    assert made.weighted(labels, outputs, 0.5)(weights) == made.value(labels[rows], outputs[rows], 0.5)


def test_what_scikit_learn_refuses_has_no_value() -> None:
    assert np.isnan(scorer_metric("roc_auc", "binary").value(np.ones(4), np.full(4, 0.7), 0.5))


def test_a_floor_on_a_scorer_holds_its_lower_bound() -> None:
    _, _, labels, outputs = fitted("binary")
    holdout = Holdout(labels, 0.5, 0.95, 100, 1)
    value = scorer_metric("jaccard", "binary").value(labels, outputs, 0.5)
    passed, failed = (floor_gate(holdout, "jaccard", floor, outputs) for floor in (value - 0.3, value - 0.001))
    assert (passed.status, failed.status) == ("pass", "fail")
    assert failed.estimate == value
    assert "lower bound of jaccard" in failed.detail
    loss = floor_gate(holdout, "neg_log_loss", -0.01, outputs)
    assert loss.status == "fail"


def test_a_floor_without_an_interval_fails() -> None:
    labels = np.array([0.0] * 60 + [1.0])
    holdout = Holdout(labels, 0.5, 0.95, 100, 1)
    assert floor_gate(holdout, "roc_auc_ovo", 0.1, np.linspace(0, 1, 61)).status == "fail"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("gini", "binary", "no scorer of scikit-learn"),
        ("f1", "multiclass", "does not judge multiclass targets .*average"),
        ("accuracy", "regression", "does not judge regression targets"),
        ("rand_score", "regression", "it judges classes"),
        ("r2", "binary", "it judges numbers"),
        ("r2", "multiclass", "does not judge multiclass"),
        ("neg_max_error", "regression", "nothing is known of its bound"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_with_the_reason(name: str, kind: Kind, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"gates\.floors\.{name}: .*{reason}"):
        floor_metric(name, kind)


def test_params_take_a_scorer_and_refuse_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"{FLAT}gates: {{floors: {{jaccard: 0.4, roc_auc: 0.6}}}}\n")
    assert load_params(path).gates.floors == {"jaccard": 0.4, "roc_auc": 0.6}
    path.write_text(f"{FLAT}gates: {{floors: {{jacard: 0.4}}}}\n")
    with pytest.raises(UsageError, match=r"gates\.floors\.jacard .*no scorer of scikit-learn.*roc_auc"):
        load_params(path)
