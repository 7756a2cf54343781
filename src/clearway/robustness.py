"""Whether a model's answers stand when its numbers tremble: a model that a hundredth of noise turns over has learnt it.

The noise is a share of each column's own spread, as scikit-learn's scalers see it, so that a temperature and a distance
tremble alike. It is no attack: nobody searches for the change that hurts most.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clearway.encoding import InputSchema, NumericFeature, as_encoded
from clearway.gates import Gate
from clearway.shares import share_gate
from clearway.target import BINARY, Target

Matrix = NDArray[np.float32]
Score = Callable[[Matrix], NDArray[np.float64]]
"""Encoded rows, float32 (rows, features) → outputs, float64: see :mod:`clearway.target`."""

_LARGEST = float(np.finfo(np.float32).max)


def noise_gate(
    score: Score,
    schema: InputSchema,
    matrix: Matrix,
    threshold: float,
    *,
    share: float = 0.01,
    keep: float = 0.95,
    confidence: float = 0.95,
    seed: int,
    target: Target = BINARY,
    tolerance: float = 0.1,
) -> Gate:
    """Rows whose answer stays under noise: the lower bound of their share is at least ``keep``.

    Parameters
    ----------
    score : callable
        Called twice, with ``matrix`` and with :func:`noisy` of it.
    schema : InputSchema
        What each column is.
    matrix : float32 array of shape (rows, features)
    threshold : float
        Score from which the answer is yes.
    share : float
        Standard deviation of the noise, as a share of each column's.
    keep : float
        Smallest share of rows that must keep their answer.
    confidence : float
        One-sided level of each bound.
    seed : int
    target : Target
        What is answered: the same answer is the same yes or no, the same class, or a number that moved no further than
        ``tolerance`` standard deviations of what is predicted without noise.
    tolerance : float

    Returns
    -------
    Gate
        ``noise_robustness``. Fail, too, if the model fails on noisy rows or has no finite score for one. A model
        without a number that varies passes: nothing can tremble.
    """
    name = "noise_robustness"
    shaken = noisy(schema, matrix, share, seed)
    try:
        before, after = score(matrix), score(shaken)
    except Exception as error:  # the runtime raises types of its own
        return Gate(name, "fail", f"the model fails on noisy rows: {type(error).__name__}: {error}", threshold=keep)
    finite = np.isfinite(before) & np.isfinite(after)
    unscored = int(len(matrix) - np.count_nonzero(finite if finite.ndim == 1 else finite.all(axis=1)))
    if unscored:
        detail = f"{unscored:,} of {len(matrix):,} rows have no finite score with noise or without"
        return Gate(name, "fail", detail, threshold=keep, n=len(matrix))
    kept = int(np.count_nonzero(target.kept(before, after, threshold, tolerance)))
    moved = int(np.count_nonzero((shaken != matrix) & ~np.isnan(matrix), axis=0).astype(bool).sum())
    where = f"{moved} of {matrix.shape[1]} features"
    within = f" within {tolerance:.3g} standard deviations" if target.kind == "regression" else ""
    said = f"rows keep their answer{within} under noise of {share:.3g} standard deviations in {where}"
    return share_gate(name, kept, len(matrix), keep, confidence, said)


def noisy(schema: InputSchema, matrix: Matrix, share: float, seed: int) -> Matrix:
    """``matrix`` with Gaussian noise of ``share`` of each numeric column's standard deviation.

    Standard deviations are of the finite values. Missing stays missing, categories stay, and so does a number whose
    ``values`` are listed, which is a category too. Nothing leaves the declared ``min`` and ``max``: a server would
    refuse it. A column declared ``int`` stays whole: value plus noise is rounded up or down at random, to the nearer
    side the likelier. A value then moves by 1 with the probability that the noise is long (|noise| < 1), so that
    whole numbers move as far on average as others. Rounded to the nearest, they would hardly ever move at all.

    Parameters
    ----------
    matrix : float32 array of shape (rows, features)
    share : float
    seed : int

    Returns
    -------
    float32 array of shape (rows, features)
    """
    random = np.random.default_rng(seed)
    shaken = matrix.copy()
    for position, feature in enumerate(schema.features):
        column = matrix[:, position].astype(np.float64)
        known = np.isfinite(column)
        noise, chance = random.normal(size=len(column)), random.random(len(column))  # a column's draws are its own
        if not isinstance(feature, NumericFeature) or not known.any():
            continue
        declared = None if feature.declared is None else as_encoded(feature.declared)
        if declared is not None and declared.values is not None:
            continue
        moved = column + share * column[known].std() * noise
        if declared is not None and declared.kind == "int":
            moved = np.floor(moved + chance)
        low, high = (None, None) if declared is None else (declared.min, declared.max)
        bounded = np.clip(moved, _bound(low, -_LARGEST), _bound(high, _LARGEST))
        shaken[known, position] = bounded[known].astype(np.float32)
    return shaken


def _bound(declared: object, otherwise: float) -> float:
    return declared if isinstance(declared, float) else otherwise
