"""The table of cases of the decision, and the history that it leaves."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clearway.decision import (
    ChampionFacts,
    Decision,
    DecisionEvidence,
    DriftEvidence,
    PerformanceEvidence,
    decide,
)
from clearway.decision_tables import history_table, markdown, trigger_table
from clearway.errors import ClearwayError, UsageError
from clearway.evidence import parse_force, read_history, record_decision, write_decision
from clearway.params import DecisionParams
from clearway.workspace import Workspace

THEN = datetime(2020, 1, 1, tzinfo=UTC)
CHAMPION = ChampionFacts(digest="c" * 64, as_of=THEN, snapshot_sha256="s1", recipe_sha256="r1", labelled_rows=1_000)
LIMITS = DecisionParams.model_validate(
    {"schedule": {"max_age_days": 30}, "data_volume": {"min_new_rows": 500}, "performance": {"max_drop": 0.03}}
)
SAME = {"snapshot_sha256": "s1", "recipe_sha256": "r1", "as_of": THEN}


def drift(verdict: str) -> DriftEvidence:
    return DriftEvidence.model_validate(
        {"verdict": verdict, "share": 0.5, "feature_share": 0.3, "sentence": "3 of 6 features drifted."}
    )


def performance(now: float | None, rows: int = 1_000, **changes: Any) -> PerformanceEvidence:
    return PerformanceEvidence.model_validate({"metric": "roc_auc", "before": 0.8, "now": now, "rows": rows, **changes})


def evidence(**changes: Any) -> DecisionEvidence:
    """A week later, new data, and nothing that asks for a training."""
    quiet = {
        "as_of": THEN + timedelta(days=7),
        "snapshot_sha256": "s2",
        "recipe_sha256": "r1",
        "labelled_rows": 1_100,
        "data": "passed",
        "champion": CHAMPION,
        "drift": drift("no_drift"),
        "performance": performance(0.79),
    }
    return DecisionEvidence.model_validate({**quiet, **changes})


def limits(**changes: Any) -> DecisionParams:
    return LIMITS.model_copy(update=changes)


def fired(decision: Decision) -> dict[str, bool | None]:
    return {trigger.name: trigger.fired for trigger in decision.triggers}


NO_CHAMPION = {"champion": None, "performance": None, "drift": drift("bootstrap"), "bootstrap_reason": "first model"}

CASES: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("nothing happened", {}, "skip", ()),
    ("the first model", NO_CHAMPION, "retrain", ("bootstrap",)),
    ("drift", {"drift": drift("drift")}, "retrain", ("drift",)),
    ("drift unknown", {"drift": drift("unknown")}, "skip", ()),
    ("a month went by", {"as_of": THEN + timedelta(days=30)}, "retrain", ("schedule",)),
    ("a second less than a month", {"as_of": THEN + timedelta(days=30, seconds=-1)}, "skip", ()),
    ("enough new labels", {"labelled_rows": 1_500}, "retrain", ("data_volume",)),
    ("one label short", {"labelled_rows": 1_499}, "skip", ()),
    ("fewer labels than the champion had", {"labelled_rows": 10}, "skip", ()),
    ("worse on today's labels", {"performance": performance(0.76)}, "retrain", ("performance",)),
    ("better on today's labels", {"performance": performance(0.9)}, "skip", ()),
    ("worse, on too few labels", {"performance": performance(0.5, rows=499)}, "skip", ()),
    ("a loss that rose", {"performance": performance(0.9, higher_is_better=False)}, "retrain", ("performance",)),
    ("a loss that fell", {"performance": performance(0.7, higher_is_better=False)}, "skip", ()),
    ("new code", {"recipe_sha256": "r2"}, "retrain", ("code",)),
    ("new code on the same data", {**SAME, "recipe_sha256": "r2"}, "retrain", ("code",)),
    ("forced", {"force_retrain": True}, "retrain", ("manual",)),
    ("forced with nothing new", {**SAME, "force_retrain": True}, "retrain", ("manual",)),
    ("drift with nothing new", {**SAME, "drift": drift("drift")}, "skip", ()),
    (
        "everything at once, in order of rank",
        {
            "force_retrain": True,
            "recipe_sha256": "r2",
            "performance": performance(0.5),
            "drift": drift("drift"),
            "as_of": THEN + timedelta(days=90),
            "labelled_rows": 9_000,
        },
        "retrain",
        ("manual", "code", "performance", "drift", "schedule", "data_volume"),
    ),
    ("time runs backwards", {"as_of": THEN - timedelta(days=1), "drift": drift("drift")}, "stopped", ()),
    ("backwards with new code", {"as_of": THEN - timedelta(days=1), "recipe_sha256": "r2"}, "stopped", ()),
    ("backwards and forced", {"as_of": THEN - timedelta(days=1), "force_retrain": True}, "retrain", ("manual",)),
    ("data without time", {"as_of": None}, "skip", ()),
    ("broken data", {"data": "failed", "drift": drift("drift")}, "vetoed", ()),
    ("broken data, forced", {"data": "failed", "force_retrain": True}, "vetoed", ()),
    ("broken data on the first run", {**NO_CHAMPION, "data": "failed"}, "vetoed", ()),
]


@pytest.mark.parametrize(
    ("changes", "outcome", "reasons"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_case(changes: dict[str, Any], outcome: str, reasons: tuple[str, ...]) -> None:
    decision = decide(evidence(**changes), LIMITS)
    assert (decision.outcome, decision.reasons) == (outcome, reasons)
    assert decision.retrain is (outcome == "retrain")
    assert decision.sentence.startswith("Retrain: " if decision.retrain else "No retraining: ")
    assert decision.sentence.endswith(".")


@pytest.mark.parametrize("name", ["drift", "schedule", "data_volume", "performance", "code"])
def test_a_disabled_trigger_is_recorded_and_does_not_count(name: str) -> None:
    loud = evidence(
        recipe_sha256="r2",
        performance=performance(0.5),
        drift=drift("drift"),
        as_of=THEN + timedelta(days=90),
        labelled_rows=9_000,
    )
    off = getattr(LIMITS, name).model_copy(update={"enabled": False})
    decision = decide(loud, limits(**{name: off}))
    assert fired(decision)[name] is True
    assert name not in decision.reasons
    assert len(decision.reasons) == 4


def test_a_lone_disabled_trigger_is_said_to_have_fired() -> None:
    off = LIMITS.drift.model_copy(update={"enabled": False})
    decision = decide(evidence(drift=drift("drift")), limits(drift=off))
    assert decision.outcome == "skip"
    assert "only disabled triggers fired (drift)" in decision.sentence


def test_unknowns_are_neither_fired_nor_silent_and_are_named() -> None:
    decision = decide(evidence(drift=drift("unknown"), performance=performance(None), as_of=None), LIMITS)
    states = fired(decision)
    assert (states["drift"], states["performance"], states["schedule"]) == (None, None, None)
    assert "performance, drift, schedule could not be measured" in decision.sentence


def test_without_a_champion_nothing_else_pretends_to_know() -> None:
    decision = decide(evidence(**NO_CHAMPION), LIMITS)
    unknown = {name for name, state in fired(decision).items() if state is None}
    assert unknown == {"code", "performance", "drift", "schedule", "data_volume"}
    assert "there is no champion yet: first model" in decision.sentence


def test_suppressed_triggers_stay_on_record_with_the_reason() -> None:
    loud = evidence(**SAME, drift=drift("drift"), performance=performance(0.5), labelled_rows=9_000)
    decision = decide(loud, LIMITS)
    held = {trigger.name: trigger.suppressed for trigger in decision.triggers if trigger.suppressed}
    assert set(held) == {"performance", "drift", "data_volume"}
    assert all("nothing new to learn" in str(why) for why in held.values())
    assert "nothing new to learn" in decision.sentence


def test_new_data_or_a_new_recipe_is_something_to_learn() -> None:
    for new in ({"snapshot_sha256": "s2"}, {"recipe_sha256": "r2"}):
        decision = decide(evidence(**{**SAME, **new}, drift=drift("drift")), LIMITS)
        assert "drift" in decision.reasons


def test_time_running_backwards_names_both_times_even_when_forced() -> None:
    for force in (False, True):
        decision = decide(evidence(as_of=THEN - timedelta(days=1), force_retrain=force), LIMITS)
        assert "2019-12-31T00:00:00Z" in decision.sentence
        assert "2020-01-01T00:00:00Z" in decision.sentence


def test_the_veto_names_what_was_wanted_and_can_be_overridden_in_the_open() -> None:
    broken = evidence(data="failed", force_retrain=True)
    vetoed = decide(broken, LIMITS)
    assert "wanted by manual" in vetoed.sentence
    assert vetoed.veto_overridden is False
    overridden = decide(broken, limits(override_veto=True))
    assert (overridden.retrain, overridden.veto_overridden) == (True, True)
    assert "override_veto" in overridden.sentence
    assert decide(evidence(force_retrain=True), limits(override_veto=True)).veto_overridden is False


def test_every_trigger_is_reported_once_with_a_sentence() -> None:
    decision = decide(evidence(), LIMITS)
    names = [trigger.name for trigger in decision.triggers]
    assert names == ["manual", "bootstrap", "code", "performance", "drift", "schedule", "data_volume"]
    assert all(trigger.sentence for trigger in decision.triggers)


def test_the_report_is_the_same_bytes_for_the_same_evidence(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        write_decision(decide(evidence(drift=drift("drift")), LIMITS), Workspace(tmp_path / name))
        written.append((tmp_path / name / "reports" / "decision.json").read_bytes())
    assert written[0] == written[1]
    report = json.loads(written[0])
    assert report["retrain"] is True
    assert report["reasons"] == ["drift"]
    assert Decision.model_validate(report).sentence == report["sentence"]


def test_the_history_holds_each_decision_once(tmp_path: Path) -> None:
    workspace, at = Workspace(tmp_path), datetime(2030, 1, 1, tzinfo=UTC)
    skip, train = decide(evidence(), LIMITS), decide(evidence(force_retrain=True), LIMITS)
    assert read_history(workspace) == []
    assert record_decision(skip, workspace, at=at)
    assert not record_decision(skip, workspace, at=at + timedelta(hours=1))
    assert record_decision(skip, workspace, at=at, run="7")  # another run asked: another decision
    assert record_decision(train, workspace, at=at, run="7")
    assert record_decision(skip, workspace, at=at, run="7")
    assert [record["decision"]["outcome"] for record in read_history(workspace)] == ["skip", "skip", "retrain", "skip"]
    assert read_history(workspace)[0]["at"] == "2030-01-01T00:00:00Z"


def test_a_damaged_history_is_named_and_left_alone(tmp_path: Path) -> None:
    workspace, at = Workspace(tmp_path), datetime(2030, 1, 1, tzinfo=UTC)
    decision = decide(evidence(), LIMITS)
    record_decision(decision, workspace, at=at)
    damaged = workspace.decisions.read_text() + '{"at": "2030'
    workspace.decisions.write_text(damaged)
    with pytest.raises(ClearwayError, match=r"decisions\.jsonl line 2 is no decision"):
        record_decision(decision, workspace, at=at)
    assert workspace.decisions.read_text() == damaged


@pytest.mark.parametrize(
    ("text", "forced"), [("true", True), ("True", True), ("false", False), ("", False), ("1", True)]
)
def test_the_force_flag_reads_what_github_sends(text: str, forced: bool) -> None:
    assert parse_force(text) is forced


def test_another_force_flag_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'yes please'"):
        parse_force("yes please")


def test_people_see_every_trigger() -> None:
    from rich.console import Console

    decision = decide(evidence(**SAME, drift=drift("drift")), LIMITS)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(trigger_table(decision), history_table([{"at": "now", "decision": decision.model_dump(mode="json")}]))
    shown = console.export_text()
    for text in (shown, markdown(decision)):
        assert "suppressed" in text
        assert "data_volume" in text
    assert "| drift | suppressed |" in markdown(decision)
