"""Decide whether to retrain, and say why: reports/decision.json, job outputs retrain and reasons."""

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
    made.add_argument("--history", action="store_true", help="show every decision taken so far, and decide nothing")
    arguments = made.parse_args()

    from rich.console import Console

    from clearway import decision_tables as tables
    from clearway import evidence as edge
    from clearway.decision import decide
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace, console = Workspace(arguments.project), Console()
    console.width = max(console.width, 110)
    if arguments.history:
        console.print(tables.history_table(edge.read_history(workspace)))
        return DONE
    params, force = load_params(workspace.params_file), edge.parse_force(arguments.force_retrain)
    gathered = edge.gather_evidence(params, workspace, trigger=arguments.trigger, force_retrain=force)
    decision = decide(gathered, params.decision)
    edge.write_decision(decision, workspace)
    edge.record_decision(decision, workspace, at=datetime.now(UTC), run=os.environ.get("GITHUB_RUN_ID"))
    console.print(tables.trigger_table(decision))
    job_output(retrain=str(decision.retrain).lower(), reasons=",".join(decision.reasons))
    job_summary(tables.markdown(decision))
    print(f"decide: {decision.sentence}")
    return DONE


if __name__ == "__main__":
    run(main)
