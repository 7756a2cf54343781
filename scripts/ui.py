"""Open MLflow's pages on the runs and models of the project; they stay up until scripts/stop.py."""

from clearway.cli import DONE, STOPPED, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()

    from clearway.params import load_params
    from clearway.ui import ensure_ui, wait_until_up
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    url = ensure_ui(load_params(workspace.params_file), workspace)
    if url is None:
        print("ui: nothing is registered yet: run `make run` first")
        return STOPPED
    up = not url.startswith("http://127.0.0.1") or wait_until_up(url)
    print(f"ui: {url}" if up else f"ui: {url} did not come up; see {workspace.var / 'mlflow-ui.log'}")
    return DONE if up else STOPPED


if __name__ == "__main__":
    run(main)
