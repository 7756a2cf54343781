"""Metrics of classes and numbers are scikit-learn's, and so are their weighted twins that the bootstrap resamples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as scikit

from clearway.metrics import MULTICLASS, REGRESSION, measure, metrics_of
from clearway.params import METRICS_OF

RANDOM = np.random.default_rng(5)
ROWS, CLASSES = 400, 4
CODES = RANDOM.integers(0, CLASSES, ROWS).astype(np.float64)
CODES[CODES == 3] = np.where(RANDOM.random((CODES == 3).sum()) < 0.5, 3, 0)
OUTPUTS = RANDOM.dirichlet(np.ones(CLASSES), ROWS) + 0.5 * np.eye(CLASSES)[CODES.astype(int)]
OUTPUTS /= OUTPUTS.sum(axis=1, keepdims=True)
ANSWERS = OUTPUTS.argmax(axis=1)
NUMBERS = RANDOM.standard_t(2, ROWS) * 1e3 + 1e6
PREDICTED = NUMBERS + RANDOM.normal(size=ROWS) * 800
DRAWN = np.bincount(RANDOM.integers(0, ROWS, ROWS), minlength=ROWS)

BY_SCIKIT: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda y, p: scikit.accuracy_score(y, p.argmax(axis=1)),
    "balanced_accuracy": lambda y, p: scikit.balanced_accuracy_score(y, p.argmax(axis=1)),
    "precision_macro": lambda y, p: scikit.precision_score(y, p.argmax(axis=1), average="macro", zero_division=0),
    "recall_macro": lambda y, p: scikit.recall_score(y, p.argmax(axis=1), average="macro", zero_division=0),
    "f1_macro": lambda y, p: scikit.f1_score(y, p.argmax(axis=1), average="macro", zero_division=0),
    "log_loss": lambda y, p: scikit.log_loss(y, p, labels=np.arange(CLASSES)),
    "brier": lambda y, p: scikit.brier_score_loss(y, p, labels=np.arange(CLASSES)),
    "roc_auc_ovr": lambda y, p: scikit.roc_auc_score(y, p, multi_class="ovr"),
    "precision_weighted": lambda y, p: scikit.precision_score(y, p.argmax(axis=1), average="weighted", zero_division=0),
    "f1_weighted": lambda y, p: scikit.f1_score(y, p.argmax(axis=1), average="weighted", zero_division=0),
    "matthews_corrcoef": lambda y, p: scikit.matthews_corrcoef(y, p.argmax(axis=1)),
    "rmse": scikit.root_mean_squared_error,
    "mae": scikit.mean_absolute_error,
    "r2": scikit.r2_score,
    "median_absolute_error": scikit.median_absolute_error,
    "p95_absolute_error": lambda y, p: float(np.quantile(np.abs(y - p), 0.95)),
    "explained_variance": scikit.explained_variance_score,
}


def test_the_names_that_params_know_are_those_there_are() -> None:
    for kind, names in METRICS_OF.items():
        assert tuple(metrics_of(kind)) == names


@pytest.mark.parametrize("name", [*MULTICLASS, *REGRESSION])
def test_values_are_scikit_learns_of_the_table_and_of_a_resample(name: str) -> None:
    known, labels, outputs = (MULTICLASS, CODES, OUTPUTS) if name in MULTICLASS else (REGRESSION, NUMBERS, PREDICTED)
    chosen, oracle = known[name], BY_SCIKIT[name]
    assert chosen.value(labels, outputs, 0.5) == pytest.approx(oracle(labels, outputs), rel=1e-9)
    rows = np.repeat(np.arange(ROWS), DRAWN)
    assert chosen.weighted(labels, outputs, 0.5)(DRAWN) == pytest.approx(oracle(labels[rows], outputs[rows]), rel=1e-9)


def test_a_class_that_nobody_has_or_answers_is_in_no_mean() -> None:
    labels, outputs = np.array([0.0, 0, 1, 1]), np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.9, 0], [0.6, 0.4, 0]])
    found = measure(labels, outputs, 0.5, kind="multiclass")
    assert found["recall_macro"] == found["balanced_accuracy"] == 0.75
    assert found["roc_auc_ovr"] == 1.0, "the third class has no row to be ranked"


def test_a_class_never_seen_in_training_costs_what_a_wrong_answer_does() -> None:
    labels, outputs = np.array([0.0, 1, 2]), np.array([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]])
    found = measure(labels, outputs, 0.5, kind="multiclass")
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["recall_macro"] == pytest.approx(2 / 3)
    assert found["log_loss"] > 10
    assert found["roc_auc_ovr"] == pytest.approx((0.5 + 2) / 3)


def test_labels_all_the_same_have_no_ranking_and_no_r2() -> None:
    undefined = {"roc_auc_ovr", "balanced_accuracy", "matthews_corrcoef"}
    assert set(measure(np.zeros(4), OUTPUTS[:4], 0.5, kind="multiclass")) == set(MULTICLASS) - undefined
    assert set(measure(np.ones(4), NUMBERS[:4], 0.5, kind="regression")) == set(REGRESSION) - {
        "r2",
        "explained_variance",
    }
    assert measure(NUMBERS[:2], np.array([1.0, np.nan]), 0.5, kind="regression") == {}


def test_what_is_too_large_for_a_number_is_left_out() -> None:
    found = measure(np.array([1.0, 2.0]), np.array([1e200, 2e200]), 0.5, ["mae", "rmse", "r2"], kind="regression")
    assert set(found) == {"mae"}
