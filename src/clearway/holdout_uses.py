"""How often a holdout was used before: each further challenger judged on the same rows may pass by luck alone.

``var/holdout_uses.jsonl`` has one line for each challenger and holdout, in the order in which they met:

    {"at": "2013-07-01T06:00:00Z", "challenger": "<digest>", "holdout": "<sha256 of its row ids and labels>"}

A challenger's **place** among those of its holdout is fixed by its first line and is all that is ever asked. Lines are
only added, at the end; so the same challenger asked again has the same place, is not another use, and
``build/holdout_uses.json`` has the same bytes: it can be a hashed input of the stage that judges. It depends on the
challenger, so it is counted after training, not beside the champion.

The k-th challenger of a holdout is judged at the level α_k = α · 6 / (π² k²). These sum to α, so that the chance that
any of a line of challengers, however long, passes wrongly stays below α (the union bound with a convergent series:
Foster & Stine, JRSS B 70, 2008; what Ramdas et al., NeurIPS 2017, call alpha-spending, with no level earned back).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from clearway.champion import read_champion
from clearway.columns import ROW_ID
from clearway.errors import ClearwayError
from clearway.files import add_line, held, history_lines, read_json, write_json
from clearway.labelled_rows import read_rows
from clearway.params import Kind, describe
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.gates import Gate

LOG, FOUND = "holdout_uses.jsonl", "holdout_uses.json"
MADE_BY = "scripts/count_holdout_uses.py"
LOCK_SECONDS = 30.0

Sha256 = str


class Use(BaseModel):
    """One line of the log: the first time that a challenger was judged on a holdout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    """Wall time, UTC."""
    challenger: str = Field(min_length=1)
    holdout: str = Field(pattern="^[0-9a-f]{64}$")


