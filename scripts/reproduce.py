"""Rebuild a kept model in a clean git worktree, from the commit, params and data it records, and compare digests."""

import json
import sys

from clearway.cli import DONE, STOPPED, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("digest", metavar="DIGEST", help="a kept model, or its first 8 or more characters")
    options.add_argument("--allow-dirty", action="store_true", help="try although the commit does not hold all")
    options.add_argument("--json", action="store_true", help="print JSON; progress goes to standard error")
    arguments = options.parse_args()
    from rich.console import Console

    from clearway.bundle import verify
    from clearway.model_record import find_digest
    from clearway.reproduction import document, reproduce, show
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    digest = find_digest(arguments.digest, workspace.bundles)
    bundle = verify(workspace.bundles / digest, digest)
    made = reproduce(bundle, workspace.root, Console(stderr=True), allow_dirty=arguments.allow_dirty)
    if arguments.json:
        print(json.dumps(document(made), indent=2, ensure_ascii=False))
    else:
        show(made, Console())
    job_summary(f"### Reproduction\n\n{made.sentence}")
    if made.accepted:
        return DONE
    print(f"error: {made.sentence}", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    run(main)
