"""Count which challengers were judged on this holdout before: each further one is held to a higher confidence."""

from datetime import UTC, datetime

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.holdout_uses import FOUND, count_uses
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    kind = load_params(workspace.params_file).target.kind
    uses = count_uses(workspace, at=datetime.now(UTC), kind=kind)
    print(f"uses: number {uses.place} on holdout {uses.holdout[:12]} → {workspace.build / FOUND}")
    return DONE


if __name__ == "__main__":
    run(main)
