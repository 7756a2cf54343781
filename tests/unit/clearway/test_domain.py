"""The domain classifier: sees what no single column shows, and does not cry wolf, in rows with a time either."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from clearway.domain import (
    DomainCalibration,
    DomainWindows,
    _auc,
    alike_auc,
    calibrate_domain,
    measure_domain,
    window_sizes,
)
from clearway.params import DomainParams

PARAMS = DomainParams(max_rows=600)
NUMERIC, CATEGORICAL = ["a", "b", "c"], ["kind"]


def rows(count: int, seed: int, correlation: float = 0.0) -> pd.DataFrame:
    """Every column is distributed alike whatever the correlation of a with b."""
    random = np.random.default_rng(seed)
    a, noise = random.normal(size=(2, count))
    return pd.DataFrame(
        {
            "a": a,
            "b": correlation * a + np.sqrt(1 - correlation**2) * noise,
            "c": random.standard_t(2, count),
            "kind": random.choice(["x", "y", "z", None], count),
        }
    )


def test_what_no_single_column_shows_is_found_and_named() -> None:
    found = measure_domain(rows(3_000, 1), rows(800, 2, correlation=0.95), NUMERIC, CATEGORICAL, PARAMS)
    assert found.status == "drift"
    assert found.lower is not None
    assert found.auc is not None
    assert PARAMS.max_auc < found.lower < found.auc
    assert {one.name for one in found.importance[:2]} == {"a", "b"}
    assert (found.limit, found.calibrated, found.rows_reference, found.rows_current) == (0.65, False, 600, 600)
    assert "by a, b" in found.sentence or "by b, a" in found.sentence


def test_two_samples_of_one_world_are_alike_even_where_no_difference_is_tolerated() -> None:
    strict = DomainParams(max_rows=600, max_auc=0.5)
    for seed in range(5):
        alike = measure_domain(rows(3_000, seed), rows(300, seed + 50), NUMERIC, CATEGORICAL, strict, seed=seed)
        assert alike.status == "no_drift", alike.sentence


def test_a_category_never_seen_gives_the_current_rows_away() -> None:
    current = rows(400, 4)
    current.loc[current.index % 2 == 0, "kind"] = "new"
    found = measure_domain(rows(2_000, 3), current, NUMERIC, CATEGORICAL, PARAMS)
    assert (found.status, found.importance[0].name) == ("drift", "kind")


@pytest.mark.parametrize(("then", "now"), [(300, 50), (300, 100), (2_000, 800)])
@pytest.mark.parametrize("shift", [4.0, 10.0, 1e6])
def test_the_more_a_column_moved_the_surer_the_drift(then: int, now: int, shift: float) -> None:
    # An AUC of 1 to the last row had a lower bound of 0.
    current = rows(now, 2)
    current["a"] += shift
    found = measure_domain(rows(then, 1), current, NUMERIC, CATEGORICAL, PARAMS)
    assert (found.status, found.importance[0].name) == ("drift", "a"), found.sentence


def test_how_a_number_is_stored_gives_no_row_away() -> None:
    then, now = (rows(count, count)[["a"]].round(1) for count in (3_000, 800))
    for left, right in (("float32", "float64"), ("float64", "float32"), ("float64", "object")):
        found = measure_domain(then.astype(left), now.astype(right), ["a"], [], PARAMS)
        assert found.status == "no_drift", (left, right, found.sentence)
    whole = (count.assign(kind=np.arange(len(count)) % 5) for count in (then, now))
    reference, current = (side[["kind"]] for side in whole)
    found = measure_domain(reference, current.astype("float64").astype("object"), [], ["kind"], PARAMS)
    assert found.status == "no_drift", found.sentence


@pytest.mark.filterwarnings("error")
def test_a_column_without_a_value_gives_its_rows_away() -> None:
    found = measure_domain(rows(900, 1), rows(400, 2).assign(a=None), NUMERIC, CATEGORICAL, PARAMS)
    assert (found.status, found.importance[0].name) == ("drift", "a"), found.sentence


def test_the_same_input_gives_the_same_answer() -> None:
    first, second = (measure_domain(rows(900, 1), rows(900, 2), NUMERIC, CATEGORICAL, PARAMS, seed=7) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("few", [0, 49])
def test_too_few_rows_are_unknown(few: int) -> None:
    found = measure_domain(rows(500, 1), rows(few, 2), NUMERIC, CATEGORICAL, PARAMS)
    assert (found.status, found.auc, found.lower) == ("unknown", None, None)
    assert f"{few} rows on one side, 50 needed" in found.sentence


def test_no_common_feature_is_unknown() -> None:
    assert measure_domain(rows(500, 1), rows(500, 2)[["kind"]], NUMERIC, [], PARAMS).status == "unknown"


def test_infinite_values_constants_text_numbers_and_many_categories_are_no_obstacle() -> None:
    random = np.random.default_rng(0)
    odd = pd.DataFrame(
        {
            "a": random.choice([np.inf, -np.inf, np.nan, 1.0], 700),
            "b": "7",
            "c": np.nan,
            "kind": random.integers(0, 400, 700).astype(str),
        }
    )
    found = measure_domain(odd.iloc[:400], odd.iloc[400:], NUMERIC, CATEGORICAL, PARAMS)
    assert found.status == "no_drift", found.sentence


def weeks(count: int, seed: int) -> pd.DataFrame:
    """Rows in time order whose level wanders: any window can be told from the rest."""
    random = np.random.default_rng(seed)
    level = np.repeat(random.normal(scale=2, size=-(-count // 300)), 300)[:count]
    return rows(count, seed).assign(c=level + random.normal(scale=0.3, size=count))


def test_windows_of_the_reference_itself_say_what_is_usual() -> None:
    history, unusual = weeks(1_500, 1), weeks(250, 2)
    calibration = calibrate_domain(history, NUMERIC, CATEGORICAL, PARAMS)
    assert [(windows.size, len(windows.aucs)) for windows in calibration.windows] == [(250, 6)]
    naive = measure_domain(history, unusual, NUMERIC, CATEGORICAL, PARAMS)
    known = measure_domain(history, unusual, NUMERIC, CATEGORICAL, PARAMS, calibration)
    assert (naive.status, known.status, known.calibrated) == ("drift", "no_drift", True)
    assert known.limit is not None
    assert known.limit > PARAMS.max_auc


def test_windows_of_independent_rows_leave_the_limit_as_it_is() -> None:
    history = rows(1_500, 1)
    calibration = calibrate_domain(history, NUMERIC, CATEGORICAL, PARAMS)
    found = measure_domain(history, rows(500, 9, correlation=0.97), NUMERIC, CATEGORICAL, PARAMS, calibration)
    assert (found.status, found.limit) == ("drift", PARAMS.max_auc)


@pytest.mark.parametrize(("count", "sizes"), [(130_000, (200, 2_082, 21_666)), (4_000, (666,)), (299, ())])
def test_windows_are_of_several_sizes_where_the_reference_is_long(count: int, sizes: tuple[int, ...]) -> None:
    assert window_sizes(count) == sizes


def test_a_reference_too_small_for_windows_gives_none() -> None:
    assert calibrate_domain(rows(299, 1), NUMERIC, CATEGORICAL, PARAMS) == DomainCalibration()
    assert calibrate_domain(rows(3_000, 1), NUMERIC, CATEGORICAL, DomainParams(enabled=False)) == DomainCalibration()
    assert alike_auc(DomainCalibration(), 100, 0.99) is None


def test_the_usual_auc_is_a_prediction_bound_interpolated_between_sizes_and_held_beyond_them() -> None:
    tight = DomainWindows(size=1_000, aucs=(0.60, 0.61, 0.59, 0.60))
    wide = DomainWindows(size=100, aucs=(0.80, 0.90, 0.70, 0.85))
    calibration = DomainCalibration(windows=(wide, tight))
    bounds = [alike_auc(calibration, size, 0.99) or 0.0 for size in (50, 100, 316, 1_000, 9_000)]
    assert bounds[0] == bounds[1] > max(wide.aucs)
    assert bounds[1] > bounds[2] > bounds[3] == bounds[4] > max(tight.aucs)


def test_the_auc_is_scikit_learns_ties_and_all() -> None:
    random = np.random.default_rng(0)
    scores, truth = random.integers(0, 9, 200).astype(float), random.random(200) < 0.3
    auc, of_positive, of_negative = _auc(scores, truth)
    assert auc == pytest.approx(roc_auc_score(truth, scores))
    assert of_positive.mean() == pytest.approx(of_negative.mean())
