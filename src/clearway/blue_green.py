"""Blue-green: switch everything at once, watch the new version, and keep the one before ready to take over again.

There is no control beside the new version, so it is judged against what the version before did until the switch. What
changes in the world at that moment is therefore blamed on the new version: a canary tells the two apart, a switch does
not. The bounds hold at every look (:mod:`clearway.bounded_mean`), and errors and slow answers share one budget.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from clearway.bounded_mean import Floats, bounded_mean
from clearway.deployment import SHOWN, rollback, say
from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.ledger import Entry, read_ledger
from clearway.params import BlueGreenParams, Params
from clearway.prediction_log import read_log
from clearway.reporting import Page, Table, write_page
from clearway.targets import target_of
from clearway.workspace import Workspace

LOOK_SECONDS = 1.0
REMEMBERED = 20_000
"""Answers of the version before, the latest, that it is judged by."""
_METRICS = ("errors", "slow answers")
_COLUMNS = ("version", "role", "revision", "served_at", "status", "latency_ms", "score")


class Shift(BaseModel):
    """One share before and after the switch; the bounds are of the difference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    before: float | None
    now: float | None
    lower: float
    """The share has risen by at least this; below 0 where nothing is known."""


class SwitchVerdict(BaseModel):
    """What a look at a switch came to: ``keep`` it, ``hold`` (too few answers to say), or ``rollback``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["keep", "hold", "rollback"]
    sentence: str
    n_before: int
    n_now: int
    shifts: tuple[Shift, ...]


@dataclass(frozen=True)
class Answers:
    """Answers of one version in the order in which they were given: 1 where it failed, 1 where it was slow."""

    errors: Floats
    slow: Floats

    @property
    def count(self) -> int:
        return len(self.errors)


def judge_switch(before: Answers, now: Answers, settings: BlueGreenParams) -> SwitchVerdict:
    """Whether the new version does more harm than the one before did.

    Without ``min_requests`` answers of each, harm may still show, but nothing is proved: *hold*.
    """
    alpha = settings.alpha / len(_METRICS) / 2  # two metrics, two arms
    pairs = zip(_METRICS, (before.errors, before.slow), (now.errors, now.slow), strict=True)
    shifts = tuple(_shift(name, past, present, alpha) for name, past, present in pairs)
    harmed = [shift for shift in shifts if shift.lower > settings.margin]
    if harmed:
        verdict: Literal["keep", "hold", "rollback"] = "rollback"
        sentence = "; ".join(
            f"{shift.name} rose from {_percent(shift.before)} to {_percent(shift.now)}, by at least "
            f"{shift.lower:.2%} (limit {settings.margin:.2%})"
            for shift in harmed
        )
    elif min(now.count, before.count) < settings.min_requests:
        verdict = "hold"
        sentence = (
            f"{now.count} answers of the new version beside {before.count} of the one before prove nothing "
            f"({settings.min_requests} of each are needed)"
        )
    else:
        verdict = "keep"
        sentence = f"{now.count} answers of the new version show no harm beside {before.count} of the one before"
    return SwitchVerdict(verdict=verdict, sentence=sentence, n_before=before.count, n_now=now.count, shifts=shifts)


def watch_switch(
    params: Params,
    workspace: Workspace,
    switch: Entry,
    *,
    actor: str,
    progress: Callable[[str], None] = lambda _: None,
) -> SwitchVerdict:
    """Look at what entry ``switch`` brought for ``deployment.blue_green.watch_minutes``; roll back at once on harm.

    Raises
    ------
    ClearwayError
        Somebody else changed the environment meanwhile, or rolling back failed.
    """
    settings = params.deployment.blue_green
    environment = switch.environment
    folder = workspace.environment(environment)
    slow_ms = params.canary.latency_ms
    target = target_of(params, workspace, environment)
    target.pull_log()
    before = _answers(
        read_log(folder / "predictions", columns=_COLUMNS), switch.previous_stable, slow_ms, switch, past=True
    )
    deadline = time.monotonic() + settings.watch_minutes * 60
    progress(f"deploy: watching {switch.stable[:SHOWN]} for {settings.watch_minutes:g} minutes")
    while True:
        ended = time.monotonic() >= deadline
        target.pull()
        target.pull_log(switch.sequence)
        log = read_log(folder / "predictions", since_revision=switch.sequence, columns=_COLUMNS)
        found = judge_switch(before, _answers(log, switch.stable, slow_ms, switch, past=False), settings)
        entries = read_ledger(folder, environment)
        if entries[-1].stable != switch.stable:
            raise ClearwayError(
                f"{environment} was changed while the switch to {switch.stable[:SHOWN]} was watched: entry "
                f"{entries[-1].sequence} is {entries[-1].action} by {entries[-1].actor} ({entries[-1].reason})"
            )
        if found.verdict == "rollback":
            evidence = {shift.name: f"at least {shift.lower:+.4f}" for shift in found.shifts}
            say(rollback(params, workspace, environment, actor=actor, reason=found.sentence, evidence=evidence))
            return found
        if ended:
            return found
        time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))


def write_report(workspace: Workspace, switch: Entry, found: SwitchVerdict) -> None:
    """Write ``reports/blue_green.json`` and ``.html``."""
    content = {"environment": switch.environment, "digest": switch.stable, "before": switch.previous_stable}
    write_json(workspace.reports / "blue_green.json", {**content, **found.model_dump(mode="json")})
    rows = [
        (
            shift.name,
            _percent(shift.before),
            _percent(shift.now),
            f"{shift.lower:+.2%}" if shift.lower > -1 else "unknown",
        )
        for shift in found.shifts
    ]
    page = Page(
        title=f"Switch in {switch.environment}",
        verdict=found.verdict,
        status={"keep": "pass", "hold": "warn", "rollback": "fail"}[found.verdict],
        sentence=found.sentence,
        facts=(
            ("new", switch.stable),
            ("before", switch.previous_stable or "none"),
            ("answers", f"{found.n_now:,} now, {found.n_before:,} before"),
            ("written", datetime.now(UTC).isoformat(timespec="seconds")),
        ),
        blocks=(Table("Shares", ("share", "before", "now", "risen by at least"), rows),),
    )
    write_page(workspace.reports / "blue_green.html", page)


def _shift(name: str, before: Floats, now: Floats, alpha: float) -> Shift:
    past, present = bounded_mean(before, alpha, "one"), bounded_mean(now, alpha, "one")
    return Shift(
        name=name,
        before=float(before.mean()) if len(before) else None,
        now=float(now.mean()) if len(now) else None,
        lower=float(present.lower[-1] - past.upper[-1]),
    )


def _answers(log: pd.DataFrame, digest: str | None, slow_ms: float, switch: Entry, *, past: bool) -> Answers:
    ours = log[(log["version"] == digest) & (log["role"] == "stable") & ((log["revision"] < switch.sequence) == past)]
    ours = ours.tail(REMEMBERED)
    # as the canary's judge takes them: a row that the version refuses, no number, and an unknown latency are harm, too
    errors = (ours["status"] != 200) | ~np.isfinite(ours["score"])
    slow = ~(ours["latency_ms"] <= slow_ms)
    return Answers(np.asarray(errors, dtype=np.float64), np.asarray(slow, dtype=np.float64))


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"
