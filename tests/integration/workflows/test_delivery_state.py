"""delivery.yml, the real file, and what it remembers: state that is lost, damaged, forged, or pushed by two runs."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from act_runner import WorkflowRun
from forked_repository import Fork
from outcomes import DELIVERED, NOTHING_TO_DO, STOPPED_AT_VALIDATION, outcomes

from clearway.state import BRANCH

pytestmark = pytest.mark.lines

HOOK = """
# Holds the state of one run back until somebody says go: what happens to a push that another overtakes.
case "$ref $(git log -1 --format=%s "$new")" in
  "refs/heads/clearway-state State after run {run} "*)
    touch "{waits}"
    n=0; while [ ! -e "{go}" ] && [ $n -lt 9000 ]; do n=$((n+1)); sleep 0.1; done ;;
esac
"""


def rewrite(fork: Fork, path: str, content: str) -> None:
    """Push another content of one file to the state branch, as whoever may write to the repository can."""
    tree = fork.folder / "state-branch"
    fork.git("fetch", "--quiet", "origin", BRANCH)
    fork.git("worktree", "add", "--quiet", "--detach", str(tree), "FETCH_HEAD")
    (tree / path).write_text(content)
    fork.git("-C", str(tree), "commit", "--quiet", "-am", "Nothing to see here")
    fork.git("-C", str(tree), "push", "--quiet", "origin", f"HEAD:{BRANCH}")
    fork.git("worktree", "remove", "--force", str(tree))


def assert_stopped_before_anything(fork: Fork, run: WorkflowRun, head: str) -> None:
    assert run.code == 1
    assert outcomes(run) == STOPPED_AT_VALIDATION, run.explain()
    assert run.steps["validate"]["Restore state"] == "failure"
    assert run.steps["save-state"].get("Save state", "skipped") == "skipped", "there is none"
    assert "Delivery: failed" in run.summary
    assert head_of_state(fork) == head, "nothing was pushed over what has to be looked at"


def head_of_state(fork: Fork) -> str:
    command = ["git", "-C", str(fork.origin), "rev-parse", BRANCH]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Held:
    """A run, in a thread, whose state waits at the remote's door until :meth:`go`."""

    def __init__(self, fork: Fork, run: Callable[[], WorkflowRun]) -> None:
        self._go = fork.folder / f"go-{fork.runs + 1}"
        self._runs: list[WorkflowRun] = []
        waits = fork.folder / f"waits-{fork.runs + 1}"
        hook = fork.origin / "hooks" / "pre-receive"
        earlier = hook.read_text() if hook.exists() else "#!/bin/sh\nread -r old new ref\n"
        hook.write_text(earlier + HOOK.format(run=fork.runs + 1, waits=waits, go=self._go))
        hook.chmod(0o755)
        self._thread = threading.Thread(target=lambda: self._runs.append(run()))
        self._thread.start()
        while not waits.exists():
            assert self._thread.is_alive(), self._runs[0].explain()
            time.sleep(0.1)

    def go(self) -> WorkflowRun:
        self._go.touch()
        self._thread.join()
        run: WorkflowRun = self._runs[0]
        return run


