"""What a pull request does to the model: its gates and metrics beside main's champion, as Markdown.

:func:`render` is pure; :func:`read_change` gathers what a run of the line left behind, as far as the line got.

Job summaries and comments on GitHub show neither inline SVG nor ``data:`` images, and an image by address would have to
be public. They do draw Mermaid, whose ``xychart-beta`` has evenly spaced points: curves are read off at even steps. The
drawings themselves, with champion and baseline in them, are in the artifact that the report links.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clearway.champion import Champion, champion_bundle, read_champion
from clearway.cli import markdown_text
from clearway.comparison import Row, effective, flatten, side_by_side
from clearway.files import read_json
from clearway.metrics import metrics_of
from clearway.model_record import SHOWN, params_of
from clearway.model_report import number
from clearway.params import Kind, Params
from clearway.secretless import bared
from clearway.workspace import MODEL_REPORT, PLOTS, Workspace

SIGN = {"pass": "✅", "fail": "❌", "unknown": "⚠️"}
_RANK = {"fail": 0, "unknown": 1, "pass": 2}
_POINTS = 21
"""Of a curve."""
_IMPORTANCES = 10
_NAME = 32
"""Characters of a name in a plot."""


@dataclass(frozen=True)
class Change:
    """What a run of the line on a pull request left behind. What it did not reach is None, or empty."""

    kind: Kind = "binary"
    champion: Champion | None = None
    """Main's, as ``build/champion`` has it; a bootstrap where main has none."""
    validation: Mapping[str, Any] | None = None
    """``reports/model_validation.json``: challenger, champion and baseline on the same holdout rows."""
    delivered: Mapping[str, Any] | None = None
    """The champion's own, kept in its bundle: how it passed its gates when it was delivered."""
    params: Sequence[Row] = ()
    """Params that differ from those of the champion, defaults included; ``a`` is the champion's."""
    tables: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    """``reports/plots/*.csv`` by their names without the ending: rows by column."""


def read_change(params: Params, workspace: Workspace) -> Change:
    """What the line left in ``reports/`` and ``build/champion/``.

    Raises
    ------
    ClearwayError
        Something that is there is damaged.
    """
    report = workspace.reports / MODEL_REPORT
    validation = read_json(report) if report.is_file() else None
    if not (workspace.champion / "champion.json").is_file():
        return Change(params.target.kind, None, validation, tables=_tables(workspace))
    champion = read_champion(workspace)
    delivered: dict[str, Any] | None = None
    differing: tuple[Row, ...] = ()
    if champion.digest is not None:
        bundle = champion_bundle(champion, workspace)
        if MODEL_REPORT in bundle.evidence_manifest.files:
            delivered = read_json(bundle.evidence(MODEL_REPORT))
        differing = _differing(params_of(bundle), params)
    return Change(params.target.kind, champion, validation, delivered, differing, _tables(workspace))


def render(change: Change, *, commit: str, run_url: str, artifact_url: str) -> str:
    """The report as Markdown; pure.

    Parameters
    ----------
    change : Change
    commit : str
        What was judged.
    run_url, artifact_url : str
        Addresses of the run and of the artifact with all reports; empty where there is none.
    """
    validation = change.validation
    parts = [f"## Model of this pull request: {_verdict(validation)}", _said(validation), _compared(change)]
    if validation is not None:
        parts += [_metrics(change, validation), _gates(change, validation)]
    parts += [_params(change), *_plots(change)]
    links = [f"[{name}]({url})" for name, url in (("this run", run_url), ("all reports", artifact_url)) if url]
    parts.append(" · ".join([f"commit {commit[:SHOWN] or 'unknown'}", *links]))
    return "\n\n".join(part for part in parts if part) + "\n"


