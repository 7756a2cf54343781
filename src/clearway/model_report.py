"""A challenger's verdict for people: the HTML report with its plots, the terminal's tables, the job's summary."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from clearway.calibration_gate import described
from clearway.charts import range_bar, span_of
from clearway.cli import markdown_cell
from clearway.files import atomic_directory, write_json, write_text
from clearway.gates import Gate
from clearway.measurements import Measurements, Part
from clearway.metrics import metrics_of
from clearway.model_drawings import ROLES, drawings, tables
from clearway.paired import Interval
from clearway.params import Kind, Params
from clearway.reporting import Block, Drawings, Page, Table, write_page
from clearway.svg import standalone
from clearway.workspace import DRAWINGS, MODEL_PAGE, MODEL_REPORT, PLOTS, Workspace

if TYPE_CHECKING:
    from rich.console import Console

    from clearway.model_validation import Contender, Validation

ANSWERS = ("no", "yes")
"""What a binary model answers."""
_NARROW, _TINY = 76, 48
"""Columns of a terminal below which intervals, and then all numbers, are left out of the table of gates."""
_PIPE_WIDTH = 110
"""Columns of a table that no terminal shows: a file, a pipe, the log of a job."""


def write_reports(
    params: Params,
    workspace: Workspace,
    validation: "Validation",
    contenders: Sequence["Contender"],
    labels: NDArray[Any],
    kind: Kind = "binary",
    classes: Sequence[str] = ANSWERS,
) -> None:
    """Write ``reports/model_validation.json`` and ``.html``, ``metrics.json``, ``plots/*.csv`` and ``drawings/*.svg``.

    Parameters
    ----------
    params : Params
    workspace : Workspace
    validation : Validation
    contenders : sequence of Contender
        The challenger among them.
    labels : array of shape (rows,)
        The holdout's, as :func:`clearway.model_drawings.drawings` takes them.
    kind : "binary", "multiclass" or "regression"
    classes : sequence of str
        Names of the answers, by position.
    """
    scores = {c.role: c.scores for c in contenders}
    thresholds = {c.role: c.threshold for c in contenders}
    found = validation.measured.importances
    drawn = drawings(
        kind,
        labels,
        scores,
        found,
        metric=validation.measured.metric,
        thresholds=thresholds,
        classes=classes,
        seed=params.seed,
    )
    ours = scores["challenger"]
    for name, content in tables(kind, labels, ours, found, threshold=thresholds["challenger"], classes=classes).items():
        write_text(workspace.reports / PLOTS / name, content)
    with atomic_directory(workspace.reports / DRAWINGS) as folder:
        for name, drawing in drawn.items():
            (folder / f"{name}.svg").write_text(standalone(drawing.svg), encoding="utf-8")
    write_json(workspace.reports / "metrics.json", validation.metrics["challenger"])
    positive = f", {labels.mean():.1%} positive" if kind == "binary" and len(labels) else ""
    blocks: list[Block] = [gate_table(validation.verdict.gates), metric_table(validation)]
    if drawn:
        blocks.append(
            Drawings("Plots", list(drawn.values()), "All on the holdout: rows that no model has learned from.")
        )
    if validation.measured.parts:
        blocks.append(part_table(validation.measured))
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
            ("holdout", f"{validation.rows:,} rows{positive}"),
            *([("served by", f"scikit-learn, slower than ONNX: {validation.no_onnx}")] if validation.no_onnx else []),
            *([] if validation.calibration is None else [("calibration", described(validation.calibration))]),
        ],
        blocks=blocks,
    )
    write_page(workspace.reports / MODEL_PAGE, page)
    write_json(workspace.reports / MODEL_REPORT, validation.document())


def failing_first(gates: Sequence[Gate]) -> list[Gate]:
    """Failed gates, then the uncertain, then the passed; in each the order of judgement."""
    rank = {"fail": 0, "unknown": 1, "pass": 2}
    return sorted(gates, key=lambda gate: rank[gate.status])


def gate_table(gates: Sequence[Gate]) -> Table:
    """Every gate with its interval drawn against what was needed, the failed first."""
    ordered = failing_first(gates)
    slices = span_of([value for gate in gates if _is_slice(gate) for value in _numbers(gate)])
    return Table(
        title="Gates",
        columns=("gate", "status", "estimate and interval", "needed", "rows"),
        rows=[
            (
                Markup('<details class="detail"{}><summary>{}</summary>{}</details>').format(
                    Markup("") if gate.status == "pass" else Markup(" open"), gate.name, gate.detail
                ),
                gate.status,
                Markup("{} {} {}").format(
                    _drawn(gate, slices if _is_slice(gate) else span_of(_numbers(gate))),
                    number(gate.estimate),
                    _interval(gate.lower, gate.upper),
                ),
                "–" if gate.threshold is None else f"{gate.threshold:g}",
                "" if gate.n is None else f"{gate.n:,}",
            )
            for gate in ordered
        ],
        status=[gate.status for gate in ordered],
        note="Drawn: the estimate, its interval, and, dashed, what was needed. Each gate has a scale of its own, the "
        "slices one for all of them. A gate's name opens what was compared."
        if gates
        else "The challenger is the champion, so no gate was judged.",
    )


def metric_rows(validation: "Validation") -> list[tuple[str, ...]]:
    """Each metric of the holdout: challenger, its interval, champion, baseline, and the challenger's in training."""
    columns = [validation.metrics[role] or {} for role in ROLES]
    trained = validation.measured.training.get("challenger", {})
    known = metrics_of(validation.kind)
    names = [name for name in known if any(name in values for values in columns)] or list(known)
    rows: list[tuple[str, ...]] = []
    for name in names:
        ours, champion, baseline = (number(values.get(name)) for values in columns)
        found = validation.measured.intervals.get(name)
        bounds = "–" if found is None else _interval(found.lower, found.upper) or "–"
        rows.append((name, ours, bounds, champion, baseline, number(trained.get(name))))
    return rows


_METRIC_COLUMNS = ("metric", "challenger", "interval", "champion", "baseline", "in training")


def metric_table(validation: "Validation") -> Table:
    """The metrics of every model on the same rows."""
    losses = ", ".join(name for name, each in metrics_of(validation.kind).items() if not each.higher_is_better)
    own = "What needs an answer is at each model's own threshold. " if validation.kind == "binary" else ""
    return Table(
        title="Metrics on the same holdout rows",
        columns=_METRIC_COLUMNS,
        rows=metric_rows(validation),
        note=f"{losses}: lower is better. {own}Interval and training are the challenger's; each bound is one-sided, of "
        f"{validation.measured.confidence:g}.",
    )


def part_table(measured: Measurements) -> Table:
    """The compared metric in each part of the holdout, with the challenger's interval drawn on one scale."""
    name = measured.metric
    whole = measured.intervals.get(name)
    line = None if whole is None else whole.estimate
    values = [value for part in measured.parts for value in _part_numbers(part, name)]
    span = span_of([*values, line])
    rows = []
    for part in measured.parts:
        ours, champion, baseline = (part.metrics.get(role, {}).get(name) for role in ROLES)
        picture: str = ""
        if ours is not None:
            lower, upper = (None, None) if part.interval is None else (part.interval.lower, part.interval.upper)
            picture = range_bar(ours, lower, upper, line, span=span, status="plain", other=champion)
        bounds = "" if part.interval is None else _interval(part.interval.lower, part.interval.upper)
        ours_said = Markup("{} {} {}").format(picture, number(ours), bounds)
        rows.append((part.column, part.value, f"{part.rows:,}", ours_said, number(champion), number(baseline)))
    drawn = f"Drawn, all on one scale from {span[0]:.3g} to {span[1]:.3g}: the challenger with its interval"
    drawn += ", the champion as a ring" if any("champion" in part.metrics for part in measured.parts) else ""
    left = f" {measured.left_out:,} smaller parts are left out." if measured.left_out else ""
    return Table(
        title=f"{name} by part of the holdout",
        columns=("column", "value", "rows", "challenger and interval", "champion", "baseline"),
        rows=rows,
        note=f"{drawn}; dashed, the whole holdout. Reported, not judged: the gates above compare with the champion "
        f"and correct for their number.{left}",
        folded=len(rows) > 40,
    )


def number(value: float | None) -> str:
    """A number for a table: four digits after the point, fewer of a large one, two that count of a tiny one."""
    if value is None or not np.isfinite(value):
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:.2g}" if size < 5e-5 else f"{value:.4f}" if size < 10 else f"{value:,.1f}"


def show(validation: "Validation", console: "Console | None" = None) -> None:
    """Print the verdict's gates and metrics as tables, and why what did not pass did not."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    if console is None:
        wide = None if Console().is_terminal or "COLUMNS" in os.environ else _PIPE_WIDTH
        console = Console(width=wide)
    width = console.width
    gates = failing_first(validation.verdict.gates)
    if gates:
        grid = Grid(title="Gates", title_justify="left")
        grid.add_column("gate", overflow="fold", min_width=12)
        grid.add_column("status", no_wrap=True)
        columns = _gate_columns(gates, width)
        for name, _ in columns:
            grid.add_column(name, justify="right", no_wrap=True)
        colours = {"pass": "green", "fail": "bold red", "unknown": "yellow"}
        for place, gate in enumerate(gates):
            mark = f"[{colours[gate.status]}]{gate.status}[/]"
            grid.add_row(escape(gate.name), mark, *(escape(cells[place]) for _, cells in columns))
        console.print(grid, highlight=False)
        for gate in gates:
            if gate.status != "pass":
                console.print(
                    f"[{colours[gate.status]}]{gate.status}[/] [bold]{escape(gate.name)}[/]: {escape(gate.detail)}",
                    highlight=False,
                )
    rows = metric_rows(validation)
    kept = range(6) if width >= _NARROW else (0, 1, 3, 4)
    metrics = Grid(title="Holdout metrics", title_justify="left")
    for place in kept:
        metrics.add_column(_METRIC_COLUMNS[place], justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        metrics.add_row(*(escape(row[place]) for place in kept))
    console.print(metrics, highlight=False)


def summary(validation: "Validation") -> str:
    """The verdict and its gates as Markdown, for a job summary."""
    lines = [f"### Model {validation.verdict.verdict}", "", validation.verdict.reason, ""]
    if validation.verdict.gates:
        lines += ["| gate | status | detail |", "| --- | --- | --- |"]
        lines += [
            f"| {markdown_cell(gate.name)} | {gate.status} | {markdown_cell(gate.detail)} |"
            for gate in failing_first(validation.verdict.gates)
        ]
    return "\n".join(lines)


def _gate_columns(gates: Sequence[Gate], width: int) -> list[tuple[str, list[str]]]:
    """What a terminal of that width shows of each gate's numbers, decimal points below each other."""
    if width < _TINY:
        return []
    columns = [("estimate", _aligned([gate.estimate for gate in gates], number))]
    if width >= _NARROW:
        bounds = zip(
            _aligned([g.lower for g in gates], number), _aligned([g.upper for g in gates], number), strict=True
        )
        cells = ["" if g.lower is None else f"[{a}, {b}]" for g, (a, b) in zip(gates, bounds, strict=True)]
        columns.append(("interval", cells))
    columns.append(("needed", _aligned([gate.threshold for gate in gates], "{:g}".format)))
    if width >= _NARROW + 20:
        columns.append(("rows", ["" if gate.n is None else f"{gate.n:,}" for gate in gates]))
    return columns


def _aligned(values: Sequence[float | None], write: Callable[[float], str]) -> list[str]:
    """Numbers whose points stand below each other where they are set flush right; empty where there is none."""
    written = ["" if value is None or not np.isfinite(value) else write(value) for value in values]
    plain = [one for one in written if one and "e" not in one]
    after = max((len(one.partition(".")[2]) for one in plain), default=0)
    room = after + 1 if after else 0
    made = []
    for one in written:
        whole, point, digits = one.partition(".")
        made.append(one if not one or "e" in one else whole + (point + digits).ljust(room))
    wide = max((len(one) for one in made), default=0)
    return [one.rjust(wide) if one else "" for one in made]


def _is_slice(gate: Gate) -> bool:
    return gate.name.startswith("slice_") and gate.estimate is not None


def _numbers(gate: Gate) -> tuple[float | None, ...]:
    return gate.estimate, gate.lower, gate.upper, gate.threshold


def _drawn(gate: Gate, span: tuple[float, float]) -> str:
    if gate.estimate is None or not np.isfinite(gate.estimate) or gate.threshold is None:
        return ""
    return range_bar(gate.estimate, gate.lower, gate.upper, gate.threshold, span=span, status=gate.status)


def _part_numbers(part: Part, metric: str) -> list[float | None]:
    found: Mapping[str, float] = part.metrics.get("challenger", {})
    interval = part.interval or Interval(float("nan"), None, None)
    return [found.get(metric), part.metrics.get("champion", {}).get(metric), interval.lower, interval.upper]


def _interval(lower: float | None, upper: float | None) -> str:
    return "" if lower is None or upper is None else f"[{number(lower)},\u00a0{number(upper)}]"
