"""Compare a shadow with the version whose traffic it copies: exit 0 pass, 3 hold, 1 fail."""

import sys

from clearway.cli import DONE, HELD, STOPPED, job_output, job_summary, parser, run

EXIT = {"pass": DONE, "hold": HELD, "fail": STOPPED}


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument("--digest", metavar="HEX", help="which shadow, also one that ended (default: the open one)")
    arguments = options.parse_args()
    from clearway.params import load_params
    from clearway.shadow import compare_shadow, summary_text, write_report
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    report = compare_shadow(load_params(workspace.params_file), workspace, arguments.env, arguments.digest)
    write_report(report, workspace)
    print(summary_text(report))
    job_output(shadow=report.verdict, digest=report.digest)
    job_summary(f"### Shadow in {report.environment}: {report.verdict}\n\n{report.sentence}")
    if report.verdict == "fail":
        print(f"error: the shadow {report.digest[:12]} fails: {report.sentence}", file=sys.stderr)
    return EXIT[report.verdict]


if __name__ == "__main__":
    run(main)
