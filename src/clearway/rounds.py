"""One round of the monitor: look at a live environment, carry on its open canary, and tell people of what is wrong.

A round does not stop at what fails: that is an alarm itself. Everything it needs is read anew, so rounds may be an
hourly workflow (``monitor.yml``) or a service (``scripts/monitor.py --watch``), in which each is a process of its own.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from clearway.aftermath import URLS_VARIABLE
from clearway.alarms import Alarm, FileMemory, Memory, Tell, settle
from clearway.as_of import resolve_as_of
from clearway.canary_state import provisional
from clearway.deployment import default_actor, deploy, run_url, say
from clearway.errors import ClearwayError
from clearway.github_settings import GitHub
from clearway.github_workflows import keep_awake, last_delivery, start_delivery, wants_delivery
from clearway.ledger import canary_digest, read_ledger
from clearway.params import Params
from clearway.state import last_run
from clearway.targets import target_of
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.monitoring import MonitoringReport

MONITOR, CANARY, REGISTRY = "monitor", "canary", "registry"
"""Kinds of alarms beside the checks: the environment could not be measured; its canary could not be judged or promoted;
MLflow's alias does not say what the ledger says."""


@dataclass(frozen=True)
class Round:
    """What was found."""

    alarms: tuple[Alarm, ...] = ()
    well: frozenset[str] = frozenset()
    retrain: bool = False
    """Whether an alarm is one that a new model could answer."""
    canary: str = "none"
    """Verdict on the open canary, or ``none``, or ``promoted``."""
    said: tuple[str, ...] = ()
    """What happened besides, and what could not be told."""
    report: "MonitoringReport | None" = None

    def also(self, alarm: Alarm) -> "Round":
        return replace(self, alarms=(*self.alarms, alarm))

    @property
    def failed(self) -> bool:
        """Whether the environment could not be measured, or what was found could not be told or kept."""
        return bool(self.said) or any(alarm.kind == MONITOR for alarm in self.alarms)


def look(params: Params, workspace: Workspace, environment: str, now: datetime) -> Round:
    """Measure, compare, and judge the open canary; what cannot be done is an alarm."""
    try:
        last = last_run(workspace)
    except ClearwayError as error:
        return Round(alarms=(Alarm(MONITOR, str(error)),))
    as_of = resolve_as_of(params, asked=None, scheduled=False, last=last.as_of if last else None, now=now)
    params = params.model_copy(update={"as_of": as_of})
    found = guarded(MONITOR, Round(), lambda before: _measured(before, params, workspace, environment, now))
    found = guarded(CANARY, found, lambda before: _with_canary(before, params, workspace, environment))
    return guarded(REGISTRY, found, lambda before: _with_registry(before, params, workspace, environment))


def tell_people(
    params: Params, workspace: Workspace, environment: str, found: Round, memory: Memory | None = None
) -> Round:
    """Keep the alarms and tell of them, by ``$CLEARWAY_ALERT_URLS``; adds what could not be told."""
    urls = os.environ.get(URLS_VARIABLE, "").strip()
    where = f"{params.project.name} {environment}"
    kept = memory or FileMemory(workspace.environment(environment))
    try:
        warnings = settle(kept, found.alarms, found.well, where, _teller(urls) if urls else None)
    except ClearwayError as error:
        warnings = (str(error),)
    return replace(found, said=(*found.said, *warnings))


def tell_github(github: GitHub, params: Params, found: Round, now: datetime) -> list[str]:
    """Start a delivery if an alarm asks for one, and keep the crons awake. Returns what was done and what could not be.

    It fails for nothing: an alarm that was told stays told.
    """
    said: list[str] = []
    try:
        last, running = last_delivery(github)
        if wants_delivery(found.retrain, last, running, now, params.monitoring.deliver_hours):
            start_delivery(github)
            said.append("a delivery was started, for an alarm that a new model could answer")
    except ClearwayError as error:
        said.append(f"no delivery was started: {error}" if found.retrain else str(error))
    try:
        said += keep_awake(github, now)
    except ClearwayError as error:
        said.append(f"crons may fall asleep: {error}")
    return said


def spoken(found: Round, done: Sequence[str], environment: str) -> list[str]:
    """What a round found and did, a line each, without line breaks that data may have put into one."""
    lines = [f"{environment}: {len(found.alarms)} alarms, canary: {found.canary}"]
    lines += [f"ALARM {alarm.kind}: {alarm.sentence}" for alarm in found.alarms]
    unknown = found.report.unknown if found.report else ()
    lines += [f"unknown: {', '.join(unknown)}"] if unknown else []
    lines += [f"could not be told: {warning}" for warning in found.said]
    return [" ".join(line.split()) for line in (*lines, *done)]


