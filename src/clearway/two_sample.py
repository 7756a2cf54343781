"""Two-sample tests and effect sizes of one column, from one sort of each sample and the counts of a grid of cells.

Every test here is of the hypothesis that both samples come from the same distribution, and holds its level in the far
tail, where a correction for hundreds of tests looks: approximations are used only where the data bears them, and exact
tails or bounds elsewhere. Cost and memory are linear in the rows.

References
----------
Mann, H. B. & Whitney, D. R. (1947). On a test of whether one of two random variables is stochastically larger than the
other. Annals of Mathematical Statistics 18.
Mood, A. M. (1954). On the asymptotic efficiency of certain nonparametric two-sample tests. Ibid. 25.
Hoeffding, W. (1963). Probability inequalities for sums of bounded random variables. JASA 58. (Section 6: a sum drawn
without replacement obeys the exponential bounds of one drawn with.)
Joag-Dev, K. & Proschan, F. (1983). Negative association of random variables. Annals of Statistics 11.
Cochran, W. G. (1954). Some methods for strengthening the common χ² tests. Biometrics 10.
Rao, J. N. K. & Scott, A. J. (1984). On chi-squared tests for multiway contingency tables with cell proportions
estimated from survey data. Annals of Statistics 12.
Lin, J. (1991). Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import fdtrc, gammaincc, gammaln, kolmogorov, logsumexp, ndtr, ndtri_exp, stdtr

from clearway.calibration import CONSTANT, FeatureCalibration
from clearway.drift import AspectName, Kind, Test
from clearway.params import DriftParams

Floats = NDArray[np.float64]

FEWEST_POINTS, MOST_POINTS = 2_048, 16_384
"""Order statistics of each sample that bound the cells of large ones. Between them a cumulative share is known to the
inverse of their number; so many are taken that this is below a hundredth of the smaller sample's own noise."""
OUTERMOST = 512
"""Values at either end that have a cell of their own: tails weigh more than their share of the rows."""
POOLED = 10
"""Expected count below which categories are tested together (Cochran asks for 5; the far tail needs more)."""
MANY = 500
"""Expected count from which a share is as good as normal, four standard deviations out."""
KOLMOGOROV_MEAN_SQUARE = math.pi**2 / 12
"""Mean of the square of Kolmogorov's distribution."""


@dataclass(frozen=True)
class Inflation:
    """What dependence between rows does to a statistic; the default is none.

    Attributes
    ----------
    factor : float
        Its mean square over that of independent rows.
    windows : float
        Windows that this was estimated from: the degrees of freedom of the estimate.
    degrees : float
        Degrees of freedom that the statistic itself keeps, at most; for χ², whose cells move together.
    reached : float
        The largest square, over the mean square of independent rows, that one of the windows reached. A sample that
        stays within it is one of at least ``windows + 1`` such, whatever the tail of the statistic: a storm now and
        then makes it heavier than Student's.
    """

    factor: float = 1.0
    windows: float = math.inf
    degrees: float = math.inf
    reached: float = 0.0

    def weaken(self, p: float, p_dependent: float, square: float) -> float:
        """The p value of dependent rows, never below ``p``, that of independent ones.

        ``p_dependent`` holds the statistic against its inflation; ``square`` is its square over the mean square of
        independent rows.
        """
        rank = 1 / (self.windows + 1) if square <= self.reached else 0.0
        return max(p, p_dependent, rank)


INDEPENDENT = Inflation()


@dataclass(frozen=True)
class Found:
    """One aspect of one column, before the correction for multiple tests."""

    aspect: AspectName
    test: Test
    effect: float
    p_value: float
    inflation: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """All aspects of one column that could be measured."""

    name: str
    kind: Kind
    found: tuple[Found, ...] = ()
    missing: tuple[float, float] | None = None
    """Share of missing values in reference and current."""
    n: tuple[int, int] = (0, 0)
    """Values that are there, of reference and current."""
    problem: str = ""
    """Why the values could not be compared."""


@dataclass(frozen=True)
class Score:
    """A linear rank statistic: the mean score of the smaller sample, held against a random split of both.

    Attributes
    ----------
    z : float
        Its standardised distance from the mean over all splits, positive where the current sample scores higher.
    bound : float
        Where the normal approximation does not hold: ``sqrt(-2 ln(p / 2))`` of a bound p of its two-sided tail. NaN
        where it holds.
    """

    z: float
    bound: float = math.nan


