"""Named metrics of a model's outputs: scikit-learn's values, and the same under row weights for the bootstrap.

Which there are depends on what the model answers (:mod:`clearway.target`): :data:`METRICS` of a binary one,
:data:`MULTICLASS`, :data:`REGRESSION`. Labels and outputs are those of :func:`clearway.target.judged`. The largest
error is none of them: no resample has a larger one than the sample, so the bootstrap knows no bound of it. The 95th
percentile stands in for it.

They are computed here and not by scikit-learn, which checks and converts its arguments anew at each of thousands of
calls; the tests hold every one to scikit-learn's value. Sums of products are ``np.sum(a * b)`` and not ``np.dot``: BLAS
would start threads for each of hundreds of small sums, which beside a busy neighbour takes ten times as long.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearway.errors import UsageError
from clearway.params import Kind

Floats = NDArray[np.float64]
Weighted = Callable[[NDArray[Any]], float]
"""Row weights of shape (rows,) → the metric of the table in which each row stands that often; NaN if undefined."""
Rows = NDArray[np.bool_]
"""Bool array of shape (rows,)."""


@dataclass(frozen=True)
class Metric:
    """A metric of labels, outputs and the threshold from which a score means yes, which only binary ones look at."""

    name: str
    higher_is_better: bool
    value: Callable[[Floats, Floats, float], float]
    weighted: Callable[[Floats, Floats, float], Weighted]
    counted: Callable[[Floats, Floats, float], tuple[Rows, Rows]] | None = None
    """Of a share of rows: the rows that it is about, and which of them are right. None of what is no such share."""
    of_share: Callable[[float], float] = float
    """From that share to the metric, which rises with it."""

    @property
    def sign(self) -> int:
        """+1 where higher is better, −1 where lower is: times the metric, more is always better."""
        return 1 if self.higher_is_better else -1


def metric(name: str, key: str = "metric", kind: Kind = "binary") -> Metric:
    """The metric of that name for a kind of target; ``key`` is where ``params.yaml`` names it.

    Raises
    ------
    UsageError
        There is none; lists those there are.
    """
    known = metrics_of(kind)
    if name not in known:
        raise UsageError(f"{key}: unknown metric {name!r} (known: {', '.join(known)})")
    return known[name]


def floor_metric(name: str, kind: Kind) -> Metric:
    """What a floor of that name is about: a metric of that kind, else the scorer of scikit-learn of that name.

    Raises
    ------
    UsageError
        There is neither, or the scorer does not judge that kind; says why.
    """
    known = metrics_of(kind)
    if name in known:
        return known[name]
    from clearway.scorers import scorer_metric, why_not  # here, because it imports scikit-learn: seconds

    if reason := why_not(name, kind):
        raise UsageError(f"params.yaml: gates.floors.{name}: {reason} (known: {', '.join(known)})")
    return scorer_metric(name, kind)


def metrics_of(kind: Kind) -> dict[str, Metric]:
    """Every metric of a kind of target, by name."""
    return {"binary": METRICS, "multiclass": MULTICLASS, "regression": REGRESSION}[kind]


def measure(
    labels: Floats, scores: Floats, threshold: float, names: Iterable[str] | None = None, kind: Kind = "binary"
) -> dict[str, float]:
    """Every metric, or those named, that is defined on these rows.

    Parameters
    ----------
    labels : float64 array of shape (rows,)
    scores : float64 array of shape (rows,) or (rows, classes)
        Outputs.
    threshold : float
        Score from which the answer is yes.
    kind : Kind

    Returns
    -------
    dict of str to float
        Empty if a score is not finite or there are no rows; without ranking metrics and R² if the labels are all the
        same, and without what is no finite number, such as the square of a prediction that is too large.
    """
    if not len(scores) or not np.isfinite(scores).all():
        return {}
    differ = bool(labels.min() < labels.max())
    chosen = [metric(name, kind=kind) for name in (metrics_of(kind) if names is None else names)]
    with np.errstate(over="ignore", invalid="ignore"):
        found = {m.name: float(m.value(labels, scores, threshold)) for m in chosen if differ or m.name not in RANKINGS}
    return {name: value for name, value in found.items() if np.isfinite(value)}


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


def _once(prepare: Callable[[Floats, Floats, float], Weighted]) -> Callable[[Floats, Floats, float], float]:
    """The metric of the table as it is: each row once."""
    return lambda labels, outputs, threshold: prepare(labels, outputs, threshold)(np.ones(len(labels)))


def _rooted(prepare: Callable[[Floats, Floats, float], Weighted]) -> Callable[[Floats, Floats, float], Weighted]:
    def rooted(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
        mean = prepare(labels, outputs, threshold)
        return lambda weights: float(np.sqrt(mean(weights)))

    return rooted


def _same(
    name: str,
    higher_is_better: bool,
    prepare: Callable[[Floats, Floats, float], Weighted],
    counted: Callable[[Floats, Floats, float], tuple[Rows, Rows]] | None = None,
    of_share: Callable[[float], float] = float,
) -> Metric:
    return Metric(name, higher_is_better, _once(prepare), prepare, counted, of_share)


def _all_rows(right: Rows) -> tuple[Rows, Rows]:
    return np.ones(len(right), bool), right


def _counts(labels: Floats, outputs: Floats, threshold: float) -> Callable[[NDArray[Any]], Floats]:
    """Row weights → weighted counts of shape (classes, classes), by label and answer."""
    classes = 2 if outputs.ndim == 1 else outputs.shape[1]
    answers = (outputs >= threshold).astype(np.intp) if outputs.ndim == 1 else outputs.argmax(axis=1)
    cells = labels.astype(np.intp) * classes + answers

    def count(weights: NDArray[Any]) -> Floats:
        return np.bincount(cells, weights, classes * classes).astype(np.float64).reshape(classes, classes)

    return count


def _of_counts(value: Callable[[Floats], float]) -> Callable[[Floats, Floats, float], Weighted]:
    def prepare(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
        count = _counts(labels, outputs, threshold)
        return lambda weights: value(count(weights))

    return prepare


def _mean_recall(counts: Floats) -> float:
    """Undefined without rows of both answers: the recall of one alone is no balance."""
    asked = counts.sum(axis=1)
    return float(np.mean(np.diag(counts) / asked)) if asked.all() else float("nan")


def _matthews(counts: Floats) -> float:
    """The correlation of label and answer (Gorodkin, Computational Biology and Chemistry 28, 2004); 0 of a constant."""
    asked, answered, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread = (total**2 - np.sum(asked**2)) * (total**2 - np.sum(answered**2))
    return float((np.trace(counts) * total - np.sum(asked * answered)) / np.sqrt(spread)) if spread > 0 else 0.0


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        _same("roc_auc", True, _weighted_roc_auc),
        _same("average_precision", True, _weighted_average_precision),
        _same("log_loss", False, _mean_of(_log_losses)),
        _same("brier", False, _mean_of(lambda y, s, t: (s - y) ** 2)),
        _same(
            "accuracy",
            True,
            _mean_of(lambda y, s, t: 1.0 * ((s >= t) == (y == 1))),
            lambda y, s, t: _all_rows((s >= t) == (y == 1)),
        ),
        _same(
            "precision",
            True,
            _ratio_of(lambda y, answer: (y * answer, answer)),
            lambda y, s, t: (s >= t, (s >= t) & (y == 1)),
        ),
        _same(
            "recall",
            True,
            _ratio_of(lambda y, answer: (y * answer, y)),
            lambda y, s, t: (y == 1, (s >= t) & (y == 1)),
        ),
        _same(
            "f1",
            True,
            _ratio_of(lambda y, answer: (2 * y * answer, y + answer)),
            lambda y, s, t: ((s >= t) | (y == 1), (s >= t) & (y == 1)),
            lambda share: 2 * share / (1 + share),  # Jaccard's index is such a share, and F1 follows from it
        ),
        _same("balanced_accuracy", True, _of_counts(_mean_recall)),
        _same("matthews_corrcoef", True, _of_counts(_matthews)),
    )
}

RANKINGS = (
    *("roc_auc", "average_precision", "roc_auc_ovr", "balanced_accuracy", "matthews_corrcoef"),
    *("r2", "explained_variance"),
)
"""Metrics that need different answers among the labels."""


def _mean_over_classes(
    part: Callable[[Floats, Floats, Floats], tuple[Floats, Floats]],
    *,
    over: Literal["known", "asked", "rows"] = "known",
) -> Callable[[Floats, Floats, float], Weighted]:
    """The mean over classes of a ratio of right answers, rows of the class, and answers of the class.

    As scikit-learn does: over the classes that have a row or an answer (``known``), those that have a row (``asked``),
    or those weighted by their rows (``rows``); a ratio of no rows is 0.
    """

    def prepare(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
        count = _counts(labels, outputs, threshold)

        def weighted(weights: NDArray[Any]) -> float:
            table = count(weights)
            right, asked, answered = np.diag(table), table.sum(axis=1), table.sum(axis=0)
            there = (asked > 0) | (answered > 0) if over == "known" else asked > 0
            above, below = part(right[there], asked[there], answered[there])
            ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            return float(np.average(ratios, weights=asked[there] if over == "rows" else None))

        return weighted

    return prepare


def _weighted_roc_auc_ovr(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
    """The mean of each class's area against the rest, over the classes that have rows and are not all of them."""
    there = [k for k in range(outputs.shape[1]) if 0 < np.count_nonzero(labels == k) < len(labels)]
    each = [_weighted_roc_auc((labels == k).astype(np.float64), outputs[:, k], threshold) for k in there]
    return lambda weights: float(np.mean([one(weights) for one in each])) if each else float("nan")


