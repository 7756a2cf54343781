from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.encoding import InputSchema, learn_schema
from clearway.gates import Gate
from clearway.leakage import duplicate_gate, row_id_gate, target_gate, time_gate

ROWS = 400


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(4)
    label = (random.random(ROWS) < 0.3).astype("float64")
    return pd.DataFrame(
        {
            "row_id": [f"r{i}" for i in range(ROWS)],
            "entity": pd.Series(random.choice(["a", "b"], ROWS), dtype="string"),
            "label": label,
            "size": random.normal(size=ROWS) + label,
            "count": random.integers(0, 5, ROWS).astype("float64"),
            "colour": pd.Series(random.choice(["red", "green", "blue"], ROWS), dtype="string"),
        }
    )


def schema(frame: pd.DataFrame, *numeric: str) -> InputSchema:
    return learn_schema(frame, ("colour",), ("size", "count", *numeric))


def judged(frame: pd.DataFrame, *numeric: str) -> Gate:
    return target_gate(frame, frame["label"].to_numpy(), schema(frame, *numeric), 0.99, seed=1)


def test_features_that_only_help_pass_and_the_strongest_is_named(frame: pd.DataFrame) -> None:
    gate = judged(frame)
    assert (gate.name, gate.status, gate.threshold, gate.n) == ("target_leakage", "pass", 0.99, ROWS)
    assert gate.estimate == pytest.approx(0.76, abs=0.05)  # Φ(1/√2), one deviation apart
    assert gate.detail.startswith("the strongest feature alone is size with an AUC of 0.7")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_made_from_the_answer_is_named(frame: pd.DataFrame, sign: int) -> None:
    noise = np.random.default_rng(1).normal(size=ROWS)
    gate = judged(frame.assign(paid=sign * (frame["label"] * 10 + noise)), "paid")
    assert gate.status == "fail"
    assert gate.detail.startswith("alone separates the answers: paid (AUC 1.0000); below 0.99 is needed")


def test_a_number_that_is_missing_where_the_answer_is_no_is_named(frame: pd.DataFrame) -> None:
    paid = np.random.default_rng(1).normal(size=ROWS)
    gate = judged(frame.assign(paid=np.where(frame["label"] == 1, paid, np.nan)), "paid")
    assert gate.status == "fail"
    assert "paid (AUC 1.0000)" in gate.detail


@pytest.mark.parametrize("sign", [1, -1])
def test_missing_may_stand_for_either_end(frame: pd.DataFrame, sign: int) -> None:
    paid = sign * (frame["label"] * 10 + np.random.default_rng(1).random(ROWS))
    gate = judged(frame.assign(paid=paid.where((frame["label"] == 0) | (frame["count"] > 2))), "paid")
    assert gate.status == "fail"


def test_a_code_of_the_answer_that_does_not_rise_with_it_is_named(frame: pd.DataFrame) -> None:
    status = np.where(frame["label"] == 1, 5.0, np.where(frame["count"] > 2, 1.0, 9.0))
    gate = judged(frame.assign(status=status), "status")
    assert gate.status == "fail"
    assert "status (AUC 1.0000)" in gate.detail


def test_a_category_of_the_answer_is_named(frame: pd.DataFrame) -> None:
    gate = judged(frame.assign(colour=np.where(frame["label"] == 1, "red", "green")))
    assert gate.status == "fail"
    assert "colour (AUC 1.0000)" in gate.detail


def test_a_category_of_the_answer_with_nulls_is_named(frame: pd.DataFrame) -> None:
    gate = judged(frame.assign(colour=pd.Series(["red"] * ROWS, dtype="string").where(frame["label"] == 1)))
    assert gate.status == "fail"


def test_a_category_that_names_each_row_knows_nothing(frame: pd.DataFrame) -> None:
    """In its own rows it knows the answer of each; in those of other folds, of none."""
    gate = judged(frame.assign(colour=frame["row_id"]))
    assert gate.status == "pass"
    assert gate.detail.startswith("the strongest feature alone is size")


def test_what_cannot_be_judged_fails(frame: pd.DataFrame) -> None:
    one_answer = target_gate(frame, np.zeros(ROWS), schema(frame), 0.99, seed=1)
    assert (one_answer.status, one_answer.estimate) == ("fail", None)
    assert one_answer.detail == "0 holdout rows of one answer, at least 5 of each are needed"
    lacking = target_gate(frame.drop(columns="size"), frame["label"].to_numpy(), schema(frame), 0.99, seed=1)
    assert (lacking.status, lacking.detail) == ("fail", "the holdout lacks size")
    text = target_gate(frame.assign(size="wide"), frame["label"].to_numpy(), schema(frame), 0.99, seed=1)
    assert text.status == "fail"
    assert text.detail.startswith("feature size cannot be ranked")


def test_a_question_is_in_one_window_only(frame: pd.DataFrame) -> None:
    training, holdout = frame.head(300), frame.tail(100)
    assert row_id_gate(training, holdout).status == "pass"
    gate = row_id_gate(frame.head(301), holdout)
    assert (gate.name, gate.status, gate.estimate) == ("split_row_ids", "fail", 1)
    assert gate.detail.endswith("for example 'r300'")


@pytest.mark.parametrize("change", [{"row_id": pd.NA}, None])
def test_rows_without_an_id_fail(frame: pd.DataFrame, change: dict[str, Any] | None) -> None:
    odd = frame.drop(columns="row_id") if change is None else frame.assign(**change)
    assert row_id_gate(odd.head(300), frame.tail(100)).status == "fail"
    assert row_id_gate(frame.head(300), odd.tail(100)).status == "fail"


