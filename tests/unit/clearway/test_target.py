"""What a model answers: labels of every kind become what is learnt and judged, and nothing odd passes in silence."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.errors import ClearwayError
from clearway.labelled_rows import read_labels
from clearway.target import (
    BINARY,
    MAX_CLASSES,
    Target,
    Told,
    class_name,
    class_names,
    constant_answer,
    constants,
    judged,
    learn_target,
    refused_label,
)

ABC = Target(kind="multiclass", classes=("a", "b", "c"))
NUMBERS = Target(kind="regression", centre=100.0, spread=10.0)
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.4, 0.4, 0.2]])


def test_the_score_and_the_answer_of_each_kind() -> None:
    chances, values = np.array([0.2, 0.5]), np.array([-3.0, 250.0])
    assert BINARY.score(chances) is chances
    assert BINARY.named(chances, 0.5) == [0, 1]
    assert ABC.score(PROBABILITIES).tolist() == [0.7, 0.6, 0.4]
    assert ABC.named(PROBABILITIES, 0.5) == ["a", "c", "a"], "of equally likely classes the first"
    assert NUMBERS.score(values) is values
    assert NUMBERS.named(values, 0.5) == [-3.0, 250.0]


def test_what_a_caller_is_told() -> None:
    assert BINARY.told(np.array([0.75, 0.5, 0.25]), 0.5) == Told([0.75, 0.5, 0.25], [1, 1, 0])
    assert ABC.told(PROBABILITIES[1:2], 0.5) == Told([0.6], ["c"], [{"a": 0.1, "b": 0.3, "c": 0.6}])
    assert NUMBERS.told(np.array([7.5]), 0.5) == Told([7.5], [7.5])


def test_classes_are_named_by_their_value_whatever_its_type() -> None:
    odd = ["$x$ | \n<b>", "Ünï", " a", "1.50", "NaN"]
    values: list[Any] = [1, 1.0, np.float64(1), np.int8(1), "1", True, np.bool_(False), 2.5, 1e300, *odd]
    expected = ["1"] * 5 + ["True", "False", "2.5", "1e+300", *odd]
    assert [class_name(value) for value in values] == expected
    with_gap = class_names(pd.Series([3, None, 4]))  # pandas made floats of it
    assert with_gap.tolist() == ["3", pd.NA, "4"]
    assert class_names(pd.Series([True, None], dtype="boolean")).tolist() == ["True", pd.NA]
    assert class_names(pd.Series([pd.NA], dtype="Int64")).isna().all()


def test_classes_are_learnt_from_training_and_sorted() -> None:
    target, codes = learn_target("multiclass", np.array(["b", "a", "b", "ä"], dtype=object))
    assert target.classes == ("a", "b", "ä")
    assert codes.tolist() == [1, 0, 1, 2]
    assert constants(target, codes) == {"class_shares": [0.25, 0.5, 0.25]}


def test_the_spread_of_a_heavy_tail_is_that_of_its_bulk() -> None:
    normal = np.random.default_rng(1).normal(50, 4, 2000)
    bulk, _ = learn_target("regression", normal)
    tail, _ = learn_target("regression", np.append(normal, [1e30, -1e30]))
    assert bulk.spread == pytest.approx(4, rel=0.05)
    assert tail.spread == pytest.approx(bulk.spread, rel=0.02)
    assert tail.centre == pytest.approx(50, abs=0.3)
    mostly_zero, _ = learn_target("regression", np.append(np.zeros(99), 1.0))
    assert mostly_zero.spread is not None
    assert mostly_zero.spread > 0


@pytest.mark.parametrize(
    ("kind", "labels", "said"),
    [
        ("binary", [1.0, 1.0], "found only 1 in 2 rows"),
        ("multiclass", ["a", "a"], "two classes or more, found only 'a' in 2 rows"),
        ("multiclass", [str(n) for n in range(MAX_CLASSES + 1)], "1,001 classes, at most 1,000"),
        ("regression", [2.0, 2.0, 2.0], "different numbers, found only 2 in 3 rows"),
    ],
)
def test_nothing_to_learn_is_said(kind: Any, labels: list[Any], said: str) -> None:
    with pytest.raises(ClearwayError, match=said):
        learn_target(kind, np.array(labels, dtype=object if kind == "multiclass" else float))


@pytest.mark.parametrize(
    ("kind", "label", "said"),
    [
        ("binary", 2.0, "a label is 0, 1 or null"),
        ("binary", "yes", "a label is 0, 1 or null"),
        ("multiclass", "  ", "a class needs a name"),
        ("regression", float("inf"), "a finite number"),
        ("regression", "12 mm", "a finite number"),
        ("regression", 1e39, "too large for float32"),
    ],
)
def test_a_label_that_can_be_none_is_refused(kind: Any, label: Any, said: str) -> None:
    assert said in refused_label(kind, label)


def test_labels_that_can_be_are_not_refused() -> None:
    good = [("binary", 0.0), ("binary", True), ("multiclass", 3), ("multiclass", "a b"), ("regression", -1e30)]
    assert [refused_label(kind, label) for kind, label in good] == [""] * 5  # type: ignore[arg-type]


def test_tables_made_for_another_kind_are_refused() -> None:
    with pytest.raises(ClearwayError, match=r"made for another target\.kind than multiclass"):
        read_labels(pd.Series([0.0, 1.0]), "multiclass", "x.parquet")
    for kind in ("binary", "regression"):
        with pytest.raises(ClearwayError, match=rf"x.parquet: label is .*target.kind than {kind}"):
            read_labels(pd.Series(["a", "b"], dtype="string"), kind, "x.parquet")  # type: ignore[arg-type]
    with pytest.raises(ClearwayError, match="missing in 1 rows"):
        read_labels(pd.Series(["a", pd.NA], dtype="string"), "multiclass", "x.parquet")
    with pytest.raises(ClearwayError, match="finite number, in 2 rows it is not"):
        read_labels(pd.Series([1.0, np.nan, np.inf]), "regression", "x.parquet")


def test_a_class_that_a_model_never_saw_gets_no_chance_from_it() -> None:
    older = Target(kind="multiclass", classes=("a", "z"))
    made = judged(
        ABC, np.array(["b", "new"], dtype=object), (ABC, PROBABILITIES[:2]), (older, np.array([[0.5, 0.5]] * 2))
    )
    assert made.classes == ("a", "b", "c", "new", "z"), "the challenger's come first, in its order"
    assert made.labels.tolist() == [1, 3]
    assert made.outputs[0].tolist() == [[0.7, 0.2, 0.1, 0, 0], [0.1, 0.3, 0.6, 0, 0]]
    assert made.outputs[1].tolist() == [[0.5, 0, 0, 0, 0.5]] * 2


def test_what_can_be_no_output_is_found_row_by_row() -> None:
    assert BINARY.sane(np.array([0.0, 1.0, -0.1, 1.1, np.nan])).tolist() == [True, True, False, False, False]
    rows = np.array([[0.5, 0.5, 0.0], [0.5, 0.6, 0.0], [np.nan, 0.5, 0.5], [-0.1, 0.6, 0.5]])
    assert ABC.sane(rows).tolist() == [True, False, False, False]
    assert NUMBERS.sane(np.array([1e30, np.inf, np.nan])).tolist() == [True, False, False]


def test_outputs_are_apart_by_probability_or_relative_to_the_number() -> None:
    assert ABC.differences(PROBABILITIES, PROBABILITIES[::-1]).tolist() == pytest.approx([0.3, 0.0, 0.3])
    ours, theirs = np.array([2013.0, 0.0]), np.array([2014.0, 1.0])
    assert NUMBERS.differences(ours, theirs).tolist() == pytest.approx([1 / 2014, 1 / 10])
    assert np.isnan(NUMBERS.differences(np.array([np.nan]), np.array([1.0])))


def test_an_answer_is_kept_if_it_is_the_same() -> None:
    moved = PROBABILITIES + np.array([[0.1, -0.1, 0], [0, 0.31, -0.31], [0, 0, 0]])
    assert ABC.kept(PROBABILITIES, moved, 0.5, 0.1).tolist() == [True, False, True]
    before = np.array([0.0, 10.0, 20.0])  # of standard deviation 8.16
    assert NUMBERS.kept(before, before + np.array([0.8, 0.9, -0.8]), 0.5, 0.1).tolist() == [True, False, True]


def test_the_best_answer_that_ignores_the_question() -> None:
    target, labels = learn_target("regression", np.array([1.0, 2.0, 9.0]))
    report = constants(target, labels)
    assert constant_answer(report, "rmse") == 4.0
    assert constant_answer(report, "mae") == 2.0
    assert constant_answer({"positive_share": 0.3}, "roc_auc") == 0.3


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "multiclass"}, {"kind": "multiclass", "classes": ("a", "a")}, {"kind": "regression", "centre": 0}],
)
def test_a_target_that_lacks_what_its_kind_needs_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Target.model_validate(wrong)