def _class_log_losses(labels: Floats, outputs: Floats, threshold: float) -> Floats:
    losses: Floats = -np.log(_clip(outputs[np.arange(len(labels)), labels.astype(np.intp)]))
    return losses


def _class_briers(labels: Floats, outputs: Floats, threshold: float) -> Floats:
    """The squared distance to the answer, summed over classes: from 0 to 2."""
    of_label = outputs[np.arange(len(labels)), labels.astype(np.intp)]
    found: Floats = np.sum(outputs**2, axis=1) - 2 * of_label + 1
    return found


def _weighted_r2(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
    squares = (labels - outputs) ** 2
    centred = labels - labels.mean()  # so that squares of large numbers do not cancel

    def weighted(weights: NDArray[Any]) -> float:
        total = weights.sum()
        spread = np.sum(weights * (centred - np.sum(weights * centred) / total) ** 2)
        return float(1 - np.sum(weights * squares) / spread) if spread > 0 else float("nan")

    return weighted


def _weighted_explained_variance(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
    def variance(values: Floats, weights: NDArray[Any]) -> float:
        total = weights.sum()
        return float(np.sum(weights * (values - np.sum(weights * values) / total) ** 2) / total)

    errors, centred = labels - outputs, labels - labels.mean()

    def weighted(weights: NDArray[Any]) -> float:
        spread = variance(centred, weights)
        return 1 - variance(errors, weights) / spread if spread > 0 else float("nan")

    return weighted


def _weighted_quantile(share: float) -> Callable[[Floats, Floats, float], Weighted]:
    """NumPy's linear quantile of the absolute errors; weights count rows."""

    def prepare(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
        errors = np.abs(labels - outputs)
        order = np.argsort(errors, kind="stable")
        ranked = errors[order]

        def weighted(weights: NDArray[Any]) -> float:
            upto = np.cumsum(weights[order])
            place = share * (upto[-1] - 1)
            low, high = ranked[np.searchsorted(upto, [np.floor(place), np.ceil(place)], side="right")]
            return float(low + (place - np.floor(place)) * (high - low))

        return weighted

    return prepare


MULTICLASS: dict[str, Metric] = {
    m.name: m
    for m in (
        _same(
            "accuracy",
            True,
            _mean_of(lambda y, p, t: 1.0 * (p.argmax(axis=1) == y)),
            lambda y, p, t: _all_rows(p.argmax(axis=1) == y),
        ),
        _same(
            "balanced_accuracy",
            True,
            _mean_over_classes(lambda right, asked, answered: (right, asked), over="asked"),
        ),
        _same("precision_macro", True, _mean_over_classes(lambda right, asked, answered: (right, answered))),
        _same("recall_macro", True, _mean_over_classes(lambda right, asked, answered: (right, asked))),
        _same("f1_macro", True, _mean_over_classes(lambda right, asked, answered: (2 * right, asked + answered))),
        _same("log_loss", False, _mean_of(_class_log_losses)),
        _same("brier", False, _mean_of(_class_briers)),
        _same("roc_auc_ovr", True, _weighted_roc_auc_ovr),
        _same(
            "precision_weighted",
            True,
            _mean_over_classes(lambda right, asked, answered: (right, answered), over="rows"),
        ),
        _same(
            "f1_weighted",
            True,
            _mean_over_classes(lambda right, asked, answered: (2 * right, asked + answered), over="rows"),
        ),
        _same("matthews_corrcoef", True, _of_counts(_matthews)),
    )
}
REGRESSION: dict[str, Metric] = {
    m.name: m
    for m in (
        _same("rmse", False, _rooted(_mean_of(lambda y, p, t: (y - p) ** 2))),
        _same("mae", False, _mean_of(lambda y, p, t: np.abs(y - p))),
        _same("r2", True, _weighted_r2),
        _same("median_absolute_error", False, _weighted_quantile(0.5)),
        _same("p95_absolute_error", False, _weighted_quantile(0.95)),
        _same("explained_variance", True, _weighted_explained_variance),
    )
}
