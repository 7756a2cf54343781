"""Report what a pull request does to the model, beside main's champion: reports/change.md and the job's summary."""

import os

from clearway.cli import DONE, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--artifact", default="", metavar="ID", help="artifact of this run that holds all reports")
    arguments = options.parse_args()
    from clearway.change_report import read_change, render, warning
    from clearway.files import write_text
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace, environ = Workspace(arguments.project), os.environ
    change = read_change(load_params(workspace.params_file), workspace)
    server, repository = environ.get("GITHUB_SERVER_URL", "https://github.com"), environ.get("GITHUB_REPOSITORY", "")
    run_url = f"{server}/{repository}/actions/runs/{environ.get('GITHUB_RUN_ID', '')}" if repository else ""
    artifact = f"{run_url}/artifacts/{arguments.artifact}" if run_url and arguments.artifact.isdigit() else ""
    commit = environ.get("CLEARWAY_COMMIT", "") or environ.get("GITHUB_SHA", "")
    text = render(change, commit=commit, run_url=run_url, artifact_url=artifact)
    write_text(workspace.reports / "change.md", text)
    job_summary(text)
    if said := warning(change):
        print(f"::warning title=Model rejected::{' '.join(said.split())}")
    print(f"report: {workspace.reports / 'change.md'}")
    return DONE


if __name__ == "__main__":
    run(main)
