"""Deploy, canary, promote, roll back: what may happen is decided by pure plans, and carried out in one order.

The order is the guarantee: the bundle is verified, the ledger entry is written and synced, the routing table is
projected from the ledger's head, and the server is asked to follow. A command killed in between leaves a ledger that is
right and a projection that is late; every command begins by projecting again (:func:`reconcile`), so that the next one,
whichever it is, repairs it. What only repeats the ledger, MLflow's alias and people's alerts, follows when the
environment serves (:mod:`clearway.aftermath`), and can neither delay nor fail a command.

A rollback needs the ledger and a kept bundle, nothing else: no training, no network, no registry. Its modules are
imported where they are used: a command that has to be fast starts without NumPy.
"""

import getpass
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clearway.aftermath import follow_up
from clearway.bundle import NETWORK, Bundle, BundleError, keep, payload_digest, read_built, verify
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import (
    CLOCK,
    Change,
    Entry,
    canary_digest,
    head_hash,
    locked,
    quarantined,
    read_ledger,
    shadow_digest,
    stable_digest,
    stable_history,
)
from clearway.params import ENTITY_KEY, Params
from clearway.routing import Split, check_not_ahead, project_routing, read_routing, split_of, write_routing
from clearway.signing import check_for
from clearway.targets import Endpoint, Target, target_of
from clearway.trust import trust_of
from clearway.workspace import MODEL_REPORT, Workspace

if TYPE_CHECKING:
    from clearway.canary import CanaryVerdict
    from clearway.skew_state import SkewState

logger = logging.getLogger(__name__)

BOOTSTRAP_REASON = "bootstrap: labelled baseline is the first control"
SHADOW_SECONDS = 60.0
"""How long a shadow may take to be loaded."""
POLL_SECONDS = 0.1
CLOCKS_APART = timedelta(minutes=5)
"""By how much the clock of the machine that judged may be ahead."""
SHOWN = 12
"""Characters of a digest that people are shown."""


@dataclass(frozen=True)
class Situation:
    """All that a plan may look at."""

    environment: str
    entries: Sequence[Entry]
    required: tuple[str, str | None] | None = None
    """The environment in which a digest must be stable first, and the digest that is."""
    verdict: "CanaryVerdict | None" = None
    """The last recorded verdict on the open canary at its current weight."""
    verdict_age: timedelta = timedelta.max
    """How long ago it was given."""
    verdict_holds: timedelta = timedelta(days=1)
    """For how long it lets the canary rise."""
    skew: "SkewState | None" = None
    """What the last skew check of a rollout found."""
    stored: bool = False
    """Whether the canary's features come from the feature store, so that it may have been served others."""
    rollout: int = 0
    """The ledger revision at which the current rollout began."""
    most: int = 99
    """Largest weight of a trial: the rest is its control."""
    last: int = 1
    """Weight of the trial's last step: a version is promoted from there."""

    @property
    def stable(self) -> str | None:
        return stable_digest(self.entries)

    @property
    def canary(self) -> str | None:
        return canary_digest(self.entries)

    @property
    def shadow(self) -> str | None:
        return shadow_digest(self.entries)

    @property
    def weight(self) -> int:
        return self.entries[-1].canary_weight if self.entries else 0


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    changed: bool
    """Whether the ledger has a new entry."""
    sentence: str
    entry: Entry | None
    """The ledger's head now."""
    server: Endpoint | None
    warnings: tuple[str, ...] = field(default_factory=tuple)

    @property
    def switch(self) -> Entry | None:
        """The entry to be watched, if this was a blue-green switch."""
        return self.entry if self.changed and self.entry is not None and self.entry.warm_minutes is not None else None


# --- plans: pure -----------------------------------------------------------------------------------------------------


def plan_deploy(
    situation: Situation, digest: str, *, actor: str, reason: str, warm_minutes: float | None = None
) -> Change | None:
    """Replace the stable version at once. None if ``digest`` is stable already.

    ``warm_minutes`` is how long servers keep the version before in memory, if at all.

    Raises
    ------
    ClearwayError
        A canary is open, the digest is quarantined, or it is not stable where it must be first.
    """
    where = situation.environment
    if situation.canary is not None:
        if situation.canary == digest:
            raise ClearwayError(
                f"{digest[:SHOWN]} is the canary of {where} at {situation.weight}%: judge it with "
                f"scripts/check_canary.py --env {where}, then promote it with --canary 100"
            )
        raise ClearwayError(
            f"{where} has an open canary {situation.canary[:SHOWN]} at {situation.weight}%: promote it, "
            f"or end it with scripts/rollback.py --env {where}, before {digest[:SHOWN]} is deployed"
        )
    if situation.stable == digest:
        return None
    check_admissible(situation, digest)
    kept = warm_minutes if situation.stable is not None else None
    return Change(action="deploy", stable=digest, warm_minutes=kept, actor=actor, reason=reason)


