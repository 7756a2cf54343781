"""Is the canary as good as the stable version beside it? A pure judge on what both answered at the same time.

Metrics, each the difference canary minus stable, with evidence that holds at every look (:mod:`clearway.sequences`):

- ``errors``: share of requests that failed or whose score is no probability (NaN counts as an error);
- ``slow``: share of requests slower than the latency objective (an unknown latency counts as slow);
- ``score``: mean score, of the first answer that each version gave each routing key, because later ones repeat it.
  Of several classes it is the probability of each class, every one a metric of its own: a canary that answers other
  classes as surely as before is another model. Of a number it is the prediction in spreads of the stable model's
  training labels, cut off at :data:`REACH` of them on either side of their median;
- whatever else is given as an :class:`Extra`: a business metric, the loss against labels that came in.

The verdict is *rollback* as soon as one metric is proven worse, *promote* only when each is proven harmless within the
step's margin after the step's least requests and minutes, and *hold* otherwise: no traffic, too little traffic, no
control, and keys that are not split as the weight promises prove nothing. Metrics that are *late* (labels) can roll
back but need not be in for a promotion, which is then provisional.

The error budget is one for the whole rollout. ``rollback_alpha`` is divided over the metrics; steps and looks cost
nothing more, because evidence is carried over steps and holds at any time: a version no worse than stable is ever
rolled back with a chance of at most ``rollback_alpha``. ``promote_alpha`` bounds the chance that a version that is
worse than the last step's margin in some metric is ever let through: promotion needs all metrics at once, so each is
tested at the whole of it (Berger 1982, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24).

Carrying evidence takes the difference to be the same at every weight. So that it may be false: what the current step's
own traffic says must not contradict its margin (:data:`CONTRADICTION`), and harm is also looked for in each step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway import sequences
from clearway.params import CanaryParams, CanaryStep
from clearway.sequences import Contrast, Floats, Kind
from clearway.target import BINARY, Target

if TYPE_CHECKING:  # a rollback, which only reads verdicts, does not wait for pandas
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Judgement = Literal["promote", "rollback", "hold", "withdraw"]
Status = Literal["pass", "fail", "open"]
Flags = NDArray[np.bool_]

SCORE = "score"
OBSERVED = ("id", "version", "role", "entity", "served_at", "status", "latency_ms", "score", "probabilities")
"""Columns of the prediction log that the judge reads; the last only of several classes."""
REACH = 4.0
"""Spreads of the labels around their median within which a predicted number is told from another."""
DRAWN = 6
"""Metrics that are drawn, at most: of many classes those that are furthest apart."""
LOOKS = 40
"""Moments at which a drawn sequence is computed."""
CONTRADICTION = 1.0
"""Standard errors by which a step's own difference may lie over its margin, whatever earlier steps said."""
LARGE = 0.25
"""A size of harm that is looked for beside the steps' margins, so that a bad canary ends early."""
CLUSTERED = 3.0
"""Design effect from which a verdict that is held says that a metric's events stick to few keys."""
AHEAD = 1000.0
"""How many times its present traffic a step is followed into the future, to say when it will be decided."""


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
    """Of the steps' differences, each weighted by how much it tells."""
    lower: float
    upper: float
    margin: float
    """Largest difference that may remain possible."""
    n_canary: int
    """Observations in all steps of the rollout."""
    n_stable: int
    keys_canary: int = 0
    """Routing keys that they come from."""
    keys_stable: int = 0
    design: float = 1.0
    """How many of the canary's observations say as much as one independent one."""
    late: bool = False
    """Whether a promotion does not wait for it."""


class SampleRatio(BaseModel):
    """Whether routing keys are split as the weights promise; of keys at their first appearance in the rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    canary: int
    stable: int
    expected: float
    """Share that the canary was to get of them."""
    evidence: float
    """Natural logarithm of the evidence against the promised split."""
    holds: bool


class CanaryVerdict(BaseModel):
    """The verdict on one step of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Judgement
    sentence: str
    weight: int
    n_canary: int
    """Requests of this step."""
    n_stable: int
    metrics: tuple[MetricVerdict, ...]
    sample_ratio: SampleRatio | None = None
    more_requests: int | None = None
    """About how many more requests of both versions will decide the step if things stay as they are; None where they
    will not within 1,000 times the present traffic."""
    more_minutes: float | None = None
    """The same in minutes, at the traffic so far."""
    provisional: bool = False
    """Whether a promotion still waits for late metrics."""


