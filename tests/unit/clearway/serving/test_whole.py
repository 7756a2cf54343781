"""Several workers described and counted as one server."""

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clearway.histogram import Histogram
from clearway.serving.board import Board
from clearway.serving.metrics import (
    KEPT_VERSIONS,
    SHARE_BOUNDS,
    Family,
    Traffic,
    add_up,
    of_log,
    of_traffic,
    render,
    score_bounds,
)
from clearway.serving.whole import Desk, Past, Said, describe_whole, families_of_whole
from clearway.target import BINARY, Target


def state(revision: int | None = 3, **changes: Any) -> dict[str, Any]:
    return {
        "environment": "staging",
        "revision": revision,
        "stable": f"digest of {revision}",
        "error": None,
        "unseen_categories": 1,
        "schema_warnings": {"weight": 2},
        "log": {"written": 10, "dropped": 1},
        "routing": {"key": "entity", "without_key": 1},
        "shadow": None,
        "features": None,
        **changes,
    }


def said(life: int, *families: Family, accepting: bool = True, **changes: Any) -> Said:
    return Said(1000 + life, life, accepting, state(**changes), families)


def store(status: str, **changes: Any) -> dict[str, Any]:
    return {
        "status": status,
        "last_error": None if status == "up" else "no route",
        "failures": 2,
        "cache_entries": 3,
        "cache_hits": 4,
        "outcomes": {"soil": {"present": 5, "missing": 1}},
        **changes,
    }


def samples(families: list[Family]) -> dict[tuple[str, tuple[str, ...]], float]:
    text = render(families).decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("workers", "revision"),
    [
        ([said(0, revision=3), said(1, revision=4)], 3),
        ([said(0, revision=4), said(1, revision=None)], None),
        ([said(0, revision=4), said(1, revision=None, accepting=False)], 4),
        ([said(0, revision=None, accepting=False)], None),
    ],
)
def test_the_server_serves_what_its_last_worker_serves(workers: list[Said], revision: int | None) -> None:
    content = describe_whole(workers, Past(7))
    assert (content["revision"], content["stable"]) == (revision, f"digest of {revision}")
    assert [one["revision"] for one in content["workers"]] == [one.state["revision"] for one in workers]


def test_any_worker_that_refuses_a_table_makes_the_server_say_so() -> None:
    content = describe_whole([said(0), said(1, error="damaged", accepting=False)], Past(7, restarts=2))
    assert (content["error"], content["pid"], content["restarts"]) == ("damaged", 7, 2)
    assert content["workers"][1] == {"pid": 1001, "revision": 3, "error": "damaged", "accepting": False}


def test_counts_are_those_of_all_workers_and_of_those_that_ended() -> None:
    past = Past(7)
    past.add(said(0), workers=2)
    content = describe_whole([said(1), said(2)], past)
    assert content["log"] == {"written": 30, "dropped": 3}
    assert content["unseen_categories"] == 2
    assert content["schema_warnings"] == {"weight": 4}
    assert content["features"] is None


def test_a_store_that_only_one_worker_reaches_is_degraded() -> None:
    both = [said(0, features=store("up")), said(1, features=store("down"))]
    found = describe_whole(both, Past(7))["features"]
    assert (found["status"], found["last_error"], found["failures"], found["cache_hits"]) == (
        "degraded",
        "no route",
        4,
        8,
    )
    assert found["outcomes"] == {"soil": {"present": 10, "missing": 2}}
    assert describe_whole([both[1]], Past(7))["features"]["status"] == "down"


def test_families_are_added_up_label_set_by_label_set_and_survive_json() -> None:
    def one(count: int) -> list[Family]:
        histogram = Histogram((1.0, 2.0))
        for value in (0.5, 1.5, 9.0)[:count]:
            histogram.add(value)
        return [
            Family("asked", "counter", "Asked.", ("who",)).add(["me"], count).add([f"only {count}"], 1),
            Family("took", "histogram", "Took.", ("who",)).add_histogram(["me"], histogram),
            Family("up", "least", "Up.").add([], count > 2),
            Family("kept", "gauge", "Kept.").add([], count),
        ]

    sent = [Family.of_plain(json.loads(json.dumps(family.plain()))) for count in (2, 3) for family in one(count)]
    assert samples(add_up(sent)) == {
        ("asked_total", ("me",)): 5,
        ("asked_total", ("only 2",)): 1,
        ("asked_total", ("only 3",)): 1,
        ("took_bucket", ("1.0", "me")): 2,
        ("took_bucket", ("2.0", "me")): 4,
        ("took_bucket", ("+Inf", "me")): 5,
        ("took_count", ("me",)): 5,
        ("took_sum", ("me",)): 13,
        ("up", ()): 0,
        ("kept", ()): 5,
    }