def plan_canary(situation: Situation, digest: str, weight: int, *, actor: str, reason: str) -> Change | None:
    """Put ``digest`` on trial, change the weight of its trial, promote it (100), or withdraw it unblamed (0).

    None if that is how things stand already.

    Raises
    ------
    UsageError
        The weight is outside 0 to 100.
    ClearwayError
        The digest is stable, quarantined, or not stable where it must be first; another canary is open; the weight
        would rise without the verdict *promote* at the current weight; or a canary with stored features would be
        promoted without the skew verdict ``no_skew`` of this rollout.
    """
    where, stable, canary = situation.environment, situation.stable, situation.canary
    check_weight(weight)
    if situation.most < weight < 100:
        raise UsageError(
            f"--canary {weight}: {100 - situation.most}% of the traffic stay with the stable version as the canary's "
            f"control (canary.control in params.yaml), so {situation.most} is the most before --canary 100 promotes it"
        )
    if weight == 100 and canary is None and stable == digest:
        return None
    if stable is None:
        raise ClearwayError(f"{where} has no stable version: a canary needs a control")
    if canary is not None and canary != digest:
        raise ClearwayError(
            f"{where} has an open canary {canary[:SHOWN]} at {situation.weight}%, not {digest[:SHOWN]}: promote it, "
            f"or end it with scripts/rollback.py --env {where}, first"
        )
    if canary is None:
        if stable == digest:
            raise ClearwayError(f"{digest[:SHOWN]} is the stable version of {where}: it cannot be its own canary")
        if weight in (0, 100):
            raise ClearwayError(
                f"{where} has no open canary: --canary {weight} needs {digest[:SHOWN]} in place as one "
                f"(scripts/deploy.py --env {where} --canary N first)"
            )
        check_admissible(situation, digest)
        return Change(action="canary", stable=stable, canary=digest, canary_weight=weight, actor=actor, reason=reason)
    if weight == 0:
        return Change(action="canary", stable=stable, actor=actor, reason=reason)
    if weight == situation.weight:
        return None
    evidence = _evidence_to_rise(situation, weight) if weight > situation.weight else {}
    if weight == 100:
        if situation.weight < situation.last:
            raise ClearwayError(
                f"the canary {canary[:SHOWN]} may not be promoted from {situation.weight}%: its last step is at "
                f"{situation.last}%: scripts/check_canary.py --env {where} --watch takes it there"
            )
        evidence |= _evidence_of_no_skew(situation)
        return Change(action="promote", stable=digest, actor=actor, reason=reason, evidence=evidence)
    return Change(
        action="canary",
        stable=stable,
        canary=digest,
        canary_weight=weight,
        actor=actor,
        reason=reason,
        evidence=evidence,
    )


def plan_shadow(situation: Situation, digest: str | None, *, actor: str, reason: str) -> Change | None:
    """Have ``digest`` answer copies of the traffic unseen, or, with None, end that. None if so it is already.

    Raises
    ------
    ClearwayError
        Nothing was ever deployed here; the digest answers here already, is quarantined, or is not stable where it must
        be first; or another shadow is open.
    """
    where, stable, canary, shadow = situation.environment, situation.stable, situation.canary, situation.shadow
    if stable is None:
        raise ClearwayError(f"{where} has no stable version: a shadow needs one whose traffic is copied")
    if shadow == digest:
        return None
    if digest is not None:
        if digest in (stable, canary):
            role = "stable version" if digest == stable else "canary"
            raise ClearwayError(f"{digest[:SHOWN]} is the {role} of {where}: what answers cannot be its own shadow")
        if shadow is not None:
            raise ClearwayError(
                f"{where} has a shadow {shadow[:SHOWN]}: end it with scripts/deploy.py --env {where} --end-shadow first"
            )
        check_admissible(situation, digest)
    return Change(
        action="shadow",
        stable=stable,
        canary=canary,
        canary_weight=situation.weight,
        shadow=digest,
        actor=actor,
        reason=reason,
    )


def with_shadow(entries: Sequence[Entry], change: Change) -> Change:
    """``change``, which says nothing of a shadow, with the one that goes on.

    A shadow ends when the version whose answers it is compared with is replaced, when it becomes the canary itself, is
    quarantined, and with every rollback: then nothing runs that need not.
    """
    shadow = shadow_digest(entries)
    if shadow is None or change.action in ("shadow", "rollback") or change.stable != entries[-1].stable:
        return change
    if shadow in (change.canary, *change.quarantines):
        return change
    return change.model_copy(update={"shadow": shadow})


def plan_rollback(
    situation: Situation, to: str | None, *, actor: str, reason: str, evidence: Mapping[str, str]
) -> Change | None:
    """End the open canary, or go back to the last good version; what is left behind is quarantined.

    ``to`` names another version that was stable here before. None if ``to`` is stable and no canary is open.

    Raises
    ------
    ClearwayError
        Nothing was ever deployed, there is no earlier good version, or ``to`` was never stable here or is quarantined.
    """
    where, stable, canary = situation.environment, situation.stable, situation.canary
    if stable is None:
        raise ClearwayError(f"nothing was ever deployed to {where}: there is nothing to roll back")
    if canary is not None and to in (None, stable):
        target = stable
    elif to == stable:
        return None
    else:
        back = to or way_back(situation)
        if back is None:
            raise ClearwayError(
                f"{where} has no earlier good version to go back to: deploy one with scripts/deploy.py "
                f"--env {where} --digest DIGEST"
            )
        target = back
        _check_return(situation, target)
    left = tuple(digest for digest in (canary, stable) if digest is not None and digest != target)
    return Change(
        action="rollback", stable=target, quarantines=left, actor=actor, reason=reason, evidence=dict(evidence)
    )


