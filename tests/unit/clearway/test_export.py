"""The ONNX graph of a tree sends each float32 row down the branch that scikit-learn does, ties included."""

from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, StackingClassifier, VotingClassifier
from threadpoolctl import threadpool_limits

from clearway.encoding import learn_schema
from clearway.export import float32_floor, to_onnx, to_skops
from clearway.training import Recipe, fit

NAMES = ("rain", "wind", "cloud")


def hundredths(rows: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Hundredths as float32, some of them one rounding away: sums of 0.06 and 0.12 are not always 0.18.

    Between neighbours in float32 every float64 threshold rounds to one of them, as often to the wrong one. Trees other
    than the histogram's do not split what is within 1e-7, hence the values above 2.
    """
    random = np.random.default_rng(18)
    exact = (random.integers((0, 201, 201), (20, 221, 221), (rows, len(NAMES))) * 0.01).astype(np.float32)
    below, above = (np.nextafter(exact, np.float32(side)) for side in (-9, 9))
    which = random.integers(0, 3, exact.shape)
    matrix = np.choose(which, [below, exact, above]).astype(np.float32)
    labels = ((which[:, 0] == 1) ^ (which[:, 1] == 2) ^ (which[:, 2] == 0)).astype(np.float64)
    matrix[random.random(matrix.shape) < 0.05] = np.nan
    return matrix, labels


MATRIX, LABELS = hundredths()
SCHEMA = learn_schema(pd.DataFrame(MATRIX, columns=list(NAMES)), (), NAMES)
HISTOGRAM = HistGradientBoostingClassifier(max_iter=5, random_state=3)


def served(estimator: Any, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(to_onnx(estimator, matrix.shape[1]))
    answered: NDArray[np.float32] = session.run(["probabilities"], {"features": matrix})[0]
    return answered[:, 1]


@pytest.mark.parametrize(
    ("estimator", "arguments"),
    [
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 20}),
        ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 5}),
        ("sklearn.ensemble.ExtraTreesClassifier", {"n_estimators": 5}),
        ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 10, "max_depth": 6}),
        ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 10, "max_depth": 6, "loss": "exponential"}),
        ("sklearn.ensemble.AdaBoostClassifier", {"n_estimators": 30}),
        ("sklearn.ensemble.BaggingClassifier", {"n_estimators": 3, "max_features": 2}),
        ("sklearn.tree.DecisionTreeClassifier", {}),
        ("sklearn.tree.ExtraTreeClassifier", {}),
    ],
)
def test_a_value_beside_a_threshold_takes_the_branch_of_scikit_learn(estimator: str, arguments: dict[str, Any]) -> None:
    recipe = Recipe("challenger", "train.estimator", estimator, "train.arguments", arguments)
    fitted, _ = fit(recipe, SCHEMA, MATRIX, LABELS, seed=3, threads=1)
    np.testing.assert_allclose(served(fitted, MATRIX), fitted.predict_proba(MATRIX)[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "around",
    [
        BaggingClassifier(HISTOGRAM, n_estimators=2, random_state=3),
        CalibratedClassifierCV(HISTOGRAM, cv=2),
        StackingClassifier([("trees", HISTOGRAM)], cv=2),
        VotingClassifier(
            [("calibrated", CalibratedClassifierCV(HISTOGRAM, cv=2)), ("trees", HISTOGRAM)],
            voting="soft",
            flatten_transform=False,
        ),
    ],
)
def test_histogram_trees_inside_another_estimator_agree_too(around: ClassifierMixin) -> None:
    with threadpool_limits(limits=1):
        fitted = around.fit(MATRIX, LABELS.astype(int))
    np.testing.assert_allclose(served(fitted, MATRIX), fitted.predict_proba(MATRIX)[:, 1], rtol=0, atol=1e-6)


def test_a_split_on_missing_values_alone_keeps_its_infinite_threshold() -> None:
    matrix = np.where(np.arange(200) % 2, 1.0, np.nan).astype(np.float32).reshape(-1, 1)
    fitted = HistGradientBoostingClassifier(max_iter=3).fit(matrix, np.isnan(matrix[:, 0]).astype(int))
    assert np.isinf(fitted._predictors[0][0].nodes["num_threshold"]).any()
    rows = np.array([[0.0], [np.nan], [1e38], [np.inf]], dtype=np.float32)
    np.testing.assert_allclose(served(fitted, rows), fitted.predict_proba(rows)[:, 1], rtol=0, atol=1e-6)


def test_exporting_leaves_the_fitted_estimator_as_it_is() -> None:
    fitted = HistGradientBoostingClassifier(max_iter=3).fit(MATRIX, LABELS.astype(int))
    before = to_skops(fitted)
    assert to_onnx(fitted, 3) == to_onnx(fitted, 3)
    assert to_skops(fitted) == before


@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_no_float32_lies_between_a_threshold_and_its_floor(threshold: float, value: float) -> None:
    floor = float32_floor(np.array([threshold]))[0]
    assert floor.dtype == np.float32
    with np.errstate(over="ignore"):
        near = [np.nextafter(floor, np.float32(side)) for side in (-np.inf, np.inf)]
    for x in (np.float32(value), floor, *near):
        assert (float(x) <= threshold) == bool(x <= floor)