@dataclass(frozen=True)
class RankTests:
    """What the cell counts of two samples of numbers tell."""

    lam: float
    """Kolmogorov-Smirnov distance times the root of the effective size, n m / (n + m)."""
    location: Score
    """Mann-Whitney with its correction for ties."""
    spread: Score
    """Mood's test on mid-ranks."""


@dataclass(frozen=True)
class Table:
    """A contingency table of two rows whose rarest categories are tested together."""

    statistic: float
    """χ², of independent rows about ``degrees``."""
    degrees: int
    """Cells less one; 0 where there is nothing to compare."""
    log_p: float
    """Natural logarithm of the p value for independent rows."""


def compare(
    name: str,
    kind: Kind,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    params: DriftParams,
    noise: FeatureCalibration | None = None,
) -> Comparison:
    """Measure every aspect of one column of two samples.

    Parameters
    ----------
    name : str
        The column; one that a sample lacks is a ``problem``.
    kind : str
        ``numeric`` or ``categorical``.
    reference, current : DataFrame
    params : DriftParams
        Only ``min_rows`` is read.
    noise : FeatureCalibration, optional
        How much more windows of the reference differ than independent rows would.
    """
    absent = [side for side, frame in (("reference", reference), ("current data", current)) if name not in frame]
    if absent:
        return Comparison(name, kind, problem=f"the {absent[0]} has no such column")
    rows = len(reference), len(current)
    if min(rows) < params.min_rows:
        return Comparison(name, kind, n=rows, problem=f"{min(rows)} rows, {params.min_rows} needed")
    found: list[Found]
    if kind == "numeric":
        single = holds_float32(reference[name]) or holds_float32(current[name])
        numbers = ordered(reference[name], single=single), ordered(current[name], single=single)
        n = len(numbers[0]), len(numbers[1])
        enough = min(n) >= params.min_rows
        found = compare_numbers(*numbers, noise, rows[1]) if enough else []
    else:
        counts = count_categories(reference[name], current[name])
        n = int(counts[0].sum()), int(counts[1].sum())
        enough = min(n) >= params.min_rows
        found = compare_categories(counts, noise, rows[1]) if enough else []
    gone = rows[0] - n[0], rows[1] - n[1]
    if sum(gone) > 0:
        found.append(compare_missing(gone, rows, noise))
    # No value then and no value now is the same on both sides, and surely so.
    problem = "" if enough or max(n) == 0 else f"{min(n)} values that are not missing, {params.min_rows} needed"
    return Comparison(name, kind, tuple(found), (gone[0] / rows[0], gone[1] / rows[1]), n, problem)


def ordered(column: pd.Series, *, single: bool = False) -> NDArray[Any]:
    """The finite numbers of a column in ascending order; whatever else it holds is missing. ``single``: as float32."""
    values = np.sort(numbers_of(column, single=single))
    # NaN sorts last, the infinities before it and first.
    first, last = np.searchsorted(values, [-np.inf, np.inf], side="right")[0], np.searchsorted(values, np.inf)
    return values[first:last]


def numbers_of(column: pd.Series, *, single: bool = False) -> NDArray[Any]:
    """The numbers of a column, float32 or float64, in its order; what is no number is NaN. ``single``: as float32."""
    if column.dtype == np.float32 or column.dtype == np.float64:
        values = column.to_numpy()
    else:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if not single:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def holds_float32(column: pd.Series) -> bool:
    """Whether a column is of single precision: 0.1 is another number there, and the same as 0.1 elsewhere."""
    return column.dtype.kind == "f" and getattr(column.dtype, "itemsize", 8) == 4


def count_categories(reference: pd.Series, current: pd.Series) -> Floats:
    """How often each category, read as text, occurs: shape (2, categories), in the order of the text."""
    sides = [_named_counts(side) for side in (reference, current)]
    names = sorted({*sides[0], *sides[1]})
    return np.array([[side.get(name, 0) for name in names] for side in sides], dtype=np.float64).reshape(2, -1)


