"""rollback.yml, the real file: what answers afterwards, what is remembered, and that nothing in an input executes."""

import json
from pathlib import Path

import pytest
from act_runner import WorkflowRun
from forked_repository import Fork

pytestmark = pytest.mark.lines


def test_a_dispatch_goes_back_and_the_next_delivery_knows(delivered: tuple[Fork, WorkflowRun], tmp_path: Path) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    bait = tmp_path / "bait"
    run = fork.roll_back(reason=f"it lies $(touch {bait}) `touch {bait}`")
    assert run.code == 0, run.explain()
    assert run.jobs == {"rollback": "success", "tell": "success"}, run.explain()
    after = fork.ledger("production")
    assert after[: len(before)] == before
    assert after[-1].action == "rollback"
    assert after[-1].stable == before[0].stable, "the baseline, which was stable before"
    assert before[-1].stable in after[-1].quarantines
    assert after[-1].reason == f"it lies $(touch {bait}) `touch {bait}`"
    assert not bait.exists()
    assert "Rollback: rolled back" in run.summary
    run_record = json.loads(fork.on_branch("run.json") or b"{}")
    assert run_record["run_id"] == "2"
    assert json.loads(fork.on_branch("store.json") or b"{}")["run_id"] == "2", "bundles are carried forward"

    unknown = fork.roll_back(digest="f" * 64)
    assert unknown.code == 1
    assert unknown.jobs == {"rollback": "failure", "tell": "success"}, unknown.explain()
    assert "Rollback: failed" in unknown.summary
    assert fork.ledger("production") == after
    assert json.loads(fork.on_branch("run.json") or b"{}")["run_id"] == "3", "state is saved after a failure, too"
