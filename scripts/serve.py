"""Serve one environment over HTTP until stopped (SIGTERM or Ctrl-C): the versions its ledger and routing table name."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--env", required=True, metavar="NAME", help="environment of params.yaml to serve")
    arguments.add_argument(
        "--host", metavar="ADDRESS", help="listen there, not on environments.NAME.host (0.0.0.0 in a container)"
    )
    chosen = arguments.parse_args()
    from clearway.params import load_params
    from clearway.serving.server import serve
    from clearway.workspace import Workspace

    workspace = Workspace(chosen.project)
    serve(load_params(workspace.params_file), workspace, chosen.env, chosen.host)
    print(f"serve: {chosen.env} stopped, requests drained, log written")
    return DONE


if __name__ == "__main__":
    run(main)