@dataclass(frozen=True)
class Rule:
    """When a difference, of values in [0, 1], is harm, and when it is none.

    Attributes
    ----------
    margin
        Largest harm that may remain possible.
    rollback
        Harm up to here is not held against the canary.
    two_sided
        Whether a shift either way is harm.
    log_harm, log_safe
        Logarithms of the evidence that proves the one or the other: log(1 / alpha).
    scales
        Sizes of harm that are looked for.
    """

    margin: float
    rollback: float
    two_sided: bool
    log_harm: float
    log_safe: float
    scales: tuple[float, ...]

    @property
    def tight(self) -> tuple[float, ...]:
        """Where the bound of what may remain is to be tightest."""
        return (max(self.margin, 0.001),)


@dataclass(frozen=True)
class Extra:
    """A metric from elsewhere: one value in [0, 1] for some of the requests, where more is worse.

    ``values`` is indexed by the id of the request, or by id and version; ``margin`` is in units of ``scale``, which is
    what differences of the values are multiplied with to be told to a person.
    """

    name: str
    values: "pd.Series[float]"
    margin: float
    kind: Kind = "mean"
    scale: float = 1.0
    late: bool = False


@dataclass(frozen=True)
class Tally:
    """One metric's observations in the order in which they were answered, and its rule."""

    name: str
    kind: Kind
    rule: Rule
    values: Floats
    """In [0, 1]."""
    shown: Floats
    """The same as a person is told them."""
    treated: Flags
    keys: NDArray[np.int64]
    strata: NDArray[np.int64]
    position: NDArray[np.int64]
    """Row of each among all requests."""
    n_strata: int
    scale: float = 1.0
    late: bool = False

    def contrast(self, until: int | None = None) -> Contrast:
        """The sums, of the first ``until`` requests."""
        upto = slice(None) if until is None else slice(0, int(np.searchsorted(self.position, until)))
        values, keys, strata, treated = self.values[upto], self.keys[upto], self.strata[upto], self.treated[upto]
        arms = [
            sequences.summarise(values[side], keys[side], strata[side], self.n_strata) for side in (treated, ~treated)
        ]
        return Contrast(self.kind, *arms)


@dataclass(frozen=True)
class Trace:
    """One metric over the current step: differences at some of its looks, in the unit of its margin."""

    name: str
    requests: Floats
    """Canary requests of the step at each look."""
    estimate: Floats
    lower: Floats
    """At the rollback level; of a two-sided metric at the promotion level, as ``upper`` is."""
    upper: Floats
    margins: tuple[float, float]
    """Where a rollback begins, and below what a promotion may; of a two-sided metric the lower and the upper margin."""
    two_sided: bool


@dataclass(frozen=True)
class Situation:
    """What is known of a step beside its metrics; arrays have one entry for each simulated rollout."""

    n_canary: Floats
    """Requests of the step."""
    n_stable: Floats
    minutes: Floats
    split: Flags
    """Whether keys are split as promised, as far as is known."""


def is_score(name: str) -> bool:
    """Whether the metric of that name is the score, or that of one class."""
    return name.startswith(SCORE)


# --- decisions on sums: these alone decide, of one rollout or of thousands of simulated ones -------------------------


def harm_rule(step: CanaryStep, params: CanaryParams, tests: int) -> Rule:
    """Of errors and slowness: only more of them is harm. ``tests`` is how many metrics share the rollback budget."""
    edges = (params.steps[0].margin, params.steps[-1].margin)
    scales = tuple(sorted({LARGE, *(edge for edge in edges if edge > 0)}))
    return Rule(
        margin=step.margin,
        rollback=params.rollback_margin,
        two_sided=False,
        log_harm=float(np.log(tests / params.rollback_alpha)),
        log_safe=float(np.log(1 / params.promote_alpha)),
        scales=scales,
    )


