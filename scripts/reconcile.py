"""Compare ledger, routing tables, servers and MLflow's alias: exit 0 if all agree, 5 if not; --repair makes them."""

from clearway.cli import DIFFERS, DONE, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", metavar="NAME", help="environment (default: all)")
    options.add_argument("--only", metavar="PART", help="ledger, bundles, routing, server or alias (default: all)")
    options.add_argument("--repair", action="store_true", help="make what differs say what the ledger says")
    arguments = options.parse_args()
    from clearway.params import load_params
    from clearway.reconciliation import examine, parts_of, repair
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    parts = parts_of(arguments.only)
    names = [arguments.env] if arguments.env else list(params.environments)
    found = [finding for name in names for finding in examine(params, workspace, name, parts)]
    if arguments.repair:
        for finding in found:
            if not finding.agrees:
                print(f"reconcile: {finding.environment} {finding.part}: repairing: {finding.sentence}", flush=True)
        for name in dict.fromkeys(finding.environment for finding in found if not finding.agrees):
            repair(params, workspace, name, parts)
        found = [finding for name in names for finding in examine(params, workspace, name, parts)]
    for finding in found:
        said = "agrees " if finding.agrees else "DIFFERS"
        print(f"reconcile: {finding.environment:12} {finding.part:8} {said} {finding.sentence}")
    differing = [f"- {one.environment} {one.part}: {one.sentence}" for one in found if not one.agrees]
    job_summary("\n".join([f"**reconcile** {len(differing)} differences", *differing]))
    return DIFFERS if differing else DONE


if __name__ == "__main__":
    run(main)
