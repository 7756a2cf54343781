"""The history of decisions: what it holds, what the next decision may weigh of it, how it is shown."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from clearway.decision import ChampionFacts, Decision, DecisionEvidence, DriftEvidence, decide
from clearway.decision_history import (
    earlier_windows,
    last_retrain,
    past_decisions,
    read_history,
    read_past,
    record_decision,
    write_past,
)
from clearway.decision_tables import history_lines
from clearway.errors import ClearwayError
from clearway.files import sha256_file
from clearway.params import DecisionParams, Params
from clearway.workspace import Workspace

START = datetime(2020, 1, 1, tzinfo=UTC)
AT = datetime(2030, 1, 1, tzinfo=UTC)
QUIET = DecisionParams.model_validate({"drift": {"enabled": False}, "schedule": {"enabled": False}})


def decided(
    day: int | None,
    *,
    drift: str = "no_drift",
    force: bool = False,
    champion: str = "c",
    snapshot: str = "s",
    **more: Any,
) -> Decision:
    """A decision as of that day, or on that snapshot."""
    as_of = None if day is None else START + timedelta(days=day)
    facts = ChampionFacts(digest=champion, as_of=None, snapshot_sha256="s0", recipe_sha256="r", labelled_rows=1)
    seen = {
        "as_of": as_of,
        "snapshot_sha256": snapshot,
        "recipe_sha256": "r",
        "labelled_rows": 1,
        "data": "passed",
        "champion": facts,
        "drift": DriftEvidence.model_validate(
            {"verdict": drift, "share": 0.5, "feature_share": 0.3, "sentence": "Some drifted\u2028or not."}
        ),
        "performance": None,
        "force_retrain": force,
        **more,
    }
    return decide(DecisionEvidence.model_validate(seen), QUIET)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def record(workspace: Workspace, *decisions: Decision) -> None:
    for number, decision in enumerate(decisions):
        record_decision(decision, workspace, at=AT, run=str(number))


def drifts(workspace: Workspace, day: int | None, champion: str = "c", snapshot: str = "s") -> list[bool | None]:
    as_of = None if day is None else START + timedelta(days=day)
    past = past_decisions(read_history(workspace), as_of, snapshot)
    return [window.crossed["drift"] for window in earlier_windows(past, champion, 3)]


def test_each_decision_is_held_once(workspace: Workspace) -> None:
    skip, train = decided(1), decided(1, force=True)
    assert read_history(workspace) == []
    assert record_decision(skip, workspace, at=AT)
    assert not record_decision(skip, workspace, at=AT + timedelta(hours=1))
    assert record_decision(skip, workspace, at=AT, run="7")  # another run asked: another decision
    assert record_decision(train, workspace, at=AT, run="7")
    assert record_decision(skip, workspace, at=AT, run="7")
    history = read_history(workspace)
    assert [one.decision.outcome for one in history] == ["skip", "skip", "retrain", "skip"]
    assert (history[0].at, history[0].decision) == (AT, skip)


def test_recorded_lines_stay_as_they_are(workspace: Workspace) -> None:
    record(workspace, decided(1))
    line = json.loads(workspace.decisions.read_text())
    del line["decision"]["override_reason"]  # as a version wrote it that knew no reason
    before = json.dumps(line, indent=None) + "\n"
    workspace.decisions.write_text(before)
    record_decision(decided(2), workspace, at=AT)
    assert workspace.decisions.read_text().startswith(before)
    assert len(read_history(workspace)) == 2


@pytest.mark.parametrize(
    "damage", ['{"at": "2030', '{"at": "2030-01-01T00:00:00Z", "run": null, "decision": {}}\n', "[]\n"]
)
def test_a_damaged_history_is_named_and_left_alone(workspace: Workspace, damage: str) -> None:
    record(workspace, decided(1))
    damaged = workspace.decisions.read_text() + damage
    workspace.decisions.write_text(damaged)
    with pytest.raises(ClearwayError, match=r"decisions\.jsonl line 2 is no decision"):
        record_decision(decided(2), workspace, at=AT)
    assert workspace.decisions.read_text() == damaged


def test_a_line_without_its_end_is_no_reason_to_join_the_next_to_it(workspace: Workspace) -> None:
    record(workspace, decided(1))
    workspace.decisions.write_text(workspace.decisions.read_text().rstrip("\n"))
    record(workspace, decided(2))
    assert len(read_history(workspace)) == 2


def test_windows_are_those_before_this_time_with_this_champion_in_their_order(workspace: Workspace) -> None:
    record(
        workspace,
        decided(14, drift="unknown"),
        decided(7, drift="drift"),  # recorded later, but earlier in the world's time
        decided(21, drift="drift", champion="other"),
        decided(28),
        decided(None, drift="drift"),
    )
    assert drifts(workspace, 28) == [True, None]
    assert drifts(workspace, 35) == [True, None, False]
    assert drifts(workspace, 7) == []
    assert drifts(workspace, 35, champion="other") == [True]
    assert earlier_windows(past_decisions(read_history(workspace), START + timedelta(days=35), None), "c", 0) == ()


def test_a_window_asked_twice_counts_once_with_its_last_word(workspace: Workspace) -> None:
    record(workspace, decided(7), decided(7, drift="drift"), decided(14))
    assert drifts(workspace, 21) == [True, False]


def test_a_training_counts_though_the_same_window_was_asked_again_with_its_new_champion(workspace: Workspace) -> None:
    record(workspace, decided(7, force=True), decided(7, champion="new"), decided(14, champion="new"))
    history = read_history(workspace)
    last = last_retrain(past_decisions(history, START + timedelta(days=14), None))
    assert last is not None
    assert last.as_of == START + timedelta(days=7)
    assert last_retrain(past_decisions(history, START + timedelta(days=7), None)) is None, "this is the same decision"
    assert last_retrain(()) is None


def test_a_decision_of_the_future_is_no_past(workspace: Workspace) -> None:
    record(workspace, decided(90, force=True))
    assert past_decisions(read_history(workspace), START + timedelta(days=30), None) == ()


def test_without_time_the_past_goes_by_snapshots(workspace: Workspace) -> None:
    record(
        workspace,
        decided(None, snapshot="a", force=True),
        decided(None, snapshot="b", drift="drift"),
        decided(7, drift="drift"),  # has a time: never mixed in
        decided(None, snapshot="a"),  # asked again
        decided(None, snapshot="c"),
    )
    history = read_history(workspace)
    assert drifts(workspace, None, snapshot="d") == [False, True, False]
    assert drifts(workspace, None, snapshot="c") == [False, True]
    assert drifts(workspace, None, snapshot="a") == []
    for snapshot, ago in (("d", 3), ("c", 2), ("b", 1)):
        last = last_retrain(past_decisions(history, None, snapshot))
        assert last is not None
        assert (last.as_of, last.snapshots_ago) == (None, ago)
    assert last_retrain(past_decisions(history, None, "a")) is None


def params(as_of: str | None) -> Params:
    content = {
        "project": {"name": "toy"},
        "as_of": as_of,
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "y"},
        "environments": {"live": {"port": 2}},
    }
    return Params.model_validate(content)


def test_recording_a_decision_does_not_change_its_own_past(workspace: Workspace) -> None:
    """Otherwise DVC would see a new input after each decision and take it again."""
    workspace.snapshot.parent.mkdir(parents=True)
    workspace.snapshot.write_text("{}")
    mine = sha256_file(workspace.snapshot)
    record(workspace, decided(1, drift="drift"), decided(None, snapshot="other", drift="drift"))
    for settings, again in (
        (params("2020-01-08T00:00:00Z"), decided(7, drift="drift")),
        (params(None), decided(None, snapshot=mine, force=True)),
    ):
        assert write_past(settings, workspace) == 1
        before = workspace.past_decisions.read_bytes()
        record(workspace, again)
        write_past(settings, workspace)
        assert workspace.past_decisions.read_bytes() == before
        assert [one.crossed["drift"] for one in read_past(workspace)] == [True]


def test_a_past_that_is_missing_or_damaged_stops(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=r"past_decisions\.json is missing: run scripts/fetch_champion\.py first"):
        read_past(workspace)
    workspace.build.mkdir()
    workspace.past_decisions.write_text('[{"as_of": 1}]')
    with pytest.raises(ClearwayError, match=r"is damaged .*run scripts/fetch_champion"):
        read_past(workspace)
    with pytest.raises(ClearwayError, match=r"snapshot\.json is missing: run scripts/ingest\.py first"):
        write_past(params(None), workspace)


def test_the_history_shows_when_what_and_why_and_every_override(workspace: Workspace) -> None:
    reason = "known [bold] sensor fault"
    let_through = QUIET.model_copy(update={"override_veto": reason})
    overridden = decide(decided(14, data="failed", force=True).evidence, let_through)
    record(workspace, decided(7), overridden, decided(None))
    shown = terminal(*history_lines(read_history(workspace), 3))
    for text in ("2030-01-01 00:00", "2020-01-15", "retrain: manual", "veto overridden", reason, "skip"):
        assert text in shown
    assert shown.count("veto overridden") == 1
    assert "no decision was taken yet" in terminal(*history_lines([], 3))


def test_a_long_history_is_readable_in_eighty_columns(workspace: Workspace) -> None:
    record(workspace, *(decided(day, drift="unknown") for day in range(30)))
    shown = terminal(*history_lines(read_history(workspace), 10)).splitlines()
    assert shown[0] == "the last 10 of 30 decisions (--history 30 shows all)"
    assert "2020-01-21" in shown[1]
    assert "2020-01-30" in shown[-3]
    assert len(shown) <= 1 + 10 * 3
    assert len(terminal(*history_lines(read_history(workspace), 0)).splitlines()) <= 4


def terminal(*lines: RenderableType) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*lines, sep="\n")
    return console.export_text()
