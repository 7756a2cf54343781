from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from clearway.calibration_gate import (
    Calibration,
    calibration_champion_gate,
    calibration_error,
    calibration_gate,
    calibration_of,
    recalibration,
)
from clearway.gates import Holdout
from clearway.metrics import Floats

ROWS = 4000
RANDOM = np.random.default_rng(6)
SCORES = RANDOM.beta(1.5, 4, ROWS)
LABELS = (RANDOM.random(ROWS) < SCORES).astype(np.float64)
HOLDOUT = Holdout(LABELS, threshold=0.4, confidence=0.95, resamples=100, seed=1)
EXTREME = expit(2 * logit(SCORES) + 0.5)


def of(scores: Floats, holdout: Holdout = HOLDOUT) -> Calibration:
    found = calibration_of(holdout, scores)
    assert found is not None
    return found


def test_the_error_is_the_mean_distance_of_share_and_score_over_bins() -> None:
    """By hand: two bins, of two rows each: |0.5 − 0.1| and |1 − 0.8|."""
    labels, scores = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.1, 0.8, 0.8])
    assert calibration_error(2).value(labels, scores, 0.5) == pytest.approx((0.4 + 0.2) / 2)
    weighted = calibration_error(2).weighted(labels, scores, 0.5)
    assert weighted(np.array([3, 1, 0, 0])) == pytest.approx(abs(0.25 - 0.1))
    assert weighted(np.ones(4)) == calibration_error(2).value(labels, scores, 0.5)


def test_equal_scores_share_a_bin_so_the_order_of_rows_does_not_matter() -> None:
    coarse = SCORES.round(1)
    order = np.random.default_rng(1).permutation(ROWS)
    first, again = (calibration_error(10).value(LABELS[o], coarse[o], 0.5) for o in (np.arange(ROWS), order))
    assert first == pytest.approx(again)
    assert of(coarse).bins < 10
    assert of(np.full(ROWS, 0.3)).bins == 1


def test_the_upper_bound_covers_the_truth_and_is_tighter_than_the_bootstraps_own() -> None:
    """40 samples of calibrated scores: the plain percentile's bound counts the noise of the bins twice."""
    bounds, plain = [], []
    for sample in range(40):
        random = np.random.default_rng(sample)
        scores = random.beta(1.5, 4, 1000)
        holdout = Holdout((random.random(1000) < scores).astype(float), 0.4, 0.95, 100, sample)
        found = of(scores, holdout).error
        boot = holdout.interval(calibration_error(10), scores)
        assert found.lower is not None
        assert found.upper is not None
        assert boot.upper is not None
        assert 0 <= found.lower <= found.estimate <= found.upper
        bounds.append(found.upper)
        plain.append(boot.upper)
    assert min(bounds) > 0
    assert np.mean(bounds) < 0.9 * np.mean(plain)


def test_a_known_shift_is_found_within_the_interval() -> None:
    truth = 0.1
    random = np.random.default_rng(1)
    scores = random.uniform(0.2, 0.8, 20000)
    holdout = Holdout((random.random(20000) < scores + truth).astype(float), 0.4, 0.95, 100, 1)
    found = of(scores, holdout)
    assert found.error.lower is not None
    assert found.error.upper is not None
    assert found.error.lower < truth < found.error.upper


def test_calibrated_scores_pass_and_shifted_ones_fail() -> None:
    gate = calibration_gate(HOLDOUT, of(SCORES), 0.05)
    assert (gate.name, gate.status, gate.threshold, gate.n) == ("calibration", "pass", 0.05, ROWS)
    assert "slope " in gate.detail
    assert "intercept " in gate.detail
    assert "Brier score 0.1" in gate.detail
    assert calibration_gate(HOLDOUT, of(np.clip(SCORES + 0.15, 0, 1)), 0.05).status == "fail"
    found = of(EXTREME).error
    assert calibration_gate(HOLDOUT, of(EXTREME), found.estimate).status == "unknown"


def test_the_slope_and_intercept_of_a_known_distortion_are_found() -> None:
    """logit(true) = logit(score) · 0.5 − 0.25, the inverse of the distortion."""
    slope, intercept = recalibration(HOLDOUT, EXTREME)
    for found, truth in ((slope, 0.5), (intercept, -0.25)):
        assert found.lower is not None
        assert found.upper is not None
        assert found.lower < truth < found.upper
        assert found.upper - found.lower < 0.2
    straight, none = recalibration(HOLDOUT, SCORES)
    assert straight.estimate == pytest.approx(1, abs=0.1)
    assert none.estimate == pytest.approx(0, abs=0.1)


