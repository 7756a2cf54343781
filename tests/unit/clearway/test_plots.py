"""What plots show is what scikit-learn, or a count by hand, says of the same rows; what is undefined is empty."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from clearway import plots
from clearway.plots import Importance

RANDOM = np.random.default_rng(3)
LABELS = (RANDOM.random(4000) < 0.3).astype(float)
SCORES = np.clip(0.3 + 0.2 * LABELS + 0.15 * RANDOM.normal(size=4000), 0, 1)
CLASSES = ("red", "green", "blue")
CODES = RANDOM.integers(0, 3, 900)
CHANCES = RANDOM.dirichlet([1, 1, 1], 900)
CHANCES[np.arange(900), CODES] += 0.5
CHANCES /= CHANCES.sum(axis=1, keepdims=True)


def test_the_thinned_roc_curve_has_the_area_of_the_whole_one() -> None:
    curve = plots.roc(LABELS, SCORES)
    assert len(curve) <= plots.CURVE_POINTS
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert auc(*zip(*curve, strict=True)) == pytest.approx(roc_auc_score(LABELS, SCORES), abs=2e-3)


def test_the_thinned_precision_recall_curve_runs_from_the_highest_threshold_to_the_lowest() -> None:
    curve = plots.precision_recall(LABELS, SCORES)
    recall, precision = (np.array(side) for side in zip(*curve, strict=True))
    assert recall[0] == 0
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(LABELS.mean(), abs=1e-3)
    area = np.sum(np.diff(recall) * precision[1:])
    assert area == pytest.approx(average_precision_score(LABELS, SCORES), abs=0.02)


def test_curves_of_one_answer_or_of_no_number_are_empty() -> None:
    for curve in (plots.roc, plots.precision_recall):
        assert curve(np.ones(5), np.linspace(0, 1, 5)) == []
        assert curve(np.array([0.0, 1.0]), np.array([np.nan, 0.5])) == []
    assert plots.calibration(np.array([]), np.array([])) == []
    assert plots.calibration(np.array([1.0]), np.array([np.inf])) == []
    assert plots.score_histogram(np.array([1.0]), np.array([1.2])) is None
    assert plots.predicted_and_actual(np.array([1.0]), np.array([np.nan]), 1) == []
    assert plots.residuals(np.array([]), np.array([])) is None


def test_calibration_bins_hold_all_rows_and_their_wilson_intervals() -> None:
    bins = plots.calibration(LABELS, SCORES)
    assert [b.rows for b in bins] == [400] * 10
    assert sum(b.share * b.rows for b in bins) == pytest.approx(LABELS.sum())
    assert all(b.lower < b.share < b.upper for b in bins)
    few = plots.calibration(np.array([1.0] * 10), np.linspace(0.5, 0.6, 10), bins=1)[0]
    assert (few.lower, few.upper) == (pytest.approx(0.7225, abs=1e-4), 1.0)  # Wilson (1927), 10 of 10


def test_the_likeliest_class_is_right_as_often_as_its_bins_say() -> None:
    bins = plots.top_label_calibration(CODES, CHANCES, bins=5)
    assert sum(b.share * b.rows for b in bins) == pytest.approx((CHANCES.argmax(axis=1) == CODES).sum())
    assert bins[0].mean_score >= 1 / 3


def test_a_class_without_rows_has_no_curve() -> None:
    curves = plots.one_vs_rest(plots.precision_recall, np.zeros_like(CODES) + (CODES == 1), CHANCES, CLASSES)
    assert list(curves) == list(CLASSES[:2])
    assert curves[CLASSES[1]] == plots.precision_recall((CODES == 1).astype(np.float64), CHANCES[:, 1])


def test_each_class_has_its_own_roc_curve_and_only_the_largest_are_drawn() -> None:
    curves = plots.one_vs_rest(plots.roc, CODES, CHANCES, CLASSES)
    assert list(curves) == list(CLASSES)
    area = auc(*zip(*curves["green"], strict=True))
    assert area == pytest.approx(roc_auc_score(CODES == 1, CHANCES[:, 1]), abs=5e-3)
    biggest = CLASSES[int(np.bincount(CODES).argmax())]
    assert list(plots.one_vs_rest(plots.roc, CODES, CHANCES, CLASSES, most=1)) == [biggest]


def test_a_confusion_counts_actual_by_row_and_answer_by_column() -> None:
    predicted = plots.answers("binary", np.array([0.2, 0.5, 0.9, 0.9]), 0.5)
    counts = plots.confusion(np.array([0, 0, 0, 1]), predicted, 2)
    assert counts.tolist() == [[1, 2], [0, 1]]
    assert plots.answers("multiclass", CHANCES, 0.5).tolist() == CHANCES.argmax(axis=1).tolist()


def test_sampled_answers_keep_every_share() -> None:
    actual, predicted = RANDOM.integers(0, 3, 30_000), RANDOM.integers(0, 3, 30_000)
    pairs = plots.sampled_answers(actual, predicted, CLASSES, most=3000)
    assert len(pairs) == 3000
    counts = plots.confusion(actual, predicted, 3)
    for i, row in enumerate(CLASSES):
        for j, column in enumerate(CLASSES):
            assert pairs.count((row, column)) == pytest.approx(counts[i, j] / 10, abs=1.5)
    assert plots.sampled_answers(np.array([], int), np.array([], int), CLASSES) == []


def test_a_histogram_of_scores_counts_every_row_once() -> None:
    found = plots.score_histogram(LABELS, SCORES)
    assert found is not None
    assert (sum(found.counts["positive"]), sum(found.counts["negative"])) == (LABELS.sum(), (1 - LABELS).sum())
    assert (found.edges[0], found.edges[-1]) == (0.0, 1.0)


def test_residuals_keep_outliers_in_the_outer_bins() -> None:
    actual = np.r_[RANDOM.normal(size=1000), 1e6]
    found = plots.residuals(actual, np.zeros(1001))
    assert found is not None
    assert sum(found.counts["residuals"]) == 1001
    assert found.edges[-1] < 100
    assert plots.residuals(np.ones(5), np.ones(5)) is not None
    low = plots.residuals_by_prediction(np.arange(100.0) + 1, np.arange(100.0))
    assert [(a, b, c) for _, a, b, c in low] == [(1.0, 1.0, 1.0)] * 10
    cloud = plots.predicted_and_actual(actual, np.zeros(1001), seed=1, most=50)
    assert len(cloud) == 50
    assert cloud == plots.predicted_and_actual(actual, np.zeros(1001), seed=1, most=50)


def quality(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def test_what_a_model_uses_is_important_and_what_it_ignores_is_not() -> None:
    matrix = RANDOM.normal(size=(3000, 3)).astype(np.float32)
    before = matrix.copy()
    labels = (matrix[:, 0] + 0.3 * matrix[:, 1] > 0).astype(float)

    def score(rows: np.ndarray) -> np.ndarray:
        return rows[:, 0].astype(float) + 0.3 * rows[:, 1]

    found = plots.importances(score, quality, matrix, labels, ("a", "b", "c"), seed=1)
    assert [one.feature for one in found] == ["a", "b", "c"]
    assert found[0].mean > 5 * found[1].mean > 0
    assert found[2] == Importance("c", 0.0, 0.0)
    assert found == plots.importances(score, quality, matrix, labels, ("a", "b", "c"), seed=1)
    np.testing.assert_array_equal(matrix, before)


def test_importances_of_many_features_score_no_more_rows_than_of_few() -> None:
    scored = 0

    def score(rows: np.ndarray) -> np.ndarray:
        nonlocal scored
        scored += len(rows)
        return rows[:, 0].astype(float)

    matrix = RANDOM.normal(size=(6000, 600)).astype(np.float32)
    labels = (matrix[:, 0] > 0).astype(float)
    found = plots.importances(score, lambda y, s: float(s @ y), matrix, labels, [str(i) for i in range(600)], seed=1)
    assert len(found) == 600
    assert scored <= plots.IMPORTANCE_BUDGET + plots.IMPORTANCE_ROWS


def test_importances_of_what_cannot_be_told_are_none() -> None:
    matrix = np.ones((10, 1), np.float32)
    labels = np.array([0.0, 1.0] * 5)
    assert plots.importances(lambda rows: np.full(len(rows), np.nan), quality, matrix, labels, ("a",), 1) == []
    assert plots.importances(lambda rows: rows[:, 0], lambda y, s: np.nan, matrix, labels, ("a",), 1) == []
    assert plots.importances(lambda rows: rows[:, 0], quality, matrix[:0], labels[:0], ("a",), 1) == []
