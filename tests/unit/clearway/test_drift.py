"""The drift measure: no false alarms, power where there is a shift, and unknown where nothing can be said."""

import numpy as np
import pandas as pd
import pytest

from clearway.drift import DriftReport, contingency_p, holm, measure_drift, no_reference, numeric_effect
from clearway.params import DriftParams

PARAMS = DriftParams()
NUMERIC, CATEGORICAL = ["bell", "skewed", "ties"], ["pair", "many"]


def draw(generator: np.random.Generator, rows: int, shift: float = 0.0) -> pd.DataFrame:
    skewed = generator.exponential(size=rows)
    skewed[generator.random(rows) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "bell": generator.normal(size=rows) + shift,
            "skewed": skewed,
            "ties": generator.integers(0, 5, rows).astype(float),
            "pair": generator.choice(["a", "b"], rows),
            "many": generator.choice([f"k{i}" for i in range(12)], rows),
        }
    )


def measure(reference: pd.DataFrame, current: pd.DataFrame, **changes: float) -> DriftReport:
    return measure_drift(reference, current, NUMERIC, CATEGORICAL, PARAMS.model_copy(update=changes))


def only(report: DriftReport, name: str) -> dict[str, object]:
    return next(feature.model_dump() for feature in report.features if feature.name == name)


def test_no_false_alarms_on_200_draws_from_one_distribution() -> None:
    alarms = significant = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        report = measure(draw(generator, 600), draw(generator, 300))
        assert report.verdict != "unknown"
        alarms += report.verdict == "drift"
        # Without the demand for a material effect, Holm alone must hold the family-wise error.
        tests = [p for f in report.features for p in (f.p_adjusted, f.missing_p_adjusted) if p is not None]
        significant += min(tests) <= PARAMS.alpha
    assert alarms <= 10
    assert significant <= 20  # 10 expected at most; 20 is beyond the 99.8th percentile of a 5% test


def test_a_shift_of_half_a_sigma_is_found_in_every_draw() -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        report = measure(draw(generator, 1000), draw(generator, 500, shift=0.5), feature_share=0.2)
        assert report.verdict == "drift"
        assert report.drifted == ("bell",)
        assert report.features[0].name == "bell"  # the largest shift comes first
        assert report.features[0].effect == pytest.approx(0.5, abs=0.2)


def test_a_trifle_is_significant_with_many_rows_and_still_no_drift() -> None:
    generator = np.random.default_rng(0)
    report = measure(draw(generator, 20_000), draw(generator, 20_000, shift=0.08))
    bell = only(report, "bell")
    assert bell["p_adjusted"] <= 0.05
    assert bell["status"] == "no_drift"


def test_a_new_category_is_counted_and_drifts() -> None:
    generator = np.random.default_rng(1)
    reference, current = draw(generator, 20_000), draw(generator, 300)
    current.loc[:14, "pair"] = "new"
    pair = only(measure(reference, current), "pair")
    assert pair["status"] == "drift"
    assert pair["unseen_share"] == pytest.approx(0.05)
    assert "categories the reference does not hold" in str(pair["detail"])


def test_one_row_of_a_new_category_is_no_drift() -> None:
    generator = np.random.default_rng(2)
    reference, current = draw(generator, 5_000), draw(generator, 1_000)
    current.loc[0, "pair"] = "new"
    assert only(measure(reference, current), "pair")["status"] == "no_drift"


def test_a_hundred_categories_do_not_alarm() -> None:
    generator = np.random.default_rng(3)
    names = [f"k{i}" for i in range(100)]
    alarms = 0
    for _ in range(15):
        sides = [pd.DataFrame({"many": generator.choice(names, rows)}) for rows in (5_000, 300)]
        alarms += measure_drift(*sides, [], ["many"], PARAMS).verdict == "drift"
    assert alarms <= 3


def test_missing_values_alone_are_drift() -> None:
    generator = np.random.default_rng(4)
    reference, current = draw(generator, 2_000), draw(generator, 1_000)
    current.loc[:149, "bell"] = np.nan
    bell = only(measure(reference, current), "bell")
    assert bell["status"] == "drift"
    assert bell["missing_difference"] == pytest.approx(0.15)
    assert "missing 0.0% → 15.0%" in str(bell["detail"])


def test_a_column_that_went_missing_is_drift_though_its_values_cannot_be_compared() -> None:
    generator = np.random.default_rng(5)
    reference, current = draw(generator, 1_000), draw(generator, 500)
    current["bell"] = np.nan
    bell = only(measure(reference, current), "bell")
    assert bell["status"] == "drift"
    assert bell["effect"] is None


def test_too_few_rows_are_unknown_and_never_no_drift() -> None:
    generator = np.random.default_rng(6)
    report = measure(draw(generator, 1_000), draw(generator, 199))
    assert report.verdict == "unknown"
    assert {feature.status for feature in report.features} == {"unknown"}
    assert report.drift is False
    assert measure(draw(generator, 1_000), draw(generator, 0)).verdict == "unknown"


def test_unknown_features_make_the_verdict_unknown_only_if_they_could_change_it() -> None:
    generator = np.random.default_rng(7)
    reference, current = draw(generator, 1_000), draw(generator, 500)
    one_gone = reference.drop(columns="bell")
    assert measure(one_gone, current, feature_share=0.2).verdict == "unknown"
    assert measure(one_gone, current, feature_share=0.4).verdict == "no_drift"
    assert measure(one_gone, current).unknown == ("bell",)


def test_a_few_values_among_many_missing_are_unknown() -> None:
    generator = np.random.default_rng(8)
    reference, current = draw(generator, 1_000), draw(generator, 500)
    for side in (reference, current):
        side.loc[side.index % 10 != 0, "bell"] = np.nan
    assert only(measure(reference, current), "bell")["status"] == "unknown"


def test_constant_and_empty_columns() -> None:
    rows = pd.DataFrame({"constant": np.full(300, 0.1), "empty": np.full(300, np.nan)})
    still = measure_drift(rows, rows, ["constant", "empty"], [], PARAMS)
    assert {feature.status for feature in still.features} == {"no_drift"}
    moved = measure_drift(rows, rows.assign(constant=0.2), ["constant", "empty"], [], PARAMS)
    assert moved.drifted == ("constant",)


def test_no_features_is_unknown() -> None:
    assert measure_drift(pd.DataFrame(), pd.DataFrame(), [], [], PARAMS).verdict == "unknown"


def test_without_a_reference_the_verdict_says_so() -> None:
    report = no_reference("nothing was ever deployed", PARAMS)
    assert (report.verdict, report.drift) == ("bootstrap", False)
    assert "nothing was ever deployed" in report.sentence


def test_the_same_samples_give_the_same_report() -> None:
    generator = np.random.default_rng(9)
    reference, current = draw(generator, 1_000), draw(generator, 300)
    current.loc[:2, "pair"] = "rare"
    assert measure(reference, current) == measure(reference, current)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_numeric_effect_is_in_reference_deviations() -> None:
    reference = np.random.default_rng(10).normal(0, 4, 5_000)
    assert numeric_effect(reference, reference + 4) == pytest.approx(1.0, rel=0.05)
    constant = np.full(10, 7.0)
    assert numeric_effect(constant, constant) == 0.0
    assert numeric_effect(constant, constant + 1e9) == pytest.approx(2.0)


def test_the_permutation_p_agrees_with_fisher_where_both_apply() -> None:
    from scipy.stats import fisher_exact

    counts = np.array([[5_000.0, 3.0], [198.0, 2.0]])
    assert contingency_p(counts) == pytest.approx(fisher_exact(counts).pvalue, abs=0.01)
