"""Build the point-in-time feature tables: training, holdout and current, in data/features."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.features import build_features
    from clearway.params import load_params
    from clearway.project import load_project
    from clearway.schema import flat_columns
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    project = load_project(params, flat_columns(params, workspace.root))
    made = build_features(params, workspace, project)
    rows = ", ".join(f"{window} {count:,}" for window, count in made.rows.items())
    for warning in made.warnings:
        print(f"warning: {warning}")
    aside = f"; set aside: {made.set_aside:,}" if made.set_aside else ""
    print(f"features: {made.features} features; rows: {rows}{aside} → {made.folder}")
    return DONE


if __name__ == "__main__":
    run(main)
