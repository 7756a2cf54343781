"""What the decision is made from, gathered from the line's files, and the history of what was decided."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from clearway.champion import CHAMPION_BUNDLE, Champion, read_champion
from clearway.decision import ChampionFacts, Decision, DecisionEvidence, DriftEvidence, PerformanceEvidence
from clearway.drift import DriftReport
from clearway.errors import ClearwayError, UsageError
from clearway.files import read_json, sha256_file, write_json, write_text
from clearway.lineage import recipe_sha256
from clearway.params import Params, describe
from clearway.workspace import Workspace

LOCK_SECONDS = 30.0


def gather_evidence(
    params: Params, workspace: Workspace, *, trigger: str = "local", force_retrain: bool = False
) -> DecisionEvidence:
    """Read what is known now: data verdict, drift, champion, its performance on today's labels, and the recipe.

    Raises
    ------
    ClearwayError
        A report or table of an earlier step is missing or damaged.
    UsageError
        ``decision.performance.metric`` is no metric, or ``trigger`` is no plain word.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", trigger):
        raise UsageError(f"--trigger (or CLEARWAY_TRIGGER) = {trigger!r}: write one lower-case word, such as schedule")
    champion = read_champion(workspace)
    features = read_json(workspace.features / "features.json", made_by="scripts/build_features.py")
    if not workspace.snapshot.is_file():
        raise ClearwayError(f"{workspace.snapshot} is missing: run scripts/ingest.py first")
    return DecisionEvidence(
        as_of=params.time(),
        snapshot_sha256=sha256_file(workspace.snapshot),
        recipe_sha256=recipe_sha256(params, workspace),
        labelled_rows=features["rows"]["training"] + features["rows"]["holdout"],
        data=_data_verdict(workspace),
        champion=_facts(champion),
        bootstrap_reason=champion.reason if champion.bootstrap else "",
        drift=_drift(workspace),
        performance=None if champion.bootstrap else _performance(champion, params, workspace),
        force_retrain=force_retrain,
        trigger=trigger,
    )


def write_decision(decision: Decision, workspace: Workspace) -> None:
    """Write ``reports/decision.json``: the same evidence gives the same bytes."""
    write_json(workspace.reports / "decision.json", decision.model_dump(mode="json"))


def record_decision(decision: Decision, workspace: Workspace, *, at: datetime, run: str | None = None) -> bool:
    """Append the decision to ``var/decisions.jsonl``, unless it is the last one there over again.

    Parameters
    ----------
    decision : Decision
    workspace : Workspace
    at : datetime
        Wall time of the decision, UTC.
    run : str, optional
        Names the run that asked; the same decision in another run is another decision.

    Returns
    -------
    bool
        Whether a line was added.

    Raises
    ------
    ClearwayError
        The history is damaged, or another command holds it.
    """
    path = workspace.decisions
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"run": run, "decision": decision.model_dump(mode="json")}
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ClearwayError(f"{lock.lock_file} is held by another command: wait for it to end") from None
    try:
        history = read_history(workspace)
        if history and {key: history[-1].get(key) for key in record} == record:
            return False
        history.append({"at": at.isoformat(timespec="seconds").replace("+00:00", "Z"), **record})
        write_text(path, "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in history))
        return True
    finally:
        lock.release()


def read_history(workspace: Workspace) -> list[dict[str, Any]]:
    """Every recorded decision, oldest first: ``at``, ``run`` and ``decision``; empty if none was taken.

    Raises
    ------
    ClearwayError
        A line is no decision.
    """
    path = workspace.decisions
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            Decision.model_validate(record["decision"])
            record["at"]
        except (ValueError, KeyError, TypeError):
            message = f"{path} line {number} is no decision: restore the file, or move it aside to start a new history"
            raise ClearwayError(message) from None
        history.append(record)
    return history


def parse_force(text: str) -> bool:
    """``true`` or ``false`` as GitHub hands over a boolean input: a string, and empty where there is none.

    Raises
    ------
    UsageError
        It is neither.
    """
    known = {"true": True, "1": True, "false": False, "0": False, "": False}
    if text.strip().lower() not in known:
        raise UsageError(f"--force-retrain (or CLEARWAY_FORCE_RETRAIN) = {text!r}: write true or false")
    return known[text.strip().lower()]


def _data_verdict(workspace: Workspace) -> Any:
    path = workspace.reports / "data_validation.json"
    verdict = read_json(path, made_by="scripts/validate_data.py").get("verdict")
    if verdict not in ("passed", "failed"):
        raise ClearwayError(f"{path}: verdict is {verdict!r}: run scripts/validate_data.py again")
    return verdict


def _drift(workspace: Workspace) -> DriftEvidence:
    path: Path = workspace.reports / "drift.json"
    try:
        report = DriftReport.model_validate(read_json(path, made_by="scripts/check_drift.py"))
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/check_drift.py again") from None
    return DriftEvidence(
        verdict=report.verdict, share=report.share, feature_share=report.feature_share, sentence=report.sentence
    )


def _facts(champion: Champion) -> ChampionFacts | None:
    if champion.bootstrap or champion.digest is None or champion.lineage is None:
        return None
    lineage = champion.lineage
    return ChampionFacts(
        digest=champion.digest,
        as_of=lineage.as_of,
        snapshot_sha256=lineage.snapshot_sha256,
        recipe_sha256=lineage.recipe_sha256,
        labelled_rows=lineage.labelled_rows,
    )


def _performance(champion: Champion, params: Params, workspace: Workspace) -> PerformanceEvidence:
    """The champion's metric when it was made, and on the labels of today's holdout."""
    import pandas as pd

    from clearway.columns import LABEL
    from clearway.metrics import measure, metric
    from clearway.model import load_model

    wanted = metric(params.decision.performance.metric, "decision.performance.metric")
    assert champion.digest is not None  # a champion that is no bootstrap has both
    assert champion.lineage is not None
    model = load_model(workspace.champion / CHAMPION_BUNDLE, champion.digest)
    path = workspace.features / "holdout.parquet"
    if not path.is_file():
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first")
    holdout = pd.read_parquet(path)
    holdout = holdout[holdout[LABEL].notna()]
    now = None
    if set(model.schema.names) <= set(holdout.columns) and len(holdout):
        labels = holdout[LABEL].to_numpy(dtype="float64")
        scores = model.score(model.schema.encode(holdout))
        now = measure(labels, scores, model.threshold, [wanted.name]).get(wanted.name)
    return PerformanceEvidence(
        metric=wanted.name,
        before=champion.lineage.metrics.get(wanted.name),
        now=now,
        rows=len(holdout),
        higher_is_better=wanted.higher_is_better,
    )
