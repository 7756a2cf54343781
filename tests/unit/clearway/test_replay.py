"""Replayed traffic: bodies as a caller would send them, rows in order, rollouts told apart by the ledger."""

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.ledger import Entry
from clearway.replay import Traffic, rollout_revision


def questions(rows: int, timed: bool) -> pd.DataFrame:
    times = pd.date_range("2013-07-01", periods=rows, freq="h", tz="UTC") if timed else pd.NaT
    return pd.DataFrame(
        {
            ROW_ID: pd.Series([f"r{number}" for number in range(rows)], dtype="string"),
            ENTITY: pd.Series(["N1", pd.NA] * (rows // 2), dtype="string"),
            PREDICTION_TIME: pd.Series(times, index=range(rows), dtype="datetime64[ns, UTC]"),
            LABEL_TIME: pd.Series(pd.NaT, index=range(rows), dtype="datetime64[ns, UTC]"),
            LABEL: np.nan,
            "height": [1.5, np.nan] * (rows // 2),
            "count": np.arange(rows),
            "colour": pd.Series(["red", pd.NA] * (rows // 2), dtype="string"),
        }
    )


def entry(sequence: int, canary: str | None, weight: int) -> Entry:
    return Entry.model_construct(sequence=sequence, canary=canary and canary * 64, canary_weight=weight)


def test_a_body_is_the_question_without_its_answer() -> None:
    first, second = (json.loads(body) for body in Traffic(questions(2, timed=True), cycles=5).bodies(0, 2))
    assert first == {
        "id": "r0",
        "entity": "N1",
        "asked_at": "2013-07-01T00:00:00+00:00",
        "height": 1.5,
        "count": 0,
        "colour": "red",
    }
    assert (second["entity"], second["height"], second["colour"]) == (None, None, None)
    assert datetime.fromisoformat(second["asked_at"]) == datetime(2013, 7, 1, 1, tzinfo=UTC)


def test_rows_with_time_are_asked_once() -> None:
    traffic = Traffic(questions(6, timed=True), cycles=5)
    assert len(traffic) == 6
    assert [json.loads(body)["id"] for body in traffic.bodies(2, 6)] == ["r2", "r3", "r4", "r5"]


def test_rows_without_time_come_round_again_under_new_ids() -> None:
    traffic = Traffic(questions(4, timed=False), cycles=3)
    assert len(traffic) == 12
    bodies = [json.loads(body) for body in traffic.bodies(2, 10)]
    assert [body["id"] for body in bodies] == ["r2", "r3", "r0~1", "r1~1", "r2~1", "r3~1", "r0~2", "r1~2"]
    assert bodies[0]["asked_at"] is None
    assert bodies[4]["count"] == 2


def microseconds(*times: str) -> np.ndarray:
    return pd.DatetimeIndex(times, tz="UTC").as_unit("us").asi8


class TestTicks:
    """The questions are asked at 00:00, 01:00, … of 1 July."""

    def ticks(self, *known: str, first: int = 0, end: int = 6) -> list[tuple[int, int]]:
        """The hour and the number of questions of each tick."""
        found = Traffic(questions(6, timed=True), cycles=1).ticks(first, end, microseconds(*known))
        assert sum(tick.questions for tick in found) == end - first
        assert all(tick.time is not None and tick.time.tzinfo is not None for tick in found)
        return [(tick.time.hour, tick.questions) for tick in found if tick.time is not None]

    def test_questions_between_which_nothing_became_known_go_together(self) -> None:
        assert self.ticks("2013-06-30T12:00", "2013-07-01T02:30", "2013-07-01T09:00") == [(0, 3), (3, 3)]
        assert self.ticks("2013-06-30T12:00") == [(0, 6)]

    def test_what_becomes_known_when_a_question_is_asked_belongs_to_it(self) -> None:
        assert self.ticks("2013-07-01T02:00:00") == [(0, 2), (2, 4)]
        assert self.ticks("2013-07-01T02:00:00.000001") == [(0, 3), (3, 3)]

    def test_a_part_of_the_traffic_has_its_own_ticks(self) -> None:
        assert self.ticks("2013-07-01T02:30", "2013-07-01T04:00", first=1, end=5) == [(1, 2), (3, 1), (4, 1)]
        assert self.ticks("2013-07-01T02:30", first=3, end=3) == []

    def test_without_an_online_store_all_is_one_tick(self) -> None:
        traffic = Traffic(questions(6, timed=False), cycles=3)
        assert traffic.ticks(2, 15, None) == [(None, 13)]


def test_truth_values_are_sent_as_such() -> None:
    asked = questions(2, timed=True).assign(direct=[True, False], checked=pd.array([pd.NA, True], "boolean"))
    first, second = (json.loads(body) for body in Traffic(asked, cycles=1).bodies(0, 2))
    assert (first["direct"], second["direct"]) == (True, False)
    assert (first["checked"], second["checked"]) == (None, True)


@pytest.mark.parametrize(
    ("canaries", "began"),
    [
        ([], 0),
        ([None], 0),
        ([None, "a"], 2),
        ([None, "a", "a", "a"], 2),
        ([None, "a", "a", None], 2),
        ([None, "a", None, "b"], 4),
        ([None, "a", "b"], 3),
        ([None, "a", None, "a", "a", None], 4),
    ],
)
def test_a_rollout_begins_where_a_new_canary_does(canaries: list[str | None], began: int) -> None:
    entries = [entry(number, canary, 10) for number, canary in enumerate(canaries, start=1)]
    assert rollout_revision(entries) == began
