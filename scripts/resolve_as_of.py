"""Decide once per run which moment as_of means, print it, and publish it as the job output as_of."""

import os
from datetime import UTC, datetime

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--as-of", default="", metavar="TIME", help="wins over params.yaml; empty means not given")
    made.add_argument(
        "--trigger",
        default=os.environ.get("CLEARWAY_TRIGGER", "local"),
        metavar="EVENT",
        help="what started the run; schedule moves params.clock one step (default: $CLEARWAY_TRIGGER or local)",
    )
    made.add_argument("--sample", action="store_true", help="take params.clock.sample, a time with little data, if set")
    made.add_argument("--write", action="store_true", help="also write it into params.yaml, leaving all else as it is")
    arguments = made.parse_args()
    from clearway.as_of import format_as_of, resolve_as_of, set_as_of
    from clearway.params import load_params
    from clearway.state import last_run
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params, before = load_params(workspace.params_file), last_run(workspace)
    sample = params.clock.sample if arguments.sample and params.clock else None
    moment = sample or resolve_as_of(
        params,
        asked=arguments.as_of,
        scheduled=arguments.trigger == "schedule",
        last=before.as_of if before else None,
        now=datetime.now(UTC),
    )
    text = format_as_of(moment) if moment else ""
    if moment and arguments.write:
        set_as_of(workspace.params_file, moment)
    print(text or "none: the data of this project knows no time")
    job_output(as_of=text)
    job_summary(f"**as of** {text or 'no time: the data knows none'}")
    return DONE


if __name__ == "__main__":
    run(main)