def way_back(situation: Situation) -> str | None:
    """Where a rollback leads: to stable where a canary is open, else to the last good version before it, if any."""
    if situation.canary is not None:
        return situation.stable
    barred = quarantined(situation.entries)
    history = reversed(stable_history(situation.entries))
    return next((digest for digest in history if digest != situation.stable and digest not in barred), None)


def check_weight(weight: int) -> None:
    """Raise UsageError unless ``weight`` is a percentage."""
    if not 0 <= weight <= 100:
        raise UsageError(f"--canary {weight}: the weight must be a percentage from 0 to 100")


def check_said(actor: str, reason: str) -> None:
    """Raise UsageError unless somebody says who they are and why."""
    for name, value in (("actor", actor), ("reason", reason)):
        if not value.strip():
            raise UsageError(f"--{name} is empty: the ledger keeps who changed what, and why")


def check_admissible(situation: Situation, digest: str) -> None:
    """Whether ``digest`` may come to this environment as something new.

    Raises
    ------
    ClearwayError
        It is quarantined here, or not stable in the environment that must have it first.
    """
    where = situation.environment
    if digest in quarantined(situation.entries):
        blame = next(entry for entry in reversed(situation.entries) if digest in entry.quarantines)
        raise ClearwayError(
            f"{digest[:SHOWN]} is quarantined in {where} since entry {blame.sequence} ({blame.reason}): build another "
            f"version, or lift it with scripts/release.py --env {where} --digest {digest}"
        )
    if situation.required is not None and situation.required[1] != digest:
        name, live = situation.required
        found = f"{live[:SHOWN]} is" if live else "nothing is"
        raise ClearwayError(
            f"{digest[:SHOWN]} must be stable in {name} before it may come to {where} "
            f"(environments.{where}.requires in params.yaml), but {found}: scripts/deploy.py --env {name} first"
        )


def _evidence_to_rise(situation: Situation, weight: int) -> dict[str, str]:
    verdict, canary = situation.verdict, situation.canary
    assert canary is not None
    from clearway.canary_state import as_evidence

    if verdict is None or verdict.verdict != "promote":
        said = f"is {verdict.verdict!r} ({verdict.sentence})" if verdict else "has not been given"
        raise ClearwayError(
            f"the canary {canary[:SHOWN]} may not rise from {situation.weight}% to {weight}%: its verdict at "
            f"{situation.weight}% {said}: scripts/check_canary.py --env {situation.environment} must say promote"
        )
    if not -CLOCKS_APART <= situation.verdict_age <= situation.verdict_holds:
        hours = situation.verdict_age / timedelta(hours=1)
        given = f"{hours:.1f} hours ago" if hours > 0 else f"{-hours:.1f} hours from now, by this machine's clock"
        raise ClearwayError(
            f"the canary {canary[:SHOWN]} may not rise from {situation.weight}% to {weight}%: its verdict promote was "
            f"given {given}, and holds for {situation.verdict_holds / timedelta(hours=1):g} (canary.verdict_hours): "
            f"ask scripts/check_canary.py --env {situation.environment} again"
        )
    return as_evidence(verdict)


def _evidence_of_no_skew(situation: Situation) -> dict[str, str]:
    """Fails closed: a check of another version, of another rollout, or without a result, clears nobody."""
    skew, canary, where = situation.skew, situation.canary, situation.environment
    assert canary is not None
    if not situation.stored:
        return {}
    own = skew is not None and (skew.environment, skew.digest, skew.rollout) == (where, canary, situation.rollout)
    if skew is None or not own or skew.verdict != "no_skew":
        said = f"is {skew.verdict!r} ({skew.sentence})" if skew is not None and own else "has not been given"
        raise ClearwayError(
            f"the canary {canary[:SHOWN]} may not be promoted: its skew verdict since entry {situation.rollout}, where "
            f"its rollout began, {said}: scripts/check_skew.py --env {where} --rollout must say no skew"
        )
    return {"skew_verdict": skew.verdict}


def _check_return(situation: Situation, digest: str) -> None:
    known = stable_history(situation.entries)
    if digest not in known:
        shown = ", ".join(dict.fromkeys(one[:SHOWN] for one in known))
        raise ClearwayError(
            f"--to {digest}: it was never stable in {situation.environment} (its history: {shown}); "
            "a new version comes by scripts/deploy.py"
        )
    if digest in quarantined(situation.entries):
        raise ClearwayError(
            f"--to {digest[:SHOWN]} is quarantined in {situation.environment}: lift it first with "
            f"scripts/release.py --env {situation.environment} --digest {digest}"
        )


# --- effects ---------------------------------------------------------------------------------------------------------


