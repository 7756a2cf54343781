"""The edge of the gates: loads challenger, baseline and champion, scores one holdout, and writes the verdict down."""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from threadpoolctl import threadpool_limits

from clearway.behaviour import BehaviouralTest, behaviour_gates, column_test, declared_by
from clearway.calibration_gate import (
    Calibration,
    calibration_champion_gate,
    calibration_gate,
    calibration_of,
    described,
)
from clearway.champion import CHAMPION_BUNDLE, read_champion
from clearway.cli import markdown_cell
from clearway.columns import ENTITY, PREDICTION_TIME, ROW_ID
from clearway.compatibility import Interface, schema_gate
from clearway.encoding import CategoricalFeature
from clearway.errors import ClearwayError, UsageError
from clearway.fairness import fairness_gates
from clearway.files import read_json, write_json, write_text
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
from clearway.metrics import Floats, measure, metric
from clearway.model import Model, estimated, load_estimator, load_model, load_payload
from clearway.paired import groups_of
from clearway.params import METRICS_OF, Kind, Params
from clearway.project import load_project
from clearway.reporting import Page, Picture, Table, draw, write_page
from clearway.robustness import noise_gate
from clearway.served_latency import measure_served, served_latency_gate
from clearway.slices import check_columns, slice_gates
from clearway.target import constant_answer
from clearway.target import judged as judged_as
from clearway.workspace import Workspace

REPORT = "model_validation.json"

