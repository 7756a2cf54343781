"""Prove that served features are those recomputed offline as of their time; exit 1 if one differs or none can be."""

import sys

from clearway.cli import DONE, STOPPED, job_output, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", required=True, metavar="NAME", help="environment whose prediction log is read")
    options.add_argument("--digest", metavar="D", help="the version to be cleared (default: the canary, else stable)")
    options.add_argument("--rollout", action="store_true", help="only predictions since the current rollout began")
    which = options.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, metavar="N", help="only the newest N predictions (default: all)")
    which.add_argument("--since", metavar="T", help="only questions asked at T or later (2013-07-01T12:00:00Z)")
    arguments = options.parse_args()
    from rich.console import Console

    from clearway.params import load_params
    from clearway.skew_report import check_skew, parse_time, remarks, terminal_table, way_on
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    since = None if arguments.since is None else parse_time(arguments.since)
    wanted = {"last": arguments.last, "since": since, "digest": arguments.digest, "rollout": arguments.rollout}
    report = check_skew(params, workspace, arguments.env, **wanted)
    if report is None:
        job_output(skew="not_applicable")
        print("skew: nothing to look for: the project stores no features, the model sees what a request carries")
        return DONE
    console = Console()
    console.width = max(console.width, 140)
    if report.different:
        console.print(terminal_table(report))
    for remark in remarks(report):
        console.print(remark, highlight=False, markup=False)
    job_output(skew=report.verdict)
    job_summary(f"### Train-serve skew: {report.verdict.replace('_', ' ')}\n\n{report.sentence}")
    print(f"skew: {report.verdict.replace('_', ' ')}: {report.sentence} → {workspace.reports / 'skew.html'}")
    if report.verdict == "no_skew":
        return DONE
    print(
        f"error: {report.verdict.replace('_', ' ')}: {report.sentence.rstrip('.')}: {way_on(report)}", file=sys.stderr
    )
    return STOPPED


if __name__ == "__main__":
    run(main)
