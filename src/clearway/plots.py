"""What plots of a model show, as numbers: pure functions from labels and scores to curves, tables and shares.

Labels of a binary model are 0.0 or 1.0 and its scores the probability of 1. Those of a multiclass one are positions
from 0 and its scores of shape (rows, classes). A regression has neither: it has values and predictions. What is
undefined on the rows given (a ROC curve where all labels are alike) is empty, never wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from clearway.metrics import Floats
from clearway.params import Kind

Point = tuple[float, float]

CURVE_POINTS, CALIBRATION_BINS, SCORE_BINS, RESIDUAL_BINS = 200, 10, 20, 30
DRAWN_ROWS = 1000
"""Most rows of a scatter plot."""
IMPORTANCE_ROWS, IMPORTANCE_REPEATS, IMPORTANCE_BUDGET = 5000, 3, 1_500_000
"""Rows and repeats of a permutation importance, and the most rows scored in all, whatever the number of features."""
_FEWEST_IMPORTANCE_ROWS = 200


@dataclass(frozen=True)
class Bin:
    """Rows of about the same score."""

    mean_score: float
    share: float
    """Of positives among them."""
    rows: int
    lower: float
    upper: float
    """Wilson's interval of the share at 95%, of independent rows (JASA 22, 1927)."""


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width: one edge more than counts."""

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    """By what is counted."""


@dataclass(frozen=True)
class Importance:
    """By how much the metric gets worse where a feature's values are shuffled."""

    feature: str
    mean: float
    spread: float
    """Standard deviation over the repeats."""


def roc(labels: Floats, scores: Floats) -> list[Point]:
    """The ROC curve as (false positive rate, true positive rate), thinned to points evenly spaced along it.

    Parameters
    ----------
    labels, scores : float64 arrays of shape (rows,)

    Returns
    -------
    list of (float, float)
        Empty where the labels are all alike or a score is not finite.
    """
    if not _both(labels, scores):
        return []
    false_rate, true_rate, _ = roc_curve(labels, scores)
    return _thinned(false_rate, true_rate)


def precision_recall(labels: Floats, scores: Floats) -> list[Point]:
    """The precision-recall curve as (recall, precision), from the highest threshold to the lowest; see :func:`roc`."""
    if not _both(labels, scores):
        return []
    precision, recall, _ = precision_recall_curve(labels, scores)
    return _thinned(recall[::-1], precision[::-1])


