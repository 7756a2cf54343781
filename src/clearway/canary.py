"""Is the canary as good as the stable version beside it? A pure judge on what both answered at the same time.

Three metrics, each the difference canary minus stable with a confidence sequence (:mod:`clearway.sequences`):

- ``errors``: share of requests that failed or whose score is no probability (NaN counts as an error);
- ``slow``: share of requests slower than the latency objective (an unknown latency counts as slow);
- ``score``: mean score, of the first answer of each entity only, because an entity's later answers repeat its first.
  Of several classes it is the probability of each class, every one a metric of its own: a canary that answers other
  classes as surely as before is another model. Of a number it is the prediction in spreads of the stable model's
  training labels, cut off at :data:`REACH` of them on either side of their median, because the sequences need bounds.

The verdict is *rollback* as soon as one metric is proven worse, *promote* only when each is proven harmless within the
step's margin after its ``min_requests``, and *hold* otherwise: no traffic, too little traffic and no control traffic
prove nothing.

One error budget covers the whole rollout. ``promote_alpha`` and ``rollback_alpha`` are divided equally over metrics and
steps (Bonferroni), and each arm of a difference gets half, so that a rollout of a version no worse than stable is ever
rolled back with a chance of at most ``rollback_alpha``, however often it is judged. For promotion, which needs all
metrics at once, the same division is stricter than it must be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway import sequences
from clearway.params import CanaryParams, CanaryStep
from clearway.sequences import Floats
from clearway.target import BINARY, Target

if TYPE_CHECKING:  # a rollback, which only reads verdicts, does not wait for pandas
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Judgement = Literal["promote", "rollback", "hold"]
Status = Literal["pass", "fail", "open"]

SCORE = "score"
OBSERVED = ("id", "version", "role", "entity", "served_at", "status", "latency_ms", "score", "probabilities")
"""Columns of the prediction log that the judge reads; the last only of several classes."""
REACH = 4.0
"""Spreads of the labels around their median within which a predicted number is told from another."""
DRAWN = 6
"""Metrics that are drawn, at most: of many classes those that are furthest apart."""


class MetricVerdict(BaseModel):
    """What one metric says. Estimates and bounds are differences, canary minus stable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    """pass: proven harmless; fail: proven harmful; open: not known yet."""
    canary: float | None
    """Mean of the canary's observations; None without any."""
    stable: float | None
    estimate: float | None
    lower: float
    upper: float
    margin: float
    """Largest difference that may remain possible."""
    n_canary: int
    n_stable: int


