"""Retrain or not? A pure function from typed evidence to a decision that says why, for every trigger, in a sentence.

Order of rank: broken data vetoes everything, even a person, unless ``decision.override_veto`` says why not; then a
person who forces a training wins; then time running backwards, a world in which there is nothing new to learn, and the
cool-down after the last training hold the triggers back, in the open: they are recorded as fired and suppressed, never
dropped.

A trigger with ``windows`` (hysteresis) fires only if the latest window crosses its limit and at least ``required`` of
the last ``of`` do. One window is one ``as_of`` with one champion, not before that champion's own. Where the data knows
no time, one window is one snapshot, in the order in which they were decided on, and each snapshot counts as a day of
the cool-down.

A trigger is three-valued: what could not be measured is unknown, which is never a reason to retrain and never silence.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator

from clearway.params import DecisionParams, Windows

TriggerName = Literal["manual", "bootstrap", "code", "performance", "drift", "schedule", "data_volume", "freshness"]
Outcome = Literal["retrain", "skip", "vetoed", "stopped"]

WINDOWED: tuple[TriggerName, ...] = ("performance", "drift")
"""Triggers with hysteresis."""

ROUNDING = 1e-9
"""By this much a difference of two floats may exceed a limit that it only reaches: 0.80 → 0.77 fell by 0.03."""
DAY_SECONDS = 86_400


class Evidence(BaseModel):
    """Frozen, and closed to what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChampionFacts(Evidence):
    """What the decision needs to know of the champion."""

    digest: str
    as_of: AwareDatetime | None
    snapshot_sha256: str
    recipe_sha256: str
    labelled_rows: int
    trained_until: AwareDatetime | None = None
    """When the last answer it learnt from became known; None if its lineage does not say, or without time."""


class DriftEvidence(Evidence):
    """The verdict of the drift report, and what it rests on."""

    verdict: Literal["drift", "no_drift", "unknown", "bootstrap"]
    share: float | None
    """Share of features that drifted."""
    feature_share: float
    """Share that is enough."""
    sentence: str
    features: int | None = None
    """Features compared."""
    drifted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    feature_count: int | None = None
    """Number of drifted features that is enough whatever their share."""
    outputs_drifted: tuple[str, ...] = ()
    """Of the champion's scores and the labels, those that drifted; not counted among the features."""
    domain: Literal["drift", "no_drift", "unknown"] | None = None
    """Verdict of the domain classifier; None where it was not asked."""
    domain_auc: float | None = None
    domain_lower: float | None = None
    """Lower bound of ``domain_auc``, which must exceed ``domain_limit``."""
    domain_limit: float | None = None
    calibrated: bool = False
    """Whether limits account for how windows of the reference itself differ."""


class PerformanceEvidence(Evidence):
    """The champion's metric on its own holdout and on today's."""

    metric: str
    before: float | None
    now: float | None
    rows: int
    """Labelled rows behind ``now``."""
    lower: float | None = None
    """Bootstrap interval of ``now``."""
    upper: float | None = None
    higher_is_better: bool = True

    @field_validator("before", "now", "lower", "upper")
    @classmethod
    def _measured(cls, value: float | None) -> float | None:
        """What is no finite number was not measured."""
        return value if value is not None and abs(value) < float("inf") else None


class PastWindow(Evidence):
    """What an earlier decision on the same champion saw."""

    as_of: AwareDatetime | None
    snapshot_sha256: str
    crossed: dict[TriggerName, bool | None]
    """Of each trigger with windows: whether that window by itself crossed the limit; None if unknown."""


class LastRetrain(Evidence):
    """The latest earlier decision to retrain, whatever became of it."""

    as_of: AwareDatetime | None
    snapshots_ago: int
    """How many snapshots have been decided on since, with the present one: 1 if it was the one before."""


