"""Drift: has the world moved away from what the champion was trained on? Pure functions, no file, no clock.

A feature drifts only if its shift is **material** (an effect size above its threshold) and **significant** (a
two-sample test that survives Holm's correction over every test of the data set). Either alone misleads: with many rows
every trifle is significant, with few rows every sample looks different. Both samples are treated as samples.

What cannot be measured is ``unknown``, and unknown is never ``no_drift``.

References
----------
Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
Lin, J. (1991). Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37.
Cochran, W. G. (1954). Some methods for strengthening the common χ² tests. Biometrics 10.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway.params import DriftParams

Status = Literal["drift", "no_drift", "unknown"]
Verdict = Literal["drift", "no_drift", "unknown", "bootstrap"]

MIN_EXPECTED = 5
"""Smallest expected count of a cell for which the χ² distribution is trusted."""
MAX_DRAWN_CELLS = 200_000
"""Bounds the work of one permutation test to a tenth of a second, down to 999 draws."""


class FeatureDrift(BaseModel):
    """What was measured of one feature. A value is None where it could not be measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["numeric", "categorical"]
    status: Status
    test: str
    """``ks`` (two-sample Kolmogorov-Smirnov) or ``chi2`` (two-sample contingency)."""
    effect: float | None = None
    """Numeric: Wasserstein distance in reference standard deviations. Categorical: Jensen-Shannon distance, base 2."""
    effect_threshold: float
    p_value: float | None = None
    p_adjusted: float | None = None
    """``p_value`` after Holm's correction over all tests of the data set."""
    missing_reference: float | None = None
    """Share of missing values in the reference."""
    missing_current: float | None = None
    missing_difference: float | None = None
    """Current minus reference."""
    missing_p_adjusted: float | None = None
    """Holm-corrected p of the two shares being one; None where nothing is missing on either side."""
    unseen_share: float | None = None
    """Categorical: share of the current values that the reference does not hold."""
    n_reference: int
    """Values compared, missing ones not counted."""
    n_current: int
    detail: str
    """One sentence for a person."""


class DriftReport(BaseModel):
    """``reports/drift.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    sentence: str
    features: tuple[FeatureDrift, ...] = ()
    """Largest effect first."""
    drifted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    share: float | None = None
    """Share of all features that drifted; those unknown count as not drifted here, and see ``verdict``."""
    feature_share: float
    """Share from which the data set counts as drifted."""
    rows_reference: int = 0
    rows_current: int = 0
    champion: str | None = None
    """Digest whose reference this was."""

    @property
    def drift(self) -> bool:
        """Whether the data set is known to have drifted."""
        return self.verdict == "drift"


class _Measured(BaseModel):
    """A feature before the correction for multiple tests."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    kind: Literal["numeric", "categorical"]
    effect: float | None = None
    p_value: float | None = None
    missing: tuple[float, float] | None = None
    missing_p: float | None = None
    unseen_share: float | None = None
    n: tuple[int, int] = (0, 0)
    problem: str = ""
    """Why the values could not be compared."""


def measure_drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: DriftParams,
) -> DriftReport:
    """Compare the features of two samples.

    The data set has drifted when the share of drifted features reaches ``params.feature_share``. It is ``unknown``
    when the features that could not be measured might still lift the share that far, and ``no_drift`` only when even
    all of them together could not.

    Parameters
    ----------
    reference : DataFrame of shape (n, ≥ k)
        What the champion was trained on.
    current : DataFrame of shape (m, ≥ k)
        The rows of now.
    numeric, categorical : sequence of str
        Names of the features. A feature that one of the samples lacks is ``unknown``.
    params : DriftParams
        Thresholds; below ``min_rows`` values on either side a feature is ``unknown``.

    Returns
    -------
    DriftReport
        The verdict and the evidence of each feature, sorted by effect relative to its threshold.
    """
    measured = [_measure(name, "numeric", reference, current, params) for name in numeric]
    measured += [_measure(name, "categorical", reference, current, params) for name in categorical]
    adjusted = iter(holm([p for m in measured for p in (m.p_value, m.missing_p) if p is not None]))
    features = []
    for one in measured:
        p_adjusted = next(adjusted) if one.p_value is not None else None
        missing_p_adjusted = next(adjusted) if one.missing_p is not None else None
        features.append(_judge(one, p_adjusted, missing_p_adjusted, params))
    features.sort(key=lambda feature: (-prominence(feature, params), feature.name))
    drifted = tuple(feature.name for feature in features if feature.status == "drift")
    unknown = tuple(feature.name for feature in features if feature.status == "unknown")
    share = len(drifted) / len(features) if features else None
    verdict, sentence = _verdict(len(features), drifted, unknown, params.feature_share)
    return DriftReport(
        verdict=verdict,
        sentence=sentence,
        features=tuple(features),
        drifted=drifted,
        unknown=unknown,
        share=share,
        feature_share=params.feature_share,
        rows_reference=len(reference),
        rows_current=len(current),
    )