class HoldoutUses(BaseModel):
    """``build/holdout_uses.json``: who was judged on this holdout before this challenger first was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holdout: str
    challenger: str
    earlier: tuple[str, ...]
    """Digests of other challengers, in the order of their first use."""

    @property
    def place(self) -> int:
        """1 for the first challenger of a holdout."""
        return len(self.earlier) + 1


def holdout_identity(row_ids: "pd.Series[str]", labels: NDArray[Any]) -> Sha256:
    """What makes a holdout this one: its rows and their answers, in any order.

    Parameters
    ----------
    row_ids : Series of shape (rows,)
        Unique.
    labels : array of shape (rows,)
        Float64, or text.
    """
    said = [json.dumps(label) if isinstance(label, str) else f"{label:.17g}" for label in labels.tolist()]
    lines = sorted(f"{json.dumps(str(row))} {label}" for row, label in zip(row_ids, said, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def earlier_challengers(log: Sequence[Use], holdout: Sha256, challenger: str) -> tuple[str, ...]:
    """Other challengers first judged on ``holdout`` before ``challenger`` first was; all others if it never was."""
    digests = tuple(dict.fromkeys(use.challenger for use in log if use.holdout == holdout))
    return digests[: digests.index(challenger)] if challenger in digests else digests


def corrected_confidence(confidence: float, place: int) -> float:
    """The confidence at which the ``place``-th challenger of a holdout is judged.

    The levels 1 − confidence of all places sum to that of ``confidence``.

    >>> [round(corrected_confidence(0.95, place), 4) for place in (1, 2, 10)]
    [0.9696, 0.9924, 0.9997]

    Raises
    ------
    ValueError
        ``place`` is below 1.
    """
    if place < 1:
        raise ValueError(f"place = {place}: the first challenger of a holdout is number 1")
    return 1 - (1 - confidence) * 6 / (math.pi**2 * place**2)


def uses_gate(uses: HoldoutUses, confidence: float, most: int | None) -> "Gate":
    """At which confidence this challenger is judged, and whether the holdout is worn out.

    Parameters
    ----------
    uses : HoldoutUses
    confidence : float
        Of ``params.yaml``, before the correction.
    most : int or None
        Challengers that one holdout may judge; None: any number.
    """
    from clearway.gates import Gate  # imports scikit-learn, which the count does without

    passed = most is None or uses.place <= most
    limit = "" if most is None else f", at most {most} are allowed: take a newer holdout (split, as_of)"
    detail = (
        f"challenger number {uses.place} of this holdout, so each bound has confidence "
        f"{corrected_confidence(confidence, uses.place):.5f} in place of {confidence:g}{limit}"
    )
    return Gate("holdout_uses", "pass" if passed else "fail", detail, uses.place, threshold=most)


def count_uses(workspace: Workspace, *, at: datetime, kind: Kind = "binary") -> HoldoutUses:
    """Give the challenger in ``build/model`` its place among those of its holdout; write ``build/holdout_uses.json``.

    The place is taken before it is judged, under a lock: of two runs at once one comes second, and a run that is
    killed while it judges has used the holdout all the same. The champion itself takes no place: it is not judged.

    Parameters
    ----------
    workspace : Workspace
    at : datetime
        Wall time, UTC, for the record.
    kind : Kind
        Of the target.

    Raises
    ------
    ClearwayError
        A stage that must run first has not, the log is damaged, or another command holds it.
    """
    challenger = _challenger(workspace)
    frame, labels = read_rows(workspace, "holdout", kind)
    holdout = holdout_identity(frame[ROW_ID], labels)
    champion = read_champion(workspace)
    judged = champion.bootstrap or champion.digest != challenger
    path = workspace.var / LOG
    with held(path.with_name(f"{path.name}.lock"), LOCK_SECONDS):
        log = read_log(workspace)
        if judged and not any((use.holdout, use.challenger) == (holdout, challenger) for use in log):
            moment = at.isoformat(timespec="seconds").replace("+00:00", "Z")
            add_line(path, {"at": moment, "challenger": challenger, "holdout": holdout})
    uses = HoldoutUses(holdout=holdout, challenger=challenger, earlier=earlier_challengers(log, holdout, challenger))
    write_json(workspace.build / FOUND, uses.model_dump(mode="json"))
    return uses


def read_log(workspace: Workspace) -> list[Use]:
    """Every use recorded; empty if there was none.

    Raises
    ------
    ClearwayError
        The file cannot be read, or a line is no use.
    """
    path = workspace.var / LOG
    log = []
    for number, line in enumerate(history_lines(path), start=1):
        if not line:
            continue
        try:
            log.append(Use.model_validate_json(line))
        except ValidationError:
            message = (
                f"{path} line {number} is no use of a holdout: restore the file; without it past tries are forgotten"
            )
            raise ClearwayError(message) from None
    return log


def read_uses(workspace: Workspace, holdout: Sha256, challenger: str) -> HoldoutUses:
    """What :func:`count_uses` wrote, for this challenger on this holdout.

    Raises
    ------
    ClearwayError
        The file is missing, damaged, or speaks of another challenger or holdout: no count is never a count of none.
    """
    path = workspace.build / FOUND
    content = read_json(path, made_by=MADE_BY)
    try:
        uses = HoldoutUses.model_validate(content)
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run {MADE_BY} again") from None
    for name, said, is_ in (("challenger", uses.challenger, challenger), ("holdout", uses.holdout, holdout)):
        if said != is_:
            raise ClearwayError(f"{path}: {name} is {said[:12]}, but {is_[:12]} is judged: run {MADE_BY} again")
    return uses


def _challenger(workspace: Workspace) -> str:
    trained = read_json(workspace.reports / "training.json", made_by="scripts/train.py")
    try:
        return str(trained["challenger"]["digest"])
    except (KeyError, TypeError):
        path = workspace.reports / "training.json"
        raise ClearwayError(f"{path} names no challenger.digest: run scripts/train.py again") from None
