"""The edge of the gates: loads challenger, baseline and champion, scores one holdout, and writes the verdict down."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.behaviour import BehaviouralTest, behaviour_gates, column_test, declared_by
from clearway.calibration_gate import (
    Calibration,
    calibration_champion_gate,
    calibration_gate,
    calibration_of,
)
from clearway.champion import CHAMPION_BUNDLE, read_champion
from clearway.columns import ENTITY, PREDICTION_TIME, ROW_ID
from clearway.compatibility import Interface, schema_gate
from clearway.encoding import CategoricalFeature
from clearway.errors import ClearwayError, UsageError
from clearway.fairness import fairness_gates
from clearway.files import read_json
from clearway.footprint import measure_memory, memory_gate, payload_bytes, size_gate
from clearway.gates import (
    Gate,
    Holdout,
    ModelVerdict,
    baseline_gate,
    champion_gate,
    classes_gate,
    constant_gate,
    finite_gate,
    floor_gate,
    judge,
    latency_gate,
    no_onnx_gate,
    paired_gain,
    parity_gate,
    rows_gate,
    unchanged,
)
from clearway.holdout_uses import (
    HoldoutUses,
    corrected_confidence,
    holdout_identity,
    read_uses,
    uses_gate,
)
from clearway.labelled_rows import read_rows
from clearway.leakage import duplicate_gate, row_id_gate, target_gate, time_gate
from clearway.measurements import Measurements, feature_importances, measurements
from clearway.metrics import Floats, floor_metric, measure, metric
from clearway.model import Model, estimated, load_estimator, load_model, load_payload
from clearway.model_report import ANSWERS, write_reports
from clearway.paired import groups_of
from clearway.parallel import in_order
from clearway.params import Kind, Params
from clearway.project import load_project
from clearway.robustness import noise_gate
from clearway.served_latency import measure_served, served_latency_gate, served_memory_gate
from clearway.slices import check_columns, slice_gates
from clearway.target import constant_answer
from clearway.target import judged as judged_as
from clearway.trust import Trust, trust_of
from clearway.workspace import Workspace

_LATENCY_ROWS, _WARM_UP = 200, 20


@dataclass(frozen=True)
class Contender:
    """A model and what it said of the holdout. ``scores`` is None where it could not score it at all."""

    role: str
    digest: str
    scores: Floats | None
    """Its outputs: see :func:`clearway.target.judged`."""
    threshold: float
    """Score from which its answer is yes; the champion's is the one it is served with."""
    problem: str = ""
    """Why there are no scores."""


@dataclass(frozen=True)
class _Judged:
    """What the gates look at."""

    model: Model
    """The challenger, of ``payload``."""
    payload: Path
    champion: Model | None
    contenders: dict[str, Contender]
    """By role; the challenger's and the baseline's scores are there."""
    frame: pd.DataFrame
    """The holdout's rows, with the reserved columns; all arrays here are in their order."""
    training: pd.DataFrame
    matrix: NDArray[np.float32]
    """The holdout as the challenger encodes it."""
    estimated: Floats
    """What scikit-learn says of it, where the model says what ONNX Runtime will."""
    holdout: Holdout
    uses: HoldoutUses
    constant: float | list[float]
    """The answer that ignores the question: see :func:`clearway.target.constant_answer`."""
    calibration: Calibration | None
    trust: Trust
    no_onnx: str
    """Why the challenger has no ONNX, as its training says; empty where it has."""
    classes: tuple[str, ...] = ()
    """What the labels are positions in, where there are several classes."""


