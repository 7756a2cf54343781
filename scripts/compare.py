"""Put two models side by side: params, data, code, packages, features, metrics and gates that differ."""

import json
import sys

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    what = "a digest or its first 8 or more characters, an environment, champion, or build (what is in build/model)"
    options.add_argument("a", metavar="A", help=what)
    options.add_argument("b", metavar="B", help="the same, to compare with A")
    options.add_argument("--all", action="store_true", help="print what does not differ too")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    from rich.console import Console

    from clearway.comparison import compare, document, show
    from clearway.model_record import read_named
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    compared = compare(*(read_named(name, params, workspace) for name in (arguments.a, arguments.b)))
    if arguments.json:
        print(json.dumps(document(compared, everything=arguments.all), indent=2, ensure_ascii=False, default=str))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=140)
        show(compared, console, everything=arguments.all)
    return DONE


if __name__ == "__main__":
    run(main)
