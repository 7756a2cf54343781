"""Take the model from raw data to production traffic: every step of the line, in order, on this machine."""

from pathlib import Path

from clearway.cli import DONE, STOPPED, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument(
        "--as-of", metavar="TIME", help="move time, for example 2013-10-01 (UTC); kept if the run ends well"
    )
    made.add_argument("--force-retrain", action="store_true", help="train even if nothing asks for it")
    made.add_argument("--trigger", default="local", help="who called, for the record (default: local)")
    made.add_argument("--no-ui", action="store_true", help="do not start MLflow's pages")
    arguments = made.parse_args()

    from rich.console import Console

    from clearway.as_of import moved
    from clearway.line import only_run, run_line
    from clearway.line_summary import print_summary
    from clearway.params import load_params
    from clearway.project_folder import prepare
    from clearway.ui import ensure_ui
    from clearway.workspace import Workspace

    workspace, console = Workspace(Path(arguments.project)), Console()
    load_params(workspace.params_file)  # nothing is touched for a project that is described wrongly
    prepare(workspace.root)
    with only_run(workspace), moved(workspace.params_file, arguments.as_of):
        params = load_params(workspace.params_file)
        done = run_line(params, workspace, console, force_retrain=arguments.force_retrain, trigger=arguments.trigger)
        ui = None if arguments.no_ui else ensure_ui(params, workspace)
    print_summary(done, params, workspace, console, ui)
    return STOPPED if done.outcome == "rolled back" else DONE


if __name__ == "__main__":
    run(main)
