"""Judge the open canary: exit 0 promote, 3 hold, 4 rolled back (which it has then done)."""

from clearway.cli import DONE, HELD, ROLLED_BACK, job_output, job_summary, parser, run

EXIT = {"promote": DONE, "hold": HELD, "rollback": ROLLED_BACK, "withdraw": ROLLED_BACK}


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", default="production", metavar="NAME", help="environment (default: production)")
    options.add_argument(
        "--watch", action="store_true", help="keep judging, and raise the weight step by step up to the last verdict"
    )
    options.add_argument(
        "--replay", action="store_true", help="send traffic: the source's rows after as_of, until a verdict"
    )
    options.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds to wait for a verdict (default: 900 with --watch or --replay)",
    )
    options.add_argument("--actor", metavar="WHO", help="who, for the ledger (default: $GITHUB_ACTOR or the user)")
    arguments = options.parse_args()
    from clearway.deployment import default_actor
    from clearway.params import load_params
    from clearway.rollout import judge_step, replayed_traffic, summary_text, watch, write_report
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    waits = arguments.watch or arguments.replay
    timeout = arguments.timeout if arguments.timeout is not None else 900.0 if waits else 0.0
    found = (watch if arguments.watch else judge_step)(
        params,
        workspace,
        arguments.env,
        actor=arguments.actor or default_actor(),
        send_traffic=replayed_traffic(params, workspace, arguments.env) if arguments.replay else None,
        progress=lambda said: print(f"check canary: {said}", flush=True),
        timeout=timeout,
    )
    write_report(params, workspace, arguments.env, found)
    print(summary_text(found))
    job_output(verdict=found.verdict.verdict, weight=str(found.state.weight), digest=found.state.digest)
    job_summary(f"### Canary in {arguments.env}: {found.verdict.verdict}\n\n{found.verdict.sentence}")
    return EXIT[found.verdict.verdict]


if __name__ == "__main__":
    run(main)
