from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clearway.behaviour import (
    MOST_ROWS,
    BehaviouralTest,
    Directional,
    Invariance,
    MinimumFunctionality,
    behaviour_gates,
    column_test,
    declared_by,
)
from clearway.encoding import InputSchema, learn_schema
from clearway.errors import ClearwayError, UsageError
from clearway.gates import Gate
from clearway.robustness import Matrix


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(2)
    made = pd.DataFrame(
        {
            "delay": random.normal(10, 20, 600),
            "seats": random.integers(20, 300, 600).astype("float64"),
            "colour": random.choice(["red", "green"], 600),
            "label": 0.0,
        },
        index=np.arange(1000, 1600),
    )
    made.loc[made.index[:100], "delay"] = np.nan
    return made


@pytest.fixture
def schema(frame: pd.DataFrame) -> InputSchema:
    return learn_schema(frame, ("colour",), ("delay", "seats"))


def score(matrix: Matrix) -> NDArray[np.float64]:
    """More delay, a higher score; the colour counts, the seats do not."""
    delay = np.nan_to_num(matrix[:, 0].astype(np.float64), nan=10.0)
    return 1 / (1 + np.exp(-delay / 20 - 0.3 * np.nan_to_num(matrix[:, 2].astype(np.float64))))


def gate(test: BehaviouralTest, frame: pd.DataFrame, schema: InputSchema) -> Gate:
    (made,) = behaviour_gates([test], frame, schema, score, 0.5, seed=1)
    assert made.name == f"behaviour_{test.name}"
    return made


def test_what_must_not_matter_does_not_matter(frame: pd.DataFrame, schema: InputSchema) -> None:
    more_seats = Invariance("seats", lambda rows: rows.assign(seats=rows["seats"] + 10), 0.001)
    assert gate(more_seats, frame, schema).status == "pass"
    other_colour = Invariance("colour", lambda rows: rows.assign(colour="red"), 0.001)
    found = gate(other_colour, frame, schema)
    assert (found.status, found.threshold) == ("fail", 0.95)
    assert "changed scores stay within 0.001; lower bound" in found.detail


def test_a_change_moves_the_score_the_way_that_is_said(frame: pd.DataFrame, schema: InputSchema) -> None:
    later = {"name": "later", "change": lambda rows: rows.assign(delay=rows["delay"] + 30)}
    assert gate(Directional(**later, direction="up"), frame, schema).status == "pass"
    found = gate(Directional(**later, direction="down"), frame, schema)
    assert found.status == "fail"
    assert "changed scores do not rise by more than 0.01" in found.detail
    assert gate(Directional(**later, direction="down", tolerance=1.0), frame, schema).status == "pass"


def test_a_little_the_other_way_is_tolerated(frame: pd.DataFrame, schema: InputSchema) -> None:
    for minutes, way in ((-0.1, "up"), (0.1, "down")):
        change = {"name": "little", "column": "delay", "add": minutes, "min_share": 0.9}
        for tolerance, status in ((0.01, "pass"), (0.0, "fail")):
            test = column_test(**change, expect=way, tolerance=tolerance)
            assert gate(test, frame, schema).status == status


@pytest.mark.parametrize("minutes", [30, -30])
def test_what_must_not_move_may_move_neither_way(minutes: int, frame: pd.DataFrame, schema: InputSchema) -> None:
    test = Invariance("later", lambda rows: rows.assign(delay=rows["delay"] + minutes), 0.05)
    assert gate(test, frame, schema).status == "fail"


def test_rows_that_a_change_leaves_as_they_were_are_not_counted(frame: pd.DataFrame, schema: InputSchema) -> None:
    """A hundred rows have no delay: they neither help nor hurt."""
    later = Directional("later", lambda rows: rows.assign(delay=rows["delay"] + 30), "up")
    assert gate(later, frame, schema).n == 500


