"""Parts of the holdout: declared or discovered, each judged as often as it should be and no more."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit
from sklearn.metrics import roc_auc_score

from clearway.errors import UsageError
from clearway.gates import Gate, Holdout, Interval
from clearway.metrics import Floats, Metric
from clearway.paired import delong_gain
from clearway.params import SliceGates
from clearway.slices import check_columns, levels, slice_gates

ROWS = 4000
RANDOM = np.random.default_rng(7)
LABELS = (RANDOM.random(ROWS) < 0.3).astype(float)
FRAME = pd.DataFrame(
    {
        "shop": pd.Series(
            RANDOM.choice(["A", "B", "C", "D", "E"], ROWS, p=[0.4, 0.3, 0.27, 0.02, 0.01]), dtype="string"
        ),
        "wind": np.where(RANDOM.random(ROWS) < 0.05, np.nan, RANDOM.gamma(2, 5, ROWS)),
        "weekday": RANDOM.integers(0, 7, ROWS).astype(float),
        "row_id": [f"r{row}" for row in range(ROWS)],
    }
)
SIGNAL = LABELS + RANDOM.normal(size=ROWS)


def probability(raw: Floats) -> Floats:
    scores: Floats = 1 / (1 + np.exp(-raw))
    return scores


CHAMPION = probability(SIGNAL - 1.3)
EQUAL = probability(SIGNAL - 1.3 + 0.1 * RANDOM.normal(size=ROWS))
WINDY = (FRAME["shop"] == "B").to_numpy() & (FRAME["wind"] >= 8).to_numpy()
BROKEN = np.where(WINDY, probability(-SIGNAL - 1.3), EQUAL)
DECLARED = SliceGates(declared=("shop", ("shop", "weekday")), discover=False)


def holdout(labels: Floats = LABELS, groups: np.ndarray | None = None, seed: int = 1) -> Holdout:
    return Holdout(labels, threshold=0.4, confidence=0.95, resamples=100, seed=seed, groups=groups)


def by_auc(inside: Holdout, measured: Metric, ours: Floats, theirs: Floats, theirs_from: float) -> tuple[Interval, str]:
    return delong_gain(inside.labels, ours, theirs, inside.confidence, inside.groups), "DeLong"


def by_mean(
    inside: Holdout, measured: Metric, ours: Floats, theirs: Floats, theirs_from: float
) -> tuple[Interval, str]:
    """Student's interval of the mean difference: exact for normal ones, and quick."""
    gain = theirs - ours
    reach = stdtrit(len(gain) - 1, inside.confidence) * gain.std(ddof=1) / np.sqrt(len(gain))
    return Interval(gain.mean(), gain.mean() - reach, gain.mean() + reach), "Student"


def judged(scores: Floats, params: SliceGates = DECLARED, champion: Floats | None = CHAMPION) -> dict[str, Gate]:
    gates = slice_gates(FRAME, holdout(), scores, champion, params, compared="roc_auc", constant=0.3, gain=by_auc)
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def test_every_row_is_in_one_level() -> None:
    for columns in (["shop"], ["wind"], ["shop", "wind", "weekday"]):
        found = levels(FRAME, columns, bins=4)
        assert (np.sum([level.rows for level in found], axis=0) == 1).all()


def test_numbers_are_cut_into_equally_full_ranges_and_missing_is_a_level() -> None:
    found = levels(FRAME, ["wind"], bins=4)
    assert len(found) == 5
    assert found[-1].name == "wind=missing"
    np.testing.assert_array_equal(found[-1].rows, FRAME["wind"].isna())
    counts = [level.rows.sum() for level in found[:-1]]
    assert max(counts) - min(counts) <= 1
    for level, (low, high) in zip(found[:-1], [(0, 25), (25, 50), (50, 75), (75, 100)], strict=True):
        inside = FRAME["wind"][level.rows]
        assert inside.min() >= np.nanpercentile(FRAME["wind"], low) - 0.1
        assert inside.max() <= np.nanpercentile(FRAME["wind"], high) + 0.1
    assert found[0].words.startswith("wind < ")
    assert " ≤ wind < " in found[1].words


