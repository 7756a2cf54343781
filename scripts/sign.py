"""Sign kept bundles, named by their digests or the beginnings of them; a signature that is there is replaced."""

from clearway.cli import DONE, parser, run


def main() -> int:
    flags = parser(__doc__ or "")
    flags.add_argument("digests", nargs="+", metavar="DIGEST", help="first characters of a digest, at least eight")
    arguments = flags.parse_args()
    from clearway.params import load_params
    from clearway.signing import sign_kept
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    for path in sign_kept(load_params(workspace.params_file), workspace, arguments.digests):
        print(f"sign: {path}")
    return DONE


if __name__ == "__main__":
    run(main)
