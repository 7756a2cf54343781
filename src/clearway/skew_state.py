"""What the last skew check of a rollout found: ``var/environments/<env>/skew.json``, which its promotion asks for."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.params import describe
from clearway.skew import Verdict


class SkewState(BaseModel):
    """The verdict on one version over all predictions of one rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    digest: str
    rollout: int
    """The ledger revision at which the rollout began."""
    verdict: Verdict
    sentence: str


def skew_file(folder: Path) -> Path:
    return folder / "skew.json"


def read_skew_state(folder: Path) -> SkewState | None:
    """The last verdict in an environment's folder; None if a rollout was never checked there.

    Raises
    ------
    ClearwayError
        The file is damaged.
    """
    path = skew_file(folder)
    try:
        return SkewState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(
            f"{path} is damaged ({describe(error)}): run scripts/check_skew.py --env {folder.name} --rollout again"
        ) from None


def write_skew_state(folder: Path, state: SkewState) -> None:
    """Write ``skew.json``, whole or not at all."""
    write_json(skew_file(folder), state.model_dump(mode="json"))
