"""Rounds of the monitor: nothing that happens in one ends the watch, and what cannot be looked at is an alarm."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from clearway.alarm_issues import IssueMemory
from clearway.alarms import Alarm
from clearway.github_settings import GitHub
from clearway.monitoring import judge_staleness
from clearway.params import FreshnessTrigger, Params, load_params
from clearway.rounds import Round, guarded, look, repeat, spoken, tell_github, tell_people
from clearway.workspace import Workspace
from github_stand_in import REPOSITORY, github

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 3, 2, tzinfo=UTC)
ROUND = """
import os, pathlib, sys, time
log = pathlib.Path(sys.argv[1])
number = len(log.read_text()) if log.exists() else 0
with log.open("a") as stream:
    stream.write(".")
if number == 0: sys.exit(1)
if number == 1: sys.exit(3)
if number == 2: os.abort()
if number == 3: time.sleep(600)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    params = {
        "project": {"name": "toy"},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "y"},
        "environments": {"production": {"port": 0}},
        "monitoring": {"every_minutes": 60},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(tmp_path)


@pytest.fixture
def params(workspace: Workspace) -> Params:
    return load_params(workspace.params_file)


def test_the_watch_survives_rounds_that_fail_break_are_killed_and_hang(tmp_path: Path) -> None:
    log, stop, heard = tmp_path / "log", threading.Event(), []

    def on_failure(said: str) -> None:
        heard.append(said)
        raise RuntimeError("even this")

    def end() -> None:
        while not (log.exists() and len(log.read_text()) >= 6):
            time.sleep(0.05)
        stop.set()

    watcher = threading.Thread(target=end)
    watcher.start()
    command = [sys.executable, "-S", "-c", ROUND, str(log)]
    repeat(command, pause=0.01, limit=3.0, on_failure=on_failure, stop=stop)
    watcher.join()
    assert heard == [
        "a round ended with exit code 3",
        f"a round ended with exit code -{int(signal.SIGABRT)}",
        "a round took longer than 0.05 minutes and was ended",
    ]


def test_the_service_goes_on_where_nothing_can_be_measured_and_ends_when_asked(workspace: Workspace) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "monitor.py"), "--project", str(workspace.root), "--watch"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARWAY_", "GITHUB_"))}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        said = [service.stdout.readline(), service.stdout.readline()]  # of the first round
        assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert "1 alarms" in said[0]
    assert "ALARM monitor: nothing was ever deployed to production" in said[1]
    assert json.loads((workspace.environment("production") / "alarms.json").read_text()) == {"monitor": {"told": False}}


def test_what_cannot_be_measured_is_an_alarm_and_the_canary_is_looked_at_all_the_same(
    params: Params, workspace: Workspace
) -> None:
    found = look(params, workspace, "production", NOW)
    assert [alarm.kind for alarm in found.alarms] == ["monitor"]
    assert "canary" in found.well
    assert found.failed


def test_a_fault_of_our_own_is_an_alarm_and_what_was_found_stays() -> None:
    def broken(before: Round) -> Round:
        return {}["absent"]

    before = Round(alarms=(Alarm("server", "it is away"),), canary="hold")
    found = guarded("canary", before, broken)
    assert found == before.also(Alarm("canary", "KeyError: 'absent'"))


def test_an_address_that_is_none_is_said_and_the_alarm_kept(
    params: Params, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARWAY_ALERT_URLS", "nonsense://secret")
    found = tell_people(params, workspace, "production", Round(alarms=(Alarm("server", "it is away"),)))
    (warning,) = found.said
    assert "secret" not in warning
    assert found.failed
    assert json.loads((workspace.environment("production") / "alarms.json").read_text()) == {"server": {"told": False}}


def test_drift_raised_twice_is_one_issue_and_one_delivery(params: Params, workspace: Workspace) -> None:
    with github() as repository:
        for _ in range(2):
            ours = GitHub(REPOSITORY, "a-token", repository.address)
            found = Round(alarms=(Alarm("feature_drift", "4 of 9 features drifted"),), retrain=True)
            found = tell_people(params, workspace, "production", found, IssueMemory(ours, "production"))
            assert not found.failed
            said = tell_github(ours, params, found, NOW)
        assert len(repository.issues) == 1
        assert len(repository.dispatched) == 1
        assert said == []


def test_a_github_that_is_away_fails_no_round(params: Params) -> None:
    with github() as repository:
        repository.refuses = {"GET"}
        said = tell_github(GitHub(REPOSITORY, "a-token", repository.address), params, Round(retrain=True), NOW)
    assert said[0].startswith("no delivery was started: GitHub answers 403")
    assert said[1].startswith("crons may fall asleep: GitHub answers 403")


def test_a_line_that_data_broke_is_one_line() -> None:
    (_, line) = spoken(Round(alarms=(Alarm("server", "it says\n::error::forged"),)), [], "production")
    assert line == "ALARM server: it says ::error::forged"


@pytest.mark.parametrize(
    ("until", "status"),
    [(datetime(2026, 2, 1, tzinfo=UTC), "pass"), (datetime(2025, 11, 1, tzinfo=UTC), "alarm"), (None, "unknown")],
)
def test_a_model_that_learnt_long_ago_is_stale(until: datetime | None, status: str) -> None:
    assert judge_staleness(until, NOW, FreshnessTrigger(max_age_days=90)).status == status
    assert judge_staleness(until, None, FreshnessTrigger()).status == "unknown"
    assert judge_staleness(until, NOW, FreshnessTrigger(enabled=False)).status == "pass"
