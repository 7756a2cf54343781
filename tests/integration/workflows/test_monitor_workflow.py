"""monitor.yml, the real file: nothing runs where there is nothing to watch, and an alarm that lasts is one issue."""

from collections.abc import Callable
from pathlib import Path

import pytest
from act_runner import TOKEN
from forked_repository import Fork

from github_stand_in import github

pytestmark = pytest.mark.lines

ENV = {"production": {"port": 0, "requires": "staging", "target": {"kind": "http", "retries": 0}}}
AWAY = {"CLEARWAY_PRODUCTION_URL": "http://127.0.0.1:9"}


def test_a_server_that_is_away_is_one_issue_however_often_it_is_seen(
    make_fork: Callable[[Path], Fork], tmp_path: Path
) -> None:
    fork = make_fork(tmp_path / "fork")
    fork.change_params(environments=ENV)
    with github() as repository:
        idle = fork.run("monitor.yml", "schedule", {"schedule": "37 * * * *"}, api=repository.address)
        assert idle.code == 0, idle.explain()
        assert idle.jobs.get("production", "skipped") == "skipped"
        assert repository.tokens == set(), "GitHub is not even asked"
        for _ in range(2):
            run = fork.run(
                "monitor.yml",
                "schedule",
                {"schedule": "37 * * * *"},
                api=repository.address,
                variables=AWAY,
                secrets={"CLEARWAY_ADMIN_TOKEN": "t" * 40},
            )
            assert run.code == 1, "what cannot be watched is red"
            assert "out of reach" in run.text, run.explain()
        (issue,) = repository.open_issues()
        assert issue["title"] == "production: alarm: monitor"
        assert "http://127.0.0.1:9 is out of reach" in issue["body"]
        assert repository.tokens == {f"Bearer {TOKEN}"}
        assert "ALARM monitor" in run.summary
