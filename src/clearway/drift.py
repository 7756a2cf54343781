"""Drift: has the world moved away from what the champion was trained on? Pure functions, no file, no clock.

Of each feature several **aspects** are compared: a number's distribution, mean, spread and missing values; a category's
distribution, the values in categories never seen before, and missing values. An aspect drifts only if its shift is
**material** (an effect at or above its limit) and **significant** (a two-sample test that survives Holm's correction
over every aspect of every column). Either alone misleads: with many rows every trifle is significant, with few rows
every sample looks different. Both samples are treated as samples.

Rows in time order are not independent: a week shares its weather. Where a calibration is given (see
:mod:`clearway.calibration`), each test is weakened by what contiguous windows of the reference itself show.

What cannot be measured is ``unknown``, and unknown is never ``no_drift``.

References
----------
Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from clearway.domain import DomainDrift
from clearway.params import DriftParams
from clearway.performance_estimate import PerformanceEstimate

if TYPE_CHECKING:
    import pandas as pd

    from clearway.calibration import Calibration
    from clearway.two_sample import Comparison

Status = Literal["drift", "no_drift", "unknown"]
Verdict = Literal["drift", "no_drift", "unknown", "bootstrap"]
Kind = Literal["numeric", "categorical"]
AspectName = Literal["distribution", "mean", "spread", "unseen", "missing"]
Test = Literal["ks", "welch", "mann_whitney", "mood", "chi2", "fisher", "z", "unseen_mass"]


class Aspect(BaseModel):
    """One way in which a feature can move, and how far it did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AspectName
    test: Test
    """``ks`` Kolmogorov-Smirnov; ``welch`` or, where its approximation does not hold, ``mann_whitney``; ``mood`` on
    mid-ranks; ``chi2`` on a contingency table; ``fisher`` exact, or ``z`` with many missing values; ``unseen_mass``
    against random splits of both samples."""
    effect: float
    """distribution: Wasserstein distance in reference standard deviations, or Jensen-Shannon distance, base 2. mean:
    difference in reference standard deviations. spread: log ratio of the standard deviations. unseen: share of the
    current values. missing: difference of the shares. Never negative."""
    limit: float
    """Effect from which the shift is material."""
    p_value: float
    """Chance of such a statistic where nothing changed, autocorrelation accounted for."""
    p_adjusted: float
    """``p_value`` after Holm's correction over all aspects of the data set."""
    inflation: float = 1.0
    """Variance of the statistic over that of independent rows, from the calibration; 1 without one."""
    drifted: bool

    @property
    def material(self) -> bool:
        """Whether the effect reaches its limit; no effect at all is never material."""
        return self.effect > 0 and self.effect >= self.limit

    @property
    def prominence(self) -> float:
        """The effect in units of its limit; the effect itself where the limit is 0."""
        return self.effect / self.limit if self.limit > 0 else self.effect


class FeatureDrift(BaseModel):
    """What was measured of one feature. A value is None where it could not be measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    status: Status
    aspects: tuple[Aspect, ...] = ()
    """In the order distribution, mean, spread, unseen, missing; those that could not be measured are left out."""
    missing_reference: float | None = None
    """Share of missing values in the reference."""
    missing_current: float | None = None
    n_reference: int
    """Values compared, missing ones not counted."""
    n_current: int
    detail: str
    """One sentence for a person."""

    @property
    def leading(self) -> Aspect | None:
        """The aspect that moved most in units of its limit, one that drifted before any that did not."""
        return max(self.aspects, key=lambda aspect: (aspect.drifted, aspect.prominence), default=None)

    @property
    def prominence(self) -> float:
        """How far the feature moved in units of its limits, by the aspect that moved most; −1 if not measured."""
        return max((aspect.prominence for aspect in self.aspects), default=-1.0)

    @property
    def effect(self) -> float | None:
        """Effect of the leading aspect."""
        return self.leading.effect if self.leading else None

    @property
    def effect_threshold(self) -> float | None:
        """Limit of the leading aspect."""
        return self.leading.limit if self.leading else None

    def aspect(self, name: AspectName) -> Aspect | None:
        """The named aspect; None where it was not measured."""
        return next((aspect for aspect in self.aspects if aspect.name == name), None)


class DriftReport(BaseModel):
    """``reports/drift.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    sentence: str
    features: tuple[FeatureDrift, ...] = ()
    """Largest effect in units of its limit first."""
    outputs: tuple[FeatureDrift, ...] = ()
    """The model's scores and, where known, the labels: tested with the features, not counted among them."""
    domain: DomainDrift | None = None
    """A classifier's attempt to tell the samples apart; None where it was not asked."""
    estimate: PerformanceEstimate | None = None
    """The champion's expected metrics on the current rows, from its scores alone; it decides nothing."""
    season: str = ""
    """How the reference was matched to the current season, for a person; empty where it was not asked for."""
    drifted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    share: float | None = None
    """Share of all features that drifted; those unknown count as not drifted here, and see ``verdict``."""
    feature_share: float
    """Share from which the data set counts as drifted."""
    feature_count: int | None = None
    """Number of drifted features from which the data set counts as drifted; None: the share alone counts."""
    tests: int = 0
    """Tests in Holm's family."""
    calibrated: bool = False
    """Whether the autocorrelation of the reference was accounted for."""
    rows_reference: int = 0
    rows_current: int = 0
    champion: str | None = None
    """Digest whose reference this was."""

    @property
    def drift(self) -> bool:
        """Whether the data set is known to have drifted."""
        return self.verdict == "drift"


