"""How much more windows of the reference differ from the rest of it than independent rows would.

Rows in time order are not independent: a week shares its weather, a day its rush hour. A test that takes them for
independent finds every week changed. So contiguous windows of several sizes, cut from the reference itself, are tested
against the rest of it, and what each statistic shows there beyond what independent rows would give is its inflation, by
window size. It is measured once, when the model is trained, and travels with its reference.

The mean square of a statistic over few windows is itself uncertain. How many windows there were goes with it, and the
check uses Student's t and F in place of the normal and χ² distributions.

References
----------
Rao, J. N. K. & Scott, A. J. (1984). On chi-squared tests for multiway contingency tables with cell proportions
estimated from survey data. Annals of Statistics 12.
Politis, D. N., Romano, J. P. & Wolf, M. (1999). Subsampling. Springer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.domain import DomainCalibration
from clearway.drift import AspectName, Kind
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.profile import ANSWER, SCORE

if TYPE_CHECKING:
    from clearway.two_sample import Inflation

Floats = NDArray[np.float64]

SMALLEST, LARGEST_SHARE = 50, 16
"""Rows of the smallest window; the largest is one part in so many of the rows, so that enough of them differ."""
MOST_WINDOWS = 24
"""Windows of one size, at most, none overlapping another, spread over all rows."""
FEWEST_WINDOWS = 4
"""Windows of one size below which nothing is estimated from them."""
FEWEST_VALUES = 10
"""Values of a window, missing ones not counted, below which its other statistics are left out."""
CONSTANT = 1e-6
"""Standard deviation, in that of all rows, at which a window counts as constant: sums of squares know no smaller."""
CELLS = 512
"""Quantile cells of a numeric column."""
BASELINE_SCORE, BASELINE_ANSWER = "baseline_score", "baseline_answer"
"""What the simple model gave the rows whose ``score`` is the challenger's."""


@dataclass(frozen=True)
class UsualUnseen:
    """Unseen mass of windows of the reference itself, as a share of their values."""

    mean: float
    deviation: float
    windows: int


@dataclass(frozen=True)
class UsualSpread:
    """Log ratios of the standard deviation of windows of the reference to that of the rest."""

    deviation: float
    """Their root mean square."""
    reached: float
    """The largest."""
    windows: int


class FeatureCalibration(BaseModel):
    """Of one column, by window size; each tuple has one value for each of ``sizes``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    sizes: tuple[int, ...]
    """Rows of a window, ascending."""
    windows: tuple[int, ...]
    """Windows that were measured."""
    inflation: dict[AspectName, tuple[float, ...]]
    """Mean square of the statistic over that of independent rows, at least 1."""
    reached: dict[AspectName, tuple[float, ...]]
    """The largest square that a window reached, in the same unit."""
    degrees: tuple[float, ...] | None = None
    """Categorical: degrees of freedom that χ² keeps, by its variance over the windows (Satterthwaite)."""
    spread_deviation: tuple[float | None, ...] | None = None
    """Numeric: root mean square of the log ratio of a window's standard deviation to that of the rest; None where
    values are missing from some window altogether."""
    spread_reached: tuple[float | None, ...] | None = None
    """Numeric: the largest such log ratio."""
    unseen_mean: tuple[float, ...] | None = None
    """Categorical: share of a window's values in categories that the rest does not hold."""
    unseen_deviation: tuple[float, ...] | None = None

    def at(self, aspect: AspectName, rows: int) -> "Inflation":
        """The inflation for a window of ``rows`` rows, missing values counted.

        Between the sizes measured it is interpolated on logarithmic scales. Below the smallest it is the smallest's.
        Above the largest the deviation of a window's mean is held to shrink no more, so the inflation grows with the
        rows: nothing is known of slower changes than the largest window saw.
        """
        from clearway.two_sample import INDEPENDENT, Inflation

        factors = self.inflation.get(aspect)
        if not factors or not self.sizes:
            return INDEPENDENT
        where = math.log(max(rows, 1))
        sizes = [math.log(size) for size in self.sizes]
        factor = math.exp(np.interp(where, sizes, [math.log(value) for value in factors]))
        reached = float(np.interp(where, sizes, self.reached[aspect]))
        if rows > self.sizes[-1]:
            factor = 1 + (factors[-1] - 1) * rows / self.sizes[-1]
            reached *= factor / factors[-1]
        degrees = math.inf
        if aspect == "distribution" and self.degrees is not None:
            degrees = float(np.interp(where, sizes, self.degrees))
        return Inflation(factor, float(np.interp(where, sizes, self.windows)), degrees, reached)

    def spread_at(self, rows: int) -> UsualSpread | None:
        """How much the spread of a window of ``rows`` rows usually differs; None where it was not measured.

        Beyond the largest size it is the largest's: a longer window's spread is no less like the whole.
        """
        if self.spread_deviation is None or self.spread_reached is None:
            return None
        known = [i for i, value in enumerate(self.spread_deviation) if value is not None]
        if not known:
            return None
        where, sizes = math.log(max(rows, 1)), [math.log(self.sizes[i]) for i in known]
        nearest = known[int(np.argmin([abs(where - size) for size in sizes]))]
        return UsualSpread(
            float(np.interp(where, sizes, [self.spread_deviation[i] or 0.0 for i in known])),
            float(np.interp(where, sizes, [self.spread_reached[i] or 0.0 for i in known])),
            self.windows[nearest],
        )

    def unseen_at(self, rows: int) -> UsualUnseen | None:
        """The unseen mass that a window of ``rows`` rows usually has; None where it was not measured."""
        if not self.sizes or self.unseen_mean is None or self.unseen_deviation is None:
            return None
        where, sizes = math.log(max(rows, 1)), [math.log(size) for size in self.sizes]
        nearest = int(np.argmin([abs(where - size) for size in sizes]))
        return UsualUnseen(
            float(np.interp(where, sizes, self.unseen_mean)),
            float(np.interp(where, sizes, self.unseen_deviation)),
            self.windows[nearest],
        )


