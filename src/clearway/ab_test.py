"""Is the new version better by enough to be worth having? A fixed split that ends when that is proven, either way.

The goal is a metric of which more is better. *promote*: the new version's mean is proven to be above the stable one's
by the lift, and every metric of the canary judge is proven harmless. *withdraw*: the lift is proven not to be reached:
nothing is wrong with the version, so nobody bars it. *rollback*: a metric of the canary judge is proven worse. The
evidence is anytime-valid and clustered by routing key (:mod:`clearway.sequences`), so that looking every hour costs
nothing, and the least number of samples is there for what no statistics know: that a week has seven different days.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from clearway import canary, sequences
from clearway.canary import CanaryVerdict, Extra, Judgement, MetricVerdict
from clearway.params import ABParams, CanaryParams, CanaryStep
from clearway.sequences import Arm, Contrast
from clearway.target import BINARY, Target

TENTH = 0.1
"""Of the range of the goal: a size of difference that is looked for beside the lift."""


def judge_ab(
    observations: pd.DataFrame,
    goal: Extra,
    rules: ABParams,
    params: CanaryParams,
    target: Target = BINARY,
    *,
    low: float = 0.0,
    extras: tuple[Extra, ...] = (),
    segment: int = 0,
) -> CanaryVerdict:
    """Judge an A/B test on all that was observed since it began.

    Parameters
    ----------
    observations : DataFrame
        As :func:`clearway.canary.judge`.
    goal : Extra
        What is to rise. As every extra it says how much is *lost*: 1 is the worst.
    rules : ABParams
    params : CanaryParams
        Error budget and margins of what must not get worse; the last step's margin holds.
    target : Target
    low : float
        The goal's number where all is lost, in units of ``goal.scale`` above zero: the lift is a share of the mean.
    extras : tuple of Extra
        Further metrics that must not get worse.
    segment : int
        As :func:`clearway.canary.judge`.
    """
    step = CanaryStep(weight=rules.weight, margin=params.steps[-1].margin, min_requests=1)
    others = tuple(one for one in extras if one.name != goal.name)
    guarded = canary.judge(observations, step, params, target, extras=others, segment=segment)
    ordered = canary.in_order(observations, step)
    tally = canary.tallies(ordered, step, params, target, extras=(replace(goal, late=False),), segment=segment)[-1]
    contrast = replace(tally, values=1 - tally.values, kind="mean").contrast()
    raised = Contrast("mean", contrast.canary, _times(contrast.stable, 1 + rules.lift))
    beyond = rules.lift * low / goal.scale
    found = sequences.process(raised, beyond)
    scales = tuple(sorted({max(rules.lift, 0.005), TENTH}))
    wins = bool(sequences.evidence(found, scales) > np.log(1 / rules.alpha))
    loses = bool(sequences.evidence(found.opposite, scales) > np.log(1 / rules.alpha))
    shown = 1 - tally.values
    canary_mean, stable_mean = (low + goal.scale * _mean(shown[side]) for side in (tally.treated, ~tally.treated))
    measured = int(tally.values.size)
    split = guarded.sample_ratio is None or guarded.sample_ratio.holds

    verdict: Judgement = "hold"
    said = f"{goal.name}: new {canary_mean:.4g}, stable {stable_mean:.4g} in {measured:,} samples"
    if guarded.verdict == "rollback":
        verdict, sentence = "rollback", guarded.sentence
    elif not split:
        sentence = guarded.sentence
    elif measured < rules.min_samples:
        sentence = f"{said}: fewer than the {rules.min_samples:,} that the test asks for"
    elif loses:
        verdict, sentence = "withdraw", f"{said}: a lift of {rules.lift:.1%} is proven not to be reached"
    elif not wins:
        sentence = f"{said}: whether the lift is {rules.lift:.1%} is not decided yet"
    elif guarded.verdict != "promote":
        sentence = f"{said}: a lift of {rules.lift:.1%} is proven, but {guarded.sentence}"
    else:
        verdict, sentence = "promote", f"{said}: a lift of at least {rules.lift:.1%} is proven; {guarded.sentence}"
    metric = MetricVerdict(
        name=goal.name,
        status="pass" if wins else "fail" if loses else "open",
        canary=None if np.isnan(canary_mean) else canary_mean,
        stable=None if np.isnan(stable_mean) else stable_mean,
        estimate=None if np.isnan(canary_mean - stable_mean) else canary_mean - stable_mean,
        lower=_bound(raised, rules, scales, beyond, goal.scale, larger=True),
        upper=_bound(raised, rules, scales, beyond, goal.scale, larger=False),
        margin=0.0,
        n_canary=int(tally.treated.sum()),
        n_stable=int((~tally.treated).sum()),
        keys_canary=int(contrast.canary.keys),
        keys_stable=int(contrast.stable.keys),
        design=float(np.nan_to_num(contrast.canary.design, posinf=measured)),
    )
    return guarded.model_copy(
        update={
            "verdict": verdict,
            "sentence": sentence,
            "metrics": (metric, *guarded.metrics),
            "more_requests": None,
            "more_minutes": None,
            "provisional": False,
        }
    )


def _times(arm: Arm, factor: float) -> Arm:
    return replace(arm, total=arm.total * factor, squares=arm.squares * factor**2)


def _bound(
    raised: Contrast, rules: ABParams, scales: tuple[float, ...], beyond: float, scale: float, *, larger: bool
) -> float:
    """What the new mean is proven to be above (or below) the raised stable mean, in the goal's unit."""
    tried = np.linspace(-1 - rules.lift, 1 + rules.lift, 4001)
    found = sequences.process(raised, tried)
    refused = sequences.evidence(found if larger else found.opposite, scales) > np.log(1 / rules.alpha)
    if not refused.any():
        edge = tried[0] if larger else tried[-1]
    else:
        edge = tried[refused].max() if larger else tried[refused].min()
    return float((edge - beyond) * scale)


def _mean(values: sequences.Floats) -> float:
    return float(values.mean()) if values.size else float("nan")
