"""Scores become probabilities on rows that the estimator did not see, and the served graph answers the same."""

import os
from typing import Any, Literal

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from clearway.encoding import learn_schema
from clearway.errors import ClearwayError
from clearway.export import to_onnx, to_skops
from clearway.model import read_estimator
from clearway.params import ScoreCalibrationParams
from clearway.score_calibration import _bounded, calibrated, calibration_rows
from clearway.training import Recipe, fit

ROWS = 2000
RANDOM = np.random.default_rng(11)
FRAME = pd.DataFrame({name: np.round(RANDOM.normal(size=ROWS), 1) for name in ("rain", "wind")})
FRAME["cloud"] = pd.Series(RANDOM.choice(["low", "high"], ROWS), dtype="string")
TRUTH = 1 / (1 + np.exp(-(FRAME["rain"] + (FRAME["cloud"] == "low"))))
LABELS = (RANDOM.random(ROWS) < TRUTH).to_numpy(np.float64)
SCHEMA = learn_schema(FRAME, ("cloud",), ("rain", "wind"))
MATRIX = SCHEMA.encode(FRAME)
Method = Literal["isotonic", "sigmoid"]


def chosen(method: Method = "sigmoid", share: float = 0.3) -> ScoreCalibrationParams:
    return ScoreCalibrationParams(method=method, share=share)


def served(estimator: Any, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    answered: NDArray[np.float32] = onnxruntime.InferenceSession(to_onnx(estimator, matrix.shape[1])).run(
        ["probabilities"], {"features": matrix}
    )[0]
    return answered


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
@pytest.mark.parametrize(
    ("estimator", "arguments"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 20}),
        ("sklearn.linear_model.LogisticRegression", {}),
        ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 10}),
        ("sklearn.ensemble.ExtraTreesClassifier", {"n_estimators": 10}),
        ("sklearn.ensemble.AdaBoostClassifier", {"n_estimators": 10}),
        ("sklearn.naive_bayes.GaussianNB", {}),
    ],
)
def test_a_calibrated_model_is_served_and_stored_as_it_is(
    method: Method, estimator: str, arguments: dict[str, Any]
) -> None:
    recipe = Recipe("challenger", "train.estimator", estimator, "train.arguments", arguments)
    fitted, again = (
        fit(recipe, SCHEMA, MATRIX, LABELS, seed=3, threads=1, calibration=chosen(method))[0] for _ in range(2)
    )
    stored = to_skops(fitted)
    assert stored == to_skops(again)
    expected = fitted.predict_proba(MATRIX)
    np.testing.assert_array_equal(read_estimator(stored).predict_proba(MATRIX), expected)
    np.testing.assert_allclose(served(fitted, MATRIX), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        HistGradientBoostingClassifier(max_iter=5, random_state=1),
        RandomForestClassifier(5, random_state=1),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_three_classes_have_a_curve_each(method: Method, estimator: Any) -> None:
    labels = (MATRIX[:, 1] > 0).astype(int) + LABELS.astype(int)
    matrix = np.nan_to_num(MATRIX)
    made = calibrated(estimator.fit(matrix[:1000], labels[:1000]), matrix[1000:], labels[1000:], chosen(method))
    expected = made.predict_proba(matrix)
    assert expected.shape == (ROWS, 3)
    np.testing.assert_allclose(served(made, matrix), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(read_estimator(to_skops(made)).predict_proba(matrix), expected)


def test_scores_of_weighted_rows_become_probabilities_again() -> None:
    recipe = Recipe("challenger", "train.estimator", "sklearn.linear_model.LogisticRegression", "train.arguments", {})
    weights: dict[bool | int | str, float] = {0: 1, 1: 8}
    raw, _ = fit(recipe, SCHEMA, MATRIX, LABELS, 3, 1, class_weights=weights)
    true, _ = fit(recipe, SCHEMA, MATRIX, LABELS, 3, 1, class_weights=weights, calibration=chosen())
    assert abs(raw.predict_proba(MATRIX)[:, 1].mean() - LABELS.mean()) > 0.15
    assert abs(true.predict_proba(MATRIX)[:, 1].mean() - LABELS.mean()) < 0.04


def test_the_latest_rows_are_for_the_curve_and_rows_of_one_time_stay_together() -> None:
    times = np.repeat(np.arange("2013-01-01", "2013-02-10", dtype="datetime64[D]"), 5)
    order = RANDOM.permutation(200)
    labels = RANDOM.integers(0, 2, 200).astype(float)
    held = calibration_rows(labels, times[order], chosen(share=0.23), seed=1)
    assert times[order][~held].max() < times[order][held].min()
    assert held.sum() == 50


def test_without_time_rows_are_drawn_with_the_seed_equally_of_each_class() -> None:
    held = calibration_rows(LABELS, None, chosen(share=0.25), seed=1)
    assert held.sum() == 500
    assert abs(LABELS[held].mean() - LABELS.mean()) < 0.001
    np.testing.assert_array_equal(held, calibration_rows(LABELS, None, chosen(share=0.25), seed=1))
    assert (held != calibration_rows(LABELS, None, chosen(share=0.25), seed=2)).any()


@pytest.mark.parametrize("times", [None, np.arange("2013-01-01", "2013-04-11", dtype="datetime64[D]")])
def test_too_few_rows_of_a_class_are_named(times: Any) -> None:
    labels = np.zeros(100)
    labels[:12] = 1
    with pytest.raises(ClearwayError, match=r"train\.calibration\.share = 0\.3 leaves \d rows of class 1 to learn"):
        calibration_rows(labels, times, chosen(), seed=1)
    with pytest.raises(ClearwayError, match=r"leaves \d rows of class 'ibis' to learn"):
        calibration_rows(labels, times, chosen(), seed=1, classes=("emu", "ibis"))


def test_a_step_becomes_a_ramp_that_float32_can_follow() -> None:
    scores = np.array([-1.0, 0.0, 1e-9, 1.0])
    bounded = _bounded(IsotonicRegression(out_of_bounds="clip").fit(scores, [0.0, 0.2, 0.8, 1.0]))
    near = bounded.predict(np.array([-1e-7, 0.0, 1e-7]))
    assert np.ptp(near) < 1e-5
    assert near[1] == pytest.approx(0.5, abs=0.2)
    assert (np.diff(bounded.y_thresholds_) >= 0).all()


def test_no_curve_is_learnt_from_rows_that_the_estimator_saw() -> None:
    """With scores of its own training rows, a forest would be taken for as sure as it sounds."""
    noise = RANDOM.integers(0, 2, ROWS).astype(np.float64)
    recipe = Recipe("challenger", "train.estimator", "sklearn.ensemble.RandomForestClassifier", "train.arguments", {})
    fitted, _ = fit(recipe, SCHEMA, MATRIX, noise, 3, os.cpu_count() or 1, calibration=chosen())
    assert np.ptp(fitted.predict_proba(MATRIX)[:, 1]) < 0.5