@dataclass(frozen=True)
class Validation:
    """The content of ``reports/model_validation.json``."""

    verdict: ModelVerdict
    digest: str
    baseline_digest: str
    champion_digest: str | None
    metrics: dict[str, dict[str, float] | None]
    """By role: challenger, champion (None in a bootstrap), baseline."""
    rows: int
    measured: Measurements
    calibration: Calibration | None = None
    """Of the challenger; None where nothing was judged, or its scores are no probabilities."""
    no_onnx: str = ""
    """Why the challenger has no ONNX; empty where it has."""
    kind: Kind = "binary"
    """Of the target."""

    def document(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.verdict,
            "reason": self.verdict.reason,
            "digest": self.digest,
            "baseline_digest": self.baseline_digest,
            "champion_digest": self.champion_digest,
            "rows": self.rows,
            **({} if self.kind == "binary" else {"kind": self.kind}),
            "metrics": self.metrics,
            "calibration": None if self.calibration is None else _finite(asdict(self.calibration)),
            "gates": [asdict(gate) for gate in self.verdict.gates],
            "measured": self.measured.document(),
        }


def _groups(params: Params, frame: pd.DataFrame) -> NDArray[np.intp] | None:
    """Which rows of the holdout stand or fall together; None where each stands for itself."""
    cluster = params.gates.cluster
    if cluster == "day":
        times = frame[PREDICTION_TIME]
        if times.isna().any():
            raise UsageError("params.yaml: gates.cluster = 'day', but rows of the holdout have no prediction_time")
        return groups_of(times.dt.floor("D"))
    return groups_of(frame[ENTITY]) if cluster == "entity" else None


