"""Build the point-in-time feature tables in data/features; for stored features, fill the online store to as_of too."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.features import build_features, summary_of
    from clearway.params import load_params
    from clearway.project import StoredProject, load_project
    from clearway.schema import flat_columns
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    project = load_project(params, flat_columns(params, workspace.root))
    made = build_features(params, workspace, project)
    for warning in made.warnings:
        print(f"warning: {warning}")
    if isinstance(project, StoredProject) and made.as_of is not None:
        from clearway.feature_store.materialise import fill_online

        filled = fill_online(params, workspace, project, made.as_of)
        print(f"views: {summary_of(made.views)}")
        how = "anew" if filled.full else "onwards"
        print(f"online store: {sum(filled.rows.values()):,} entities filled {how} to {filled.as_of.isoformat()}")
    rows = ", ".join(f"{window} {count:,}" for window, count in made.rows.items())
    aside = f"; set aside: {made.set_aside:,}" if made.set_aside else ""
    print(f"features: {made.features} features; rows: {rows}{aside} → {made.folder}")
    return DONE


if __name__ == "__main__":
    run(main)
