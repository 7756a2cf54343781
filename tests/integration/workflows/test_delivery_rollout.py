"""delivery.yml, the real file, from the bundle on: what may be wrong with a version that passed every gate."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from act_runner import WorkflowRun
from forked_repository import Fork
from outcomes import DELIVERED, ROLLED_BACK, STOPPED_IN_STAGING, STOPPED_IN_TRAINING, outcomes
from timed_project import DAYS_TO_START, write_timed_project

pytestmark = pytest.mark.lines


def push_faulty(fork: Fork, fault: str, environment: str, **sections: dict[str, Any]) -> WorkflowRun:
    arguments = {"fault": fault, "environment": environment}
    fork.change_params(train={"estimator": "faulty_model.Faulty", "arguments": arguments, "onnx": False})
    fork.change_params(trust={"types": ["faulty_model.Faulty"]}, **sections)
    fork.commit_and_push(f"A model with {fault} in {environment}")
    return fork.push()


def assert_rolled_back(fork: Fork, run: WorkflowRun, before: list[Any], reason: str) -> None:
    assert run.code == 1
    assert outcomes(run) == ROLLED_BACK, run.explain()
    steps = run.steps["deploy-production"]
    assert (steps["Promote"], steps["Say that it is held"], steps["Roll back"]) == ("skipped",) * 3
    assert steps["Turn red unless promoted or held"] == "failure"
    assert steps["Stop the servers of this runner"] == "success"
    after = fork.ledger("production")
    assert [entry.action for entry in after[len(before) :]] == ["canary", "rollback"]
    assert reason in after[-1].reason
    assert fork.serves("production") == (before[-1].stable, None)
    assert fork.serves("staging") == (after[-2].canary, None)
    assert "Canary in production: rollback" in run.summary
    assert fork.json_on_branch("run.json")["run_id"] == "2", "a rollback is remembered though the run is red"


def assert_held(fork: Fork, run: WorkflowRun, stable_before: str) -> str:
    assert run.code == 0, run.explain()
    assert outcomes(run) == DELIVERED, run.explain()
    steps = run.steps["deploy-production"]
    assert steps["Say that it is held"] == "success"
    assert (steps["Promote"], steps["Roll back"]) == ("skipped", "skipped")
    assert "production keeps its stable version" in run.text
    stable, canary = fork.serves("production")
    assert stable == stable_before
    assert canary == fork.serves("staging")[0] != stable
    assert "Canary in production: hold" in run.summary
    assert "Delivery: held" in run.summary
    assert canary is not None
    return canary


def test_a_canary_that_nobody_asks_is_held(make_fork: Callable[..., Fork], tmp_path: Path) -> None:
    fork = make_fork(tmp_path / "fork", partial(write_timed_project, days=DAYS_TO_START))
    run = fork.push()
    control, *more = fork.ledger("production")
    assert_held(fork, run, control.stable)
    assert [entry.action for entry in more] == ["canary", "hold"]


def test_a_version_that_fails_in_staging_never_reaches_production(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    run = push_faulty(fork, "errors", "staging")
    assert run.code == 1
    assert outcomes(run) == STOPPED_IN_STAGING, run.explain()
    steps = run.steps["deploy-staging"]
    assert steps["Deploy it"] == "success"
    assert steps["Ask the deployed endpoint"] == "failure"
    assert steps["Stop the servers of this runner"] == "success"
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
    assert "Delivery: failed" in run.summary
    assert fork.json_on_branch("run.json")["run_id"] == "2"


def test_a_canary_that_fails_requests_is_rolled_back(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    run = push_faulty(fork, "errors", "production")
    assert_rolled_back(fork, run, before, "errors")


def test_a_canary_that_is_slow_is_rolled_back(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    run = push_faulty(fork, "slow", "production", canary={"latency_ms": 500.0})
    assert_rolled_back(fork, run, before, "slow")


def test_a_canary_that_hardly_anybody_asks_is_held_until_somebody_rolls_it_back(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train={"arguments": {"max_iter": 25}}, replay={"cycles": 1})
    fork.commit_and_push("No traffic to speak of")
    canary = assert_held(fork, fork.push(), before[-1].stable)
    held = fork.ledger("production")
    back = fork.roll_back(reason="nobody asks it")
    assert back.code == 0, back.explain()
    assert back.jobs == {"rollback": "success", "tell": "success"}, back.explain()
    after = fork.ledger("production")
    assert after[: len(held)] == held
    assert [(entry.action, entry.quarantines) for entry in after[len(held) :]] == [("rollback", (canary,))]
    assert fork.serves("production") == (before[-1].stable, None), "the canary ends, its control goes on"
    assert "Rollback: rolled back" in back.summary


def test_a_bundle_that_was_changed_between_jobs_is_deployed_nowhere(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before, staging = fork.ledger("production"), fork.ledger("staging")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Somebody changes the artifact of this one")
    run = fork.push(harm={"STANDIN_TAMPER": "bundle"})
    assert run.code == 1
    assert outcomes(run) == STOPPED_IN_STAGING, run.explain()
    steps = run.steps["deploy-staging"]
    assert (steps["Fetch the bundle"], steps["Deploy it"]) == ("failure", "skipped")
    assert "model.onnx has changed" in run.text
    assert steps["Ask the deployed endpoint"] == "skipped"
    assert (fork.ledger("production"), fork.ledger("staging")) == (before, staging)
    assert fork.serves("production") == (before[-1].stable, None)
    assert "Delivery: failed" in run.summary
    assert fork.json_on_branch("run.json")["run_id"] == "2"


def test_state_that_was_changed_between_jobs_is_deployed_nowhere_and_carried_nowhere(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before, staging = fork.ledger("production"), fork.ledger("staging")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Somebody changes all artifacts of this one")
    run = fork.push(harm={"STANDIN_TAMPER": "bundle state-train"})
    assert run.code == 1
    assert outcomes(run) == {**STOPPED_IN_STAGING, "save-state": "failure"}, run.explain()
    assert run.steps["deploy-staging"]["Deploy it"] == "skipped"
    assert "Delivery: failed" in run.summary
    assert (fork.ledger("production"), fork.ledger("staging")) == (before, staging)
    assert fork.json_on_branch("run.json")["run_id"] == "1", "a champion that was changed too is carried nowhere"


def test_a_build_that_nobody_attests_is_delivered_nowhere_by_a_public_repository(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before, staging = fork.ledger("production"), fork.ledger("staging")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("GitHub cannot attest this one")
    run = fork.push(harm={"STANDIN_NO_ATTESTATIONS": "1"}, repository={"visibility": "public"})
    assert run.code == 1
    assert outcomes(run) == STOPPED_IN_TRAINING, run.explain()
    steps = run.steps["train"]
    assert steps["Train, judge and bundle"] == "success"
    assert steps["Insist on it where the repository can"] == "failure"
    assert (fork.ledger("production"), fork.ledger("staging")) == (before, staging)
    assert fork.serves("production") == (before[-1].stable, None)
    assert "Delivery: failed" in run.summary
    assert fork.json_on_branch("run.json")["run_id"] == "2"


def test_a_deployment_killed_half_way_leaves_the_champion_and_a_re_run_delivers(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Its runner dies between the ledger and the routing table")
    run = fork.push(
        harm={"STANDIN_KILL": "--canary 10|production/routing.json", "STANDIN_NO_ATTESTATIONS": "1"},
        repository={"visibility": "private"},
    )
    assert run.code == 1
    assert outcomes(run) == ROLLED_BACK, run.explain()
    steps = run.steps["deploy-production"]
    assert steps["Start the canary at 10%"] == "failure"
    assert steps["Watch it under traffic"] == "skipped"
    assert steps["Withdraw a canary that did not start"] == "success"
    assert "No provenance" in run.text, "a private repository may be unable to attest, and delivers by the digest alone"
    assert fork.serves("production") == (before[-1].stable, None)
    killed = fork.ledger("production")
    assert killed[: len(before)] == before
    again = fork.push()
    assert again.code == 0, again.explain()
    assert outcomes(again) == DELIVERED, again.explain()
    assert "Delivery: delivered" in again.summary
    after = fork.ledger("production")
    assert after[: len(killed)] == killed
    assert [entry.action for entry in after[len(killed) :]] == ["canary", "promote"]
    assert fork.serves("production") == fork.serves("staging") != (before[-1].stable, None)
