"""Named metrics of binary scores: scikit-learn's values, and the same under row weights for the bootstrap.

Sums of products are ``np.sum(a * b)`` and not ``np.dot``: BLAS would start threads for each of hundreds of small sums,
which beside a busy neighbour takes ten times as long.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as scikit

from clearway.errors import UsageError

Floats = NDArray[np.float64]
Weighted = Callable[[NDArray[Any]], float]
"""Row weights of shape (rows,) → the metric of the table in which each row stands that often; NaN if undefined."""


@dataclass(frozen=True)
class Metric:
    """A metric of labels (0 or 1), scores (probabilities of 1) and the threshold from which a score means yes."""

    name: str
    higher_is_better: bool
    value: Callable[[Floats, Floats, float], float]
    weighted: Callable[[Floats, Floats, float], Weighted]

    @property
    def sign(self) -> int:
        """+1 where higher is better, −1 where lower is: times the metric, more is always better."""
        return 1 if self.higher_is_better else -1


def metric(name: str, key: str = "metric") -> Metric:
    """The metric of that name; ``key`` is where ``params.yaml`` names it.

    Raises
    ------
    UsageError
        There is none; lists those there are.
    """
    if name not in METRICS:
        raise UsageError(f"{key}: unknown metric {name!r} (known: {', '.join(METRICS)})")
    return METRICS[name]


def measure(labels: Floats, scores: Floats, threshold: float, names: Iterable[str] | None = None) -> dict[str, float]:
    """Every metric, or those named, that is defined on these rows.

    Parameters
    ----------
    labels, scores : float64 arrays of shape (rows,)
    threshold : float
        Score from which the answer is yes.

    Returns
    -------
    dict of str to float
        Empty if a score is not finite or there are no rows; without ranking metrics if the labels are all the same.
    """
    if not len(scores) or not np.isfinite(scores).all():
        return {}
    both = 0 < labels.sum() < len(labels)
    chosen = [metric(name) for name in (METRICS if names is None else names)]
    return {m.name: float(m.value(labels, scores, threshold)) for m in chosen if both or m.name not in RANKINGS}


def _clip(scores: Floats) -> Floats:
    """What scikit-learn's log loss does: no probability is exactly 0 or 1."""
    epsilon = np.finfo(np.float64).eps
    clipped: Floats = np.clip(scores, epsilon, 1 - epsilon)
    return clipped


def _weighted_roc_auc(labels: Floats, scores: Floats, threshold: float) -> Weighted:
    """Mann-Whitney from one sort: each positive counts the negatives below it, and half of those it ties with."""
    order, starts = _ties(scores)
    positive = labels[order]
    negative = 1 - positive

    def weighted(weights: NDArray[Any]) -> float:
        sorted_weights = weights[order]
        up = np.add.reduceat(sorted_weights * positive, starts)
        down = np.add.reduceat(sorted_weights * negative, starts)
        below = np.cumsum(down) - down
        pairs = up.sum() * down.sum()
        return float(np.sum(up * (below + down / 2)) / pairs) if pairs else float("nan")

    return weighted


def _weighted_average_precision(labels: Floats, scores: Floats, threshold: float) -> Weighted:
    order, starts = _ties(-scores)
    positive = labels[order]

    def weighted(weights: NDArray[Any]) -> float:
        sorted_weights = weights[order]
        up = np.add.reduceat(sorted_weights * positive, starts)
        seen = np.cumsum(np.add.reduceat(sorted_weights.astype(np.float64), starts))
        if not up.sum():
            return float("nan")
        precision = np.divide(np.cumsum(up), seen, out=np.zeros_like(seen), where=seen > 0)
        return float(np.sum(up * precision) / up.sum())

    return weighted


def _ties(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rising order of scores, and where in it each group of equal scores starts."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def _mean_of(losses: Callable[[Floats, Floats, float], Floats]) -> Callable[[Floats, Floats, float], Weighted]:
    def prepare(labels: Floats, scores: Floats, threshold: float) -> Weighted:
        each = losses(labels, scores, threshold)
        return lambda weights: float(np.sum(weights * each) / weights.sum())

    return prepare


def _ratio_of(
    parts: Callable[[Floats, Floats], tuple[Floats, Floats]],
) -> Callable[[Floats, Floats, float], Weighted]:
    """A ratio of two sums over rows; 0 where the denominator is, as scikit-learn answers."""

    def prepare(labels: Floats, scores: Floats, threshold: float) -> Weighted:
        above, below = parts(labels, (scores >= threshold).astype(np.float64))

        def weighted(weights: NDArray[Any]) -> float:
            denominator = np.sum(weights * below)
            return float(np.sum(weights * above) / denominator) if denominator else 0.0

        return weighted

    return prepare


def _log_losses(labels: Floats, scores: Floats, threshold: float) -> Floats:
    clipped = _clip(scores)
    losses: Floats = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    return losses


def _of_answers(function: Callable[..., float], **options: Any) -> Callable[[Floats, Floats, float], float]:
    return lambda labels, scores, threshold: float(function(labels, scores >= threshold, **options))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("roc_auc", True, lambda y, s, t: float(scikit.roc_auc_score(y, s)), _weighted_roc_auc),
        Metric(
            "average_precision",
            True,
            lambda y, s, t: float(scikit.average_precision_score(y, s)),
            _weighted_average_precision,
        ),
        Metric(
            "log_loss", False, lambda y, s, t: float(scikit.log_loss(y, s, labels=[0.0, 1.0])), _mean_of(_log_losses)
        ),
        Metric("brier", False, lambda y, s, t: float(np.mean((s - y) ** 2)), _mean_of(lambda y, s, t: (s - y) ** 2)),
        Metric(
            "accuracy", True, _of_answers(scikit.accuracy_score), _mean_of(lambda y, s, t: 1.0 * ((s >= t) == (y == 1)))
        ),
        Metric(
            "precision",
            True,
            _of_answers(scikit.precision_score, zero_division=0),
            _ratio_of(lambda y, answer: (y * answer, answer)),
        ),
        Metric(
            "recall",
            True,
            _of_answers(scikit.recall_score, zero_division=0),
            _ratio_of(lambda y, answer: (y * answer, y)),
        ),
        Metric(
            "f1",
            True,
            _of_answers(scikit.f1_score, zero_division=0),
            _ratio_of(lambda y, answer: (2 * y * answer, y + answer)),
        ),
    )
}

RANKINGS = ("roc_auc", "average_precision")
"""Metrics that need both answers among the labels."""
