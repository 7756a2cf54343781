"""The drift measure: no false alarms, power where there is a shift, and unknown where nothing can be said."""

import numpy as np
import pandas as pd
import pytest

from clearway.domain import DomainDrift
from clearway.drift import Aspect, DriftReport, FeatureDrift, holm, measure_drift, no_reference
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


def only(report: DriftReport, name: str) -> FeatureDrift:
    return next(feature for feature in report.features if feature.name == name)


def aspect(report: DriftReport, feature: str, name: str) -> Aspect:
    return next(one for one in only(report, feature).aspects if one.name == name)


def test_no_false_alarms_on_200_draws_from_one_distribution() -> None:
    alarms = significant = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        report = measure(draw(generator, 600), draw(generator, 300))
        assert report.verdict != "unknown"
        alarms += report.verdict == "drift"
        # Without the demand for a material effect, Holm alone must hold the family-wise error.
        significant += min(one.p_adjusted for f in report.features for one in f.aspects) <= PARAMS.alpha
    assert alarms <= 10
    assert significant <= 20  # 10 expected at most; 20 is beyond the 99.8th percentile of a 5% test


def test_a_shift_of_half_a_sigma_is_found_in_every_draw() -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        report = measure(draw(generator, 1000), draw(generator, 500, shift=0.5), feature_share=0.2)
        assert report.verdict == "drift"
        assert report.drifted == ("bell",)
        assert report.features[0].name == "bell"  # the largest shift comes first
        assert aspect(report, "bell", "mean").effect == pytest.approx(0.5, abs=0.2)


def test_a_trifle_is_significant_with_many_rows_and_still_no_drift() -> None:
    generator = np.random.default_rng(0)
    report = measure(draw(generator, 20_000), draw(generator, 20_000, shift=0.05))
    assert aspect(report, "bell", "mean").p_adjusted <= 0.05
    assert not aspect(report, "bell", "mean").material
    assert only(report, "bell").status == "no_drift"


def test_a_small_shift_is_found_where_nothing_need_be_material() -> None:
    generator = np.random.default_rng(0)
    reference, current = draw(generator, 100_000), draw(generator, 20_000, shift=0.05)
    floors = dict.fromkeys(("numeric_effect", "mean_effect", "spread_effect", "categorical_effect"), 0.0)
    report = measure(reference, current, **floors, unseen_effect=0.0, missing_effect=0.0)
    assert report.drifted == ("bell",)
    assert aspect(report, "bell", "mean").drifted


def test_a_spread_that_changed_alone_is_drift() -> None:
    generator = np.random.default_rng(0)
    reference, current = draw(generator, 5_000), draw(generator, 2_000)
    current["bell"] *= 1.5
    report = measure(reference, current)
    assert aspect(report, "bell", "spread").drifted
    assert not aspect(report, "bell", "mean").drifted
    assert "spread changed by a log ratio of 0.39" in only(report, "bell").detail
    assert only(measure(reference, draw(generator, 2_000)), "bell").status == "no_drift"


def test_a_new_category_is_counted_and_drifts() -> None:
    generator = np.random.default_rng(1)
    reference, current = draw(generator, 20_000), draw(generator, 300)
    current.loc[:14, "pair"] = "new"
    report = measure(reference, current)
    assert aspect(report, "pair", "unseen").drifted
    assert aspect(report, "pair", "unseen").effect == pytest.approx(0.05)
    assert "5.0% in categories the reference does not hold" in only(report, "pair").detail


def test_two_per_cent_of_a_new_category_are_found_in_2000_rows_with_the_limits_as_they_come() -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        reference, current = draw(generator, 20_000), draw(generator, 2_000, shift=0.2)
        current.loc[generator.random(2_000) < 0.02, "pair"] = "new"
        assert set(measure(reference, current).drifted) == {"pair", "bell"}


def test_one_row_of_a_new_category_is_no_drift() -> None:
    generator = np.random.default_rng(2)
    reference, current = draw(generator, 5_000), draw(generator, 60)
    current.loc[0, "pair"] = "new"
    assert aspect(measure(reference, current), "pair", "unseen").material
    assert only(measure(reference, current), "pair").status == "no_drift"


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
    assert bell.status == "drift"
    assert (bell.missing_reference, bell.missing_current) == (0.0, pytest.approx(0.15))
    assert "missing 0.0% → 15.0%" in bell.detail