def deploy(
    params: Params,
    workspace: Workspace,
    environment: str,
    digest: str,
    canary_weight: int | None = None,
    *,
    actor: str,
    reason: str,
    strategy: str | None = None,
) -> Outcome:
    """Bring ``digest`` to an environment: whole (no weight), on trial (1 to 99), promoted (100) or withdrawn (0).

    ``strategy`` says how a whole deployment is done: ``blue-green`` keeps the version before in the servers' memory
    for ``deployment.blue_green.keep_warm_minutes``, ``ab`` opens a trial at ``deployment.ab.weight``; None does as
    ``deployment.strategy`` says.

    A trial in an environment where nothing was ever deployed first makes the labelled baseline its control, at 100%.

    Raises
    ------
    UsageError
        The environment is unknown, the weight is no percentage, or the strategy knows no weights.
    ClearwayError
        The digest is unknown or does not verify, a rule of the plans forbids the change, the ledger moved meanwhile,
        or the server does not follow.
    """
    check_said(actor, reason)
    if strategy in ("ab", "canary") and (strategy == "ab") != (params.deployment.strategy == "ab"):
        raise UsageError(
            f"--strategy {strategy}: deployment.strategy is {params.deployment.strategy!r} in params.yaml, and the "
            f"judge reads it there: set it to {strategy}, too"
        )
    if strategy == "canary" and canary_weight is None:
        raise UsageError(
            f"--strategy canary: say with --canary N how many percent see it first, canary.steps begins with "
            f"{params.canary.weights()[0]}"
        )
    if canary_weight is None and (strategy or params.deployment.strategy) == "ab":
        canary_weight = params.deployment.ab.weight
    if canary_weight is not None:
        check_weight(canary_weight)
        if strategy == "blue-green":
            raise UsageError(f"--strategy blue-green switches at once: it has no weight (--canary {canary_weight})")
    entries = reconcile(params, workspace, environment)
    settings = params.deployment
    warm = settings.blue_green.keep_warm_minutes if (strategy or settings.strategy) == "blue-green" else None
    situation = _situation(params, workspace, environment, entries)
    target = target_of(params, workspace, environment)
    target.fetch(digest)
    warning = _check_servable(params, workspace, environment, digest)
    target.check_ready()
    if canary_weight not in (None, 0, 100) and not entries:
        check_admissible(situation, digest)
        entries = _bootstrap(params, workspace, environment, digest, actor)
        situation = _situation(params, workspace, environment, entries)
    if canary_weight == 100:
        situation = _with_skew(workspace, situation)
    if canary_weight is None:
        change = plan_deploy(situation, digest, actor=actor, reason=reason, warm_minutes=warm)
    else:
        change = plan_canary(situation, digest, canary_weight, actor=actor, reason=reason)
    if change is not None and change.canary is not None and situation.canary is None:
        target.fetch(change.stable)
        bundles = find_bundle(workspace, change.stable), find_bundle(workspace, change.canary)
        check_same_features(*bundles)
        split = Split(params.serving.routing_key, params.serving.salt)
        check_routing_key(split.key, bundles)
        shown = _evidence_of_shadow(params, workspace, situation, change.canary)
        change = _with_evidence(change, {**split.as_evidence(), **shown})
    if change is not None and digest in (change.stable, change.canary):
        change = _with_evidence(change, _origin(find_bundle(workspace, digest)))
    warning = (*warning, *_kept_split(params, entries))
    outcome = _carry_out(params, workspace, environment, entries, change)
    return replace(outcome, warnings=(*warning, *outcome.warnings))


def _check_servable(params: Params, workspace: Workspace, environment: str, digest: str) -> tuple[str, ...]:
    """What a server of ``environment`` will ask of the bundle before it loads it, asked before the ledger names it.

    Returns warnings.

    Raises
    ------
    ClearwayError
        The bundle does not verify, is not signed as the environment requires, or needs what ``trust`` does not allow.
    """
    bundle = find_bundle(workspace, digest)
    warning = check_for(params, environment, bundle, workspace.root)
    if NETWORK not in bundle.manifest.payload:
        from clearway.model import check_readable  # imports ONNX Runtime's types

        check_readable(bundle, trust_of(params, workspace))
    return (warning,) if warning else ()


def check_same_features(stable: Bundle, canary: Bundle) -> None:
    """Whether one server can look up the features of both: what both use must be defined alike.

    Raises
    ------
    ClearwayError
        A feature means something else to each of them; names it.
    """
    from clearway.model import recorded_definitions  # imports ONNX Runtime's types

    ours, theirs = recorded_definitions(stable) or {}, recorded_definitions(canary) or {}
    changed = [name for name, defined in theirs.items() if name in ours and ours[name]["sha256"] != defined["sha256"]]
    if changed:
        raise ClearwayError(
            f"{canary.digest[:SHOWN]} defines {', '.join(changed)} otherwise than the stable version "
            f"{stable.digest[:SHOWN]}, and one server has one definition of each: give what changed a new name in the "
            "project package, and keep the old one until no version uses it"
        )


def check_routing_key(key: str, bundles: Sequence[Bundle]) -> None:
    """Whether rows of these versions can have the field they are to be routed by; join keys are left to the server.

    Raises
    ------
    UsageError
        No row has a field of this name: every one would be routed by its id.
    """
    from clearway.model import recorded_definitions, recorded_features  # imports ONNX Runtime's types

    if key in ("id", ENTITY_KEY) or any(recorded_definitions(bundle) is not None for bundle in bundles):
        return
    names = sorted({name for bundle in bundles for name in recorded_features(bundle)})
    if key not in names:
        raise UsageError(
            f"serving.routing_key = {key!r} in params.yaml is no field of a request: choose entity, id or one of "
            f"{', '.join(names)}"
        )


