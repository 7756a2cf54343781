"""How much better one model is than another on the same rows, without resampling where a formula is known.

Every function answers with an :class:`Interval` of the gain: above 0 is better. Each of its bounds is one-sided, of
level ``confidence``. Rows that share an entity (many visits of one patient) stand or fall together, so the entities and
not the rows are what was drawn: tell them by ``groups``.

>>> import numpy as np
>>> labels = np.array([0.0, 1.0] * 50)
>>> delong_gain(labels, labels / 2, labels, 0.95)  # another scale, the same ranking
Interval(estimate=0.0, lower=0.0, upper=0.0)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, expit, logit, ndtri, stdtrit
from scipy.stats import binomtest

from clearway.metrics import Floats

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 10
"""Fewer entities (or rows, where each is its own), or fewer whose rank changed, are too few for a normal
approximation."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds, which are None where the rows cannot give any."""

    estimate: float
    lower: float | None
    upper: float | None


UNDEFINED = Interval(math.nan, None, None)


def groups_of(entities: "pd.Series[Any]") -> NDArray[np.intp] | None:
    """Which rows belong together, by the entity of each.

    Parameters
    ----------
    entities : Series of shape (rows,)
        A null is of no entity: its row is a group of its own.

    Returns
    -------
    int array of shape (rows,) or None
        Equal numbers share an entity. None where no two rows do.
    """
    groups = np.array(entities.factorize()[0], dtype=np.intp)
    alone = groups < 0
    groups[alone] = groups.max(initial=0) + 1 + np.arange(np.count_nonzero(alone))
    return groups if len(groups) and np.bincount(groups).max() > 1 else None


