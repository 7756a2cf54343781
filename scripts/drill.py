"""Deploy ten versions in a row under load, one of them bad, roll it back, and print what happened when."""

from pathlib import Path
from tempfile import TemporaryDirectory

from clearway.cli import DONE, STOPPED, job_summary, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--deployments", type=int, default=10, metavar="N", help="versions (default: 10)")
    options.add_argument("--bad", type=int, default=7, metavar="N", help="which of them is bad (default: 7)")
    options.add_argument("--rate", type=float, default=500.0, metavar="R", help="requests per second (default: 500)")
    options.add_argument("--by", choices=("command", "canary"), default="command", help="who rolls back")
    arguments = options.parse_args()
    from clearway.drill import GOAL_MS, drill, timeline

    with TemporaryDirectory(prefix="clearway-drill-") as folder:
        found = drill(
            Path(folder),
            deployments=arguments.deployments,
            bad=arguments.bad,
            rate=arguments.rate,
            by=arguments.by,
            progress=lambda said: print(f"drill: {said}", flush=True),
        )
    print(timeline(found))
    job_summary(f"### Drill\n\n```\n{timeline(found)}\n```")
    return STOPPED if found.other_failures or found.rollback_ms > GOAL_MS else DONE


if __name__ == "__main__":
    run(main)
