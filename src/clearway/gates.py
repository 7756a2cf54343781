"""The gates between a trained model and a bundle: pure functions from labels and scores to a verdict.

Every bound comes from one bootstrap of the holdout: rows are drawn with replacement, seeded, and a comparison draws
the same rows for both models, so that what they share cancels out (Efron & Tibshirani 1993, chapters 13 and 16). Rows
are taken as independent: where they come in clumps (many rows of one bad day) the truth is less sure than the
interval says. It is the percentile interval; where a resample leaves a metric undefined (no positive drawn) it is left
out, and a metric undefined in more than a tenth of them has no interval.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearway.metrics import Floats, Metric, metric
from clearway.params import GateParams

Status = Literal["pass", "fail", "unknown"]
Verdict = Literal["passed", "rejected", "unchanged"]


@dataclass(frozen=True)
class Gate:
    """One gate's judgement. ``estimate``, ``lower`` and ``upper`` are in the unit of ``threshold``."""

    name: str
    status: Status
    detail: str
    """What was compared with what, for a person."""
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    n: int | None = None
    """Rows it was judged on."""


@dataclass(frozen=True)
class ModelVerdict:
    """Whether a challenger may become a bundle, in one sentence, and the gates it was judged by."""

    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval; bounds are None where the metric was undefined too often."""

    estimate: float
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Holdout:
    """The rows that every model is judged on, and how they are resampled.

    Attributes
    ----------
    labels : float64 array of shape (rows,)
        0.0 or 1.0.
    threshold : float
        Score from which the answer is yes.
    confidence : float
        One-sided level of each bound: a gate asks one question, so a true value below its lower bound is as rare as
        ``1 - confidence``. The two bounds together are a two-sided interval of level ``2 * confidence - 1``.
    resamples : int
        Bootstrap resamples.
    seed : int
        The same seed draws the same rows.
    """

    labels: Floats
    threshold: float
    confidence: float
    resamples: int
    seed: int

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def both_answers(self) -> bool:
        return bool(0 < self.labels.sum() < self.rows)

    def interval(self, measured: Metric, scores: Floats) -> Interval:
        """The metric of ``scores`` and its bootstrap interval."""
        weighted = measured.weighted(self.labels, scores, self.threshold)
        values = np.array([weighted(weights) for weights in self._draws()])
        return self._percentiles(measured.value(self.labels, scores, self.threshold), values)

    def gain(self, measured: Metric, scores: Floats, other: Floats, other_threshold: float | None = None) -> Interval:
        """By how much ``scores`` is better than ``other``, and its paired bootstrap interval; above 0 is better.

        ``other_threshold`` is the score from which ``other`` means yes, where it is not that of ``scores``.
        """
        theirs_from = self.threshold if other_threshold is None else other_threshold
        ours = measured.weighted(self.labels, scores, self.threshold)
        theirs = measured.weighted(self.labels, other, theirs_from)
        estimate = measured.value(self.labels, scores, self.threshold) - measured.value(self.labels, other, theirs_from)
        values = np.array([ours(weights) - theirs(weights) for weights in self._draws()])
        return self._percentiles(measured.sign * estimate, measured.sign * values)

    def _draws(self) -> Iterator[NDArray[np.intp]]:
        """How often each row is drawn, resample by resample: integer arrays of shape (rows,)."""
        random = np.random.default_rng(self.seed)
        for _ in range(self.resamples):
            yield np.bincount(random.integers(0, self.rows, self.rows), minlength=self.rows)

    def _percentiles(self, estimate: float, values: NDArray[np.float64]) -> Interval:
        defined = values[np.isfinite(values)]
        if len(defined) < 0.9 * len(values):
            return Interval(float(estimate), None, None)
        tail = 1 - self.confidence
        lower, upper = np.quantile(defined, [tail, 1 - tail])
        return Interval(float(estimate), float(lower), float(upper))


LIVE_CONFIDENCE, LIVE_RESAMPLES = 0.95, 400
"""One-sided level of each bound, and bootstrap resamples, for a model in use: no gate's parameters apply to it."""


