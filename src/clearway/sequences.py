"""How sure one may be, at any time, that two versions differ: evidence that holds at every look at once.

A fixed-sample test looked at a hundred times raises a false alarm about one time in three; this evidence does not,
whenever and for whatever reason one looks or stops. It is *clustered*: a routing key's requests repeat each other, so
keys are what is independent, not requests. And it is *carried* over the steps of a rollout: each step compares versions
that answered at the same time and in the same shares (a stratum); what the strata say is added up, never their traffic.

The steps of the reasoning, each with its source:

1. *Within a stratum* the difference is measured against a hypothesis by a signed root: of the binomial likelihood ratio
   for rates, with the share of the control estimated under the hypothesis (Farrington and Manning 1990), so that a few
   rare events err no more often than many; of Student's statistic for means.
2. *Keys*: counts are divided by the design effect, the variance between keys over that which independent requests would
   have (Rao and Scott 1992, Biometrics 48). A key's deviation is added up over all strata before it is squared. While
   there are too few events to see whether they share keys, they are taken to.
3. *Time*: roots, weighted by the root of their information, add up to a score process, which behaves as a Brownian
   motion in information time (Scharfstein, Tsiatis and Robins 1997; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
   2024, Time-uniform central limit theory, Annals of Statistics 52). Where a key's requests keep coming, the process is
   more correlated over time than a Brownian motion and of the same variance, and by Slepian's lemma crosses a boundary
   no more often.
4. *Evidence* is Robbins' half-normal mixture of that motion's likelihood ratios: a martingale under the hypothesis,
   which ever passes 1/alpha with a chance of at most alpha (Howard, Ramdas, McAuliffe and Sekhon 2021).

These are limits for many keys: below :data:`LEAST_KEYS` in either arm there is no evidence at all, and what is left of
the approximation is measured in docs/error-rates.md. All functions take leading axes, one for each simulated rollout.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["rate", "mean"]

LEAST_KEYS = 20
"""Routing keys of each arm below which nothing is said."""
PRIOR_VARIANCE = 0.02
"""Of one imagined observation of each arm of a mean, so that a few equal values are not taken for certainty."""


@dataclass(frozen=True)
class Arm:
    """What is known of one version, as sums over each stratum.

    Parameters
    ----------
    count, total, squares : array, shape (..., strata)
        How many values in [0, 1] there are, their sum, and the sum of their squares.
    design : array, shape (...)
        Design effect, at least 1: how many requests say as much as one independent one.
    keys : array, shape (...)
        Routing keys that gave the values.
    """

    count: Floats
    total: Floats
    squares: Floats
    design: Floats
    keys: Floats

    def mean(self) -> Floats:
        """Of each stratum; NaN without a value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = self.total / self.count
        return found

    def grown(self, factor: Floats) -> "Arm":
        """The same with the last stratum's values so many times over; ``factor`` has the new leading axes."""
        times = np.ones((*np.shape(factor), self.count.shape[-1]))
        times[..., -1] = factor
        one = np.ones(np.shape(factor))
        return Arm(
            self.count * times, self.total * times, self.squares * times, self.design * one, self.keys * times[..., -1]
        )


@dataclass(frozen=True)
class Contrast:
    """Canary against stable on one metric."""

    kind: Kind
    canary: Arm
    stable: Arm

    def grown(self, factor: Floats) -> "Contrast":
        """As :meth:`Arm.grown`."""
        return Contrast(self.kind, self.canary.grown(factor), self.stable.grown(factor))


@dataclass(frozen=True)
class Process:
    """The score process of each stratum against one hypothesis; positive where the difference is larger.

    ``score`` and ``information`` have the shape (..., strata), ``enough`` the shape (...): whether there are keys
    enough to say anything.
    """

    score: Floats
    information: Floats
    enough: NDArray[np.bool_]

    @property
    def opposite(self) -> "Process":
        """Positive where the difference is smaller."""
        return Process(-self.score, self.information, self.enough)


def summarise(values: Floats, keys: NDArray[np.int64], strata: NDArray[np.int64], n_strata: int) -> Arm:
    """The sums of one arm from its values, one row per request.

    Parameters
    ----------
    values : array, shape (n,)
        In [0, 1].
    keys, strata : array of int, shape (n,)
        Which routing key and which stratum each belongs to, numbered from 0.
    n_strata : int

    Raises
    ------
    ValueError
        A value is outside [0, 1] or NaN.
    """
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("values must lie in [0, 1]")
    count, total, squares = (
        np.bincount(strata, what, n_strata).astype(np.float64) for what in (np.ones_like(values), values, values**2)
    )
    with np.errstate(invalid="ignore"):
        residual = values - (total / count)[strata]
    requests = np.bincount(keys).astype(np.float64)
    deviation = np.bincount(keys, residual)
    seen = np.asarray(np.count_nonzero(requests), dtype=np.float64)
    between, within, asked, squared = (
        np.asarray(each.sum()) for each in (deviation**2, residual**2, requests, requests**2)
    )
    design = design_effect(between, within, asked, squared, seen)
    return Arm(count, total, squares, design, seen)