def _finite(content: Any) -> Any:
    """The same with null for numbers that are none, such as the slope of scores that are all the same."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return None if isinstance(content, float) and not np.isfinite(content) else content


def validate(params: Params, workspace: Workspace) -> Validation:
    """Judge the challenger in ``build/model`` and write the reports.

    Writes ``reports/model_validation.json`` and ``.html``, ``reports/metrics.json``, ``reports/plots/*.csv`` and
    ``reports/drawings/*.svg``.

    Raises
    ------
    UsageError
        ``params.gates`` names an unknown metric.
    BundleError
        A file of challenger, baseline or champion is not what its digest says; names it.
    ClearwayError
        A stage that must run first has not, or the holdout is missing, empty or lacks a feature.
    """
    kind = params.target.kind
    for name in params.gates.floors:
        floor_metric(name, kind)
    metric(params.gates.champion.metric, "params.yaml: gates.champion.metric", kind)
    metric(params.gates.slices.metric or params.gates.champion.metric, "params.yaml: gates.slices.metric", kind)
    trained = read_json(workspace.reports / "training.json", made_by="scripts/train.py")
    trust = trust_of(params, workspace)
    challenger = load_payload(workspace.model, trained["challenger"]["digest"], trust)
    check_columns(params.gates.slices.declared, challenger.schema.names, "gates.slices.declared")
    check_columns(params.gates.fairness.attributes, challenger.schema.names, "gates.fairness.attributes")
    simple = load_payload(workspace.baseline, trained["baseline"]["digest"], trust)
    record = read_champion(workspace)
    frame, told = read_rows(workspace, "holdout", kind)
    if challenger.target.kind != kind:
        raise ClearwayError(
            f"{workspace.model} answers {challenger.target.kind}, but params.yaml says target.kind = {kind}: run "
            "scripts/train.py again"
        )
    try:
        matrix = challenger.schema.encode(frame)
    except ClearwayError as error:
        raise ClearwayError(
            f"gate schema_compatibility: {workspace.features / 'holdout.parquet'}: the challenger cannot be asked its "
            f"rows: {error}; run scripts/build_features.py and scripts/train.py again"
        ) from None
    models = [("challenger", challenger), ("baseline", simple)]
    try:
        outputs = _outputs(challenger, matrix)
    except ClearwayError as error:
        raise ClearwayError(f"gate finite_scores: the challenger cannot score the holdout: {error}") from None
    contenders = [Contender("challenger", challenger.digest, outputs, challenger.threshold)]
    contenders.append(_contender("baseline", simple, frame, kind))
    champion = None
    if not record.bootstrap:
        assert record.digest is not None
        try:
            champion = load_model(workspace.champion / CHAMPION_BUNDLE, record.digest, trust)
        except ClearwayError as error:
            raise type(error)(f"gate champion: {error}") from None
        models.append(("champion", champion))
        contenders.append(_contender("champion", champion, frame, kind))
    labels, contenders, classes = _aligned(told, [model for _, model in models], contenders)
    chosen = params.gates
    groups, target = _groups(params, frame), challenger.target
    holdout = Holdout(labels, challenger.threshold, chosen.confidence, chosen.resamples, params.seed, groups, target)
    calibration = None
    no_onnx = "" if challenger.session is not None else str(trained["challenger"].get("no_onnx", ""))
    if champion is not None and champion.digest == challenger.digest:
        verdict = unchanged(challenger.digest)
    else:
        with in_order():
            estimator = load_estimator(workspace.model, challenger.digest, trust)
            trusted = estimated(estimator, challenger.target, matrix)
        uses = read_uses(workspace, holdout_identity(frame[ROW_ID], told), challenger.digest)
        confidence = corrected_confidence(chosen.confidence, uses.place)
        judging = replace(holdout, confidence=confidence)
        scores = contenders[0].scores
        assert scores is not None  # only a champion may fail to score
        calibration = calibration_of(holdout, scores, chosen.calibration.bins)
        judged = _Judged(
            model=challenger,
            payload=workspace.model,
            champion=champion,
            contenders={contender.role: contender for contender in contenders},
            frame=frame,
            training=read_rows(workspace, "training", kind)[0],
            matrix=matrix,
            estimated=trusted,
            holdout=judging,
            uses=uses,
            constant=constant_answer(trained, chosen.champion.metric),
            calibration=calibration_of(judging, scores, chosen.calibration.bins),
            trust=trust,
            no_onnx=no_onnx,
            classes=classes,
        )
        verdict = judge(
            _gates(params, judged),
            params.gates,
            champion=None if record.bootstrap else record.digest,
            bootstrap=record.reason,
        )
    measured: dict[str, dict[str, float] | None] = {
        c.role: {} if c.scores is None else measure(labels, c.scores, c.threshold, kind=kind) for c in contenders
    }
    validation = Validation(
        verdict=verdict,
        digest=challenger.digest,
        baseline_digest=simple.digest,
        champion_digest=None if record.bootstrap else record.digest,
        metrics={"challenger": None, "champion": None, "baseline": None, **measured},
        rows=len(labels),
        measured=_measured(params, challenger, holdout, contenders, frame, matrix, trained, classes),
        calibration=calibration,
        no_onnx=no_onnx,
        kind=kind,
    )
    names = {"binary": ANSWERS, "multiclass": classes, "regression": ()}[kind]
    write_reports(params, workspace, validation, contenders, labels, kind, names)
    return validation


def _measured(
    params: Params,
    challenger: Model,
    holdout: Holdout,
    contenders: Sequence[Contender],
    frame: pd.DataFrame,
    matrix: NDArray[np.float32],
    trained: Mapping[str, Any],
    classes: Sequence[str],
) -> Measurements:
    chosen = params.gates
    compared = chosen.champion.metric

    def output(rows: NDArray[np.float32]) -> Floats:
        found = challenger.output(rows)
        unseen = len(classes) - len(challenger.target.classes)  # of others; it never answers them
        return np.pad(found, ((0, 0), (0, unseen))) if unseen else found

    return measurements(
        holdout,
        {each.role: each.scores for each in contenders},
        {each.role: each.threshold for each in contenders},
        frame[list(challenger.schema.names)],
        [*chosen.slices.declared, *chosen.fairness.attributes],
        feature_importances(holdout, output, matrix, challenger.schema.names, compared),
        metric=compared,
        training={role: trained[role]["training_metrics"] for role in ("challenger", "baseline")},
        min_rows=chosen.slices.min_rows,
        bins=chosen.slices.bins,
    )


def _contender(role: str, model: Model, frame: pd.DataFrame, kind: Kind) -> Contender:
    """A model on the same rows, encoded as it was trained to see them."""
    problem = f"the {role} answers {model.target.kind}, and not {kind}: the two cannot be compared"
    if model.target.kind == kind:
        try:
            return Contender(role, model.digest, _outputs(model, model.schema.encode(frame)), model.threshold)
        except ClearwayError as error:
            if role != "champion":
                raise
            problem = f"the champion cannot score this holdout: {error}"
    return Contender(role, model.digest, None, model.threshold, problem)


def _outputs(model: Model, matrix: NDArray[np.float32]) -> Floats:
    try:
        return model.output(matrix)
    except ClearwayError:
        raise
    except Exception as error:  # the runtime, or anybody's class, raises what it likes
        raise ClearwayError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


def _aligned(
    labels: NDArray[Any], models: Sequence[Model], contenders: Sequence[Contender]
) -> tuple[Floats, list[Contender], tuple[str, ...]]:
    """Labels, outputs and classes of :func:`clearway.target.judged`; the challenger's classes come first."""
    able = [(c, model) for c, model in zip(contenders, models, strict=True) if c.scores is not None]
    given = [(model.target, c.scores) for c, model in able if c.scores is not None]
    made = judged_as(models[0].target, labels, *given)
    outputs = {c.role: outputs for (c, _), outputs in zip(able, made.outputs, strict=True)}
    return made.labels, [replace(c, scores=outputs.get(c.role)) for c in contenders], made.classes


def _gates(params: Params, judged: _Judged) -> list[Gate]:
    """Every gate, in the order of judgement: the answers, then what they rest on, then what they cost."""
    return [
        *_quality_gates(params, judged),
        *_group_gates(params, judged),
        *_robustness_gates(params, judged),
        *_leakage_gates(params, judged),
        *_contract_gates(params, judged),
        *_cost_gates(params, judged),
    ]


def _quality_gates(params: Params, judged: _Judged) -> list[Gate]:
    chosen, holdout, contenders = params.gates, judged.holdout, judged.contenders
    scores = contenders["challenger"].scores
    assert scores is not None  # only a champion may fail to score
    compared = chosen.champion.metric
    gates = [
        uses_gate(judged.uses, chosen.confidence, chosen.max_challengers),
        rows_gate(holdout, chosen.min_rows),
        finite_gate(scores, holdout.target),
        _parity(params, judged, scores),
        *([classes_gate(holdout, judged.classes, chosen.classes)] if holdout.target.classes else []),
        *(floor_gate(holdout, name, floor, scores) for name, floor in chosen.floors.items()),
        constant_gate(holdout, compared, scores, judged.constant),
    ]
    if chosen.baseline_gain is not None:
        gates.append(baseline_gate(holdout, compared, scores, contenders["baseline"].scores, chosen.baseline_gain))
    if champion := contenders.get("champion"):
        margin = chosen.champion.margin
        if champion.scores is None:
            gates.append(Gate("champion", "fail", champion.problem, threshold=-margin, n=holdout.rows))
        else:
            gates.append(
                champion_gate(holdout, compared, scores, champion.scores, margin, threshold=champion.threshold)
            )
    bins, limit, most = chosen.calibration.bins, chosen.calibration.max_error, chosen.calibration.champion_margin
    if limit is not None:
        gates.append(calibration_gate(holdout, judged.calibration, limit))
    if champion is not None and most is not None:
        if champion.scores is None:
            gates.append(Gate("calibration_champion", "fail", champion.problem, threshold=most, n=holdout.rows))
        else:
            gates.append(calibration_champion_gate(holdout, scores, champion.scores, most, bins))
    return gates


def _parity(params: Params, judged: _Judged, scores: Floats) -> Gate:
    if judged.model.session is None:
        return no_onnx_gate(judged.no_onnx, required=params.gates.require_onnx, rows=len(scores))
    known = scores[:, : judged.estimated.shape[1]] if scores.ndim == 2 else scores  # without classes of others
    return parity_gate(known, judged.estimated, params.gates.onnx_tolerance, judged.holdout.target)


def _group_gates(params: Params, judged: _Judged) -> list[Gate]:
    """Whether it holds in every part of the holdout, and treats groups alike."""
    scores, champion = judged.contenders["challenger"].scores, judged.contenders.get("champion")
    assert scores is not None  # only a champion may fail to score
    theirs = None if champion is None else champion.scores  # where it cannot score its own gate has failed already
    theirs_from = None if champion is None else champion.threshold
    schema = judged.model.schema
    features = judged.frame[list(schema.names)]
    categories = {each.name: each.categories for each in schema.features if isinstance(each, CategoricalFeature)}
    return [
        *slice_gates(
            features,
            judged.holdout,
            scores,
            theirs,
            params.gates.slices,
            compared=params.gates.champion.metric,
            constant=judged.constant,
            gain=paired_gain,
            champion_threshold=theirs_from,
            trained_on=categories,
        ),
        *fairness_gates(
            features,
            judged.holdout,
            scores,
            theirs,
            params.gates.fairness,
            champion_threshold=theirs_from,
            trained_on=categories,
        ),
    ]


def _robustness_gates(params: Params, judged: _Judged) -> list[Gate]:
    chosen, model = params.gates, judged.model
    tests: list[BehaviouralTest] = [column_test(**test.model_dump()) for test in chosen.behaviour]
    if params.project.package is not None:
        tests += declared_by(load_project(params, {}))
    return [
        noise_gate(
            model.output,
            model.schema,
            judged.matrix,
            model.threshold,
            share=chosen.noise.share,
            keep=chosen.noise.keep,
            confidence=judged.holdout.confidence,
            seed=params.seed,
            target=model.target,
            tolerance=chosen.noise.tolerance,
        ),
        *behaviour_gates(
            tests,
            judged.frame,
            model.schema,
            model.output,
            model.threshold,
            confidence=judged.holdout.confidence,
            seed=params.seed,
            target=model.target,
        ),
    ]


def _leakage_gates(params: Params, judged: _Judged) -> list[Gate]:
    chosen, frame, training, schema = params.gates.leakage, judged.frame, judged.training, judged.model.schema
    timed, target = params.time() is not None, judged.model.target
    limit = chosen.max_single_r2 if target.kind == "regression" else chosen.max_single_auc
    return [
        target_gate(frame, judged.holdout.labels, schema, limit, params.seed, target),
        row_id_gate(training, frame),
        duplicate_gate(training, frame, schema, timed=timed, max_duplicates=chosen.max_duplicates),
        *([time_gate(training, frame)] if timed else []),
    ]


def _contract_gates(params: Params, judged: _Judged) -> list[Gate]:
    if judged.champion is None:
        return []
    before, after = (
        Interface(model.schema, model.definitions, model.target) for model in (judged.champion, judged.model)
    )
    return [schema_gate(before, after, params.gates.accept_changes)]


def _cost_gates(params: Params, judged: _Judged) -> list[Gate]:
    chosen, model = params.gates, judged.model
    size = size_gate(payload_bytes(judged.payload), chosen.max_bundle_mb)
    if not chosen.through_server:
        return [size, latency_gate(_latencies(model, judged.matrix), chosen.latency_ms)]
    memory = measure_memory(judged.payload, model.digest, judged.matrix, judged.trust)
    served = measure_served(params, judged.payload, model, judged.frame)
    return [
        size,
        memory_gate(memory, chosen.max_memory_mb),
        served_latency_gate(served, chosen.latency_ms, chosen.latency_p99_ms),
        served_memory_gate(served, chosen.max_server_mb),
    ]


def _latencies(model: Model, matrix: NDArray[np.float32]) -> list[float]:
    """Milliseconds of single-row answers, after a warm-up."""
    taken = []
    for turn in range(_WARM_UP + _LATENCY_ROWS):
        row = turn % len(matrix)
        began = time.perf_counter()
        model.output(matrix[row : row + 1])
        taken.append(1000 * (time.perf_counter() - began))
    return taken[_WARM_UP:]
