"""The table of cases of the decision: pure, from typed evidence to a verdict that says why."""

import io
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clearway.decision import (
    ChampionFacts,
    Decision,
    DecisionEvidence,
    DriftEvidence,
    LastRetrain,
    PastWindow,
    PerformanceEvidence,
    TriggerResult,
    decide,
    has_fallen,
)
from clearway.decision_tables import markdown, outputs, trigger_table
from clearway.params import DecisionParams

THEN = datetime(2020, 1, 1, tzinfo=UTC)
CHAMPION = ChampionFacts(
    digest="c" * 64,
    as_of=THEN,
    snapshot_sha256="s1",
    recipe_sha256="r1",
    labelled_rows=1_000,
    trained_until=THEN - timedelta(days=30),
)
LIMITS = DecisionParams.model_validate(
    {
        "schedule": {"max_age_days": 30},
        "data_volume": {"min_new_rows": 500},
        "performance": {"max_drop": 0.03},
        "freshness": {"max_age_days": 50},
    }
)
WHY = "the sensor is known to be off"
SAME = {"snapshot_sha256": "s1", "recipe_sha256": "r1", "as_of": THEN}


def drift(verdict: str) -> DriftEvidence:
    return DriftEvidence.model_validate(
        {"verdict": verdict, "share": 0.5, "feature_share": 0.3, "sentence": "3 of 6 features drifted."}
    )


def performance(now: float | None, rows: int = 1_000, **changes: Any) -> PerformanceEvidence:
    sure = {} if now is None else {"lower": now - 0.005, "upper": now + 0.005}
    seen = {"metric": "roc_auc", "before": 0.8, "now": now, "rows": rows, **sure, **changes}
    return PerformanceEvidence.model_validate(seen)


def evidence(**changes: Any) -> DecisionEvidence:
    """A week later, new data, and nothing that asks for a training."""
    quiet = {
        "as_of": THEN + timedelta(days=7),
        "snapshot_sha256": "s2",
        "recipe_sha256": "r1",
        "labelled_rows": 1_100,
        "known_until": THEN + timedelta(days=7),
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


def result(decision: Decision, name: str) -> TriggerResult:
    return next(trigger for trigger in decision.triggers if trigger.name == name)


def window(days: int, **crossed: bool | None) -> PastWindow:
    """An earlier window with the same champion, so many days before the present one."""
    as_of = THEN + timedelta(days=7 - days)
    return PastWindow.model_validate({"as_of": as_of, "snapshot_sha256": f"s{days}", "crossed": crossed})


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
    ("worse by just the limit, but for rounding", {"performance": performance(0.77)}, "skip", ()),
    ("worse by a hair more than the limit", {"performance": performance(0.7699)}, "retrain", ("performance",)),
    ("worse, but perhaps by chance", {"performance": performance(0.76, upper=0.81)}, "skip", ()),
    ("worse, chance as good as the old value", {"performance": performance(0.76, upper=0.8)}, "skip", ()),
    ("worse, with no interval", {"performance": performance(0.5, lower=None, upper=None)}, "skip", ()),
    ("not a number on today's labels", {"performance": performance(math.nan)}, "skip", ()),
    ("a metric that was not a number", {"performance": performance(0.5, before=math.nan)}, "skip", ()),
    ("better on today's labels", {"performance": performance(0.9)}, "skip", ()),
    ("worse, on too few labels", {"performance": performance(0.5, rows=499)}, "skip", ()),
    ("a loss that rose", {"performance": performance(0.9, higher_is_better=False)}, "retrain", ("performance",)),
    ("a loss that fell", {"performance": performance(0.7, higher_is_better=False)}, "skip", ()),
    ("knowledge as old as the limit", {"known_until": THEN + timedelta(days=20)}, "retrain", ("freshness",)),
    ("a second fresher", {"known_until": THEN + timedelta(days=20, seconds=-1)}, "skip", ()),
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
            "known_until": THEN + timedelta(days=90),
        },
        "retrain",
        ("manual", "code", "performance", "drift", "schedule", "data_volume", "freshness"),
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
    assert "\n" not in decision.sentence
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize("name", ["manual", "code", "performance", "drift", "schedule", "data_volume", "freshness"])
def test_a_disabled_trigger_is_recorded_and_does_not_count(name: str) -> None:
    loud = evidence(
        force_retrain=True,
        recipe_sha256="r2",
        performance=performance(0.5),
        drift=drift("drift"),
        as_of=THEN + timedelta(days=90),
        labelled_rows=9_000,
        known_until=THEN + timedelta(days=90),
    )
    off = getattr(LIMITS, name).model_copy(update={"enabled": False})
    decision = decide(loud, limits(**{name: off}))
    assert fired(decision)[name] is True
    assert name not in decision.reasons
    assert len(decision.reasons) == 6


