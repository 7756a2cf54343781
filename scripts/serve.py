"""Serve one environment over HTTP until stopped (SIGTERM or Ctrl-C): the versions its ledger and routing table name."""

from pathlib import Path

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--env", required=True, metavar="NAME", help="environment of params.yaml to serve")
    arguments.add_argument(
        "--host", metavar="ADDRESS", help="listen there, not on environments.NAME.host (0.0.0.0 in a container)"
    )
    arguments.add_argument("--bundle", type=Path, metavar="FOLDER", help="serve this bundle alone (KServe's pods do)")
    arguments.add_argument("--digest", metavar="HEX", help="with --bundle: what it must be")
    chosen = arguments.parse_args()
    if (chosen.bundle is None) != (chosen.digest is None):
        arguments.error("--bundle and --digest belong together")
    from clearway.params import load_params
    from clearway.serving.server import serve
    from clearway.workspace import Workspace

    workspace = Workspace(chosen.project)
    params = load_params(workspace.params_file)
    if chosen.bundle is not None:
        from clearway.serving.alone import serve_alone

        serve_alone(params, workspace, chosen.env, chosen.bundle, chosen.digest)
    serve(params, workspace, chosen.env, chosen.host)
    print(f"serve: {chosen.env} stopped, requests drained, log written")
    return DONE


if __name__ == "__main__":
    run(main)