def _kept_split(params: Params, entries: Sequence[Entry]) -> tuple[str, ...]:
    """A warning where params.yaml says another split than the one of the open rollout."""
    kept, asked = split_of(entries), Split(params.serving.routing_key, params.serving.salt)
    if kept is None or kept == asked:
        return ()
    return (
        f"serving.routing_key and serving.salt are now {asked.key!r} and {asked.salt!r}; the open rollout keeps "
        f"{kept.key!r} and {kept.salt!r}, with which it began",
    )


def _evidence_of_shadow(params: Params, workspace: Workspace, situation: Situation, digest: str) -> dict[str, str]:
    """What ``canary.shadow`` asks for before a version may answer anybody. Fails closed: no trial clears nobody."""
    if params.canary.shadow is None:
        return {}
    from clearway.shadow import compare_shadow  # imports pandas

    report = compare_shadow(params, workspace, situation.environment, digest)
    check = f"scripts/check_shadow.py --env {situation.environment} --digest {digest}"
    if report.stable != situation.stable:
        raise ClearwayError(
            f"{digest[:SHOWN]} may not become a canary: as a shadow it was compared with {report.stable[:SHOWN]}, "
            "which is no longer the stable version: shadow it again (canary.shadow in params.yaml)"
        )
    if report.verdict != "pass":
        raise ClearwayError(
            f"{digest[:SHOWN]} may not become a canary: its shadow verdict is {report.verdict!r} ({report.sentence}): "
            f"{check} must say pass (canary.shadow in params.yaml)"
        )
    return {"shadow_verdict": report.verdict, "shadow_pairs": str(report.units)}


def open_shadow(
    params: Params, workspace: Workspace, environment: str, digest: str | None, *, actor: str, reason: str
) -> Outcome:
    """Have a version, by default the one that was built last, answer copies of the traffic unseen.

    Raises
    ------
    UsageError
        The environment is unknown.
    ClearwayError
        The digest is unknown or does not verify, :func:`plan_shadow` forbids it, the ledger moved meanwhile, or the
        shadow does not start; the traffic is served by others in any case.
    """
    _check_shadows(params, workspace, environment)
    entries = reconcile(params, workspace, environment)
    if digest is None:
        built = read_built(workspace.bundle)
        if built.verdict != "passed" or built.digest is None:
            raise ClearwayError(f"the last model was {built.verdict}: name a version with --digest to shadow it")
        digest = built.digest
    situation = _situation(params, workspace, environment, entries)
    warning = _check_servable(params, workspace, environment, digest)
    change = plan_shadow(situation, digest, actor=actor, reason=reason)
    if change is not None:
        check_same_features(find_bundle(workspace, change.stable), find_bundle(workspace, digest))
    outcome = _carry_out(params, workspace, environment, entries, change)
    _await_shadow(target_of(params, workspace, environment), environment, digest)
    return replace(outcome, warnings=(*warning, *outcome.warnings))


def end_shadow(params: Params, workspace: Workspace, environment: str, *, actor: str, reason: str) -> Outcome:
    """Let no version answer copies any more; nothing to do where none does.

    Raises
    ------
    ClearwayError
        Nothing was ever deployed here, or the ledger moved meanwhile.
    """
    _check_shadows(params, workspace, environment)
    entries = reconcile(params, workspace, environment)
    change = plan_shadow(Situation(environment, entries), None, actor=actor, reason=reason)
    return _carry_out(params, workspace, environment, entries, change)


def _check_shadows(params: Params, workspace: Workspace, environment: str) -> None:
    if not target_of(params, workspace, environment).here:
        raise UsageError(
            f"{environment} is served elsewhere (environments.{environment}.target in params.yaml), and a shadow is "
            f"opened and ended on its own machine: run scripts/deploy.py --env {environment} there"
        )


def _await_shadow(target: Target, environment: str, digest: str) -> None:
    """Wait until the server's shadow answers copies."""
    deadline = time.monotonic() + SHADOW_SECONDS
    said = "the server says nothing of it"
    while time.monotonic() < deadline:
        shadow = (target.describe() or {}).get("shadow") or {}
        if shadow.get("digest") == digest and shadow.get("state") == "up":
            return
        said = shadow.get("error") or said
        if shadow.get("state") == "down":
            break
        time.sleep(POLL_SECONDS)
    raise ClearwayError(
        f"the shadow {digest[:SHOWN]} is recorded in {environment}, and does not answer copies: {said}; end it with "
        f"scripts/deploy.py --env {environment} --end-shadow"
    )