def calibration(labels: Floats, scores: Floats, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Mean score and share of positives of equally full bins of the score, lowest first.

    Returns
    -------
    list of Bin
        Empty without rows, or where a score is not finite.
    """
    if not len(scores) or not np.isfinite(scores).all():
        return []
    parts = np.array_split(np.argsort(scores, kind="stable"), min(bins, len(scores)))
    return [
        Bin(_short(scores[p].mean()), _short(labels[p].mean()), len(p), *_wilson(float(labels[p].sum()), len(p)))
        for p in parts
    ]


def top_label_calibration(labels: NDArray[np.intp], scores: Floats, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """How often the likeliest class is the right one, in bins of its score (Guo et al., ICML 2017).

    Parameters
    ----------
    labels : int array of shape (rows,)
        Position of the true class.
    scores : float64 array of shape (rows, classes)
    """
    if not len(scores) or not np.isfinite(scores).all():
        return []
    right = (scores.argmax(axis=1) == labels).astype(np.float64)
    return calibration(right, scores.max(axis=1), bins)


def one_vs_rest(
    curve: Callable[[Floats, Floats], list[Point]],
    labels: NDArray[np.intp],
    scores: Floats,
    classes: Sequence[str],
    most: int = 6,
) -> dict[str, list[Point]]:
    """A curve of each class against all others, of the ``most`` classes with the most rows; without empty ones.

    Parameters
    ----------
    curve : callable
        :func:`roc` or :func:`precision_recall`.
    labels : int array of shape (rows,)
        Position of the true class in ``classes``.
    scores : float64 array of shape (rows, classes)
    classes : sequence of str
    most : int
    """
    counts = np.bincount(labels, minlength=len(classes))
    chosen = np.sort(np.argsort(-counts, kind="stable")[:most])
    made = {classes[c]: curve((labels == c).astype(np.float64), scores[:, c]) for c in chosen}
    return {name: points for name, points in made.items() if points}


def confusion(actual: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.intp]:
    """How often each class (row) was answered by each (column), by position.

    Returns
    -------
    int array of shape (classes, classes)
    """
    found: NDArray[np.intp] = confusion_matrix(actual, predicted, labels=np.arange(classes))
    return found


def answers(kind: Kind, scores: Floats, threshold: float) -> NDArray[np.intp]:
    """The class that each row is answered with.

    Parameters
    ----------
    kind : "binary" or "multiclass"
    scores : float64 array of shape (rows,), or of shape (rows, classes) if multiclass
    threshold : float
        Score from which a binary answer is 1.
    """
    return scores.argmax(axis=1) if kind == "multiclass" else (scores >= threshold).astype(np.intp)


def sampled_answers(
    actual: NDArray[np.intp], predicted: NDArray[np.intp], classes: Sequence[str], most: int = 5000
) -> list[tuple[str, str]]:
    """Pairs of actual and predicted class in the proportions of all rows: no more than ``most``.

    It takes every so-manieth row of the sorted pairs, so that each share is right to one row.
    """
    order = np.lexsort((predicted, actual))
    kept = order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)] if len(order) else order
    return [(classes[a], classes[p]) for a, p in zip(actual[kept], predicted[kept], strict=True)]


def score_histogram(labels: Floats, scores: Floats, bins: int = SCORE_BINS) -> Histogram | None:
    """Counts of scores of negatives and positives in bins from 0 to 1; None where a score is no probability."""
    if not len(scores) or not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        return None
    edges = np.linspace(0, 1, bins + 1)
    counts = {
        name: tuple(int(n) for n in np.histogram(scores[labels == value], edges)[0])
        for name, value in (("negative", 0.0), ("positive", 1.0))
    }
    return Histogram(tuple(_short(edge) for edge in edges), counts)


def predicted_and_actual(actual: Floats, predicted: Floats, seed: int, most: int = DRAWN_ROWS) -> list[Point]:
    """(predicted, actual) of a seeded sample of at most ``most`` rows; empty where a value is not finite."""
    if not len(actual) or not (np.isfinite(actual).all() and np.isfinite(predicted).all()):
        return []
    kept = np.sort(np.random.default_rng(seed).permutation(len(actual))[:most])
    return _pairs(predicted[kept], actual[kept])


def residuals(actual: Floats, predicted: Floats, bins: int = RESIDUAL_BINS) -> Histogram | None:
    """Counts of actual − predicted in equal bins from the 0.5th to the 99.5th percentile, outliers in the outer ones.

    None where there are no rows or a value is not finite.
    """
    if not len(actual) or not (np.isfinite(actual).all() and np.isfinite(predicted).all()):
        return None
    errors = actual - predicted
    low, high = np.quantile(errors, [0.005, 0.995])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram(np.clip(errors, low, high), edges)[0]
    return Histogram(tuple(float(edge) for edge in edges), {"residuals": tuple(int(n) for n in counts)})


def residuals_by_prediction(actual: Floats, predicted: Floats, bins: int = CALIBRATION_BINS) -> list[tuple[float, ...]]:
    """Mean prediction, and the 10th, 50th and 90th percentile of actual − predicted, of equally full bins of it."""
    if not len(actual) or not (np.isfinite(actual).all() and np.isfinite(predicted).all()):
        return []
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(predicted)))
    return [
        (float(predicted[p].mean()), *(float(q) for q in np.quantile((actual - predicted)[p], [0.1, 0.5, 0.9])))
        for p in parts
    ]


def importances(
    score: Callable[[NDArray[np.float32]], Floats],
    quality: Callable[[Floats, Floats], float],
    matrix: NDArray[np.float32],
    labels: Floats,
    names: Sequence[str],
    seed: int,
) -> list[Importance]:
    """Permutation importance of each feature (Breiman, Machine Learning 45, 2001; Fisher, Rudin & Dominici, JMLR 2019).

    A seeded sample of the rows is scored with one column shuffled. The work is bounded by ``IMPORTANCE_BUDGET`` rows
    scored: many features mean fewer rows and, at last, one repeat. Of features that say the same, each looks
    unimportant while the other is there.

    Parameters
    ----------
    score : function of a float32 array of shape (rows, features)
        The model.
    quality : function of labels and scores
        Higher is better.
    matrix : float32 array of shape (rows, features)
    labels : float64 array of shape (rows,)
    names : sequence of str
        Of the features.
    seed : int

    Returns
    -------
    list of Importance
        The most important first; empty where the quality is undefined on these rows.
    """
    if not len(matrix) or not names:
        return []
    random = np.random.default_rng(seed)
    repeats = IMPORTANCE_REPEATS if len(names) * IMPORTANCE_REPEATS * 1000 <= IMPORTANCE_BUDGET else 1
    count = min(IMPORTANCE_ROWS, max(_FEWEST_IMPORTANCE_ROWS, IMPORTANCE_BUDGET // (repeats * len(names))))
    kept = np.sort(random.permutation(len(matrix))[:count])
    rows, asked = matrix[kept], labels[kept]
    whole = _quality(quality, asked, score(rows))
    if whole is None:
        return []
    found = []
    for position, name in enumerate(names):
        losses = []
        column = rows[:, position].copy()
        for _ in range(repeats):
            rows[:, position] = random.permutation(column)  # rows are a copy: indexed by an array
            worse = _quality(quality, asked, score(rows))
            if worse is None:
                return []
            losses.append(whole - worse)
        rows[:, position] = column
        found.append(Importance(name, float(np.mean(losses)), float(np.std(losses))))
    return sorted(found, key=lambda one: -one.mean)


def _quality(quality: Callable[[Floats, Floats], float], labels: Floats, scores: Floats) -> float | None:
    """None where it cannot be told: scores that are no numbers, or labels that are all alike."""
    if not np.isfinite(scores).all():
        return None
    try:
        found = quality(labels, scores)
    except ValueError:  # of scikit-learn, where the rows do not define the metric
        return None
    return float(found) if np.isfinite(found) else None


def _both(labels: Floats, scores: Floats) -> bool:
    return bool(0 < labels.sum() < len(labels) and np.isfinite(scores).all())


def _thinned(x: Floats, y: Floats) -> list[Point]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(CURVE_POINTS, len(x))).astype(int))
    return _pairs(x[kept], y[kept])


def _pairs(x: Floats, y: Floats) -> list[Point]:
    return [(_short(a), _short(b)) for a, b in zip(x, y, strict=True)]


def _short(value: float) -> float:
    """Six digits after the point: what a plot shows, and a file need not hold more."""
    return round(float(value), 6)


def _wilson(successes: float, rows: int) -> tuple[float, float]:
    z = float(ndtri(0.975))
    share = successes / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return _short(max(0.0, middle - reach)), _short(min(1.0, middle + reach))
