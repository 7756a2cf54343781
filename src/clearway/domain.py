"""What no single column shows: can a classifier tell the current rows from the reference? Pure functions, no file.

Trained to tell the two sides apart, a classifier has a cross-validated ROC AUC of about a half where they are alike,
and more where some combination of columns has changed, though each on its own has not.

Data that has a time is never quite alike: a week is recognisable by its weather, whatever week it is. So the AUC is
held against what windows of the reference itself reach against the rest of it (:func:`calibrate_domain`).

All work is done on at most ``params.max_rows`` rows of each side, so its time does not grow with the data.

References
----------
Rabanser, S., Günnemann, S. & Lipton, Z. (2019). Failing loudly: an empirical study of methods for detecting dataset
shift. NeurIPS 32.
LeDell, E., Petersen, M. & van der Laan, M. (2015). Computationally efficient confidence intervals for cross-validated
area under the ROC curve estimates. Electronic Journal of Statistics 9.
Hanley, J. & McNeil, B. (1982). The meaning and use of the area under a receiver operating characteristic (ROC) curve.
Radiology 143.
Nadeau, C. & Bengio, Y. (2003). Inference for the generalization error. Machine Learning 52.
Breiman, L. (2001). Random forests. Machine Learning 45 (permutation importance).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway.params import DomainParams

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["drift", "no_drift", "unknown"]
Floats = NDArray[np.float64]

FOLDS = 3
MIN_ROWS = 50
"""Rows of the smaller side below which nothing is said."""
MAX_CATEGORIES = 60
"""Categories the classifier tells apart, the commonest; the others are one."""
SMOOTHING = 10
"""Rows of the overall mix that each category is mixed with before it is rated."""
WINDOWS = 6
"""Most windows of one size in a calibration."""
SMALLEST, LARGEST_SHARE = 200, 6
"""Rows of the smallest calibration window; the largest is one part in so many of the reference."""
BLIND = 0.99
"""A limit from which the report says that nothing can exceed it."""
NAMED = 5
"""Features named as those that give the current rows away."""


class Importance(BaseModel):
    """What one feature adds to telling the two sides apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    auc_lost: float
    """Fall of the AUC when the feature's values are shuffled among the rows held out."""


class DomainDrift(BaseModel):
    """The verdict of the domain classifier. A value is None where it could not be measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    sentence: str
    """For a person."""
    auc: float | None = None
    """Cross-validated; 0.5 is no difference, 1 tells every row."""
    lower: float | None = None
    """One-sided lower bound of ``auc`` at ``confidence``."""
    limit: float | None = None
    """What ``lower`` must exceed: the largest AUC that counts as alike."""
    calibrated: bool = False
    """Whether ``limit`` was raised to what windows of the reference itself reach."""
    confidence: float
    importance: tuple[Importance, ...] = ()
    """The features that give the current rows away, most telling first; only where ``status`` is drift."""
    rows_reference: int = 0
    """Rows the classifier saw of each side."""
    rows_current: int = 0


class DomainWindows(BaseModel):
    """AUCs of contiguous windows of one size, each against the rest of the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    """Rows of a window."""
    aucs: tuple[float, ...]