class CanaryVerdict(BaseModel):
    """The verdict on one step of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Judgement
    sentence: str
    weight: int
    n_canary: int
    n_stable: int
    metrics: tuple[MetricVerdict, ...]


@dataclass(frozen=True)
class Trace:
    """One metric over a step: differences after each observation, index 0 before the first.

    ``harm`` and ``safe`` are of values in [0, 1].
    """

    name: str
    requests: Floats
    """Canary observations so far."""
    means: tuple[float | None, float | None]
    """Canary's and stable's mean over the whole step."""
    counts: tuple[int, int]
    """Canary's and stable's observations over the whole step."""
    harm: sequences.Sequence
    """At the rollback level."""
    safe: sequences.Sequence
    """At the promotion level."""
    scale: float = 1.0
    """What differences are multiplied with to be in the unit of their margin."""

    @property
    def two_sided(self) -> bool:
        """Whether a shift either way is harm."""
        return is_score(self.name)


def is_score(name: str) -> bool:
    """Whether the metric of that name is the score, or that of one class."""
    return name.startswith(SCORE)


def judge(
    observations: "pd.DataFrame", step: CanaryStep, params: CanaryParams, target: Target = BINARY
) -> CanaryVerdict:
    """Judge one step on all that was observed since it began.

    Parameters
    ----------
    observations : DataFrame
        One row per answered request of this step with the columns :data:`OBSERVED`; any order.
    step : CanaryStep
        The margin and the least number of requests before it may be passed.
    params : CanaryParams
        Error budget, latency objective and score margin of the rollout.
    target : Target
        What the stable version answers.
    """
    n_canary = int((observations["role"] == "canary").sum())
    n_stable = int((observations["role"] == "stable").sum())
    metrics = tuple(
        _judge_score(trace, params) if trace.two_sided else _judge_harm(trace, step, params)
        for trace in measure(observations, step, params, target)
    )
    verdict, sentence = _conclude(metrics, n_canary, n_stable, step)
    return CanaryVerdict(
        verdict=verdict, sentence=sentence, weight=step.weight, n_canary=n_canary, n_stable=n_stable, metrics=metrics
    )


def measure(
    observations: "pd.DataFrame", step: CanaryStep, params: CanaryParams, target: Target = BINARY
) -> list[Trace]:
    """The differences as confidence sequences, in the order in which answers were given.

    They are tuned to be tightest when the canary has answered the step's ``min_requests``.
    """
    ordered = observations[observations["role"].isin(["canary", "stable"])]
    ordered = ordered.sort_values("served_at", kind="stable", ignore_index=True)
    score = ordered["score"].to_numpy(dtype=np.float64)
    answered = (ordered["status"] == 200).to_numpy() & np.isfinite(score)
    if target.kind != "regression":
        answered &= (score >= 0) & (score <= (1 if target.binary else 1 + 1e-6))
    if target.kind == "multiclass":
        answered &= np.array([isinstance(said, dict) for said in ordered["probabilities"]], dtype=bool)
    quick = ordered["latency_ms"].to_numpy(dtype=np.float64) <= params.latency_ms
    treated = (ordered["role"] == "canary").to_numpy()
    unit = ordered["entity"].where(ordered["entity"].notna(), ordered["id"])
    first = ~unit.duplicated().to_numpy() & answered
    said = list(ordered["probabilities"][first]) if target.kind == "multiclass" else None
    scores = _scores(score[first], said, target)
    budget = (2 + len(scores)) * len(params.steps)
    return [
        _trace("errors", (~answered).astype(np.float64), treated, step, params, budget),
        _trace("slow", (~quick).astype(np.float64), treated, step, params, budget),
        *(
            _trace(name, values, treated[first], step, params, budget, shown=shown, scale=scale)
            for name, values, shown, scale in scores
        ),
    ]


def _scores(
    score: Floats, said: "Sequence[dict[str, float]] | None", target: Target
) -> list[tuple[str, Floats, Floats, float]]:
    """Name, values in [0, 1], the same as a person is told them, and the scale of differences, of each score."""
    if target.kind == "regression":
        assert target.centre is not None  # checked when it was made
        assert target.spread is not None
        reach = 2 * REACH
        return [(SCORE, np.clip(0.5 + (score - target.centre) / (reach * target.spread), 0, 1), score, reach)]
    if said is None:
        values = np.clip(score, 0, 1)
        return [(SCORE, values, values, 1.0)]
    classes = sorted({name for row in said for name in row} | set(target.classes))
    made = [(name, np.clip([row.get(name, 0.0) for row in said], 0, 1)) for name in classes]
    return [(f"{SCORE} of {name!r}", values, values, 1.0) for name, values in made]


def draw_steps(steps: Sequence[tuple[CanaryStep, list[Trace]]], params: CanaryParams) -> "Figure":
    """Each step a row, each metric a column: the interval of the difference against its margins."""
    from matplotlib.figure import Figure

    width = min(DRAWN, max((len(traces) for _, traces in steps), default=1))
    figure = Figure(figsize=(4.2 * width, 2.9 * max(len(steps), 1)), layout="constrained")
    grid = figure.subplots(max(len(steps), 1), width, squeeze=False)
    for row, (step, traces) in zip(grid, steps, strict=False):
        for axes, trace in zip(row, _drawn(traces), strict=False):
            _draw(axes, trace, step, params)
    return figure


def _drawn(traces: list[Trace]) -> list[Trace]:
    """All of them, or where there are many those scores that are furthest apart."""
    apart = sorted((t for t in traces if t.two_sided), key=lambda t: -np.nan_to_num(abs(float(t.safe.estimate[-1]))))
    kept = {trace.name for trace in apart[: DRAWN - 2]}
    return [trace for trace in traces if not trace.two_sided or trace.name in kept]


def _trace(
    name: str,
    values: Floats,
    treated: NDArray[np.bool_],
    step: CanaryStep,
    params: CanaryParams,
    budget: int,
    *,
    shown: Floats | None = None,
    scale: float = 1.0,
) -> Trace:
    """One metric; ``budget`` is how many judgements share the error, ``shown`` the values as a person is told them."""
    sides: sequences.Sides = "two" if is_score(name) else "one"
    planned = (float(step.min_requests), step.min_requests * (100 - step.weight) / step.weight)
    told = values if shown is None else shown
    canary, stable = told[treated], told[~treated]
    return Trace(
        name=name,
        requests=np.concatenate([[0.0], np.cumsum(treated, dtype=np.float64)]),
        means=(_mean(canary), _mean(stable)),
        counts=(canary.size, stable.size),
        harm=sequences.difference(values, treated, params.rollback_alpha / budget, sides, planned),
        safe=sequences.difference(values, treated, params.promote_alpha / budget, sides, planned),
        scale=scale,
    )


def _judge_harm(trace: Trace, step: CanaryStep, params: CanaryParams) -> MetricVerdict:
    """Errors and slowness: only more of them is harm."""
    lower, upper = float(trace.harm.lower[-1]), float(trace.safe.upper[-1])
    status: Status = "open"
    if lower > params.rollback_margin:
        status = "fail"
    elif upper <= step.margin:
        status = "pass"
    return _metric(trace, status, lower, upper, step.margin)


def _judge_score(trace: Trace, params: CanaryParams) -> MetricVerdict:
    """Scores: a shift either way is harm."""
    lower, upper = (trace.scale * float(bound[-1]) for bound in (trace.harm.lower, trace.harm.upper))
    if lower > params.score_margin or upper < -params.score_margin:
        return _metric(trace, "fail", lower, upper, params.score_margin)
    lower, upper = (trace.scale * float(bound[-1]) for bound in (trace.safe.lower, trace.safe.upper))
    inside = -params.score_margin <= lower and upper <= params.score_margin
    return _metric(trace, "pass" if inside else "open", lower, upper, params.score_margin)


def _metric(trace: Trace, status: Status, lower: float, upper: float, margin: float) -> MetricVerdict:
    estimate = trace.scale * float(trace.safe.estimate[-1])
    return MetricVerdict(
        name=trace.name,
        status=status,
        canary=trace.means[0],
        stable=trace.means[1],
        estimate=None if np.isnan(estimate) else estimate,
        lower=lower,
        upper=upper,
        margin=margin,
        n_canary=trace.counts[0],
        n_stable=trace.counts[1],
    )


def _conclude(
    metrics: Sequence[MetricVerdict], n_canary: int, n_stable: int, step: CanaryStep
) -> tuple[Judgement, str]:
    traffic = f"{n_canary:,} canary and {n_stable:,} stable requests at {step.weight}%"
    if n_canary == 0:
        return "hold", f"the canary at {step.weight}% has answered no request yet: no traffic proves nothing"
    failed = [metric for metric in metrics if metric.status == "fail"]
    if failed:  # valid at any time: harm that is proven is not let out on more people to fill a quota
        return "rollback", f"{traffic}: " + "; ".join(_harm(metric) for metric in failed)
    if n_canary < step.min_requests:
        return "hold", f"{traffic}: fewer canary requests than the {step.min_requests:,} the step asks for"
    if n_stable == 0:
        return "hold", f"{traffic}: without control traffic there is nothing to compare the canary with"
    undecided = [metric for metric in metrics if metric.status == "open"]
    if undecided:
        return "hold", f"{traffic}: not decided yet: " + "; ".join(_doubt(metric) for metric in undecided)
    return "promote", f"{traffic}: proven harmless: " + "; ".join(_doubt(metric) for metric in metrics)


def _harm(metric: MetricVerdict) -> str:
    level = _number if is_score(metric.name) else _share
    assert metric.canary is not None
    assert metric.stable is not None
    least = min(abs(metric.lower), abs(metric.upper))
    return f"{metric.name}: canary {level(metric.canary)}, stable {level(metric.stable)}, apart by at least {least:.3f}"


def _doubt(metric: MetricVerdict) -> str:
    if is_score(metric.name):
        return f"{metric.name} differs by {metric.lower:+.3f} to {metric.upper:+.3f} (margin ±{metric.margin:g})"
    return f"{metric.name} at most {metric.upper:+.3f} (margin {metric.margin:g})"


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _draw(axes: "Axes", trace: Trace, step: CanaryStep, params: CanaryParams) -> None:
    two_sided = trace.two_sided
    margins = (-params.score_margin, params.score_margin) if two_sided else (params.rollback_margin, step.margin)
    thin = np.unique(np.linspace(0, trace.requests.size - 1, 400).astype(int))
    requests, upper = trace.requests[thin], trace.scale * trace.safe.upper[thin]
    lower = trace.scale * (trace.safe if two_sided else trace.harm).lower[thin]
    axes.fill_between(requests, lower, upper, step="post", alpha=0.25, color="#2b6cb0", linewidth=0)
    axes.plot(requests, trace.scale * trace.safe.estimate[thin], color="#2b6cb0", linewidth=1.4)
    axes.axhline(margins[0], color="#c22f2f", linewidth=1, linestyle=":" if two_sided else "-")
    axes.axhline(margins[1], color="#c22f2f" if two_sided else "#1a7f4b", linewidth=1, linestyle=":")
    reach = 3 * max(abs(margins[0]), abs(margins[1]), abs(trace.scale * float(trace.harm.lower[-1])), 0.02)
    axes.set_ylim(-reach, reach)
    title = f"{trace.name} at {step.weight}%".replace(
        "$", r"\$"
    )  # matplotlib sets what stands between two as a formula
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("canary entities" if two_sided else "canary requests", fontsize=8)
    axes.set_ylabel("canary minus stable", fontsize=8)
    axes.tick_params(labelsize=8)