def test_a_disabled_bootstrap_trains_no_first_model_and_says_so() -> None:
    off = LIMITS.bootstrap.model_copy(update={"enabled": False})
    decision = decide(evidence(**NO_CHAMPION), limits(bootstrap=off))
    assert decision.outcome == "skip"
    assert "only disabled triggers fired (bootstrap)" in decision.sentence


def test_a_lone_disabled_trigger_is_said_to_have_fired() -> None:
    off = LIMITS.drift.model_copy(update={"enabled": False})
    decision = decide(evidence(drift=drift("drift")), limits(drift=off))
    assert decision.outcome == "skip"
    assert "only disabled triggers fired (drift)" in decision.sentence


def test_unknowns_are_neither_fired_nor_silent_and_are_named() -> None:
    unmeasured = {"drift": drift("unknown"), "performance": performance(None), "as_of": None, "known_until": None}
    decision = decide(evidence(**unmeasured), LIMITS)
    assert [name for name, state in fired(decision).items() if state is None] == [
        "performance", "drift", "schedule", "freshness",
    ]  # fmt: skip
    assert "performance, drift, schedule, freshness could not be measured" in decision.sentence


def test_without_a_champion_nothing_else_pretends_to_know() -> None:
    decision = decide(evidence(**NO_CHAMPION), LIMITS)
    unknown = {name for name, state in fired(decision).items() if state is None}
    assert unknown == {"code", "performance", "drift", "schedule", "data_volume", "freshness"}
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
    overridden = decide(broken, limits(override_veto=WHY))
    assert (overridden.retrain, overridden.veto_overridden, overridden.override_reason) == (True, True, WHY)
    assert overridden.sentence == (
        "Retrain: a person forced it; the data failed its validation, which decision.override_veto lets through: "
        f"{WHY}."
    )
    quiet = decide(evidence(data="failed"), limits(override_veto=WHY))
    assert (quiet.outcome, quiet.veto_overridden) == ("skip", True)
    assert WHY in quiet.sentence
    healthy = decide(evidence(force_retrain=True), limits(override_veto=WHY))
    assert (healthy.veto_overridden, healthy.override_reason) == (False, None)
    assert WHY not in healthy.sentence


def test_an_override_without_a_reason_is_none() -> None:
    decision = decide(evidence(data="failed", force_retrain=True), limits(override_veto=" " * 9))
    assert (decision.outcome, decision.veto_overridden) == ("vetoed", False)


def test_the_veto_says_what_was_broken() -> None:
    decision = decide(evidence(data="failed", data_sentence="1 of 50 checks failed: rows.size: range."), LIMITS)
    assert "failed its validation (1 of 50 checks failed: rows.size: range), and" in decision.sentence


def test_every_trigger_is_reported_once_with_a_sentence() -> None:
    decision = decide(evidence(), LIMITS)
    names = [trigger.name for trigger in decision.triggers]
    assert names == [
        "manual", "bootstrap", "code", "performance", "drift", "schedule", "data_volume", "freshness",
    ]  # fmt: skip
    assert all(trigger.sentence for trigger in decision.triggers)


