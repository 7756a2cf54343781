"""Read every source as of params.as_of into data/raw, one Parquet file each, with snapshot.json."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.files import sha256_file
    from clearway.params import load_params
    from clearway.project import load_project
    from clearway.schema import flat_columns
    from clearway.snapshot import take_snapshot
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    snapshot = take_snapshot(params, workspace, load_project(params, flat_columns(params, workspace.root)))
    as_of = f" as of {snapshot.as_of:%Y-%m-%d}" if snapshot.as_of else ""
    digest = sha256_file(workspace.snapshot)[:8]
    print(f"ingest: {len(snapshot.tables)} tables, {snapshot.rows:,} rows{as_of} (sha256 {digest}…) → {workspace.raw}")
    return DONE


if __name__ == "__main__":
    run(main)
