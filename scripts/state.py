"""Carry state between runs on GitHub: by the branch clearway-state and by the artifact that it names."""

import os

from clearway.cli import DONE, job_output, job_summary, parser, run


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("verb", choices=("restore", "verify", "join", "pack", "save"))
    made.add_argument("--remote", default="origin", metavar="NAME", help="git remote that has the branch")
    made.add_argument("--artifact", default="clearway-store", metavar="NAME", help="artifact that holds build/store")
    made.add_argument(
        "--as-of", default="", metavar="TIME", help="save: as of when this run worked (default: as before)"
    )
    arguments = made.parse_args()
    from clearway.as_of import parse_as_of
    from clearway.state import BRANCH, Remote, RunRecord, last_run, pack_store, rejoin, restore, save, verify_bundles
    from clearway.workspace import Workspace

    workspace = Workspace(arguments.project)
    if arguments.verb == "verify":
        needed = verify_bundles(workspace)
        print(f"state: {len(needed)} bundles verified by the digests of the ledgers")
        return DONE
    if arguments.verb == "pack":
        print(f"state: {len(pack_store(workspace))} bundles packed → {workspace.build / 'store'}")
        return DONE
    remote = Remote(workspace.root, arguments.remote, os.environ.get("GITHUB_TOKEN"))
    if arguments.verb == "restore":
        state = restore(workspace, remote)
        found = (
            f"restored from {BRANCH} at {state.commit[:12]}" if state.commit else f"bootstrap: no branch {BRANCH} yet"
        )
        job_output(**state.outputs)
    elif arguments.verb == "join":
        other = rejoin(workspace, remote)
        if other is None:
            print("state: no other run has saved since")
            return DONE
        found = f"joined with what another run saved meanwhile, at {(other.commit or '')[:12]}"
        job_output(**other.outputs)
    else:
        before = last_run(workspace)
        record = RunRecord(
            run_id=os.environ.get("GITHUB_RUN_ID", "0"),
            trigger=os.environ.get("GITHUB_EVENT_NAME", "local"),
            commit=os.environ.get("GITHUB_SHA"),
            as_of=parse_as_of(arguments.as_of) if arguments.as_of else before.as_of if before else None,
        )
        found = f"saved: {save(workspace, remote, record, arguments.artifact)}"
    print(f"state: {found}")
    job_summary(f"**State** {found}")
    return DONE


if __name__ == "__main__":
    run(main)
