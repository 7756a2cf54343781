"""A canary's way from its first step to a verdict: judge, record, and either rise, wait or roll back.

Every tick reads the ledger, the prediction log and ``canary.json`` anew and keeps nothing in memory, so that a rollout
can be watched by one command, killed, and carried on by another.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from clearway.bundle import verify
from clearway.canary import OBSERVED, CanaryVerdict, Extra, Judgement, Trace, draw_steps, is_score, judge, measure
from clearway.canary_metrics import business_metric, label_metric
from clearway.canary_state import (
    CanaryState,
    Provisional,
    Stretch,
    as_evidence,
    provisional,
    read_state,
    stretches,
    write_state,
)
from clearway.deployment import confirm, deploy, hold, reconcile, rollback, say
from clearway.errors import ClearwayError
from clearway.files import atomic_path, write_json
from clearway.ledger import canary_digest, read_ledger
from clearway.model import recorded_target
from clearway.params import CanaryParams, CanaryStep, Params
from clearway.prediction_log import read_log
from clearway.reporting import Page, Picture, Table, draw, write_page
from clearway.target import BINARY, Target
from clearway.targets import target_of
from clearway.workspace import Workspace

CHUNK = 500
"""Requests sent between two looks."""
LOG_SECONDS = 0.3
"""How long an answer may take to reach the prediction log."""
SUMMARY_COLUMNS = ("step", "metric", "n canary", "canary", "n stable", "stable", "canary - stable", "margin", "status")
WATCH_SECONDS = 2.0
"""Pause between two looks at traffic that comes by itself."""

SendTraffic = Callable[[int], int]
"""Sends up to so many requests and returns how many it sent; 0 when there are none left."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Tick:
    """One look: the verdict on the current step, and the rollout's state with it recorded."""

    verdict: CanaryVerdict
    state: CanaryState
    stable: str
    missing: str = ""
    """What the prediction log lacks, of this rollout or of an earlier day: a sentence, or nothing."""


def tick(params: Params, workspace: Workspace, environment: str, *, actor: str, now: datetime | None = None) -> Tick:
    """Judge the open canary's current step on all that was answered since its rollout began, and record the verdict.

    A verdict *rollback* is carried out at once, and so is *withdraw*, which ends an A/B test without blame. A promotion
    that waits for labels is judged first: *promote* confirms it, *rollback* revokes it, and with it ends the canary,
    which was compared with what is revoked. Without an open canary that is all there is to judge.

    Parameters
    ----------
    now
        Wall time, UTC: a step's least minutes, and the age of the verdict, are counted by it. The current time by
        default.

    Raises
    ------
    ClearwayError
        No canary is open and no promotion waits for labels, or rolling back failed.
    """
    at = now or datetime.now(UTC)
    entries = reconcile(params, workspace, environment)
    folder = workspace.environment(environment)
    waiting = provisional(entries)
    if waiting is not None:
        found = _settle(params, workspace, environment, waiting, at, actor=actor)
        if found.verdict.verdict == "rollback" or entries[-1].canary is None:
            return found
        entries = read_ledger(folder, environment)  # one entry longer where it was confirmed
    state = read_state(folder, entries)
    if state is None:
        raise ClearwayError(
            f"{environment} has no open canary: open one with scripts/deploy.py --env {environment} --canary N"
        )
    last = entries[-1]
    stages = stretches(entries)
    target_of(params, workspace, environment).pull_log(stages[0].since_revision)
    trial = _trial(params, workspace, environment, stages, state.digest, last.stable)
    minutes = (at - entries[state.since_revision - 1].at).total_seconds() / 60
    verdict = trial.judge(step_at(params.canary, state.weight), max(minutes, 0.0))
    state = state.judged(verdict, last.sequence, at)
    write_state(folder, state)
    target_of(params, workspace, environment).publish()
    if verdict.verdict == "rollback":
        evidence = as_evidence(verdict)
        say(rollback(params, workspace, environment, actor=actor, reason=verdict.sentence, evidence=evidence))
    elif verdict.verdict == "withdraw":
        say(deploy(params, workspace, environment, state.digest, 0, actor=actor, reason=verdict.sentence))
    return Tick(verdict, state, last.stable, trial.missing)


