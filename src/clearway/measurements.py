"""What is measured of a judged model beside its gates: every metric with its interval, part by part of the holdout.

No verdict rests on these. They are what people read, and what the registry and the model card keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.gates import Holdout
from clearway.metrics import Floats, measure
from clearway.metrics import metric as metric_of
from clearway.paired import Interval
from clearway.plots import Importance, importances
from clearway.slices import Level, levels

MOST_PARTS = 60
"""Parts measured of all columns together: the largest. A column of ids has as many as rows."""
_PART_RESAMPLES = 200
"""Of a part's interval, which nothing is judged by: half of the gates' do."""


@dataclass(frozen=True)
class Part:
    """Metrics of the rows that have one value of a column, or of several."""

    name: str
    """``carrier=UA``, as its gate is called behind ``slice_``."""
    column: str
    """``carrier``, or ``carrier&origin``."""
    value: str
    rows: int
    metrics: Mapping[str, Mapping[str, float]]
    """By role; a model that could not score is left out, and so is a metric that these rows do not define."""
    interval: Interval | None
    """Of the challenger, in the compared metric."""


@dataclass(frozen=True)
class Measurements:
    """What is known of a challenger beside its verdict."""

    metric: str
    """In which the challenger is compared with the champion: that of slices' intervals and of the importances."""
    confidence: float
    """One-sided level of each bound."""
    training: Mapping[str, Mapping[str, float]]
    """By role, challenger and baseline: metrics on the rows they learned from."""
    intervals: Mapping[str, Interval]
    """Of the challenger on the whole holdout, by metric."""
    parts: tuple[Part, ...]
    left_out: int
    """Parts that are not: of too few rows, or beyond the largest."""
    importances: tuple[Importance, ...]

    def document(self) -> dict[str, Any]:
        """As plain values, for JSON: null in place of what is no number."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def measurements(
    holdout: Holdout,
    scores: Mapping[str, Floats | None],
    thresholds: Mapping[str, float],
    features: pd.DataFrame,
    columns: Sequence[str | Sequence[str]],
    found: Sequence[Importance],
    *,
    metric: str,
    training: Mapping[str, Mapping[str, float]],
    min_rows: int,
    bins: int,
) -> Measurements:
    """Every metric of the challenger with its interval, and all roles' metrics in each part of the holdout.

    Parameters
    ----------
    holdout : Holdout
        Labels, the challenger's threshold, and how rows are resampled.
    scores : by role, float64 array of shape (rows,) or (rows, classes), or None
        Outputs; None where a model could not score.
    thresholds : by role, float
    features : DataFrame of shape (rows, columns)
    columns : sequence of str or of sequences of str
        Columns, or combinations of them, whose values are the parts.
    found : sequence of Importance
    metric : str
        The compared one.
    training : by role, mapping of metric to float
    min_rows : int
        Fewest rows of a part that is measured.
    bins : int
        Ranges that numbers are cut into.
    """
    ours = scores["challenger"]
    kind = holdout.target.kind
    whole = {} if ours is None else measure(holdout.labels, ours, holdout.threshold, kind=kind)
    intervals = {} if ours is None else {name: holdout.interval(metric_of(name, kind=kind), ours) for name in whole}
    found_levels: list[tuple[str, Level]] = []
    for chosen in dict.fromkeys((one,) if isinstance(one, str) else tuple(one) for one in columns):
        if set(chosen) <= set(features.columns):
            found_levels += [("&".join(chosen), level) for level in levels(features, chosen, bins)]
    sizes = [int(level.rows.sum()) for _, level in found_levels]
    largest = sorted(range(len(sizes)), key=lambda place: -sizes[place])[:MOST_PARTS]
    kept = [found_levels[place] for place in sorted(largest) if sizes[place] >= min_rows]
    return Measurements(
        metric=metric,
        confidence=holdout.confidence,
        training=training,
        intervals=intervals,
        parts=tuple(_part(column, level, holdout, scores, thresholds, metric) for column, level in kept),
        left_out=len(found_levels) - len(kept),
        importances=tuple(found),
    )


def feature_importances(
    holdout: Holdout, score: Any, matrix: NDArray[np.float32], names: Sequence[str], metric: str
) -> list[Importance]:
    """By how much ``metric`` gets worse where a feature of the holdout is shuffled; see :func:`plots.importances`."""
    measured = metric_of(metric, kind=holdout.target.kind)

    def quality(labels: Floats, found: Floats) -> float:
        return measured.sign * measured.value(labels, found, holdout.threshold)

    return importances(score, quality, matrix, holdout.labels, names, holdout.seed)


def _part(
    column: str,
    level: Level,
    holdout: Holdout,
    scores: Mapping[str, Floats | None],
    thresholds: Mapping[str, float],
    metric: str,
) -> Part:
    rows = level.rows
    labels, kind = holdout.labels[rows], holdout.target.kind
    measured = {
        role: measure(labels, each[rows], thresholds[role], kind=kind)
        for role, each in scores.items()
        if each is not None
    }
    ours, interval = scores["challenger"], None
    if ours is not None and metric in measured["challenger"]:
        groups = None if holdout.groups is None else holdout.groups[rows]
        fewer = min(holdout.resamples, _PART_RESAMPLES)
        inside = replace(holdout, labels=labels, groups=groups, resamples=fewer)
        interval = inside.interval(metric_of(metric, kind=kind), ours[rows])
    return Part(level.name, column, level.value, len(labels), measured, interval)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content