def warning(change: Change) -> str | None:
    """What a person should see although nothing failed: that this change makes no model to deploy; else None."""
    if change.validation is None or change.validation["verdict"] != "rejected":
        return None
    return f"The gates reject the model of this change: {change.validation['reason']}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], flush_right: Sequence[int] = ()) -> str:
    """A Markdown table whose columns stand below each other in plain text too.

    >>> print(table(("a", "b"), [("x", "1"), ("long", "22")], flush_right=[1]))
    | a    |  b |
    | ---- | -: |
    | x    |  1 |
    | long | 22 |
    """
    wide = [max(2, *(len(row[place]) for row in (columns, *rows))) for place in range(len(columns))]

    def written(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(wide[place]) if place in flush_right else cell.ljust(wide[place])
            for place, cell in enumerate(cells)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if place in flush_right else "-" * width for place, width in enumerate(wide)]
    return "\n".join([written(columns), written(rule), *map(written, rows)])


def _verdict(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "not judged ❌"
    mark = {"passed": SIGN["pass"], "rejected": SIGN["fail"]}.get(validation["verdict"], "")
    return f"{validation['verdict']} {mark}".rstrip()


def _said(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "The line stopped before the gates: the log of this job says where."
    return f"{markdown_text(validation['reason']).rstrip('.')}."


def _compared(change: Change) -> str:
    champion = change.champion
    if champion is None:
        return "**Compared with nothing**: the line stopped before it fetched main's champion."
    if champion.bootstrap or champion.digest is None:
        return f"**Compared with nothing**: main has no champion: {markdown_text(champion.reason)}."
    as_of = f", trained as of {champion.as_of:%Y-%m-%d}" if champion.as_of else ""
    where = markdown_text(champion.environment)
    return f"Compared with main's champion `{champion.digest[:SHOWN]}`, stable in {where}{as_of}."


def _metrics(change: Change, validation: Mapping[str, Any]) -> str:
    known = metrics_of(change.kind)
    ours, champion, baseline = (
        validation["metrics"].get(role) or {} for role in ("challenger", "champion", "baseline")
    )
    intervals = (validation.get("measured") or {}).get("intervals") or {}
    rows = []
    for name in [name for name in known if name in {**ours, **champion, **baseline}]:
        gain = ours[name] - champion[name] if name in ours and name in champion else None
        rows.append(
            (
                markdown_text(name) + ("" if known[name].higher_is_better else " ↓"),
                number(ours.get(name)),
                _interval(intervals.get(name)),
                number(champion.get(name)),
                "–" if gain is None else f"{gain:+.4f}",
                "" if gain is None else _direction(gain * known[name].sign),
                number(baseline.get(name)),
            )
        )
    if not rows:
        return ""
    columns = ("metric", "this change", "interval", "champion", "difference", "", "baseline")
    note = f"On the same {validation['rows']:,} holdout rows. ↓: lower is better. Whether a difference is more than "
    note += "chance is for the gates to say."
    return f"### Metrics\n\n{table(columns, rows, flush_right=(1, 2, 3, 4, 6))}\n\n{note}"


def _direction(gain: float) -> str:
    return "better" if gain > 0 else "worse" if gain < 0 else "same"


def _gates(change: Change, validation: Mapping[str, Any]) -> str:
    gates = sorted(validation["gates"], key=lambda gate: _RANK[gate["status"]])
    before = {gate["name"]: gate["status"] for gate in (change.delivered or {}).get("gates", [])}
    columns = ["gate", "", "estimate", "interval", "needed", "detail"]
    columns += ["champion, when delivered"] if before else []

    def rows(of: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        return [
            [
                markdown_text(gate["name"]),
                f"{SIGN[gate['status']]} {gate['status']}",
                number(gate.get("estimate")),
                _interval(gate),
                "–" if gate.get("threshold") is None else f"{gate['threshold']:g}",
                markdown_text(gate["detail"]),
                *([before.get(gate["name"], "–")] if before else []),
            ]
            for gate in of
        ]

    open_ = [gate for gate in gates if gate["status"] != "pass"]
    passed = [gate for gate in gates if gate["status"] == "pass"]
    parts = [f"### Gates: {len(passed)} of {len(gates)} passed"] if gates else []
    if open_:
        parts.append(table(columns, rows(open_), flush_right=(2, 3, 4)))
    if passed:
        parts.append(_folded(f"{len(passed)} that passed", table(columns, rows(passed), flush_right=(2, 3, 4))))
    return "\n\n".join(parts)


def _params(change: Change) -> str:
    if change.champion is None or change.champion.digest is None:
        return ""
    if not change.params:
        return "### Params\n\nThe same as the champion's."
    rows = [(markdown_text(row.key), markdown_text(str(row.a)), markdown_text(str(row.b))) for row in change.params]
    return f"### Params that differ from the champion's\n\n{table(('key', 'champion', 'this change'), rows)}"


def _plots(change: Change) -> list[str]:
    made = []
    if curve := _numbers(change.tables.get("roc", ()), "false_positive_rate", "true_positive_rate"):
        steps = np.linspace(0, 1, _POINTS)
        # the highest of the points that stand above each other; then read off between them
        highest = {x: max(y for other, y in curve if other == x) for x, _ in curve}
        read = np.interp(steps, sorted(highest), [highest[x] for x in sorted(highest)])
        lines = [("bar", read.tolist()), ("line", steps.tolist())]
        made.append(_chart("ROC on the holdout", '"false positive rate" 0 --> 1', "true positive rate", (0, 1), lines))
        made.append("Bars: this change. Line: chance.")
    if bins := _numbers(change.tables.get("calibration", ()), "mean_score", "share_positive"):
        names = ", ".join(f'"{place}: {x:.2f}"' for place, (x, _) in enumerate(bins, 1))  # equal names are one place
        lines = [("bar", [y for _, y in bins]), ("line", [x for x, _ in bins])]
        top = max(0.01, *(max(pair) for pair in bins))
        made.append(_chart("Calibration on the holdout", f'"mean score" [{names}]', "share of yes", (0, top), lines))
        made.append("Bars: how often the answer was yes. Line: what the scores said.")
    found = change.tables.get("importances", ())[:_IMPORTANCES]
    if found:
        names = ", ".join(f'"{place}: {_plain(row["feature"])}"' for place, row in enumerate(found, 1))
        values = [float(row["importance"]) for row in found]
        ends = (min(0.0, *values), max(1e-6, *values))
        made.append(_chart("Permutation importance", f"[{names}]", "loss without it", ends, [("bar", values)], True))
    return [_folded("Plots", "\n\n".join(made), " open")] if made else []


def _chart(
    title: str,
    x_axis: str,
    y_name: str,
    ends: tuple[float, float],
    series: Sequence[tuple[str, Sequence[float]]],
    horizontal: bool = False,
) -> str:
    head = "xychart-beta horizontal" if horizontal else "xychart-beta"
    drawn = [f"    {kind} [{', '.join(f'{value:.4f}' for value in values)}]" for kind, values in series]
    axes = [f"    x-axis {x_axis}", f'    y-axis "{y_name}" {ends[0]:.6f} --> {ends[1]:.6f}']
    return "\n".join(["```mermaid", head, f'    title "{title}"', *axes, *drawn, "```"])


def _plain(name: str) -> str:
    """A name that cannot end a quotation, a line or a fence."""
    return re.sub(r"[^\w .,:=()-]", "?", name)[:_NAME]


def _folded(title: str, content: str, state: str = "") -> str:
    return f"<details{state}><summary>{title}</summary>\n\n{content}\n\n</details>"


def _interval(of: Mapping[str, Any] | None) -> str:
    lower, upper = (None, None) if of is None else (of.get("lower"), of.get("upper"))
    return "–" if lower is None or upper is None else f"{number(lower)} to {number(upper)}"


def _numbers(rows: Sequence[Mapping[str, str]], x: str, y: str) -> list[tuple[float, float]]:
    return [(float(row[x]), float(row[y])) for row in rows]


def _tables(workspace: Workspace) -> dict[str, list[dict[str, str]]]:
    found = {}
    for path in sorted((workspace.reports / PLOTS).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            found[path.stem] = list(csv.DictReader(stream))
    return found


def _differing(theirs: Mapping[str, Any], ours: Params) -> tuple[Row, ...]:
    """Params of the champion that this change has otherwise; ``as_of`` stands with the data."""
    mine = bared(ours.model_dump(mode="json", by_alias=True))
    before = effective(bared(theirs)) or bared(theirs)
    sides = (flatten({key: value for key, value in side.items() if key != "as_of"}) for side in (before, mine))
    return tuple(row for row in side_by_side(*sides) if row.differs)
