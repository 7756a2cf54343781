"""Each metric is scikit-learn's, and its weighted form is scikit-learn's with sample weights."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as scikit

from clearway.errors import UsageError
from clearway.metrics import METRICS, measure, metric

RANDOM = np.random.default_rng(3)
LABELS = (RANDOM.random(300) < 0.3).astype(float)
SCORES = np.clip(0.3 + 0.2 * LABELS + 0.2 * RANDOM.normal(size=300), 0, 1).round(2)  # rounded: many ties
WEIGHTS = RANDOM.integers(0, 4, 300)

ORACLES: dict[str, Callable[..., float]] = {
    "roc_auc": lambda y, s, w: scikit.roc_auc_score(y, s, sample_weight=w),
    "average_precision": lambda y, s, w: scikit.average_precision_score(y, s, sample_weight=w),
    "log_loss": lambda y, s, w: scikit.log_loss(y, s, sample_weight=w, labels=[0, 1]),
    "brier": lambda y, s, w: scikit.brier_score_loss(y, s, sample_weight=w),
    "accuracy": lambda y, s, w: scikit.accuracy_score(y, s >= 0.4, sample_weight=w),
    "precision": lambda y, s, w: scikit.precision_score(y, s >= 0.4, sample_weight=w),
    "recall": lambda y, s, w: scikit.recall_score(y, s >= 0.4, sample_weight=w),
    "f1": lambda y, s, w: scikit.f1_score(y, s >= 0.4, sample_weight=w),
    "balanced_accuracy": lambda y, s, w: scikit.balanced_accuracy_score(y, s >= 0.4, sample_weight=w),
    "matthews_corrcoef": lambda y, s, w: scikit.matthews_corrcoef(y, s >= 0.4, sample_weight=w),
}


def test_every_metric_has_an_oracle() -> None:
    assert set(ORACLES) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_weighted_and_plain_values_are_scikit_learns(name: str) -> None:
    chosen, oracle = METRICS[name], ORACLES[name]
    assert chosen.value(LABELS, SCORES, 0.4) == pytest.approx(oracle(LABELS, SCORES, None), abs=1e-12)
    weighted = chosen.weighted(LABELS, SCORES, 0.4)
    assert weighted(WEIGHTS) == pytest.approx(oracle(LABELS, SCORES, WEIGHTS), abs=1e-12)
    assert weighted(np.ones(300, dtype=int)) == pytest.approx(chosen.value(LABELS, SCORES, 0.4), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.5001, 1.0])), min_size=2, max_size=40))
def test_ranking_metrics_survive_ties_and_extremes(rows: list[tuple[bool, float]]) -> None:
    labels, scores = np.array([float(label) for label, _ in rows]), np.array([score for _, score in rows])
    for name in ("roc_auc", "average_precision"):
        value = METRICS[name].weighted(labels, scores, 0.5)(np.ones(len(rows)))
        if 0 < labels.sum() < len(labels):
            assert value == pytest.approx(ORACLES[name](labels, scores, None), abs=1e-12)
        elif name == "roc_auc":
            assert math.isnan(value)


def test_one_answer_for_all_is_a_coin() -> None:
    found = measure(LABELS, np.full(300, 0.9), 0.4)
    assert (found["balanced_accuracy"], found["matthews_corrcoef"]) == (0.5, 0.0)
    assert math.isnan(METRICS["balanced_accuracy"].weighted(LABELS, SCORES, 0.4)(LABELS))


def test_direction() -> None:
    assert {name for name, m in METRICS.items() if not m.higher_is_better} == {"log_loss", "brier"}


def test_measure_gives_what_is_defined() -> None:
    assert set(measure(LABELS, SCORES, 0.4)) == set(METRICS)
    need_both = {"roc_auc", "average_precision", "balanced_accuracy", "matthews_corrcoef"}
    assert set(measure(np.ones(5), np.full(5, 0.7), 0.4)) == set(METRICS) - need_both
    assert measure(np.ones(2), np.array([0.5, np.nan]), 0.4) == {}
    assert measure(np.ones(0), np.ones(0), 0.4) == {}
    assert measure(LABELS, SCORES, 0.4, ["f1"]) == {"f1": pytest.approx(ORACLES["f1"](LABELS, SCORES, None))}


def test_the_threshold_itself_means_yes() -> None:
    assert measure(np.array([0.0, 1.0]), np.array([0.1, 0.4]), 0.4, ["recall"]) == {"recall": 1.0}


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"gates.floors: unknown metric 'auc' .known: roc_auc, average_precision"):
        metric("auc", "gates.floors")
