"""What the decision is made from, gathered from the line's files."""

import re
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ValidationError

from clearway.champion import CHAMPION_BUNDLE, Champion, read_champion
from clearway.decision import ChampionFacts, Decision, DecisionEvidence, DriftEvidence, PerformanceEvidence
from clearway.decision_history import earlier_windows, last_retrain, read_past
from clearway.drift import DriftReport
from clearway.errors import ClearwayError, UsageError
from clearway.files import read_json, sha256_file, write_json
from clearway.lineage import recipe_sha256
from clearway.params import DecisionParams, Params, describe
from clearway.workspace import Workspace


def gather_evidence(
    params: Params, workspace: Workspace, *, trigger: str = "local", force_retrain: bool = False
) -> DecisionEvidence:
    """Read what is known now: data verdict, drift, champion, its performance on today's labels, recipe, and the past.

    Raises
    ------
    ClearwayError
        A report or table of an earlier step is missing or damaged, or is about another champion.
    UsageError
        ``decision.performance.metric`` is no metric, or ``trigger`` is no plain word.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", trigger):
        raise UsageError(f"--trigger (or CLEARWAY_TRIGGER) = {trigger!r}: write one lower-case word, such as schedule")
    champion, past = read_champion(workspace), read_past(workspace)
    facts = _facts(champion)
    labelled_rows, known_until = _answers(workspace)
    if not workspace.snapshot.is_file():
        raise ClearwayError(f"{workspace.snapshot} is missing: run scripts/ingest.py first")
    data, data_sentence = _data_verdict(workspace)
    return DecisionEvidence(
        as_of=params.time(),
        snapshot_sha256=sha256_file(workspace.snapshot),
        recipe_sha256=recipe_sha256(params, workspace),
        labelled_rows=labelled_rows,
        known_until=known_until,
        data=data,
        data_sentence=data_sentence,
        champion=facts,
        bootstrap_reason=champion.reason if champion.bootstrap else "",
        drift=_drift(champion, workspace),
        performance=None if champion.bootstrap else _performance(champion, params, workspace),
        windows=earlier_windows(past, facts.digest, _looked_back(params.decision)) if facts else (),
        last_retrain=last_retrain(past),
        force_retrain=force_retrain,
        trigger=trigger,
    )


def write_decision(decision: Decision, workspace: Workspace) -> None:
    """Write ``reports/decision.json``: the same evidence gives the same bytes."""
    write_json(workspace.reports / "decision.json", decision.model_dump(mode="json"))


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


def _looked_back(params: DecisionParams) -> int:
    """Earlier windows that a trigger may look at."""
    return max(params.performance.windows.of, params.drift.windows.of) - 1


class _Rows(BaseModel):
    training: int
    holdout: int


class _Labelled(BaseModel):
    """Of ``features.json``, what it says about answers."""

    rows: _Rows
    answers_until: dict[str, AwareDatetime | None] = {}


def _answers(workspace: Workspace) -> tuple[int, datetime | None]:
    """How many answers are known, and since when the last of them is; without time in the data, None."""
    path = workspace.features / "features.json"
    described = read_json(path, made_by="scripts/build_features.py")
    try:
        tables = _Labelled.model_validate(described)
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/build_features.py again") from None
    rows = tables.rows.training + tables.rows.holdout
    return rows, max((until for until in tables.answers_until.values() if until), default=None)


def _data_verdict(workspace: Workspace) -> tuple[Literal["passed", "failed"], str]:
    path = workspace.reports / "data_validation.json"
    report = read_json(path, made_by="scripts/validate_data.py")
    verdict = report.get("verdict") if isinstance(report, dict) else None
    if verdict not in ("passed", "failed"):
        raise ClearwayError(f"{path}: verdict is {verdict!r}: run scripts/validate_data.py again")
    return verdict, str(report.get("sentence", ""))


def _drift(champion: Champion, workspace: Workspace) -> DriftEvidence:
    """The drift report, which must be about this champion: one of another says nothing about it."""
    path = workspace.reports / "drift.json"
    try:
        report = DriftReport.model_validate(read_json(path, made_by="scripts/check_drift.py"))
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/check_drift.py again") from None
    expected = None if champion.bootstrap else champion.digest
    if report.champion != expected or (report.verdict == "bootstrap") != champion.bootstrap:
        measured, wanted = ((digest or "none")[:12] for digest in (report.champion, expected))
        raise ClearwayError(
            f"{path} was measured against champion {measured}, but the champion is {wanted}: "
            "run scripts/check_drift.py again"
        )
    domain = report.domain
    return DriftEvidence(
        verdict=report.verdict,
        share=report.share,
        feature_share=report.feature_share,
        sentence=report.sentence,
        features=len(report.features),
        drifted=report.drifted,
        unknown=report.unknown,
        feature_count=report.feature_count,
        outputs_drifted=tuple(output.name for output in report.outputs if output.status == "drift"),
        domain=domain.status if domain else None,
        domain_auc=domain.auc if domain else None,
        domain_lower=domain.lower if domain else None,
        domain_limit=domain.limit if domain else None,
        calibrated=report.calibrated,
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
        trained_until=lineage.trained_until,
    )


def _performance(champion: Champion, params: Params, workspace: Workspace) -> PerformanceEvidence:
    """The champion's metric when it was made, and on the labels of today's holdout."""
    import pandas as pd

    from clearway.columns import LABEL
    from clearway.gates import live_interval
    from clearway.labelled_rows import read_labels
    from clearway.metrics import metric
    from clearway.model import load_model
    from clearway.target import judged
    from clearway.trust import trust_of

    kind = params.target.kind
    wanted = metric(params.decision.performance.metric, "decision.performance.metric", kind)
    assert champion.digest is not None  # a champion that is no bootstrap has both
    assert champion.lineage is not None
    path = workspace.features / "holdout.parquet"
    if not path.is_file():
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first")
    model = load_model(workspace.champion / CHAMPION_BUNDLE, champion.digest, trust_of(params, workspace))
    holdout = pd.read_parquet(path)
    holdout = holdout[holdout[LABEL].notna()]
    now = None
    if set(model.schema.names) <= set(holdout.columns) and len(holdout) and model.target.kind == kind:
        labels = read_labels(holdout[LABEL], kind, str(path))
        try:
            encoded = model.schema.encode(holdout)
        except ClearwayError:  # a feature it reads as a number has become text: what it is worth now is unknown
            encoded = None
        if encoded is not None:
            made = judged(model.target, labels, (model.target, model.output(encoded)))
            now = live_interval(wanted, made.labels, made.outputs[0], model.threshold, params.seed, model.target)
    return PerformanceEvidence(
        metric=wanted.name,
        before=champion.lineage.metrics.get(wanted.name),
        now=now.estimate if now else None,
        rows=len(holdout),
        lower=now.lower if now else None,
        upper=now.upper if now else None,
        higher_is_better=wanted.higher_is_better,
    )