def design_effect(between: Floats, within: Floats, requests: Floats, squared: Floats, keys: Floats) -> Floats:
    """Variance between keys over that of independent requests, from sums over keys; at least 1.

    Parameters
    ----------
    between : array
        Sum over keys of the square of a key's summed deviations from the mean of its stratum.
    within : array
        Sum over requests of their squared deviations: for a rate about the number of events.
    requests, squared : array
        Sum over keys of the number of requests, and of its square.
    keys : array
        How many keys.

    Notes
    -----
    Two imagined events that fill whole keys are added: with no events at all nothing tells whether they would share
    keys, and with many the two do not count. One key alone has no variance between keys: its effect is infinite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = np.where(requests > 0, squared / requests, 1.0)
        corrected = np.where(keys > 1, between * keys / (keys - 1), np.inf)
        found: Floats = np.maximum((corrected + _SHARED * whole) / (within + _SHARED), 1.0)
    return found


_SHARED = 1.0
"""Imagined events of a design effect."""


def process(contrast: Contrast, delta: float | Floats) -> Process:
    """The score process of mean(canary) - mean(stable) against its being ``delta``, of each stratum."""
    canary, stable = contrast.canary, contrast.stable
    made = _rates if contrast.kind == "rate" else _means
    score, information = made(canary, stable, np.asarray(delta, dtype=np.float64))
    return Process(score, information, np.minimum(canary.keys, stable.keys) >= LEAST_KEYS)


def evidence(found: Process, scales: tuple[float, ...]) -> Floats:
    """Logarithm of the evidence that the difference is larger than the hypothesis, of all strata together.

    Parameters
    ----------
    found : Process
    scales : tuple of float
        Sizes of difference that are looked for, chosen beforehand: evidence grows fastest where the truth is about one
        of them, and is valid whatever it is.

    Returns
    -------
    array, shape (...)
        Whoever rejects the hypothesis when this ever exceeds log(1/alpha) errs with a chance of at most alpha.
    """
    return _mixture(found.score.sum(axis=-1), found.information.sum(axis=-1), found.enough, scales)


def evidence_anew(found: Process, scales: tuple[float, ...]) -> Floats:
    """As :func:`evidence`, of a mixture: half of it all strata together, the other half each stratum on its own.

    Harm that begins with a later step is not diluted by the steps before it. Stratum j gets 1/((j+1)(j+2)) of its half,
    so that the shares add up to less than 1 however many there are.
    """
    together = evidence(found, scales)
    alone = _mixture(found.score, found.information, found.enough[..., None], scales)
    order = np.arange(alone.shape[-1])
    shares = np.log(0.5 / ((order + 1.0) * (order + 2.0)))
    found_: Floats = np.logaddexp(together + np.log(0.5), np.logaddexp.reduce(alone + shares, axis=-1))
    return found_


def root(found: Process) -> Floats:
    """The signed root of all strata together: standard normal at one look if the hypothesis is true."""
    information = found.information.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(information > 0, found.score.sum(axis=-1) / np.sqrt(information), 0.0)


def sample_ratio(canary: Floats, stable: Floats, share: Floats) -> Floats:
    """Logarithm of the evidence against keys being assigned to the canary with probability ``share``.

    The sequential test of Lindon and Malek (2020), Anytime-valid inference for multinomial count data: a Dirichlet
    mixture around the promised share, one for each stratum, multiplied.

    Parameters
    ----------
    canary, stable : array, shape (..., strata)
        Routing keys that were seen for the first time in the stratum. Requests would not do: a key that asks often
        would count for many assignments, and was assigned once.
    share : array, shape (..., strata)
        In (0, 1).
    """
    a, b = _SRM_WEIGHT * share, _SRM_WEIGHT * (1 - share)
    from scipy.special import betaln  # here, because a server reads verdicts and does without SciPy

    mixed = betaln(a + canary, b + stable) - betaln(a, b)
    promised = canary * np.log(share) + stable * np.log1p(-share)
    return np.asarray((mixed - promised).sum(axis=-1), dtype=np.float64)


_SRM_WEIGHT = 100.0
"""Keys that the prior is worth: how closely it looks around the promised share."""


def _rates(canary: Arm, stable: Arm, delta: Floats) -> tuple[Floats, Floats]:
    n, m = canary.count / canary.design[..., None], stable.count / stable.design[..., None]
    x, y = canary.total / canary.design[..., None], stable.total / stable.design[..., None]
    delta = delta[..., None] if delta.ndim else delta
    control = _restricted(x, n, y, m, delta)
    shifted = np.clip(control + delta, 0.0, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = _likelihood(x, n) + _likelihood(y, m) - _likelihood(x, n, shifted) - _likelihood(y, m, control)
        size = np.sqrt(2 * np.clip(np.nan_to_num(ratio, posinf=1e6), 0.0, 1e6))
        signed = np.sign(np.where((n > 0) & (m > 0), x / n - y / m - delta, 0.0)) * size
        # at least half an event, so that no events at all are not taken for infinite precision
        least = 0.5 / (n + m)
        variance = sum(np.maximum(p * (1 - p), least) / k for p, k in ((shifted, n), (control, m)))
        information = np.where((n > 0) & (m > 0), 1 / variance, 0.0)
    return np.where(information > 0, signed * np.sqrt(information), 0.0), information


def _likelihood(events: Floats, trials: Floats, share: Floats | None = None) -> Floats:
    """Binomial log likelihood, at the largest or at ``share``."""
    p = np.where(trials > 0, events / np.maximum(trials, 1e-300), 0.0) if share is None else share
    rest = trials - events
    hits = np.where(events > 0, events * np.log(np.maximum(p, 1e-300)), 0.0)
    misses = np.where(rest > 0, rest * np.log(np.maximum(1 - p, 1e-300)), 0.0)
    return np.asarray(hits + misses, dtype=np.float64)


def _restricted(x: Floats, n: Floats, y: Floats, m: Floats, delta: Floats) -> Floats:
    """The control's share that is most likely if the canary's is larger by ``delta``: a root of a cubic.

    Farrington and Manning (1990), Test statistics and sample size formulae for comparative binomial trials with null
    hypothesis of non-zero risk difference, Statistics in Medicine 9.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(n > 0, m / n, 0.0)
        p, q = np.where(n > 0, x / n, 0.0), np.where(m > 0, y / m, 0.0)
        a = 1 + ratio
        b = -(1 + ratio + p + ratio * q + delta * (ratio + 2))
        c = delta**2 + delta * (2 * p + ratio + 1) + p + ratio * q
        d = -p * delta * (1 + delta)
        v = b**3 / (3 * a) ** 3 - b * c / (6 * a**2) + d / (2 * a)
        u = np.where(v >= 0, 1.0, -1.0) * np.sqrt(np.maximum(b**2 / (3 * a) ** 2 - c / (3 * a), 0.0))
        angle = (np.pi + np.arccos(np.clip(np.where(u != 0, v / u**3, 0.0), -1.0, 1.0))) / 3
        shifted = 2 * u * np.cos(angle) - b / (3 * a)
    found: Floats = np.clip(shifted - delta, np.maximum(0.0, -delta), np.minimum(1.0, 1.0 - delta))
    return found