def test_the_recalibration_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e10, tol=1e-10).fit(logit(EXTREME)[:, None], LABELS)
    slope, intercept = recalibration(HOLDOUT, EXTREME)
    assert slope.estimate == pytest.approx(float(fitted.coef_[0, 0]), rel=1e-4)
    assert intercept.estimate == pytest.approx(float(fitted.intercept_[0]), rel=1e-4)


def test_rows_that_share_an_entity_widen_every_interval() -> None:
    twice = Holdout(np.tile(LABELS, 4), 0.4, 0.95, 100, 1)
    scores = np.tile(SCORES, 4)
    grouped = replace(twice, groups=np.tile(np.arange(ROWS), 4))
    for name in ("error", "brier", "slope", "intercept"):
        alone, together = getattr(of(scores, twice), name), getattr(of(scores, grouped), name)
        ratio = (together.upper - together.lower) / (alone.upper - alone.lower)
        assert ratio == pytest.approx(2, rel=0.35), name


def test_few_entities_give_no_bounds_and_no_pass() -> None:
    few = replace(HOLDOUT, groups=np.arange(ROWS) % 5)
    found = of(SCORES, few)
    assert found.slope.lower is None
    assert found.error.upper is None
    assert calibration_gate(few, found, 1.0).status == "fail"


def test_scores_that_separate_the_labels_or_are_all_alike_have_no_best_fit() -> None:
    for scores in (np.where(LABELS == 1, 0.8, 0.2), np.full(ROWS, 0.3)):
        slope, intercept = recalibration(HOLDOUT, scores)
        assert np.isnan([slope.estimate, intercept.estimate]).all()
    assert "slope undefined" in calibration_gate(HOLDOUT, of(np.full(ROWS, 0.3)), 0.5).detail


def test_scores_of_0_and_1_are_kept_within_reach() -> None:
    scores = np.where(SCORES < 0.02, 0.0, SCORES)
    slope, _ = recalibration(HOLDOUT, scores)
    assert slope.lower is not None


@pytest.mark.parametrize(
    "scores", [np.full(ROWS, np.nan), SCORES + 1, SCORES[1:]], ids=["no numbers", "no probabilities", "too few"]
)
def test_what_is_undefined_fails(scores: Floats) -> None:
    assert calibration_of(HOLDOUT, scores) is None
    gate = calibration_gate(HOLDOUT, calibration_of(HOLDOUT, scores), 1.0)
    assert (gate.status, gate.detail) == ("fail", "calibration is undefined on these rows and scores")
    assert calibration_champion_gate(HOLDOUT, scores, SCORES, 1.0).status == "fail"
    assert calibration_champion_gate(HOLDOUT, SCORES, scores, 1.0).status == "fail"


def test_labels_that_are_all_the_same_fail() -> None:
    one = replace(HOLDOUT, labels=np.zeros(ROWS))
    assert calibration_of(one, SCORES) is None
    assert calibration_champion_gate(one, SCORES, SCORES, 1.0).status == "fail"


def test_no_worse_than_the_champion_beyond_a_margin() -> None:
    shifted = np.clip(SCORES + 0.1, 0, 1)
    gate = calibration_champion_gate(HOLDOUT, SCORES, shifted, 0.01)
    assert (gate.name, gate.status, gate.threshold) == ("calibration_champion", "pass", -0.01)
    assert gate.estimate is not None
    assert gate.estimate == pytest.approx(0.1, abs=0.02)
    assert calibration_champion_gate(HOLDOUT, shifted, SCORES, 0.01).status == "fail"
    assert calibration_champion_gate(HOLDOUT, SCORES, SCORES, 0.01).status == "pass"
    assert calibration_champion_gate(HOLDOUT, shifted, SCORES, 1.01 * gate.estimate).status == "unknown"


def test_a_champion_that_could_not_score_is_no_pass() -> None:
    gate = calibration_champion_gate(HOLDOUT, SCORES, None, 1.0)
    assert (gate.status, gate.detail) == ("fail", "calibration of the champion is undefined")
