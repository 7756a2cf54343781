"""The labelled rows of a window, as the features stage wrote them; apart from training, whose import costs seconds."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import LABEL
from clearway.errors import ClearwayError
from clearway.workspace import Workspace


def read_rows(workspace: Workspace, window: str) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """The labelled rows of a window (``training`` or ``holdout``) and their labels.

    Raises
    ------
    ClearwayError
        The table is missing, damaged or empty, or a label is neither 0 nor 1.
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
    labels = frame[LABEL].to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.unique(labels[~np.isin(labels, (0.0, 1.0))])
    if wrong.size:
        raise ClearwayError(f"{path}: {LABEL} must be 0 or 1, found {', '.join(f'{value:g}' for value in wrong[:5])}")
    return frame, labels
