"""The edge of the gates: loads challenger, baseline and champion, scores one holdout, and writes the verdict down."""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from threadpoolctl import threadpool_limits

from clearway.champion import CHAMPION_BUNDLE, Champion, read_champion
from clearway.errors import ClearwayError
from clearway.files import read_json, write_json, write_text
from clearway.gates import (
    Gate,
    Holdout,
    ModelVerdict,
    baseline_gate,
    champion_gate,
    constant_gate,
    finite_gate,
    floor_gate,
    judge,
    latency_gate,
    parity_gate,
    rows_gate,
    unchanged,
)
from clearway.metrics import METRICS, Floats, measure, metric
from clearway.model import Model, load_estimator, load_model, load_payload
from clearway.params import Params
from clearway.reporting import Page, Picture, Table, draw, write_page
from clearway.training import read_rows
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
    threshold: float
    """Score from which its answer is yes; the champion's is the one it is served with."""
    problem: str = ""
    """Why there are no scores."""


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

    def document(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.verdict,
            "reason": self.verdict.reason,
            "digest": self.digest,
            "baseline_digest": self.baseline_digest,
            "champion_digest": self.champion_digest,
            "rows": self.rows,
            "metrics": self.metrics,
            "gates": [asdict(gate) for gate in self.verdict.gates],
        }


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
    for name in params.gates.floors:
        metric(name, "params.yaml: gates.floors")
    metric(params.gates.champion.metric, "params.yaml: gates.champion.metric")
    trained = read_json(workspace.reports / "training.json", made_by="scripts/train.py")
    challenger = load_payload(workspace.model, trained["challenger"]["digest"])
    simple = load_payload(workspace.baseline, trained["baseline"]["digest"])
    record = read_champion(workspace)
    frame, labels = read_rows(workspace, "holdout")

    matrix = challenger.schema.encode(frame)
    contenders = [
        Contender("challenger", challenger.digest, challenger.score(matrix), challenger.threshold),
        Contender("baseline", simple.digest, simple.score(simple.schema.encode(frame)), simple.threshold),
    ]
    if not record.bootstrap:
        contenders.append(_champion(workspace, record, frame))
    by_role = {contender.role: contender for contender in contenders}
    if not record.bootstrap and record.digest == challenger.digest:
        verdict = unchanged(challenger.digest)
    else:
        with threadpool_limits(limits=params.train.threads):
            estimated = load_estimator(workspace.model).predict_proba(matrix)[:, 1].astype(np.float64)
        gates = _gates(params, by_role, labels, estimated, _latencies(challenger, matrix), trained["positive_share"])
        verdict = judge(
            gates,
            params.gates,
            champion=None if record.bootstrap else record.digest,
            bootstrap=record.reason,
        )
    measured: dict[str, dict[str, float] | None] = {
        c.role: {} if c.scores is None else measure(labels, c.scores, c.threshold) for c in contenders
    }
    validation = Validation(
        verdict=verdict,
        digest=challenger.digest,
        baseline_digest=simple.digest,
        champion_digest=None if record.bootstrap else record.digest,
        metrics={"challenger": None, "champion": None, "baseline": None, **measured},
        rows=len(labels),
    )
    _write_reports(params, workspace, validation, contenders, labels)
    return validation


def _champion(workspace: Workspace, record: Champion, frame: pd.DataFrame) -> Contender:
    """The champion on the same rows, encoded as it was trained to see them."""
    assert record.digest is not None  # it is no bootstrap
    model = load_model(workspace.champion / CHAMPION_BUNDLE, record.digest)
    try:
        return Contender("champion", record.digest, model.score(model.schema.encode(frame)), model.threshold)
    except ClearwayError as error:
        problem = f"the champion cannot score this holdout: {error}"
        return Contender("champion", record.digest, None, model.threshold, problem)


def _gates(
    params: Params,
    contenders: dict[str, Contender],
    labels: Floats,
    estimated: Floats,
    latencies: Sequence[float],
    base_rate: float,
) -> list[Gate]:
    chosen = params.gates
    challenger = contenders["challenger"]
    holdout = Holdout(labels, challenger.threshold, chosen.confidence, chosen.resamples, params.seed)
    scores = challenger.scores
    assert scores is not None  # only a champion may fail to score
    compared = chosen.champion.metric
    gates = [
        rows_gate(holdout, chosen.min_rows),
        finite_gate(scores),
        parity_gate(scores, estimated, chosen.onnx_tolerance),
        *(floor_gate(holdout, name, floor, scores) for name, floor in chosen.floors.items()),
        constant_gate(holdout, compared, scores, base_rate),
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
    gates.append(latency_gate(latencies, chosen.latency_ms))
    return gates


def _latencies(model: Model, matrix: NDArray[np.float32]) -> list[float]:
    """Milliseconds of single-row answers, after a warm-up."""
    taken = []
    for turn in range(_WARM_UP + _LATENCY_ROWS):
        row = turn % len(matrix)
        began = time.perf_counter()
        model.score(matrix[row : row + 1])
        taken.append(1000 * (time.perf_counter() - began))
    return taken[_WARM_UP:]


def _write_reports(
    params: Params, workspace: Workspace, validation: Validation, contenders: Sequence[Contender], labels: Floats
) -> None:
    drawable = [c for c in contenders if c.scores is not None and np.isfinite(c.scores).all()]
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
            ("holdout", f"{validation.rows:,} rows, {labels.mean():.1%} positive"),
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
    return [(name, *(_number(values.get(name)) for values in columns)) for name in METRICS]  # type: ignore[misc]


def _metric_table(validation: Validation) -> Table:
    return Table(
        title="Metrics on the same holdout rows",
        columns=("metric", "challenger", "champion", "baseline"),
        rows=metric_rows(validation),
        note="log_loss and brier: lower is better. accuracy, precision, recall, f1: at each model's own threshold.",
    )


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
            f"| {gate.name} | {gate.status} | {gate.detail} |" for gate in failing_first(validation.verdict.gates)
        ]
    return "\n".join(lines)
