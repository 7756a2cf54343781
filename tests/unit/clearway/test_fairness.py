"""Groups are treated alike: Fairlearn's values, bounds that hold as often as they say, and never a silent pass."""

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from scipy.special import stdtrit

from clearway.fairness import fairness_gates
from clearway.gates import Gate, Holdout
from clearway.metrics import Floats
from clearway.params import FairnessGates

ROWS = 3000
RANDOM = np.random.default_rng(3)
GROUP = RANDOM.choice(["a", "b", "c"], ROWS, p=[0.5, 0.3, 0.2])
LABELS = (RANDOM.random(ROWS) < 0.4).astype(float)
FRAME = pd.DataFrame({"sex": pd.Series(GROUP, dtype="string"), "age": RANDOM.integers(18, 90, ROWS).astype(float)})
LUCK = RANDOM.random(ROWS)
ALIKE = np.where(LUCK < 0.2 + 0.4 * LABELS, 0.9, 0.1)
UNLIKE = np.where(0.2 + 0.4 * LABELS + 0.35 * (GROUP == "c") > LUCK, 0.9, 0.1)
RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")
STRICT = FairnessGates(attributes=("sex",), max_difference=0.1, min_ratio=0.8, ratio_margin=0.2)


def holdout(labels: Floats = LABELS, groups: np.ndarray | None = None, seed: int = 1, resamples: int = 400) -> Holdout:
    return Holdout(labels, threshold=0.5, confidence=0.95, resamples=resamples, seed=seed, groups=groups)


def judged(
    scores: Floats, champion: Floats | None = None, params: FairnessGates = STRICT, **options: object
) -> dict[str, Gate]:
    gates = fairness_gates(FRAME, holdout(), scores, champion, params, **options)  # type: ignore[arg-type]
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def test_the_values_are_fairlearns_and_those_of_a_count_by_hand() -> None:
    gates = judged(UNLIKE)
    answers = UNLIKE >= 0.5
    metrics = dict(zip(RATES, (selection_rate, true_positive_rate, false_positive_rate), strict=True))
    frame = MetricFrame(metrics=metrics, y_true=LABELS, y_pred=answers, sensitive_features=GROUP)
    for rate, about in zip(RATES, (LABELS >= 0, LABELS == 1, LABELS == 0), strict=True):
        by_hand = [float(answers[about & (group == GROUP)].mean()) for group in "abc"]
        assert frame.by_group[rate].tolist() == pytest.approx(by_hand)
        assert gates[f"fairness_sex_{rate}_difference"].estimate == pytest.approx(max(by_hand) - min(by_hand))
        assert gates[f"fairness_sex_{rate}_ratio"].estimate == pytest.approx(min(by_hand) / max(by_hand))
        assert gates[f"fairness_sex_{rate}_difference"].estimate == pytest.approx(frame.difference()[rate])
        assert f"to {max(by_hand):.4f} (c)" in gates[f"fairness_sex_{rate}_difference"].detail


def test_groups_alike_pass_and_groups_unlike_fail() -> None:
    alike, unlike = judged(ALIKE), judged(UNLIKE)
    assert alike["fairness_sex_groups"].status == "pass"
    assert alike["fairness_sex_selection_rate_difference"].status == "pass"
    for rate in RATES:
        for kind in ("difference", "ratio"):
            assert alike[f"fairness_sex_{rate}_{kind}"].status in ("pass", "unknown")
            assert unlike[f"fairness_sex_{rate}_{kind}"].status == "fail"
            assert unlike[f"fairness_sex_{rate}_{kind}"].n == ROWS