def deploy_built(
    params: Params,
    workspace: Workspace,
    environment: str,
    digest: str | None,
    canary_weight: int | None = None,
    *,
    actor: str,
    reason: str,
    strategy: str | None = None,
) -> Outcome:
    """:func:`deploy` what is named, else what the last run of the line built; nothing built is a clean outcome.

    The strategy ``shadow`` has it answer copies of the traffic: :func:`open_shadow`.

    Raises
    ------
    UsageError, ClearwayError
        As :func:`deploy` and :func:`open_shadow`; or nothing is named and nothing was ever packaged.
    """
    if strategy == "shadow" and canary_weight is not None:
        raise UsageError(f"--strategy shadow: nobody sees a shadow, it has no weight (--canary {canary_weight})")
    if canary_weight is None and (strategy or params.deployment.strategy) == "shadow":
        return open_shadow(params, workspace, environment, digest, actor=actor, reason=reason)
    if digest is None:
        built = read_built(workspace.bundle)
        digest = built.digest if built.verdict == "passed" else None
    if digest is not None:
        who = {"actor": actor, "reason": reason}
        return deploy(params, workspace, environment, digest, canary_weight, strategy=strategy, **who)
    served = serve_again(params, workspace, environment)
    sentence = f"nothing to deploy, the last model was {built.verdict} (reports/model_validation.html): "
    return replace(served, sentence=sentence + served.sentence)


def rollback(
    params: Params,
    workspace: Workspace,
    environment: str,
    to: str | None = None,
    *,
    actor: str,
    reason: str,
    evidence: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """End the open canary, or go back to the last good version or to ``to``. Needs no training and no network.

    ``progress`` is told when the environment serves it, before anything else is told.

    Raises
    ------
    UsageError
        The environment is unknown.
    ClearwayError
        There is no way back, the way back does not verify, or the server does not follow.
    """
    check_said(actor, reason)
    entries = reconcile(params, workspace, environment)
    situation = Situation(environment, entries)  # nothing that other environments or old verdicts could spoil
    warning: tuple[str, ...] = ()
    change = plan_rollback(situation, to, actor=actor, reason=reason, evidence=evidence or {})
    here = target_of(params, workspace, environment).here  # else the bundle is there, and so is the check
    if change is not None and change.stable != situation.stable and here:
        # closing a canary asks nothing of the version that serves already
        warning = _check_servable(params, workspace, environment, change.stable)
    outcome = _carry_out(params, workspace, environment, entries, change, progress)
    return replace(outcome, warnings=(*warning, *outcome.warnings))


def hold(params: Params, workspace: Workspace, environment: str, verdict: "CanaryVerdict", *, actor: str) -> Outcome:
    """Record that a canary's last verdict left it where it is.

    Raises
    ------
    ClearwayError
        No canary is open, or the ledger moved meanwhile.
    """
    entries = reconcile(params, workspace, environment)
    if not entries or entries[-1].canary is None:
        raise ClearwayError(f"{environment} has no open canary: there is nothing to hold")
    from clearway.canary_state import as_evidence

    now = entries[-1]
    change = Change(
        action="hold",
        stable=now.stable,
        canary=now.canary,
        canary_weight=now.canary_weight,
        actor=actor,
        reason=verdict.sentence,
        evidence=as_evidence(verdict),
    )
    return _carry_out(params, workspace, environment, entries, change)


def confirm(
    params: Params, workspace: Workspace, environment: str, digest: str, verdict: "CanaryVerdict", *, actor: str
) -> Outcome:
    """Record that labels bear out the promotion of ``digest``, which was provisional.

    Raises
    ------
    ClearwayError
        Another version is stable by now, or the ledger moved meanwhile.
    """
    entries = reconcile(params, workspace, environment)
    if stable_digest(entries) != digest:
        raise ClearwayError(f"{digest[:SHOWN]} is not the stable version of {environment}: there is nothing to confirm")
    change = _unmoved(entries[-1], "promote", actor, f"labels are in: {verdict.sentence}")
    from clearway.canary_state import as_evidence  # imports the judge

    evidence = {**as_evidence(verdict), "labels": "confirmed"}
    return _carry_out(params, workspace, environment, entries, change.model_copy(update={"evidence": evidence}))


def release(params: Params, workspace: Workspace, environment: str, digest: str, *, actor: str, reason: str) -> Entry:
    """Lift the quarantine of ``digest``.

    Raises
    ------
    ClearwayError
        It is not quarantined here.
    """
    check_said(actor, reason)
    entries = reconcile(params, workspace, environment)
    if digest not in quarantined(entries):
        raise ClearwayError(f"{digest} is not quarantined in {environment}: there is nothing to release")
    change = _unmoved(entries[-1], "release", actor, reason).model_copy(update={"releases": (digest,)})
    return _record_only(params, workspace, environment, entries, change)


def quarantine(
    params: Params, workspace: Workspace, environment: str, digest: str, *, actor: str, reason: str
) -> Entry:
    """Bar ``digest``, which is not live, from an environment.

    Raises
    ------
    ClearwayError
        Nothing was ever deployed here, or the digest is live.
    """
    check_said(actor, reason)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"--digest {digest[:80]!r}: a digest has 64 of the characters 0-9 and a-f")
    entries = reconcile(params, workspace, environment)
    if not entries:
        raise ClearwayError(f"nothing was ever deployed to {environment}: its ledger begins with a deployment")
    if digest in (entries[-1].stable, entries[-1].canary):
        raise ClearwayError(f"{digest[:SHOWN]} is live in {environment}: scripts/rollback.py takes it out and bars it")
    change = _unmoved(entries[-1], "quarantine", actor, reason).model_copy(update={"quarantines": (digest,)})
    return _record_only(params, workspace, environment, entries, change)