def measure_drift(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: DriftParams,
    *,
    calibration: "Calibration | None" = None,
    outputs: Mapping[str, Kind] | None = None,
    domain: DomainDrift | None = None,
) -> DriftReport:
    """Compare the features of two samples.

    The data set has drifted when the share of drifted features reaches ``params.feature_share``, their number
    ``params.feature_count``, or the domain classifier tells the samples apart. It is ``unknown`` when what could not
    be measured might still do so, and ``no_drift`` only when it could not.

    Parameters
    ----------
    reference : DataFrame of shape (n, ≥ k)
        What the champion was trained on.
    current : DataFrame of shape (m, ≥ k)
        The rows of now.
    numeric, categorical : sequence of str
        Names of the features. A feature that one of the samples lacks is ``unknown``.
    params : DriftParams
        Limits; below ``min_rows`` values on either side a feature is ``unknown``.
    calibration : Calibration, optional
        Made with the reference, for rows in time order. Without one the rows count as independent.
    outputs : mapping of str to kind, optional
        Columns tested in the same family, but not counted as features: ``{"score": "numeric"}``.
    domain : DomainDrift, optional
        What the domain classifier found.

    Returns
    -------
    DriftReport
        The verdict and the evidence of each feature, sorted by effect relative to its limit.
    """
    from clearway.two_sample import compare

    columns: list[tuple[str, Kind, bool]] = [(name, "numeric", False) for name in numeric]
    columns += [(name, "categorical", False) for name in categorical]
    columns += [(name, kind, True) for name, kind in (outputs or {}).items()]
    compared = []
    for name, kind, output in columns:
        noise = calibration.of(name, output=output) if calibration is not None else None
        then, now = (_known(reference, name), _known(current, name)) if output else (reference, current)
        compared.append(compare(name, kind, then, now, params, noise))
    adjusted = iter(holm([found.p_value for one in compared for found in one.found]))
    judged = [
        (_judge(one, [next(adjusted) for _ in one.found], params), output)
        for one, (_, _, output) in zip(compared, columns, strict=True)
    ]
    features = sorted((f for f, output in judged if not output), key=lambda f: (-f.prominence, f.name))
    drifted = tuple(feature.name for feature in features if feature.status == "drift")
    unknown = tuple(feature.name for feature in features if feature.status == "unknown")
    verdict, sentence = _verdict(len(features), drifted, unknown, params, domain)
    return DriftReport(
        verdict=verdict,
        sentence=sentence,
        features=tuple(features),
        outputs=tuple(feature for feature, output in judged if output),
        domain=domain,
        drifted=drifted,
        unknown=unknown,
        share=len(drifted) / len(features) if features else None,
        feature_share=params.feature_share,
        feature_count=params.feature_count,
        tests=sum(len(one.found) for one in compared),
        calibrated=calibration is not None and calibration.measured,
        rows_reference=len(reference),
        rows_current=len(current),
    )


def no_reference(reason: str, params: DriftParams) -> DriftReport:
    """The report of a line without a champion: nothing was compared, and that is said."""
    sentence = f"Nothing to compare with: {reason}."
    return DriftReport(
        verdict="bootstrap",
        sentence=sentence,
        feature_share=params.feature_share,
        feature_count=params.feature_count,
    )


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