@pytest.mark.parametrize("rate", RATES)
def test_a_limit_binds_on_the_bound_and_not_the_estimate(rate: str) -> None:
    gate = judged(ALIKE)[f"fairness_sex_{rate}_difference"]
    assert gate.lower is not None
    assert gate.upper is not None
    assert gate.estimate is not None
    assert gate.lower <= gate.estimate < gate.upper
    for limit, status in ((gate.upper + 1e-9, "pass"), (gate.upper - 1e-9, "unknown")):
        params = FairnessGates(attributes=("sex",), max_difference=limit)
        assert judged(ALIKE, params=params)[gate.name].status == status
    low = judged(UNLIKE)[gate.name].lower
    assert low is not None
    for limit, status in ((low - 1e-9, "fail"), (low + 1e-9, "unknown")):
        assert (
            judged(UNLIKE, params=FairnessGates(attributes=("sex",), max_difference=limit))[gate.name].status == status
        )


def test_counts_drawn_are_rows_drawn() -> None:
    """Two groups: the bound is the difference plus a quantile of the standard error of a bootstrap, row by row."""
    frame = FRAME.assign(two=np.where(GROUP == "a", "a", "b"))
    params = FairnessGates(attributes=("two",), max_difference=0.5)
    gates = {g.name: g for g in fairness_gates(frame, holdout(resamples=1500), UNLIKE, None, params)}
    random, answers, values = np.random.default_rng(9), UNLIKE >= 0.5, []
    for _ in range(1500):
        drawn = random.integers(0, ROWS, ROWS)
        yes, first, positive = answers[drawn], GROUP[drawn] == "a", LABELS[drawn] == 1
        values.append(yes[~first & positive].mean() - yes[first & positive].mean())
    gate = gates["fairness_two_true_positive_rate_difference"]
    quantile = stdtrit(min((GROUP == "a").sum(), (GROUP != "a").sum()) - 1, 0.95)
    assert gate.upper is not None
    assert gate.estimate is not None
    assert (gate.upper - gate.estimate) / quantile == pytest.approx(np.std(values), rel=0.08)


def test_rows_of_one_entity_count_as_one() -> None:
    many, params = (
        FRAME.loc[FRAME.index.repeat(4)].reset_index(drop=True),
        FairnessGates(attributes=("sex",), max_difference=1),
    )
    labels, scores = np.repeat(LABELS, 4), np.repeat(UNLIKE, 4)
    entities = np.repeat(np.arange(ROWS), 4)
    width = {}
    for name, frame, found, given in (
        ("once", FRAME, holdout(), UNLIKE),
        ("rows", many, holdout(labels), scores),
        ("entities", many, holdout(labels, entities), scores),
    ):
        gate = fairness_gates(frame, found, given, None, params)[1]
        assert gate.upper is not None
        assert gate.estimate is not None
        width[name] = gate.upper - gate.estimate
    assert width["entities"] == pytest.approx(width["once"], rel=0.1)
    assert width["rows"] == pytest.approx(width["once"] / 2, rel=0.1)


def test_many_groups_alike_are_hardly_ever_called_unlike() -> None:
    """Of 12 groups of 100 rows one always leads: percentiles of resampled differences would call it in nearly all."""
    frame = pd.DataFrame({"group": np.repeat([f"g{group}" for group in range(12)], 100)})
    params = FairnessGates(attributes=("group",), max_difference=0.0, min_rows=20)
    called = percentiles = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        scores = random.random(1200) * 0.625  # yes to a fifth
        gate = fairness_gates(frame, holdout(np.tile([0.0, 1.0], 600), seed=seed, resamples=100), scores, None, params)[
            1
        ]
        called += gate.status == "fail"
        shares = (scores >= 0.5).reshape(12, 100).mean(axis=1)
        again = random.binomial(100, shares, size=(100, 12)) / 100
        percentiles += np.quantile(np.ptp(again, axis=1), 0.05) > 0
    assert called <= 2
    assert percentiles == 8


def test_the_same_answers_as_the_champions_are_no_worse() -> None:
    gates = judged(UNLIKE, np.where(UNLIKE > 0.5, 0.8, 0.2))
    for rate in RATES:
        assert gates[f"fairness_sex_{rate}_difference_to_champion"].status == "pass"
        assert gates[f"fairness_sex_{rate}_difference_to_champion"].upper == 0
        assert gates[f"fairness_sex_{rate}_ratio_to_champion"].estimate == 1


