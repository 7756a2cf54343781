"""What this project deserialises: a decision of the one who reads, never of the file that is read.

A skops file is audited type by type against an allow-list. A joblib file is a pickle: to open it is to run it. So it is
opened only where ``params.yaml`` says so, and only where this project itself vouches for the digest: its last training
in ``reports/training.json`` and ``build/bundle/outcome.json``, and from the first deployment on the ledgers of its
environments. A digest given by anyone else, on a command line or by the name of a folder, opens nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.bundle import OUTCOME, Sha256, read_built
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.ledger import read_ledger
from clearway.params import Params, TrustParams, describe
from clearway.workspace import Workspace

VOUCHED = "--vouched"
"""How a process that measures a model is told that its digest is vouched for."""


@dataclass(frozen=True)
class Trust:
    """What may be read beyond scikit-learn's own types; without arguments, nothing."""

    types: frozenset[str] = frozenset()
    """Further types of a skops file."""
    joblib: bool = False
    vouched: frozenset[str] = frozenset()
    """Digests whose joblib file may be opened."""

    def check_joblib(self, digest: str, where: Path) -> None:
        """Refuse to open the joblib file of ``digest`` unless params.yaml and this project's own record allow it.

        Raises
        ------
        ClearwayError
            They do not; ``where`` names the file.
        """
        if not self.joblib:
            raise ClearwayError(
                f"{where} is a pickle, refused: params.yaml: trust.joblib is false; nothing in it was run"
            )
        if digest not in self.vouched:
            raise ClearwayError(
                f"{where} is a pickle, refused: neither a ledger nor the last training of this project knows digest "
                f"{digest}; nothing in it was run"
            )


NOTHING_MORE = Trust()
"""scikit-learn's own types, and no pickle."""


class _Role(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    digest: Sha256


class _Trained(BaseModel):
    """What ``reports/training.json`` says of digests."""

    model_config = ConfigDict(extra="ignore", strict=True)
    challenger: _Role
    baseline: _Role


def trust_of(params: Params, workspace: Workspace) -> Trust:
    """What ``params`` allows, and the digests that this project's own record vouches for.

    The record is read only where joblib is allowed.

    Raises
    ------
    ClearwayError
        A ledger or a report is damaged.
    """
    allowed = params.trust
    return trust_in(allowed, own_digests(params, workspace) if allowed.joblib else frozenset())


def trust_in(allowed: TrustParams, digests: frozenset[str]) -> Trust:
    """What ``allowed`` says, for joblib files of these digests only."""
    return Trust(frozenset(allowed.types), allowed.joblib, digests if allowed.joblib else frozenset())


def own_digests(params: Params, workspace: Workspace) -> frozenset[str]:
    """Digests that were live in an environment, or that the last training or packaging made.

    Raises
    ------
    ClearwayError
        A ledger or a report is damaged.
    """
    found: set[str] = set()
    for name in params.environments:
        for entry in read_ledger(workspace.environment(name), name):
            found |= {digest for digest in (entry.stable, entry.canary) if digest is not None}
    report = workspace.reports / "training.json"
    if report.is_file():
        try:
            trained = _Trained.model_validate(read_json(report))
        except ValidationError as error:
            raise ClearwayError(f"{report} is damaged ({describe(error)}): run scripts/train.py again") from None
        found |= {trained.challenger.digest, trained.baseline.digest}
    if (workspace.bundle / OUTCOME).is_file():
        built = read_built(workspace.bundle)
        found |= {digest for digest in (built.digest, built.baseline_digest) if digest is not None}
    return frozenset(found)