def _settle(
    params: Params, workspace: Workspace, environment: str, waiting: Provisional, at: datetime, *, actor: str
) -> Tick:
    """Judge a promotion on the labels of what was answered during its trial."""
    target_of(params, workspace, environment).pull_log(waiting.stretches[0].since_revision)
    trial = _trial(params, workspace, environment, waiting.stretches, waiting.digest, waiting.stable_before)
    weight = waiting.stretches[-1].weight
    verdict = settled(trial.judge_harm(step_at(params.canary, weight), float("inf")))
    since = waiting.stretches[-1]
    state = CanaryState(digest=waiting.digest, weight=weight, since_revision=since.since_revision)
    state = state.judged(verdict, since.last_revision, at)
    if verdict.verdict == "rollback":
        before, evidence = waiting.stable_before, as_evidence(verdict)
        why = verdict.sentence
        trial_of = canary_digest(read_ledger(workspace.environment(environment), environment))
        if trial_of is not None:  # withdrawn and not barred: what it was compared with was bad, not it
            ended = f"its control is revoked: {why}"
            with contextlib.suppress(ClearwayError):  # the rollback, which cannot wait, ends it too
                say(deploy(params, workspace, environment, trial_of, 0, actor=actor, reason=ended))
        say(rollback(params, workspace, environment, before, actor=actor, reason=why, evidence=evidence))
    elif verdict.verdict == "promote":
        confirm(params, workspace, environment, waiting.digest, verdict, actor=actor)
    return Tick(verdict, state, waiting.stable_before, trial.missing)


def settled(verdict: CanaryVerdict) -> CanaryVerdict:
    """What a verdict on a trial says of a provisional promotion: only its late metrics count."""
    late = tuple(metric for metric in verdict.metrics if metric.late)
    failed = [metric for metric in late if metric.status == "fail"]
    judged: Judgement = "rollback" if failed else "promote"
    if not failed and (not late or any(metric.status != "pass" for metric in late)):
        judged = "hold"
    said = "; ".join(
        f"{metric.name}: differs by {metric.lower:+.4f} to {metric.upper:+.4f} (margin {metric.margin:g}) with "
        f"{metric.n_canary:,} and {metric.n_stable:,} labels"
        for metric in failed or late
    )
    words = {
        "rollback": "labels revoke the promotion",
        "promote": "labels bear out the promotion",
        "hold": "the promotion stays provisional",
    }
    sentence = f"{words[judged]}: {said or 'no metric of labels is set (canary.labels in params.yaml)'}"
    return verdict.model_copy(
        update={"verdict": judged, "sentence": sentence, "metrics": late, "provisional": judged == "hold"}
    )


def judge_step(
    params: Params,
    workspace: Workspace,
    environment: str,
    *,
    actor: str,
    send_traffic: SendTraffic | None = None,
    progress: Progress = lambda _: None,
    timeout: float = 0.0,
) -> Tick:
    """Tick until the current step is decided, its traffic is exhausted, or ``timeout`` seconds have passed.

    Without ``send_traffic`` the environment's own traffic is waited for.

    Raises
    ------
    ClearwayError
        As :func:`tick`; or the environment's server cannot be made to serve the step.
    """
    deadline = time.monotonic() + timeout
    entries = reconcile(params, workspace, environment)
    if entries:
        target_of(params, workspace, environment).serve(entries[-1].sequence)
    if entries and entries[-1].canary is None and provisional(entries) is not None:  # no traffic of now says more of it
        now = tick(params, workspace, environment, actor=actor)
        progress(f"{now.verdict.verdict}: {now.verdict.sentence}")
        return now
    now = tick(params, workspace, environment, actor=actor)
    while now.verdict.verdict == "hold" and time.monotonic() < deadline:
        progress(now.verdict.sentence)
        if send_traffic is None:
            time.sleep(min(WATCH_SECONDS, max(0.0, deadline - time.monotonic())))
            sent = 1
        else:
            sent = send_traffic(CHUNK)
            time.sleep(LOG_SECONDS)
        now = tick(params, workspace, environment, actor=actor)
        if sent == 0:
            break
    progress(f"{now.verdict.verdict}: {now.verdict.sentence}")
    return now


