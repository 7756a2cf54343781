"""Bring what the decision remembers: the champion (stable in production's ledger), and what was decided before."""

import os

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument(
        "--kept",
        action="store_true",
        default=os.environ.get("CLEARWAY_CHAMPION") == "kept",
        help="take what var/ last saw of production and ask no server (default: whether $CLEARWAY_CHAMPION is kept)",
    )
    arguments = options.parse_args()
    from clearway.champion import fetch_champion, kept_champion
    from clearway.decision_history import write_past
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    champion = kept_champion(params, workspace) if arguments.kept else fetch_champion(params, workspace)
    past = write_past(params, workspace)
    as_of = f", as of {champion.as_of:%Y-%m-%d}" if champion.as_of else ""
    kind = "bootstrap" if champion.bootstrap else "champion"
    print(f"champion: {kind}: {champion.reason}{as_of} → {workspace.champion}; {past} earlier decisions")
    return DONE


if __name__ == "__main__":
    run(main)
