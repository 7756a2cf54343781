"""What a bundle holds to measure drift against, and the whole comparison of current rows with it.

Beside its columns (:mod:`clearway.drift`) a sample is compared as a whole (:mod:`clearway.domain`), by what the model
answers on it, and, where that is asked for, with reference rows of the same season (:mod:`clearway.season`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from clearway.bundle import Bundle
from clearway.calibration import Calibration, read_calibration
from clearway.columns import LABEL
from clearway.domain import measure_domain
from clearway.drift import DriftReport, Kind, measure_drift
from clearway.errors import ClearwayError
from clearway.model import recorded_target
from clearway.params import DriftParams, describe
from clearway.params import Kind as TargetKind
from clearway.performance_estimate import ScoreMap
from clearway.profile import ANSWER, SCORE, read_reference
from clearway.season import match_season

REFERENCE, CALIBRATION, SCORE_MAP = "reference.parquet", "drift_calibration.json", "score_map.json"
"""Names of the evidence."""


@dataclass(frozen=True)
class DriftReference:
    """The past of a model."""

    rows: pd.DataFrame
    """Training rows: features, ``score`` and, where known, ``label`` and ``prediction_time``."""
    calibration: Calibration | None
    """How much windows of the reference itself differ; None for a bundle made before there was one."""
    score_map: ScoreMap | None
    """What its scores mean; None likewise, and where it predicts a number."""
    kind: TargetKind = "binary"
    """What the model answers."""


def reference_of(bundle: Bundle) -> DriftReference:
    """Read the evidence of a verified bundle.

    Raises
    ------
    ClearwayError
        The reference is missing, or a file is damaged.
    """
    held = bundle.evidence_manifest.files
    return DriftReference(
        rows=read_reference(bundle.evidence(REFERENCE)),
        calibration=read_calibration(bundle.evidence(CALIBRATION)) if CALIBRATION in held else None,
        score_map=_read_map(bundle.evidence(SCORE_MAP)) if SCORE_MAP in held else None,
        kind=recorded_target(bundle).kind,
    )


def compare_with(
    past: DriftReference,
    current: pd.DataFrame,
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: DriftParams,
    seed: int,
) -> DriftReport:
    """Everything there is to say of current rows against the past of a model.

    Parameters
    ----------
    past : DriftReference
    current : DataFrame of shape (m, ≥ k)
        The rows of now, with ``score`` where they were scored, ``label`` where answers are known, and
        ``prediction_time`` where a season is asked for.
    numeric, categorical : sequence of str
        Names of the features.
    params : DriftParams
    seed : int
        Of every sample that is drawn.
    """
    reference, season = past.rows, ""
    if params.season:
        matched = match_season(reference, current, params.season, seed)
        season = matched.sentence
        if matched.problem:
            return DriftReport(
                verdict="unknown",
                sentence=f"Nothing was compared: {season}.",
                season=season,
                feature_share=params.feature_share,
                feature_count=params.feature_count,
                rows_reference=len(reference),
                rows_current=len(current),
            )
        reference, current = reference.iloc[matched.reference], current.iloc[matched.current]
    # Rows that know no time are exchangeable: their calibration is empty.
    calibration = past.calibration if past.calibration and past.calibration.features else None
    domain = None
    if params.domain.enabled and (numeric or categorical):
        alike = calibration.domain if calibration else None
        domain = measure_domain(reference, current, numeric, categorical, params.domain, alike, seed)
    report = measure_drift(
        reference,
        current,
        numeric,
        categorical,
        params,
        calibration=calibration,
        outputs=_outputs(reference, current, past.kind),
        domain=domain,
    )
    return report.model_copy(update={"season": season})


def _outputs(reference: pd.DataFrame, current: pd.DataFrame, kind: TargetKind) -> dict[str, Kind]:
    """The scores, the classes answered where there are several, and the labels where both sides know some."""
    outputs: dict[str, Kind] = {}
    if SCORE in current:
        outputs[SCORE] = "numeric"
    if kind == "multiclass" and all(ANSWER in side for side in (reference, current)):
        outputs[ANSWER] = "categorical"
    if all(LABEL in side and side[LABEL].notna().any() for side in (reference, current)):
        outputs[LABEL] = "numeric" if kind == "regression" else "categorical"
    return outputs


def _read_map(path: Path) -> ScoreMap:
    try:
        return ScoreMap.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ClearwayError(f"{path} is no score map ({describe(error)}): train again") from None
