"""Class weights: how much each row counts in a fit, by its label."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clearway.errors import UsageError
from clearway.target import class_name as named_class

ClassWeights = Literal["balanced"] | dict[bool | int | str, float]
KEY = "train.class_weights"


def row_weights(labels: NDArray[Any], weights: ClassWeights, classes: Sequence[str] = ()) -> NDArray[np.float64]:
    """The weight of each row.

    Parameters
    ----------
    labels : array of shape (rows,)
        Class of each row: 0.0 or 1.0, or its position in ``classes``.
    weights : "balanced" or mapping of label → weight
        Balanced, each class weighs as much as any other, and all rows together as much as without weights.
    classes : sequence of str, optional
        Names of the classes, where there may be more than two.

    Returns
    -------
    float64 array of shape (rows,)

    Raises
    ------
    UsageError
        A class of the rows has no weight, or a weight is of no class.
    """
    found, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if weights == "balanced":
        each = len(labels) / (len(found) * counts)
        balanced: NDArray[np.float64] = each[positions]
        return balanced
    name = named_class if classes else class_name
    given = {name(label): weight for label, weight in weights.items()}
    if len(given) < len(weights):
        raise UsageError(f"params.yaml: {KEY} = {dict(weights)!r} names a class twice: give each one weight")
    names = [classes[int(label)] if classes else class_name(label) for label in found]
    if set(given) != set(names):
        raise UsageError(
            f"params.yaml: {KEY} = {dict(weights)!r} must give each class of the training rows its weight, and no "
            f"other: {', '.join(names)}"
        )
    return np.array([given[name] for name in names], dtype=np.float64)[positions]


def class_name(label: Any) -> str:
    """One name for 1, 1.0, true and NumPy's own kinds of them: YAML and the table write a binary label differently."""
    if isinstance(label, bool | np.bool_ | int | float | np.number):
        return f"{float(label):g}"
    return str(label)
