"""Counts of values by size."""

import pytest

from clearway.histogram import FEWEST_TOGETHER, Histogram

BOUNDS = (-1.0, 0.0, 0.5)


@pytest.mark.parametrize("times", [1, FEWEST_TOGETHER])
def test_values_that_come_together_are_counted_as_one_by_one(times: int) -> None:
    values = [-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 3.0] * times
    together, single = Histogram(BOUNDS), Histogram(BOUNDS)
    for _ in range(2):  # on top of what was counted before
        together.add_all(values)
        for value in values:
            single.add(value)
    assert together.counts == single.counts == [4 * times, 4 * times, 4 * times, 4 * times]
    assert together.total == pytest.approx(single.total)
    assert {type(count) for count in together.counts} == {int}, "what tells them writes JSON"


def test_no_values_are_nothing() -> None:
    histogram = Histogram(BOUNDS)
    histogram.add_all([])
    assert (histogram.counts, histogram.total) == ([0] * 4, 0.0)
