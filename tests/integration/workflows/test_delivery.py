"""delivery.yml, the real file, run on pushes and dispatches: which jobs ran, and what production serves afterwards."""

import json

import pandas as pd
import pytest
from act_runner import WorkflowRun
from forked_repository import Fork

pytestmark = pytest.mark.lines

ALL = ("validate", "decide", "train", "deploy-staging", "deploy-production", "save-state")


def outcomes(run: WorkflowRun) -> dict[str, str]:
    return {job: run.jobs.get(job, "not reached") for job in ALL}


def test_a_first_push_trains_and_deploys_through_production(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, run = delivered
    assert outcomes(run) == dict.fromkeys(ALL, "success"), run.explain()
    assert run.code == 0
    production = fork.ledger("production")
    assert [entry.action for entry in production[:2]] == ["deploy", "canary"]
    assert "baseline" in production[0].reason
    assert production[-1].action == "promote"
    assert production[-1].canary is None
    assert fork.ledger("staging")[-1].stable == production[-1].stable
    store = json.loads(fork.on_branch("store.json") or b"{}")
    assert {production[0].stable, production[-1].stable} <= set(store["bundles"])
    assert run.steps["deploy-staging"]["Ask the deployed endpoint"] == "success"
    for said in ("bootstrap: no branch clearway-state yet", "Canary in production: promote", "State"):
        assert said in run.summary


def test_a_second_push_with_nothing_changed_deploys_nothing(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.commit_and_push("A remark in the README")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == {
        "validate": "success",
        "decide": "success",
        "train": "skipped",
        "deploy-staging": "skipped",
        "deploy-production": "skipped",
        "save-state": "success",
    }, run.explain()
    assert fork.ledger("production") == before
    assert json.loads(fork.on_branch("run.json") or b"{}")["run_id"] == "2"
    assert json.loads(fork.on_branch("store.json") or b"{}")["run_id"] == "2", "bundles are carried forward"
    assert "restored from clearway-state" in run.summary


def test_a_forced_retraining_is_delivered_beside_the_champion(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    trees = {"arguments": {"max_iter": 80, "min_samples_leaf": 5}}
    fork.change_params(train=trees, decision={"code": {"enabled": False}})  # so that nothing but force asks for it
    fork.commit_and_push("Eighty trees")
    run = fork.dispatch(force_retrain="true")
    assert run.code == 0, run.explain()
    assert outcomes(run) == dict.fromkeys(ALL, "success"), run.explain()
    after = fork.ledger("production")
    assert after[: len(before)] == before, "history only grows"
    assert [entry.action for entry in after[len(before) :]] == ["canary", "promote"]
    assert after[len(before)].stable == before[-1].stable, "the champion is the control"
    assert after[-1].stable != before[-1].stable
    decisions = (fork.on_branch("decisions.jsonl") or b"").splitlines()
    assert json.loads(decisions[-1])["decision"]["reasons"] == ["manual"]


def test_broken_data_stops_at_validation_and_state_is_kept(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    path = fork.work / "cells.csv"
    table = pd.read_csv(path)
    table.loc[:50, "mean_radius"] = -1.0
    table.to_csv(path, index=False)
    fork.commit_and_push("A sensor fails")
    run = fork.push()
    assert run.code == 1
    assert outcomes(run) == {
        "validate": "failure",
        "decide": "skipped",
        "train": "skipped",
        "deploy-staging": "skipped",
        "deploy-production": "skipped",
        "save-state": "success",
    }, run.explain()
    assert run.steps["validate"]["Validate the data"] == "failure"
    assert "mean_radius" in run.text
    assert fork.ledger("production") == before
    assert json.loads(fork.on_branch("run.json") or b"{}")["run_id"] == "2"
    assert json.loads(fork.on_branch("store.json") or b"{}")["run_id"] == "2"


def test_a_bundle_that_expired_stops_the_run_and_is_no_first_run(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    for folder in (fork.folder / "artifacts" / "1").glob("*-clearway-store"):
        folder.rename(fork.folder / "expired")
    run = fork.push()
    assert run.code == 1
    assert outcomes(run)["validate"] == "failure", run.explain()
    assert "Artifact not found for clearway-store in run 1" in run.text
    assert "is missing: artifact clearway-store of run 1 does not hold it" in run.text
    assert run.jobs.get("train", "skipped") == "skipped"
    assert run.steps["save-state"].get("Save state", "skipped") == "skipped"
    assert "Delivery: failed" in run.summary
    assert json.loads(fork.on_branch("run.json") or b"{}")["run_id"] == "1"
    assert fork.ledger("production") == before
