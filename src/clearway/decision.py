"""Retrain or not? A pure function from typed evidence to a decision that says why, for every trigger, in a sentence.

Order of rank: broken data vetoes everything, even a person, unless ``decision.override_veto`` is set; then a person who
forces a training wins; then time running backwards and a world in which there is nothing new to learn hold the
triggers back, in the open: they are recorded as fired and suppressed, never dropped.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from clearway.drift import Verdict as DriftVerdict
from clearway.params import DecisionParams

TriggerName = Literal["manual", "bootstrap", "code", "performance", "drift", "schedule", "data_volume"]
Outcome = Literal["retrain", "skip", "vetoed", "stopped"]


class ChampionFacts(BaseModel):
    """What the decision needs to know of the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    as_of: datetime | None
    snapshot_sha256: str
    recipe_sha256: str
    labelled_rows: int


class DriftEvidence(BaseModel):
    """The verdict of the drift report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: DriftVerdict
    share: float | None
    feature_share: float
    sentence: str


class PerformanceEvidence(BaseModel):
    """The champion's metric on its own holdout and on today's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    before: float | None
    now: float | None
    rows: int
    """Labelled rows behind ``now``."""
    higher_is_better: bool = True


class DecisionEvidence(BaseModel):
    """All that a decision is made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: datetime | None
    snapshot_sha256: str
    recipe_sha256: str
    labelled_rows: int
    data: Literal["passed", "failed"]
    """Verdict of the data validation."""
    champion: ChampionFacts | None
    """None in a bootstrap."""
    bootstrap_reason: str = ""
    drift: DriftEvidence
    performance: PerformanceEvidence | None
    """None without a champion."""
    force_retrain: bool = False
    trigger: str = "local"
    """Who asked for the decision: push, schedule, manual, local. Recorded; it decides nothing."""


class TriggerResult(BaseModel):
    """One trigger and what it saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: TriggerName
    enabled: bool
    fired: bool | None
    """None: unknown, it could not be measured. Unknown never counts as fired and never as silence."""
    observed: str | float | None
    threshold: str | float | None
    sentence: str
    suppressed: str | None = None
    """Why it does not count although it fired."""

    @property
    def counts(self) -> bool:
        return self.enabled and self.fired is True and self.suppressed is None


