"""What happened in an environment: verify its ledger, show it, or export it as JSON or CSV."""

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("verb", choices=("verify", "show", "export"))
    options.add_argument("--env", metavar="NAME", help="environment (default: production; verify: all)")
    options.add_argument("--last", type=int, metavar="N", help="show: the last N entries (default: all)")
    options.add_argument("--format", choices=("json", "csv"), default="json", help="export: default json")
    arguments = options.parse_args()
    from clearway.ledger import anchor_is_late, head_hash, read_ledger
    from clearway.ledger_view import export, show
    from clearway.params import load_params
    from clearway.routing import check_not_ahead, present_routing
    from clearway.targets import target_of
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    named = [arguments.env] if arguments.env else [params.production]
    for name in list(params.environments) if arguments.verb == "verify" and not arguments.env else named:
        target_of(params, workspace, name).pull()  # of a server elsewhere this folder has a copy
        folder = workspace.environment(name)
        table = present_routing(folder / "routing.json")  # before the ledger, which may grow meanwhile
        entries = read_ledger(folder, name)
        check_not_ahead(folder / "routing.json", table, entries)
        if arguments.verb == "show":
            print(show(entries, name, arguments.last))
        elif arguments.verb == "export":
            print(export(entries, arguments.format), end="")
        else:
            late = "; its last writer was killed, the next one heals it" if anchor_is_late(folder, name) else ""
            print(f"ledger: {name}: {len(entries)} entries verify, head {head_hash(entries)}{late}")
    return DONE


if __name__ == "__main__":
    run(main)
