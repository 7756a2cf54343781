"""The gates between a trained model and a bundle: pure functions from labels and scores to a verdict.

The champion is compared by a formula where there is one (``clearway.paired``). A share of independent rows (accuracy,
precision, recall; F1 follows from one) has the exact bounds of Clopper and Pearson (Biometrika 26, 1934), which hold
where hardly any row is wrong and resamples show next to nothing; ``roc_auc`` has those of DeLong and Newcombe. Every
other bound comes from one bootstrap of the holdout: rows are drawn with replacement, seeded, and a comparison draws the
same rows for both models, so that what they share cancels out (Efron & Tibshirani 1993, chapters 13 and 16). Where rows
share an entity, entities are drawn, each with all its rows (Field & Welsh, JRSS B 69, 2007). Beyond that rows are taken
as independent: where they come in other clumps (many entities on one bad day) the truth is less sure than the interval
says.

It is the percentile interval, expanded for few draws: its tails are as far out as Student's t says, not the normal
(Hesterberg, The American Statistician 69, 2015). Where a resample leaves a metric undefined (no positive drawn) it is
left out, and a metric undefined in more than a tenth of them has no interval; nor has any with fewer than ten entities.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, stdtrit

from clearway.metrics import Floats, Metric, floor_metric, metric
from clearway.paired import FEWEST, accuracy_gain, auc_interval, delong_gain, discordant, resolution
from clearway.paired import Interval as Interval  # of every gate, so it is theirs to give
from clearway.params import ClassesGate, GateParams
from clearway.target import BINARY, Target

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
class Holdout:
    """The rows that every model is judged on, and how they are resampled.

    Attributes
    ----------
    labels : float64 array of shape (rows,)
        As of :func:`clearway.target.judged`: 0.0 or 1.0, the position of a class, or a number.
    threshold : float
        Score from which the answer is yes; only a binary target has one.
    confidence : float
        One-sided level of each bound: a gate asks one question, so a true value below its lower bound is as rare as
        ``1 - confidence``. The two bounds together are a two-sided interval of level ``2 * confidence - 1``.
    resamples : int
        Bootstrap resamples.
    seed : int
        The same seed draws the same rows.
    groups : int array of shape (rows,), optional
        Equal numbers share an entity and are drawn together; None where each row stands for itself.
    target : Target
        What is answered. Wherever scores are asked for, a model's outputs are meant: of shape (rows,), or of several
        classes (rows, classes).
    """

    labels: Floats
    threshold: float
    confidence: float
    resamples: int
    seed: int
    groups: NDArray[np.intp] | None = None
    target: Target = BINARY

    @property
    def rows(self) -> int:
        return len(self.labels)

    @cached_property
    def units(self) -> int:
        """How many independent draws the holdout is: entities where rows share them, else rows."""
        return self.rows if self.groups is None else len(np.unique(self.groups))

    @property
    def answers_differ(self) -> bool:
        """Whether the labels are not all the same."""
        return bool(self.rows and self.labels.min() < self.labels.max())

    def right(self, scores: Floats, threshold: float | None = None) -> NDArray[np.bool_]:
        """The rows that are answered as the label says; ``threshold`` where it is not the holdout's."""
        answers = self.target.answers(scores, self.threshold if threshold is None else threshold)
        found: NDArray[np.bool_] = answers == self.labels
        return found

    def interval(self, measured: Metric, scores: Floats) -> Interval:
        """The metric of ``scores`` and its interval: exact of a share of independent rows, else the bootstrap's.

        That of ``roc_auc`` is :func:`clearway.paired.auc_interval`.

        A value that is perfect on these rows has no spread in resamples. Then as many entities may be wrong as none of
        those of the scarcest answer allows.
        """
        estimate = measured.value(self.labels, scores, self.threshold)
        if measured.counted is not None and self.groups is None:
            about, right = measured.counted(self.labels, scores, self.threshold)
            lower, upper = _exact(int(right.sum()), int(about.sum()), self.confidence)
            return Interval(float(estimate), measured.of_share(lower), measured.of_share(upper))
        if measured.name == "roc_auc":
            found = auc_interval(self.labels, scores, self.confidence, self.groups)
        else:
            weighted = measured.weighted(self.labels, scores, self.threshold)
            found = self._percentiles(estimate, np.array([weighted(weights) for weights in self._draws()]))
        perfect = 1.0 if measured.higher_is_better else 0.0
        if self.target.kind == "regression" or not found.lower == found.upper == perfect:
            return found
        wrong = _exact(0, self._scarcest(), self.confidence)[1]
        return Interval(perfect, perfect - wrong, perfect) if perfect else Interval(perfect, perfect, wrong)

    def _scarcest(self) -> int:
        """Rows of the answer that the fewest have, or entities where rows share them."""
        units = np.arange(self.rows) if self.groups is None else self.groups
        return min(len(np.unique(units[self.labels == answer])) for answer in np.unique(self.labels))

    def gain(self, measured: Metric, scores: Floats, other: Floats, other_threshold: float | None = None) -> Interval:
        """By how much ``scores`` is better than ``other``, and its paired bootstrap interval; above 0 is better.

        ``other_threshold`` is the score from which ``other`` means yes, where it is not that of ``scores``.
        """
        theirs_from = self.threshold if other_threshold is None else other_threshold
        ours = measured.weighted(self.labels, scores, self.threshold)
        theirs = measured.weighted(self.labels, other, theirs_from)
        estimate = measured.value(self.labels, scores, self.threshold) - measured.value(self.labels, other, theirs_from)
        values = np.array([ours(weights) - theirs(weights) for weights in self._draws()])
        found = self._percentiles(measured.sign * estimate, measured.sign * values)
        if found.lower != found.upper or (theirs_from == self.threshold and np.array_equal(scores, other)):
            return found
        if self.target.kind == "regression":  # errors have no largest value, so neither has what was not seen
            return Interval(found.estimate, None, None)
        if found.lower is None:
            return found
        # no resample changed anything: not that none ever will, by as many entities as none of those here allows
        reach = _exact(0, self.units, self.confidence)[1]
        return Interval(found.estimate, found.estimate - reach, found.estimate + reach)

    def _draws(self) -> Iterator[NDArray[np.intp]]:
        """How often each row is drawn, resample by resample: integer arrays of shape (rows,)."""
        random = np.random.default_rng(self.seed)
        units = self.units
        codes = None if self.groups is None else np.unique(self.groups, return_inverse=True)[1]
        for _ in range(self.resamples):
            drawn = np.bincount(random.integers(0, units, units), minlength=units)
            yield drawn if codes is None else drawn[codes]

    def _percentiles(self, estimate: float, values: NDArray[np.float64]) -> Interval:
        defined = values[np.isfinite(values)]
        if len(defined) < 0.9 * len(values) or (self.groups is not None and self.units < FEWEST):
            return Interval(float(estimate), None, None)
        freedom = max(self.units - 1, 1)
        tail = float(ndtr(-np.sqrt(1 + 1 / freedom) * stdtrit(freedom, self.confidence)))
        if tail * len(defined) < FEWEST_BEYOND:
            reach = float(stdtrit(freedom, self.confidence) * defined.std(ddof=1))
            return Interval(float(estimate), float(estimate) - reach, float(estimate) + reach)
        lower, upper = np.quantile(defined, [tail, 1 - tail])
        return Interval(float(estimate), float(lower), float(upper))