def compare_numbers(
    reference: NDArray[Any], current: NDArray[Any], noise: FeatureCalibration | None = None, rows: int = 0
) -> list[Found]:
    """Distribution, mean and spread of two samples of finite numbers, each in ascending order.

    ``rows`` are those of the current window, missing values counted; only ``noise`` is looked up by it.
    """
    largest = max(abs(float(end)) for side in (reference, current) for end in (side[0], side[-1]))
    if not 1e-50 < largest < 1e50 and largest > 0:  # fourth powers would overflow; every result is free of the unit
        reference, current, largest = reference / largest, current / largest, 1.0
    edges, counts = cells(reference, current)
    n, m = len(reference), len(current)
    means = float(np.mean(reference, dtype=np.float64)), float(np.mean(current, dtype=np.float64))
    variances = float(np.var(reference, dtype=np.float64)), float(np.var(current, dtype=np.float64))
    scale, floor = scale_of(means, variances, largest)
    tests = rank_tests(counts)

    apart = np.abs(np.cumsum(counts[0])[:-1] / n - np.cumsum(counts[1])[:-1] / m)
    moved = abs(means[1] - means[0])
    # The distance is never below that of the means; the grid of a large sample may lose the last digits of it.
    distance = max(float(apart @ np.diff(edges)), moved)
    inflation = _inflation(noise, "distribution", rows)
    p = ks_p(tests.lam, inflation)
    found = [Found("distribution", "ks", distance / scale if scale else 0.0, p, inflation.factor)]

    inflation = _inflation(noise, "mean", rows)
    test: Test = "mann_whitney"
    p = score_p(tests.location, inflation)
    error = variances[0] / (n - 1) + variances[1] / (m - 1)
    if scale and error > 0 and min(n, m) >= size_for_normal(edges, counts.sum(axis=0)):
        test = "welch"
        parts = variances[0] / (n - 1), variances[1] / (m - 1)
        freedom = error**2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
        p = t_p(moved / math.sqrt(error), freedom)
        # A short window of dependent rows may hardly vary at all: its own variance says nothing of its mean's.
        square = moved**2 / (((n * variances[0] + m * variances[1]) / (n + m)) * (1 / n + 1 / m))
        p = inflation.weaken(p, t_p(math.sqrt(square / inflation.factor), inflation.windows), square)
    found.append(Found("mean", test, moved / scale if scale else 0.0, p, inflation.factor))

    deviations = [max(math.sqrt(variance), floor) for variance in variances]
    spread = abs(math.log(deviations[1] / deviations[0])) if floor > 0 else 0.0
    inflation = _inflation(noise, "spread", rows)
    p = score_p(tests.spread, inflation)
    usual = noise.spread_at(rows) if noise is not None else None
    if usual is not None and usual.deviation > 0:
        # Ranks hardly tell a column that has become constant from a calm week; its standard deviation does.
        # No further than the calibration tells a constant window: calm days that are one are in it.
        ratio = min(spread, -math.log(CONSTANT))
        by_ratio = max(score_p(tests.spread), t_p(ratio / usual.deviation, usual.windows))
        if ratio <= usual.reached + 0.1:
            by_ratio = max(by_ratio, 1 / (usual.windows + 1))
        p = min(1.0, 2 * min(p, by_ratio))
    found.append(Found("spread", "mood", spread, p, inflation.factor))
    return found


def compare_categories(counts: Floats, noise: FeatureCalibration | None = None, rows: int = 0) -> list[Found]:
    """Distribution and unseen mass of two samples of categories, given as counts of shape (2, categories).

    ``rows`` as in :func:`compare_numbers`.
    """
    inflation = _inflation(noise, "distribution", rows)
    p = table_p(table(counts), inflation)
    found = [Found("distribution", "chi2", jensen_shannon(counts), p, inflation.factor)]
    share = float(counts[1][counts[0] == 0].sum() / counts[1].sum())
    p = unseen_p(counts)
    usual = noise.unseen_at(rows) if noise is not None else None
    if usual is not None and usual.deviation > 0:
        z = (share - usual.mean) / (usual.deviation * math.sqrt(1 + 1 / usual.windows))
        p = max(p, float(stdtr(usual.windows - 1, -z)))
    return [*found, Found("unseen", "unseen_mass", share, p)]


def compare_missing(gone: tuple[int, int], rows: tuple[int, int], noise: FeatureCalibration | None = None) -> Found:
    """The share of missing values of two samples, given as counts of reference and current."""
    inflation = _inflation(noise, "missing", rows[1])
    log_p, exact = share_log_p(gone[1], sum(gone), rows[1], sum(rows))
    z = equivalent_z(log_p)
    p = inflation.weaken(math.exp(log_p), t_p(z / math.sqrt(inflation.factor), inflation.windows), z**2)
    effect = abs(gone[1] / rows[1] - gone[0] / rows[0])
    return Found("missing", "fisher" if exact else "z", effect, p, inflation.factor)


