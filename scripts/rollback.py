"""End the open canary, or go back to the last good version: no training, no network."""

import sys

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument(
        "--to", metavar="DIGEST", help="a version that was stable here before (default: the last good)"
    )
    options.add_argument("--reason", default="asked for on the command line", help="why, for the ledger")
    options.add_argument("--actor", metavar="WHO", help="who, for the ledger (default: $GITHUB_ACTOR or the user)")
    arguments = options.parse_args()
    from clearway.deployment import default_actor, rollback
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    actor = arguments.actor or default_actor()
    outcome = rollback(
        *(params, workspace, arguments.env, arguments.to or None),
        actor=actor,
        reason=arguments.reason,
        progress=lambda said: print(f"rollback: {said}", flush=True),  # others are told afterwards
    )
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not outcome.changed:
        print(f"rollback: {outcome.sentence}")
    job_summary(f"### Rolled back in {arguments.env}\n\n{outcome.sentence}")
    job_output(stable=outcome.entry.stable if outcome.entry else "", changed=str(outcome.changed).lower())
    return DONE


if __name__ == "__main__":
    run(main)