class DecisionEvidence(Evidence):
    """All that a decision is made from."""

    as_of: AwareDatetime | None
    snapshot_sha256: str
    recipe_sha256: str
    labelled_rows: int
    known_until: AwareDatetime | None = None
    """When the last answer known now became known; None without time in the data."""
    data: Literal["passed", "failed"]
    """Verdict of the data validation."""
    data_sentence: str = ""
    """What it found, for a person."""
    champion: ChampionFacts | None
    """None in a bootstrap."""
    bootstrap_reason: str = ""
    drift: DriftEvidence
    performance: PerformanceEvidence | None
    """None without a champion."""
    windows: tuple[PastWindow, ...] = ()
    """Earlier windows with the same champion, oldest first, as many as the triggers look back."""
    last_retrain: LastRetrain | None = None
    """None if there was none before."""
    force_retrain: bool = False
    trigger: str = "local"
    """Who asked for the decision: push, schedule, manual, local. Recorded; it decides nothing."""


class WindowCount(Evidence):
    """Hysteresis: how many of the windows that a trigger looks at crossed its limit."""

    required: int
    of: int
    """Windows to look at."""
    seen: int
    """Windows there were to look at, the latest among them."""
    crossed: int
    unknown: int
    """They count as not crossed."""


class TriggerResult(Evidence):
    """One trigger and what it saw."""

    name: TriggerName
    enabled: bool
    fired: bool | None
    """None: unknown, it could not be measured. Unknown never counts as fired and never as silence."""
    crossed: bool | None = None
    """Whether the latest window by itself crossed the limit: ``fired`` but for earlier windows."""
    observed: str | float | None
    threshold: str | float | None
    sentence: str
    windows: WindowCount | None = None
    """None where the latest window alone counts."""
    suppressed: str | None = None
    """Why it does not count although it fired."""

    @property
    def counts(self) -> bool:
        return self.enabled and self.fired is True and self.suppressed is None


class Decision(Evidence):
    """``reports/decision.json``."""

    retrain: bool
    outcome: Outcome
    reasons: tuple[TriggerName, ...]
    """Triggers that count, in order of rank; empty unless ``retrain``."""
    sentence: str
    """One sentence for a person, on one line."""
    triggers: tuple[TriggerResult, ...]
    veto_overridden: bool
    """Whether the data is broken and was decided on because ``decision.override_veto`` gives a reason."""
    override_reason: str | None = None
    """That reason."""
    evidence: DecisionEvidence


def decide(evidence: DecisionEvidence, params: DecisionParams) -> Decision:
    """Weigh every trigger and say whether to retrain.

    Examples
    --------
    The table of cases is ``tests/unit/clearway/test_decision.py``.
    """
    backwards, nothing_new, cooling = _time_backwards(evidence), _nothing_new(evidence), _cooling(evidence, params)
    holds = (
        (backwards, {"manual"}),
        (nothing_new, {"manual", "code"}),
        (cooling, {"manual", "bootstrap", "code"}),
    )
    triggers = tuple(_suppress(trigger, holds) for trigger in _triggers(evidence, params))
    counting = [trigger for trigger in triggers if trigger.counts]
    override = " ".join((params.override_veto or "").split())
    broken = evidence.data == "failed"
    retrain = bool(counting) and not (broken and not override)
    outcome: Outcome
    if retrain:
        outcome = "retrain"
        sentence = "Retrain: " + "; ".join(trigger.sentence for trigger in counting)
        sentence += f"; forced although {backwards}" if backwards else ""
    elif broken and not override:
        outcome = "vetoed"
        found = f" ({evidence.data_sentence.removesuffix('.')})" if evidence.data_sentence else ""
        wanted = f", although wanted by {', '.join(trigger.name for trigger in counting)}" if counting else ""
        sentence = f"No retraining: the data failed its validation{found}, and broken data never retrains{wanted}"
    else:
        outcome = "stopped" if backwards else "skip"
        sentence = f"No retraining: {backwards or nothing_new or _quiet(triggers, cooling)}"
    if broken and override:
        sentence += f"; the data failed its validation, which decision.override_veto lets through: {override}"
    return Decision(
        retrain=retrain,
        outcome=outcome,
        reasons=tuple(trigger.name for trigger in counting) if retrain else (),
        sentence=f"{' '.join(sentence.split()).removesuffix('.')}.",
        triggers=triggers,
        veto_overridden=broken and bool(override),
        override_reason=override if broken and override else None,
        evidence=evidence,
    )


