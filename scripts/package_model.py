"""Make a bundle of a challenger that passed its gates, and keep it under var/bundles by its digest."""

from clearway.cli import DONE, job_output, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.packaging import package
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    outcome = package(load_params(workspace.params_file), workspace)
    job_output(verdict=outcome.verdict, digest=outcome.digest or "", baseline_digest=outcome.baseline_digest or "")
    if outcome.digest is None:
        print(f"bundle: none, the challenger was {outcome.verdict}: {outcome.reason}")
    else:
        print(f"bundle: {(outcome.digest or '')[:12]} → {workspace.bundle}, kept in {workspace.bundles}")
    return DONE


if __name__ == "__main__":
    run(main)