def test_few_values_are_levels_and_a_value_that_most_rows_have_is_one() -> None:
    few = pd.DataFrame({"x": [2.0, 1.0, 2.0, 3.0, None], "flag": [True, False, True, True, False]})
    assert [level.words for level in levels(few, ["x"], bins=4)] == ["x = 1", "x = 2", "x = 3", "x is missing"]
    assert [level.name for level in levels(few, ["flag"], bins=4)] == ["flag=False", "flag=True"]
    mostly = pd.DataFrame({"rain": np.r_[np.zeros(95), np.arange(1.0, 6.0)]})
    assert [level.rows.sum() for level in levels(mostly, ["rain"], bins=4)] == [95, 5]


def test_a_name_with_braces_is_kept() -> None:
    assert levels(pd.DataFrame({"x": ["{0}"]}), ["x"], bins=4)[0].words == "x = {0}"


def test_equal_models_hold_in_every_large_part() -> None:
    gates = judged(EQUAL)
    assert not [gate for gate in gates.values() if gate.status == "fail"]
    assert {gates[f"slice_shop={shop}"].status for shop in "ABC"} == {"pass"}
    gate = gates["slice_shop=A"]
    inside = (FRAME["shop"] == "A").to_numpy()
    gain = roc_auc_score(LABELS[inside], EQUAL[inside]) - roc_auc_score(LABELS[inside], CHAMPION[inside])
    assert gate.estimate == pytest.approx(gain)
    assert (gate.n, gate.threshold) == (inside.sum(), -0.05)


def test_a_broken_part_fails_and_is_named() -> None:
    gates = judged(BROKEN)
    assert gates["slice_shop=B"].status == "fail"
    assert "where shop = B: gain in roc_auc over the champion is -" in gates["slice_shop=B"].detail
    assert gates["slice_shop=A"].status == gates["slice_shop=C"].status == "pass"
    assert "fail" in {gate.status for name, gate in gates.items() if name.startswith("slice_shop=B&weekday")}


def test_small_levels_are_pooled_and_named_and_unknown() -> None:
    gate = judged(EQUAL)["slice_shop=other"]
    assert gate.status == "unknown"
    counts = FRAME["shop"].value_counts()
    assert f"D ({counts['D']}), E ({counts['E']})" in gate.detail
    assert gate.n == counts["D"] + counts["E"] < 200
    large = judged(EQUAL, SliceGates(declared=("shop",), min_rows=100, discover=False))["slice_shop=other"]
    assert large.status in ("pass", "unknown")
    assert large.estimate is not None


def test_a_level_with_one_answer_is_not_judged_by_rank() -> None:
    labels = np.where(FRAME["shop"] == "C", 0.0, LABELS)
    gates = slice_gates(
        FRAME, holdout(labels), EQUAL, CHAMPION, DECLARED, compared="roc_auc", constant=0.3, gain=by_auc
    )
    names = {gate.name for gate in gates}
    assert "slice_shop=C" not in names
    assert "slice_shop=B" in names


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0])
def test_one_part_alone_fails_exactly_where_its_upper_bound_is_too_low(spread: float) -> None:
    worse = probability(SIGNAL - 1.3 + spread * np.random.default_rng(1).normal(size=ROWS))
    frame = FRAME.assign(all="x")
    (gate,) = slice_gates(
        frame,
        holdout(),
        worse,
        CHAMPION,
        SliceGates(declared=("all",), discover=False),
        compared="roc_auc",
        constant=0.3,
        gain=by_auc,
    )
    assert gate.lower is not None
    assert gate.upper is not None
    assert gate.status == ("fail" if gate.upper < -0.05 else "pass" if gate.lower > -0.05 else "unknown")


