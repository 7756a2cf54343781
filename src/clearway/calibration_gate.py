"""Whether a score means what it says: of the rows scored 0.3, three in ten are positive.

The gate judges the expected calibration error (Naeini, Cooper & Hauskrecht, AAAI 2015) in bins of equally many rows
(Nguyen & O'Connor, EMNLP 2015). Beside it are reported the Brier score and the slope and intercept of Cox's
recalibration (Biometrika 45, 1958): a slope below 1 means scores that are too extreme, an intercept that they are too
low (above 0) or too high.

Of several classes the score of the one that is answered is judged: of the rows answered with 0.8, eight in ten are
answered rightly (top-label calibration; Guo, Pleiss, Sun & Weinberger, ICML 2017).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from clearway.gates import Gate, Holdout, Status
from clearway.metrics import Floats, Metric, Weighted, metric
from clearway.paired import FEWEST, UNDEFINED, Interval
from clearway.target import BINARY, top_label

BINS = 10
_CLIP = 1e-6
"""Scores nearer to 0 or 1 have no finite log-odds, or one that would outweigh all others."""
_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """How well the scores of a model are calibrated, each with its interval."""

    error: Interval
    """Expected calibration error; 0 is best."""
    brier: Interval
    """The metric of that name: of several classes over all their probabilities, as it is everywhere else."""
    slope: Interval
    """1 is best."""
    intercept: Interval
    """0 is best, in log-odds; of the same fit as the slope."""
    bins: int
    """Bins that hold rows; equal scores share one."""


def calibration_error(bins: int) -> Metric:
    """The expected calibration error as a metric: the mean over bins of |share of yes − mean score|, by rows.

    The edges are quantiles of the scores, so that the bins are as equal as ties allow; a resample keeps them.
    """

    def weighted(labels: Floats, scores: Floats, threshold: float) -> Weighted:
        labels, scores = top_label(labels, scores)
        codes = _bins(scores, bins)
        gaps = labels - scores
        count = int(codes.max()) + 1

        def value(weights: NDArray[Any]) -> float:
            return float(np.abs(np.bincount(codes, weights * gaps, count)).sum() / weights.sum())

        return value

    def value(labels: Floats, scores: Floats, threshold: float) -> float:
        return weighted(labels, scores, threshold)(np.ones(len(labels)))

    return Metric("calibration_error", False, value, weighted)


def calibration_of(holdout: Holdout, scores: Floats, bins: int = BINS) -> Calibration | None:
    """How well ``scores`` are calibrated on the holdout.

    A bin's share of yes is noisy, and its distance from the mean score is never below 0: on few rows the error is too
    large, and resampling adds as much again. The bootstrap therefore gives the interval its width, and the estimate its
    middle; what is left of the bias errs on the safe side.

    Parameters
    ----------
    holdout : Holdout
    scores : float64 array of shape (rows,), or (rows, classes)
    bins : int

    Returns
    -------
    Calibration or None
        None where it is undefined: the labels are all the same, or a score is no probability, as a number that is
        predicted is none.
    """
    if not _defined(holdout, scores):
        return None
    measured = calibration_error(bins)
    brier = holdout.interval(metric("brier", kind=holdout.target.kind), scores)
    labels, scores = top_label(holdout.labels, scores)
    holdout = replace(holdout, labels=labels, target=BINARY)
    slope, intercept = recalibration(holdout, scores)
    return Calibration(
        error=_centred(holdout.interval(measured, scores)),
        brier=brier,
        slope=slope,
        intercept=intercept,
        bins=len(np.unique(_bins(scores, bins))),
    )


def calibration_gate(holdout: Holdout, found: Calibration | None, max_error: float) -> Gate:
    """The upper bound of the expected calibration error is at most ``max_error``: pass if surely, fail if surely not.

    ``found`` is of :func:`calibration_of`; where that is None, nothing was measured: fail.
    """
    name = "calibration"
    if found is None:
        return Gate(
            name, "fail", "calibration is undefined on these rows and scores", threshold=max_error, n=holdout.rows
        )
    error = found.error
    status: Status = "fail"
    if error.lower is not None and error.upper is not None:
        status = "pass" if error.upper <= max_error else "fail" if error.lower > max_error else "unknown"
    upper = "undefined" if error.upper is None else f"{error.upper:.4f}"
    detail = (
        f"upper bound of the calibration error in {found.bins} bins is {upper}, at most {max_error:g} is needed; "
        f"{described(found)}"
    )
    return Gate(name, status, detail, error.estimate, error.lower, error.upper, max_error, holdout.rows)


def calibration_champion_gate(
    holdout: Holdout, scores: Floats, champion: Floats | None, margin: float, bins: int = BINS
) -> Gate:
    """Calibrated no worse than the champion by ``margin`` on the same rows, by the paired bootstrap.

    Parameters
    ----------
    holdout : Holdout
    scores : float64 array of shape (rows,), or (rows, classes)
    champion : float64 array of the same shape or None
        None where it could not score these rows: fail.
    margin : float
        In the unit of the expected calibration error.
    """
    name = "calibration_champion"
    defined = _defined(holdout, scores)
    if champion is None or not defined or not _defined(holdout, champion):
        who = "challenger" if not defined else "champion"
        return Gate(name, "fail", f"calibration of the {who} is undefined", threshold=-margin, n=holdout.rows)
    gain = _centred(holdout.gain(calibration_error(bins), scores, champion), least=-math.inf)
    status: Status = "unknown"
    if gain.lower is not None and gain.upper is not None:
        status = "pass" if gain.lower > -margin else "fail" if gain.upper < -margin else "unknown"
    bounds = "undefined" if gain.lower is None else f"{gain.lower:+.4f}, {gain.upper:+.4f}"
    detail = (
        f"the calibration error is smaller than the champion's by {gain.estimate:+.4f} [{bounds}], above {-margin:g} "
        "is needed"
    )
    return Gate(name, status, detail, gain.estimate, gain.lower, gain.upper, -margin, holdout.rows)


def recalibration(holdout: Holdout, scores: Floats) -> tuple[Interval, Interval]:
    """Slope and intercept of the logistic regression of the labels on the log-odds of the scores (Cox, 1958).

    Wald intervals; where rows share an entity, with the sandwich variance of entities (Liang & Zeger, Biometrika 73,
    1986). Scores are clipped to within 1e-6 of 0 and 1.

    Returns
    -------
    Interval, Interval
        Undefined where all scores are alike, or the labels are separated by them, so that there is no best fit; without
        bounds where there are fewer than ``FEWEST`` entities.
    """
    odds = logit(np.clip(scores, _CLIP, 1 - _CLIP))
    if not odds.std() > 0:
        return UNDEFINED, UNDEFINED
    design = np.column_stack([np.ones_like(odds), odds])
    fitted = np.zeros(2)
    for _ in range(_STEPS):  # Newton's method; the likelihood is concave, but its first step may be too long
        chance = expit(design @ fitted)
        information = design.T @ (design * (chance * (1 - chance))[:, None])
        if not np.linalg.cond(information) < 1e12:
            return UNDEFINED, UNDEFINED
        step = np.linalg.solve(information, design.T @ (holdout.labels - chance))
        fitted = fitted + step * min(1.0, 2.0 / float(np.abs(step).max() or 1.0))
        if np.abs(step).max() < 1e-9:
            break
    else:
        return UNDEFINED, UNDEFINED
    covariance = np.linalg.inv(information)
    if holdout.groups is not None:
        if holdout.units < FEWEST:
            return Interval(float(fitted[1]), None, None), Interval(float(fitted[0]), None, None)
        codes = np.unique(holdout.groups, return_inverse=True)[1]
        residuals = (holdout.labels - expit(design @ fitted))[:, None] * design
        sums = np.column_stack([np.bincount(codes, weights=column) for column in residuals.T])
        covariance = covariance @ (sums.T @ sums) @ covariance * holdout.units / (holdout.units - 1)
    reach = float(ndtri(holdout.confidence)) * np.sqrt(np.diag(covariance))
    intercept, slope = (
        Interval(float(value), float(value - far), float(value + far)) for value, far in zip(fitted, reach, strict=True)
    )
    return slope, intercept


def described(found: Calibration) -> str:
    """Slope, intercept and Brier score in one phrase."""
    parts = (("slope", found.slope), ("intercept", found.intercept), ("Brier score", found.brier))
    return ", ".join(f"{name} {_shown(interval)}" for name, interval in parts)


def _bins(scores: Floats, bins: int) -> NDArray[np.intp]:
    """The bin of each score; equal scores share one, so that there may be fewer than ``bins``."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    codes: NDArray[np.intp] = np.searchsorted(edges, scores, side="right")
    return codes


def _centred(found: Interval, least: float = 0.0) -> Interval:
    if found.lower is None or found.upper is None:
        return found
    reach = (found.upper - found.lower) / 2
    return Interval(found.estimate, max(least, found.estimate - reach), found.estimate + reach)


def _defined(holdout: Holdout, scores: Floats) -> bool:
    probabilities = holdout.target.kind != "regression" and bool(holdout.target.sane(scores).all())
    return holdout.answers_differ and len(scores) == holdout.rows and probabilities


def _shown(interval: Interval) -> str:
    if not math.isfinite(interval.estimate):
        return "undefined"
    bounds = "" if interval.lower is None else f" [{interval.lower:.3f}, {interval.upper:.3f}]"
    return f"{interval.estimate:.3f}{bounds}"