HYSTERESIS: list[tuple[str, tuple[PastWindow, ...], str, bool | None]] = [
    ("the first of its kind", (), "drift", False),
    ("only the latest", (window(2, drift=False), window(1, drift=False)), "drift", False),
    ("the latest and the one before", (window(2, drift=False), window(1, drift=True)), "drift", True),
    ("the latest and one further back", (window(2, drift=True), window(1, drift=False)), "drift", True),
    ("too far back", (window(3, drift=True), window(2, drift=False), window(1, drift=False)), "drift", False),
    ("unknown is not crossed", (window(2, drift=None), window(1, drift=None)), "drift", False),
    ("another trigger's window", (window(2, performance=True), window(1, performance=True)), "drift", False),
    ("all but the latest", (window(2, drift=True), window(1, drift=True)), "no_drift", False),
    ("unknown now", (window(2, drift=True), window(1, drift=True)), "unknown", None),
]


@pytest.mark.parametrize(("past", "verdict", "expected"), [c[1:] for c in HYSTERESIS], ids=[c[0] for c in HYSTERESIS])
def test_two_of_three_windows(past: tuple[PastWindow, ...], verdict: str, expected: bool | None) -> None:
    two_of_three = LIMITS.drift.model_validate({"windows": {"required": 2, "of": 3}})
    decision = decide(evidence(drift=drift(verdict), windows=past), limits(drift=two_of_three))
    found = result(decision, "drift")
    assert found.fired is expected
    assert found.crossed is {"drift": True, "no_drift": False, "unknown": None}[verdict]
    assert decision.reasons == (("drift",) if expected else ())
    assert found.windows is not None
    assert found.windows.seen == 1 + min(len(past), 2)


def test_windows_before_the_champions_own_time_do_not_count() -> None:
    """A run that was set back in time saw what the champion learnt from."""
    two_of_three = LIMITS.drift.model_validate({"windows": {"required": 2, "of": 3}})
    past = (window(8, drift=True), window(7, drift=False))
    decision = decide(evidence(drift=drift("drift"), windows=past), limits(drift=two_of_three))
    found = result(decision, "drift").windows
    assert found is not None
    assert (found.seen, found.crossed, decision.outcome) == (2, 1, "skip")


def test_a_trigger_that_waits_for_more_windows_is_named_with_what_it_counted() -> None:
    two_of_three = LIMITS.drift.model_validate({"windows": {"required": 2, "of": 3}})
    seen = evidence(drift=drift("drift"), windows=(window(7, drift=None),))
    decision = decide(seen, limits(drift=two_of_three))
    assert decision.outcome == "skip"
    assert "drift waits for more windows" in decision.sentence
    assert "in 1 of the last 3 windows, 2 are needed (1 unknown, only 2 seen)" in decision.sentence
    assert "| drift | waiting |" in markdown(decision)


def test_without_hysteresis_earlier_windows_do_not_matter() -> None:
    decision = decide(evidence(drift=drift("drift"), windows=(window(7, drift=False),)), LIMITS)
    assert decision.reasons == ("drift",)
    assert result(decision, "drift").windows is None


def retrained(days_ago: float, snapshots_ago: int = 1) -> LastRetrain:
    return LastRetrain(as_of=THEN + timedelta(days=7 - days_ago), snapshots_ago=snapshots_ago)


LOUD = {
    "performance": performance(0.5),
    "drift": drift("drift"),
    "labelled_rows": 9_000,
    "known_until": THEN + timedelta(days=90),
}
COOL = {"performance", "drift", "data_volume", "freshness"}


def test_after_a_training_the_triggers_cool_down_in_the_open() -> None:
    cool = limits(cool_down_days=10)
    decision = decide(evidence(**LOUD, last_retrain=retrained(9.5)), cool)
    assert decision.outcome == "skip"
    held = {trigger.name: trigger.suppressed for trigger in decision.triggers if trigger.suppressed}
    assert set(held) == COOL
    assert all("9.5 days old (cool-down: 10 days)" in str(why) for why in held.values())
    assert "performance, drift, data_volume, freshness fired, but the last decision to retrain" in decision.sentence
    assert set(decide(evidence(**LOUD, last_retrain=retrained(10)), cool).reasons) == COOL
    assert set(decide(evidence(**LOUD), cool).reasons) == COOL
    assert set(decide(evidence(**LOUD, last_retrain=retrained(9.5)), LIMITS).reasons) == COOL


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"force_retrain": True}, "manual"), ({"recipe_sha256": "r2"}, "code"), (NO_CHAMPION, "bootstrap")],
)
def test_a_person_new_code_and_the_first_model_do_not_wait(changes: dict[str, Any], reason: str) -> None:
    loud = {**LOUD, **changes, "last_retrain": retrained(1)}
    assert decide(evidence(**loud), limits(cool_down_days=10)).reasons == (reason,)


