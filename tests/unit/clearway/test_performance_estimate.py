"""Performance without answers: right where its assumptions hold, silent where it cannot know."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clearway.metrics import measure
from clearway.performance_estimate import ESTIMATED, ScoreMap, estimate, fit_score_map

Floats = NDArray[np.float64]


def world(count: int, seed: int, shift: float = 0.0) -> tuple[Floats, Floats]:
    """Scores that are no probabilities, and answers that follow from the row as they always did."""
    random = np.random.default_rng(seed)
    row = random.normal(size=count) + shift
    probability = 1 / (1 + np.exp(1 - 1.5 * row))
    return probability**1.7, (random.random(count) < probability).astype(np.float64)


def test_the_estimate_is_what_the_answers_later_say_where_only_the_rows_change() -> None:
    scores, labels = world(20_000, 1)
    later, answers = world(20_000, 2, shift=0.8)
    found = estimate(later, fit_score_map(scores, labels), 0.3, holdout=measure(labels, scores, 0.3))
    truth = measure(answers, later, 0.3)
    assert set(found.metrics) == set(ESTIMATED)
    for name, value in found.metrics.items():
        assert value == pytest.approx(truth[name], abs=0.02), name
    assert abs(found.holdout["f1"] - truth["f1"]) > 0.1  # the holdout's own value would not do
    assert found.assumptions
    assert f"{found.metrics['roc_auc']:.3f}" in found.sentence


def test_a_score_map_rises_and_means_the_share_of_yes() -> None:
    scores, labels = world(5_000, 3)
    learnt = fit_score_map(scores, labels)
    assert list(learnt.scores) == sorted(learnt.scores)
    assert list(learnt.probabilities) == sorted(learnt.probabilities)
    assert (learnt.rows, learnt.positives) == (5_000, int(labels.sum()))
    assert learnt.probability(scores).mean() == pytest.approx(labels.mean(), abs=0.01)
    assert ScoreMap.model_validate_json(learnt.model_dump_json()) == learnt
    assert learnt.probability(np.array([-9.0, 9.0])).tolist() == [learnt.probabilities[0], learnt.probabilities[-1]]


def test_scores_all_alike_map_to_the_share_of_yes() -> None:
    learnt = fit_score_map(np.full(400, 0.2), np.tile([1.0, 0.0, 0.0, 0.0], 100))
    assert (learnt.scores, learnt.probabilities) == (pytest.approx((0.2,)), (0.25,))
    assert estimate(np.full(10, 0.2), learnt, 0.1).metrics["accuracy"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("scores", "holdout", "why"),
    [
        (np.empty(0), world(500, 1), "no row"),
        (np.array([0.5, np.nan]), world(500, 1), "not a number"),
        (np.array([0.5]), world(199, 1), "199 holdout rows, 200 needed"),
        (np.array([0.5]), (np.linspace(0, 1, 500), np.zeros(500)), "all alike"),
    ],
)
def test_what_cannot_be_estimated_is_said(scores: Floats, holdout: tuple[Floats, Floats], why: str) -> None:
    found = estimate(scores, fit_score_map(*holdout), 0.5)
    assert (found.metrics, found.assumptions) == ({}, ())
    assert why in found.sentence


@pytest.mark.parametrize(("scores", "labels"), [([], []), ([0.5], []), ([np.nan], [1.0])])
def test_a_map_needs_one_finite_score_per_answer(scores: list[float], labels: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite score per label"):
        fit_score_map(np.array(scores), np.array(labels))
