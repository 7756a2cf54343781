"""The champion: the model that production's ledger calls stable, copied and verified as an input of the next decision.

Everything downstream (drift, decision, gates) reads ``build/champion/`` and never the ledger, so that what a run was
decided from is one hashed folder. The folder depends on the champion alone: the same champion gives the same bytes.
"""

import shutil
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.bundle import Bundle, BundleError, verify
from clearway.errors import ClearwayError
from clearway.files import atomic_directory, read_json, write_json
from clearway.ledger import read_ledger, stable_digest
from clearway.lineage import Lineage
from clearway.params import Params, describe
from clearway.targets import target_of
from clearway.workspace import Workspace

CHAMPION_FILE, CHAMPION_BUNDLE = "champion.json", "bundle"


class Champion(BaseModel):
    """``build/champion/champion.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    """Environment whose ledger was asked."""
    bootstrap: bool
    """Whether there is no champion to compare with: nothing deployed yet, or only a baseline."""
    reason: str
    """One sentence: where the champion comes from, or why there is none."""
    digest: str | None = None
    """What production calls stable; in a bootstrap None, or the baseline's digest."""
    lineage: Lineage | None = None
    """Set whenever ``digest`` is."""

    @property
    def as_of(self) -> datetime | None:
        """The time as of which the model was trained; None without a model or without time in the data."""
        return self.lineage.as_of if self.lineage else None


def fetch_champion(params: Params, workspace: Workspace) -> Champion:
    """Ask production, read its verified ledger, and replace ``build/champion/`` with its stable model.

    Raises
    ------
    ClearwayError
        The ledger is damaged or lost, or the bundle it names is missing or is not what its digest says. Only an
        environment that was never deployed to counts as a bootstrap.
    """
    target = target_of(params, workspace, params.production)
    target.pull()
    digest = _stable(workspace.environment(params.production), params.production)
    if digest is not None:
        target.fetch(digest)
    return kept_champion(params, workspace)


def kept_champion(params: Params, workspace: Workspace) -> Champion:
    """As :func:`fetch_champion`, from what this folder last saw of production; asks no server and needs no token.

    Raises
    ------
    ClearwayError
        As :func:`fetch_champion`.
    """
    environment = params.production
    digest = _stable(workspace.environment(environment), environment)
    with atomic_directory(workspace.champion) as folder:
        if digest is None:
            reason = f"nothing was ever deployed to {environment}: this is the first model"
            champion = Champion(environment=environment, bootstrap=True, reason=reason)
        else:
            lineage = _copy_verified(workspace.bundles / digest, digest, folder / CHAMPION_BUNDLE, environment)
            champion = _judge(environment, digest, lineage)
        write_json(folder / CHAMPION_FILE, champion.model_dump(mode="json"))
    return champion


def read_champion(workspace: Workspace) -> Champion:
    """The champion that :func:`fetch_champion` wrote.

    Raises
    ------
    ClearwayError
        ``champion.json`` is missing or damaged.
    """
    path = workspace.champion / CHAMPION_FILE
    content = read_json(path, made_by="scripts/fetch_champion.py")
    try:
        return Champion.model_validate(content)
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/fetch_champion.py again") from None


def champion_bundle(champion: Champion, workspace: Workspace) -> Bundle:
    """The champion's bundle in ``build/champion/``, verified again.

    Raises
    ------
    ClearwayError
        There is no champion, or its copy is not what its digest says.
    """
    if champion.digest is None:
        raise ClearwayError(f"{workspace.champion / CHAMPION_FILE}: there is no champion: {champion.reason}")
    return verify(workspace.champion / CHAMPION_BUNDLE, champion.digest)


def _stable(folder: Path, environment: str) -> str | None:
    """The stable digest of an environment, or None if nothing was ever deployed there."""
    try:
        digest = stable_digest(read_ledger(folder, environment))
    except OSError as error:
        raise ClearwayError(f"{error.filename} cannot be read: {error.strerror}; correct its permissions") from None
    routing = folder / "routing.json"
    if digest is None and routing.exists():
        raise ClearwayError(
            f"{folder / 'ledger.jsonl'} has no entry, yet {routing} exists: the ledger of {environment} was lost; "
            "restore the folder from its last good copy before anything is decided"
        )
    return digest


def _copy_verified(source: Path, digest: str, target: Path, environment: str) -> Lineage:
    """Copy the bundle and verify the copy, so that nothing can change between the check and the use."""
    if not source.is_dir():
        raise ClearwayError(
            f"{source} is missing: the ledger of {environment} calls this bundle stable; restore it from the artifact "
            "store, or roll back to a digest that is kept (scripts/rollback.py)"
        )
    try:
        verify(source, digest)  # before it is copied, too: to copy a pipe is to wait for its writer
        shutil.copytree(source, target, symlinks=True)
        return verify(target, digest).lineage()
    except BundleError as error:
        message = str(error).replace(str(target), str(source))
        raise ClearwayError(f"{message}: the champion of {environment} is damaged; restore {source}") from None


def _judge(environment: str, digest: str, lineage: Lineage) -> Champion:
    """A baseline only controls the first canary: it is kept for comparison and counts as no champion."""
    baseline = lineage.role == "baseline"
    if baseline:
        reason = f"{environment} serves the labelled baseline {digest[:12]}, a control and no champion"
    else:
        reason = f"{digest[:12]} is stable in the ledger of {environment}"
    return Champion(environment=environment, bootstrap=baseline, reason=reason, digest=digest, lineage=lineage)
