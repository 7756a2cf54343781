"""Columns of independent rows, of the kinds that break drift tests; the same seed gives any tool the same numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One kind of column."""

    numeric: bool
    draw: Draw
    sd: float = float("nan")
    """Standard deviation of the population, where a shift is measured in it."""


def _categories(shares: Sequence[float]) -> Draw:
    names = np.array([f"c{i}" for i in range(len(shares))], dtype=object)
    cumulated = np.cumsum(np.asarray(shares) / np.sum(shares))[:-1]
    return lambda rng, n: names[np.searchsorted(cumulated, rng.random(n), side="right")]


def _missing(draw: Draw, share: float) -> Draw:
    def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
        column = draw(rng, n)
        column[rng.random(n) < share] = np.nan if column.dtype.kind == "f" else None
        return column

    return drawn


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _t2(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(2, n)


KINDS = {
    "normal": Kind(True, _normal, sd=1.0),
    "uniform": Kind(True, lambda rng, n: rng.random(n), sd=12**-0.5),
    "exponential": Kind(True, lambda rng, n: rng.standard_exponential(n), sd=1.0),
    "t, 5 df": Kind(True, lambda rng, n: rng.standard_t(5, n), sd=(5 / 3) ** 0.5),
    "t, 2 df": Kind(True, _t2),
    "Cauchy": Kind(True, lambda rng, n: rng.standard_cauchy(n)),
    "log-normal, σ = 2": Kind(True, lambda rng, n: rng.lognormal(0.0, 2.0, n)),
    "Poisson, mean 3": Kind(True, lambda rng, n: rng.poisson(3.0, n).astype(np.float64)),
    "90% zeros": Kind(True, lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.standard_exponential(n))),
    "constant": Kind(True, lambda rng, n: np.full(n, 7.3)),
    "normal, 30% missing": Kind(True, _missing(_normal, 0.3), sd=1.0),
    "normal, 0.1% missing": Kind(True, _missing(_normal, 0.001), sd=1.0),
    "t, 2 df, 30% missing": Kind(True, _missing(_t2, 0.3)),
    "2 categories": Kind(False, _categories([1, 1])),
    "2 categories, 1% in one": Kind(False, _categories([99, 1])),
    "5 categories": Kind(False, _categories([5, 4, 3, 2, 1])),
    "20 categories": Kind(False, _categories([1] * 20)),
    "100 categories": Kind(False, _categories([1] * 100)),
    "100 categories, Zipf": Kind(False, _categories([1 / i for i in range(1, 101)])),
    "20 categories, 30% missing": Kind(False, _missing(_categories([1] * 20), 0.3)),
}
"""The kinds of the false-alarm table."""


def frame(kinds: Sequence[str], rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """One column per kind named, in order, called ``x0``, ``x1``, …"""
    return pd.DataFrame({f"x{i}": KINDS[kind].draw(rng, rows) for i, kind in enumerate(kinds)})


def mixed(columns: int) -> list[str]:
    """As many columns of every kind as fit, the kinds in turn."""
    names = list(KINDS)
    return [names[i % len(names)] for i in range(columns)]


def pool(columns: int, rows: tuple[int, int], seed: tuple[int, ...]) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """Kinds, reference and current rows of one repetition without any drift."""
    kinds = mixed(columns)
    rng = np.random.default_rng(seed)
    return kinds, frame(kinds, rng, rows[0]), frame(kinds, rng, rows[1])


Shift = Callable[[np.ndarray, Kind, np.random.Generator], np.ndarray]


def _new_category(column: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(column)) < 0.02, "new", column).astype(object)


def _more_missing(column: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(column)) < 0.1, np.nan, column)


@dataclass(frozen=True)
class Scenario:
    """A change that should be found, of one column among ``COLUMNS`` of its kind."""

    name: str
    rows: tuple[int, int]
    """Of the reference and of the current window."""
    kinds: tuple[str, ...]
    shift: Shift


COLUMNS = 15
_NUMERIC = ("normal", "uniform", "exponential", "t, 5 df")
SCENARIOS = {
    "mean_005": Scenario("mean + 0.05σ", (300_000, 20_000), _NUMERIC, lambda x, kind, rng: x + 0.05 * kind.sd),
    "mean_02": Scenario("mean + 0.2σ", (50_000, 2_000), _NUMERIC, lambda x, kind, rng: x + 0.2 * kind.sd),
    "new_category": Scenario("2% in a new category", (50_000, 2_000), ("5 categories", "20 categories"), _new_category),
    "spread": Scenario("σ × 1.3", (50_000, 2_000), ("normal", "t, 5 df"), lambda x, kind, rng: x * 1.3),
    "missing": Scenario("10% of values lost", (50_000, 2_000), ("normal", "normal, 30% missing"), _more_missing),
}


def shifted(scenario: Scenario, kind: str, seed: tuple[int, ...]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Reference, unshifted current rows, and the same rows with every column shifted."""
    rng = np.random.default_rng(seed)
    kinds = [kind] * COLUMNS
    reference, current = frame(kinds, rng, scenario.rows[0]), frame(kinds, rng, scenario.rows[1])
    moved = {name: scenario.shift(current[name].to_numpy(), KINDS[kind], rng) for name in current.columns}
    return reference, current, pd.DataFrame(moved)