def duplicates(training: pd.DataFrame, holdout: pd.DataFrame, timed: bool, allowed: float | None = None) -> Gate:
    return duplicate_gate(training, holdout, schema(training), timed=timed, max_duplicates=allowed)


def test_rows_that_no_other_window_holds_pass(frame: pd.DataFrame) -> None:
    for timed in (True, False):
        gate = duplicates(frame.head(300), frame.tail(100), timed)
        assert (gate.name, gate.status, gate.estimate) == ("split_duplicates", "pass", 0.0)


def test_with_time_a_twentieth_may_have_the_features_of_a_training_row(frame: pd.DataFrame) -> None:
    """Whatever became of it: the model knows the row."""
    training, holdout = frame.head(300), frame.tail(100)
    for copies, status in ((5, "pass"), (6, "fail")):
        again = holdout.tail(copies).assign(label=1 - holdout["label"], row_id="x", entity="c")
        gate = duplicates(pd.concat([training, again]), holdout, timed=True)
        assert (gate.status, gate.estimate, gate.threshold) == (status, copies / 100, 0.05)
    assert "6 of 100 holdout rows have the features of a training row, 0 its entity and label too" in gate.detail


def test_without_time_honest_repeats_pass_and_one_copy_fails(frame: pd.DataFrame) -> None:
    training, holdout = frame.head(300), frame.tail(100)
    repeats = holdout.assign(label=1 - holdout["label"])
    assert duplicates(pd.concat([training, repeats]), holdout, timed=False).status == "pass"
    gate = duplicates(pd.concat([training, holdout.tail(1)]), holdout, timed=False)
    assert (gate.status, gate.estimate, gate.threshold) == ("fail", 0.01, 0.0)


def test_a_limit_of_ones_own_is_on_features(frame: pd.DataFrame) -> None:
    training, holdout = frame.head(300), frame.tail(100)
    repeats = pd.concat([training, holdout.assign(label=1 - holdout["label"])])
    assert duplicates(repeats, holdout, timed=False, allowed=0.5).status == "fail"
    assert duplicates(repeats, holdout, timed=True, allowed=1.0).status == "pass"


def test_rows_are_compared_whatever_their_types(frame: pd.DataFrame) -> None:
    """An empty column is read as objects, a whole one as integers, and −0 is 0."""
    training = frame.head(300).assign(size=np.nan, count=0)
    copies = training.head(10).astype({"colour": "object", "size": "float32", "count": "int8"})
    copies["count"] = -0.0
    training = training.astype({"size": "object"})
    assert duplicates(training, copies, timed=True).estimate == 1.0


def test_windows_that_lack_something_fail(frame: pd.DataFrame) -> None:
    training, holdout = frame.head(300), frame.tail(100)
    known = schema(frame)
    for left, right, said in (
        (training, holdout.head(0), "the holdout window has no rows"),
        (training.drop(columns="size"), holdout, "the training window lacks size"),
        (training, holdout.drop(columns="label"), "the holdout window lacks label"),
    ):
        gate = duplicate_gate(left, right, known, timed=True, max_duplicates=1.0)
        assert (gate.status, gate.detail) == ("fail", said)


def timed(start: str, hours: int, answered_after: str = "1h") -> pd.DataFrame:
    asked = pd.date_range(start, periods=hours, freq="h", tz="UTC")
    return pd.DataFrame({"prediction_time": asked, "label_time": asked + pd.Timedelta(answered_after)})


def test_all_is_known_before_the_holdout_begins() -> None:
    gate = time_gate(timed("2024-01-01", 24), timed("2024-01-02 01:00", 5))
    assert (gate.name, gate.status, gate.estimate, gate.n) == ("time_overlap", "pass", 0, 24)


def test_an_answer_known_as_the_holdout_begins_is_too_late() -> None:
    gate = time_gate(timed("2024-01-01", 24), timed("2024-01-02", 5))
    assert (gate.status, gate.estimate) == ("fail", 1)
    assert "1 of 24 training rows were asked or answered at or after 2024-01-02T00:00:00+00:00" in gate.detail


def test_one_late_answer_among_many_is_found() -> None:
    training = timed("2024-01-01", 24)
    training.loc[3, "label_time"] = pd.Timestamp("2024-03-01", tz="UTC")
    gate = time_gate(training, timed("2024-02-01", 5))
    assert (gate.status, gate.estimate) == ("fail", 1)


def test_a_question_asked_in_the_holdout_is_too_late_though_its_answer_seems_early() -> None:
    assert time_gate(timed("2024-01-03", 2, "-48h"), timed("2024-01-02", 5)).estimate == 2


@pytest.mark.parametrize(("window", "column"), [(0, "prediction_time"), (0, "label_time"), (1, "prediction_time")])
def test_a_time_that_is_missing_proves_nothing(window: int, column: str) -> None:
    windows = [timed("2024-01-01", 24), timed("2024-02-01", 5)]
    windows[window].loc[2, column] = pd.NaT
    gate = time_gate(*windows)
    assert (gate.status, gate.detail) == ("fail", f"1 {['training', 'holdout'][window]} rows have no {column}")
    windows[window] = windows[window].drop(columns=column)
    assert time_gate(*windows).status == "fail"
    windows[window] = windows[window].head(0)
    assert time_gate(*windows).status == "fail"
