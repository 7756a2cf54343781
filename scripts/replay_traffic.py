"""Ask a deployed environment the next questions of its replayed traffic, and print what came back."""

from clearway.cli import DONE, STOPPED, parser, run


def main() -> int:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--env", required=True, metavar="NAME", help="environment of params.yaml to ask")
    arguments.add_argument("--requests", type=int, default=1000, metavar="N", help="how many rows (default: 1000)")
    chosen = arguments.parse_args()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clearway.params import load_params
    from clearway.replay import Replay
    from clearway.workspace import Workspace

    workspace = Workspace(chosen.project)
    replay = Replay(load_params(workspace.params_file), workspace, chosen.env)
    console = Console(stderr=True)
    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("replay", total=min(chosen.requests, replay.remaining()))
        result = replay.send(chosen.requests, lambda done: bar.update(task, completed=done))
    print(
        f"replay: {result.ok:,} of {result.sent:,} requests answered by {chosen.env} in {result.seconds:.1f} s "
        f"({result.per_second:,.0f}/s, p50 {result.p50_ms:.1f} ms, p95 {result.p95_ms:.1f} ms), "
        f"{result.client_errors} refused, {result.server_errors} failed"
        + ("; all rows of this rollout are asked" if result.exhausted else "")
    )
    return STOPPED if result.client_errors or result.server_errors else DONE


if __name__ == "__main__":
    run(main)