def _exact(right: int, rows: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds of a share, each one-sided; all is possible without rows."""
    lower = float(betaincinv(right, rows - right + 1, 1 - confidence)) if right else 0.0
    return lower, float(betaincinv(right + 1, rows - right, confidence)) if right < rows else 1.0


FEWEST_BEYOND = 4
"""With fewer resamples beyond a bound their quantile says little: then it is Student's t times their spread."""
LIVE_CONFIDENCE, LIVE_RESAMPLES = 0.95, 400
"""One-sided level of each bound, and bootstrap resamples, for a model in use: no gate's parameters apply to it."""


def live_interval(
    measured: Metric, labels: Floats, scores: Floats, threshold: float, seed: int, target: Target = BINARY
) -> Interval | None:
    """A metric of a model in use on the labels known by now, and its bootstrap interval.

    Parameters
    ----------
    measured : Metric
    labels, scores : float64 arrays
        As of :func:`clearway.target.judged`.
    threshold : float
        Score from which the model answers yes.
    seed : int
    target : Target

    Returns
    -------
    Interval or None
        None where it is undefined: the labels are all the same, or a score is no finite number.
    """
    holdout = Holdout(labels, threshold, LIVE_CONFIDENCE, LIVE_RESAMPLES, seed, target=target)
    return holdout.interval(measured, scores) if _measurable(holdout, scores) else None


def rows_gate(holdout: Holdout, minimum: int) -> Gate:
    """Enough labelled rows to judge on, with different answers among them."""
    enough = holdout.rows >= minimum and holdout.answers_differ
    if holdout.target.binary:
        said = f", {int(holdout.labels.sum()):,} positive; at least {minimum:,} and both answers are needed"
    else:
        what = "numbers" if holdout.target.kind == "regression" else "classes"
        said = f" of {len(np.unique(holdout.labels)):,} {what}; at least {minimum:,} of different {what} are needed"
    detail = f"{holdout.rows:,} holdout rows{said}"
    return Gate("rows", "pass" if enough else "fail", detail, holdout.rows, threshold=minimum, n=holdout.rows)


def classes_gate(holdout: Holdout, classes: Sequence[str], params: ClassesGate) -> Gate:
    """The holdout can speak of each class, and few of its rows are of classes that training never saw.

    Parameters
    ----------
    holdout : Holdout
        Of several classes; its target is the challenger's.
    classes : sequence of str
        Those that its labels are positions in: the challenger's first, then others.
    params : ClassesGate

    Returns
    -------
    Gate
        ``classes``; ``estimate`` is the share of rows of unseen classes. Unknown where a class has too few rows.
    """
    known = len(holdout.target.classes)
    rows = np.bincount(holdout.labels.astype(np.intp), minlength=len(classes))
    unseen = int(rows[known:].sum())
    share = unseen / holdout.rows if holdout.rows else 1.0
    few = [f"{classes[k]!r} ({rows[k]:,})" for k in range(known) if rows[k] < params.min_rows]
    strange = [f"{classes[k]!r} ({rows[k]:,})" for k in range(known, len(classes)) if rows[k]]
    said = [f"{known} classes, {params.min_rows:,} rows of each are needed"]
    if few:
        said.append(f"too few to judge: {', '.join(few[:5])}{f' and {len(few) - 5} more' if len(few) > 5 else ''}")
    if strange:
        said.append(
            f"{unseen:,} of {holdout.rows:,} rows are of classes that training never saw, counted as answered wrongly, "
            f"a share of {params.max_unseen:.3g} is allowed: {', '.join(strange[:5])}"
        )
    status: Status = "fail" if share > params.max_unseen else "unknown" if few else "pass"
    return Gate("classes", status, "; ".join(said), share, threshold=params.max_unseen, n=holdout.rows)


def finite_gate(scores: Floats, target: Target = BINARY) -> Gate:
    """Every score is a probability, those of several classes sum to 1, or it is a number that float32 holds."""
    bad = int(len(scores) - np.count_nonzero(target.sane(scores)))
    what = {
        "binary": "scores are not a number from 0 to 1",
        "multiclass": "rows have no probabilities that sum to 1",
        "regression": "predictions are not finite numbers, or too large for float32",
    }[target.kind]
    detail = f"{bad:,} of {len(scores):,} {what}"
    return Gate("finite_scores", "fail" if bad else "pass", detail, bad, threshold=0, n=len(scores))


def parity_gate(served: Floats, trained: Floats, tolerance: float, target: Target = BINARY) -> Gate:
    """What ONNX Runtime will answer is what scikit-learn answered, on every holdout row."""
    difference = target.differences(served, trained)
    largest = float(difference.max()) if len(difference) and np.isfinite(difference).all() else None
    passed = largest is not None and largest <= tolerance
    shown = "not a number" if largest is None else f"{largest:.2g}"
    detail = f"largest difference between ONNX and scikit-learn scores is {shown}, at most {tolerance:g} is allowed"
    detail += "" if passed else "; without ONNX (train.onnx: false) scikit-learn itself would answer, slower"
    return Gate("onnx_parity", "pass" if passed else "fail", detail, largest, threshold=tolerance, n=len(served))


def no_onnx_gate(reason: str, *, required: bool, rows: int) -> Gate:
    """In place of :func:`parity_gate` where a model has no ONNX: what answers is what was trained, only slower."""
    why = reason or "no ONNX, so no fast path"
    if required:
        return Gate("onnx_parity", "fail", f"{why}; gates.require_onnx asks for it", n=rows)
    return Gate("onnx_parity", "pass", f"{why}; scikit-learn itself answers, slower: nothing to compare", n=rows)


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
    measured = floor_metric(name, holdout.target.kind)
    gate = f"floor_{name}"
    if not _measurable(holdout, scores):
        return Gate(gate, "fail", f"{name} is undefined on these rows and scores", threshold=floor, n=holdout.rows)
    found = holdout.interval(measured, scores)
    bound, side = (found.lower, "lower") if measured.higher_is_better else (found.upper, "upper")
    need = "at least" if measured.higher_is_better else "at most"
    if bound is None:
        return _gate(
            gate, "fail", f"{name} has no interval: too few rows of one answer, or entities", found, floor, holdout
        )
    passed = measured.sign * bound >= measured.sign * floor
    detail = f"{side} bound of {name} is {bound:.4f}, {need} {floor:g} is needed"
    return _gate(gate, "pass" if passed else "fail", detail, found, floor, holdout)


def constant_gate(holdout: Holdout, name: str, scores: Floats, constant: float | Sequence[float]) -> Gate:
    """Better than the answer that ignores the question: the lower bound of the gain over ``constant`` is above 0.

    ``constant`` is the training's share of positives, its shares of each class, or the mean or median of its numbers.
    """
    if not _measurable(holdout, scores):
        return Gate("gain_over_constant", "fail", f"{name} is undefined on these rows and scores", n=holdout.rows)
    measured = metric(name, "params.yaml: gates.champion.metric", holdout.target.kind)
    found = holdout.gain(measured, scores, constant_outputs(constant, scores))
    passed = found.lower is not None and found.lower > 0
    detail = f"lower bound of the gain in {name} over a constant {'score' if holdout.target.binary else 'answer'} is "
    detail += f"{_shown(found.lower)}, above 0 is needed"
    return _gate("gain_over_constant", "pass" if passed else "fail", detail, found, 0.0, holdout)


def constant_outputs(constant: float | Sequence[float], like: Floats) -> Floats:
    """The same output for every row, of the shape of ``like``; classes that ``constant`` has no share of get 0."""
    made = np.zeros_like(like, dtype=np.float64)
    if like.ndim == 2:
        shares = np.asarray(constant, dtype=np.float64)
        made[:, : len(shares)] = shares
    else:
        made[:] = constant
    return made


def baseline_gate(holdout: Holdout, name: str, scores: Floats, baseline: Floats | None, gain: float) -> Gate:
    """The simple model is beaten by ``gain``: pass if surely, fail if surely not, else unknown."""
    measured = metric(name, "params.yaml: gates.champion.metric", holdout.target.kind)
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

    The interval is DeLong's for ``roc_auc`` (Obuchowski's where rows share an entity), Tango's for ``accuracy`` of
    independent rows, beside the exact McNemar test, and the paired bootstrap's for anything else. An uncertain answer
    names the margin that these rows resolve.

    Raises
    ------
    UsageError
        There is no metric of that name.
    """
    measured = metric(name, "params.yaml: gates.champion.metric", holdout.target.kind)
    if not _measurable(holdout, scores):
        return Gate("champion", "fail", f"{name} of the challenger is undefined", threshold=-margin, n=holdout.rows)
    if not _measurable(holdout, champion):
        return Gate("champion", "fail", f"{name} of the champion is undefined", threshold=-margin, n=holdout.rows)
    theirs_from = holdout.threshold if threshold is None else threshold
    if theirs_from == holdout.threshold and np.array_equal(scores, champion):
        detail = f"every {'score' if holdout.target.binary else 'answer'} is the champion's, so {name} is too"
        return _gate("champion", "pass", detail, Interval(0.0, 0.0, 0.0), -margin, holdout)
    found, how = paired_gain(holdout, measured, scores, champion, theirs_from)
    status: Status = "unknown"
    if found.lower is not None and found.upper is not None:
        status = "pass" if found.lower > -margin else "fail" if found.upper < -margin else "unknown"
    detail = f"gain in {name} over the champion is {_range(found)}, above {-margin:g} is needed ({how})"
    if status == "unknown":
        detail += f"; {_resolved(found, holdout.rows, margin)}"
    return _gate("champion", status, detail, found, -margin, holdout)


def paired_gain(
    holdout: Holdout, measured: Metric, scores: Floats, champion: Floats, theirs_from: float
) -> tuple[Interval, str]:
    """The gain over the champion by the sharpest method there is for the metric, and which that was."""
    over = "" if holdout.groups is None else f" over {holdout.units:,} entities"
    if measured.name == "roc_auc":
        found = delong_gain(holdout.labels, scores, champion, holdout.confidence, holdout.groups)
        return found, f"DeLong{over}"
    if measured.name == "accuracy" and holdout.groups is None:
        pairs = discordant(holdout.right(scores), holdout.right(champion, theirs_from))
        split = f"{pairs.better:,} rows only it answers rightly, {pairs.worse:,} only the champion"
        return accuracy_gain(pairs, holdout.confidence), f"Tango; {split}, exact McNemar p = {pairs.p_value:.3g}"
    return holdout.gain(measured, scores, champion, theirs_from), f"paired bootstrap{over}"


def _resolved(found: Interval, rows: int, margin: float) -> str:
    resolved = resolution(found, rows, margin)
    if resolved is None:
        return f"no interval: at least {FEWEST} rows, and entities where rows share them, of each answer are needed"
    smallest, needed = resolved
    if smallest < margin:
        return f"these rows resolve a margin of {smallest:.2g}, so the difference itself is close to the margin"
    said = f"these rows resolve a margin of {smallest:.2g} at best"
    return said if needed is None else f"{said}, {margin:g} needs about {needed:,} rows"


def judge(gates: Sequence[Gate], params: GateParams, *, champion: str | None, bootstrap: str = "") -> ModelVerdict:
    """The verdict that follows from the gates.

    Parameters
    ----------
    gates : sequence of Gate
        All of them.
    params : GateParams
        ``unknown_blocks``, and that of slices and fairness, say whether a comparison too uncertain to call stops the
        challenger.
    champion : str or None
        Digest of the champion that was compared with.
    bootstrap : str
        Why there is none.
    """
    if not gates:
        return ModelVerdict("rejected", "nothing was judged: no gate was run", ())
    stopped = [gate for gate in gates if gate.status == "fail" or (gate.status == "unknown" and _blocks(gate, params))]
    compared = f"compared with champion {champion[:12]}" if champion else f"bootstrap: {bootstrap or 'no champion'}"
    if stopped:
        said = "; ".join(f"{gate.name} {_SAID[gate.status]}: {gate.detail}" for gate in stopped)
        return ModelVerdict("rejected", f"{said} ({compared})", tuple(gates))
    unknown = sum(gate.status == "unknown" for gate in gates)
    passed = f"{len(gates) - unknown} gates passed, {unknown} uncertain ones do not block"
    said = passed if unknown else f"all {len(gates)} gates passed"
    return ModelVerdict("passed", f"{said} ({compared})", tuple(gates))


def _blocks(gate: Gate, params: GateParams) -> bool:
    """Whether the gate stops the challenger when it is too uncertain to call."""
    if gate.name.startswith("slice_"):
        return params.slices.unknown_blocks
    if gate.name == "classes":
        return params.classes.unknown_blocks
    return params.fairness.unknown_blocks if gate.name.startswith("fairness_") else params.unknown_blocks


def unchanged(digest: str) -> ModelVerdict:
    """The challenger is the champion, byte for byte: there is nothing to judge and nothing to deploy."""
    return ModelVerdict("unchanged", f"the challenger is the champion itself, digest {digest[:12]}: nothing to deploy")


_SAID = {"fail": "failed", "unknown": "is too uncertain to call"}


def _measurable(holdout: Holdout, scores: Floats) -> bool:
    return holdout.answers_differ and len(scores) == holdout.rows and bool(np.isfinite(scores).all())


def _gate(name: str, status: Status, detail: str, found: Interval, threshold: float, holdout: Holdout) -> Gate:
    estimate = found.estimate if math.isfinite(found.estimate) else None
    return Gate(name, status, detail, estimate, found.lower, found.upper, threshold, holdout.rows)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _range(found: Interval) -> str:
    return f"{found.estimate:+.4f} [{_shown(found.lower)}, {_shown(found.upper)}]"