def has_fallen(seen: PerformanceEvidence, max_drop: float) -> bool | None:
    """Whether a metric has become worse: materially, by more than ``max_drop``, and by no chance.

    No chance means that the whole bootstrap interval of today's value lies on the worse side of the old one.

    Returns
    -------
    bool or None
        None where a value or the interval was not measured.
    """
    if seen.before is None or seen.now is None or seen.lower is None or seen.upper is None:
        return None
    sign = 1 if seen.higher_is_better else -1
    best = seen.upper if seen.higher_is_better else seen.lower
    return sign * (seen.before - seen.now) > max_drop + ROUNDING and sign * (seen.before - best) > 0


def _triggers(evidence: DecisionEvidence, params: DecisionParams) -> list[TriggerResult]:
    """Every trigger, in order of rank."""
    return [
        _manual(evidence, params),
        _bootstrap(evidence, params),
        _code(evidence, params),
        _over_windows(_performance(evidence, params), params.performance.windows, evidence),
        _over_windows(_drift(evidence, params), params.drift.windows, evidence),
        _schedule(evidence, params),
        _data_volume(evidence, params),
        _freshness(evidence, params),
    ]


def _result(
    name: TriggerName,
    enabled: bool,
    fired: bool | None,
    sentence: str,
    observed: str | float | None = None,
    threshold: str | float | None = None,
) -> TriggerResult:
    return TriggerResult(
        name=name,
        enabled=enabled,
        fired=fired,
        crossed=fired,
        observed=observed,
        threshold=threshold,
        sentence=sentence,
    )


