"""Say what a kept model was made from and where it went; or which models were made from some data or commit."""

import json
import sys

from clearway.cli import DONE, STOPPED, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("digest", nargs="?", metavar="DIGEST", help="a kept model, or its first 8 or more characters")
    options.add_argument("--data", default="", metavar="SHA256", help="list models made from this snapshot or table")
    options.add_argument("--commit", default="", metavar="COMMIT", help="list models made from this commit")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    if arguments.digest and (arguments.data or arguments.commit):
        options.error("give DIGEST, or --data and --commit, not both")
    from rich.console import Console

    from clearway import lineage_report as report
    from clearway.model_record import check_prefix, find_digest, read_bundle
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    if arguments.digest:
        model = read_bundle(workspace, find_digest(arguments.digest, workspace.bundles))
        named = report.deployments(model.digest, report.read_ledgers(workspace))
        if arguments.json:
            print(json.dumps(report.document(model, named), indent=2, ensure_ascii=False, default=str))
        else:
            report.show(model, named, console)
        return DONE
    for prefix in filter(None, (arguments.data, arguments.commit)):
        check_prefix(prefix)
    found = report.search(workspace, data=arguments.data, commit=arguments.commit)
    if arguments.json:
        print(json.dumps(report.found_document(found), indent=2, ensure_ascii=False))
    else:
        report.show_found(found, console)
    for broken in found.broken:
        print(f"error: {broken}", file=sys.stderr)
    return STOPPED if found.broken else DONE


if __name__ == "__main__":
    run(main)
