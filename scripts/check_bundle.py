"""Verify a bundle that another job built, on its arrival, by the digests that the job named; and the kept one too."""

from clearway.cli import DONE, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("digest", metavar="DIGEST", help="of the model")
    made.add_argument("--baseline", required=True, metavar="DIGEST", help="of the baseline beside it")
    arguments = made.parse_args()
    from clearway.bundle import verify_arrival
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    verify_arrival(workspace.bundle, workspace.bundles, arguments.digest, arguments.baseline)
    print(f"bundle: {arguments.digest[:12]} and its baseline {arguments.baseline[:12]} are what was built")
    return DONE


if __name__ == "__main__":
    run(main)