def test_worse_than_the_champion_by_more_than_the_margin_fails() -> None:
    gates = judged(UNLIKE, ALIKE)
    back = judged(ALIKE, UNLIKE)
    for rate in RATES:
        name = f"fairness_sex_{rate}_difference_to_champion"
        assert gates[name].status == "fail"
        assert gates[name].threshold == 0.05
        assert gates[name].estimate == pytest.approx(
            (gates[f"fairness_sex_{rate}_difference"].estimate or 0)
            - (back[f"fairness_sex_{rate}_difference"].estimate or 0)
        )
        assert back[name].status == "pass"
        ratio = gates[f"fairness_sex_{rate}_ratio_to_champion"]
        assert ratio.status == ("unknown" if rate == "true_positive_rate" else "fail")  # the fewest rows
        assert ratio.threshold == pytest.approx(0.8)
        assert ratio.estimate == pytest.approx(
            (gates[f"fairness_sex_{rate}_ratio"].estimate or 0) / (back[f"fairness_sex_{rate}_ratio"].estimate or 0)
        )
        assert back[f"fairness_sex_{rate}_ratio_to_champion"].status == "pass"


def test_a_gap_that_grew_by_the_margin_hardly_ever_passes() -> None:
    """The champion's groups are alike, so its measured gap is all luck: to subtract it is to forgive the challenger."""
    frame = pd.DataFrame({"group": np.repeat([f"g{group}" for group in range(8)], 250)})
    params = FairnessGates(attributes=("group",), margin=0.1)
    passed = forgiven = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        champion, challenger = (np.where(random.random(2000) < 0.3, 0.9, 0.1) for _ in range(2))
        challenger[-250:] = np.where(random.random(250) < 0.4, 0.9, 0.1)
        again = holdout(np.tile([0.0, 1.0], 1000), seed=seed, resamples=100)
        gate = fairness_gates(frame, again, challenger, champion, params)[1]
        assert gate.name == "fairness_group_selection_rate_difference_to_champion"
        passed += gate.status == "pass"
        forgiven += (gate.estimate or 0) < 0.09
    assert passed <= 1
    assert forgiven >= 4


def test_groups_that_cannot_be_furthest_apart_do_not_matter() -> None:
    """Two large groups are far apart, the same for both models; in small ones between them the models differ."""
    frame = pd.DataFrame({"group": np.repeat(["low", "high", "c", "d"], [2000, 2000, 100, 100])})
    rates, random = np.repeat([0.1, 0.6, 0.35, 0.35], [2000, 2000, 100, 100]), np.random.default_rng(1)
    luck = random.random(4200)
    champion = np.where(luck < rates, 0.9, 0.1)
    other = np.where(frame["group"].isin(["c", "d"]) | (np.arange(4200) % 10 == 0), random.random(4200), luck)
    params = FairnessGates(attributes=("group",), min_rows=100)
    gate = fairness_gates(
        frame, holdout(np.tile([0.0, 1.0], 2100)), np.where(other < rates, 0.9, 0.1), champion, params
    )[1]
    assert gate.name == "fairness_group_selection_rate_difference_to_champion"
    assert gate.status == "pass"


def test_each_model_answers_at_its_own_threshold() -> None:
    gates = judged(UNLIKE, UNLIKE / 2, champion_threshold=0.25)
    assert gates["fairness_sex_selection_rate_difference_to_champion"].upper == 0
    assert judged(UNLIKE, UNLIKE / 2)["fairness_sex_selection_rate_difference_to_champion"].status == "fail"