def placements(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """The share of negatives below each positive, and of positives above each negative; ties count half.

    The mean of either is the area under the ROC curve. From one sort, in O(rows log rows), as by the midranks of Sun &
    Xu (IEEE Signal Processing Letters 21(11), 2014).

    Parameters
    ----------
    labels : float64 array of shape (rows,)
        0.0 or 1.0, both among them.
    scores : float64 array of shape (rows,)

    Returns
    -------
    float64 arrays of shape (positives,) and (negatives,)
    """
    return _placements(labels == 1, _ranks(scores))


def _ranks(scores: Floats) -> NDArray[np.intp]:
    """The rank of each score among the distinct ones, from 0."""
    return np.unique(scores, return_inverse=True)[1]


def _placements(positive: NDArray[np.bool_], ranks: NDArray[np.intp]) -> tuple[Floats, Floats]:
    distinct = int(ranks.max()) + 1
    shares = []
    for side, others in ((positive, ~positive), (~positive, positive)):
        found = np.bincount(ranks[others], minlength=distinct)
        shares.append((np.cumsum(found) - found / 2)[ranks[side]] / np.count_nonzero(others))
    return shares[0], 1 - shares[1]


def delong_gain(
    labels: Floats, ours: Floats, theirs: Floats, confidence: float, groups: NDArray[np.intp] | None = None
) -> Interval:
    """By how much the area under the ROC curve of ``ours`` is larger than that of ``theirs``.

    The variance is that of DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988); with ``groups`` that of Obuchowski
    (Biometrics 53, 1997), which is the same where each group is one row. The quantile is Student's, with one degree of
    freedom less than there are groups of the scarcer answer: DeLong's normal one is its limit.

    Where fewer than ``FEWEST`` of either answer changed their place the variance is hardly measured (two models that
    both separate every row have none at all). The interval is then no narrower than what such a count of changes
    allows: see :func:`widened`.

    Parameters
    ----------
    labels : float64 array of shape (rows,)
        0.0 or 1.0.
    ours, theirs : float64 arrays of shape (rows,)
    confidence : float
        One-sided level of each bound.
    groups : int array of shape (rows,), optional
        Equal numbers share an entity.

    Returns
    -------
    Interval
        Exactly 0 where both rank all rows alike. Undefined (NaN, no bounds) where the labels are all the same or a
        score is not finite; without bounds where fewer than ``FEWEST`` groups have either answer.
    """
    positive = labels == 1
    if not 0 < np.count_nonzero(positive) < len(labels) or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return UNDEFINED
    our_ranks, their_ranks = _ranks(ours), _ranks(theirs)
    if np.array_equal(our_ranks, their_ranks):
        return Interval(0.0, 0.0, 0.0)
    places = zip(_placements(positive, our_ranks), _placements(positive, their_ranks), strict=True)
    changes = [our - their for our, their in places]
    estimate = float(changes[0].mean())
    codes, sides, fewest = _answered(positive, groups)
    if fewest < FEWEST:
        return Interval(estimate, None, None)
    total = _distinct(codes)
    variance = _clustered_variance(changes, sides, estimate, total)
    if variance < 0:  # Obuchowski's correction for few groups can take more than there is
        return Interval(estimate, None, None)
    reach = float(stdtrit(fewest - 1, confidence)) * math.sqrt(variance)
    found = Interval(estimate, max(-1.0, estimate - reach), min(1.0, estimate + reach))
    changed = min(_distinct(side[change != 0]) for side, change in zip(sides, changes, strict=True))
    return found if changed >= FEWEST else widened(found, changed, min(fewest, total // 2), confidence)


def auc_interval(labels: Floats, scores: Floats, confidence: float, groups: NDArray[np.intp] | None = None) -> Interval:
    """The area under the ROC curve of one model, by the variance of :func:`delong_gain` on the scale of log-odds.

    There the interval stays within 0 and 1 and is the wider on the side away from the edge (Qin & Hotilovac,
    Statistical Methods in Medical Research 17, 2008). Of independent rows it is no narrower than Newcombe's, whose
    variance is that of the bound and not of the estimate (method 5, Statistics in Medicine 25, 2006): few rows near an
    area of 1 show too little of theirs, and the percentile bootstrap is far too sure of them.

    Parameters
    ----------
    labels : float64 array of shape (rows,)
        0.0 or 1.0, both among them.
    scores : float64 array of shape (rows,)
        Finite.
    confidence : float
        One-sided level of each bound.
    groups : int array of shape (rows,), optional
        Equal numbers share an entity.

    Returns
    -------
    Interval
        Without bounds where fewer than ``FEWEST`` groups have either answer. Of width 0 where all rows are told apart,
        or none.
    """
    positive = labels == 1
    places = placements(labels, scores)
    estimate = float(places[0].mean())
    codes, sides, fewest = _answered(positive, groups)
    if fewest < FEWEST:
        return Interval(estimate, None, None)
    if not 0 < estimate < 1:
        return Interval(estimate, estimate, estimate)
    variance = _clustered_variance(list(places), sides, estimate, _distinct(codes))
    if variance < 0:
        return Interval(estimate, None, None)
    reach = float(stdtrit(fewest - 1, confidence)) * math.sqrt(variance) / (estimate * (1 - estimate))
    lower, upper = (float(expit(logit(estimate) + side * reach)) for side in (-1, 1))
    if groups is None:
        answers = len(places[0]), len(places[1])
        lower = min(lower, _newcombe_lower(estimate, *answers, confidence))
        upper = max(upper, 1 - _newcombe_lower(1 - estimate, *answers, confidence))
    return Interval(estimate, min(lower, estimate), max(upper, estimate))


def _newcombe_lower(area: float, positives: int, negatives: int, confidence: float) -> float:
    """The area below ``area``, above 0, that is just as far from it as its own standard error reaches."""
    z, half = float(ndtri(confidence)), (positives + negatives) / 2 - 1

    def excess(truth: float) -> float:
        spread = truth * (1 - truth) * (1 + half * ((1 - truth) / (2 - truth) + truth / (1 + truth)))
        return area - truth - z * math.sqrt(spread / (positives * negatives))

    return float(brentq(excess, 0.0, area, xtol=1e-12))


def _answered(
    positive: NDArray[np.bool_], groups: NDArray[np.intp] | None
) -> tuple[NDArray[np.intp], tuple[NDArray[np.intp], NDArray[np.intp]], int]:
    """The group of each row, those of the positive and of the negative ones, and how many groups the scarcer has."""
    codes = np.arange(len(positive)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sides = codes[positive], codes[~positive]
    return codes, sides, min(_distinct(side) for side in sides)


def _distinct(codes: NDArray[np.intp]) -> int:
    return int(np.count_nonzero(np.bincount(codes)))


def _clustered_variance(
    changes: list[Floats], sides: tuple[NDArray[np.intp], NDArray[np.intp]], mean: float, total: int
) -> float:
    """Obuchowski's variance of the mean change of placements, from the sums of each of ``total`` groups."""
    sums, own = [], 0.0
    for change, side in zip(changes, sides, strict=True):
        each = np.bincount(side, weights=change - mean, minlength=total)
        sums.append(each / len(change))
        count = _distinct(side)
        own += count / (count - 1) * float(np.sum(sums[-1] ** 2))
    return own + 2 * total / (total - 1) * float(np.sum(sums[0] * sums[1]))


def widened(found: Interval, changed: int, units: int, confidence: float) -> Interval:
    """``found``, but no narrower than ``changed`` differences in ``units`` independent trials allow.

    The bound is Clopper and Pearson's (Biometrika 26, 1934) of the share of units that differ, each of which can
    gain or lose at most 1. Where none of n differed it is about 3 / n, the rule of three.

    Parameters
    ----------
    found : Interval
    changed, units : int
        More differences than units are taken as all of them.
    confidence : float
        One-sided level of each bound.
    """
    if found.lower is None or found.upper is None:
        return found
    share = float(betaincinv(changed + 1, units - changed, confidence)) if changed < units else 1.0
    return Interval(found.estimate, min(found.lower, -share), max(found.upper, share))


@dataclass(frozen=True)
class Discordant:
    """Rows that just one of two models answers rightly."""

    better: int
    """Rows that ours answers rightly and theirs wrongly."""
    worse: int
    rows: int
    """All rows."""

    @property
    def p_value(self) -> float:
        """Exact two-sided p-value of McNemar's test: such a split if both erred equally often."""
        both = self.better + self.worse
        return float(binomtest(self.better, both, 0.5).pvalue) if both else 1.0


def discordant(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> Discordant:
    """Count the rows, of bool arrays of shape (rows,), that just one of two models answers rightly: ours, or theirs."""
    return Discordant(int(np.count_nonzero(right & ~other)), int(np.count_nonzero(other & ~right)), len(right))


def accuracy_gain(pairs: Discordant, confidence: float) -> Interval:
    """By how much the share of right answers of ours is larger than that of theirs.

    The score interval of a paired difference of proportions (Tango, Statistics in Medicine 17, 1998). It holds where
    few rows or none are discordant: no difference in n rows gives ±z² / (n + z²), not a width of 0. Rows must be
    independent; where they share entities use a bootstrap of entities.

    Parameters
    ----------
    pairs : Discordant
    confidence : float
        One-sided level of each bound.

    Returns
    -------
    Interval
        Undefined (NaN, no bounds) without rows.
    """
    if not pairs.rows:
        return UNDEFINED
    z = float(ndtri(confidence))
    return Interval(
        (pairs.better - pairs.worse) / pairs.rows,
        _tango_lower(pairs.better, pairs.worse, pairs.rows, z),
        -_tango_lower(pairs.worse, pairs.better, pairs.rows, z),
    )


def _tango_lower(better: int, worse: int, rows: int, z: float) -> float:
    """The gain below the estimate that Tango's score test just does not reject."""

    def excess(gain: float) -> float:
        b = (2 * rows - better + worse) * gain - better - worse
        root = math.sqrt(max(b * b + 8 * rows * worse * gain * (1 - gain), 0.0))
        share_worse = (root - b) / (4 * rows)  # most likely where the gain is this one
        variance = rows * (2 * share_worse + gain * (1 - gain))
        return better - worse - rows * gain - z * math.sqrt(max(variance, 0.0))

    top = (better - worse) / rows - 1e-9  # at the estimate itself the variance may be 0, which is a root and no bound
    return float(brentq(excess, -1.0, top, xtol=1e-12)) if top > -1 else -1.0


def resolution(found: Interval, rows: int, margin: float) -> tuple[float, int | None] | None:
    """The smallest margin by which equal models pass on these rows, and the rows that would resolve ``margin``.

    Parameters
    ----------
    found : Interval
    rows : int
        Rows it was found on. A width shrinks with their square root.
    margin : float
        In the unit of the gain.

    Returns
    -------
    (float, int or None) or None
        None for the rows where the margin is 0: no number of them resolves it. None where there are no bounds.
    """
    if found.lower is None or found.upper is None:
        return None
    resolved = (found.upper - found.lower) / 2
    return resolved, math.ceil(rows * (resolved / margin) ** 2) if margin > 0 else None
