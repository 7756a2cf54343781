"""Measure drift against the champion's own reference; writes drift_result.txt with true or false."""

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from rich.console import Console

    from clearway.drift_report import check_drift, remarks, terminal_table
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    report = check_drift(load_params(workspace.params_file), workspace)
    console = Console()
    console.width = max(console.width, 110)
    if report.features:
        console.print(terminal_table(report))
    for remark in remarks(report):
        console.print(remark, highlight=False, markup=False)
    job_output(drift=str(report.drift).lower(), drift_verdict=report.verdict)
    job_summary(f"### Drift: {report.verdict.replace('_', ' ')}\n\n{report.sentence}")
    print(f"drift: {report.verdict.replace('_', ' ')}: {report.sentence} → {workspace.reports / 'drift.html'}")
    return DONE


if __name__ == "__main__":
    run(main)
