"""A canary's way from its first step to a verdict: judge, record, and either rise, wait or roll back.

Every tick reads the ledger, the prediction log and ``canary.json`` anew and keeps nothing in memory, so that a rollout
can be watched by one command, killed, and carried on by another.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from clearway.bundle import verify
from clearway.canary import OBSERVED, CanaryVerdict, Judgement, Trace, draw_steps, is_score, judge, measure
from clearway.canary_state import CanaryState, as_evidence, read_state, write_state
from clearway.deployment import deploy, hold, reconcile, rollback, say
from clearway.errors import ClearwayError
from clearway.files import atomic_path, write_json
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


def tick(params: Params, workspace: Workspace, environment: str, *, actor: str) -> Tick:
    """Judge the open canary's current step on all that was answered since it began, and record the verdict.

    A verdict *rollback* is carried out at once.

    Raises
    ------
    ClearwayError
        No canary is open, or rolling back failed.
    """
    entries = reconcile(params, workspace, environment)
    folder = workspace.environment(environment)
    state = read_state(folder, entries)
    if state is None:
        raise ClearwayError(
            f"{environment} has no open canary: open one with scripts/deploy.py --env {environment} --canary N"
        )
    last = entries[-1]
    target = _target(params, workspace, last.stable)
    target_of(params, workspace, environment).pull_log(state.since_revision)
    observations = _observe(workspace, environment, state, last.stable, last.sequence, target)
    verdict = judge(observations, step_at(params.canary, state.weight), params.canary, target)
    state = state.judged(verdict, last.sequence)
    write_state(folder, state)
    target_of(params, workspace, environment).publish()
    if verdict.verdict == "rollback":
        evidence = as_evidence(verdict)
        say(rollback(params, workspace, environment, actor=actor, reason=verdict.sentence, evidence=evidence))
    return Tick(verdict, state, last.stable)


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
    """Take the open canary from its current step to the verdict of the last one, raising its weight in between.

    The last step's *promote* is the answer and is not carried out: ``deploy.py --canary 100`` does that. A rollout that
    ends in *hold*, because time or traffic ran out, says so in the ledger and stays where it is.

    Parameters
    ----------
    send_traffic
        Where requests come from; None waits for the environment's own.
    progress
        Told each verdict's sentence.
    timeout
        Seconds for the whole of it.

    Raises
    ------
    ClearwayError
        As :func:`judge_step`.
    """
    deadline = time.monotonic() + timeout
    while True:
        now = judge_step(
            params,
            workspace,
            environment,
            actor=actor,
            send_traffic=send_traffic,
            progress=progress,
            timeout=deadline - time.monotonic(),
        )
        following = [step.weight for step in params.canary.steps if step.weight > now.state.weight]
        if now.verdict.verdict == "hold":
            say(hold(params, workspace, environment, now.verdict, actor=actor))
        if now.verdict.verdict != "promote" or not following:
            return now
        reason = f"passed {now.state.weight}%: {now.verdict.sentence}"
        say(deploy(params, workspace, environment, now.state.digest, following[0], actor=actor, reason=reason))


def replayed_traffic(params: Params, workspace: Workspace, environment: str) -> SendTraffic:
    """Traffic made from the source's own later rows, prepared when the first is sent.

    Raises
    ------
    ClearwayError
        When called: the source has none.
    """
    from clearway.replay import Replay

    prepared: list[Replay] = []

    def send(count: int) -> int:
        if not prepared:  # computes the features of all that may be asked
            prepared.append(Replay(params, workspace, environment))
        return prepared[0].send(count).sent

    return send


def step_at(params: CanaryParams, weight: int) -> CanaryStep:
    """The step whose rules hold at ``weight``: its own, else the next larger one's, else the last one's."""
    step = next((step for step in params.steps if step.weight >= weight), params.steps[-1])
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
        "steps": [step.model_dump(mode="json") for step in steps],
    }
    write_json(workspace.reports / "canary.json", report)
    png = draw(draw_steps(_traces(params, workspace, environment, now), params.canary))
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


_COLOUR: dict[Judgement, str] = {"promote": "pass", "rollback": "fail", "hold": "warn"}


def summary_text(now: Tick) -> str:
    """The steps so far as an aligned table, then the verdict in one line."""
    rows = [SUMMARY_COLUMNS, *summary_rows([step.verdict for step in now.state.verdicts])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(SUMMARY_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"check canary: {now.verdict.verdict}: {now.verdict.sentence}"])


def _target(params: Params, workspace: Workspace, stable: str) -> Target:
    """What the stable version answers; a project of yes and no need not open its bundle."""
    if params.target.kind == "binary":
        return BINARY
    return recorded_target(verify(workspace.bundles / stable, stable))


def _observe(
    workspace: Workspace, environment: str, state: CanaryState, stable: str, last: int, target: Target
) -> pd.DataFrame:
    """The answers of the two versions on trial since the step began, whatever their status.

    A row by key whose features the version's schema refuses (422) is one of them: the judge takes it for an error of
    the version that refused it. So a canary that refuses what stable accepts is not promoted as if it were never asked.
    """
    folder = workspace.environment(environment) / "predictions"
    columns = OBSERVED if target.kind == "multiclass" else OBSERVED[:-1]
    log = read_log(folder, revisions=range(state.since_revision, last + 1), columns=columns)
    return log[log["version"].isin([stable, state.digest])]


def _traces(params: Params, workspace: Workspace, environment: str, now: Tick) -> list[tuple[CanaryStep, list[Trace]]]:
    found = []
    target = _target(params, workspace, now.stable)
    for step in now.state.verdicts:
        at = now.state.model_copy(update={"since_revision": step.since_revision})
        observations = _observe(workspace, environment, at, now.stable, step.last_revision, target)
        rules = step_at(params.canary, step.verdict.weight)
        found.append((rules, measure(observations, rules, params.canary, target)))
    return found


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
