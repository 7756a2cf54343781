"""Lift the quarantine of a model, so that it may be deployed again."""

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument("--digest", required=True, metavar="HEX", help="the quarantined model")
    options.add_argument("--reason", required=True, help="why it is good after all, for the ledger")
    options.add_argument("--actor", metavar="WHO", help="who, for the ledger (default: $GITHUB_ACTOR or the user)")
    arguments = options.parse_args()
    from clearway.deployment import default_actor, release
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    actor = arguments.actor or default_actor()
    entry = release(params, workspace, arguments.env, arguments.digest, actor=actor, reason=arguments.reason)
    print(f"release: {arguments.digest[:12]} may be deployed to {arguments.env} again (entry {entry.sequence})")
    return DONE


if __name__ == "__main__":
    run(main)
