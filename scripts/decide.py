"""Decide whether to retrain, and say why: reports/decision.json, job outputs and summary, and the history."""

import os
from datetime import UTC, datetime

from clearway.cli import DONE, job_output, job_summary, parser, run

FORCE, TRIGGER = "CLEARWAY_FORCE_RETRAIN", "CLEARWAY_TRIGGER"


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument(
        "--force-retrain",
        nargs="?",
        const="true",
        default=os.environ.get(FORCE, ""),
        metavar="true|false",
        help=f"retrain whatever the triggers say (default: ${FORCE}, else false)",
    )
    made.add_argument(
        "--trigger",
        default=os.environ.get(TRIGGER) or "local",
        metavar="NAME",
        help=f"who asks, for the record: push, schedule, manual (default: ${TRIGGER}, else local)",
    )
    made.add_argument("--history", nargs="?", type=int, const=20, metavar="N", help="show the last N (20) decisions")
    arguments = made.parse_args()

    from rich.console import Console

    from clearway import decision_history as history
    from clearway import decision_tables as tables
    from clearway.workspace import Workspace

    workspace, console = Workspace(arguments.project), Console()
    console.width = console.width if console.is_terminal else max(console.width, 110)
    if arguments.history is not None:
        console.print(*tables.history_lines(history.read_history(workspace), arguments.history), sep="\n")
        return DONE

    from clearway import evidence as edge
    from clearway.decision import decide
    from clearway.params import load_params

    params, force = load_params(workspace.params_file), edge.parse_force(arguments.force_retrain)
    gathered = edge.gather_evidence(params, workspace, trigger=arguments.trigger, force_retrain=force)
    decision = decide(gathered, params.decision)
    edge.write_decision(decision, workspace)
    history.record_decision(decision, workspace, at=datetime.now(UTC), run=os.environ.get("GITHUB_RUN_ID"))
    console.print(tables.trigger_table(decision))
    job_output(**tables.outputs(decision))
    job_summary(tables.markdown(decision))
    print(f"decide: {decision.sentence}")
    return DONE


if __name__ == "__main__":
    run(main)
