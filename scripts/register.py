"""Register the packaged challenger in MLflow, under the alias challenger."""

from clearway.cli import DONE, job_summary, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.params import load_params
    from clearway.registry import register
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    made = register(load_params(workspace.params_file), workspace)
    if made is None:
        print("register: nothing to register, no challenger passed its gates")
    else:
        known = "" if made.created else ", known before"
        said = f"{made.model} version {made.version} is challenger ({made.digest[:12]}{known})"
        print(f"register: {said} → {made.uri}")
        job_summary(f"**registry** {said}")
    return DONE


if __name__ == "__main__":
    run(main)