def test_what_is_no_count_ends_with_its_worker() -> None:
    past = Past(7)
    gauge, counter = Family("kept", "gauge", "").add([], 5), Family("asked", "counter", "").add([], 5)
    past.add(said(0, gauge, counter), workers=1)
    found = samples(families_of_whole([said(1, gauge, counter)], Past.of_plain(json.loads(json.dumps(past.plain())))))
    assert (found["kept", ()], found["asked_total", ()], found["clearway_workers", ()]) == (5, 10, 1)


def test_a_worker_that_is_both_in_its_slot_and_in_the_past_counts_once() -> None:
    """Between the death of a worker and the emptying of its slot, a reader finds it twice."""
    board = Board.made(3)
    for slot in (0, 1):
        Desk(board, slot, life=slot).say(state(), of_log(written=10, dropped=0))
    reader = Desk(board, 1, life=1)
    before = samples(families_of_whole(*reader.hear()))
    past = Past(7)
    past.add(reader.hear()[0][0], workers=2)
    board.write(2, past.plain())
    between = samples(families_of_whole(*reader.hear()))
    board.write(0, None)
    after = samples(families_of_whole(*reader.hear()))
    assert before["clearway_log_written_total", ()] == 20
    assert between["clearway_log_written_total", ()] == after["clearway_log_written_total", ()] == 20


def test_a_worker_answers_only_where_others_can_too() -> None:
    board = Board.made(3)
    first, second = Desk(board, 0, life=0), Desk(board, 1, life=1)
    first.say(state(), ())
    assert not second.others_answer()
    first.accepting = True
    first.say(state(revision=None), ())
    assert not second.others_answer()
    first.say(state(), ())
    assert second.others_answer()
    assert not first.others_answer()


def test_rows_are_counted_by_version_and_role_with_their_scores() -> None:
    traffic = Traffic()
    canary = traffic.of("d" * 64, "canary", BINARY)
    canary.add(200, 0.003, 2, [0.05, 0.06])
    canary.add(500, 0.003, 1, [])
    traffic.add(200, 0.004)
    found = samples(list(of_traffic(traffic)))
    version = "d" * 64
    assert found["clearway_requests_total", ("200",)] == 1
    assert found["clearway_predictions_total", ("canary", "200", version)] == 2
    assert found["clearway_predictions_total", ("canary", "500", version)] == 1
    assert found["clearway_prediction_score_bucket", ("0.05", "canary", version)] == 1
    assert found["clearway_prediction_score_count", ("canary", version)] == 2
    assert found["clearway_prediction_seconds_bucket", ("0.005", "canary", version)] == 3


def test_of_versions_that_are_served_no_more_only_the_latest_are_counted() -> None:
    """A server whose versions change for months must not tell of them all."""
    traffic = Traffic()
    for number in range(KEPT_VERSIONS + 30):
        for role in ("stable", "canary"):
            traffic.of(f"version {number}", role, BINARY).add(200, 0.1, 1, [0.5])
    traffic.forget(["version 0"])
    kept = [version for version, role in traffic.answered if role == "stable"]
    assert kept == ["version 0", *(f"version {number}" for number in range(30, KEPT_VERSIONS + 30))]


def test_scores_of_numbers_are_counted_around_the_labels_of_training() -> None:
    assert score_bounds(BINARY) == SHARE_BOUNDS
    bounds = score_bounds(Target(kind="regression", centre=100.0, spread=10.0))
    assert (bounds[0], bounds[8], bounds[-1]) == (60.0, 100.0, 140.0)


def shadow(state: str, answered: int, digest: str = "s") -> dict[str, Any]:
    return {"digest": digest, "state": state, "error": None, "answered": answered, "failed": 1, "dropped": 2}


def test_rows_without_a_routing_key_are_those_of_all_workers() -> None:
    content = describe_whole([said(0), said(1), said(2)], Past(7))
    assert content["routing"] == {"key": "entity", "without_key": 3}


def test_a_shadow_is_as_well_as_its_worst_process_and_answers_what_all_did() -> None:
    content = describe_whole([said(0, shadow=shadow("up", 5)), said(1, shadow=shadow("down", 3))], Past(7))
    assert (content["shadow"]["state"], content["shadow"]["answered"], content["shadow"]["dropped"]) == ("down", 8, 4)
    changing = describe_whole([said(0, shadow=shadow("up", 5, "t")), said(1, shadow=shadow("up", 3))], Past(7))
    assert changing["shadow"]["answered"] in (3, 5), "another version's copies are not among them"
    assert describe_whole([said(0), said(1)], Past(7))["shadow"] is None
