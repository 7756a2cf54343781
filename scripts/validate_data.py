"""Judge data/raw against schema.yaml, or one file with --against; exit 1 when any check of severity error fails."""

from clearway.cli import DONE, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--against", metavar="FILE", help="judge this CSV or Parquet file instead, write no report")
    options.add_argument("--table", metavar="NAME", help="the table of schema.yaml that FILE must look like")
    arguments = options.parse_args()
    from clearway.params import load_params
    from clearway.validation import print_report, validate_file, validate_snapshot
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    if arguments.against:
        report = validate_file(arguments.against, arguments.table, params, workspace)
    else:
        report = validate_snapshot(params, workspace)
    print_report(report)
    job_summary(f"### Data validation {report.verdict}\n\n{report.sentence}")
    report.require_passed()
    return DONE


if __name__ == "__main__":
    run(main)
