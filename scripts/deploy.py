"""Bring a model to an environment: whole, as a canary (--canary N), or promote the canary (--canary 100).

A blue-green switch is watched: exit 0 keep, 3 too few answers to say, 4 rolled back.
"""

import sys

from clearway.cli import DONE, HELD, ROLLED_BACK, job_output, job_summary, parser, run

STRATEGIES = ("canary", "blue-green", "ab", "shadow")


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", required=True, metavar="NAME", help="environment of params.yaml")
    how = options.add_mutually_exclusive_group()
    how.add_argument("--canary", type=int, metavar="N", help="percent that see it; 100 promotes it, 0 withdraws it")
    how.add_argument("--end-shadow", action="store_true", help="let no version answer copies any more")
    how.add_argument("--ensure-serving", action="store_true", help="deploy nothing: serve what the ledger says")
    options.add_argument("--digest", metavar="HEX", help="which model (default: the one in build/bundle/outcome.json)")
    options.add_argument("--reason", default="asked for on the command line", help="why, for the ledger")
    options.add_argument("--actor", metavar="WHO", help="who, for the ledger (default: $GITHUB_ACTOR or the user)")
    options.add_argument("--strategy", choices=STRATEGIES, help="default: deployment.strategy")
    arguments = options.parse_args()
    if (arguments.end_shadow or arguments.ensure_serving) and (arguments.digest or arguments.strategy):
        options.error("--digest and --strategy say nothing beside --end-shadow or --ensure-serving: leave them out")
    from clearway.deployment import default_actor, deploy_built, end_shadow, serve_again
    from clearway.params import load_params
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    params = load_params(workspace.params_file)
    who = {"actor": arguments.actor or default_actor(), "reason": arguments.reason}
    if arguments.ensure_serving:
        outcome = serve_again(params, workspace, arguments.env)
    elif arguments.end_shadow:
        outcome = end_shadow(params, workspace, arguments.env, **who)
    else:
        target = (arguments.env, arguments.digest, arguments.canary)
        outcome = deploy_built(params, workspace, *target, strategy=arguments.strategy, **who)
    sys.stderr.writelines(f"warning: {warning}\n" for warning in outcome.warnings)
    url = outcome.server.url if outcome.server else ""
    print(f"deploy: {outcome.sentence}{f' → {url}/predict' if url else ''}", flush=True)
    job_summary(f"**{arguments.env}** {outcome.sentence}")
    stable, revision = (outcome.entry.stable, str(outcome.entry.sequence)) if outcome.entry else ("", "")
    job_output(stable=stable, revision=revision, url=url, changed=str(outcome.changed).lower())
    if outcome.switch is None:
        return DONE
    from clearway.blue_green import watch_switch, write_report

    found = watch_switch(params, workspace, outcome.switch, actor=who["actor"], progress=print)
    write_report(workspace, outcome.switch, found)
    print(f"deploy: {found.verdict}: {found.sentence}")
    return {"keep": DONE, "hold": HELD, "rollback": ROLLED_BACK}[found.verdict]


if __name__ == "__main__":
    run(main)
