"""The labelled rows of a window, as the features stage wrote them; apart from training, whose import costs seconds."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import LABEL
from clearway.errors import ClearwayError
from clearway.params import Kind
from clearway.workspace import Workspace


def read_rows(workspace: Workspace, window: str, kind: Kind = "binary") -> tuple[pd.DataFrame, NDArray[Any]]:
    """The labelled rows of a window (``training`` or ``holdout``) and their labels.

    Returns
    -------
    DataFrame, array of shape (rows,)
        Labels are float64; of several classes their names, text in an object array.

    Raises
    ------
    ClearwayError
        The table is missing, damaged or empty, or a label is missing or none of this kind of target.
    """
    path = workspace.features / f"{window}.parquet"
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first") from None
    except (OSError, ValueError) as error:
        raise ClearwayError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}") from None
    if frame.empty:
        raise ClearwayError(f"{path} has no rows: widen the {window} window (params.yaml: split, as_of)")
    if LABEL not in frame.columns:
        raise ClearwayError(f"{path} has no column {LABEL!r}: run scripts/build_features.py again")
    return frame, read_labels(frame[LABEL], kind, str(path))


def read_labels(column: "pd.Series[Any]", kind: Kind, source: str) -> NDArray[Any]:
    """Known labels of a feature table as :func:`read_rows` returns them; ``source`` is where they are from, for errors.

    Raises
    ------
    ClearwayError
        A label is missing or none of this kind of target.
    """
    other = f"{source}: {LABEL} is {column.dtype}, made for another target.kind than {kind}: run "
    other += "scripts/build_features.py again"
    if kind == "multiclass":
        if pd.api.types.is_numeric_dtype(column.dtype):
            raise ClearwayError(other)
        if column.isna().any():
            raise ClearwayError(f"{source}: {LABEL} is missing in {int(column.isna().sum())} rows")
        return column.astype("object").to_numpy()
    try:
        labels: NDArray[Any] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise ClearwayError(other) from None
    if kind == "regression":
        infinite = int(np.count_nonzero(~np.isfinite(labels)))
        if infinite:
            raise ClearwayError(f"{source}: {LABEL} must be a finite number, in {infinite} rows it is not")
        return labels
    wrong = np.unique(labels[~np.isin(labels, (0.0, 1.0))])
    if wrong.size:
        raise ClearwayError(f"{source}: {LABEL} must be 0 or 1, found {', '.join(f'{value:g}' for value in wrong[:5])}")
    return labels