def cells(reference: NDArray[Any], current: NDArray[Any]) -> tuple[Floats, Floats]:
    """Cut two ascending samples into cells that end at values of both.

    Returns
    -------
    edges : array of shape (cells,)
        The largest value of each cell, ascending.
    counts : array of shape (2, cells)
        Values of reference and current in each: above the edge before, up to its own.
    """
    points = int(np.clip(128 * math.sqrt(min(len(reference), len(current))), FEWEST_POINTS, MOST_POINTS))
    edges = np.unique(np.concatenate([_order_statistics(side, points) for side in (reference, current)]))
    within = [
        np.searchsorted(side, edges.astype(side.dtype, copy=False), side="right") for side in (reference, current)
    ]
    return edges.astype(np.float64), np.diff(np.array(within, dtype=np.float64), axis=1, prepend=0.0)


def scale_of(means: tuple[float, float], variances: tuple[float, float], largest: float) -> tuple[float, float]:
    """The unit of effects, and the standard deviation below which a sample counts as constant.

    The unit is the reference's standard deviation. A constant reference has none: there the standard deviation of both
    samples together, each with half the weight, stands in, so that a constant that moved has effect 2 and one that did
    not has effect 0, for then the unit is 0.
    """
    floor = 1e-12 * largest  # rounding leaves a constant column a tiny spread
    scale = math.sqrt(variances[0])
    if scale <= floor:
        scale = math.sqrt((variances[0] + variances[1]) / 2 + ((means[0] - means[1]) / 2) ** 2)
    return (scale if scale > floor else 0.0), floor


def rank_tests(counts: Floats) -> RankTests:
    """Kolmogorov-Smirnov, Mann-Whitney and Mood on cell counts of shape (2, cells); values of a cell count as tied."""
    n, m = counts.sum(axis=1)
    pooled = counts[0] + counts[1]
    apart = np.cumsum(counts[0]) / n - np.cumsum(counts[1]) / m
    lam = float(np.max(np.abs(apart))) * math.sqrt(n * m / (n + m))
    middle = (np.cumsum(pooled) - pooled / 2) / (n + m) - 0.5
    return RankTests(lam, score(middle, counts), score(middle * middle, counts))


def score(scores: Floats, counts: Floats) -> Score:
    """A linear rank statistic of two samples, given the score of each cell and counts of shape (2, cells)."""
    pooled = counts[0] + counts[1]
    n, m = float(counts[0].sum()), float(counts[1].sum())
    total = n + m
    centred = scores - float(scores @ pooled) / total
    variance = float((centred * centred) @ pooled) / total
    if variance <= 1e-24:  # scores are of the order of 1: all values are tied
        return Score(0.0)
    # The smaller sample decides; the larger one is what it leaves.
    size, mean = (m, float(centred @ counts[1]) / m) if m <= n else (n, float(centred @ counts[0]) / n)
    z = mean / math.sqrt(variance / size * (total - size) / (total - 1))
    signed = z if m <= n else -z
    if size >= size_for_normal(centred, pooled):
        return Score(signed)
    return Score(
        signed, _exponential_bound(centred / math.sqrt(variance), pooled / total, mean / math.sqrt(variance), size)
    )


def rank_squares(reference: Floats, current: Floats) -> tuple[Floats, Floats, Floats]:
    """``lam`` and the squares of ``location`` and ``spread`` of :func:`rank_tests`, for many pairs of samples at once.

    Counts have the shape (pairs, cells); the results (pairs,).
    """
    n, m = reference.sum(axis=1, keepdims=True), current.sum(axis=1, keepdims=True)
    pooled, total = reference + current, n + m
    ranks = np.cumsum(pooled, axis=1)
    ours = np.cumsum(current, axis=1)
    lam = np.abs((ranks - ours) / n - ours / m).max(axis=1, initial=0.0) * np.sqrt(n * m / total)[:, 0]
    middle = (ranks - pooled / 2) / total - 0.5
    squares = []
    for scores in (middle, middle * middle):
        centred = scores - (scores * pooled).sum(axis=1, keepdims=True) / total
        variance = (centred * centred * pooled).sum(axis=1) / total[:, 0]
        error = variance / m[:, 0] * n[:, 0] / (total[:, 0] - 1)
        mean = (centred * current).sum(axis=1) / m[:, 0]
        squares.append(np.where(variance > 1e-24, mean**2 / np.where(variance > 1e-24, error, 1.0), 0.0))
    return lam, squares[0], squares[1]


