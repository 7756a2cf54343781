"""Judge the trained challenger on the holdout: floors, and comparisons with champion and baseline."""

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.model_report import show, summary
    from clearway.model_validation import validate
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    validation = validate(load_params(workspace.params_file), workspace)
    show(validation)
    job_output(verdict=validation.verdict.verdict, digest=validation.digest)
    job_summary(summary(validation))
    print(f"gates: challenger {validation.digest} → {workspace.reports / 'model_validation.html'}")
    print(f"gates: {validation.verdict.verdict}: {validation.verdict.reason}")
    return DONE


if __name__ == "__main__":
    run(main)
