"""monitor.yml, the real file: nothing runs where there is nothing to watch, and an alarm that lasts is one issue."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from act_runner import TOKEN, WorkflowRun
from forked_repository import Fork
from live_server import Server, running, until

from clearway.ledger import read_ledger
from clearway.prediction_log import read_log
from clearway.workspace import Workspace
from github_stand_in import Repository, github

pytestmark = pytest.mark.lines

ENV = {"production": {"port": 0, "requires": "staging", "target": {"kind": "http", "retries": 0}}}
SECRETS = {"CLEARWAY_ADMIN_TOKEN": "t" * 40}


def look(fork: Fork, repository: Repository, url: str | None = None) -> WorkflowRun:
    """One hourly run, of a repository whose production is at ``url``."""
    watched = {"variables": {"CLEARWAY_PRODUCTION_URL": url}, "secrets": SECRETS} if url else {}
    return fork.run("monitor.yml", "schedule", {"schedule": "37 * * * *"}, api=repository.address, **watched)


def test_a_server_that_is_away_is_one_issue_however_often_it_is_seen(
    make_fork: Callable[[Path], Fork], tmp_path: Path
) -> None:
    fork = make_fork(tmp_path / "fork")
    fork.change_params(environments=ENV)
    with github() as repository:
        idle = look(fork, repository)
        assert idle.code == 0, idle.explain()
        assert idle.jobs.get("production", "skipped") == "skipped"
        assert repository.tokens == set(), "GitHub is not even asked"
        for _ in range(2):
            run = look(fork, repository, "http://127.0.0.1:9")
            assert run.code == 1, "what cannot be watched is red"
            assert "out of reach" in run.text, run.explain()
        (issue,) = repository.open_issues()
        assert issue["title"] == "production: alarm: monitor"
        assert "http://127.0.0.1:9 is out of reach" in issue["body"]
        assert repository.tokens == {f"Bearer {TOKEN}"}
        assert "ALARM monitor" in run.summary


def move_production(fork: Fork, folder: Path) -> Workspace:
    """A machine of its own for production: the params, the ledger, and the bundles that the fork's last run left."""
    workspace = Workspace(folder)
    environment = workspace.environment("production")
    environment.mkdir(parents=True)
    shutil.copy(fork.work / "params.yaml", workspace.params_file)
    for name in ("ledger.jsonl", "head.json", "routing.json"):
        (environment / name).write_bytes(fork.on_branch(f"environments/production/{name}") or b"")
    store = fork.json_on_branch("store.json")
    (bundles,) = (fork.folder / "artifacts" / store["run_id"]).glob(f"*-{store['artifact']}/bundles")
    shutil.copytree(bundles, workspace.bundles)
    return workspace


def ask(server: Server, table: pd.DataFrame, *doubled: str) -> None:
    """120 rows of the table, of which these columns are twice what they were; returns when they are in the log."""
    log = server.folder / "predictions"
    before = len(read_log(log))
    rows = table.drop(columns="diagnosis").sample(120, random_state=before)
    for row in rows.assign(**{name: 2 * rows[name] for name in doubled}).to_dict("records"):
        status, answer, _ = server.predict(row)
        assert status == 200, answer
    until(lambda: len(read_log(log)) == before + len(rows), "the log")


def test_drift_that_is_seen_twice_is_one_issue_brought_up_to_date_and_one_delivery(
    delivered: tuple[Fork, WorkflowRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, _ = delivered
    ledger, table = fork.ledger("production"), pd.read_csv(fork.work / "cells.csv")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with running(move_production(fork, tmp_path / "elsewhere"), "production") as server, github() as repository:
        url = f"http://127.0.0.1:{server.port}"
        ask(server, table)
        calm = look(fork, repository, url)
        assert (calm.code, repository.issues, repository.dispatched) == (0, {}, []), calm.explain()
        assert "production: 0 alarms" in calm.summary

        bodies = []
        for doubled in (("mean_radius", "mean_texture"), ("mean_radius", "mean_texture", "mean_smoothness")):
            ask(server, table, *doubled)
            run = look(fork, repository, url)
            assert run.code == 0, "it was told: " + run.explain()
            assert run.steps["production"]["Recall the ledger as it was last seen"] == "success"
            titles = [issue["title"] for issue in repository.issues.values()]
            assert titles == ["production: alarm: feature drift", "production: alarm: prediction drift"]
            assert repository.open_issues() == [*repository.issues.values()]
            bodies.append(repository.issues[1]["body"])
            seen = f"{len(doubled)} of 5 features drifted"
            assert seen in bodies[-1]
            assert f"ALARM feature_drift: {seen}" in run.summary
            assert "ALARM prediction_drift: scores of the stable model" in run.summary
            assert ("a delivery was started" in run.summary) is (len(bodies) == 1)
            assert repository.dispatched == [("delivery.yml", {"ref": "main", "inputs": {"force_retrain": "true"}})]
            (delivery,) = repository.runs
            delivery["status"] = "completed"  # and its model was rejected: it is not asked for again every hour
        assert "mean_smoothness" not in bodies[0]
        assert "mean_smoothness" in bodies[1]
        assert repository.comments == []
        assert (server.state()["stable"], server.state()["canary"]) == (ledger[-1].stable, None)
        assert read_ledger(server.folder, "production") == ledger