def test_a_column_that_went_missing_is_drift_though_its_values_cannot_be_compared() -> None:
    generator = np.random.default_rng(5)
    reference, current = draw(generator, 1_000), draw(generator, 500)
    current["bell"] = np.nan
    bell = only(measure(reference, current), "bell")
    assert bell.status == "drift"
    assert [one.name for one in bell.aspects] == ["missing"]


def test_too_few_rows_are_unknown_and_never_no_drift() -> None:
    generator = np.random.default_rng(6)
    report = measure(draw(generator, 1_000), draw(generator, 49))
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
        side.loc[side.index % 20 != 0, "bell"] = np.nan
    assert only(measure(reference, current), "bell").status == "unknown"


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


def test_the_family_is_every_aspect_of_every_column() -> None:
    generator = np.random.default_rng(11)
    report = measure(draw(generator, 1_000), draw(generator, 500))
    assert report.tests == 3 * 3 + 2 * 2 + 1  # three of a number, two of a category, and the gaps of one
    assert report.tests == sum(len(feature.aspects) for feature in report.features)
    assert not report.calibrated
    p = {(f.name, one.name): one.p_value for f in report.features for one in f.aspects}
    adjusted = {(f.name, one.name): one.p_adjusted for f in report.features for one in f.aspects}
    assert adjusted == dict(zip(p, holm(list(p.values())), strict=True))


def test_outputs_are_tested_in_the_family_and_not_counted() -> None:
    generator = np.random.default_rng(12)
    reference, current = draw(generator, 2_000), draw(generator, 1_000)
    reference["score"], current["score"] = generator.random(2_000), generator.random(1_000) ** 2
    reference["label"] = generator.integers(0, 2, 2_000).astype(float)
    current["label"] = [0.0, 1.0] * 200 + [None] * 600
    report = measure_drift(
        reference, current, NUMERIC, CATEGORICAL, PARAMS, outputs={"score": "numeric", "label": "categorical"}
    )
    score, label = report.outputs
    assert (score.name, score.status) == ("score", "drift")
    # An answer that is not known yet is no missing value.
    assert (label.name, label.status, label.n_current) == ("label", "no_drift", 400)
    assert report.verdict == "no_drift"
    assert report.share == 0.0
    assert report.tests == 14 + 3 + 2


def test_a_count_of_features_is_enough_whatever_their_share() -> None:
    generator = np.random.default_rng(13)
    reference, current = draw(generator, 2_000), draw(generator, 1_000, shift=1.0)
    assert measure(reference, current).verdict == "no_drift"
    assert measure(reference, current, feature_count=1).verdict == "drift"
    assert measure(reference, current, feature_count=2).verdict == "no_drift"
    assert measure(reference.drop(columns="pair"), current, feature_count=2).verdict == "unknown"


@pytest.mark.parametrize(("status", "verdict"), [("drift", "drift"), ("unknown", "unknown"), ("no_drift", "no_drift")])
def test_the_domain_classifier_has_a_say(status: str, verdict: str) -> None:
    generator = np.random.default_rng(14)
    reference, current = draw(generator, 1_000), draw(generator, 500)
    found = DomainDrift.model_validate({"status": status, "sentence": "told apart by x.", "confidence": 0.99})
    report = measure_drift(reference, current, NUMERIC, CATEGORICAL, PARAMS, domain=found)
    assert report.verdict == verdict
    assert ("told apart by x" in report.sentence) == (status != "no_drift")
    shifted = draw(generator, 500, shift=1.0)
    by_feature = PARAMS.model_copy(update={"feature_count": 1})
    assert measure_drift(reference, shifted, NUMERIC, CATEGORICAL, by_feature, domain=found).verdict == "drift"


def test_the_leading_aspect_is_the_one_that_drifted_most() -> None:
    generator = np.random.default_rng(15)
    report = measure(draw(generator, 5_000), draw(generator, 5_000, shift=0.5))
    first = report.features[0]
    assert first.leading is not None
    assert first.leading.drifted
    assert first.effect == first.leading.effect
    assert first.effect_threshold == first.leading.limit
    assert first.prominence == max(one.effect / one.limit for one in first.aspects)
    order = [feature.prominence for feature in report.features]
    assert order == sorted(order, reverse=True)
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
