"""Copy the champion, the model that production's ledger calls stable, to build/champion."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.champion import fetch_champion
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    champion = fetch_champion(load_params(workspace.params_file), workspace)
    as_of = f", as of {champion.as_of:%Y-%m-%d}" if champion.as_of else ""
    kind = "bootstrap" if champion.bootstrap else "champion"
    print(f"champion: {kind}: {champion.reason}{as_of} → {workspace.champion}")
    return DONE


if __name__ == "__main__":
    run(main)
