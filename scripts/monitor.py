"""Measure a live environment: performance, drift, errors, silence, age, and whether it serves what its ledger says."""

import signal
import sys
import threading
from datetime import UTC, datetime
from functools import partial

from clearway.cli import DONE, STOPPED, job_output, job_summary, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--round", action="store_true", help="also carry on an open canary, and tell people of alarms")
    how.add_argument("--github", action="store_true", help="--round, with the repository's issues, delivery and crons")
    how.add_argument("--watch", action="store_true", help="a --round every monitoring.every_minutes, come what may")
    arguments = made.parse_args()
    from clearway import rounds
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace, now = Workspace(arguments.project), datetime.now(UTC)
    params, environment = load_params(workspace.params_file), arguments.env
    if arguments.watch:
        stop, rules = threading.Event(), params.monitoring
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        command = [sys.executable, __file__, "--project", str(workspace.root), "--env", environment, "--round"]
        say_broken = partial(rounds.raise_broken, params, workspace, environment)
        pause, limit = rules.every_minutes * 60, rules.round_minutes * 60
        rounds.repeat(command, pause=pause, limit=limit, on_failure=say_broken, stop=stop)
        return DONE
    if not (arguments.round or arguments.github):
        from clearway.monitor import monitor, publish

        publish(monitor(params, workspace, environment, now), workspace)
        return DONE
    from clearway.alarm_issues import IssueMemory
    from clearway.github_settings import this_repository

    github = this_repository() if arguments.github else None
    memory = IssueMemory(github, environment) if github else None
    found = rounds.tell_people(params, workspace, environment, rounds.look(params, workspace, environment, now), memory)
    done = rounds.tell_github(github, params, found, now) if github else []
    lines = rounds.spoken(found, done, environment)
    print("\n".join(f"monitor: {line}" for line in lines))
    job_output(alarms=",".join(alarm.kind for alarm in found.alarms), canary=found.canary)
    job_summary("\n".join(["### Monitoring", "", *(f"- {line}" for line in lines)]))
    return STOPPED if found.failed else DONE


if __name__ == "__main__":
    run(main)