def no_reference(reason: str, params: DriftParams) -> DriftReport:
    """The report of a line without a champion: nothing was compared, and that is said."""
    sentence = f"Nothing to compare with: {reason}."
    return DriftReport(verdict="bootstrap", sentence=sentence, feature_share=params.feature_share)


def prominence(feature: FeatureDrift, params: DriftParams) -> float:
    """How far a feature moved in units of its threshold, by values or by missing values; −1 if not measured."""
    moved = [-1.0]
    if feature.effect is not None:
        moved.append(_ratio(feature.effect, feature.effect_threshold))
    if feature.missing_difference is not None:
        moved.append(_ratio(abs(feature.missing_difference), params.missing_effect))
    return max(moved)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted = [0.0] * count
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def numeric_effect(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """Wasserstein-1 distance of two samples in standard deviations of the reference, finite for any finite input.

    A constant reference has no scale of its own: there the standard deviation of both samples together, each with
    half the weight, stands in, so that a constant that moved has effect 2 and one that did not has effect 0.
    """
    from scipy.stats import wasserstein_distance

    distance = float(wasserstein_distance(reference, current))
    scale = float(np.std(reference))
    if scale <= 1e-12 * float(np.max(np.abs(reference))):  # rounding leaves a constant column a tiny spread
        means = float(np.mean(reference)), float(np.mean(current))
        between = (means[0] - means[1]) / 2
        scale = float(np.sqrt((np.var(reference) + np.var(current)) / 2 + between**2))
        if scale <= 1e-12 * max(abs(means[0]), abs(means[1])):
            return 0.0
    return distance / scale


def categorical_effect(counts: NDArray[np.float64]) -> float:
    """Jensen-Shannon distance, base 2, of the two rows of a table of counts: 0 the same, 1 nothing in common."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(counts[0], counts[1], base=2))


def contingency_p(counts: NDArray[np.float64]) -> float:
    """p value of the two-sample χ² test on a table of counts of shape (2, categories).

    Where every expected count reaches ``MIN_EXPECTED`` the χ² distribution serves; with rarer categories it does not
    (Cochran 1954), and pooling them would hide a new one, so there the statistic is compared with tables drawn with
    the same totals: a permutation test, valid at any count, seeded, its p value never below 1 / (draws + 1).
    """
    from scipy.stats import chi2_contingency

    totals = counts.sum(axis=0)
    if counts.shape[1] < 2:
        return 1.0
    smaller = counts.sum(axis=1).min() / counts.sum()
    if totals.min() * smaller >= MIN_EXPECTED:
        return float(chi2_contingency(counts, correction=False).pvalue)
    # With all totals fixed χ² grows with Σ x²/t of either row alone; the shorter row is the cheaper one to draw.
    row = counts[int(np.argmin(counts.sum(axis=1)))]
    observed = float(np.sum(row**2 / totals))
    draws = int(np.clip(MAX_DRAWN_CELLS // len(totals), 999, 9_999))
    generator = np.random.default_rng(0)
    extreme = 0
    for start in range(0, draws, 500):
        drawn = generator.multivariate_hypergeometric(
            totals.astype(np.int64), int(row.sum()), size=min(500, draws - start)
        )
        extreme += int(np.count_nonzero((drawn**2 / totals).sum(axis=1) >= observed * (1 - 1e-12)))
    return (extreme + 1) / (draws + 1)


def _measure(
    name: str,
    kind: Literal["numeric", "categorical"],
    reference: pd.DataFrame,
    current: pd.DataFrame,
    params: DriftParams,
) -> _Measured:
    absent = [side for side, frame in (("reference", reference), ("current data", current)) if name not in frame]
    if absent:
        return _Measured(name=name, kind=kind, problem=f"the {absent[0]} has no such column")
    rows = len(reference), len(current)
    if min(rows) < params.min_rows:
        return _Measured(name=name, kind=kind, n=rows, problem=f"{min(rows)} rows, {params.min_rows} needed")
    values = (_values(reference[name], kind), _values(current[name], kind))
    n = len(values[0]), len(values[1])
    gone = rows[0] - n[0], rows[1] - n[1]
    measured = _Measured(name=name, kind=kind, n=n, missing=(gone[0] / rows[0], gone[1] / rows[1]))
    if sum(gone) > 0:
        from scipy.stats import fisher_exact

        measured.missing_p = float(fisher_exact([[n[0], gone[0]], [n[1], gone[1]]]).pvalue)
    if max(n) == 0:
        # The same on both sides, and surely so: no value then, no value now.
        return measured.model_copy(update={"effect": 0.0, "p_value": 1.0})
    if min(n) < params.min_rows:
        measured.problem = f"{min(n)} values that are not missing, {params.min_rows} needed"
        return measured
    if kind == "numeric":
        from scipy.stats import ks_2samp

        measured.effect = numeric_effect(values[0].to_numpy(), values[1].to_numpy())
        # The exact p takes seconds where both samples are large; from min_rows on the asymptotic one is as good.
        measured.p_value = float(ks_2samp(values[0], values[1], method="asymp").pvalue)
        return measured
    both = pd.DataFrame({"reference": values[0].value_counts(), "current": values[1].value_counts()}).fillna(0)
    counts = both.sort_index().to_numpy(dtype=np.float64).T
    measured.effect = categorical_effect(counts)
    measured.p_value = contingency_p(counts)
    measured.unseen_share = float(counts[1][counts[0] == 0].sum() / n[1])
    return measured


def _values(column: pd.Series, kind: str) -> pd.Series:
    """The values that are there: finite numbers, or categories as text. What is no finite number counts as missing."""
    if kind == "categorical":
        return column.astype("object").dropna().astype(str)
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    return numbers[np.isfinite(numbers)]


def _judge(
    measured: _Measured, p_adjusted: float | None, missing_p_adjusted: float | None, params: DriftParams
) -> FeatureDrift:
    threshold = params.numeric_effect if measured.kind == "numeric" else params.categorical_effect
    difference = measured.missing[1] - measured.missing[0] if measured.missing else None
    values_moved = (
        measured.effect is not None
        and p_adjusted is not None
        and measured.effect >= threshold
        and p_adjusted <= params.alpha
    )
    missing_moved = (
        difference is not None
        and missing_p_adjusted is not None
        and abs(difference) >= params.missing_effect
        and missing_p_adjusted <= params.alpha
    )
    moved = []
    if values_moved:
        moved.append(f"values moved by {measured.effect:.2f} (limit {threshold:g})")
    if missing_moved and measured.missing is not None:
        moved.append(f"missing {measured.missing[0]:.1%} → {measured.missing[1]:.1%}")
    status: Status = "drift" if moved else "unknown" if measured.problem else "no_drift"
    detail = "; ".join([*moved, *([measured.problem] if measured.problem else [])])
    if not detail:
        material = measured.effect is not None and measured.effect >= threshold
        detail = "moved, but no more than chance explains" if material else "no material shift"
    if measured.unseen_share:
        detail += f"; {measured.unseen_share:.1%} in categories the reference does not hold"
    return FeatureDrift(
        name=measured.name,
        kind=measured.kind,
        status=status,
        test="ks" if measured.kind == "numeric" else "chi2",
        effect=measured.effect,
        effect_threshold=threshold,
        p_value=measured.p_value,
        p_adjusted=p_adjusted,
        missing_reference=measured.missing[0] if measured.missing else None,
        missing_current=measured.missing[1] if measured.missing else None,
        missing_difference=difference,
        missing_p_adjusted=missing_p_adjusted,
        unseen_share=measured.unseen_share,
        n_reference=measured.n[0],
        n_current=measured.n[1],
        detail=detail,
    )


def _verdict(count: int, drifted: Sequence[str], unknown: Sequence[str], feature_share: float) -> tuple[Status, str]:
    """Three-valued: the unknown features are taken as drifted, then as not, and the answer must not depend on it."""
    if count == 0:
        return "unknown", "There is no feature to compare."
    share, possible = len(drifted) / count, (len(drifted) + len(unknown)) / count
    found = f"{len(drifted)} of {count} features drifted ({share:.0%}, limit {feature_share:.0%})"
    named = (
        f": {', '.join(drifted[:5])}{f' and {len(drifted) - 5} more' if len(drifted) > 5 else ''}" if drifted else ""
    )
    unmeasured = f"; {len(unknown)} could not be measured" if unknown else ""
    if drifted and share >= feature_share:
        return "drift", f"{found}{named}{unmeasured}."
    if unknown and possible >= feature_share:
        return "unknown", f"{found}{named}{unmeasured}, enough to hide a drift of the data set."
    return "no_drift", f"{found}{named}{unmeasured}."


def _ratio(effect: float, threshold: float) -> float:
    return effect / threshold if threshold > 0 else effect
