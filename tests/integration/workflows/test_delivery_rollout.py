"""delivery.yml, the real file, from the bundle on: what may be wrong with a version that passed every gate."""

from typing import Any

import pytest
from act_runner import WorkflowRun
from forked_repository import Fork
from outcomes import DELIVERED, ROLLED_BACK, STOPPED_IN_STAGING, outcomes

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


def test_a_version_that_fails_in_staging_never_reaches_production(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    run = push_faulty(fork, "errors", "staging")
    assert run.code == 1
    assert outcomes(run) == STOPPED_IN_STAGING, run.explain()
    steps = run.steps["deploy-staging"]
    assert steps["Verify it by its digest and deploy"] == "success"
    assert steps["Ask the deployed endpoint"] == "failure"
    assert steps["Stop the servers of this runner"] == "success"
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
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


def test_a_canary_that_hardly_anybody_asks_is_held_and_the_run_is_green(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train={"arguments": {"max_iter": 25}}, replay={"cycles": 1})
    fork.commit_and_push("No traffic to speak of")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == DELIVERED, run.explain()
    steps = run.steps["deploy-production"]
    assert steps["Say that it is held"] == "success"
    assert (steps["Promote"], steps["Roll back"]) == ("skipped", "skipped")
    assert "production keeps its stable version" in run.text
    stable, canary = fork.serves("production")
    assert stable == before[-1].stable
    assert canary == fork.serves("staging")[0] != stable
    assert "Canary in production: hold" in run.summary


def test_a_model_that_was_changed_between_jobs_is_deployed_nowhere(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before, staging = fork.ledger("production"), fork.ledger("staging")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Somebody changes the artifact of this one")
    run = fork.push(harm={"STANDIN_TAMPER": "bundle state-train"})
    assert run.code == 1
    assert outcomes(run) == {**STOPPED_IN_STAGING, "save-state": "failure"}, run.explain()
    steps = run.steps["deploy-staging"]
    assert steps["Verify it by its digest and deploy"] == "failure"
    assert steps["Ask the deployed endpoint"] == "skipped"
    assert (fork.ledger("production"), fork.ledger("staging")) == (before, staging)
    assert fork.json_on_branch("run.json")["run_id"] == "1", "a champion that was changed too is carried nowhere"


def test_a_deployment_killed_half_way_leaves_the_champion_and_a_re_run_delivers(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train={"arguments": {"max_iter": 25}})
    fork.commit_and_push("Its runner dies between the ledger and the routing table")
    run = fork.push(harm={"STANDIN_KILL": "--canary 10|production/routing.json"})
    assert run.code == 1
    assert outcomes(run) == ROLLED_BACK, run.explain()
    steps = run.steps["deploy-production"]
    assert steps["Start the canary at 10%"] == "failure"
    assert steps["Watch it under traffic"] == "skipped"
    assert steps["Withdraw a canary that did not start"] == "success"
    assert fork.serves("production") == (before[-1].stable, None)
    killed = fork.ledger("production")
    assert killed[: len(before)] == before
    again = fork.push()
    assert again.code == 0, again.explain()
    assert outcomes(again) == DELIVERED, again.explain()
    after = fork.ledger("production")
    assert after[: len(killed)] == killed
    assert [entry.action for entry in after[len(killed) :]] == ["canary", "promote"]
    assert fork.serves("production") == fork.serves("staging") != (before[-1].stable, None)
