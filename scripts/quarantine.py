"""Bar a model that is not live from an environment."""

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument("--digest", required=True, metavar="HEX", help="the model")
    options.add_argument("--reason", required=True, help="why, for the ledger")
    options.add_argument("--actor", metavar="WHO", help="who, for the ledger (default: $GITHUB_ACTOR or the user)")
    arguments = options.parse_args()
    from clearway.deployment import default_actor, quarantine
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    actor = arguments.actor or default_actor()
    entry = quarantine(params, workspace, arguments.env, arguments.digest, actor=actor, reason=arguments.reason)
    print(f"quarantine: {arguments.digest[:12]} may not be deployed to {arguments.env} (entry {entry.sequence})")
    return DONE


if __name__ == "__main__":
    run(main)