def test_few_changed_rows_are_unknown(frame: pd.DataFrame, schema: InputSchema) -> None:
    later = Directional("later", lambda rows: rows.assign(delay=rows["delay"] + 30), "up")
    assert gate(later, frame.tail(20), schema).status == "unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows, "the change leaves all 600 rows as the model sees them: it tests nothing"),
        (lambda rows: rows.assign(other=1), "it tests nothing"),
        (lambda rows: rows.head(5), "the change returned 5 rows that are not the 600 it was given"),
        (lambda rows: rows.iloc[::-1], "the change returned 600 rows that are not the 600 it was given"),
        (lambda rows: rows.reset_index(drop=True), "rows that are not the 600 it was given"),
        (lambda rows: rows.drop(columns="seats"), "the change lost the feature seats"),
        (lambda rows: rows.to_dict(), "the change returned dict, not the changed rows"),
        (lambda rows: rows.assign(colour=3), "the change turned the category colour into a number"),
        (lambda rows: rows["lateness"], "the test raised: KeyError: 'lateness'"),
        (lambda rows: rows["label"], "the test raised: KeyError: 'label'"),
    ],
)
def test_a_change_that_is_none_is_a_fail_that_says_so(
    change: Any, said: str, frame: pd.DataFrame, schema: InputSchema
) -> None:
    found = gate(Invariance("odd", change), frame, schema)
    assert found.status == "fail"
    assert said in found.detail


def test_a_change_cannot_spoil_the_rows_of_the_next_test(frame: pd.DataFrame, schema: InputSchema) -> None:
    def spoil(rows: pd.DataFrame) -> pd.DataFrame:
        rows["delay"] = 0.0
        return rows

    before = frame.copy()
    first, second = behaviour_gates(
        [Invariance("spoil", spoil, 1.0), Invariance("again", spoil, 1.0)], frame, schema, score, 0.5, seed=1
    )
    assert (first.status, second.status, second.n) == ("pass", "pass", first.n)
    pd.testing.assert_frame_equal(frame, before)


def test_a_score_that_is_no_number_fails(frame: pd.DataFrame, schema: InputSchema) -> None:
    test = Invariance("seats", lambda rows: rows.assign(seats=1e6), 1.0)
    (found,) = behaviour_gates([test], frame, schema, lambda m: np.where(m[:, 1] > 1e5, np.nan, 0.5), 0.5, seed=1)
    assert (found.status, found.detail) == ("fail", "600 of 1,200 scores are no finite number")


def test_a_minimum_is_known_to_the_last_row(schema: InputSchema) -> None:
    rows = pd.DataFrame({"delay": [60.0, 90.0, -90.0], "seats": 100.0, "colour": "red"})
    found = gate(MinimumFunctionality("very_late", rows, 1), rows, schema)
    assert (found.status, found.estimate, found.n) == ("fail", 2 / 3, 3)
    assert found.detail == "2 of 3 rows are answered 1, a share of 1 is needed"
    assert gate(MinimumFunctionality("very_late", lambda: rows.head(2), 1), rows, schema).status == "pass"
    assert gate(MinimumFunctionality("early", rows.tail(1), 0), rows, schema).status == "pass"
    assert gate(MinimumFunctionality("mostly", rows, 1, min_share=0.6), rows, schema).status == "pass"


def test_a_minimum_without_rows_or_features_fails(frame: pd.DataFrame, schema: InputSchema) -> None:
    assert gate(MinimumFunctionality("none", frame.head(0), 1), frame, schema).detail == "the test has no rows"
    lacking = gate(MinimumFunctionality("lacking", frame[["delay"]], 1), frame, schema)
    assert (lacking.status, lacking.detail) == (
        "fail",
        "the test raised: features missing from the table: seats, colour",
    )


