"""Gathers what a live environment logged, serves and promised, and writes ``reports/monitoring.json``."""

from datetime import datetime

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clearway.acceptance import accept_raw
from clearway.bundle import Bundle, verify
from clearway.cli import job_output, job_summary
from clearway.columns import LABEL, ROW_ID
from clearway.drift_reference import reference_of
from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.labels import join_labels, stored_labels
from clearway.ledger import head, read_ledger
from clearway.metrics import metric
from clearway.model import load_model
from clearway.monitoring import (
    Check,
    Expected,
    MonitoringReport,
    hidden_features,
    judge_errors,
    judge_features,
    judge_performance,
    judge_scores,
    judge_silence,
    judge_staleness,
    recent,
    reconcile,
    served_features,
    summary,
    traffic,
)
from clearway.params import Params
from clearway.prediction_log import read_log
from clearway.project import load_project
from clearway.routing import RoutingTable, read_routing
from clearway.schema import flat_columns
from clearway.snapshot import read_tables_at
from clearway.target import class_names
from clearway.targets import target_of
from clearway.trust import trust_of
from clearway.workspace import Workspace

LOGGED = ("id", "version", "role", "asked_at", "served_at", "status", "score", "features", "hidden", "probabilities")


def monitor(params: Params, workspace: Workspace, environment: str, now: datetime) -> MonitoringReport:
    """Measure one environment as of now.

    Parameters
    ----------
    params : Params
        Labels are those known at ``params.as_of``.
    workspace : Workspace
    environment : str
    now : datetime
        Wall time, UTC; only the silence of the log is measured by it.

    Raises
    ------
    ClearwayError
        It could not be measured: the ledger or the stable bundle is missing or damaged, or the source is unreadable.
    UsageError
        There is no such environment.
    """
    target = target_of(params, workspace, environment)
    target.pull()
    folder = workspace.environment(environment)
    entry = head(read_ledger(folder, environment))
    if entry is None:
        raise ClearwayError(
            f"nothing was ever deployed to {environment}: there is nothing to monitor (scripts/deploy.py)"
        )
    target.fetch(entry.stable)
    bundle = verify(workspace.bundles / entry.stable, entry.stable)
    target.pull_log()
    log = traffic(read_log(folder / "predictions", columns=LOGGED))
    window = recent(log, params.split.current_days)
    past = reference_of(bundle)
    schema = load_model(bundle.path, bundle.digest, trust_of(params, workspace)).schema
    served, hidden = served_features(window, schema), hidden_features(window, schema)
    features, drift = judge_features(past, served, schema, params.drift, params.seed, hidden)
    server, answer = target.find(), target.describe()
    last = None if log.empty else log["served_at"].max().to_pydatetime()
    report = MonitoringReport(
        environment=environment,
        as_of=params.time(),
        measured_at=now,
        stable=entry.stable,
        canary=entry.canary,
        revision=entry.sequence,
        checks=(
            _performance(params, workspace, environment, bundle, log),
            features,
            judge_scores(past, window[window["version"] == entry.stable], params.drift, params.seed),
            judge_errors(log),
            judge_silence(last, now, params.monitoring.max_silence_hours),
            judge_staleness(bundle.lineage().trained_until, params.time(), params.decision.freshness),
            *reconcile(entry, _routing(workspace, environment), server is not None, answer),
        ),
        drift=drift,
    )
    write_json(workspace.reports / "monitoring.json", {**report.model_dump(mode="json"), "alarms": report.alarms})
    return report


def publish(report: MonitoringReport, workspace: Workspace) -> None:
    """Show a report on the terminal, and in the outputs and the summary of a job."""
    console = Console()
    console.width = max(console.width, 110)
    console.print(terminal_table(report))
    job_output(alarms=",".join(report.alarms), retrain=str(report.retrain).lower())
    job_summary("\n".join([f"### Monitoring {summary(report)}", *(f"- {c.status}: {c.name}" for c in report.checks)]))
    print(f"monitor: {summary(report)} → {workspace.reports / 'monitoring.json'}")


def terminal_table(report: MonitoringReport) -> Table:
    """The checks as a table for the terminal."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "status", "what was measured"):
        table.add_column(column, no_wrap=column != "what was measured")
    colours = {"pass": "green", "alarm": "red", "unknown": "dim"}
    for check in report.checks:
        table.add_row(check.name, check.status, escape(check.sentence), style=colours[check.status])
    return table


def _performance(params: Params, workspace: Workspace, environment: str, bundle: Bundle, log: pd.DataFrame) -> Check:
    """The stable model's predictions whose labels are known at ``as_of``, by the project's tables or by import."""
    limits = params.decision.performance
    model = load_model(bundle.path, bundle.digest, trust_of(params, workspace))
    if model.target.kind != params.target.kind:
        said = f"the stable model answers {model.target.kind}, but params.yaml: target.kind = {params.target.kind}"
        return Check(name="performance", status="unknown", sentence=f"{said}: what it is worth cannot be measured")
    wanted = metric(limits.metric, "decision.performance.metric", model.target.kind)
    value = bundle.lineage().metrics.get(wanted.name)
    expected = Expected(metric=wanted, value=value, threshold=model.threshold, target=model.target)
    project = load_project(params, flat_columns(params, workspace.root))
    tables = read_tables_at(params, workspace, project, params.time())
    questions = project.questions(accept_raw(tables, params, workspace, params.time()))
    if model.target.classes:
        questions = questions.assign(**{LABEL: class_names(questions[LABEL])})
    # what the project's own tables say comes first
    imported = stored_labels(workspace, environment, params.time())
    if len(imported):
        known = questions.loc[questions[LABEL].notna(), [ROW_ID, LABEL]]
        questions = pd.concat([known, imported[[ROW_ID, LABEL]]], ignore_index=True)
    stable = log[(log["version"] == bundle.digest) & (log["status"] == 200)]
    # The window ends at the last answer that is known, which may lie far behind the last prediction.
    labelled = recent(join_labels(stable, questions), params.split.current_days)
    return judge_performance(labelled, expected, limits, params.seed)


def _routing(workspace: Workspace, environment: str) -> RoutingTable | None:
    try:
        return read_routing(workspace.environment(environment) / "routing.json")
    except ClearwayError:
        return None