def _means(canary: Arm, stable: Arm, delta: Floats) -> tuple[Floats, Floats]:
    delta = delta[..., None] if delta.ndim else delta
    variance: Floats | float = 0.0
    fewest: Floats | float = np.inf
    for arm in (canary, stable):
        with np.errstate(invalid="ignore", divide="ignore"):
            explained = np.where(arm.count > 0, arm.total**2 / arm.count, 0.0)
            spread = np.maximum(arm.squares - explained, 0.0).sum(axis=-1) + PRIOR_VARIANCE
            all_of_it = arm.count.sum(axis=-1)
            each = np.where(all_of_it > 0, spread / all_of_it, 0.0) * arm.design
            variance = variance + each[..., None] / arm.count
        fewest = np.minimum(fewest, all_of_it / arm.design)
    with np.errstate(invalid="ignore", divide="ignore"):
        both = (canary.count > 0) & (stable.count > 0)
        information = np.where(both, 1 / variance, 0.0)
        apart = np.where(both, canary.total / canary.count - stable.total / stable.count - delta, 0.0)
        student = apart * np.sqrt(information)
        # the root of the likelihood ratio of a mean whose variance is estimated
        free = np.maximum(fewest - 1, 1.0)[..., None]
        signed = np.sign(student) * np.sqrt(free * np.log1p(student**2 / free))
    return np.where(both, signed * np.sqrt(information), 0.0), information


def _mixture(score: Floats, information: Floats, enough: NDArray[np.bool_], scales: tuple[float, ...]) -> Floats:
    from scipy.special import log_ndtr

    prior = np.asarray(scales).reshape(-1, *(1,) * np.ndim(score)) ** -2.0
    spread = information + prior
    each = 0.5 * np.log(prior / spread) + score**2 / (2 * spread) + log_ndtr(score / np.sqrt(spread))
    together = np.logaddexp.reduce(each, axis=0) + np.log(2 / len(scales))
    return np.where(enough, together, -np.inf)
