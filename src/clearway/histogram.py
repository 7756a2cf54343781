"""Counts of values by size, kept by hand: one bisection per value, where a metrics library would take a lock."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

FEWEST_TOGETHER = 32
"""Values from which on NumPy counts faster than a bisection each."""


class Histogram:
    """How many values lie at or below each of ``bounds``, which rise; written by one thread at a time."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Values in (bounds[i - 1], bounds[i]]; the last are above all bounds."""
        self.total = 0.0
        """Sum of all values."""

    def add(self, value: float, times: int = 1) -> None:
        """Count one value, once or more often."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_all(self, values: Sequence[float]) -> None:
        """Count each of some values."""
        if len(values) < FEWEST_TOGETHER:
            for value in values:
                self.add(value)
            return
        found = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts)).tolist()
        self.counts = [count + more for count, more in zip(self.counts, found, strict=True)]
        self.total += sum(values)

    def plus(self, other: "Histogram") -> "Histogram":
        """What both have counted; their bounds are the same."""
        made = Histogram(self.bounds)
        made.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        made.total = self.total + other.total
        return made

    def cumulative(self) -> list[tuple[str, int]]:
        """Each bound, as text, with the number of values at or below it; the last is ``+Inf``."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, below))
        return found
