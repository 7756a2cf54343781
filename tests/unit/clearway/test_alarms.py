"""Alarms are told once, kept in a file or as issues of a repository on a real HTTP server, and cleared."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clearway.alarm_issues import LABEL, IssueMemory
from clearway.alarms import Alarm, FileMemory, Memory, settle
from clearway.errors import ClearwayError
from clearway.github_settings import GitHub, this_repository
from clearway.github_workflows import keep_awake, last_delivery, start_delivery, wants_delivery
from github_stand_in import LONG_AGO, REPOSITORY, Repository, github

DRIFT, SERVER = Alarm("feature_drift", "4 of 9 features drifted"), Alarm("server", "it does not answer")
NOW = datetime(2026, 3, 2, tzinfo=UTC)


class Receiver:
    """People, who may be out of reach."""

    def __init__(self, away: bool = False) -> None:
        self.heard: list[str] = []
        self.away = away

    def __call__(self, title: str, text: str, kind: str) -> None:
        if self.away:
            raise ClearwayError("receiver 1 (JSON) did not take it")
        self.heard.append(f"{kind}: {title}: {text}")


def memories(folder: Path, repository: Repository) -> list[Memory]:
    return [FileMemory(folder), IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production")]


@pytest.mark.parametrize("which", [0, 1], ids=["file", "issues"])
def test_an_alarm_that_lasts_is_told_once_and_its_end_once(tmp_path: Path, which: int) -> None:
    people = Receiver()
    with github() as repository:
        for alarms, well in (((DRIFT,), ()), ((DRIFT, SERVER), ()), ((SERVER,), ()), ((), ("server", "errors"))):
            memory = memories(tmp_path, repository)[which]  # each round is a process of its own
            assert settle(memory, alarms, well, "toy production", people) == ()
        left = memories(tmp_path, repository)[which].known()
    assert people.heard == [
        "failure: toy production: alarm: feature drift: 4 of 9 features drifted",
        "failure: toy production: alarm: server: it does not answer",
        "success: toy production: alarm: server is over: the check passes again",
    ]
    assert set(left) == {"feature_drift"}, "one that is neither seen nor well lasts"


@pytest.mark.parametrize("which", [0, 1], ids=["file", "issues"])
def test_what_nobody_took_is_told_again_in_the_next_round(tmp_path: Path, which: int) -> None:
    people = Receiver(away=True)
    with github() as repository:
        memory = memories(tmp_path, repository)[which]
        assert settle(memory, [DRIFT], (), "toy production", people) == ("receiver 1 (JSON) did not take it",)
        people.away = False
        assert settle(memories(tmp_path, repository)[which], [DRIFT], (), "toy production", people) == ()
        settle(memories(tmp_path, repository)[which], [DRIFT], (), "toy production", people)
    assert len(people.heard) == 1


def test_two_raises_of_one_alarm_are_one_issue_which_is_brought_up_to_date_and_closed() -> None:
    with github() as repository:
        for sentence in ("4 of 9", "5 of 9 `@everybody`"):
            memory = IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production", "https://run/7")
            settle(memory, [Alarm("feature_drift", sentence)], (), "toy", None)
        other = IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "staging")
        settle(other, [DRIFT], (), "toy", None)
        production, staging = repository.open_issues()
        assert production["title"] == "production: alarm: feature drift"
        assert production["labels"] == [LABEL]
        assert "```\n5 of 9 '@everybody'\n```" in production["body"], "what data says stays code"
        assert "https://run/7" in production["body"]
        memory = IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production")
        settle(memory, [], {"feature_drift"}, "toy", None)
        assert repository.open_issues() == [staging]
        assert repository.issues[production["number"]]["state_reason"] == "completed"
        assert repository.comments == [(production["number"], "The check passes again.")]
        assert repository.tokens == {"Bearer a-token"}


def test_an_issue_that_somebody_wrote_without_the_label_is_not_taken_for_an_alarm() -> None:
    mark = "<!-- clearway-alarm production/server told=yes -->"
    with github() as repository:
        repository.issues[1] = {"number": 1, "state": "open", "labels": [], "body": mark}
        repository.issues[2] = {"number": 2, "state": "open", "labels": [LABEL], "body": mark, "pull_request": {}}
        repository.issues[3] = {"number": 3, "state": "open", "labels": [LABEL], "body": None}
        assert IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production").known() == {}


def test_a_token_without_rights_is_one_line_that_names_them_and_people_are_told_all_the_same() -> None:
    people = Receiver()
    with github() as repository:
        repository.refuses = {"POST"}
        memory = IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production")
        (warning,) = settle(memory, [DRIFT], (), "toy", people)
    assert warning.endswith(
        "with 403 (Resource not accessible by integration): the token needs permissions: issues: write"
    )
    assert len(people.heard) == 1


def test_a_passing_failure_of_github_is_asked_again() -> None:
    with github() as repository:
        repository.failures = [503, 502]
        assert IssueMemory(GitHub(REPOSITORY, "a-token", repository.address), "production").known() == {}
        assert repository.failures == []


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "alarms.json").write_text('{"server": 1}')
    with pytest.raises(ClearwayError, match=r"alarms\.json is damaged .*delete it"):
        settle(FileMemory(tmp_path), [], (), "toy", None)


@pytest.mark.parametrize(
    ("retrain", "hours_ago", "running", "wanted"),
    [
        (True, None, False, True),
        (True, 25.0, False, True),
        (True, 23.0, False, False),
        (True, 25.0, True, False),
        (False, None, False, False),
    ],
)
def test_a_delivery_is_started_for_an_alarm_but_not_beside_another_nor_again_and_again(
    retrain: bool, hours_ago: float | None, running: bool, wanted: bool
) -> None:
    last = None if hours_ago is None else NOW - timedelta(hours=hours_ago)
    assert wants_delivery(retrain, last, running, NOW, 24.0) is wanted


def test_the_default_branch_is_delivered_and_the_last_delivery_is_known() -> None:
    with github() as repository:
        ours = GitHub(REPOSITORY, "a-token", repository.address)
        assert last_delivery(ours) == (None, False)
        repository.runs = [
            {"created_at": "2026-03-01T10:00:00Z", "status": "completed"},
            {"created_at": "2026-03-01T12:00:00Z", "status": "queued"},
        ]
        assert last_delivery(ours) == (datetime(2026, 3, 1, 12, tzinfo=UTC), True)
        start_delivery(ours)
        assert repository.dispatched == [("delivery.yml", {"ref": "main", "inputs": {"force_retrain": "true"}})]


def test_crons_are_enabled_before_and_after_github_switches_them_off_but_not_against_a_person() -> None:
    with github() as repository:
        recent = (NOW - timedelta(days=3)).isoformat()
        repository.workflows = [
            {"id": 1, "path": ".github/workflows/monitor.yml", "state": "active", "updated_at": LONG_AGO},
            {"id": 2, "path": ".github/workflows/delivery.yml", "state": "disabled_inactivity", "updated_at": recent},
            {"id": 3, "path": ".github/workflows/security.yml", "state": "disabled_manually", "updated_at": LONG_AGO},
            {"id": 4, "path": ".github/workflows/another.yml", "state": "disabled_inactivity", "updated_at": LONG_AGO},
        ]
        said = keep_awake(GitHub(REPOSITORY, "a-token", repository.address), NOW)
        assert repository.enabled == [1, 2]
        assert said == [
            "GitHub had switched the cron of delivery.yml off after 60 quiet days: it is on again",
            "security.yml is off (disabled_manually): its cron does not run until somebody enables it",
        ]
        repository.workflows = [{**repository.workflows[0], "updated_at": recent}]
        assert keep_awake(GitHub(REPOSITORY, "a-token", repository.address), NOW) == []
        assert repository.enabled == [1, 2], "what was changed lately is left alone"


@pytest.mark.parametrize("environ", [{}, {"GITHUB_REPOSITORY": REPOSITORY}, {"GITHUB_TOKEN": "t"}])
def test_outside_a_job_there_is_no_repository(environ: dict[str, str]) -> None:
    with pytest.raises(ClearwayError, match="GITHUB_TOKEN must be set"):
        this_repository(environ)