class DomainCalibration(BaseModel):
    """How well windows of the reference itself can be told from the rest of it, by their size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows: tuple[DomainWindows, ...] = ()
    """Smallest size first."""


def measure_domain(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: DomainParams,
    calibration: DomainCalibration | None = None,
    seed: int = 0,
) -> DomainDrift:
    """Try to tell current rows from reference rows by their features.

    Drift only if the lower bound of the cross-validated AUC lies above ``params.max_auc`` and, where the reference
    has a time, above what a window of this size of the reference itself would reach.

    Parameters
    ----------
    reference : DataFrame of shape (n, ≥ k)
    current : DataFrame of shape (m, ≥ k)
    numeric, categorical : sequence of str
        Names of the features; one that a side lacks is left out here, for the check of columns reports it.
    params : DomainParams
    calibration : DomainCalibration, optional
        Of this reference; None where rows know no time and so are exchangeable.
    seed : int
        Chooses rows and folds: the same input gives the same answer.

    Returns
    -------
    DomainDrift
        ``unknown`` if a side has fewer than ``MIN_ROWS`` rows or no feature is on both sides.
    """
    rows = len(reference), len(current)
    numbers, texts = (
        [name for name in names if name in reference and name in current] for names in (numeric, categorical)
    )
    problem = ""
    if min(rows) < MIN_ROWS:
        problem = f"{min(rows):,} rows on one side, {MIN_ROWS} needed"
    elif not numbers and not texts:
        problem = "no feature is on both sides"
    if problem:
        return DomainDrift(
            status="unknown",
            sentence=f"Whether a classifier can tell now from then is unknown: {problem}.",
            confidence=params.confidence,
            rows_reference=min(rows[0], params.max_rows),
            rows_current=min(rows[1], params.max_rows),
        )
    told = _tell_apart(reference, current, numbers, texts, params, seed)
    alike = None if calibration is None else alike_auc(calibration, rows[1], params.confidence)
    limit = params.max_auc if alike is None else max(params.max_auc, alike)
    lower = told.lower(params.confidence)
    drift = lower > limit
    importance = told.importance(seed) if drift else ()
    said = f"A classifier tells current rows from the reference with an AUC of {told.auc:.2f} (lower bound {lower:.2f})"
    bound = f"the limit of {limit:.2f}" + (
        ", what windows of the reference itself reach" if limit > params.max_auc else ""
    )
    named = f", by {', '.join(one.name for one in importance)}" if importance else ""
    blind = "; here any window can be told from the others, so this check can show no drift" if limit >= BLIND else ""
    return DomainDrift(
        status="drift" if drift else "no_drift",
        sentence=f"{said}, {'above' if drift else 'not surely above'} {bound}{named}{blind}.",
        auc=told.auc,
        lower=lower,
        limit=limit,
        calibrated=alike is not None,
        confidence=params.confidence,
        importance=importance,
        rows_reference=min(rows[0], params.max_rows),
        rows_current=min(rows[1], params.max_rows),
    )


def calibrate_domain(
    frame: "pd.DataFrame", numeric: Sequence[str], categorical: Sequence[str], params: DomainParams, seed: int = 0
) -> DomainCalibration:
    """How well contiguous windows of ``frame`` can be told from the rest of it.

    Up to ``WINDOWS`` windows of each of :func:`window_sizes`, spread over the rows. The neighbourhood of a window is
    left out of the rest, for the current window of a check lies apart from its reference too.

    Parameters
    ----------
    frame : DataFrame of shape (n, ≥ k)
        The reference, in the order of time.
    numeric, categorical : sequence of str
        Names of the features.

    Returns
    -------
    DomainCalibration
        Without windows where there are too few rows for any; see :func:`alike_auc`.
    """
    count = len(frame)
    measured = []
    for size in window_sizes(count) if params.enabled else ():
        number = min(WINDOWS, count // size)
        aucs = []
        for start in np.linspace(0, count - size, number).round().astype(int):
            apart = min(size, count // 40)
            rest = np.r_[0 : max(start - apart, 0), min(start + size + apart, count) : count]
            window = frame.iloc[start : start + size]
            others = frame.iloc[_sample(rest, params.max_rows, seed + int(start))]
            aucs.append(_tell_apart(others, window, numeric, categorical, params, seed + int(start)).auc)
        measured.append(DomainWindows(size=size, aucs=tuple(aucs)))
    return DomainCalibration(windows=tuple(measured))


def window_sizes(rows: int) -> tuple[int, ...]:
    """The sizes of the calibration windows of so many rows: three, one of a short reference, none of a tiny one."""
    largest = rows // LARGEST_SHARE
    if largest < MIN_ROWS:
        return ()
    between = round((SMALLEST * largest) ** 0.5)
    return (SMALLEST, between, largest) if largest >= 4 * SMALLEST else (largest,)


def alike_auc(calibration: DomainCalibration, rows: int, confidence: float) -> float | None:
    """The AUC that one more window of ``rows`` rows of the same data stays below with chance ``confidence``.

    The one-sided normal prediction bound (Student's t, for mean and spread are estimated from few windows) of the
    AUCs as standard normal quantiles, interpolated in the logarithm of the size; beyond the smallest and largest
    windows theirs. None without windows.
    """
    from scipy.special import ndtr, ndtri, stdtrit

    if not calibration.windows:
        return None
    bounds = []
    for windows in calibration.windows:
        z = ndtri(np.clip(windows.aucs, 1e-9, 1 - 1e-9))
        count = len(z)
        spread = float(np.std(z, ddof=1)) * float(np.sqrt(1 + 1 / count))
        bounds.append(float(np.mean(z)) + float(stdtrit(count - 1, confidence)) * spread)
    sizes = [windows.size for windows in calibration.windows]
    return float(ndtr(np.interp(np.log(rows), np.log(sizes), bounds)))


@dataclass(frozen=True)
class _Fold:
    """A classifier and the rows it has not seen."""

    classifier: Any
    matrix: Floats
    is_current: NDArray[np.bool_]
    auc: float


@dataclass(frozen=True)
class _Told:
    """How well the two sides were told apart."""

    names: tuple[str, ...]
    folds: tuple[_Fold, ...]
    auc: float
    """Mean over the folds."""
    error: float
    """Standard error of ``auc``."""
    rows: int
    """Of the smaller side."""

    def lower(self, confidence: float) -> float:
        """One-sided lower bound, made on the scale of log odds, where an AUC near 1 is more nearly normal.

        So few rows know no AUC nearer to 1 than half a row; there log odds would take the bound down to nothing.
        """
        from scipy.special import expit, logit, ndtri

        nearest = _nearest_to_one(self.rows)
        auc = min(max(self.auc, 1 - nearest), nearest)
        bound = expit(logit(auc) - ndtri(confidence) * self.error / (auc * (1 - auc)))
        return float(min(bound, self.auc))

    def importance(self, seed: int) -> tuple[Importance, ...]:
        """The features without which the AUC falls most, by shuffling each among the rows held out.

        One that costs less than a tenth of what the first does is noise, and left out.
        """
        from threadpoolctl import threadpool_limits

        random = np.random.default_rng(seed)
        lost = np.zeros(len(self.names))
        with threadpool_limits(limits=1):
            for fold in self.folds:
                order = random.permutation(len(fold.matrix))
                for position in range(len(self.names)):
                    shuffled = fold.matrix.copy()
                    shuffled[:, position] = shuffled[order, position]
                    without, _, _ = _auc(fold.classifier.predict_proba(shuffled)[:, 1], fold.is_current)
                    lost[position] += (fold.auc - without) / len(self.folds)
        first = sorted(range(len(lost)), key=lambda i: (-lost[i], self.names[i]))[:NAMED]
        return tuple(
            Importance(name=self.names[i], auc_lost=float(lost[i])) for i in first if lost[i] > lost.max() / 10
        )


def _tell_apart(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    numeric: Sequence[str],
    categorical: Sequence[str],
    params: DomainParams,
    seed: int,
) -> _Told:
    """Cross-validate small boosted trees that tell the sides apart; one thread, whatever the machine has."""
    from sklearn import config_context
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    sides = [
        side.iloc[_sample(np.arange(len(side)), params.max_rows, seed + offset)]
        for offset, side in enumerate((reference, current))
    ]
    matrix = _encode(sides, numeric, categorical)
    is_current = np.repeat([False, True], [len(side) for side in sides])
    random = np.random.default_rng(seed)
    fold_of = np.empty(len(matrix), dtype=np.int64)
    for side in (False, True):  # each fold has its part of both sides
        rows = np.flatnonzero(is_current == side)
        fold_of[random.permutation(rows)] = np.arange(len(rows)) % FOLDS
    folds, above, below = [], [], []
    with threadpool_limits(limits=1), config_context(assume_finite=True, skip_parameter_validation=True):
        for number in range(FOLDS):
            held = fold_of == number
            seen = _rate_categories(matrix, is_current, ~held, range(len(numeric), matrix.shape[1]))
            classifier = HistGradientBoostingClassifier(
                max_iter=30,
                learning_rate=0.15,
                max_leaf_nodes=8,
                max_bins=64,
                min_samples_leaf=20,
                l2_regularization=1.0,
                early_stopping=False,
                categorical_features=None,
                random_state=seed,
            )
            classifier.fit(seen[~held], is_current[~held])
            scores = classifier.predict_proba(seen[held])[:, 1]
            auc, of_current, of_reference = _auc(scores, is_current[held])
            folds.append(_Fold(classifier, seen[held], is_current[held], auc))
            above.append(of_current)
            below.append(of_reference)
    auc = float(np.mean([fold.auc for fold in folds]))
    error, fewest = _standard_error(auc, above, below), min(len(side) for side in sides)
    return _Told((*numeric, *categorical), tuple(folds), auc, error, fewest)


def _rate_categories(
    matrix: Floats, is_current: NDArray[np.bool_], learnt: NDArray[np.bool_], columns: Sequence[int]
) -> Floats:
    """The matrix with each category as its share of current rows among those learnt from, drawn to the overall share.

    Trees split categories in that order anyway; it is learnt without the rows held out, so they give nothing away.
    """
    rated, overall = matrix.copy(), is_current[learnt].mean()
    for column in columns:
        codes = matrix[:, column].astype(np.int64)
        rows = np.bincount(codes[learnt], minlength=codes.max() + 1)
        ours = np.bincount(codes[learnt], weights=is_current[learnt], minlength=codes.max() + 1)
        rated[:, column] = ((ours + SMOOTHING * overall) / (rows + SMOOTHING))[codes]
    return rated


def _auc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    """The AUC, each positive's share of negatives below it, and each negative's share of positives above it.

    A tie counts half.
    """
    up, down = np.sort(scores[positive]), np.sort(scores[~positive])
    of_positive = (np.searchsorted(down, up, "left") + np.searchsorted(down, up, "right")) / (2 * len(down))
    of_negative = 1 - (np.searchsorted(up, down, "left") + np.searchsorted(up, down, "right")) / (2 * len(up))
    return float(of_positive.mean()), of_positive, of_negative


def _nearest_to_one(rows: int) -> float:
    """The largest AUC that so many rows of the smaller side can tell from 1."""
    return 1 - 1 / (2 * rows)


def _standard_error(auc: float, above: Sequence[Floats], below: Sequence[Floats]) -> float:
    """Of a cross-validated AUC: from the placements of its rows (LeDell et al. 2015), or Hanley & McNeil's if larger.

    Placements alone know no uncertainty where every row was told rightly; there the other errs to the safe side. Both
    take the folds for independent, though any two learn from the same rows: Nadeau & Bengio's correction adds that,
    rather too much than too little (with 3 folds a factor of 2.5 to the variance, where 1.6 is seen under no change).
    """
    positives, negatives = sum(map(len, above)), sum(map(len, below))
    placed = np.concatenate(above).var(ddof=1) / positives + np.concatenate(below).var(ddof=1) / negatives
    a = min(auc, _nearest_to_one(min(positives, negatives)))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    pairs = a * (1 - a) + (positives - 1) * (q1 - a * a) + (negatives - 1) * (q2 - a * a)
    shared = 1 + FOLDS / (FOLDS - 1)
    return float(np.sqrt(shared * max(placed, pairs / (positives * negatives))))


def _encode(sides: Sequence["pd.DataFrame"], numeric: Sequence[str], categorical: Sequence[str]) -> Floats:
    """Both sides, one above the other, as float64 of shape (rows, features), of small whole numbers only.

    Numbers as their ranks, which is all that trees see of them; categories as codes; what is missing as -1 and 0.
    """
    import pandas as pd

    from clearway.two_sample import as_category, holds_float32, numbers_of

    columns = []
    for name in numeric:
        single = any(holds_float32(side[name]) for side in sides)
        values = np.concatenate([numbers_of(side[name], single=single) for side in sides]).astype(np.float64)
        known = np.isfinite(values)
        ranks = np.full(len(values), -1.0)
        ranks[known] = np.unique(values[known], return_inverse=True)[1]
        columns.append(ranks)
    for name in categorical:
        text = pd.concat([side[name].astype("object") for side in sides], ignore_index=True)
        text = text.map(as_category, na_action="ignore")
        common = sorted(text.value_counts().index[:MAX_CATEGORIES])
        codes = pd.Categorical(text, categories=common).codes + 1.0
        rare = (codes == 0) & text.notna().to_numpy()
        columns.append(np.where(rare, len(common) + 1, codes))
    return np.column_stack(columns)


def _sample(rows: NDArray[np.int64], largest: int, seed: int) -> NDArray[np.int64]:
    """At most ``largest`` of ``rows``, in their order."""
    if len(rows) <= largest:
        return rows
    chosen: NDArray[np.int64] = np.sort(np.random.default_rng(seed).choice(rows, size=largest, replace=False))
    return chosen
