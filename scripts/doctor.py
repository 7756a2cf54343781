"""Check the settings of the repository on GitHub, and say each one to change."""

import os

from clearway.cli import DONE, STOPPED, job_summary, parser, run
from clearway.errors import UsageError


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--repository", default=os.environ.get("GITHUB_REPOSITORY"), metavar="OWNER/NAME")
    options.add_argument(
        "--advise",
        action="store_true",
        help="exit 0 whatever is found: for the summary of a run that must not fail for it",
    )
    arguments = options.parse_args()
    if not arguments.repository or arguments.repository.count("/") != 1:
        raise UsageError(f"--repository {arguments.repository!r} must be OWNER/NAME, or GITHUB_REPOSITORY be set")
    from rich.console import Console

    from clearway.doctor import diagnose
    from clearway.doctor_report import markdown, terminal_table
    from clearway.github_settings import GitHub, read_settings
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace, console = Workspace(arguments.project), Console()
    params = load_params(workspace.params_file)
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    github = GitHub(arguments.repository, os.environ.get("GITHUB_TOKEN"), api)
    findings = diagnose(read_settings(github, workspace.root), params.environments, params.production)
    console.width = max(console.width, 110)
    address = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{arguments.repository}"
    console.print(terminal_table(findings, address))
    job_summary(markdown(findings, address))
    wrong = [finding for finding in findings if finding.status == "change"]
    print(f"doctor: {len(findings)} settings, {len(wrong)} to change")
    return STOPPED if wrong and not arguments.advise else DONE


if __name__ == "__main__":
    run(main)
