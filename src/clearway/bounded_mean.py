"""A confidence sequence for one mean: an interval that holds at every look at once.

Where two versions answer at the same time, what compares them (:mod:`clearway.sequences`) says more.

References
----------
Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting, JRSS-B 86(1), theorem 2: the
predictable plug-in empirical-Bernstein confidence sequence.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sides = Literal["one", "two"]
Floats = NDArray[np.float64]

MAX_BET = 0.75
"""Largest bet; theorem 2 allows any constant below 1, and the paper recommends 1/2 or 3/4."""


@dataclass(frozen=True)
class Sequence:
    """An estimate and its bounds after each observation; index 0 is before the first."""

    estimate: Floats
    lower: Floats
    upper: Floats


def bounded_mean(values: Floats, alpha: float, sides: Sides, planned: float | None = None) -> Sequence:
    """Confidence sequence for the mean of independent observations in [0, 1].

    Parameters
    ----------
    values : array, shape (..., n)
        Observations in the order in which they arrived; leading axes are separate sequences.
    alpha : float
        ``sides="two"``: the chance that the mean is ever outside [lower, upper] is at most alpha.
        ``sides="one"``: the chance that it is ever below lower is at most alpha, and the same for above upper.
    planned : float, optional
        How many observations a decision is expected to take, chosen before the first: bounds are then tightest there,
        as the paper's choice for a fixed sample size is, and valid everywhere. Without it they are tuned for no
        particular number, which makes them about a third wider.

    Returns
    -------
    Sequence
        Arrays of shape (..., n + 1). Before the first observation the bounds are 0 and 1.

    Notes
    -----
    The bound at each look is that look's own: bounds are not intersected over time. Each look is covered by the same
    guarantee, and where traffic changes over the day the sequence follows its average instead of going empty.

    Raises
    ------
    ValueError
        A value is outside [0, 1] or NaN, or alpha is outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha} must be between 0 and 1")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("values must lie in [0, 1]")
    level = np.log((2 if sides == "two" else 1) / alpha)
    count = np.arange(1, values.shape[-1] + 1, dtype=np.float64)

    # Running mean and variance, each with half an observation of prior weight, and known *before* each observation.
    running_mean = (0.5 + np.cumsum(values, axis=-1)) / (count + 1)
    mean_before = _shift(running_mean, 0.5)
    variance = (0.25 + np.cumsum((values - running_mean) ** 2, axis=-1)) / (count + 1)
    variance_before = _shift(variance, 0.25)

    horizon = count * np.log1p(count) if planned is None else np.maximum(count, planned)
    bet = np.minimum(np.sqrt(2 * level / (variance_before * horizon)), MAX_BET)
    surprise = 4 * (values - mean_before) ** 2
    penalty = (-np.log1p(-bet) - bet) / 4  # psi_E(bet)

    bets = np.cumsum(bet, axis=-1)
    centre = np.cumsum(bet * values, axis=-1) / bets
    radius = (level + np.cumsum(surprise * penalty, axis=-1)) / bets
    return Sequence(
        estimate=_prepend(np.cumsum(values, axis=-1) / count, np.nan),
        lower=_prepend(np.clip(centre - radius, 0, 1), 0.0),
        upper=_prepend(np.clip(centre + radius, 0, 1), 1.0),
    )


def _shift(array: Floats, first: float) -> Floats:
    """The array one step later, with ``first`` in front."""
    return _prepend(array[..., :-1], first) if array.shape[-1] else array


def _prepend(array: Floats, first: float) -> Floats:
    return np.concatenate([np.full((*array.shape[:-1], 1), first), array], axis=-1)