def advance(
    params: Params,
    workspace: Workspace,
    environment: str,
    *,
    actor: str,
    send_traffic: SendTraffic | None = None,
    progress: Progress = lambda _: None,
    timeout: float = 0.0,
) -> Tick:
    """Take the open canary as far towards its last step's verdict as ``timeout`` seconds of traffic bear out.

    The last step's *promote* is the answer and is not carried out: ``deploy.py --canary 100`` does that. *hold* leaves
    the rollout where it is, for a later look.

    Parameters
    ----------
    send_traffic
        Where requests come from; None waits for the environment's own.
    progress
        Told each verdict's sentence.
    timeout
        Seconds for the whole of it; 0 judges what was answered by now.

    Raises
    ------
    ClearwayError
        As :func:`judge_step`.
    """
    deadline = time.monotonic() + timeout
    while True:
        entries = reconcile(params, workspace, environment)
        now = judge_step(
            params,
            workspace,
            environment,
            actor=actor,
            send_traffic=send_traffic,
            progress=progress,
            timeout=max(0.0, deadline - time.monotonic()),
        )
        following = [weight for weight in params.trial_weights() if weight > now.state.weight]
        if entries[-1].canary is None or now.verdict.verdict != "promote" or not following:  # or a promotion was judged
            return now
        reason = f"passed {now.state.weight}%: {now.verdict.sentence}"
        say(deploy(params, workspace, environment, now.state.digest, following[0], actor=actor, reason=reason))


def watch(
    params: Params,
    workspace: Workspace,
    environment: str,
    *,
    actor: str,
    send_traffic: SendTraffic | None = None,
    progress: Progress = lambda _: None,
    timeout: float = 900.0,
) -> Tick:
    """:func:`advance`; a rollout that ends in *hold*, because time or traffic ran out, says so in the ledger.

    Raises
    ------
    ClearwayError
        As :func:`judge_step`.
    """
    entries = read_ledger(workspace.environment(environment), environment)
    waits = bool(entries) and entries[-1].canary is None  # a promotion, for labels
    now = advance(
        params,
        workspace,
        environment,
        actor=actor,
        send_traffic=send_traffic,
        progress=progress,
        timeout=timeout,
    )
    if now.verdict.verdict == "hold" and not waits:
        say(hold(params, workspace, environment, now.verdict, actor=actor))
    return now


def replayed_traffic(params: Params, workspace: Workspace, environment: str) -> SendTraffic:
    """Traffic made from the source's own later rows, prepared when the first is sent; none where it has none."""
    from clearway.features import NoQuestionsError
    from clearway.replay import Replay

    prepared: list[Replay] = []

    def send(count: int) -> int:
        if not prepared:  # computes the features of all that may be asked
            try:
                prepared.append(Replay(params, workspace, environment))
            except NoQuestionsError:  # that says nothing against the canary
                return 0
        return prepared[0].send(count).sent

    return send


def step_at(params: CanaryParams, weight: int) -> CanaryStep:
    """The step whose rules hold at ``weight``: its own, else the next larger one's, else the last one's."""
    reached = zip(params.steps, params.weights(), strict=True)
    step = next((step for step, real in reached if real >= weight), params.steps[-1])
    return step.model_copy(update={"weight": weight})


