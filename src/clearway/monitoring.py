"""Is the live environment well? Pure judgements of what it logged, what it serves and what came true.

Every check ends as ``pass``, ``alarm`` or ``unknown``. What could not be measured is unknown and is said; silence is
never a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway.agreement import disagreement, wanted
from clearway.columns import LABEL, PREDICTION_TIME
from clearway.decision import PerformanceEvidence, has_fallen
from clearway.drift import DriftReport
from clearway.drift_reference import DriftReference, compare_with
from clearway.encoding import InputSchema
from clearway.gates import LIVE_CONFIDENCE, Interval, live_interval
from clearway.labelled_rows import read_labels
from clearway.ledger import Entry
from clearway.log_hiding import hidden_in
from clearway.metrics import Metric
from clearway.params import DriftParams, FreshnessTrigger, PerformanceTrigger
from clearway.profile import ANSWER, SCORE
from clearway.routing import RoutingTable
from clearway.target import BINARY, Target, judged

Status = Literal["pass", "alarm", "unknown"]

RETRAIN_CHECKS = ("performance", "feature_drift", "prediction_drift", "staleness")
"""Alarms that a new model could answer; the others are for an operator."""


class Check(BaseModel):
    """One judgement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    sentence: str
    observed: float | str | None = None
    threshold: float | str | None = None
    lower: float | None = None
    """Bounds of the confidence interval of ``observed``, where there is one."""
    upper: float | None = None
    n: int | None = None


class MonitoringReport(BaseModel):
    """``reports/monitoring.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    as_of: datetime | None
    """Labels count that were known by then."""
    measured_at: datetime
    """Wall time."""
    stable: str
    canary: str | None
    revision: int
    checks: tuple[Check, ...]
    drift: DriftReport | None
    """Served features against the reference of the stable model; None where nothing could be compared."""

    @property
    def alarms(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.status == "alarm")

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.status == "unknown")

    @property
    def retrain(self) -> bool:
        """Whether an alarm is one that a new model could answer."""
        return any(name in RETRAIN_CHECKS for name in self.alarms)


@dataclass(frozen=True)
class Expected:
    """What the stable model promised."""

    metric: Metric
    value: float | None
    """On its own holdout, from its lineage."""
    threshold: float
    """Score from which the answer is yes."""
    target: Target = BINARY


def traffic(log: pd.DataFrame) -> pd.DataFrame:
    """The log without the requests of testers, who choose what they send and who answers it, and without copies."""
    return log[~log["role"].isin(["tester", "shadow"])]


def recent(log: pd.DataFrame, days: float) -> pd.DataFrame:
    """The answered predictions of the last ``days`` by event time, or all of them where requests carry no time."""
    answered: pd.DataFrame = log[(log["status"] == 200) & log["score"].notna()]
    asked = answered["asked_at"]
    if asked.notna().any():
        answered = answered[asked > asked.max() - timedelta(days=days)]
    return answered


def judge_performance(labelled: pd.DataFrame, expected: Expected, limits: PerformanceTrigger, seed: int) -> Check:
    """The stable model's metric in service against what it had on its holdout.

    An alarm needs both a material fall (more than ``limits.max_drop``) and one that is no chance (the bootstrap
    interval lies wholly on the worse side of the old value).

    Parameters
    ----------
    labelled : DataFrame
        Predictions of the stable model with ``score`` and ``label``, and ``probabilities`` of several classes.
    """
    name, count = expected.metric.name, len(labelled)
    if count < limits.min_rows:
        few = f"{count:,} predictions of the stable model have a label by now, {limits.min_rows:,} needed"
        return Check(name="performance", status="unknown", sentence=f"{name} in service: {few}", n=count)
    target = expected.target
    told = read_labels(labelled[LABEL], target.kind, "labels of the served predictions")
    made = judged(target, told, (target, logged_outputs(labelled, target)))
    now = live_interval(expected.metric, made.labels, made.outputs[0], expected.threshold, seed, target)
    if now is None:
        undefined = "the known labels are all the same, or a score is no number"
        return Check(name="performance", status="unknown", sentence=undefined, n=count)
    return _compare(now, expected, limits, count)


def logged_outputs(log: pd.DataFrame, target: Target) -> NDArray[np.float64]:
    """What a model said, from the log of its answers: float64 of shape (rows,), or (rows, classes); NaN where it is not
    logged."""
    if target.kind != "multiclass":
        return log["score"].to_numpy(dtype=np.float64)
    rows = [[(said or {}).get(name, np.nan) for name in target.classes] for said in log["probabilities"]]
    return np.array(rows, dtype=np.float64).reshape(len(log), len(target.classes))


def _compare(now: Interval, expected: Expected, limits: PerformanceTrigger, count: int) -> Check:
    sign, name = expected.metric.sign, expected.metric.name
    said = f"{name} in service is {now.estimate:.3f}"
    if now.lower is not None and now.upper is not None:
        level = 2 * LIVE_CONFIDENCE - 1  # of both one-sided bounds together
        said += f" ({level:.0%} interval {now.lower:.3f} to {now.upper:.3f})"
    said += f" on {count:,} labelled predictions"
    seen = PerformanceEvidence(
        metric=name,
        before=expected.value,
        now=now.estimate,
        rows=count,
        lower=now.lower,
        upper=now.upper,
        higher_is_better=expected.metric.higher_is_better,
    )
    fallen = has_fallen(seen, limits.max_drop)
    status: Status = "unknown" if fallen is None else "alarm" if fallen else "pass"
    if expected.value is None or fallen is None:
        said = f"{said}; there is nothing sure to compare it with"
    else:
        said = f"{said}; it was {expected.value:.3f} on the model's holdout"
    return Check(
        name="performance",
        status=status,
        sentence=said,
        observed=now.estimate,
        threshold=None if expected.value is None else expected.value - sign * limits.max_drop,
        lower=now.lower,
        upper=now.upper,
        n=count,
    )


def served_features(log: pd.DataFrame, schema: InputSchema) -> pd.DataFrame:
    """The features of the logged requests and when they were asked, one row each; empty where the log holds none.

    Numbers are rounded as those of the reference were and as the model reads them: a client's 0.1 is no other number.
    """
    logged = log[np.array([isinstance(features, Mapping) for features in log["features"]], dtype=bool)]
    served = pd.DataFrame(list(logged["features"]), columns=list(schema.names))
    for name in (schema.names[position] for position in schema.numeric_positions):
        numbers = pd.to_numeric(served[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        with np.errstate(over="ignore"):
            served[name] = numbers.astype(np.float32).astype(np.float64)
    return served.assign(**{PREDICTION_TIME: logged["asked_at"].array})


def hidden_features(log: pd.DataFrame, schema: InputSchema) -> frozenset[str]:
    """The model's features that some record of the log leaves out or hashes."""
    found: set[str] = set()
    for fields in log["hidden"].dropna().unique() if "hidden" in log else ():
        names = hidden_in(fields, "features")
        found |= set(schema.names) if names is None else names & set(schema.names)
    return frozenset(found)