def score_rule(params: CanaryParams, tests: int, scale: float = 1.0) -> Rule:
    """Of scores: a shift either way is harm."""
    margin = params.score_margin / scale
    return Rule(
        margin=margin,
        rollback=margin,
        two_sided=True,
        log_harm=float(np.log(tests / params.rollback_alpha)),
        log_safe=float(np.log(1 / params.promote_alpha)),
        scales=(max(margin, 0.01),),
    )


def proves_harm(contrast: Contrast, rule: Rule) -> Flags:
    """Whether the canary is proven worse than the rule allows."""
    worse = _harm_evidence(contrast, rule, rule.rollback)
    if rule.two_sided:
        other = _harm_evidence(contrast, rule, -rule.rollback, opposite=True)
        worse = np.logaddexp(worse, other) - np.log(2)
    return np.asarray(worse > rule.log_harm)


def proves_harmless(contrast: Contrast, rule: Rule) -> Flags:
    """Whether what harm may remain is within the rule's margin, and the last stratum alone does not say otherwise."""
    safe = _is_below(contrast, rule, rule.margin)
    if rule.two_sided:
        safe = safe & _is_below(contrast, rule, -rule.margin, opposite=True)
    return safe


def decide(
    harm: Sequence[Flags], harmless: Sequence[Flags], late: Sequence[bool], now: Situation, step: CanaryStep
) -> NDArray[np.str_]:
    """The verdict *promote*, *rollback* or *hold* from what each metric proves.

    Proven harm counts at any time: it is not let out on more people to fill a quota.
    """
    enough = (now.n_canary >= step.min_requests) & (now.n_stable > 0) & (now.minutes >= step.min_minutes) & now.split
    for proven, later in zip(harmless, late, strict=True):
        enough = enough & (proven | later)
    failed = np.any(np.array(harm), axis=0)
    return np.asarray(np.where(failed, "rollback", np.where(enough, "promote", "hold")))


def split_evidence(canary: Floats, stable: Floats, weights: Floats) -> Floats:
    """Evidence against the split that the weights (percent, one for each stratum) promise; see :func:`decide`."""
    return sequences.sample_ratio(canary, stable, np.asarray(weights) / 100)


def _harm_evidence(contrast: Contrast, rule: Rule, delta: float | Floats, *, opposite: bool = False) -> Floats:
    found = sequences.process(contrast, delta)
    return sequences.evidence_anew(found.opposite if opposite else found, rule.scales)


def _is_below(contrast: Contrast, rule: Rule, delta: float | Floats, *, opposite: bool = False) -> Flags:
    found = sequences.process(contrast, delta)
    below = found if opposite else found.opposite
    with np.errstate(invalid="ignore", divide="ignore"):
        own = -below.score[..., -1] / np.sqrt(below.information[..., -1])
    contradicted = np.nan_to_num(own) > CONTRADICTION
    return np.asarray((sequences.evidence(below, rule.tight) > rule.log_safe) & ~contradicted)


def bounds(contrast: Contrast, rule: Rule, *, of_harm: bool) -> tuple[Floats, Floats]:
    """What differences are still possible: those that neither test refuses at its level, at this look.

    The lower bound of a one-sided rule is at the rollback level and its upper one at the promotion level; those of a
    two-sided rule are both at the level of the rollback (``of_harm``) or of the promotion.
    """

    def refused(delta: Floats, *, larger: bool) -> Flags:
        found = sequences.process(contrast, delta)
        if (larger and not rule.two_sided) or (rule.two_sided and of_harm):
            level = rule.log_harm + (np.log(2) if rule.two_sided else 0.0)
            said = sequences.evidence_anew(found if larger else found.opposite, rule.scales)
        else:
            level = rule.log_safe
            said = sequences.evidence(found if larger else found.opposite, rule.tight)
        return np.asarray(said > level)

    shape = contrast.canary.count.shape[:-1]
    found = []
    for larger, end in ((True, -1.0), (False, 1.0)):
        out, inside = np.full(shape, end), np.broadcast_to(np.nan_to_num(_estimate(contrast)), shape)
        for _ in range(_REFINED):  # refused differences lie beyond the bound, possible ones between it and the estimate
            tried = np.linspace(out, inside, _TRIED)
            gone = np.minimum.accumulate(refused(tried, larger=larger), axis=0)
            last = np.maximum(gone.sum(axis=0) - 1, 0)[None]
            out, inside = (np.take_along_axis(tried, np.minimum(last + more, _TRIED - 1), axis=0)[0] for more in (0, 1))
        found.append(out)
    return found[0], found[1]


