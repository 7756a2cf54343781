"""The table that ends a run of the line: what was decided and why, how good the model is, and where everything is."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clearway.files import read_json
from clearway.line import LineRun
from clearway.params import Params
from clearway.project_folder import HOME
from clearway.routing import read_routing
from clearway.workspace import Workspace

COLOURS = {
    "promoted": "green",
    "nothing to do": "green",
    "unchanged": "green",
    "rejected": "yellow",
    "held": "yellow",
    "rolled back": "red",
}


def print_summary(run: LineRun, params: Params, workspace: Workspace, console: Console, ui_url: str | None) -> None:
    """Print the summary of a finished run."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("outcome", f"[bold {COLOURS[run.outcome]}]{run.outcome}[/]: {escape(run.why)}")
    for name, value in (*_decision(workspace), *_drift(workspace), *_serving(params, workspace)):
        table.add_row(name, value)
    table.add_row("reports", escape(str(workspace.reports / "model_validation.html")))
    for name in ("data_validation.html", "drift.html", "canary.html", "skew.html"):
        if (workspace.reports / name).exists():
            table.add_row("", escape(str(workspace.reports / name)))
    elsewhere = "" if workspace.root.resolve() == HOME else f" PROJECT={workspace.root}"
    table.add_row("MLflow", escape(ui_url) if ui_url else f"make ui{elsewhere}")
    table.add_row("stop with", escape(f"make stop{elsewhere}"))
    console.print()
    console.print(table, highlight=False)
    if run.outcome not in ("nothing to do",):
        _print_metrics(workspace, console)
    if run.outcome in ("promoted", "held", "rolled back"):
        _print_canary(workspace, console)
    total = sum(step.seconds for step in run.steps)
    console.print(f"\n[dim]{len(run.steps)} steps in {total:.0f} s[/]", highlight=False)


def _decision(workspace: Workspace) -> list[tuple[str, str]]:
    decision = read_json(workspace.reports / "decision.json")
    return [("decision", escape(decision["sentence"]))]


def _drift(workspace: Workspace) -> list[tuple[str, str]]:
    drift = read_json(workspace.reports / "drift.json")
    return [("drift", f"{drift['verdict']}: {escape(drift['sentence'])}")]


def _serving(params: Params, workspace: Workspace) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name in params.environments:
        folder = workspace.environment(name)
        if not (folder / "routing.json").exists():
            continue
        table = read_routing(folder / "routing.json")
        share = f", canary {table.canary[:12]} at {table.canary_weight}%" if table.canary else " at 100%"
        where = "not serving"
        if (folder / "server.json").exists():
            server = read_json(folder / "server.json")
            where = f"http://{server['host']}:{server['port']}/predict"
        rows.append((name, f"{where}  model {table.stable[:12]}{share}"))
    return rows


def _print_metrics(workspace: Workspace, console: Console) -> None:
    report = read_json(workspace.reports / "model_validation.json")
    columns: dict[str, Any] = {k: v for k, v in report["metrics"].items() if v}
    table = Table(title="Holdout metrics", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("metric")
    digests = {name: str(report.get("digest" if name == "challenger" else f"{name}_digest") or "") for name in columns}
    for name in columns:
        table.add_column(f"{name}\n{digests[name][:12]}", justify="right")
    for metric in dict.fromkeys(name for values in columns.values() for name in values):  # a challenger may have none
        table.add_row(metric, *(_number(values.get(metric)) for values in columns.values()))
    console.print()
    console.print(table)


def _print_canary(workspace: Workspace, console: Console) -> None:
    report = read_json(workspace.reports / "canary.json")
    table = Table(title="Canary", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, justify in (("step", "right"), ("verdict", "left"), ("canary requests", "right"), ("why", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for step in report["steps"]:
        table.add_row(f"{step['weight']}%", step["verdict"], f"{step['n_canary']:,}", escape(step["sentence"]))
    console.print()
    console.print(table, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