def limit(kind: Kind, aspect: AspectName, params: DriftParams) -> float:
    """Effect from which the aspect of a feature of this kind has moved materially."""
    if aspect == "distribution":
        return params.numeric_effect if kind == "numeric" else params.categorical_effect
    return {
        "mean": params.mean_effect,
        "spread": params.spread_effect,
        "unseen": params.unseen_effect,
        "missing": params.missing_effect,
    }[aspect]


def _known(frame: "pd.DataFrame", output: str) -> "pd.DataFrame":
    """The rows whose output is known: an answer that is still to come is no missing value."""
    return frame.loc[frame[output].notna(), [output]] if output in frame else frame


def _judge(compared: "Comparison", p_adjusted: Sequence[float], params: DriftParams) -> FeatureDrift:
    aspects = []
    for found, p in zip(compared.found, p_adjusted, strict=True):
        least = limit(compared.kind, found.aspect, params)
        aspects.append(
            Aspect(
                name=found.aspect,
                test=found.test,
                effect=found.effect,
                limit=least,
                p_value=found.p_value,
                p_adjusted=p,
                inflation=found.inflation,
                drifted=found.effect > 0 and found.effect >= least and p <= params.alpha,
            )
        )
    drifted = [aspect for aspect in aspects if aspect.drifted]
    status: Status = "drift" if drifted else "unknown" if compared.problem else "no_drift"
    said = [_describe(aspect, compared) for aspect in drifted]
    if compared.problem:
        said.append(compared.problem)
    elif not drifted:
        material = any(aspect.material for aspect in aspects)
        said.append("moved, but no more than chance explains" if material else "no material shift")
    return FeatureDrift(
        name=compared.name,
        kind=compared.kind,
        status=status,
        aspects=tuple(aspects),
        missing_reference=compared.missing[0] if compared.missing else None,
        missing_current=compared.missing[1] if compared.missing else None,
        n_reference=compared.n[0],
        n_current=compared.n[1],
        detail="; ".join(said),
    )


def _describe(aspect: Aspect, compared: "Comparison") -> str:
    if aspect.name == "missing" and compared.missing is not None:
        return f"missing {compared.missing[0]:.1%} → {compared.missing[1]:.1%} (limit {aspect.limit:.0%})"
    if aspect.name == "unseen":
        return f"{aspect.effect:.1%} in categories the reference does not hold (limit {aspect.limit:.0%})"
    unit = " σ" if compared.kind == "numeric" and aspect.name != "spread" else ""
    if aspect.name == "spread":
        return f"spread changed by a log ratio of {aspect.effect:.2f} (limit {aspect.limit:g})"
    return f"{aspect.name} moved by {aspect.effect:.2f}{unit} (limit {aspect.limit:g})"


def _verdict(
    count: int, drifted: Sequence[str], unknown: Sequence[str], params: DriftParams, domain: DomainDrift | None
) -> tuple[Status, str]:
    """Three-valued: the unknown features are taken as drifted, then as not, and the answer must not depend on it."""
    if count == 0:
        return "unknown", "There is no feature to compare."
    enough = f"limit {params.feature_share:.0%}"
    if params.feature_count is not None:
        enough += f" or {params.feature_count}"
    found = f"{len(drifted)} of {count} features drifted ({len(drifted) / count:.0%}, {enough})"
    if drifted:
        found += f": {', '.join(drifted[:5])}{f' and {len(drifted) - 5} more' if len(drifted) > 5 else ''}"
    if unknown:
        found += f"; {len(unknown)} could not be measured"
    if _reached(len(drifted), count, params):
        return "drift", f"{found}."
    if domain is not None and domain.status == "drift":
        return "drift", f"{found}; together they changed: {domain.sentence}"
    if unknown and _reached(len(drifted) + len(unknown), count, params):
        return "unknown", f"{found}, enough to hide a drift of the data set."
    if domain is not None and domain.status == "unknown":
        return "unknown", f"{found}; whether they changed together is unknown: {domain.sentence}"
    return "no_drift", f"{found}."


def _reached(features: int, count: int, params: DriftParams) -> bool:
    by_count = params.feature_count is not None and features >= params.feature_count
    return features > 0 and (features / count >= params.feature_share or by_count)