_TRIED, _REFINED = 17, 4
"""Differences tried at once, and how often those between the last refused one and the next are looked at closer."""


def _estimate(contrast: Contrast) -> Floats:
    information = sequences.process(contrast, 0.0).information
    apart = np.nan_to_num(contrast.canary.mean() - contrast.stable.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((information * apart).sum(axis=-1) / information.sum(axis=-1))


# --- the judge of one rollout ----------------------------------------------------------------------------------------


def judge(
    observations: "pd.DataFrame",
    step: CanaryStep,
    params: CanaryParams,
    target: Target = BINARY,
    *,
    segment: int = 0,
    extras: Sequence[Extra] = (),
    minutes: float = float("inf"),
) -> CanaryVerdict:
    """Judge the current step on all that was observed since the rollout began.

    Parameters
    ----------
    observations : DataFrame
        One row per answered request of the rollout with the columns :data:`OBSERVED`, in any order. ``segment`` numbers
        the stretches between changes of the weight from 0, and ``weight`` is the percentage of each; without these
        columns all is of the current step.
    step : CanaryStep
        The margin, and the least requests and minutes before it may be passed.
    params : CanaryParams
        Error budget, latency objective and score margin of the rollout.
    target : Target
        What the stable version answers.
    segment : int
        The stretch that is the current step, which may have no rows yet.
    extras : sequence of Extra
        Further metrics.
    minutes : float
        How long the step has lasted.
    """
    ordered = in_order(observations, step)
    own = ordered["segment"] == segment
    n_canary = int((own & (ordered["role"] == "canary")).sum())
    n_stable = int(own.sum()) - n_canary
    ratio = _sample_ratio(ordered, params)
    made = tallies(ordered, step, params, target, segment=segment, extras=extras)
    contrasts = [tally.contrast() for tally in made]
    harm = [proves_harm(contrast, tally.rule) for contrast, tally in zip(contrasts, made, strict=True)]
    harmless = [proves_harmless(contrast, tally.rule) for contrast, tally in zip(contrasts, made, strict=True)]
    late = [tally.late for tally in made]
    requests, control, lasted = (np.array(float(known)) for known in (n_canary, n_stable, minutes))
    now = Situation(requests, control, lasted, np.array(ratio.holds))
    metrics = tuple(_metric(*one) for one in zip(made, contrasts, map(bool, harm), map(bool, harmless), strict=True))
    verdict: Judgement = str(decide(harm, harmless, late, now, step))  # type: ignore[assignment]
    more = _more_traffic(made, contrasts, now, step) if verdict == "hold" else None
    provisional = verdict == "promote" and any(metric.late and metric.status == "open" for metric in metrics)
    return CanaryVerdict(
        verdict=verdict,
        sentence=_sentence(verdict, metrics, now, step, ratio, more),
        weight=step.weight,
        n_canary=n_canary,
        n_stable=n_stable,
        metrics=metrics,
        sample_ratio=ratio,
        more_requests=None if more is None else round(more * (n_canary + n_stable)),
        more_minutes=None if more is None or not np.isfinite(minutes) else round(more * minutes, 1),
        provisional=provisional,
    )


def in_order(observations: "pd.DataFrame", step: CanaryStep) -> "pd.DataFrame":
    """The rows of the two versions in the order they were served, with ``segment`` and ``weight``."""
    ordered = observations[observations["role"].isin(["canary", "stable"])]
    ordered = ordered.sort_values("served_at", kind="stable", ignore_index=True)
    if "segment" not in ordered:
        ordered = ordered.assign(segment=0, weight=step.weight)
    return ordered


def tallies(
    ordered: "pd.DataFrame",
    step: CanaryStep,
    params: CanaryParams,
    target: Target,
    *,
    segment: int = 0,
    extras: Sequence[Extra] = (),
) -> list[Tally]:
    """What each metric observed, of rows as :func:`in_order` gives them."""
    score = ordered["score"].to_numpy(dtype=np.float64)
    answered = (ordered["status"] == 200).to_numpy() & np.isfinite(score)
    if target.kind != "regression":
        answered &= (score >= 0) & (score <= (1 if target.binary else 1 + 1e-6))
    if target.kind == "multiclass":
        answered &= np.array([isinstance(said, dict) for said in ordered["probabilities"]], dtype=bool)
    quick = ordered["latency_ms"].to_numpy(dtype=np.float64) <= params.latency_ms
    treated = (ordered["role"] == "canary").to_numpy()
    keys = _keys(ordered)
    first = answered.copy()
    first[answered] = _first(2 * keys[answered] + treated[answered])
    said = list(ordered["probabilities"][first]) if target.kind == "multiclass" else None
    scores = _scores(score[first], said, target)
    tests = 2 + len(scores) + len(extras)
    strata = ordered["segment"].to_numpy(dtype=np.int64)

    def tally(name: str, kind: Kind, rule: Rule, values: Floats, among: Flags) -> Tally:
        where = np.flatnonzero(among)
        return Tally(name, kind, rule, values, values, treated[where], keys[where], strata[where], where, segment + 1)

    harm, everyone = harm_rule(step, params, tests), np.ones(len(ordered), dtype=bool)
    found = [
        tally("errors", "rate", harm, (~answered).astype(np.float64), everyone),
        tally("slow", "rate", harm, (~quick).astype(np.float64), everyone),
    ]
    for name, values, shown, scale in scores:
        one = tally(name, "mean", score_rule(params, tests, scale), values, first)
        found.append(replace(one, shown=shown, scale=scale))
    for extra in extras:
        by = (
            ordered["id"]
            if extra.values.index.nlevels == 1
            else list(zip(ordered["id"], ordered["version"], strict=True))
        )
        given = np.asarray(extra.values.reindex(by), dtype=np.float64)
        known = np.isfinite(given)
        rule = replace(harm, margin=extra.margin / extra.scale, rollback=0.0)
        one = tally(extra.name, extra.kind, rule, given[known], known)
        found.append(replace(one, shown=given[known] * extra.scale, scale=extra.scale, late=extra.late))
    return found


def measure(
    observations: "pd.DataFrame",
    step: CanaryStep,
    params: CanaryParams,
    target: Target = BINARY,
    *,
    segment: int = 0,
    extras: Sequence[Extra] = (),
) -> list[Trace]:
    """The differences as sequences over the current step, each look with all that was observed until then."""
    ordered = in_order(observations, step)
    began = int(np.searchsorted(ordered["segment"].to_numpy(), segment))
    looks = np.unique(np.linspace(began, len(ordered), LOOKS + 1).astype(np.int64))
    treated = np.concatenate([[0.0], np.cumsum((ordered["role"] == "canary").to_numpy(), dtype=np.float64)])
    requests = treated[looks] - treated[began]
    made = tallies(ordered, step, params, target, segment=segment, extras=extras)
    return [_trace(tally, looks, requests) for tally in made]


def _trace(tally: Tally, looks: NDArray[np.int64], requests: Floats) -> Trace:
    each = [tally.contrast(int(look)) for look in looks]
    together = Contrast(tally.kind, _stacked([one.canary for one in each]), _stacked([one.stable for one in each]))
    rule, scale = tally.rule, tally.scale
    lower, upper = (scale * bound for bound in bounds(together, rule, of_harm=False))
    margins = (-rule.margin if rule.two_sided else rule.rollback, rule.margin)
    return Trace(
        name=tally.name,
        requests=requests,
        estimate=scale * _estimate(together),
        lower=lower,
        upper=upper,
        margins=(scale * margins[0], scale * margins[1]),
        two_sided=rule.two_sided,
    )


def _stacked(arms: Sequence[sequences.Arm]) -> sequences.Arm:
    return sequences.Arm(*(np.array([getattr(arm, name) for arm in arms]) for name in _ARM))


_ARM = ("count", "total", "squares", "design", "keys")


def _keys(ordered: "pd.DataFrame") -> NDArray[np.int64]:
    """A number for each routing key; a request without one is routed by its id."""
    unit = ordered["entity"].where(ordered["entity"].notna(), ordered["id"])
    return np.asarray(unit.factorize()[0], dtype=np.int64)


def _first(codes: NDArray[np.int64]) -> Flags:
    """Whether each is the first of its kind."""
    first = np.zeros(codes.size, dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first


def _sample_ratio(ordered: "pd.DataFrame", params: CanaryParams) -> SampleRatio:
    new = _first(_keys(ordered))
    treated = (ordered["role"] == "canary").to_numpy()[new]
    weight, segment = (ordered[name].to_numpy(dtype=np.int64)[new] for name in ("weight", "segment"))
    size = int(segment.max()) + 1 if segment.size else 1
    seen, canary = (np.bincount(segment, what, size).astype(np.float64) for what in (np.ones_like(treated), treated))
    weights = np.full(size, 50.0)
    weights[segment] = weight
    evidence = float(split_evidence(canary, seen - canary, weights))
    return SampleRatio(
        canary=int(canary.sum()),
        stable=int((seen - canary).sum()),
        expected=float((seen * weights / 100).sum() / seen.sum()) if seen.sum() else float(weights[-1] / 100),
        evidence=evidence,
        holds=evidence <= np.log(1 / params.split_alpha),
    )


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
    made = [(name, np.clip(np.array([row.get(name, 0.0) for row in said], dtype=np.float64), 0, 1)) for name in classes]
    return [(f"{SCORE} of {name!r}", values, values, 1.0) for name, values in made]


def _metric(tally: Tally, contrast: Contrast, harm: bool, harmless: bool) -> MetricVerdict:
    status: Status = "fail" if harm else "pass" if harmless else "open"
    lower, upper = (tally.scale * float(bound) for bound in bounds(contrast, tally.rule, of_harm=harm))
    estimate = tally.scale * float(_estimate(contrast))
    canary, stable = tally.shown[tally.treated], tally.shown[~tally.treated]
    return MetricVerdict(
        name=tally.name,
        status=status,
        canary=_mean(canary),
        stable=_mean(stable),
        estimate=None if np.isnan(estimate) else estimate,
        lower=lower,
        upper=upper,
        margin=tally.scale * tally.rule.margin,
        n_canary=canary.size,
        n_stable=stable.size,
        keys_canary=int(contrast.canary.keys),
        keys_stable=int(contrast.stable.keys),
        design=float(np.nan_to_num(contrast.canary.design, posinf=canary.size)),
        late=tally.late,
    )


def _more_traffic(
    made: Sequence[Tally], contrasts: Sequence[Contrast], now: Situation, step: CanaryStep
) -> float | None:
    """How many times the step's present traffic must still come until the step is decided, if its rates stay."""
    if now.n_canary == 0 or now.n_stable == 0 or not now.split:
        return None
    factors = np.geomspace(1.0, AHEAD, 200)
    grown = [contrast.grown(factors) for contrast in contrasts]
    harm = [proves_harm(one, tally.rule) for one, tally in zip(grown, made, strict=True)]
    harmless = [proves_harmless(one, tally.rule) for one, tally in zip(grown, made, strict=True)]
    then = Situation(now.n_canary * factors, now.n_stable * factors, now.minutes * factors, factors > 0)
    decided = decide(harm, harmless, [tally.late for tally in made], then, step) != "hold"
    return float(factors[np.argmax(decided)] - 1) if decided.any() else None


def _sentence(
    verdict: Judgement,
    metrics: Sequence[MetricVerdict],
    now: Situation,
    step: CanaryStep,
    ratio: SampleRatio,
    more: float | None,
) -> str:
    n_canary, n_stable = int(now.n_canary), int(now.n_stable)
    traffic = f"{n_canary:,} canary and {n_stable:,} stable requests at {step.weight}%"
    if n_canary == 0 and verdict == "hold":
        return f"the canary at {step.weight}% has answered no request yet: no traffic proves nothing"
    if verdict == "rollback":
        return f"{traffic}: " + "; ".join(_harm(metric) for metric in metrics if metric.status == "fail")
    if not ratio.holds:
        keys = ratio.canary + ratio.stable
        return (
            f"{traffic}: {ratio.canary:,} of {keys:,} routing keys saw the canary where {ratio.expected:.1%} were to, "
            "so the two versions answer different traffic and are not compared: find out who is routed otherwise"
        )
    if verdict == "promote":
        late = [metric.name for metric in metrics if metric.late and metric.status == "open"]
        waits = f"; provisional until {' and '.join(late)} can be told" if late else ""
        proven = [metric for metric in metrics if metric.status == "pass"]
        return f"{traffic}: proven harmless: " + "; ".join(_doubt(metric) for metric in proven) + waits
    if n_stable == 0:
        return f"{traffic}: without control traffic there is nothing to compare the canary with"
    wait = (
        "" if more is None else f"; about {max(round(more * (n_canary + n_stable)), 1):,} more requests will decide it"
    )
    if n_canary < step.min_requests:
        return f"{traffic}: fewer canary requests than the {step.min_requests:,} the step asks for{wait}"
    undecided = [metric for metric in metrics if metric.status == "open" and not metric.late]
    if undecided:
        doubts = "; ".join(_doubt(metric) + _clusters(metric) for metric in undecided)
        return f"{traffic}: not decided yet: {doubts}{wait}"
    return f"{traffic}: {float(now.minutes):.1f} of the {step.min_minutes:g} minutes that the step asks for have passed"


def _harm(metric: MetricVerdict) -> str:
    level = _number if is_score(metric.name) else _share
    assert metric.canary is not None
    assert metric.stable is not None
    least = max(metric.lower, -metric.upper)
    return f"{metric.name}: canary {level(metric.canary)}, stable {level(metric.stable)}, apart by at least {least:.3f}"


def _doubt(metric: MetricVerdict) -> str:
    if is_score(metric.name):
        return f"{metric.name} differs by {metric.lower:+.3f} to {metric.upper:+.3f} (margin ±{metric.margin:g})"
    return f"{metric.name} at most {metric.upper:+.3f} (margin {metric.margin:g})"


def _clusters(metric: MetricVerdict) -> str:
    """Why so much traffic says so little, where its events stick to few keys."""
    if metric.design < CLUSTERED:
        return ""
    return (
        f", in which {metric.design:.0f} requests say as much as one, because few of the {metric.keys_canary:,} keys "
        "have most of it: further keys decide that, not more of the same"
    )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.3f}"


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw_steps(steps: Sequence[tuple[CanaryStep, list[Trace]]]) -> "Figure":
    """Each step a row, each metric a column: what differences are still possible, against the margins."""
    from matplotlib.figure import Figure

    width = min(DRAWN, max((len(traces) for _, traces in steps), default=1))
    figure = Figure(figsize=(4.2 * width, 2.9 * max(len(steps), 1)), layout="constrained")
    grid = figure.subplots(max(len(steps), 1), width, squeeze=False)
    for row, (step, traces) in zip(grid, steps, strict=False):
        for axes, trace in zip(row, _drawn(traces), strict=False):
            _draw(axes, trace, step)
    return figure


def _drawn(traces: list[Trace]) -> list[Trace]:
    """All of them, or where there are many those scores that are furthest apart."""
    apart = sorted((t for t in traces if t.two_sided), key=lambda t: -np.nan_to_num(abs(float(t.estimate[-1]))))
    others = sum(not trace.two_sided for trace in traces)
    kept = {trace.name for trace in apart[: max(DRAWN - others, 1)]}
    return [trace for trace in traces if not trace.two_sided or trace.name in kept]


def _draw(axes: "Axes", trace: Trace, step: CanaryStep) -> None:
    axes.fill_between(trace.requests, trace.lower, trace.upper, step="post", alpha=0.25, color="#2b6cb0", linewidth=0)
    axes.plot(trace.requests, trace.estimate, color="#2b6cb0", linewidth=1.4)
    low, high = trace.margins
    axes.axhline(low, color="#c22f2f", linewidth=1, linestyle=":" if trace.two_sided else "-")
    axes.axhline(high, color="#c22f2f" if trace.two_sided else "#1a7f4b", linewidth=1, linestyle=":")
    reach = 3 * max(abs(low), abs(high), abs(float(trace.lower[-1])) if trace.lower[-1] > -1 else 0, 0.02)
    axes.set_ylim(-reach, reach)
    # matplotlib sets what stands between two dollars as a formula
    axes.set_title(f"{trace.name} at {step.weight}%".replace("$", r"\$"), fontsize=10)
    axes.set_xlabel("canary requests of the step", fontsize=8)
    axes.set_ylabel("canary minus stable", fontsize=8)
    axes.tick_params(labelsize=8)