_LATENCY_ROWS, _WARM_UP = 200, 20
_ROC_POINTS, _CALIBRATION_BINS = 200, 10
_COLOURS = {"challenger": "#1f6feb", "champion": "#a86400", "baseline": "#8b949e"}


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
    calibration: Calibration | None = None
    """Of the challenger; None where nothing was judged, or its scores are no probabilities."""
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

    Writes ``reports/model_validation.json`` and ``.html``, ``reports/metrics.json`` and ``reports/plots/*.csv``.

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
        metric(name, "params.yaml: gates.floors", kind)
    metric(params.gates.champion.metric, "params.yaml: gates.champion.metric", kind)
    metric(params.gates.slices.metric or params.gates.champion.metric, "params.yaml: gates.slices.metric", kind)
    trained = read_json(workspace.reports / "training.json", made_by="scripts/train.py")
    challenger = load_payload(workspace.model, trained["challenger"]["digest"])
    check_columns(params.gates.slices.declared, challenger.schema.names, "gates.slices.declared")
    check_columns(params.gates.fairness.attributes, challenger.schema.names, "gates.fairness.attributes")
    simple = load_payload(workspace.baseline, trained["baseline"]["digest"])
    record = read_champion(workspace)
    frame, told = read_rows(workspace, "holdout", kind)
    if challenger.target.kind != kind:
        raise ClearwayError(
            f"{workspace.model} answers {challenger.target.kind}, but params.yaml says target.kind = {kind}: run "
            "scripts/train.py again"
        )
    matrix = challenger.schema.encode(frame)
    models = [("challenger", challenger), ("baseline", simple)]
    contenders = [Contender("challenger", challenger.digest, challenger.output(matrix), challenger.threshold)]
    contenders.append(_contender("baseline", simple, frame, kind))
    champion = None
    if not record.bootstrap:
        assert record.digest is not None
        champion = load_model(workspace.champion / CHAMPION_BUNDLE, record.digest)
        models.append(("champion", champion))
        contenders.append(_contender("champion", champion, frame, kind))
    labels, contenders, classes = _aligned(told, [model for _, model in models], contenders)
    calibration = None
    if champion is not None and champion.digest == challenger.digest:
        verdict = unchanged(challenger.digest)
    else:
        with threadpool_limits(limits=params.train.threads):
            trusted = estimated(load_estimator(workspace.model), challenger.target, matrix)
        chosen = params.gates
        uses = read_uses(workspace, holdout_identity(frame[ROW_ID], told), challenger.digest)
        confidence = corrected_confidence(chosen.confidence, uses.place)
        groups, target = _groups(params, frame), challenger.target
        holdout = Holdout(labels, challenger.threshold, confidence, chosen.resamples, params.seed, groups, target)
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
            holdout=holdout,
            uses=uses,
            constant=constant_answer(trained, chosen.champion.metric),
            calibration=calibration,
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
        calibration=calibration,
        kind=kind,
    )
    _write_reports(params, workspace, validation, contenders, labels)
    return validation


def _contender(role: str, model: Model, frame: pd.DataFrame, kind: Kind) -> Contender:
    """A model on the same rows, encoded as it was trained to see them."""
    problem = f"the {role} answers {model.target.kind}, and not {kind}: the two cannot be compared"
    if model.target.kind == kind:
        try:
            return Contender(role, model.digest, model.output(model.schema.encode(frame)), model.threshold)
        except ClearwayError as error:
            if role != "champion":
                raise
            problem = f"the champion cannot score this holdout: {error}"
    return Contender(role, model.digest, None, model.threshold, problem)


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
        parity_gate(
            scores[:, : judged.estimated.shape[1]] if scores.ndim == 2 else scores,
            judged.estimated,
            chosen.onnx_tolerance,
            holdout.target,
        ),
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
    memory = measure_memory(judged.payload, model.digest, judged.matrix)
    served = measure_served(params, judged.payload, model, judged.frame)
    return [
        size,
        memory_gate(memory, chosen.max_memory_mb),
        served_latency_gate(served, chosen.latency_ms, chosen.latency_p99_ms),
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


def _write_reports(
    params: Params, workspace: Workspace, validation: Validation, contenders: Sequence[Contender], labels: Floats
) -> None:
    binary = validation.kind == "binary"
    drawable = [c for c in contenders if binary and c.scores is not None and np.isfinite(c.scores).all()]
    both = 0 < labels.sum() < len(labels)
    rocs = {c.role: _roc(labels, c.scores) for c in drawable if both and c.scores is not None}
    bins = {c.role: _calibration(labels, c.scores) for c in drawable if c.scores is not None}
    plots = workspace.reports / "plots"
    write_text(plots / "roc.csv", _csv(("false_positive_rate", "true_positive_rate"), rocs.get("challenger", [])))
    write_text(plots / "calibration.csv", _csv(("mean_score", "share_positive", "rows"), bins.get("challenger", [])))
    write_json(workspace.reports / "metrics.json", validation.metrics["challenger"])
    pictures = [] if not rocs else [_roc_picture(labels, drawable, rocs)]
    if bins:
        pictures.append(_calibration_picture(bins))
    page = Page(
        title=f"Model validation of {params.project.name}",
        verdict=validation.verdict.verdict,
        status={"passed": "pass", "rejected": "fail", "unchanged": "unknown"}[validation.verdict.verdict],
        sentence=validation.verdict.reason,
        facts=[
            ("challenger", validation.digest),
            ("champion", validation.champion_digest or "none"),
            ("baseline", validation.baseline_digest),
            ("as of", f"{params.as_of or 'no time in the data'}"),
            ("holdout", f"{validation.rows:,} rows" + (f", {labels.mean():.1%} positive" if binary else "")),
            *([] if binary else [("target", validation.kind)]),
            *([] if validation.calibration is None else [("calibration", described(validation.calibration))]),
        ],
        blocks=[_gate_table(validation.verdict.gates), _metric_table(validation), *pictures],
    )
    write_page(workspace.reports / "model_validation.html", page)
    write_json(workspace.reports / REPORT, validation.document())


def failing_first(gates: Sequence[Gate]) -> list[Gate]:
    """Failed gates, then the uncertain, then the passed; in each the order of judgement."""
    rank = {"fail": 0, "unknown": 1, "pass": 2}
    return sorted(gates, key=lambda gate: rank[gate.status])


def _gate_table(gates: Sequence[Gate]) -> Table:
    ordered = failing_first(gates)
    return Table(
        title="Gates",
        columns=("gate", "status", "estimate", "interval", "needed", "rows", "detail"),
        rows=[
            (
                gate.name,
                gate.status,
                _number(gate.estimate),
                "" if gate.lower is None else f"[{_number(gate.lower)}, {_number(gate.upper)}]",
                _number(gate.threshold),
                "" if gate.n is None else f"{gate.n:,}",
                gate.detail,
            )
            for gate in ordered
        ],
        status=[gate.status for gate in ordered],
        note="" if gates else "The challenger is the champion, so no gate was judged.",
    )


def metric_rows(validation: Validation) -> list[tuple[str, str, str, str]]:
    """Each metric with its value for challenger, champion and baseline, as text."""
    columns = [validation.metrics[role] or {} for role in ("challenger", "champion", "baseline")]
    names = METRICS_OF[validation.kind]
    return [(name, *(_number(values.get(name)) for values in columns)) for name in names]  # type: ignore[misc]


def _metric_table(validation: Validation) -> Table:
    return Table(
        title="Metrics on the same holdout rows",
        columns=("metric", "challenger", "champion", "baseline"),
        rows=metric_rows(validation),
        note=_METRIC_NOTES[validation.kind],
    )


_METRIC_NOTES: dict[Kind, str] = {
    "binary": "log_loss and brier: lower is better. accuracy, precision, recall, f1: at each model's own threshold.",
    "multiclass": "log_loss and brier: lower is better. …_macro: the mean over classes.",
    "regression": "All but r2: lower is better, in the unit of the label.",
}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _roc(labels: Floats, scores: Floats) -> list[tuple[float, ...]]:
    """The ROC curve, thinned to points evenly spaced along it."""
    false_rate, true_rate, _ = roc_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(false_rate) - 1, min(_ROC_POINTS, len(false_rate))).astype(int))
    return [(round(float(x), 6), round(float(y), 6)) for x, y in zip(false_rate[kept], true_rate[kept], strict=True)]


def _calibration(labels: Floats, scores: Floats) -> list[tuple[float, ...]]:
    """Mean score, share of positives and rows of equally full bins of the score."""
    parts = np.array_split(np.argsort(scores, kind="stable"), min(_CALIBRATION_BINS, len(scores)))
    return [(round(float(scores[p].mean()), 6), round(float(labels[p].mean()), 6), len(p)) for p in parts]


def _csv(columns: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def _roc_picture(
    labels: Floats, contenders: Sequence[Contender], curves: dict[str, list[tuple[float, ...]]]
) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#c9d1d9", linewidth=1)
    said = []
    for contender in contenders:
        area = roc_auc_score(labels, contender.scores)
        said.append(f"{contender.role} {area:.3f}")
        points = np.array(curves[contender.role])
        axes.plot(points[:, 0], points[:, 1], color=_COLOURS[contender.role], label=said[-1])
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", frameon=False)
    return Picture("ROC curve", f"ROC curves; area under each: {', '.join(said)}", draw(figure))


def _calibration_picture(bins: dict[str, list[tuple[float, ...]]]) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2))
    axes = figure.subplots()
    top = max(max(point[:2]) for points in bins.values() for point in points)
    axes.plot([0, top], [0, top], color="#c9d1d9", linewidth=1)
    for role, points in bins.items():
        values = np.array(points)
        axes.plot(values[:, 0], values[:, 1], marker="o", markersize=4, color=_COLOURS[role], label=role)
    axes.set(xlabel="mean score", ylabel="share of positives")
    axes.legend(loc="upper left", frameon=False)
    return Picture("Calibration", "Share of positives against mean score, in equally full bins", draw(figure))


def show(validation: Validation) -> None:
    """Print the verdict's gates and metrics as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    console = Console()
    if validation.verdict.gates:
        gates = Grid("gate", "status", "detail", title="Gates", title_justify="left")
        colours = {"pass": "green", "fail": "bold red", "unknown": "yellow"}
        for gate in failing_first(validation.verdict.gates):
            gates.add_row(gate.name, f"[{colours[gate.status]}]{gate.status}[/]", escape(gate.detail))
        console.print(gates)
    metrics = Grid("metric", "challenger", "champion", "baseline", title="Holdout metrics", title_justify="left")
    for row in metric_rows(validation):
        metrics.add_row(*row)
    console.print(metrics)


def summary(validation: Validation) -> str:
    """The verdict and its gates as Markdown, for a job summary."""
    lines = [f"### Model {validation.verdict.verdict}", "", validation.verdict.reason, ""]
    if validation.verdict.gates:
        lines += ["| gate | status | detail |", "| --- | --- | --- |"]
        lines += [
            f"| {markdown_cell(gate.name)} | {gate.status} | {markdown_cell(gate.detail)} |"
            for gate in failing_first(validation.verdict.gates)
        ]
    return "\n".join(lines)