def test_a_group_that_only_training_had_is_unknown_and_named() -> None:
    gates = judged(ALIKE, trained_on={"sex": ["a", "b", "c", "x"]})
    assert gates["fairness_sex_groups"].status == "unknown"
    assert "in training and not in the holdout: x" in gates["fairness_sex_groups"].detail
    assert judged(ALIKE, trained_on={"sex": ["a", "b", "c"]})["fairness_sex_groups"].status == "pass"


def test_a_small_group_is_unknown_and_named_and_not_compared() -> None:
    few = int((GROUP == "c").sum())
    params = STRICT.model_copy(update={"min_rows": few + 1})
    gates = judged(UNLIKE, params=params)
    assert gates["fairness_sex_groups"].status == "unknown"
    assert f"too small to judge: c ({few} rows)" in gates["fairness_sex_groups"].detail
    assert gates["fairness_sex_selection_rate_difference"].status in ("pass", "unknown")
    assert gates["fairness_sex_selection_rate_difference"].n == ROWS - few


def test_one_group_alone_is_unknown() -> None:
    gates = fairness_gates(FRAME.assign(sex="a"), holdout(), ALIKE, None, STRICT)
    assert [(gate.name, gate.status) for gate in gates] == [("fairness_sex_groups", "unknown")]


def test_a_missing_column_fails_and_is_named() -> None:
    params = FairnessGates(attributes=("colour", ("sex", "age")), max_difference=0.5)
    gates = judged(ALIKE, params=params)
    assert gates["fairness_colour"].status == "fail"
    assert "no column colour" in gates["fairness_colour"].detail
    assert "fairness_sex&age_groups" in gates


def test_too_few_answers_of_a_kind_are_unknown_for_that_rate() -> None:
    labels = np.where((GROUP == "c") & (np.cumsum(GROUP == "c") > 9), 0.0, 1.0)
    gates = {gate.name: gate for gate in fairness_gates(FRAME, holdout(labels), ALIKE, None, STRICT)}
    gate = gates["fairness_sex_true_positive_rate_difference"]
    assert gate.status == "unknown"
    assert "in c (9), 10 are needed" in gate.detail
    assert gates["fairness_sex_selection_rate_difference"].status == "pass"


def test_too_few_entities_are_unknown() -> None:
    gates = fairness_gates(FRAME, holdout(groups=np.arange(ROWS) % 9), ALIKE, None, STRICT)
    assert {gate.status for gate in gates if "_rate_" in gate.name} == {"unknown"}


def test_scores_that_are_no_numbers_are_never_a_pass() -> None:
    bad = np.where(np.arange(ROWS) == 3, np.nan, ALIKE)
    assert [gate.status for gate in judged(bad).values()] == ["fail"]
    assert [gate.status for gate in judged(ALIKE, bad).values()] == ["fail"]
    assert [gate.status for gate in judged(ALIKE[:-1]).values()] == ["fail"]


def test_yes_to_nobody_has_no_ratio() -> None:
    gates = judged(np.zeros(ROWS))
    assert gates["fairness_sex_selection_rate_ratio"].status == "unknown"
    assert gates["fairness_sex_selection_rate_ratio"].estimate is None
    assert gates["fairness_sex_selection_rate_difference"].status == "pass"
    assert (gates["fairness_sex_selection_rate_difference"].upper or 0) > 0, "few rows prove little"


def test_what_is_not_asked_is_not_judged() -> None:
    params = FairnessGates(attributes=("sex",))
    assert list(judged(UNLIKE, params=params)) == ["fairness_sex_groups"]
    assert len(judged(UNLIKE, ALIKE, params=params)) == 1 + 3
    assert judged(UNLIKE, ALIKE, params=FairnessGates()) == {}


def test_the_same_seed_gives_the_same_gates() -> None:
    first, again = (fairness_gates(FRAME, holdout(seed=5), UNLIKE, ALIKE, STRICT) for _ in range(2))
    assert first == again != fairness_gates(FRAME, holdout(seed=6), UNLIKE, ALIKE, STRICT)
