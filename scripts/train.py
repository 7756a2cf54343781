"""Train the challenger and the simple baseline on the feature tables."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from rich.console import Console

    from clearway.params import load_params
    from clearway.progress import progress
    from clearway.resources import supervise
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    supervise(params.train.resources, workspace)
    from clearway.training import train  # scikit-learn: only in the process that trains

    with progress("train", Console(stderr=True)) as show:
        made = train(params, workspace, show)
    if searched := made.report.get("tuning"):
        print(
            f"train: search: {searched['metric']} {searched['best_value']:.5g} by trial {searched['best_trial']} of "
            f"{searched['finished']} ({searched['failed']} failed): {searched['arguments']}"
        )
        if searched["note"]:
            print(f"train: {searched['note']}")
    for role in ("challenger", "baseline"):
        for warning in made.report[role]["warnings"]:
            print(f"train: {role} warned: {warning}")
    print(
        f"train: challenger {made.digest[:12]} and baseline {made.baseline_digest[:12]} from {made.rows:,} rows × "
        f"{made.features} features in {made.seconds:.1f} s (peak {made.peak_memory_mb:,.0f} MB) → {workspace.model}"
    )
    return DONE


if __name__ == "__main__":
    run(main)