def serve_again(params: Params, workspace: Workspace, environment: str) -> Outcome:
    """Have the environment serve what its ledger says; changes nothing.

    Raises
    ------
    ClearwayError
        The server does not start or does not follow.
    """
    entries = reconcile(params, workspace, environment)
    if not entries:
        return Outcome(False, f"nothing was ever deployed to {environment}: there is nothing to serve", None, None)
    return _carry_out(params, workspace, environment, entries, None)


def reconcile(params: Params, workspace: Workspace, environment: str) -> list[Entry]:
    """Read the verified ledger and write the routing table it asks for, if it is not there. Begins every command.

    Projecting the head under the ledger's lock, and nothing else, also means that of two commands the slower one cannot
    put its older table over the newer one.

    Raises
    ------
    UsageError
        The environment is unknown.
    ClearwayError
        The ledger is damaged, or was lost while its routing table remains.
    """
    target = target_of(params, workspace, environment)
    target.pull()
    folder = workspace.environment(environment)
    routing = folder / "routing.json"
    with locked(folder):
        entries = read_ledger(folder, environment)
        table = project_routing(entries, params.serving.salt, params.serving.routing_key)
        if table is None:
            if routing.exists():
                raise ClearwayError(
                    f"{folder / 'ledger.jsonl'} has no entry, yet {routing} exists: the ledger of {environment} was "
                    "lost; restore the folder from its last good copy"
                )
            return entries
        try:
            current = read_routing(routing)
        except ClearwayError:  # missing or damaged: either way the ledger knows better
            current = None
        check_not_ahead(routing, current, entries)
        if current != table:
            with _disk(f"{routing} cannot be written, the ledger of {environment} stands at entry {len(entries)}"):
                write_routing(routing, table)
    target.project()
    return entries


def find_bundle(workspace: Workspace, digest: str) -> Bundle:
    """The kept bundle of ``digest``, verified; one that was only built so far is kept first.

    Raises
    ------
    ClearwayError
        It is nowhere to be found, or what is found is not what its digest says.
    """
    kept = workspace.bundles / digest
    try:
        return verify(kept, digest)
    except BundleError:
        built = [workspace.bundle / "challenger", workspace.bundle / "baseline"]
        source = next((folder for folder in built if _is_bundle_of(folder, digest)), None)
        if source is not None:
            with _disk(f"bundle {digest[:SHOWN]} cannot be kept in {workspace.bundles}, nothing was recorded"):
                keep(source, workspace.bundles, digest)
            return verify(kept, digest)
        if kept.exists():
            raise
    raise ClearwayError(
        f"digest {digest} is unknown: it is neither in {workspace.bundles} nor in {workspace.bundle}: "
        "package it (scripts/package_model.py) or restore it from where it was built"
    )


def default_actor() -> str:
    """Who acts: ``$GITHUB_ACTOR`` in a workflow, else the user."""
    try:
        return os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _is_bundle_of(folder: Path, digest: str) -> bool:
    try:
        return payload_digest(folder / "payload") == digest
    except BundleError:
        return False


def _situation(params: Params, workspace: Workspace, environment: str, entries: Sequence[Entry]) -> Situation:
    from clearway.canary_state import read_state

    required = params.environment(environment).requires
    if required:
        target_of(params, workspace, required).pull()
    state = read_state(workspace.environment(environment), entries)
    current = state.current if state else None
    return Situation(
        environment=environment,
        entries=entries,
        required=(required, stable_digest(read_ledger(workspace.environment(required), required)))
        if required
        else None,
        verdict=current.verdict if current else None,
        verdict_age=datetime.now(UTC) - current.at if current else timedelta.max,
        verdict_holds=timedelta(hours=params.canary.verdict_hours),
        most=100 - params.canary.control,
        last=params.trial_weights()[-1],
    )


def _with_skew(workspace: Workspace, situation: Situation) -> Situation:
    """With all that a promotion asks of a canary whose features come from the feature store."""
    from clearway.model import recorded_definitions  # imports ONNX Runtime's types

    if situation.canary is None or recorded_definitions(find_bundle(workspace, situation.canary)) is None:
        return situation
    from clearway.replay import rollout_revision  # imports an HTTP client
    from clearway.skew_state import read_skew_state

    return replace(
        situation,
        stored=True,
        skew=read_skew_state(workspace.environment(situation.environment)),
        rollout=rollout_revision(list(situation.entries)),
    )


def _bootstrap(params: Params, workspace: Workspace, environment: str, digest: str, actor: str) -> list[Entry]:
    """Make the labelled baseline the control of the first canary. It needs no other environment: it is no release."""
    baseline = read_built(workspace.bundle).baseline_digest
    if baseline is None:
        raise ClearwayError(
            f"{environment} has no stable version and {workspace.bundle / 'outcome.json'} names no baseline to be the "
            f"first control: deploy a first version whole (scripts/deploy.py --env {environment})"
        )
    if baseline == digest:
        raise ClearwayError(
            f"{digest[:SHOWN]} is the baseline, the first control of {environment}: it cannot be its own canary"
        )
    _check_servable(params, workspace, environment, baseline)
    change = Change(action="deploy", stable=baseline, actor=actor, reason=BOOTSTRAP_REASON)
    return [_record(params, workspace, environment, [], change)]