class Calibration(BaseModel):
    """``drift_calibration.json``: what dependence between rows does to every test, and to the domain classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    """Rows, in time order, that the windows were cut from."""
    features: dict[str, FeatureCalibration]
    outputs: dict[str, FeatureCalibration] = {}
    """``score``, ``label``, and ``baseline_score``: what the simple model gave the same rows."""
    domain: DomainCalibration | None = None

    @property
    def measured(self) -> bool:
        """Whether there are any windows: not where rows know no time or are too few."""
        return any(column.sizes for column in (*self.features.values(), *self.outputs.values()))

    def of(self, name: str, *, output: bool = False) -> FeatureCalibration | None:
        """Of one feature, or of one output; None where it was not calibrated."""
        return (self.outputs if output else self.features).get(name)

    def for_baseline(self) -> Self:
        """The same for the simple model's bundle: its scores take the place of the challenger's."""
        pairs = {SCORE: BASELINE_SCORE, ANSWER: BASELINE_ANSWER}
        outputs = {name: value for name, value in self.outputs.items() if name not in (*pairs, *pairs.values())}
        outputs |= {name: self.outputs[own] for name, own in pairs.items() if own in self.outputs}
        return self.model_copy(update={"outputs": outputs})


def calibrate(
    frame: pd.DataFrame,
    kinds: Mapping[str, Kind],
    *,
    outputs: Mapping[str, tuple[Kind, pd.Series]] | None = None,
    sampled: NDArray[np.intp] | None = None,
    domain: DomainCalibration | None = None,
) -> Calibration:
    """Measure the inflation of every aspect of every column.

    Parameters
    ----------
    frame : DataFrame of shape (n, ≥ k)
        All rows that the reference is of, **in time order**.
    kinds : mapping of str to kind
        The features.
    outputs : mapping of str to (kind, Series), optional
        Further columns by their own names, which may be those of features; in the same order of rows.
    sampled : array of int, optional
        Positions of the rows that the check will have as its reference; all by default. A window is held against
        those of them that lie outside it, as the check will.
    domain : DomainCalibration, optional
        Kept with it.

    Returns
    -------
    Calibration
        Without windows where there are too few rows for ``FEWEST_WINDOWS`` of ``SMALLEST``.
    """
    count = len(frame)
    kept = np.zeros(count, dtype=bool)
    kept[slice(None) if sampled is None else sampled] = True
    sizes = window_sizes(count)
    starts = {size: window_starts(count, size) for size in sizes}
    return Calibration(
        rows=count,
        features={name: _calibrate_column(frame[name], kind, kept, starts) for name, kind in kinds.items()},
        outputs={
            name: _calibrate_column(column, kind, kept, starts) for name, (kind, column) in (outputs or {}).items()
        },
        domain=domain,
    )


def read_calibration(path: Path) -> Calibration:
    """The calibration at ``path``.

    Raises
    ------
    ClearwayError
        The file is missing or damaged.
    """
    try:
        return Calibration.model_validate(read_json(path, made_by="scripts/train.py"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ClearwayError(f"{path} is no drift calibration ({where}: {first['msg']}): train again") from None


def window_sizes(rows: int) -> tuple[int, ...]:
    """Window sizes for so many rows: 50, 100, 200, 500, … up to a sixteenth of them, and that.

    Fewer rows than sixteen of the smallest windows give that one alone, if there are at least four.

    >>> window_sizes(10_000)
    (50, 100, 200, 500, 625)
    """
    largest = rows // LARGEST_SHARE
    if largest < SMALLEST:
        return (SMALLEST,) if rows // SMALLEST >= FEWEST_WINDOWS else ()
    steps = {factor * 10**power for factor in (1, 2, 5) for power in range(1, 12)}
    return tuple(sorted({size for size in steps if SMALLEST <= size <= largest} | {largest}))


def window_starts(rows: int, size: int) -> NDArray[np.intp]:
    """First rows of at most ``MOST_WINDOWS`` windows that do not overlap, spread evenly over all rows."""
    number = min(MOST_WINDOWS, rows // size)
    return np.linspace(0, rows - size, number).round().astype(np.intp)


@dataclass(frozen=True)
class _Windows:
    """Counts of one column in windows of one size and in the rest of the reference."""

    current: Floats
    """Shape (windows, cells)."""
    reference: Floats
    gone: Floats
    """Squares of the standardised share of missing values, of all windows."""


@dataclass(frozen=True)
class _Measured:
    """Squares of statistics over their means for independent rows, one for each window."""

    squares: dict[AspectName, Floats]
    unseen: Floats | None = None
    spreads: Floats | None = None
    """Log ratios of standard deviations."""


class _Column:
    """One column as the codes of its cells, in time order; the code after the last cell is for missing values."""

    def __init__(self, codes: NDArray[np.intp], cells: int, kept: NDArray[np.bool_]) -> None:
        self.codes, self.cells, self.kept = codes, cells, kept
        self.total = np.bincount(codes[kept], minlength=cells + 1).astype(np.float64)

    def count(self, starts: NDArray[np.intp], size: int) -> _Windows:
        """Count each window, and the kept rows outside it; windows of hardly any values are left out."""
        rows = starts[:, None] + np.arange(size)
        current = self._bincount(rows, np.ones(rows.shape, dtype=bool))
        reference = self.total - self._bincount(rows, self.kept[rows])
        gone = _share_squares(current[:, -1], reference[:, -1], current.sum(axis=1), reference.sum(axis=1))
        enough = np.minimum(current[:, :-1].sum(axis=1), reference[:, :-1].sum(axis=1)) >= FEWEST_VALUES
        return _Windows(current[enough, :-1], reference[enough, :-1], gone)

    def _bincount(self, rows: NDArray[np.intp], chosen: NDArray[np.bool_]) -> Floats:
        offset = np.arange(len(rows))[:, None] * (self.cells + 1)
        codes = (self.codes[rows] + offset)[chosen]
        counts = np.bincount(codes, minlength=len(rows) * (self.cells + 1))
        return counts.reshape(len(rows), -1).astype(np.float64)


def _calibrate_column(
    column: pd.Series, kind: Kind, kept: NDArray[np.bool_], starts: Mapping[int, NDArray[np.intp]]
) -> FeatureCalibration:
    measured = (_measure_numbers if kind == "numeric" else _measure_categories)(column, kept, starts)
    there = {size: found for size, found in measured.items() if len(found.squares["distribution"]) >= FEWEST_WINDOWS}
    names = list(next(iter(there.values())).squares) if there else []
    sizes, windows = tuple(there), tuple(len(found.squares["distribution"]) for found in there.values())
    inflation = {name: tuple(max(1.0, float(found.squares[name].mean())) for found in there.values()) for name in names}
    reached = {name: tuple(float(found.squares[name].max()) for found in there.values()) for name in names}
    unseen = [found.unseen for found in there.values() if found.unseen is not None]
    if kind == "numeric":
        ratios = [found.spreads for found in there.values()]
        return FeatureCalibration(
            kind=kind,
            sizes=sizes,
            windows=windows,
            inflation=inflation,
            reached=reached,
            spread_deviation=tuple(None if r is None else float(np.sqrt(np.mean(r**2))) for r in ratios),
            spread_reached=tuple(None if r is None else float(np.abs(r).max()) for r in ratios),
        )
    return FeatureCalibration(
        kind=kind,
        sizes=sizes,
        windows=windows,
        inflation=inflation,
        reached=reached,
        degrees=tuple(_degrees(found.squares["distribution"]) for found in there.values()),
        unseen_mean=tuple(float(shares.mean()) for shares in unseen),
        unseen_deviation=tuple(float(shares.std(ddof=1)) for shares in unseen),
    )


def _measure_numbers(
    column: pd.Series, kept: NDArray[np.bool_], starts: Mapping[int, NDArray[np.intp]]
) -> dict[int, _Measured]:
    from clearway.two_sample import KOLMOGOROV_MEAN_SQUARE, rank_squares, size_for_normal

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    there = np.isfinite(values)
    held = np.sort(values[there])
    edges = np.unique(held[np.linspace(0, len(held) - 1, CELLS).astype(np.intp)]) if len(held) else held
    column_of = _Column(np.where(there, np.searchsorted(edges, values), len(edges)), len(edges), kept)
    centre, scale = (float(held.mean()), float(held.std()) or 1.0) if len(held) else (0.0, 1.0)
    enough = size_for_normal((held - centre) / scale, np.ones(len(held)))
    values = np.where(there, (values - centre) / scale, 0.0)
    powers = np.array([there, values, values * values], dtype=np.float64)
    until, kept_until = (np.cumsum(np.pad(side, ((0, 0), (1, 0))), axis=1) for side in (powers, powers * kept))
    measured = {}
    for size, first in starts.items():
        windows = column_of.count(first, size)
        lam, location, spread = rank_squares(windows.reference, windows.current)
        spreads = None
        if len(windows.current) == len(first):
            ours = until[:, first + size] - until[:, first]
            theirs = kept_until[:, -1:] - (kept_until[:, first + size] - kept_until[:, first])
            spreads = _spread_ratios(theirs, ours)
            if size >= enough:  # where the check will compare means themselves
                location = _mean_squares(theirs, ours, location)
        squares: dict[AspectName, Floats] = {
            "distribution": lam**2 / KOLMOGOROV_MEAN_SQUARE,
            "mean": location,
            "spread": spread,
            "missing": windows.gone,
        }
        measured[size] = _Measured(squares, spreads=spreads)
    return measured


def _measure_categories(
    column: pd.Series, kept: NDArray[np.bool_], starts: Mapping[int, NDArray[np.intp]]
) -> dict[int, _Measured]:
    from clearway.two_sample import table

    codes, categories = pd.factorize(column)
    column_of = _Column(np.where(codes < 0, len(categories), codes), len(categories), kept)
    measured = {}
    for size, first in starts.items():
        windows = column_of.count(first, size)
        found = [table(np.array(pair)) for pair in zip(windows.reference, windows.current, strict=True)]
        squares: dict[AspectName, Floats] = {
            "distribution": np.array([one.statistic / one.degrees if one.degrees else 1.0 for one in found]),
            "missing": windows.gone,
        }
        unseen = np.where(windows.reference == 0, windows.current, 0.0).sum(axis=1)
        measured[size] = _Measured(squares, unseen / np.maximum(windows.current.sum(axis=1), 1))
    return measured


def _degrees(squares: Floats) -> float:
    """Degrees of freedom of the scaled χ² distribution with this mean and variance; at least 1."""
    mean, variance = float(squares.mean()), float(squares.var(ddof=1))
    return max(1.0, min(1e6, 2 * mean**2 / variance)) if variance > 0 else 1e6


def _mean_squares(reference: Floats, current: Floats, otherwise: Floats) -> Floats:
    """Squares of the standardised difference of means, from counts, sums and sums of squares of shape (3, windows).

    By the variance of both samples together: a short window may hardly vary. ``otherwise`` where nothing does.
    """
    n, m = reference[0], current[0]
    means = reference[1] / n, current[1] / m
    within = np.maximum(0.0, reference[2] - n * means[0] ** 2) + np.maximum(0.0, current[2] - m * means[1] ** 2)
    error = within / (n + m) * (1 / n + 1 / m)
    return np.where(error > 0, (means[1] - means[0]) ** 2 / np.where(error > 0, error, 1.0), otherwise)


def _spread_ratios(reference: Floats, current: Floats) -> Floats:
    """Log ratios of standard deviations, from counts, sums and sums of squares of shape (3, windows).

    A window that hardly varies has the floor that a constant sample has at the check.
    """
    deviations = [
        np.sqrt(np.maximum(side[2] / side[0] - (side[1] / side[0]) ** 2, CONSTANT**2)) for side in (reference, current)
    ]
    ratios: Floats = np.log(deviations[1] / deviations[0])
    return ratios


def _share_squares(hits: Floats, hits_reference: Floats, size: Floats, size_reference: Floats) -> Floats:
    """Squares of a standardised share; 1, as for independent rows, where it is 0 or 1 throughout."""
    total, total_hits = size + size_reference, hits + hits_reference
    expected = size * total_hits / total
    variance = expected * (1 - size / total) * (total - total_hits) / (total - 1)
    return np.where(variance > 0, (hits - expected) ** 2 / np.where(variance > 0, variance, 1.0), 1.0)
