"""Draft a schema from data/raw, or from one file with --from, for review. It is never used until you rename it."""

from pathlib import Path

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--from", dest="file", metavar="FILE", help="draft from this CSV or Parquet file instead")
    options.add_argument("--table", metavar="NAME", help="the name of FILE's table (default: the file's own)")
    options.add_argument("--output", metavar="FILE", type=Path, help="default: schema.draft.yaml in the project folder")
    arguments = options.parse_args()
    from clearway.params import load_params
    from clearway.schema_inference import DRAFT, draft_file, draft_snapshot
    from clearway.validation_report import print_report
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    output = arguments.output or workspace.root / DRAFT
    if arguments.file:
        params = load_params(workspace.params_file) if workspace.params_file.exists() else None
        table = arguments.table or Path(arguments.file).stem
        report = draft_file(arguments.file, table, params, workspace, output)
    else:
        report = draft_snapshot(load_params(workspace.params_file), workspace, output)
    print_report(report)
    print(f"infer_schema: {output}: review every line, then rename it to schema.yaml")
    return DONE


if __name__ == "__main__":
    run(main)
