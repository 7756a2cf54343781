"""Judge data/raw against schema.yaml, or one file with --against; exit 1 when any check of severity error fails.

A reason in params.yaml, decision.override_veto, lets broken raw data pass, and says so.
"""

from clearway.cli import DONE, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--against", metavar="FILE", help="judge this CSV or Parquet file instead, write no report")
    options.add_argument("--table", metavar="NAME", help="the table of schema.yaml that FILE must look like")
    arguments = options.parse_args()
    from clearway.params import load_params
    from clearway.validation import validate_file, validate_snapshot
    from clearway.validation_report import print_report
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    if arguments.against:
        report, override = validate_file(arguments.against, arguments.table, params, workspace), None
    else:
        report, override = validate_snapshot(params, workspace), params.decision.override_veto
    print_report(report)
    job_summary(f"### Data validation {report.verdict}\n\n{report.sentence}")
    overridden = report.require_passed(override)
    if overridden:
        print(overridden)
        job_summary(overridden)
    return DONE


if __name__ == "__main__":
    run(main)