def size_for_normal(values: Floats, weights: Floats) -> float:
    """How many draws from these values have a mean as good as normal, four standard deviations out.

    By the terms of the Edgeworth series: 400 times the squared skewness, or 100 times the excess kurtosis if that is
    more. Simulated on exponential and lognormal samples, a two-sided p value of 0.01 is then true to 7% of it, one of
    1e-4 to a factor of two. Infinite where the moments overflow or nothing varies.
    """
    total = float(weights.sum())
    if total == 0:
        return math.inf
    # Sums of products, not BLAS: its threads wait for each other where cores are shared.
    centred = values - float((values * weights).sum()) / total
    weighted = centred * centred * weights
    variance = float(weighted.sum()) / total
    if variance <= 0 or not math.isfinite(variance * variance):
        return math.inf
    weighted *= centred
    skewness = float(weighted.sum()) / total / variance**1.5
    weighted *= centred
    kurtosis = float(weighted.sum()) / total / variance**2 - 3
    return float(max(400 * skewness**2, 100 * kurtosis))


def table(counts: Floats) -> Table:
    """χ² of two samples of categories, counts of shape (2, categories), valid in the far tail at any count.

    Categories too rare for it are tested together with others as rare, by their count in both samples, which chance
    does not divide; if there are too few even so, all of them as one share, exactly, beside the χ² of the others. The
    χ² statistic is held against the Pearson III distribution with the first three moments that its own expected counts
    give it, not against the χ² distribution, whose tail is too light where counts are small.
    """
    totals = counts.sum(axis=0)
    occupied = totals > 0
    counts, totals = counts[:, occupied], totals[occupied]
    sizes = counts.sum(axis=1)
    total = float(sizes.sum())
    if len(totals) < 2 or sizes.min() == 0:
        return Table(0.0, 0, 0.0)
    q = float(sizes.min()) / total
    row = counts[int(np.argmin(sizes))]
    rare = totals * q < POOLED
    cells_totals, cells_row = totals[~rare], row[~rare]
    pile: tuple[float, float] | None = None
    if rare.any():
        order = np.argsort(totals[rare], kind="stable")
        grouped = _group(totals[rare][order], row[rare][order], POOLED / q)
        if grouped is None and len(cells_totals):
            pile = float(totals[rare].sum()), float(row[rare].sum())
        elif grouped is not None:
            cells_totals = np.concatenate([cells_totals, grouped[0]])
            cells_row = np.concatenate([cells_row, grouped[1]])
        else:
            cells_totals, cells_row = totals, row
    statistic, degrees, log_p = _cells_test(cells_totals, cells_row)
    if pile is None:
        return Table(statistic, degrees, log_p)
    rare_total, rare_row = pile
    pile_log_p, _ = share_log_p(int(rare_row), int(rare_total), int(sizes.min()), int(total))
    combined = min(0.0, math.log(2) + min(log_p, pile_log_p)) if degrees else pile_log_p
    expected = rare_total * q
    spread = expected * (1 - q) * (total - rare_total) / (total - 1)
    return Table(statistic + (rare_row - expected) ** 2 / spread, degrees + 1, combined)