def live_interval(measured: Metric, labels: Floats, scores: Floats, threshold: float, seed: int) -> Interval | None:
    """A metric of a model in use on the labels known by now, and its bootstrap interval.

    Parameters
    ----------
    measured : Metric
    labels, scores : float64 arrays of shape (rows,)
    threshold : float
        Score from which the model answers yes.
    seed : int

    Returns
    -------
    Interval or None
        None where it is undefined: the labels are all the same, or a score is no finite number.
    """
    holdout = Holdout(labels, threshold, LIVE_CONFIDENCE, LIVE_RESAMPLES, seed)
    return holdout.interval(measured, scores) if _measurable(holdout, scores) else None


def rows_gate(holdout: Holdout, minimum: int) -> Gate:
    """Enough labelled rows to judge on, with both answers among them."""
    positives = int(holdout.labels.sum())
    enough = holdout.rows >= minimum and holdout.both_answers
    detail = f"{holdout.rows:,} holdout rows, {positives:,} positive; at least {minimum:,} and both answers are needed"
    return Gate("rows", "pass" if enough else "fail", detail, holdout.rows, threshold=minimum, n=holdout.rows)


def finite_gate(scores: Floats) -> Gate:
    """Every score is a probability."""
    good = np.isfinite(scores) & (scores >= 0) & (scores <= 1)
    bad = int(len(scores) - good.sum())
    detail = f"{bad:,} of {len(scores):,} scores are not a number from 0 to 1"
    return Gate("finite_scores", "fail" if bad else "pass", detail, bad, threshold=0, n=len(scores))


def parity_gate(served: Floats, trained: Floats, tolerance: float) -> Gate:
    """What ONNX Runtime will answer is what scikit-learn answered, on every holdout row."""
    difference = np.abs(served - trained)
    largest = float(difference.max()) if len(difference) and np.isfinite(difference).all() else None
    passed = largest is not None and largest <= tolerance
    shown = "not a number" if largest is None else f"{largest:.2g}"
    detail = f"largest difference between ONNX and scikit-learn scores is {shown}, at most {tolerance:g} is allowed"
    return Gate("onnx_parity", "pass" if passed else "fail", detail, largest, threshold=tolerance, n=len(served))


def latency_gate(latencies_ms: Sequence[float], limit_ms: float) -> Gate:
    """The 95th percentile of single-row answers, in milliseconds."""
    p95 = float(np.quantile(np.asarray(latencies_ms, dtype=np.float64), 0.95)) if len(latencies_ms) else None
    passed = p95 is not None and p95 <= limit_ms
    shown = "was not measured" if p95 is None else f"is {p95:.3g} ms"
    detail = f"p95 of a single-row answer {shown}, at most {limit_ms:g} ms is allowed"
    return Gate("latency_p95_ms", "pass" if passed else "fail", detail, p95, threshold=limit_ms, n=len(latencies_ms))


def floor_gate(holdout: Holdout, name: str, floor: float, scores: Floats) -> Gate:
    """The metric's lower bound is at least ``floor``; for a loss, its upper bound is at most ``floor``.

    Raises
    ------
    UsageError
        There is no metric of that name.
    """
    measured = metric(name, "params.yaml: gates.floors")
    gate = f"floor_{name}"
    if not _measurable(holdout, scores):
        return Gate(gate, "fail", f"{name} is undefined on these rows and scores", threshold=floor, n=holdout.rows)
    found = holdout.interval(measured, scores)
    bound, side = (found.lower, "lower") if measured.higher_is_better else (found.upper, "upper")
    need = "at least" if measured.higher_is_better else "at most"
    if bound is None:
        return _gate(gate, "fail", f"{name} has no interval: too few rows of one answer", found, floor, holdout)
    passed = measured.sign * bound >= measured.sign * floor
    detail = f"{side} bound of {name} is {bound:.4f}, {need} {floor:g} is needed"
    return _gate(gate, "pass" if passed else "fail", detail, found, floor, holdout)


def constant_gate(holdout: Holdout, name: str, scores: Floats, base_rate: float) -> Gate:
    """Better than the answer that ignores the question: the lower bound of the gain over ``base_rate`` is above 0."""
    if not _measurable(holdout, scores):
        return Gate("gain_over_constant", "fail", f"{name} is undefined on these rows and scores", n=holdout.rows)
    found = holdout.gain(metric(name, "params.yaml: gates.champion.metric"), scores, np.full(holdout.rows, base_rate))
    passed = found.lower is not None and found.lower > 0
    detail = f"lower bound of the gain in {name} over a constant score is {_shown(found.lower)}, above 0 is needed"
    return _gate("gain_over_constant", "pass" if passed else "fail", detail, found, 0.0, holdout)