def _origin(bundle: Bundle) -> dict[str, str]:
    """Where a version comes from, in the ledger's words: what its evidence leaves out is left out."""
    files = bundle.evidence_manifest.files
    found = {"gate_report": files.get(MODEL_REPORT)}
    if "lineage.json" in files:
        lineage = bundle.lineage()
        found |= {"commit": lineage.git_commit, "data": lineage.snapshot_sha256}
    return {name: value for name, value in found.items() if value}


def run_url() -> str | None:
    """The page of the run on GitHub that this command is part of."""
    server, repository, run = (os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    return f"{server}/{repository}/actions/runs/{run}" if server and repository and run else None


def _with_evidence(change: Change, more: Mapping[str, str]) -> Change:
    return change.model_copy(update={"evidence": {**more, **change.evidence}})


def _record(params: Params, workspace: Workspace, environment: str, entries: Sequence[Entry], change: Change) -> Entry:
    """Ledger first, then its projection."""
    run = run_url()
    change = _with_evidence(Change.model_validate(change.model_dump()), {"run": run} if run else {})
    change = with_shadow(entries, change)
    target = target_of(params, workspace, environment)
    for digest in (change.stable, change.canary, change.shadow):
        if digest is not None and target.lacks(digest):
            target.bring(find_bundle(workspace, digest))
    entry = target.record(change, head_hash(entries))
    with _recorded(entry):
        reconcile(params, workspace, environment)
    return entry


def _record_only(
    params: Params, workspace: Workspace, environment: str, entries: Sequence[Entry], change: Change
) -> Entry:
    """An entry that moves no traffic."""
    entry = _record(params, workspace, environment, entries, change)
    projects_alias = target_of(params, workspace, environment).projects_alias
    for warning in (*_of_clock(entry), *follow_up(params, workspace, entry, projects_alias=projects_alias)):
        logger.warning(warning)
    return entry


def _carry_out(
    params: Params,
    workspace: Workspace,
    environment: str,
    entries: Sequence[Entry],
    change: Change | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    target = target_of(params, workspace, environment)
    if change is None:
        with _disk(f"the server of {environment} cannot be started"):
            server = target.serve(entries[-1].sequence)
        return Outcome(False, _tell(entries[-1], None), entries[-1], server)
    entry = _record(params, workspace, environment, entries, change)
    with _recorded(entry), _disk(f"the server of {environment} cannot be started"):
        server = target.serve(entry.sequence)
    progress(_tell(entry, change))
    warnings = (*_of_clock(entry), *follow_up(params, workspace, entry, projects_alias=target.projects_alias))
    return Outcome(True, _tell(entry, change), entry, server, warnings)


def say(outcome: Outcome) -> Outcome:
    """Log the warnings of an outcome that nobody else will look at."""
    for warning in outcome.warnings:
        logger.warning(warning)
    return outcome


@contextmanager
def _recorded(entry: Entry) -> Iterator[None]:
    """Say of what fails after an entry that the entry stands: whoever ran a rollback again would go back further."""
    try:
        yield
    except ClearwayError as error:
        raise ClearwayError(
            f"{entry.action} is recorded (entry {entry.sequence} of {entry.environment}) and not served yet: {error}; "
            f"then scripts/deploy.py --env {entry.environment} --ensure-serving, not this command again"
        ) from None


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """One line for a disk that is full or fails."""
    try:
        yield
    except OSError as error:
        named = f" {error.filename}" if error.filename else ""
        raise ClearwayError(f"{what}:{named} {error.strerror or error}: make room or correct the folder") from None


def _of_clock(entry: Entry) -> tuple[str, ...]:
    said = entry.evidence.get(CLOCK)
    if said is None:
        return ()
    return (
        f"this machine's clock says {said}, which is before the last entry of {entry.environment}: the new one has the "
        f"last one's time ({entry.at.isoformat()}): correct the clock",
    )


def _unmoved(now: Entry, action: str, actor: str, reason: str) -> Change:
    return Change.model_validate(
        {
            "action": action,
            "stable": now.stable,
            "canary": now.canary,
            "canary_weight": now.canary_weight,
            "actor": actor,
            "reason": reason,
        }
    )


def _tell(entry: Entry, change: Change | None) -> str:
    where, stable = entry.environment, entry.stable[:SHOWN]
    live = f"{stable} at 100%"
    if entry.canary is not None:
        live = f"canary {entry.canary[:SHOWN]} at {entry.canary_weight}% beside stable {stable}"
    if entry.shadow is not None:
        live += f", shadow {entry.shadow[:SHOWN]} unseen"
    if change is None:
        return f"nothing to do, {where} serves {live}"
    barred = f", {', '.join(digest[:SHOWN] for digest in entry.quarantines)} quarantined" if entry.quarantines else ""
    return f"{entry.action} in {where}: {live}{barred} (entry {entry.sequence})"