def repeat(
    command: Sequence[str],
    *,
    pause: float,
    limit: float,
    on_failure: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Run a round as a process again and again until ``stop``, whatever becomes of each.

    Parameters
    ----------
    command
        Ends with 0, or with 1 where it has said itself what is wrong.
    pause, limit : float
        Seconds from the beginning of one round to the next, and the longest that one may take.
    on_failure
        Told of a round that could not speak for itself: it was killed, took too long, or broke.
    """
    while not stop.is_set():
        began = time.monotonic()
        try:
            broken = _run(command, limit, stop)
            if broken is not None:
                on_failure(broken)
        except Exception as error:  # nothing ends the watch but its operator
            print(f"warning: monitor: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        stop.wait(max(0.0, pause - (time.monotonic() - began)))


def _run(command: Sequence[str], limit: float, stop: threading.Event) -> str | None:
    """Why a round could not speak for itself; None if it did."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + limit
        try:
            while not stop.is_set():
                try:
                    process.wait(timeout=min(0.5, max(0.0, deadline - time.monotonic())))
                except subprocess.TimeoutExpired:
                    if time.monotonic() < deadline:
                        continue
                    return f"a round took longer than {limit / 60:g} minutes and was ended"
                return None if process.returncode in (0, 1) else f"a round ended with exit code {process.returncode}"
            return None
        finally:
            if process.poll() is None:
                process.kill()


def raise_broken(params: Params, workspace: Workspace, environment: str, sentence: str) -> None:
    """Make an alarm of a round that could not speak for itself."""
    print(f"warning: monitor: {sentence}", file=sys.stderr, flush=True)
    found = tell_people(params, workspace, environment, Round(alarms=(Alarm(MONITOR, sentence),)))
    for warning in found.said:
        print(f"warning: monitor: {warning}", file=sys.stderr, flush=True)


def guarded(kind: str, before: Round, step: Callable[[Round], Round]) -> Round:
    """What ``step`` makes of a round, or an alarm of that kind, whatever it raised."""
    try:
        return step(before)
    except ClearwayError as error:
        return before.also(Alarm(kind, str(error)))
    except Exception as error:  # a fault of ours, or of a library: the other parts are looked at all the same
        return before.also(Alarm(kind, f"{type(error).__name__}: {error}"))


def _measured(before: Round, params: Params, workspace: Workspace, environment: str, now: datetime) -> Round:
    from clearway.monitor import monitor

    report = monitor(params, workspace, environment, now)
    return replace(
        before,
        report=report,
        alarms=tuple(Alarm(check.name, check.sentence) for check in report.checks if check.status == "alarm"),
        well=frozenset({MONITOR, *(check.name for check in report.checks if check.status == "pass")}),
        retrain=report.retrain,
    )


def _with_canary(before: Round, params: Params, workspace: Workspace, environment: str) -> Round:
    """A canary is judged whatever else could not be measured."""
    target = target_of(params, workspace, environment)
    try:
        target.pull()
    except ClearwayError:
        if before.alarms:  # it was said already that it is out of reach
            return before
        raise
    entries = read_ledger(workspace.environment(environment), environment)
    well = replace(before, well=before.well | {CANARY})
    waits = provisional(entries) is not None
    digest = canary_digest(entries)
    if digest is None and not waits:
        return well
    from clearway.rollout import advance, write_report
    from clearway.skew_report import check_skew

    for needed in {entries[-1].stable, digest or entries[-1].stable}:
        target.fetch(needed)
    actor = default_actor()
    now = advance(params, workspace, environment, actor=actor)
    write_report(params, workspace, environment, now)
    verdict = now.verdict.verdict
    if verdict != "promote" or waits or digest is None:
        return replace(well, canary=verdict)
    skew = check_skew(params, workspace, environment, digest=digest, rollout=True)
    if skew is not None and skew.verdict != "no_skew":
        raise ClearwayError(f"{digest[:12]} passed its last step, but {skew.sentence} (scripts/check_skew.py)")
    say(deploy(params, workspace, environment, digest, 100, actor=actor, reason=now.verdict.sentence))
    return replace(well, canary="promoted")


def _with_registry(before: Round, params: Params, workspace: Workspace, environment: str) -> Round:
    """Only a registry that outlives this machine can have been changed by somebody else."""
    from clearway.reconciliation import examine

    if environment != params.production or not (os.environ.get("MLFLOW_TRACKING_URI") or params.registry.tracking_uri):
        return before
    for finding in examine(params, workspace, environment, ("alias",)):
        if not finding.agrees:
            return before.also(Alarm(REGISTRY, f"{finding.sentence} (scripts/reconcile.py --only alias --repair)"))
    return replace(before, well=before.well | {REGISTRY})


def _teller(urls: str) -> Tell:
    def tell(title: str, text: str, kind: Literal["failure", "success"]) -> None:
        from clearway.alerts import announce

        announce(urls, title, "\n".join(filter(None, [text, run_url()])), kind)

    return tell