def baseline_gate(holdout: Holdout, name: str, scores: Floats, baseline: Floats | None, gain: float) -> Gate:
    """The simple model is beaten by ``gain``: pass if surely, fail if surely not, else unknown."""
    measured = metric(name, "params.yaml: gates.champion.metric")
    if baseline is None or not _measurable(holdout, scores) or not _measurable(holdout, baseline):
        return Gate(
            "gain_over_baseline", "fail", f"{name} of challenger or baseline is undefined", None, n=holdout.rows
        )
    found = holdout.gain(measured, scores, baseline)
    status: Status = "unknown"
    if found.lower is not None and found.upper is not None:
        status = "pass" if found.lower >= gain else "fail" if found.upper < gain else "unknown"
    detail = f"gain in {name} over the simple model is {_range(found)}, at least {gain:g} is needed"
    return _gate("gain_over_baseline", status, detail, found, gain, holdout)


def champion_gate(
    holdout: Holdout, name: str, scores: Floats, champion: Floats, margin: float, *, threshold: float | None = None
) -> Gate:
    """No worse than the champion by ``margin`` on the same rows (non-inferiority).

    Pass if the paired difference is surely above −margin, fail if it is surely below, else unknown. ``threshold`` is
    the champion's own, so that a challenger which differs in nothing else is compared with what is really served.
    """
    measured = metric(name, "params.yaml: gates.champion.metric")
    if not _measurable(holdout, scores):
        return Gate("champion", "fail", f"{name} of the challenger is undefined", threshold=-margin, n=holdout.rows)
    if not _measurable(holdout, champion):
        return Gate("champion", "unknown", f"{name} of the champion is undefined", threshold=-margin, n=holdout.rows)
    found = holdout.gain(measured, scores, champion, threshold)
    status: Status = "unknown"
    if found.lower is not None and found.upper is not None:
        status = "pass" if found.lower > -margin else "fail" if found.upper < -margin else "unknown"
    detail = f"gain in {name} over the champion is {_range(found)}, above {-margin:g} is needed"
    return _gate("champion", status, detail, found, -margin, holdout)


def judge(gates: Sequence[Gate], params: GateParams, *, champion: str | None, bootstrap: str = "") -> ModelVerdict:
    """The verdict that follows from the gates.

    Parameters
    ----------
    gates : sequence of Gate
        All of them.
    params : GateParams
        ``unknown_blocks`` says whether a comparison too uncertain to call stops the challenger.
    champion : str or None
        Digest of the champion that was compared with.
    bootstrap : str
        Why there is none.
    """
    if not gates:
        return ModelVerdict("rejected", "nothing was judged: no gate was run", ())
    blocking = ("fail", "unknown") if params.unknown_blocks else ("fail",)
    stopped = [gate for gate in gates if gate.status in blocking]
    compared = f"compared with champion {champion[:12]}" if champion else f"bootstrap: {bootstrap or 'no champion'}"
    if stopped:
        said = "; ".join(f"{gate.name} {_SAID[gate.status]}: {gate.detail}" for gate in stopped)
        return ModelVerdict("rejected", f"{said} ({compared})", tuple(gates))
    return ModelVerdict("passed", f"all {len(gates)} gates passed ({compared})", tuple(gates))


def unchanged(digest: str) -> ModelVerdict:
    """The challenger is the champion, byte for byte: there is nothing to judge and nothing to deploy."""
    return ModelVerdict("unchanged", f"the challenger is the champion itself, digest {digest[:12]}: nothing to deploy")


_SAID = {"fail": "failed", "unknown": "is too uncertain to call"}


def _measurable(holdout: Holdout, scores: Floats) -> bool:
    return holdout.both_answers and len(scores) == holdout.rows and bool(np.isfinite(scores).all())


def _gate(name: str, status: Status, detail: str, found: Interval, threshold: float, holdout: Holdout) -> Gate:
    return Gate(name, status, detail, found.estimate, found.lower, found.upper, threshold, holdout.rows)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _range(found: Interval) -> str:
    return f"{found.estimate:+.4f} [{_shown(found.lower)}, {_shown(found.upper)}]"
