"""The drift reference: a seeded sample of a model's training rows with the scores the model gave them, as Parquet.

Beside the score stand the answer and the time of each row, where the data knows them. It travels in the bundle as
evidence, so that drift is always measured against what the deployed model was trained on.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import LABEL, PREDICTION_TIME, RESERVED
from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_path

MAX_ROWS = 50_000
"""Enough that the reference's own noise is small beside any current window; more would only cost time."""
SCORE = "score"
"""Column of the model's scores in the reference."""
ANSWER = "answered_class"
"""Column of the classes it answered, where there are several."""


def write_reference(
    features: pd.DataFrame,
    scores: NDArray[np.float64],
    path: Path,
    *,
    labels: pd.Series | NDArray[Any] | None = None,
    answers: NDArray[Any] | None = None,
    times: pd.Series | None = None,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
) -> None:
    """Write the drift reference; same rows, scores and seed give the same bytes.

    Parameters
    ----------
    features : DataFrame of shape (n, k)
        The training rows; reserved columns are left out.
    scores : ndarray of shape (n,)
        The model's score of each row.
    path : Path
        Target, written whole or not at all.
    labels : array or Series of shape (n,), optional
        The label of each row: numbers, or names of classes.
    answers : array of shape (n,), optional
        The class that the model answered, where there are several.
    times : Series of shape (n,), optional
        When each row was asked about, UTC.
    seed : int
        Chooses the sample where there are more than ``max_rows`` rows.
    max_rows : int
        Size of the sample, drawn without replacement and kept in the order of ``features``.

    Raises
    ------
    UsageError
        A feature is named ``score``, or ``answered_class`` where there are several.
    ClearwayError
        There are no rows, or not one score, label and time per row.
    """
    for name in (SCORE,) if answers is None else (SCORE, ANSWER):
        if name in features.columns:
            raise UsageError(f"a feature is named {name!r}, which the drift reference reserves: rename the feature")
    added: dict[str, Any] = {SCORE: np.asarray(scores, dtype=np.float64)}
    if answers is not None:
        added[ANSWER] = pd.Series(answers, dtype="string").array
    if labels is not None:
        text = not pd.api.types.is_numeric_dtype(np.asarray(labels).dtype)
        added[LABEL] = (
            pd.Series(np.asarray(labels), dtype="string").array if text else np.asarray(labels, dtype=np.float64)
        )
    if times is not None:
        added[PREDICTION_TIME] = times.array
    for name, values in added.items():
        if len(features) == 0 or len(values) != len(features):
            raise ClearwayError(f"{path}: expected one {name} per row, got {len(features)} rows and {len(values)}")
    kept = features.drop(columns=[name for name in RESERVED if name in features.columns])
    sample = kept.reset_index(drop=True).assign(**added)
    sample = sample.iloc[sample_positions(len(sample), seed=seed, max_rows=max_rows)].reset_index(drop=True)
    with atomic_path(path) as temporary:
        sample.to_parquet(temporary, engine="pyarrow", index=False, compression="zstd")


def sample_positions(rows: int, *, seed: int, max_rows: int = MAX_ROWS) -> NDArray[np.intp]:
    """Which of so many rows the reference keeps: all, or ``max_rows`` drawn without replacement; ascending."""
    if rows <= max_rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, size=max_rows, replace=False))


def read_reference(path: Path) -> pd.DataFrame:
    """The drift reference at ``path``: the features, ``score`` and, where known, ``label`` and ``prediction_time``.

    Raises
    ------
    ClearwayError
        The file is missing, is not Parquet, or has no scores.
    """
    try:
        reference = pd.read_parquet(path)
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: the bundle has no drift reference, train again") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        reason = " ".join(str(error).split())
        raise ClearwayError(f"{path} is not a readable Parquet file ({reason}): restore the bundle") from None
    if SCORE not in reference.columns:
        raise ClearwayError(f"{path} has no column {SCORE!r}: it is no drift reference")
    return reference
