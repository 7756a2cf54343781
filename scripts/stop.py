"""Stop the servers of this project, and nothing else on this machine."""

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="all", metavar="NAME", help="environment of params.yaml (default: all)")
    arguments = options.parse_args()
    from clearway.local_target import stop
    from clearway.params import load_params
    from clearway.ui import stop_ui
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    for name in params.environments if arguments.env == "all" else [arguments.env]:
        if params.environment(name).target.kind != "local":
            print(f"stop: {name} is served elsewhere and left alone")
            continue
        stopped = stop(workspace, name)
        print(
            f"stop: {name} " + (f"stopped (pid {stopped.pid}, port {stopped.port})" if stopped else "was not running")
        )
    if arguments.env == "all" and stop_ui(workspace):
        print("stop: MLflow's pages stopped")
    return DONE


if __name__ == "__main__":
    run(main)
