"""Put a report on a pull request, as the one comment that each run updates. Needs no installed package."""

import os
from pathlib import Path

from clearway.cli import DONE, parser, run
from clearway.errors import UsageError


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("report", type=Path, metavar="FILE", help="Markdown, taken as text")
    options.add_argument("--number", type=int, required=True, metavar="N", help="of the pull request")
    options.add_argument("--repository", default=os.environ.get("GITHUB_REPOSITORY", ""), metavar="OWNER/NAME")
    arguments = options.parse_args()
    from clearway.sticky_comment import Comments

    if arguments.repository.count("/") != 1:
        raise UsageError(f"--repository {arguments.repository!r} must be OWNER/NAME, or GITHUB_REPOSITORY be set")
    token = os.environ.get("GITHUB_TOKEN", "")
    if not token:
        raise UsageError("GITHUB_TOKEN is not set: give the step the job's own token")
    if not arguments.report.is_file():
        raise UsageError(f"{arguments.report} is no file: the job that made the report did not hand it on")
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    text = arguments.report.read_text(encoding="utf-8", errors="replace")
    print(f"comment: {Comments(arguments.repository, arguments.number, token, api).put(text)}")
    return DONE


if __name__ == "__main__":
    run(main)
