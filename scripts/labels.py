"""Join outcomes that have come to the predictions of an environment: monitoring and the canary read them."""

from datetime import UTC, datetime
from pathlib import Path

from clearway.cli import DONE, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    columns = "label, labelled_at, and id or entity and asked_at"
    options.add_argument("--file", type=Path, required=True, help=f"CSV, .parquet or .jsonl with {columns}")
    options.add_argument("--known-at", metavar="TIME", help="when all became known, for a file without labelled_at")
    arguments = options.parse_args()
    from clearway.files import write_json
    from clearway.labels import declared_labels, import_outcomes, read_outcomes
    from clearway.params import load_params
    from clearway.skew_report import parse_time
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    known_at = parse_time(arguments.known_at, "--known-at") if arguments.known_at else None
    declared = declared_labels(params, workspace.root)
    outcomes = read_outcomes(arguments.file, params, known_at, declared)
    report = import_outcomes(params, workspace, arguments.env, outcomes, datetime.now(UTC))
    write_json(workspace.reports / "labels.json", report.model_dump(mode="json"))
    job_summary(f"### Labels of {arguments.env}: {report.sentence}")
    print(f"labels: {arguments.env}: {report.sentence} → {workspace.reports / 'labels.json'}")
    return DONE


if __name__ == "__main__":
    run(main)