def jensen_shannon(counts: Floats) -> float:
    """Jensen-Shannon distance, base 2, of the two rows of a table of counts: 0 the same, 1 nothing in common."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    middle = shares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log2(shares / middle), 0.0)
    return math.sqrt(min(1.0, max(0.0, float(terms.sum()) / 2)))


def unseen_p(counts: Floats) -> float:
    """How often a random split of both samples leaves as many current values without their category in the reference.

    Which categories are new is the data's own choice, so a table of new against known would cry wolf wherever single
    rows are their own category. Here every category counts: that all of its rows fall on the current side has a known
    chance, these events are negatively associated (Joag-Dev & Proschan 1983), and so the exponential bound for
    independent ones holds: p is a bound, never too small.
    """
    n, m = counts.sum(axis=1)
    observed = float(counts[1][counts[0] == 0].sum())
    if observed == 0:
        return 1.0
    totals, many = np.unique(counts.sum(axis=0), return_counts=True)
    many, totals = many[(totals > 0) & (totals <= m)], totals[(totals > 0) & (totals <= m)]
    log_chance = gammaln(m + 1) - gammaln(m - totals + 1) - gammaln(n + m + 1) + gammaln(n + m - totals + 1)
    log_chance = np.minimum(log_chance, 0.0)
    if float((many * totals) @ np.exp(log_chance)) >= observed:
        return 1.0
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_chance))
    tilt = np.geomspace(1e-5, 60.0, 300)[:, None]
    generating = np.logaddexp(log_rest, log_chance + tilt * totals) @ many
    return math.exp(-max(0.0, float(np.max(tilt[:, 0] * observed - generating))))


def share_log_p(hits: int, hits_total: int, size: int, total: int) -> tuple[float, bool]:
    """Log p value of a share: ``hits`` of ``size`` rows where ``hits_total`` of ``total`` have it, and if it is exact.

    Two-sided. Fisher's exact test while the smallest expected count stays below ``MANY``, the normal distribution with
    the hypergeometric variance from there on.
    """
    if size > total - size:
        hits, size = hits_total - hits, total - size
    if hits_total > total - hits_total:
        hits, hits_total = size - hits, total - hits_total
    expected = size * hits_total / total
    if hits_total == 0 or size == 0:
        return 0.0, True
    if expected >= MANY:
        variance = expected * (1 - size / total) * (total - hits_total) / (total - 1)
        return _log_normal_p(abs(hits - expected) / math.sqrt(variance)), False
    possible = np.arange(max(0, size + hits_total - total), min(size, hits_total) + 1, dtype=np.float64)
    log_chance = _log_choose(hits_total, possible) + _log_choose(total - hits_total, size - possible)
    log_chance -= logsumexp(log_chance)
    observed = log_chance[int(hits - possible[0])]
    return min(0.0, float(logsumexp(log_chance[log_chance <= observed + 1e-7]))), True


def ks_p(lam: float, inflation: Inflation = INDEPENDENT) -> float:
    """Two-sided p of a Kolmogorov-Smirnov statistic; asymptotic, which errs to the safe side in small samples."""
    p, weakened = float(kolmogorov(lam)), lam / math.sqrt(inflation.factor)
    # Far out its tail is 2 exp(-2 λ²), below what a float holds.
    log_p = math.log(kolmogorov(weakened)) if weakened < 15 else math.log(2) - 2 * weakened**2
    return inflation.weaken(p, t_p(equivalent_z(log_p), inflation.windows), lam**2 / KOLMOGOROV_MEAN_SQUARE)


def score_p(found: Score, inflation: Inflation = INDEPENDENT) -> float:
    """Two-sided p of a linear rank statistic."""
    exact = math.isnan(found.bound)
    p = t_p(found.z, math.inf) if exact else min(1.0, 2 * math.exp(-(found.bound**2) / 2))
    z = abs(found.z) if exact else found.bound
    return inflation.weaken(p, t_p(z / math.sqrt(inflation.factor), inflation.windows), found.z**2)


def table_p(found: Table, inflation: Inflation = INDEPENDENT) -> float:
    """p of a contingency table; with dependent rows after Rao & Scott (1984), the inflation being an estimate."""
    p = math.exp(found.log_p)
    if found.degrees == 0 or math.isinf(inflation.windows):
        return p
    degrees, square = min(float(found.degrees), inflation.degrees), found.statistic / found.degrees
    return inflation.weaken(p, float(fdtrc(degrees, inflation.windows * degrees, square / inflation.factor)), square)


def t_p(z: float, freedom: float) -> float:
    """Two-sided p of Student's t, the normal distribution where ``freedom`` is infinite."""
    return float(min(1.0, 2 * (ndtr(-abs(z)) if math.isinf(freedom) else stdtr(freedom, -abs(z)))))


def equivalent_z(log_p: float) -> float:
    """The normal deviate with this two-sided log p; 0 for p = 1, finite for any p."""
    return float(-ndtri_exp(log_p - math.log(2))) if log_p < 0 else 0.0


def _inflation(noise: FeatureCalibration | None, aspect: AspectName, rows: int) -> Inflation:
    return noise.at(aspect, rows) if noise is not None else INDEPENDENT


