"""Class weights: how much a row counts, by its label."""

from typing import Any

import numpy as np
import pytest

from clearway.class_weights import row_weights
from clearway.errors import UsageError


def test_balanced_classes_weigh_the_same_and_all_rows_what_they_did() -> None:
    labels = np.array([0.0, 0.0, 0.0, 1.0])
    weights = row_weights(labels, "balanced")
    assert weights.sum() == pytest.approx(4)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())


@pytest.mark.parametrize("given", [{0: 1, 1: 5}, {False: 1, True: 5}, {"0": 1, "1": 5}])
def test_a_number_is_one_class_however_it_is_written(given: Any) -> None:
    assert row_weights(np.array([1.0, 0.0, 1.0]), given).tolist() == [5, 1, 5]


def test_classes_may_have_names() -> None:
    assert row_weights(np.array(["late", "on time", "late"]), {"late": 2, "on time": 0.5}).tolist() == [2, 0.5, 2]


@pytest.mark.parametrize("given", [{1: 5}, {0: 1, 1: 5, 2: 1}, {"no": 1, "yes": 2}, {}])
def test_each_class_needs_its_weight_and_no_other_has_one(given: Any) -> None:
    with pytest.raises(UsageError, match=r"train\.class_weights = .* its weight, and no other: 0, 1$"):
        row_weights(np.array([0.0, 1.0]), given)


def test_a_class_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.class_weights = .* names a class twice"):
        row_weights(np.array([0.0, 1.0]), {0: 1.0, "0": 3.0, 1: 5.0})