def test_without_time_each_snapshot_counts_as_a_day_of_the_cool_down() -> None:
    timeless = CHAMPION.model_copy(update={"as_of": None, "trained_until": None})
    seen = {"as_of": None, "champion": timeless, "known_until": None, "drift": drift("drift")}
    for ago, outcome in ((1, "skip"), (2, "skip"), (3, "retrain")):
        last = LastRetrain(as_of=None, snapshots_ago=ago)
        decision = decide(evidence(**seen, last_retrain=last), limits(cool_down_days=3))
        assert decision.outcome == outcome
        assert ("the data knows no time" in decision.sentence) is (outcome == "skip")


def test_broken_data_vetoes_what_cools_down_too() -> None:
    decision = decide(evidence(**LOUD, data="failed", last_retrain=retrained(1)), limits(cool_down_days=10))
    assert decision.outcome == "vetoed"


def test_a_fall_needs_both_a_size_and_an_interval() -> None:
    assert has_fallen(performance(0.7), 0.03) is True
    assert has_fallen(performance(0.9, before=0.8, higher_is_better=False), 0.03) is True
    assert has_fallen(performance(0.9, lower=0.79, before=0.8, higher_is_better=False), 0.03) is False
    for missing in ("before", "now", "lower", "upper"):
        assert has_fallen(performance(0.7).model_copy(update={missing: None}), 0.03) is None


def test_people_see_every_trigger() -> None:
    from rich.console import Console

    decision = decide(evidence(**SAME, drift=drift("drift")), LIMITS)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(trigger_table(decision))
    for text in (console.export_text(), markdown(decision)):
        assert "suppressed" in text
        assert "freshness" in text
    assert "| drift | suppressed |" in markdown(decision)
    assert "veto" not in markdown(decision)
    assert "**The data is broken, and its veto was overridden.**" in markdown(
        decide(evidence(data="failed"), limits(override_veto=WHY))
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("data_volume", {"labelled_rows": 1_001}, "1 more labelled row than the champion saw (limit: 500 more)"),
        ("data_volume", {"labelled_rows": 10}, "990 fewer labelled rows than"),
        ("schedule", {"as_of": THEN + timedelta(days=1)}, "is 1 day old (limit: 30)"),
        ("schedule", {"as_of": THEN + timedelta(days=30, seconds=-1)}, "is 29.99 days old (limit: 30)"),
        ("schedule", {"as_of": THEN + timedelta(days=12_345)}, "is 12,345 days old (limit reached: 30)"),
        ("schedule", {"as_of": THEN - timedelta(days=2)}, "was trained 2 days after as_of"),
        ("freshness", {"known_until": THEN - timedelta(days=40)}, "is 10 days newer than"),
    ],
)
def test_amounts_read_as_a_person_says_them(name: str, changes: dict[str, Any], said: str) -> None:
    assert said in result(decide(evidence(**changes), LIMITS), name).sentence


def test_what_the_data_says_is_no_markdown() -> None:
    noisy = "![x](//evil) **b** `c` <i>d</i> a|b\n# e"
    seen = DriftEvidence(verdict="drift", share=0.5, feature_share=0.3, sentence=noisy)
    shown = markdown(decide(evidence(drift=seen), LIMITS))
    assert shown.count(r"!\[x\](//evil) \*\*b\*\* \`c\` &lt;i>d&lt;/i> a\|b # e") == 2


def test_a_jobs_outputs_are_single_lines() -> None:
    noisy = DriftEvidence(verdict="drift", share=0.5, feature_share=0.3, sentence="a\nretrain=false drifted.")
    said = outputs(decide(evidence(drift=noisy), LIMITS))
    assert said == {
        "retrain": "true",
        "outcome": "retrain",
        "reasons": "drift",
        "sentence": "Retrain: drift: a retrain=false drifted.",
    }