def write_report(params: Params, workspace: Workspace, environment: str, now: Tick) -> None:
    """Write ``reports/canary.json``, ``.png`` and ``.html``: every step so far, its verdict and its sequences."""
    steps = [step.verdict for step in now.state.verdicts]
    report = {
        "environment": environment,
        "verdict": now.verdict.verdict,
        "sentence": now.verdict.sentence,
        "digest": now.state.digest,
        "stable": now.stable,
        "weight": now.state.weight,
        "provisional": now.verdict.provisional,
        "missing": now.missing,
        "more_requests": now.verdict.more_requests,
        "more_minutes": now.verdict.more_minutes,
        "steps": [step.model_dump(mode="json") for step in steps],
    }
    write_json(workspace.reports / "canary.json", report)
    png = draw(draw_steps(_traces(params, workspace, environment, now)))
    with atomic_path(workspace.reports / "canary.png") as path:
        path.write_bytes(png)
    tables = [_table(step) for step in steps]
    alt = "The confidence sequence of each metric's difference, canary minus stable, against its margins, per step"
    page = Page(
        title=f"Canary in {environment}",
        verdict=now.verdict.verdict,
        status=_COLOUR[now.verdict.verdict],
        sentence=now.verdict.sentence,
        facts=(
            ("canary", now.state.digest),
            ("stable", now.stable),
            ("expected", _expected(now.verdict)),
            *([("not seen", now.missing)] if now.missing else []),
            ("written", datetime.now(UTC).isoformat(timespec="seconds")),
        ),
        blocks=(*tables, Picture("Sequences", alt, png)),
    )
    write_page(workspace.reports / "canary.html", page)


def summary_rows(verdicts: Sequence[CanaryVerdict]) -> list[tuple[str, ...]]:
    """Step, metric, canary, stable, difference, margin, status: one row per metric and step, as text."""
    return [
        (
            f"{verdict.weight}%",
            metric.name,
            f"{metric.n_canary:,}",
            _number(metric.canary),
            f"{metric.n_stable:,}",
            _number(metric.stable),
            f"{metric.lower:+.4f} to {metric.upper:+.4f}",
            f"{'±' if is_score(metric.name) else ''}{metric.margin:g}",
            metric.status,
        )
        for verdict in verdicts
        for metric in verdict.metrics
    ]


_COLOUR: dict[Judgement, str] = {"promote": "pass", "rollback": "fail", "hold": "warn", "withdraw": "warn"}


