"""Class weights: how much each row counts in a fit, by its label."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearway.errors import UsageError

ClassWeights = Literal["balanced"] | dict[bool | int | str, float]
KEY = "train.class_weights"


def row_weights(labels: NDArray[Any], weights: ClassWeights) -> NDArray[np.float64]:
    """The weight of each row.

    Parameters
    ----------
    labels : array of shape (rows,)
        Class of each row; numbers or names.
    weights : "balanced" or mapping of label → weight
        Balanced, each class weighs as much as any other, and all rows together as much as without weights.

    Returns
    -------
    float64 array of shape (rows,)

    Raises
    ------
    UsageError
        A class of the rows has no weight, or a weight is of no class.
    """
    classes, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if weights == "balanced":
        each = len(labels) / (len(classes) * counts)
        balanced: NDArray[np.float64] = each[positions]
        return balanced
    given = {class_name(label): weight for label, weight in weights.items()}
    names = [class_name(label) for label in classes]
    if set(given) != set(names):
        raise UsageError(
            f"params.yaml: {KEY} = {dict(weights)!r} must give each class of the training rows its weight, and no "
            f"other: {', '.join(names)}"
        )
    return np.array([given[name] for name in names], dtype=np.float64)[positions]


def class_name(label: Any) -> str:
    """One name for 1, 1.0, true and NumPy's own kinds of them: YAML and the table write a class differently."""
    if isinstance(label, bool | np.bool_ | int | float | np.number):
        return f"{float(label):g}"
    return str(label)