def judge_features(
    past: DriftReference,
    served: pd.DataFrame,
    schema: InputSchema,
    params: DriftParams,
    seed: int,
    hidden: frozenset[str] = frozenset(),
) -> tuple[Check, DriftReport | None]:
    """Served features against the reference of the stable model.

    Those that are ``hidden`` from the log cannot be compared: without them no drift is proven absent.
    """
    numeric = [name for name in (schema.names[at] for at in schema.numeric_positions) if name not in hidden]
    categorical = [name for name in (schema.names[at] for at in schema.categorical_positions) if name not in hidden]
    if served.empty or not numeric + categorical:
        sentence = "no request in the log carries its features"
        sentence += " (params.yaml: serving.log hides them)" if hidden else ""
        return Check(name="feature_drift", status="unknown", sentence=sentence, n=0), None
    report = compare_with(past, served, numeric, categorical, params, seed)
    status, sentence = _status(report.verdict), report.sentence
    if hidden:
        sentence += f" Not compared, since serving.log hides them: {', '.join(sorted(hidden))}."
    check = Check(
        name="feature_drift",
        status="unknown" if hidden and status == "pass" else status,
        sentence=sentence,
        observed=report.share,
        threshold=report.feature_share,
        n=len(served),
    )
    return check, report


def judge_scores(past: DriftReference, answered: pd.DataFrame, params: DriftParams, seed: int) -> Check:
    """The stable model's scores in service against those on its training rows; so the classes it answers, of several.

    What moved most is told: a drift of either is one.
    """
    scores = pd.DataFrame({SCORE: answered["score"].astype("float64"), PREDICTION_TIME: answered["asked_at"]})
    if past.kind == "multiclass":
        named = [max(said, key=said.get) if said else None for said in answered["probabilities"]]
        scores[ANSWER] = pd.Series(named, dtype="string").array
    report = compare_with(past, scores, [], [], params, seed)
    if not report.outputs:  # no reference of the season
        return Check(name="prediction_drift", status="unknown", sentence=report.sentence, n=len(scores))
    rank = {"drift": 0, "unknown": 1, "no_drift": 2}
    found = min(report.outputs, key=lambda output: rank[output.status])
    what = "classes answered by" if found.name == ANSWER else "scores of"
    return Check(
        name="prediction_drift",
        status=_status(found.status),
        sentence=f"{what} the stable model: {found.detail}",
        observed=found.effect,
        threshold=found.effect_threshold,
        n=found.n_current,
    )