def test_at_most_so_many_rows_are_tried_and_the_same_by_the_same_seed(schema: InputSchema) -> None:
    random = np.random.default_rng(1)
    rows = MOST_ROWS * 2
    frame = pd.DataFrame({"delay": random.normal(size=rows), "seats": np.arange(rows) * 1.0, "colour": "red"})
    seen: list[pd.Index] = []

    def change(sample: pd.DataFrame) -> pd.DataFrame:
        seen.append(sample.index)
        return sample.assign(delay=sample["delay"] + 1)

    for seed in (1, 1, 2):
        behaviour_gates([Invariance("sampled", change, 1.0)], frame, schema, score, 0.5, seed=seed)
    assert len(seen[0]) == MOST_ROWS
    assert seen[0].equals(seen[1])
    assert not seen[0].equals(seen[2])


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"add": 30, "expect": "up"}, "pass"),
        ({"add": 30, "expect": "down"}, "fail"),
        ({"add": 30, "expect": "same"}, "fail"),
        ({"multiply": 1.0001, "expect": "same"}, "pass"),
        ({"set": 500.0, "expect": "up"}, "pass"),
    ],
)
def test_a_change_of_one_column_needs_no_code(
    change: dict[str, Any], status: str, frame: pd.DataFrame, schema: InputSchema
) -> None:
    test = column_test(name="declared", column="delay", **change, tolerance=0.01, min_share=0.9)
    assert gate(test, frame, schema).status == status


def test_a_declared_text_is_set(frame: pd.DataFrame, schema: InputSchema) -> None:
    test = column_test(name="green", column="colour", set="green", expect="same", tolerance=0.5, min_share=0.9)
    assert gate(test, frame, schema).status == "pass"


def test_a_declared_change_of_what_cannot_change_is_a_fail(frame: pd.DataFrame, schema: InputSchema) -> None:
    declared = {"name": "odd", "expect": "same", "tolerance": 0.5, "min_share": 0.9}
    unknown = gate(column_test(column="wings", add=1, **declared), frame, schema)
    assert (unknown.status, unknown.detail) == ("fail", "the test raised: column 'wings' is no feature")
    text = gate(column_test(column="colour", multiply=2, **declared), frame, schema)
    assert text.status == "fail"
    assert "Unable to parse string" in text.detail


@pytest.mark.parametrize("given", [{}, {"add": 1, "multiply": 2}])
def test_a_declared_test_is_of_one_change(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"gates.behaviour: odd: give one of multiply, add and set"):
        column_test(name="odd", column="delay", **given, expect="same", tolerance=0.1, min_share=0.9)


@dataclass
class Declares:
    """A project package, as far as these tests are concerned."""

    behaviour: Any


def test_a_project_declares_a_tuple_or_a_method_or_nothing() -> None:
    test = Invariance("seats", lambda rows: rows)
    assert declared_by(object()) == ()
    assert declared_by(Declares((test,))) == (test,)
    assert declared_by(Declares(lambda: (test,))) == (test,)


def test_what_is_wrongly_declared_is_refused() -> None:
    test = Invariance("seats", lambda rows: rows)
    with pytest.raises(UsageError, match="must be a tuple of Invariance, Directional and MinimumFunctionality"):
        declared_by(Declares(("seats",)))
    with pytest.raises(UsageError, match="behaviour 'seats' is declared 2 times"):
        declared_by(Declares((test, test)))
    with pytest.raises(ClearwayError, match=r"the project's behaviour\(\) raised ZeroDivisionError"):
        declared_by(Declares(lambda: 1 / 0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Invariance("Two words", lambda rows: rows), "a name is of small letters"),
        (lambda: Invariance("x", lambda rows: rows, tolerance=-1), "tolerance = -1"),
        (lambda: Invariance("x", lambda rows: rows, min_share=1.0), "min_share = 1.0"),
        (lambda: Directional("x", lambda rows: rows, "sideways"), "direction = 'sideways'"),  # type: ignore[arg-type]
        (lambda: MinimumFunctionality("x", pd.DataFrame(), 1, tolerance=-1), "tolerance = -1"),
    ],
)
def test_an_impossible_test_is_refused_where_it_is_made(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
