"""May a version that was only ever shown copies of requests begin to answer? A pure judge on pairs of scores.

Both versions scored the same requests, so each pair is compared with itself and a few hundred say much. The evidence is
anytime-valid and clustered by routing key (:mod:`clearway.sequences`).
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from clearway import sequences
from clearway.params import CanaryShadow
from clearway.sequences import Arm, Contrast, Floats

if TYPE_CHECKING:
    import pandas as pd


class ShadowVerdict(BaseModel):
    """Whether two versions agree on the same requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["agree", "disagree", "hold"]
    sentence: str
    n_pairs: int
    difference: float | None
    """Mean absolute difference of the two scores; None without a pair."""
    difference_at_most: float
    flips: float | None
    """Share of pairs whose answers differ."""
    flips_at_most: float


def judge_shadow(
    pairs: "pd.DataFrame", rules: CanaryShadow, *, threshold: float = 0.5, alpha: float = 0.05
) -> ShadowVerdict:
    """Judge paired scores.

    Parameters
    ----------
    pairs : DataFrame
        One row per request with ``id``, ``entity`` (routing key or null), ``stable`` and ``canary``: the two scores in
        [0, 1]. A canary score that is missing or no probability differs by 1 and flips.
    rules : CanaryShadow
    threshold : float
        From which score on the answer is yes.
    alpha : float
        Chance, at most, that a version that differs by more than the rules allow is let through, and that one that
        does not is stopped, however often this is asked.
    """
    usable = pairs[pairs["stable"].between(0, 1)]
    stable = usable["stable"].to_numpy(dtype=np.float64)
    canary = usable["canary"].to_numpy(dtype=np.float64)
    lost = ~((canary >= 0) & (canary <= 1))
    apart = np.where(lost, 1.0, np.abs(canary - stable))
    flipped = np.where(lost, True, (canary >= threshold) != (stable >= threshold)).astype(np.float64)
    unit = usable["entity"].where(usable["entity"].notna(), usable["id"])
    keys = np.asarray(unit.factorize()[0], dtype=np.int64)
    level = float(np.log(2 / alpha))
    limits = (("score difference", apart, rules.max_difference), ("flips", flipped, rules.max_flips))
    highest, words, over, under = [], [], False, len(usable) >= rules.min_pairs
    for name, values, limit in limits:
        contrast = _against_nothing(values, keys)
        found = sequences.process(contrast, limit)
        scales = (max(limit, 0.01),)
        over |= bool(sequences.evidence(found, scales) > level)
        under &= bool(sequences.evidence(found.opposite, scales) > level)
        tried = np.linspace(0, 1, 1001)
        refused = sequences.evidence(sequences.process(contrast, tried).opposite, scales) > level
        highest.append(float(tried[refused].min()) if refused.any() else 1.0)
        words.append(f"{name} at most {highest[-1]:.3f} (limit {limit:g})")
    verdict: Literal["agree", "disagree", "hold"] = "disagree" if over else "agree" if under else "hold"
    return ShadowVerdict(
        verdict=verdict,
        sentence=f"{len(usable):,} pairs of at least {rules.min_pairs:,}: " + "; ".join(words),
        n_pairs=len(usable),
        difference=float(apart.mean()) if apart.size else None,
        difference_at_most=highest[0],
        flips=float(flipped.mean()) if flipped.size else None,
        flips_at_most=highest[1],
    )


def _against_nothing(values: Floats, keys: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Contrast:
    """The mean of one sample, as a difference from a zero that is known for certain."""
    arm = sequences.summarise(values, keys, np.zeros(values.size, dtype=np.int64), 1)
    endless, nothing = np.array([np.inf]), np.zeros(1)
    return Contrast("mean", arm, Arm(endless, nothing, nothing, np.array(1.0), np.array(np.inf)))