def _manual(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    forced = evidence.force_retrain
    said = "a person forced it" if forced else "nobody forced it"
    return _result("manual", params.manual.enabled, forced, said, str(forced).lower(), "true")


def _bootstrap(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    champion = evidence.champion
    missing = f"there is no champion yet: {evidence.bootstrap_reason}".removesuffix(": ")
    said = f"the champion is {champion.digest[:12]}" if champion else missing
    seen = champion.digest[:12] if champion else None
    return _result("bootstrap", params.bootstrap.enabled, champion is None, said, seen)


def _code(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    enabled, champion = params.code.enabled, evidence.champion
    if champion is None:
        return _without_champion("code", enabled)
    changed = evidence.recipe_sha256 != champion.recipe_sha256
    what = "features, schema, parameters {} training code"
    said = what.format("or") + " changed since the champion" if changed else what.format("and") + " are the champion's"
    return _result("code", enabled, changed, said, evidence.recipe_sha256[:12], champion.recipe_sha256[:12])


def _performance(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, seen = params.performance, evidence.performance
    if evidence.champion is None:
        return _without_champion("performance", limits.enabled)

    def result(fired: bool | None, sentence: str, drop: float | None = None) -> TriggerResult:
        return _result("performance", limits.enabled, fired, sentence, drop, limits.max_drop)

    if seen is None or seen.now is None:
        return result(None, f"the champion's {limits.metric} on today's labels could not be measured")
    if seen.before is None:
        return result(None, f"the champion's lineage records no {limits.metric}")
    if seen.rows < limits.min_rows:
        few = f"{seen.rows:,} labelled rows are too few to measure the champion's {limits.metric}"
        return result(None, f"{few} ({limits.min_rows:,} needed)")
    drop = seen.before - seen.now if seen.higher_is_better else seen.now - seen.before
    fired = has_fallen(seen, limits.max_drop)
    now = f"{seen.now:.3f}"
    if seen.lower is not None and seen.upper is not None:
        now += f" ({seen.lower:.3f} to {seen.upper:.3f})"
    went = f"the champion's {seen.metric} went from {seen.before:.3f} to {now} on {seen.rows:,} labelled rows"
    material = drop > limits.max_drop + ROUNDING
    worse = f"{'more' if material else 'no more'} than {limits.max_drop:g} worse"
    if fired is None:
        worse += ", with no interval to say whether by chance"
    elif material and not fired:
        worse += ", which may be chance"
    return result(fired, f"{went}, {worse}", drop)


def _drift(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    if evidence.champion is None:
        return _without_champion("drift", params.drift.enabled)
    seen = evidence.drift
    fired = {"drift": True, "no_drift": False}.get(seen.verdict)
    detail = seen.sentence.removesuffix(".")
    said = {True: f"drift: {detail}", False: f"no drift: {detail}", None: f"drift is unknown: {detail}"}[fired]
    return _result("drift", params.drift.enabled, fired, said, seen.share, seen.feature_share)


def _schedule(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, champion = params.schedule, evidence.champion
    if champion is None:
        return _without_champion("schedule", limits.enabled)
    if evidence.as_of is None or champion.as_of is None:
        unknown = "the champion's age is unknown: the data knows no time"
        return _result("schedule", limits.enabled, None, unknown, None, limits.max_age_days)
    age = _days(champion.as_of, evidence.as_of)
    fired = age >= limits.max_age_days
    old = f"is {_span(age)} old" if age >= 0 else f"was trained {_span(-age)} after as_of"
    said = f"the champion {old} ({'limit reached' if fired else 'limit'}: {limits.max_age_days:g})"
    return _result("schedule", limits.enabled, fired, said, age, limits.max_age_days)


def _data_volume(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, champion = params.data_volume, evidence.champion
    if champion is None:
        return _without_champion("data_volume", limits.enabled)
    new = evidence.labelled_rows - champion.labelled_rows
    fired = new >= limits.min_new_rows
    counted = f"{abs(new):,} {'more' if new >= 0 else 'fewer'} labelled row{'s' if abs(new) != 1 else ''}"
    said = f"{counted} than the champion saw ({'limit reached' if fired else 'limit'}: {limits.min_new_rows:,} more)"
    return _result("data_volume", limits.enabled, fired, said, float(new), float(limits.min_new_rows))


def _freshness(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, champion = params.freshness, evidence.champion
    if champion is None:
        return _without_champion("freshness", limits.enabled)
    if evidence.known_until is None or champion.trained_until is None:
        missing = "the champion's lineage does not say when its last answer became known"
        why = "no answer has a time" if evidence.known_until is None else missing
        unknown = f"how fresh the champion's knowledge is, is unknown: {why}"
        return _result("freshness", limits.enabled, None, unknown, None, limits.max_age_days)
    age = _days(champion.trained_until, evidence.known_until)
    fired = age >= limits.max_age_days
    said = (
        f"the last answer the champion learnt from is {_span(abs(age))} {'older' if age >= 0 else 'newer'} than the "
        "last one known now "
        f"({'limit reached' if fired else 'limit'}: {limits.max_age_days:g})"
    )
    return _result("freshness", limits.enabled, fired, said, age, limits.max_age_days)


def _without_champion(name: TriggerName, enabled: bool) -> TriggerResult:
    return _result(name, enabled, None, f"{name} is unknown: there is no champion to compare with")


def _over_windows(latest: TriggerResult, windows: Windows, evidence: DecisionEvidence) -> TriggerResult:
    """Hysteresis: the latest window and at least ``required`` of the last ``of``. Unknown windows are not crossed."""
    if windows.of == 1:
        return latest
    champion = evidence.champion.as_of if evidence.champion else None
    own = [w for w in evidence.windows if champion is None or w.as_of is None or w.as_of >= champion]
    past = [window.crossed.get(latest.name) for window in own[-(windows.of - 1) :]]
    states = [*past, latest.crossed]
    count = WindowCount(
        required=windows.required,
        of=windows.of,
        seen=len(states),
        crossed=states.count(True),
        unknown=states.count(None),
    )
    if latest.crossed is not True:
        return latest.model_copy(update={"windows": count})
    said = f"{latest.sentence}; so in {count.crossed} of the last {windows.of} windows, {windows.required} are needed"
    notes = [f"{count.unknown} unknown"] if count.unknown else []
    notes += [f"only {count.seen} seen"] if count.seen < windows.of else []
    said += f" ({', '.join(notes)})" if notes else ""
    return latest.model_copy(update={"fired": count.crossed >= windows.required, "windows": count, "sentence": said})


def _time_backwards(evidence: DecisionEvidence) -> str | None:
    """Why an ``as_of`` before the champion's holds everything back but a person."""
    champion = evidence.champion
    if champion is None or evidence.as_of is None or champion.as_of is None or evidence.as_of >= champion.as_of:
        return None
    return (
        f"time runs backwards: as_of is {_time(evidence.as_of)}, "
        f"but the champion {champion.digest[:12]} was trained as of {_time(champion.as_of)}"
    )


def _nothing_new(evidence: DecisionEvidence) -> str | None:
    """Why the same data and the same recipe could only make the champion again."""
    champion = evidence.champion
    if champion is None:
        return None
    same = (evidence.snapshot_sha256, evidence.recipe_sha256) == (champion.snapshot_sha256, champion.recipe_sha256)
    if not same:
        return None
    return f"nothing new to learn: data and recipe are those of the champion {champion.digest[:12]}"


def _cooling(evidence: DecisionEvidence, params: DecisionParams) -> str | None:
    """Why it is too soon after the last decision to retrain, whatever became of that one."""
    last, limit = evidence.last_retrain, params.cool_down_days
    if last is None:
        return None
    if evidence.as_of is not None and last.as_of is not None:
        age, unit = _days(last.as_of, evidence.as_of), "days"
        when = f", as of {_time(last.as_of)}, is {_span(age)} old"
    else:
        age, unit = float(last.snapshots_ago), "snapshots, each for a day, because the data knows no time"
        when = f" was {last.snapshots_ago} snapshot{'s' if last.snapshots_ago != 1 else ''} ago"
    return f"the last decision to retrain{when} (cool-down: {limit:g} {unit})" if age < limit else None


def _suppress(trigger: TriggerResult, holds: Iterable[tuple[str | None, set[str]]]) -> TriggerResult:
    """Mark a trigger that fired and must not count: the first hold that applies and from which it is not exempt."""
    if trigger.fired is not True:
        return trigger
    for hold, exempt in holds:
        if hold is not None and trigger.name not in exempt:
            return trigger.model_copy(update={"suppressed": hold})
    return trigger


def _quiet(triggers: tuple[TriggerResult, ...], cooling: str | None) -> str:
    """Why no trigger counts: those that are held back, silent, unknown or switched off."""
    held = [trigger.name for trigger in triggers if trigger.enabled and trigger.suppressed]
    off = [trigger.name for trigger in triggers if trigger.fired is True and not trigger.enabled]
    waiting = [trigger for trigger in triggers if trigger.enabled and trigger.crossed and trigger.fired is False]
    unknown = [trigger.name for trigger in triggers if trigger.fired is None and trigger.enabled]
    if held:
        parts = [f"{', '.join(held)} fired, but {cooling}"]
    else:
        parts = ["no trigger fired" if not off else f"only disabled triggers fired ({', '.join(off)})"]
    parts += [f"{trigger.name} waits for more windows: {trigger.sentence}" for trigger in waiting]
    if unknown:
        parts.append(f"{', '.join(unknown)} could not be measured")
    return "; ".join(parts)


def _days(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds() / DAY_SECONDS


def _span(days: float) -> str:
    """Cut to hundredths, not rounded: what is short of a limit does not read as if it had reached it."""
    cut = math.floor(days * 100 + 1e-6) / 100
    return f"{cut:,.10g} day{'s' if cut != 1 else ''}"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