class Decision(BaseModel):
    """``reports/decision.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retrain: bool
    outcome: Outcome
    reasons: tuple[TriggerName, ...]
    """Triggers that count, in order of rank; empty unless ``retrain``."""
    sentence: str
    """One sentence for a person."""
    triggers: tuple[TriggerResult, ...]
    veto_overridden: bool
    """Whether broken data was trained on because ``decision.override_veto`` is set."""
    evidence: DecisionEvidence


def decide(evidence: DecisionEvidence, params: DecisionParams) -> Decision:
    """Weigh every trigger and say whether to retrain.

    Examples
    --------
    The table of cases is ``tests/unit/clearway/test_decision.py``.
    """
    hold = _time_backwards(evidence) or _nothing_new(evidence)
    backwards = _time_backwards(evidence) is not None
    triggers = tuple(_suppress(trigger, hold, backwards) for trigger in _triggers(evidence, params))
    counting = [trigger for trigger in triggers if trigger.counts]
    vetoed = evidence.data == "failed" and not params.override_veto
    retrain = bool(counting) and not vetoed
    reasons = tuple(trigger.name for trigger in counting) if retrain else ()
    overridden = retrain and evidence.data == "failed"
    outcome: Outcome
    if retrain:
        outcome = "retrain"
        sentence = "Retrain: " + "; ".join(trigger.sentence for trigger in counting) + "."
        if overridden:
            sentence += " The data failed its validation and decision.override_veto lets it through."
        if backwards:
            sentence += f" Forced although {hold}."
    elif vetoed:
        outcome = "vetoed"
        wanted = f", although wanted by {', '.join(trigger.name for trigger in counting)}" if counting else ""
        sentence = f"No retraining: the data failed its validation, and broken data never retrains{wanted}."
    elif backwards:
        outcome = "stopped"
        sentence = f"No retraining: {hold}."
    else:
        outcome = "skip"
        sentence = f"No retraining: {hold or _quiet(triggers)}."
    return Decision(
        retrain=retrain,
        outcome=outcome,
        reasons=reasons,
        sentence=sentence,
        triggers=triggers,
        veto_overridden=overridden,
        evidence=evidence,
    )


def _triggers(evidence: DecisionEvidence, params: DecisionParams) -> list[TriggerResult]:
    """Every trigger, in order of rank."""
    return [
        _manual(evidence),
        _bootstrap(evidence),
        _code(evidence, params),
        _performance(evidence, params),
        _drift(evidence, params),
        _schedule(evidence, params),
        _data_volume(evidence, params),
    ]


def _manual(evidence: DecisionEvidence) -> TriggerResult:
    return TriggerResult(
        name="manual",
        enabled=True,
        fired=evidence.force_retrain,
        observed=str(evidence.force_retrain).lower(),
        threshold="true",
        sentence="a person forced it" if evidence.force_retrain else "nobody forced it",
    )


def _bootstrap(evidence: DecisionEvidence) -> TriggerResult:
    champion = evidence.champion
    missing = f"there is no champion yet: {evidence.bootstrap_reason}".removesuffix(": ")
    return TriggerResult(
        name="bootstrap",
        enabled=True,
        fired=champion is None,
        observed=champion.digest[:12] if champion else None,
        threshold=None,
        sentence=f"the champion is {champion.digest[:12]}" if champion else missing,
    )


def _code(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    enabled, champion = params.code.enabled, evidence.champion
    if champion is None:
        return _without_champion("code", enabled)
    changed = evidence.recipe_sha256 != champion.recipe_sha256
    return TriggerResult(
        name="code",
        enabled=enabled,
        fired=changed,
        observed=evidence.recipe_sha256[:12],
        threshold=champion.recipe_sha256[:12],
        sentence=(
            "features, parameters or training code changed since the champion"
            if changed
            else "features, parameters and training code are the champion's"
        ),
    )


def _performance(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, seen = params.performance, evidence.performance
    if evidence.champion is None:
        return _without_champion("performance", limits.enabled)

    def result(fired: bool | None, observed: float | None, sentence: str) -> TriggerResult:
        return TriggerResult(
            name="performance",
            enabled=limits.enabled,
            fired=fired,
            observed=observed,
            threshold=limits.max_drop,
            sentence=sentence,
        )

    if seen is None or seen.now is None:
        return result(None, None, f"the champion's {limits.metric} on today's labels could not be measured")
    if seen.before is None:
        return result(None, None, f"the champion's lineage records no {limits.metric}")
    if seen.rows < limits.min_rows:
        few = f"{seen.rows} labelled rows are too few to measure the champion's {limits.metric}"
        return result(None, None, f"{few} ({limits.min_rows} needed)")
    drop = seen.before - seen.now if seen.higher_is_better else seen.now - seen.before
    went = f"the champion's {seen.metric} went from {seen.before:.3f} to {seen.now:.3f} on {seen.rows:,} labelled rows"
    fired = drop > limits.max_drop
    return result(fired, drop, f"{went}, {'more' if fired else 'no more'} than {limits.max_drop:g} worse")


def _drift(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    if evidence.champion is None:
        return _without_champion("drift", params.drift.enabled)
    seen = evidence.drift
    fired = {"drift": True, "no_drift": False}.get(seen.verdict)
    detail = seen.sentence.removesuffix(".")
    sentence = {True: f"drift: {detail}", False: f"no drift: {detail}", None: f"drift is unknown: {detail}"}[fired]
    return TriggerResult(
        name="drift",
        enabled=params.drift.enabled,
        fired=fired,
        observed=seen.share,
        threshold=seen.feature_share,
        sentence=sentence,
    )


def _schedule(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, champion = params.schedule, evidence.champion
    if champion is None:
        return _without_champion("schedule", limits.enabled)
    if evidence.as_of is None or champion.as_of is None:
        return TriggerResult(
            name="schedule",
            enabled=limits.enabled,
            fired=None,
            observed=None,
            threshold=limits.max_age_days,
            sentence="the champion's age is unknown: the data knows no time",
        )
    age = (evidence.as_of - champion.as_of).total_seconds() / 86_400
    fired = age >= limits.max_age_days
    return TriggerResult(
        name="schedule",
        enabled=limits.enabled,
        fired=fired,
        observed=age,
        threshold=limits.max_age_days,
        sentence=f"the champion is {age:g} days old ({'limit reached' if fired else 'limit'}: {limits.max_age_days:g})",
    )


def _data_volume(evidence: DecisionEvidence, params: DecisionParams) -> TriggerResult:
    limits, champion = params.data_volume, evidence.champion
    if champion is None:
        return _without_champion("data_volume", limits.enabled)
    new = evidence.labelled_rows - champion.labelled_rows
    fired = new >= limits.min_new_rows
    return TriggerResult(
        name="data_volume",
        enabled=limits.enabled,
        fired=fired,
        observed=float(new),
        threshold=float(limits.min_new_rows),
        sentence=f"{new:,} more labelled rows than the champion saw ({limits.min_new_rows:,} retrain)",
    )


def _without_champion(name: TriggerName, enabled: bool) -> TriggerResult:
    sentence = f"{name} is unknown: there is no champion to compare with"
    return TriggerResult(name=name, enabled=enabled, fired=None, observed=None, threshold=None, sentence=sentence)


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


def _suppress(trigger: TriggerResult, hold: str | None, backwards: bool) -> TriggerResult:
    """Mark a trigger that fired and must not count. A person always counts; code does unless time runs backwards."""
    exempt = ("manual",) if backwards else ("manual", "code")
    if hold is None or trigger.fired is not True or trigger.name in exempt:
        return trigger
    return trigger.model_copy(update={"suppressed": hold})


def _quiet(triggers: tuple[TriggerResult, ...]) -> str:
    """Why no trigger counts: those that are silent, unknown or switched off."""
    off = [trigger.name for trigger in triggers if trigger.fired is True and not trigger.enabled]
    unknown = [trigger.name for trigger in triggers if trigger.fired is None and trigger.enabled]
    parts = ["no trigger fired" if not off else f"only disabled triggers fired ({', '.join(off)})"]
    if unknown:
        parts.append(f"{', '.join(unknown)} could not be measured")
    return "; ".join(parts)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