def judge_errors(log: pd.DataFrame) -> Check:
    """Share of requests in the log that the server failed; the canary judges differences, this one only reports.

    A row by key that the model's schema refuses (422) counts: what is refused is what the feature store had.
    """
    if log.empty:
        return Check(name="errors", status="unknown", sentence="the prediction log is empty", n=0)
    failed = int(((log["status"] >= 500) | (log["status"] == 422)).sum())
    share = failed / len(log)
    sentence = f"{failed:,} of {len(log):,} logged requests failed ({share:.2%})"
    # A server that fails more than it answers needs no statistics.
    return Check(
        name="errors",
        status="alarm" if share > 0.5 else "pass",
        sentence=sentence,
        observed=share,
        threshold=0.5,
        n=len(log),
    )


def judge_silence(last_served: datetime | None, now: datetime, max_hours: float) -> Check:
    """Time since the last prediction, by the wall clock."""
    if last_served is None:
        sentence = "the prediction log holds no prediction"
        return Check(name="silence", status="unknown", sentence=sentence, threshold=max_hours)
    hours = max((now - last_served).total_seconds() / 3600, 0.0)
    return Check(
        name="silence",
        status="alarm" if hours > max_hours else "pass",
        sentence=f"the last prediction was served {hours:.1f} hours ago (limit {max_hours:g})",
        observed=hours,
        threshold=max_hours,
    )


def judge_staleness(trained_until: datetime | None, as_of: datetime | None, limits: FreshnessTrigger) -> Check:
    """How long before ``as_of`` the last answer lies that the stable model learnt from."""
    if not limits.enabled:
        return Check(name="staleness", status="pass", sentence="not asked for: decision.freshness.enabled is false")
    if trained_until is None or as_of is None:
        sentence = "how old the stable model's knowledge is, is not known: its answers or the data have no time"
        return Check(name="staleness", status="unknown", sentence=sentence, threshold=limits.max_age_days)
    days = max((as_of - trained_until).total_seconds() / 86_400, 0.0)
    return Check(
        name="staleness",
        status="alarm" if days >= limits.max_age_days else "pass",
        sentence=f"the last answer that the stable model learnt from is {days:.1f} days old "
        f"(limit {limits.max_age_days:g})",
        observed=days,
        threshold=limits.max_age_days,
    )


def reconcile(
    head: Entry, routing: RoutingTable | None, running: bool, answer: Mapping[str, Any] | None
) -> list[Check]:
    """Do the routing table and the server say what the ledger's head says?

    Parameters
    ----------
    head : Entry
        The truth.
    routing : RoutingTable or None
        ``routing.json``; None if it is missing or damaged.
    running : bool
        Whether a server process of this environment runs on this machine.
    answer : mapping or None
        What the server answered to ``GET /``; None if it did not.
    """
    must = wanted(head)
    checks = []
    if routing is None:
        sentence = "routing.json is missing or damaged: scripts/rollback.py rewrites it"
        checks.append(Check(name="routing", status="alarm", sentence=sentence))
    else:
        found = {**routing.model_dump(include=set(must)), "ledger_hash": routing.ledger_hash}
        checks.append(_agree("routing", "routing.json", {**must, "ledger_hash": head.hash}, found))
    if not running:
        sentence = "no server of this environment runs on this machine: what it serves is not known"
        checks.append(Check(name="server", status="unknown", sentence=sentence))
    elif answer is None:
        checks.append(Check(name="server", status="alarm", sentence="the server runs and does not answer"))
    elif answer.get("error"):
        checks.append(Check(name="server", status="alarm", sentence=f"the server reports: {answer['error']}"))
    else:
        checks.append(_agree("server", "the server", must, answer))
    return checks


def _agree(name: str, who: str, must: Mapping[str, Any], found: Mapping[str, Any]) -> Check:
    if sentence := disagreement(who, must, found):
        return Check(name=name, status="alarm", sentence=sentence)
    return Check(name=name, status="pass", sentence=f"{who} says what the ledger says (revision {must['revision']})")


def _status(verdict: str) -> Status:
    known: dict[str, Status] = {"drift": "alarm", "no_drift": "pass"}
    return known.get(verdict, "unknown")


def summary(report: MonitoringReport) -> str:
    """One sentence for a person."""
    parts: Sequence[str] = [
        f"{len(report.alarms)} alarm{'s' if len(report.alarms) != 1 else ''}"
        + (f" ({', '.join(report.alarms)})" if report.alarms else ""),
        *([f"unknown: {', '.join(report.unknown)}"] if report.unknown else []),
    ]
    return f"{report.environment}: {'; '.join(parts)}"