def _named_counts(column: pd.Series) -> dict[str, int]:
    counted = column.value_counts(dropna=True)
    counts: dict[str, int] = {}
    for value, count in zip(counted.index, counted.to_numpy(), strict=True):
        if count > 0:  # a categorical column counts the categories it does not hold
            name = as_category(value)
            counts[name] = counts.get(name, 0) + int(count)
    return counts


def as_category(value: Any) -> str:
    """The category that a value is: 1 and 1.0 are one, for a null elsewhere in the column makes integers floats."""
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _order_statistics(values: NDArray[Any], points: int) -> NDArray[Any]:
    if len(values) <= points + 2 * OUTERMOST:
        return values
    spaced = np.linspace(0, len(values) - 1, points).astype(np.int64)
    return np.concatenate([values[:OUTERMOST], values[spaced], values[-OUTERMOST:]])


def _exponential_bound(scores: Floats, weights: Floats, mean: float, size: float) -> float:
    """``sqrt(-2 ln(p / 2))`` of Chernoff's bound p for the mean of ``size`` draws (Hoeffding 1963, section 6)."""
    if mean < 0:
        scores, mean = -scores, -mean
    # The exponent is concave in the tilt: Newton within a bracket. Any tilt gives a valid bound, so to stop early only
    # errs to the safe side.
    low, high, best = 0.0, 700.0 / float(np.max(np.abs(scores))), 0.0
    tilt = min(mean, high) / max(1.0, mean * float(np.max(scores)))
    for _ in range(40):
        weighted = weights * np.exp(tilt * scores)
        generating = float(weighted.sum())
        best = max(best, tilt * mean - math.log(generating))
        weighted *= scores
        first = float(weighted.sum()) / generating
        second = float((weighted * scores).sum()) / generating - first**2
        low, high = (tilt, high) if first < mean else (low, tilt)
        if (mean - first) ** 2 < 2e-3 * best * second or high - low < 1e-6 * high:
            break
        step = tilt + (mean - first) / second if second > 0 else high
        tilt = step if low < step < high else (low + high) / 2
    return math.sqrt(2 * size * best)


def _group(totals: Floats, row: Floats, least: float) -> tuple[Floats, Floats] | None:
    """Join neighbours until each group holds ``least``; None where all of them together do not."""
    if totals.sum() < least:
        return None
    starts, held = [0], 0.0
    for position, count in enumerate(totals):
        if held >= least:
            starts.append(position)
            held = 0.0
        held += count
    if held < least:
        starts.pop()
    return np.add.reduceat(totals, starts), np.add.reduceat(row, starts)


def _cells_test(totals: Floats, row: Floats) -> tuple[float, int, float]:
    """χ², its degrees of freedom and its log p, for one row of the table and the totals of its columns."""
    count, total, size = len(totals), float(totals.sum()), float(row.sum())
    if count < 2 or size in (0.0, total):
        return 0.0, 0, 0.0
    q = size / total
    variance = totals * q * (1 - q)
    statistic = float(np.sum((row - totals * q) ** 2 / variance)) * (total - 1) / total
    if count == 2:
        return statistic, 1, share_log_p(int(row[0]), int(totals[0]), int(size), int(total))[0]
    # Moments of a squared standardised binomial from its cumulants; the fixed sum takes one of the cells away.
    third = (1 - 2 * q) ** 2 / variance
    fourth = (1 - 6 * q * (1 - q)) / variance
    sixth = (1 - 30 * q * (1 - q) + 120 * (q * (1 - q)) ** 2) / variance**2
    power4 = 3 + fourth
    power6 = 15 + 15 * fourth + 10 * third + sixth
    free = (count - 1) / count
    second_moment = float(np.sum(power4 - 1)) * free
    third_moment = float(np.sum(power6 - 3 * power4 + 2)) * free
    skewness = max(third_moment / second_moment**1.5, 0.05)
    shape, scale = 4 / skewness**2, math.sqrt(second_moment) * skewness / 2
    p = float(gammaincc(shape, max(0.0, (statistic - (count - 1)) / scale + shape)))
    return statistic, count - 1, math.log(max(p, 1e-300))


def _log_normal_p(z: float) -> float:
    from scipy.special import log_ndtr

    return min(0.0, float(log_ndtr(-z)) + math.log(2))


def _log_choose(n: float, k: Floats) -> Floats:
    chosen: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return chosen