def summary_text(now: Tick) -> str:
    """The steps so far as an aligned table, then the verdict in one line."""
    rows = [SUMMARY_COLUMNS, *summary_rows([step.verdict for step in now.state.verdicts])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(SUMMARY_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    warned = [f"check canary: warning: {now.missing}"] if now.missing else []
    return "\n".join([*lines, *warned, f"check canary: {now.verdict.verdict}: {now.verdict.sentence}"])


@dataclass(frozen=True)
class _Trial:
    """What was observed of a rollout, and how it is to be judged."""

    params: Params
    observations: pd.DataFrame
    target: Target
    extras: tuple[Extra, ...]
    segment: int
    missing: str = ""

    def judge(self, step: CanaryStep, minutes: float) -> CanaryVerdict:
        if self.params.deployment.strategy != "ab":
            return self.judge_harm(step, minutes)
        from clearway.ab_test import judge_ab

        rules = self.params.deployment.ab
        goal = next(extra for extra in self.extras if extra.name == rules.metric)  # params.py checked that there is one
        low = next((one.low for one in self.params.canary.business if one.name == rules.metric), 0.0)
        return judge_ab(
            self.observations,
            goal,
            rules,
            self.params.canary,
            self.target,
            low=low,
            extras=self.extras,
            segment=self.segment,
        )

    def judge_harm(self, step: CanaryStep, minutes: float) -> CanaryVerdict:
        """Whether it is worse than stable, whatever the strategy asks for beside."""
        return judge(
            self.observations,
            step,
            self.params.canary,
            self.target,
            segment=self.segment,
            extras=self.extras,
            minutes=minutes,
        )

    def measure(self, step: CanaryStep) -> list[Trace]:
        return measure(
            self.observations, step, self.params.canary, self.target, segment=self.segment, extras=self.extras
        )


def _trial(
    params: Params, workspace: Workspace, environment: str, trial: Sequence[Stretch], digest: str, stable: str
) -> _Trial:
    """The answers of the two versions on trial since the rollout began, whatever their status.

    A row by key whose features the version's schema refuses (422) is one of them: the judge takes it for an error of
    the version that refused it. So a canary that refuses what stable accepts is not promoted as if it were never asked.
    """
    target = BINARY if params.target.kind == "binary" else recorded_target(verify(workspace.bundles / stable, stable))
    folder = workspace.environment(environment) / "predictions"
    columns = ("revision", *(OBSERVED if target.kind == "multiclass" else OBSERVED[:-1]))
    log = read_log(folder, revisions=range(trial[0].since_revision, trial[-1].last_revision + 1), columns=columns)
    missing = missing_from(log)
    log = log[log["version"].isin([stable, digest])]
    begins = [stretch.since_revision for stretch in trial]
    segment = np.searchsorted(begins, log["revision"].to_numpy(dtype=np.int64), side="right") - 1
    weights = np.array([stretch.weight for stretch in trial])
    log = log.assign(segment=segment, weight=weights[segment])
    extras = [business_metric(log, rules) for rules in params.canary.business]
    if params.canary.labels is not None:
        labelled = _labelled(workspace, environment, trial[0].since_revision, log)
        extras.append(label_metric(labelled, params.canary.labels, target, params.train.threshold))
    return _Trial(params, log, target, tuple(extras), len(trial) - 1, missing)


def missing_from(log: pd.DataFrame) -> str:
    """What :func:`read_log` could not read, or knows to be lost, in a sentence; empty where nothing is."""
    losses, damaged = log.attrs["losses"], log.attrs["damaged_lines"]
    parts = []
    if losses:
        count = sum((loss.lost or 0) + (loss.dropped or 0) for loss in losses)
        unknown = ", and an unknown number" if any(loss.lost is None for loss in losses) else ""
        parts.append(f"{count:,} records{unknown} of {len(losses)} server processes that were killed or overrun")
    if damaged:
        parts.append(f"{damaged:,} damaged line{'s' if damaged > 1 else ''} ({log.attrs['damaged']})")
    return f"the prediction log lacks {' and '.join(parts)}: the judge has not seen them" if parts else ""


def _labelled(workspace: Workspace, environment: str, since_revision: int, log: pd.DataFrame) -> pd.DataFrame:
    """The trial's answers whose label has come in."""
    from clearway.labels import read_labels

    found: pd.DataFrame = read_labels(workspace, environment, since_revision)
    if "probabilities" in log:
        found = found.merge(log[["id", "version", "probabilities"]], on=["id", "version"], how="inner")
    return found


def _traces(params: Params, workspace: Workspace, environment: str, now: Tick) -> list[tuple[CanaryStep, list[Trace]]]:
    entries = read_ledger(workspace.environment(environment), environment)
    found = []
    for step in now.state.verdicts:
        trial = stretches(entries[: step.last_revision])
        part = _trial(params, workspace, environment, trial, now.state.digest, now.stable)
        rules = step_at(params.canary, step.verdict.weight)
        found.append((rules, part.measure(rules)))
    return found


def _expected(verdict: CanaryVerdict) -> str:
    """When the step will be decided, for a person."""
    if verdict.verdict != "hold":
        return "decided"
    if verdict.more_requests is None:
        return "no verdict in sight at this traffic"
    within = "" if verdict.more_minutes is None else f", {verdict.more_minutes:,.1f} minutes at this traffic"
    return f"a verdict after about {verdict.more_requests:,} more requests{within}"


def _table(verdict: CanaryVerdict) -> Table:
    return Table(
        title=f"At {verdict.weight}%: {verdict.verdict}",
        columns=SUMMARY_COLUMNS[1:],
        rows=[row[1:] for row in summary_rows([verdict])],
        status=[{"pass": "pass", "fail": "fail", "open": "unknown"}[metric.status] for metric in verdict.metrics],
        note=verdict.sentence,
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
