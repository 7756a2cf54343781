"""Tell people, at the addresses in $CLEARWAY_ALERT_URLS, of what they were not told yet. Every command does this."""

import os
from datetime import UTC, datetime

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument(
        "--after", type=int, metavar="N", help="where nobody was ever told: begin after entry N (default: the last)"
    )
    arguments = options.parse_args()
    from clearway.aftermath import URLS_VARIABLE
    from clearway.alerts import tell
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    urls = os.environ.get(URLS_VARIABLE, "")
    told = tell(params, workspace, arguments.env, urls, datetime.now(UTC), arguments.after)
    print(f"alert: told of {', '.join(f'entry {entry.sequence} ({entry.action})' for entry in told) or 'nothing new'}")
    return DONE


if __name__ == "__main__":
    run(main)
