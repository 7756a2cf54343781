"""The gates on several classes and on numbers: what they pass, what they stop, and what they say they cannot judge."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.behaviour import Directional, Invariance, MinimumFunctionality, behaviour_gates
from clearway.calibration_gate import calibration_champion_gate, calibration_gate, calibration_of
from clearway.encoding import learn_schema
from clearway.errors import ClearwayError
from clearway.fairness import fairness_gates
from clearway.gates import (
    Gate,
    Holdout,
    champion_gate,
    classes_gate,
    constant_gate,
    constant_outputs,
    finite_gate,
    floor_gate,
    judge,
    paired_gain,
    parity_gate,
    rows_gate,
)
from clearway.leakage import duplicate_gate, target_gate
from clearway.metrics import MULTICLASS, REGRESSION
from clearway.params import ClassesGate, FairnessGates, GateParams, SliceGates
from clearway.robustness import noise_gate
from clearway.slices import slice_gates
from clearway.target import Target

RANDOM = np.random.default_rng(11)
ROWS = 900
ABC = Target(kind="multiclass", classes=("a", "b", "c"))
NUMBERS = Target(kind="regression", centre=100.0, spread=10.0)
SHOP = RANDOM.choice(["north", "south"], ROWS)
FRAME = pd.DataFrame({"shop": pd.Series(SHOP, dtype="string"), "size": RANDOM.normal(size=ROWS)})
SCHEMA = learn_schema(FRAME, ("shop",), ("size",))
CODES = RANDOM.integers(0, 3, ROWS).astype(np.float64)
VALUES = 100 + 10 * RANDOM.normal(size=ROWS)


def probabilities(sure: float, seed: int = 1, codes: np.ndarray = CODES) -> np.ndarray:
    """Calibrated answers: the class with a chance of ``sure``, else one of the others, and said so."""
    random = np.random.default_rng(seed)
    answered = np.where(random.random(len(codes)) < sure, codes, (codes + random.integers(1, 3, len(codes))) % 3)
    return np.full((len(codes), 3), (1 - sure) / 2) + (sure - (1 - sure) / 2) * np.eye(3)[answered.astype(int)]


def classes(**changes: Any) -> Holdout:
    return replace(Holdout(CODES, 0.5, 0.95, 200, 3, target=ABC), **changes)


def numbers(**changes: Any) -> Holdout:
    return replace(Holdout(VALUES, 0.5, 0.95, 200, 3, target=NUMBERS), **changes)


GOOD, WORSE = probabilities(0.9), probabilities(0.6)
NEAR, FAR = VALUES + 3 * RANDOM.normal(size=ROWS), VALUES + 8 * RANDOM.normal(size=ROWS)


def by_name(gates: list[Gate]) -> dict[str, Gate]:
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def test_floors_hold_the_lower_bound_of_a_gain_and_the_upper_bound_of_a_loss() -> None:
    for holdout, outputs, known in ((classes(), GOOD, MULTICLASS), (numbers(), NEAR, REGRESSION)):
        for name, measured in known.items():
            found = holdout.interval(measured, outputs)
            assert found.lower is not None
            assert found.upper is not None
            assert found.lower <= found.estimate <= found.upper
            bound = found.lower if measured.higher_is_better else found.upper
            inside, outside = bound - measured.sign * 1e-9, bound + measured.sign * 1e-9
            assert floor_gate(holdout, name, inside, outputs).status == "pass"
            assert floor_gate(holdout, name, outside, outputs).status == "fail"


def test_labels_all_alike_or_too_few_are_no_holdout() -> None:
    assert rows_gate(classes(), 50).status == "pass"
    assert rows_gate(classes(labels=np.ones(ROWS)), 50).status == "fail"
    assert rows_gate(numbers(labels=np.full(ROWS, 7.0)), 50).status == "fail"
    assert rows_gate(numbers(), ROWS + 1).status == "fail"
    assert floor_gate(numbers(labels=np.full(ROWS, 7.0)), "mae", 100.0, NEAR).status == "fail"


def test_outputs_that_can_be_none_and_graphs_that_say_otherwise_fail() -> None:
    assert finite_gate(GOOD, ABC).status == finite_gate(NEAR, NUMBERS).status == "pass"
    assert finite_gate(GOOD * 1.01, ABC).status == "fail"
    assert finite_gate(np.append(NEAR, np.inf), NUMBERS).status == "fail"
    assert finite_gate(np.append(NEAR, 1e39), NUMBERS).status == "fail"  # no server could answer it
    assert parity_gate(GOOD + 1e-7, GOOD, 1e-5, ABC).status == "pass"
    assert parity_gate(GOOD[:, ::-1], GOOD, 1e-5, ABC).status == "fail"
    assert parity_gate(NEAR + 1e-4, NEAR, 1e-5, NUMBERS).status == "pass", "1e-4 of 100 is a rounding of float32"
    assert parity_gate(NEAR + 0.01, NEAR, 1e-5, NUMBERS).status == "fail"
    assert parity_gate(NEAR * np.nan, NEAR, 1e-5, NUMBERS).status == "fail"


def test_the_most_frequent_class_and_the_mean_must_be_beaten() -> None:
    shares = [0.2, 0.5, 0.3]
    assert constant_gate(classes(), "accuracy", GOOD, shares).status == "pass"
    assert constant_gate(classes(), "accuracy", np.tile(shares, (ROWS, 1)), shares).status == "fail"
    assert constant_outputs(shares, GOOD[:2]).tolist() == [shares, shares]
    padded = np.hstack([GOOD[:1], [[0.0]]])
    assert constant_outputs(shares, padded).tolist() == [[*shares, 0.0]], "a class never seen has no share"
    assert constant_gate(numbers(), "r2", NEAR, 100.0).status == "pass"
    assert constant_gate(numbers(), "r2", VALUES[::-1], 100.0).status == "fail"


def test_accuracy_of_classes_is_compared_by_the_exact_mcnemar_test() -> None:
    assert champion_gate(classes(), "accuracy", GOOD, WORSE, 0.02).status == "pass"
    worse = champion_gate(classes(), "accuracy", WORSE, GOOD, 0.02)
    assert worse.status == "fail"
    assert "exact McNemar p = " in worse.detail
    right, other = ((p.argmax(axis=1) == CODES) for p in (GOOD, WORSE))
    assert f"{int((other & ~right).sum()):,} rows only it answers rightly" in worse.detail
    clustered = classes(groups=np.arange(ROWS) // 3)
    assert "paired bootstrap over 300 entities" in champion_gate(clustered, "accuracy", GOOD, WORSE, 0.02).detail


def test_other_metrics_are_compared_by_the_paired_bootstrap() -> None:
    assert champion_gate(classes(), "log_loss", GOOD, WORSE, 0.02).status == "pass"
    assert champion_gate(numbers(), "rmse", FAR, NEAR, 0.5).status == "fail"
    assert champion_gate(numbers(), "mae", NEAR, NEAR + 0.001, 0.5).status == "pass"
    same = champion_gate(numbers(), "r2", NEAR, NEAR.copy(), 0.0)
    assert (same.status, same.estimate) == ("pass", 0.0)
    nan = champion_gate(numbers(), "r2", NEAR, NEAR * np.nan, 0.0)
    assert nan.status == "fail"


def test_numbers_that_no_resample_tells_apart_have_no_bound() -> None:
    """Each draw has the same median error, though a row is a million off: nobody knows how many more there are."""
    labels = np.zeros(ROWS)
    labels[0] = 1.0
    ours, theirs = labels + 2, labels + 2
    theirs[5] += 1e6
    found = champion_gate(numbers(labels=labels), "median_absolute_error", ours, theirs, 0.1)
    assert (found.status, found.lower) == ("unknown", None)


def test_classes_that_the_holdout_lacks_are_unknown_and_unseen_ones_are_limited() -> None:
    assert classes_gate(classes(), ABC.classes, ClassesGate()).status == "pass"
    scarce = np.where(CODES == 2, 0.0, CODES)
    scarce[:4] = 2
    gate = classes_gate(classes(labels=scarce), ABC.classes, ClassesGate())
    assert gate.status == "unknown"
    assert "too few to judge: 'c' (4)" in gate.detail
    assert judge([gate], GateParams(), champion=None).verdict == "rejected"
    lenient = GateParams(classes=ClassesGate(unknown_blocks=False))
    assert judge([gate], lenient, champion=None).verdict == "passed"
    unseen = CODES.copy()
    unseen[:20] = 3
    named = (*ABC.classes, "$new$")
    assert classes_gate(classes(labels=unseen), named, ClassesGate()).status == "pass"
    unseen[:60] = 3
    gate = classes_gate(classes(labels=unseen), named, ClassesGate())
    assert gate.status == "fail"
    assert "'$new$' (60)" in gate.detail


def test_calibration_of_classes_is_that_of_the_answer() -> None:
    honest, boastful = GOOD, probabilities(0.7)
    boastful = np.where(boastful == boastful.max(axis=1, keepdims=True), 0.98, 0.01)
    assert calibration_gate(classes(), calibration_of(classes(), honest), 0.1).status == "pass"
    assert calibration_gate(classes(), calibration_of(classes(), boastful), 0.1).status == "fail"
    found = calibration_of(classes(), boastful)
    assert found is not None
    assert found.brier.estimate == MULTICLASS["brier"].value(CODES, boastful, 0.5), "one name, one figure"
    accuracy = float((boastful.argmax(axis=1) == CODES).mean())
    assert found.error.estimate == pytest.approx(0.98 - accuracy)
    assert calibration_champion_gate(classes(), boastful, honest, 0.05).status == "fail"
    always_right = calibration_of(classes(), 0.94 * np.eye(3)[CODES.astype(int)] + 0.02)
    assert always_right is not None
    assert always_right.error.estimate == pytest.approx(0.04)
    assert calibration_of(numbers(), NEAR / 1000) is None, "a number is no probability, whatever its size"


def test_slices_of_classes_and_numbers() -> None:
    params = SliceGates(declared=("shop",), min_rows=100, discover=False)
    south = SHOP == "south"
    broken = np.where(south[:, None], GOOD[:, [1, 2, 0]], GOOD)
    biased = np.where(south, NEAR + 30, NEAR)
    for holdout, ours, theirs, metric in ((classes(), broken, GOOD, "accuracy"), (numbers(), biased, NEAR, "r2")):
        gates = by_name(
            slice_gates(
                FRAME, holdout, ours, theirs, params, compared=metric, constant=[0.3, 0.3, 0.4], gain=paired_gain
            )
        )
        assert {name: gate.status for name, gate in gates.items()} == {
            "slice_shop=north": "pass",
            "slice_shop=south": "fail",
        }


def test_the_weakest_part_is_discovered_by_the_loss_of_the_kind() -> None:
    params = SliceGates(min_rows=60)
    south = SHOP == "south"
    cases: list[tuple[Holdout, np.ndarray, np.ndarray, Any, str]] = [
        (classes(), np.where(south[:, None], GOOD[:, [1, 2, 0]], GOOD), GOOD, [0.3, 0.3, 0.4], "log loss"),
        (numbers(), np.where(south, NEAR + 30, NEAR), NEAR, 100.0, "squared error"),
    ]
    for holdout, ours, theirs, constant, what in cases:
        metric = "accuracy" if holdout.target.classes else "r2"
        gates = slice_gates(FRAME, holdout, ours, theirs, params, compared=metric, constant=constant, gain=paired_gain)
        assert (gates[0].name, gates[0].status) == ("slice_discovered_1", "fail")
        assert "shop = south" in gates[0].detail or "shop ≠ north" in gates[0].detail
        assert what in gates[0].detail


def test_each_class_is_a_yes_that_groups_must_get_alike() -> None:
    params = FairnessGates(attributes=("shop",), max_difference=0.2, min_rows=50)
    even = by_name(fairness_gates(FRAME, classes(), GOOD, None, params))
    assert {gate.status for gate in even.values()} == {"pass"}
    assert len(even) == 1 + 3 * 3
    never_c = np.where((SHOP == "south")[:, None] & (GOOD.argmax(axis=1) == 2)[:, None], GOOD[:, [0, 2, 1]], GOOD)
    uneven = by_name(fairness_gates(FRAME, classes(), never_c, None, params))
    gate = uneven["fairness_shop_true_positive_rate_of_c_difference"]
    assert gate.status == "fail"
    assert "true positive rate of 'c' from 0.0000 (south)" in gate.detail
    assert uneven["fairness_shop_true_positive_rate_of_a_difference"].status == "pass"
    only = fairness_gates(FRAME, classes(), never_c, GOOD, replace_params(params, classes=("a",), max_difference=None))
    assert {gate.name.split("_of_")[1] for gate in only[1:]} == {"a_difference_to_champion"}
    with pytest.raises(ClearwayError, match="class 'd' is none that training saw"):
        fairness_gates(FRAME, classes(), GOOD, None, replace_params(params, classes=("d",)))


def replace_params(params: FairnessGates, **changes: Any) -> FairnessGates:
    return params.model_copy(update=changes)


def test_numbers_are_fair_if_groups_are_as_far_off_and_on_the_same_side() -> None:
    params = FairnessGates(attributes=("shop",), max_difference=0.3, min_rows=50, margin=0.2)
    even = by_name(fairness_gates(FRAME, numbers(), NEAR, NEAR + 0.1, params))
    assert {name: gate.status for name, gate in even.items()} == {
        "fairness_shop_groups": "pass",
        "fairness_shop_mean_error_difference": "pass",
        "fairness_shop_mean_error_difference_to_champion": "pass",
        "fairness_shop_mean_absolute_error_difference": "pass",
        "fairness_shop_mean_absolute_error_difference_to_champion": "pass",
    }
    low = np.where(SHOP == "south", NEAR - 6, NEAR)
    gates = by_name(fairness_gates(FRAME, numbers(), low, NEAR, params))
    gate = gates["fairness_shop_mean_error_difference"]
    assert gate.status == "fail"
    assert gate.estimate == pytest.approx(0.6, abs=0.06)
    assert gates["fairness_shop_mean_error_difference_to_champion"].status == "fail"
    noisy = np.where(SHOP == "south", VALUES + 15 * RANDOM.normal(size=ROWS), NEAR)
    gates = by_name(fairness_gates(FRAME, numbers(), noisy, None, params))
    assert gates["fairness_shop_mean_absolute_error_difference"].status == "fail"
    entities = replace(numbers(), groups=np.arange(ROWS) // 300)
    few = by_name(fairness_gates(FRAME, entities, NEAR, None, params))
    assert few["fairness_shop_mean_error_difference"].status == "unknown"


def test_answers_stand_under_noise() -> None:
    matrix = SCHEMA.encode(FRAME)
    position = SCHEMA.names.index("size")

    def steady(rows: np.ndarray) -> np.ndarray:
        return 100 + 10 * rows[:, position].astype(np.float64)

    def jumpy(rows: np.ndarray) -> np.ndarray:
        return 100 + 10 * np.sin(1e4 * rows[:, position].astype(np.float64))

    def of_classes(rows: np.ndarray) -> np.ndarray:
        sure = np.stack([steady(rows), 200 - steady(rows), np.full(len(rows), 80.0)], axis=1)
        return sure / sure.sum(axis=1, keepdims=True)

    assert noise_gate(steady, SCHEMA, matrix, 0.5, seed=1, target=NUMBERS, tolerance=0.1).status == "pass"
    assert noise_gate(steady, SCHEMA, matrix, 0.5, seed=1, target=NUMBERS, tolerance=0.001).status == "fail"
    assert noise_gate(jumpy, SCHEMA, matrix, 0.5, seed=1, target=NUMBERS, tolerance=0.1).status == "fail"
    assert noise_gate(of_classes, SCHEMA, matrix, 0.5, seed=1, target=ABC).status == "pass"
    assert noise_gate(lambda m: of_classes(m) * np.nan, SCHEMA, matrix, 0.5, seed=1, target=ABC).status == "fail"


def test_behaviour_of_a_class_and_of_a_number() -> None:
    position = SCHEMA.names.index("size")

    def of_classes(rows: np.ndarray) -> np.ndarray:
        chance = 1 / (1 + np.exp(-rows[:, position].astype(np.float64)))
        return np.stack([chance / 2, 1 - chance, chance / 2], axis=1)

    def larger(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(size=rows["size"] + 0.5)

    tests = [
        Directional("a_rises", larger, "up", of_class="a"),
        Directional("b_rises", larger, "up", of_class="b"),
        Directional("of_none", larger, "up"),
        Directional("of_strange", larger, "up", of_class="z"),
        Invariance("still", larger, tolerance=0.01),
        Invariance("still_c", larger, tolerance=0.2, of_class="c"),
        MinimumFunctionality("small_is_b", FRAME.head(3).assign(size=-9.0), "b"),
        MinimumFunctionality("strange", FRAME.head(3), " "),
    ]
    found = by_name(behaviour_gates(tests, FRAME, SCHEMA, of_classes, 0.5, seed=1, target=ABC))
    assert [gate.status for gate in found.values()] == ["pass", "fail", "fail", "fail", "fail", "pass", "pass", "fail"]
    assert "give the test of_class" in found["behaviour_of_none"].detail
    assert "'z' is none that training saw" in found["behaviour_of_strange"].detail
    assert "cannot answer" in found["behaviour_strange"].detail

    def of_numbers(rows: np.ndarray) -> np.ndarray:
        return 100 + 10 * rows[:, position].astype(np.float64)

    tests = [
        Directional("rises", larger, "up"),
        Directional("falls", larger, "down"),
        Invariance("half_a_spread", larger, tolerance=0.51),
        MinimumFunctionality("plain", FRAME.head(3).assign(size=1.0), 110.5),
        MinimumFunctionality("far", FRAME.head(3).assign(size=1.0), 130),
    ]
    found = by_name(behaviour_gates(tests, FRAME, SCHEMA, of_numbers, 0.5, seed=1, target=NUMBERS))
    assert [gate.status for gate in found.values()] == ["pass", "fail", "pass", "pass", "fail"]


@pytest.mark.parametrize("target", [ABC, NUMBERS], ids=lambda target: target.kind)
def test_a_feature_made_from_the_answer_is_found(target: Target) -> None:
    labels = CODES if target.classes else VALUES
    heavy = np.sign(VALUES - 100) * np.abs(VALUES - 100) ** 7  # a heavy tail, the same ranks
    frame = FRAME.assign(
        guess=labels + RANDOM.normal(size=ROWS) * labels.std(),
        leak=labels if target.classes else heavy,
        code=pd.Series(np.where(CODES == 0, "x", np.where(CODES == 1, "y", "z")), dtype="string"),
        one_class=(CODES == 0) * 1.0,
        rank=pd.Series(RANDOM.integers(0, 400, ROWS).astype(str), dtype="string"),
    )
    honest = learn_schema(frame, ("shop", "rank"), ("size", "guess", "one_class"))
    gate = target_gate(frame, labels, honest, 0.99, 1, target)
    assert gate.status == "pass", gate.detail
    for categorical, numeric in ((("shop",), ("size", "leak")), (("code",), ("size",))):
        if numeric[-1] == "size" and not target.classes:
            continue
        gate = target_gate(frame, labels, learn_schema(frame, categorical, numeric), 0.99, 1, target)
        assert gate.status == "fail"
        assert numeric[-1] in gate.detail or categorical[0] in gate.detail


def test_a_feature_that_ranks_as_the_labels_do_leaks_however_few_rows_there_are() -> None:
    """A tree of leaves of five rows explains 0.97 of forty ranks, their own order all of it."""
    frame = pd.DataFrame({"cubed": -((VALUES[:40] - 100) ** 3)})
    gate = target_gate(frame, VALUES[:40], learn_schema(frame, (), ("cubed",)), 0.99, 1, NUMBERS)
    assert (gate.status, gate.estimate) == ("fail", pytest.approx(1))


def test_a_number_with_a_range_for_each_class_leaks_however_rare_they_are() -> None:
    """A tree that has not seen the end of a range takes it for the neighbour's: of 20 rows a twentieth."""
    many = Target(kind="multiclass", classes=tuple("abcdefghijklmnopqrst"))
    labels = np.repeat(np.arange(20.0), 20)
    frame = pd.DataFrame({"code": (labels * 7) % 20 + 0.01 * RANDOM.normal(size=400)})
    gate = target_gate(frame, labels, learn_schema(frame, (), ("code",)), 0.99, 1, many)
    assert (gate.status, gate.estimate) == ("fail", pytest.approx(1))


def test_too_few_rows_to_look_for_leaks_fail() -> None:
    few = FRAME.head(8)
    assert target_gate(few, VALUES[:8], SCHEMA, 0.99, 1, NUMBERS).status == "fail"
    assert target_gate(few, np.array([0, 0, 0, 0, 0, 0, 1, 2.0]), SCHEMA, 0.99, 1, ABC).status == "fail"


def test_twins_are_found_whatever_the_label_is() -> None:
    for label in (pd.Series(["a", "b"] * 450, dtype="string"), pd.Series(VALUES)):
        training = FRAME.assign(label=label)
        holdout = pd.concat([training.head(5), FRAME.tail(5).assign(size=99.0, label=label.tail(5))])
        gate = duplicate_gate(training, holdout, SCHEMA, timed=False, max_duplicates=None)
        assert (gate.status, gate.estimate) == ("fail", 0.5)
