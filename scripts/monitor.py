"""Measure a live environment: performance, drift, errors, silence, and whether it serves what its ledger says."""

from datetime import UTC, datetime

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    arguments = made.parse_args()

    from rich.console import Console

    from clearway.monitor import monitor, terminal_table
    from clearway.monitoring import summary
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace, console = Workspace(arguments.project), Console()
    console.width = max(console.width, 110)
    report = monitor(load_params(workspace.params_file), workspace, arguments.env, datetime.now(UTC))
    console.print(terminal_table(report))
    job_output(alarms=",".join(report.alarms), retrain=str(report.retrain).lower())
    job_summary("\n".join([f"### Monitoring {summary(report)}", *(f"- {c.status}: {c.name}" for c in report.checks)]))
    print(f"monitor: {summary(report)} → {workspace.reports / 'monitoring.json'}")
    return DONE


if __name__ == "__main__":
    run(main)