def test_without_its_branch_a_run_is_a_first_run_and_says_so(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.git("push", "--quiet", "origin", f":{BRANCH}")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == DELIVERED, run.explain()
    assert "bootstrap: no branch clearway-state yet" in run.summary
    assert fork.last_decision()["reasons"] == ["bootstrap"]
    assert [entry.action for entry in fork.ledger("production")] == ["deploy", "canary", "promote"]
    assert fork.serves("production") == (before[-1].stable, None), "the same code and data make the same model"


def test_a_bundle_that_expired_stops_the_run_and_is_no_first_run(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    head = head_of_state(fork)
    for folder in (fork.folder / "artifacts" / "1").glob("*-clearway-store"):
        folder.rename(fork.folder / "expired")
    run = fork.push()
    assert_stopped_before_anything(fork, run, head)
    assert "Artifact not found for clearway-store in run 1" in run.text
    assert "is missing: artifact clearway-store of run 1 does not hold it" in run.text


def test_a_ledger_that_somebody_rewrote_stops_the_run(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    entries = (fork.on_branch("environments/production/ledger.jsonl") or b"").decode().splitlines()
    last = json.loads(entries[-1])
    last["reason"] = "all is well"
    rewrite(fork, "environments/production/ledger.jsonl", "\n".join([*entries[:-1], json.dumps(last)]) + "\n")
    run = fork.push()
    assert_stopped_before_anything(fork, run, head_of_state(fork))
    assert "ledger.jsonl" in run.text


def test_bundles_of_a_pull_requests_run_are_not_believed_even_if_the_branch_names_them(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    stable, _ = fork.serves("production")
    (genuine,) = (fork.folder / "artifacts" / "1").glob("*-clearway-store")
    forged = fork.folder / "artifacts" / "77" / "1977-clearway-store"
    shutil.copytree(genuine, forged)
    model = max((forged / "bundles" / stable).rglob("*.onnx"), key=lambda path: path.stat().st_size)
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    rewrite(fork, "store.json", json.dumps({**fork.json_on_branch("store.json"), "run_id": "77"}))
    head = head_of_state(fork)
    run = fork.push()
    assert_stopped_before_anything(fork, run, head)
    assert f"bundle {stable[:12]}" in run.text
    assert "was changed on its way" in run.text


def test_two_runs_that_push_state_at_once_are_both_remembered(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    held = Held(fork, fork.push)
    other = fork.push()
    assert outcomes(other) == NOTHING_TO_DO, other.explain()
    assert fork.json_on_branch("run.json")["run_id"] == "3"
    run = held.go()
    assert run.code == 0, run.explain()
    assert outcomes(run) == NOTHING_TO_DO, run.explain()
    runs = [json.loads(line)["run"] for line in (fork.on_branch("decisions.jsonl") or b"").splitlines()]
    assert runs == ["1", "3", "2"], "in the order in which they came through"
    assert fork.json_on_branch("run.json")["run_id"] == "2"
    assert fork.ledger("production") == before


def test_what_one_delivery_did_stands_for_another_at_once_and_gives_way_to_a_rollback(
    delivered: tuple[Fork, WorkflowRun], tmp_path: Path
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    overtaking = fork.copy(tmp_path / "overtaking")
    back = Held(fork, partial(fork.roll_back, reason="it answers nonsense"))
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Twenty-five trees")
    delivery = Held(fork, partial(fork.dispatch, environment="staging"))
    overtaking.git("remote", "set-url", "origin", str(fork.origin))
    overtaking.origin, overtaking.runs = fork.origin, 7
    overtaking.change_params(train={"arguments": {"max_iter": 15}})
    overtaking.git("commit", "--quiet", "-am", "Fifteen trees")
    first = overtaking.push()
    assert outcomes(first) == DELIVERED, first.explain()
    served, history = fork.serves("production"), fork.ledger("production")
    shutil.copytree(overtaking.folder / "artifacts" / "8", fork.folder / "artifacts" / "8")

    second = delivery.go()
    assert second.code == 1
    stopped = {**DELIVERED, "deploy-production": "skipped", "save-state": "failure"}
    assert outcomes(second) == stopped, second.explain()
    assert "moved while this run worked, and both changed environments/" in second.text
    assert "Delivery: staged" in second.summary, "as far as its own jobs went; the job that saves says the rest"
    assert fork.serves("production") == served
    assert fork.ledger("production") == history
    assert fork.json_on_branch("run.json")["run_id"] == "8"

    rolled_back = back.go()
    assert rolled_back.code == 0, rolled_back.explain()
    assert rolled_back.jobs == {"rollback": "success", "tell": "success"}, rolled_back.explain()
    assert rolled_back.steps["rollback"]["Save it again, rolled back after what the other run did"] == "success"
    after = fork.ledger("production")
    assert after[: len(history)] == history
    assert [entry.action for entry in after[len(history) :]] == ["rollback"]
    assert set(after[-1].quarantines) == {before[-1].stable, served[0]}, "what it left, and what came meanwhile"
    assert fork.serves("production") == (before[0].stable, None)
    assert fork.serves("staging") == (served[0], None), "as the delivery left it"
    assert {before[0].stable, served[0]} <= set(fork.json_on_branch("store.json")["bundles"])
    assert "Rollback: rolled back" in rolled_back.summary
    assert "joined with what another run saved meanwhile" in rolled_back.summary
