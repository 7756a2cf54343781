"""Probabilities from the scores of a fitted estimator, learnt from training rows that it was not fitted on.

The estimator stays as it is: scikit-learn's ``CalibratedClassifierCV`` around it learns the curve alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import PredefinedSplit, train_test_split
from sklearn.pipeline import Pipeline

from clearway.class_weights import class_name
from clearway.errors import ClearwayError
from clearway.parallel import in_order
from clearway.params import ScoreCalibrationParams

KEY = "train.calibration"
MIN_ROWS = 10
"""Fewest rows of each class to learn a curve from."""
_STEEPEST = 8.0
"""Largest slope of an isotonic curve at scores up to 1; it falls with the score, as the precision of float32 does."""


def calibration_rows(
    labels: NDArray[Any],
    times: NDArray[np.datetime64] | None,
    chosen: ScoreCalibrationParams,
    seed: int,
    classes: Sequence[str] = (),
) -> NDArray[np.bool_]:
    """Which training rows are for the curve, and not for the estimator.

    Parameters
    ----------
    labels : array of shape (rows,)
        Class of each row: 0.0 or 1.0, or its position in ``classes``.
    times : datetime64 array of shape (rows,), or None
        When each row was asked. Rows asked at one time are on one side.
    chosen : ScoreCalibrationParams
        ``train.calibration``.
    seed : int
        Draws the rows where there is no time.
    classes : sequence of str, optional
        Names of the classes, where there may be more than two.

    Returns
    -------
    boolean array of shape (rows,)

    Raises
    ------
    ClearwayError
        A class is too rare on one side.
    """
    if times is not None:
        first = np.sort(times)[min(len(times) - 1, int(np.ceil((1 - chosen.share) * len(times))))]
        held: NDArray[np.bool_] = np.asarray(times >= first)
    else:
        held = np.zeros(len(labels), dtype=bool)
        try:
            _, drawn = train_test_split(
                np.arange(len(labels)), test_size=chosen.share, random_state=seed, stratify=labels
            )
        except ValueError as error:
            raise ClearwayError(
                f"{KEY}.share = {chosen.share:g}: {error}: change the share, or get more rows"
            ) from None
        held[drawn] = True
    for label in np.unique(labels):
        name = repr(classes[int(label)]) if classes else class_name(label)
        counts = {"to learn the curve from": int(held[labels == label].sum())}
        counts["to fit the estimator on"] = int((labels == label).sum()) - counts["to learn the curve from"]
        for purpose, count in counts.items():
            if count < MIN_ROWS:
                raise ClearwayError(
                    f"{KEY}.share = {chosen.share:g} leaves {count} rows of class {name} {purpose}, at "
                    f"least {MIN_ROWS} are needed: change the share, or get more rows"
                )
    return held


def calibrated(
    estimator: Any, matrix: NDArray[np.float32], labels: NDArray[Any], chosen: ScoreCalibrationParams
) -> Any:
    """The fitted estimator with a curve after it.

    An isotonic curve has steps, and may rise as much as it likes between two scores that float32 can hardly tell apart:
    there the served graph would answer something else than scikit-learn. Its slope is bounded, so that a rounding of
    the score moves the probability by less than 1e-5.

    Parameters
    ----------
    estimator : classifier, or pipeline that ends in one
        Fitted; it is not fitted again.
    matrix : float32 array of shape (rows, features)
        Rows that it was not fitted on.
    labels : array of shape (rows,)
        Their classes.
    chosen : ScoreCalibrationParams
        ``train.calibration``.
    """
    before, last = (None, estimator)
    if isinstance(estimator, Pipeline):
        before, last = estimator[:-1], estimator[-1]
    with in_order():
        ready = matrix if before is None else before.transform(matrix)
        once = PredefinedSplit(np.arange(len(labels)) % 2)  # it is frozen: how rows are folded changes nothing
        made = CalibratedClassifierCV(FrozenEstimator(last), method=chosen.method, cv=once).fit(ready, labels)
    for part in made.calibrated_classifiers_:
        part.estimator = last  # as stored and exported, the model holds what was fitted, without the ice
        if chosen.method == "isotonic":
            part.calibrators = [_bounded(curve) for curve in part.calibrators]
    made.estimator, made.cv = last, None
    return made if before is None else Pipeline([*before.steps, ("model", made)])


def _bounded(curve: IsotonicRegression) -> IsotonicRegression:
    """The curve with no slope steeper than ``_STEEPEST / max(1, |score|)``.

    Each step becomes a ramp around it: the mean of the highest such curve below and the lowest above.
    """
    scores, values = curve.X_thresholds_, curve.y_thresholds_
    if len(scores) < 2:
        return curve
    size = np.maximum(1.0, np.maximum(np.abs(scores[1:]), np.abs(scores[:-1])))
    most = _STEEPEST / size * np.diff(scores)
    below, above = values.copy(), values.copy()
    for position, rise in enumerate(most):
        below[position + 1] = min(below[position + 1], below[position] + rise)
    for position in range(len(most) - 1, -1, -1):
        above[position] = max(above[position], above[position + 1] - most[position])
    bounded: IsotonicRegression = IsotonicRegression(out_of_bounds="clip").fit(scores, (below + above) / 2)
    return bounded
