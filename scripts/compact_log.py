"""Turn the finished segments of an environment's prediction log into Parquet, and remove what is past its retention."""

from datetime import UTC, datetime

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument("--background", action="store_true", help="give way to everything else on this machine")
    arguments = options.parse_args()
    from clearway.log_retention import compact_environment, give_way
    from clearway.params import load_params
    from clearway.workspace import Workspace

    if arguments.background:
        give_way()
    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    report = compact_environment(params, workspace, arguments.env, datetime.now(UTC))
    print(f"compact log: {arguments.env}: {report.sentence}")
    return DONE


if __name__ == "__main__":
    run(main)
