"""delivery.yml, the real file, run for each reason to deliver and not to: jobs, steps, production, summary."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pytest
from act_runner import WorkflowRun
from forked_repository import Fork
from outcomes import DELIVERED, NOTHING_TO_DO, REJECTED, STOPPED_AT_VALIDATION, outcomes
from timed_project import write_timed_project

pytestmark = pytest.mark.lines

MORE_TREES = {"arguments": {"max_iter": 30, "min_samples_leaf": 5}}


def change_table(fork: Fork, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = fork.work / "cells.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_a_first_push_trains_and_deploys_through_production(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, run = delivered
    assert outcomes(run) == DELIVERED, run.explain()
    assert run.code == 0
    production = fork.ledger("production")
    assert [entry.action for entry in production] == ["deploy", "canary", "promote"]
    assert "baseline" in production[0].reason
    assert fork.serves("production") == (production[1].canary, None)
    assert fork.serves("staging") == (production[1].canary, None)
    assert {production[0].stable, production[-1].stable} <= set(fork.json_on_branch("store.json")["bundles"])
    assert run.steps["train"]["Say where it came from"] == "success"
    assert run.text.count("Verification succeeded") == 8, "two manifests of two bundles, before each deployment"
    assert run.steps["deploy-staging"]["Ask the deployed endpoint"] == "success"
    steps = run.steps["deploy-production"]
    assert (steps["Promote"], steps["Roll back"], steps["Say that it is held"]) == ("success", "skipped", "skipped")
    for said in (
        "Delivery: delivered",
        "bootstrap: no branch clearway-state yet",
        "Model passed",
        "Canary in production: promote",
        "State",
    ):
        assert said in run.summary
    assert fork.last_decision()["reasons"] == ["bootstrap"]


def test_a_second_push_with_nothing_changed_deploys_nothing_and_texts_from_outside_run_nowhere(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    mark = f"ran-{uuid4().hex}"
    evil = f'";touch ${{IFS}}{mark};$(touch ${{IFS}}{mark})`touch ${{IFS}}{mark}`;echo "'.replace(" ", "")
    evil = evil.replace("touch", "touch ")
    branch = evil.replace(" ", "${IFS}")
    fork.git("checkout", "--quiet", "-b", branch)
    fork.commit_and_push(f"{evil}\n::set-output name=retrain::true\n::error::{evil}")
    planted = fork.folder / "artifacts" / "99" / "1999-clearway-store"  # by a run of a pull request, of the same name
    (planted / "bundles").mkdir(parents=True)
    (planted / "bundles" / "evil").write_text("evil")
    person = {"name": evil, "email": f"{branch}@localhost", "username": evil}
    commit = {"message": evil, "author": person, "committer": person, "id": fork.git("rev-parse", "HEAD")}
    run = fork.push(ref=f"refs/heads/{branch}", head_commit=commit, commits=[commit], pusher=person)
    assert run.code == 0, run.explain()
    assert outcomes(run) == NOTHING_TO_DO, run.explain()
    assert run.steps["decide"]["Insist on a decision"] == "skipped"
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
    assert fork.json_on_branch("run.json")["run_id"] == "2"
    assert fork.json_on_branch("store.json")["run_id"] == "2", "bundles are carried forward"
    assert "restored from clearway-state" in run.summary
    assert fork.last_decision()["outcome"] == "skip"
    assert "nothing new to learn" in run.summary
    assert "Delivery: skipped" in run.summary
    assert not any(path.name == "evil" for path in (fork.folder / "artifacts" / "2").rglob("*"))
    assert not [
        path for path in fork.folder.rglob(f"*{mark}*") if "refs" not in path.parts and "logs" not in path.parts
    ]


def test_a_dispatch_input_is_a_text_and_no_command(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before, state = fork.ledger("production"), fork.json_on_branch("run.json")
    mark = f"ran-{uuid4().hex}"
    run = fork.dispatch(as_of=f'2024-01-01"; touch {mark}; "$(touch {mark})`touch {mark}`')
    assert run.code == 1
    assert outcomes(run)["validate"] == "failure", run.explain()
    assert run.steps["validate"]["Decide what time it is"] == "failure"
    assert "is no date or time" in run.text
    assert "Delivery: failed" in run.summary
    assert not [*fork.folder.rglob(mark)]
    assert fork.ledger("production") == before
    assert fork.json_on_branch("store.json")["bundles"]
    assert fork.json_on_branch("run.json")["run_id"] in ("2", state["run_id"])


def test_other_params_are_delivered_beside_the_champion(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train=MORE_TREES)
    fork.commit_and_push("Thirty trees")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == DELIVERED, run.explain()
    assert fork.last_decision()["reasons"] == ["code"]
    after = fork.ledger("production")
    assert after[: len(before)] == before, "history only grows"
    assert [entry.action for entry in after[len(before) :]] == ["canary", "promote"]
    assert after[len(before)].stable == before[-1].stable, "the champion is the control"
    assert fork.serves("production") == (after[len(before)].canary, None)
    assert fork.serves("production") == fork.serves("staging") != (before[-1].stable, None)
    assert "Canary in production: promote" in run.summary


def test_new_data_without_drift_deploys_nothing(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    change_table(fork, lambda table: pd.concat([table, table.sample(60, random_state=3)], ignore_index=True))
    fork.commit_and_push("Sixty more rows")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == NOTHING_TO_DO, run.explain()
    decision = fork.last_decision()
    assert (decision["outcome"], decision["reasons"]) == ("skip", [])
    assert "no drift" in run.summary
    assert "Delivery: skipped" in run.summary
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)


def test_drift_trains_a_challenger_on_what_the_world_is_now(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    numbers = ["mean_radius", "mean_texture", "mean_smoothness", "worst_concavity"]

    def shift(table: pd.DataFrame) -> pd.DataFrame:
        table[numbers] = table[numbers] + table[numbers].std()
        return table

    change_table(fork, shift)
    fork.commit_and_push("Another microscope")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert "drift" in fork.last_decision()["reasons"]
    assert outcomes(run) == DELIVERED, run.explain()
    assert fork.serves("production") != (before[-1].stable, None)
    assert "drift: " in run.summary
    assert "Delivery: delivered" in run.summary


def test_a_forced_retraining_goes_as_far_as_it_was_asked_to_though_nothing_else_asks_for_it(
    delivered: tuple[Fork, WorkflowRun],
) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train=MORE_TREES, decision={"code": {"enabled": False}})  # so that nothing but force asks for it
    fork.commit_and_push("Thirty trees")
    run = fork.dispatch(force_retrain="true", environment="staging")
    assert run.code == 0, run.explain()
    assert outcomes(run) == {**DELIVERED, "deploy-production": "skipped"}, run.explain()
    assert fork.last_decision()["reasons"] == ["manual"]
    assert "Delivery: staged" in run.summary
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
    assert fork.serves("staging")[0] != before[-1].stable


def test_a_weekly_run_retrains_when_the_champion_is_old_enough(make_fork: Callable[..., Fork], tmp_path: Path) -> None:
    fork = make_fork(tmp_path / "fork", write_timed_project)
    first = fork.push()
    assert outcomes(first) == DELIVERED, first.explain()
    assert "**as of** 2024-04-01T00:00:00Z" in first.summary
    before = fork.ledger("production")
    run = fork.schedule()
    assert run.code == 0, run.explain()
    assert "**as of** 2024-04-08T00:00:00Z" in run.summary
    assert fork.last_decision()["reasons"] == ["schedule"], run.explain()
    assert outcomes(run) == DELIVERED, run.explain()
    after = fork.ledger("production")
    assert [entry.action for entry in after[len(before) :]] == ["canary", "promote"]
    assert fork.serves("production") != (before[-1].stable, None)
    assert "Delivery: delivered" in run.summary


def test_broken_data_stops_at_validation_and_state_is_kept(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")

    def break_sensor(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[:50, "mean_radius"] = -1.0
        return table

    change_table(fork, break_sensor)
    fork.commit_and_push("A sensor fails")
    run = fork.push()
    assert run.code == 1
    assert outcomes(run) == STOPPED_AT_VALIDATION, run.explain()
    assert run.steps["validate"]["Validate the data"] == "failure"
    assert "mean_radius" in run.text
    assert "Delivery: failed" in run.summary
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
    assert fork.json_on_branch("run.json")["run_id"] == "2"
    assert fork.json_on_branch("store.json")["run_id"] == "2"


def test_a_rejected_challenger_is_a_green_run_that_deploys_nothing(delivered: tuple[Fork, WorkflowRun]) -> None:
    fork, _ = delivered
    before = fork.ledger("production")
    fork.change_params(train={"arguments": {"max_iter": 1, "max_leaf_nodes": 2, "learning_rate": 0.001}})
    fork.change_params(gates={"floors": {"roc_auc": 0.999}})
    fork.commit_and_push("A stump, held to a high bar")
    run = fork.push()
    assert run.code == 0, run.explain()
    assert outcomes(run) == REJECTED, run.explain()
    steps = run.steps["train"]
    assert (steps["Register"], steps["Bundle"], steps["Insist on a verdict"]) == ("skipped", "skipped", "skipped")
    assert "Model rejected" in run.summary
    assert "floor_roc_auc" in run.summary
    assert "Delivery: rejected" in run.summary
    assert fork.ledger("production") == before
    assert fork.serves("production") == (before[-1].stable, None)
    assert fork.json_on_branch("run.json")["run_id"] == "2"