def test_of_many_parts_just_as_bad_as_allowed_hardly_ever_one_fails() -> None:
    """40 parts, each worse by exactly the margin: without Holm one fails in 1 − 0.95⁴⁰ = 87% of holdouts."""
    parts, rows, fails, alone = 40, 40, 0, 0
    frame = pd.DataFrame({"part": np.repeat([f"p{part}" for part in range(parts)], rows)})
    labels = np.tile([0.0, 1.0], parts * rows // 2)
    params = SliceGates(declared=("part",), discover=False, min_rows=20, margin=0.1)
    for seed in range(60):
        ours = 0.1 + 0.3 * np.random.default_rng(seed).normal(size=parts * rows)
        gates = slice_gates(
            frame, holdout(labels), ours, 0 * ours, params, compared="brier", constant=0.3, gain=by_mean
        )
        assert len(gates) == parts
        fails += any(gate.status == "fail" for gate in gates)
        alone += any(gate.upper is not None and gate.upper < -0.1 for gate in gates)
    assert fails <= 6
    assert alone >= 45


def test_what_is_worse_is_discovered_and_said_in_words() -> None:
    gates = judged(BROKEN, SliceGates())
    worst = gates["slice_discovered_1"]
    assert worst.status == "fail"
    assert "shop = B and wind ≥ " in worst.detail or " and shop = B" in worst.detail
    assert worst.n == pytest.approx(WINDY.sum() / 2, rel=0.15)


def test_a_search_among_equal_models_finds_nothing_that_fails() -> None:
    """With a margin of 0 the truth is on the limit: what is found by luck must not be judged on the same rows."""
    fails = 0
    frame = FRAME.drop(columns="row_id").iloc[:1500]
    params = SliceGates(margin=0.0, min_rows=50)
    for seed in range(60):
        random = np.random.default_rng(seed)
        ours, theirs = (np.clip(0.3 + 0.05 * random.normal(size=1500), 0, 1) for _ in range(2))
        labels = (random.random(1500) < 0.3).astype(float)
        gates = slice_gates(
            frame,
            holdout(labels, seed=seed),
            ours,
            theirs,
            params,
            compared="log_loss",
            constant=0.3,
            gain=by_log_loss,
        )
        assert 1 <= len(gates) <= 3
        fails += any(gate.status == "fail" for gate in gates)
    assert fails <= 7


def by_log_loss(inside: Holdout, measured: Metric, ours: Floats, theirs: Floats, at: float) -> tuple[Interval, str]:
    losses = [-np.log(np.where(inside.labels == 1, scores, 1 - scores)) for scores in (ours, theirs)]
    return by_mean(inside, measured, losses[0], losses[1], at)


def test_an_entity_is_searched_or_judged_but_not_both() -> None:
    entities = np.repeat(np.arange(ROWS // 8), 8)
    constant = FRAME.iloc[::8].loc[lambda rows: rows.index.repeat(8)].reset_index(drop=True)
    seen = []

    def noted(inside: Holdout, *rest: object) -> tuple[Interval, str]:
        seen.append(inside.groups)
        return Interval(0.0, -0.01, 0.01), "noted"

    slice_gates(
        constant, holdout(groups=entities), EQUAL, CHAMPION, SliceGates(), compared="roc_auc", constant=0.3, gain=noted
    )
    assert seen
    assert all((np.unique(groups, return_counts=True)[1] == 8).all() for groups in seen)


def test_too_few_rows_to_search_is_said() -> None:
    gates = slice_gates(
        FRAME.iloc[:300],
        holdout(LABELS[:300]),
        EQUAL[:300],
        CHAMPION[:300],
        SliceGates(),
        compared="roc_auc",
        constant=0.3,
        gain=by_auc,
    )
    assert [(gate.name, gate.status) for gate in gates] == [("slice_discovered_1", "unknown")]
    assert "400 in either half are needed" in gates[0].detail


def test_without_a_champion_the_floor_binds() -> None:
    params = SliceGates(declared=("shop",), floor=0.65, discover=True)
    gates = judged(BROKEN, params, champion=None)
    assert gates["slice_shop=A"].status == "pass"
    assert gates["slice_shop=B"].status == "fail"
    assert gates["slice_discovered_1"].status == "fail"
    assert gates["slice_shop=A"].threshold == 0.65
    assert judged(BROKEN, replace_floor(params, None), champion=None) == {}


def replace_floor(params: SliceGates, floor: float | None) -> SliceGates:
    return params.model_copy(update={"floor": floor})


def test_the_floor_of_a_loss_is_a_ceiling() -> None:
    params = SliceGates(declared=("shop",), metric="brier", floor=0.3, discover=False)
    gates = judged(BROKEN, params, champion=None)
    assert gates["slice_shop=A"].status == "pass"
    assert gates["slice_shop=A"].estimate == pytest.approx(float(np.mean((BROKEN - LABELS)[FRAME["shop"] == "A"] ** 2)))
    assert judged(BROKEN, replace_floor(params, 0.05), champion=None)["slice_shop=A"].status == "fail"


def test_the_bootstrap_serves_for_any_metric() -> None:
    def bootstrap(inside: Holdout, measured: Metric, ours: Floats, theirs: Floats, at: float) -> tuple[Interval, str]:
        return inside.gain(measured, ours, theirs, at), "bootstrap"

    gates = slice_gates(
        FRAME,
        holdout(),
        BROKEN,
        CHAMPION,
        SliceGates(declared=("shop",), metric="log_loss", discover=False),
        compared="roc_auc",
        constant=0.3,
        gain=bootstrap,
    )
    assert {gate.name: gate.status for gate in gates} == {
        "slice_shop=A": "pass",
        "slice_shop=B": "fail",
        "slice_shop=C": "pass",
        "slice_shop=other": "unknown",
    }


def test_a_champion_answers_yes_from_its_own_threshold() -> None:
    asked = []

    def noted(inside: Holdout, measured: Metric, ours: Floats, theirs: Floats, at: float) -> tuple[Interval, str]:
        asked.append(at)
        return Interval(0.0, -0.01, 0.01), "noted"

    for threshold in (None, 0.7):
        slice_gates(
            FRAME, holdout(), EQUAL, CHAMPION, DECLARED, compared="accuracy", constant=0.3, gain=noted,
            champion_threshold=threshold,
        )  # fmt: skip
    assert set(asked) == {0.4, 0.7}


def test_a_missing_column_fails_and_a_wrong_one_is_wrong_usage() -> None:
    gates = judged(EQUAL, SliceGates(declared=("shop", ("shop", "colour")), discover=False))
    assert gates["slice_colour"].status == "fail"
    assert "no column colour" in gates["slice_colour"].detail
    assert gates["slice_shop=A"].status == "pass"
    with pytest.raises(UsageError, match=r"gates\.slices\.declared: 'colour' is no column of the features \(known: sh"):
        check_columns(["shop", ("shop", "colour")], ["shop", "wind"], "gates.slices.declared")
    with pytest.raises(UsageError, match=r"gates\.slices\.metric: unknown metric 'gini'"):
        judged(EQUAL, SliceGates(metric="gini"))


def test_scores_that_are_no_numbers_are_never_a_pass() -> None:
    bad = np.where(np.arange(ROWS) == 3, np.nan, EQUAL)
    assert [gate.status for gate in judged(bad).values()] == ["fail"]
    assert [gate.status for gate in judged(EQUAL, champion=bad).values()] == ["fail"]
    assert [gate.status for gate in judged(EQUAL[:-1]).values()] == ["fail"]


def test_a_level_that_the_holdout_lacks_is_named_and_no_pass() -> None:
    gates = slice_gates(
        FRAME,
        holdout(),
        EQUAL,
        CHAMPION,
        DECLARED,
        compared="roc_auc",
        constant=0.3,
        gain=by_auc,
        trained_on={"shop": ("A", "B", "C", "D", "E", "F", "G"), "weekday": ("9",)},
    )
    lost = next(gate for gate in gates if gate.name == "slice_shop")
    assert (lost.status, lost.n) == ("unknown", 0)
    assert lost.detail.endswith("not judged: F, G")


def test_the_same_seed_gives_the_same_gates() -> None:
    assert judged(BROKEN, SliceGates()) == judged(BROKEN, SliceGates())
    other = slice_gates(
        FRAME,
        replace(holdout(), seed=2),
        BROKEN,
        CHAMPION,
        SliceGates(),
        compared="roc_auc",
        constant=0.3,
        gain=by_auc,
    )
    assert {gate.name: gate for gate in other} != judged(BROKEN, SliceGates())


def test_lists_of_columns_come_from_yaml_as_they_are() -> None:
    params = SliceGates.model_validate({"declared": ["carrier", ["origin", "weekday"]]})
    assert params.declared == ("carrier", ("origin", "weekday"))
    with pytest.raises(ValueError, match="extra"):
        SliceGates.model_validate({"colums": []})
