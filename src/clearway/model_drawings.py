"""The plots of a model's holdout: by kind of target, as drawings for pages and as tables for ``dvc plots``.

Each function takes what the models said of the same rows, by role. A score that is no number leaves its model out of
the drawings, and nothing else.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway import plots
from clearway.charts import Series, chart, heat_map, ranked
from clearway.metrics import METRICS, Floats
from clearway.params import Kind
from clearway.plots import Importance
from clearway.reporting import Drawing, histogram, overlay

ROLES = ("challenger", "champion", "baseline")
CHALLENGER = ROLES[0]
TABLES = {
    "roc": ("false_positive_rate", "true_positive_rate"),
    "precision_recall": ("recall", "precision"),
    "calibration": ("mean_score", "share_positive", "rows", "lower", "upper"),
    "confusion": ("actual", "predicted"),
    "importances": ("feature", "importance", "spread"),
}
"""Columns of each table of the challenger; all are written, whatever the kind: one that does not apply has no rows."""
_STYLE = {role: place for place, role in enumerate(ROLES, start=1)}
_SHOWN_FEATURES, _SHOWN_CLASSES = 25, 15


def drawings(
    kind: Kind,
    labels: NDArray[Any],
    scores: Mapping[str, Floats | None],
    importances: Sequence[Importance],
    *,
    metric: str,
    thresholds: Mapping[str, float],
    classes: Sequence[str],
    seed: int,
) -> dict[str, Drawing]:
    """Every drawing that these rows allow, by the name of its file, in reading order.

    Parameters
    ----------
    kind : "binary", "multiclass" or "regression"
    labels : array of shape (rows,)
        0.0 or 1.0; positions in ``classes`` if multiclass; values if regression.
    scores : by role, float64 array or None
        Of shape (rows,), or (rows, classes) if multiclass; predictions if regression.
    importances : sequence of Importance
        Of the challenger, the most important first.
    metric : str
        What the importances are in.
    thresholds : by role, float
        Score from which a binary answer is yes.
    classes : sequence of str
        Names of the answers, by position.
    seed : int
        Of the rows that a cloud of points shows.
    """
    whole = {role: scores[role] for role in ROLES if _finite(scores.get(role))}
    known = {role: found for role, found in whole.items() if found is not None}
    made = {
        "binary": lambda: _binary(labels, known, thresholds, classes),
        "multiclass": lambda: _multiclass(labels.astype(np.intp), known, classes),
        "regression": lambda: _regression(labels, known, seed),
    }[kind]()
    if importances:
        made["importances"] = _importances(importances, metric)
    return made


def tables(
    kind: Kind,
    labels: NDArray[Any],
    scores: Floats | None,
    importances: Sequence[Importance],
    *,
    threshold: float,
    classes: Sequence[str],
) -> dict[str, str]:
    """The challenger's curves as CSV, by the name of the file; see :data:`TABLES` and :func:`drawings`."""
    rows: dict[str, Sequence[Sequence[Any]]] = {name: [] for name in TABLES}
    rows["importances"] = [(one.feature, f"{one.mean:.6f}", f"{one.spread:.6f}") for one in importances]
    if scores is not None and _finite(scores):
        if kind == "binary":
            rows["roc"] = plots.roc(labels, scores)
            rows["precision_recall"] = plots.precision_recall(labels, scores)
        if kind != "regression":
            codes = labels.astype(np.intp)
            found = (
                plots.calibration(labels, scores) if kind == "binary" else plots.top_label_calibration(codes, scores)
            )
            rows["calibration"] = [(b.mean_score, b.share, b.rows, b.lower, b.upper) for b in found]
            rows["confusion"] = plots.sampled_answers(codes, plots.answers(kind, scores, threshold), classes)
    return {f"{name}.csv": _csv(TABLES[name], content) for name, content in rows.items()}


def _binary(
    labels: Floats, scores: Mapping[str, Floats], thresholds: Mapping[str, float], classes: Sequence[str]
) -> dict[str, Drawing]:
    made: dict[str, Drawing] = {}
    rate = float(labels.mean()) if len(labels) else 0.0
    curves = {role: plots.roc(labels, found) for role, found in scores.items()}
    if any(curves.values()):
        areas = {role: METRICS["roc_auc"].value(labels, scores[role], 0.5) for role, curve in curves.items() if curve}
        said = ", ".join(f"{role} {area:.3f}" for role, area in areas.items())
        made["roc"] = Drawing(
            "ROC curve",
            chart(
                [Series(f"{role}, area {areas[role]:.3f}", curves[role], _STYLE[role]) for role in reversed(areas)],
                alt=f"ROC curves on the holdout. Area under each: {said}.",
                x_label="false positive rate (share of negatives)",
                y_label="true positive rate (share of positives)",
                diagonal=True,
                unit=True,
            ),
            "The dotted diagonal is a guess.",
        )
        precisions = {role: METRICS["average_precision"].value(labels, scores[role], 0.5) for role in areas}
        said = ", ".join(f"{role} {value:.3f}" for role, value in precisions.items())
        made["precision_recall"] = Drawing(
            "Precision and recall",
            chart(
                [
                    Series(f"{r}, average {precisions[r]:.3f}", plots.precision_recall(labels, scores[r]), _STYLE[r])
                    for r in reversed(precisions)
                ],
                alt=f"Precision-recall curves on the holdout. Average precision of each: {said}.",
                x_label="recall (share of positives that are found)",
                y_label="precision (share of yes that is right)",
                level=rate,
                unit=True,
            ),
            f"The dotted line is the share of positives, {rate:.1%}: the precision of a guess.",
        )
    made |= _calibration({role: plots.calibration(labels, found) for role, found in scores.items()}, "positives")
    if CHALLENGER in scores:
        ours, threshold = scores[CHALLENGER], thresholds[CHALLENGER]
        spread = plots.score_histogram(labels, ours)
        if spread is not None:
            made["scores"] = Drawing(
                "Scores of the challenger",
                overlay(
                    spread.edges,
                    spread.counts["negative"],
                    spread.counts["positive"],
                    alt="Histograms of the challenger's scores, of negatives and of positives.",
                    names=("negatives", "positives"),
                    x_label="score (probability of yes)",
                ),
                f"Shares of their own rows. It answers yes from {threshold:g}.",
            )
        made["confusion"] = _confusion(labels.astype(np.intp), plots.answers("binary", ours, threshold), classes)
    return made


def _multiclass(labels: NDArray[np.intp], scores: Mapping[str, Floats], classes: Sequence[str]) -> dict[str, Drawing]:
    made: dict[str, Drawing] = {}
    if CHALLENGER in scores:
        ours = scores[CHALLENGER]
        curves = plots.one_vs_rest(plots.roc, labels, ours, classes)
        if curves:
            note = f"Of the {len(curves)} classes with the most rows, of {len(classes)}." if len(classes) > 6 else ""
            made["roc"] = Drawing(
                "ROC curve of each class against the rest",
                chart(
                    [Series(name, curve, place) for place, (name, curve) in enumerate(curves.items(), start=1)],
                    alt=f"ROC curves of the challenger, one for each of {', '.join(curves)} against all other classes.",
                    x_label="false positive rate (share of the other classes)",
                    y_label="true positive rate (share of the class)",
                    diagonal=True,
                    unit=True,
                ),
                note,
            )
            found_right = plots.one_vs_rest(plots.precision_recall, labels, ours, classes)
            made["precision_recall"] = Drawing(
                "Precision and recall of each class",
                chart(
                    [Series(name, curve, place) for place, (name, curve) in enumerate(found_right.items(), start=1)],
                    alt=f"Precision-recall curves of the challenger, one for each of {', '.join(found_right)}.",
                    x_label="recall (share of the class that is found)",
                    y_label="precision (share of the answers that is right)",
                    unit=True,
                ),
                note,
            )
        made["confusion"] = _confusion(labels, plots.answers("multiclass", ours, 0.5), classes)
    found = {role: plots.top_label_calibration(labels, each) for role, each in scores.items()}
    return made | _calibration(found, "right answers")


def _regression(actual: Floats, predicted: Mapping[str, Floats], seed: int) -> dict[str, Drawing]:
    made: dict[str, Drawing] = {}
    if CHALLENGER not in predicted:
        return made
    ours = predicted[CHALLENGER]
    cloud = plots.predicted_and_actual(actual, ours, seed)
    if cloud:
        made["predicted"] = Drawing(
            "Predicted and actual",
            chart(
                [Series("rows", cloud, 1, marked=True, joined=False)],
                alt=f"Actual values against the challenger's predictions, of {len(cloud):,} holdout rows.",
                x_label="predicted (unit of the target)",
                y_label="actual (unit of the target)",
                diagonal=True,
            ),
            f"{len(cloud):,} of {len(actual):,} rows, drawn at random. On the dotted line the prediction is right.",
        )
    spread = plots.residuals(actual, ours)
    if spread is not None:
        made["residuals"] = Drawing(
            "Residuals",
            histogram(
                spread.edges,
                spread.counts["residuals"],
                alt="Histogram of actual less predicted values of the challenger.",
                x_label="actual − predicted (unit of the target)",
            ),
            "The outer bins hold the furthest half percent on either side too.",
        )
    lines = plots.residuals_by_prediction(actual, ours)
    if lines:
        whiskers = [(low, high) for _, low, _, high in lines]
        made["residuals_by_prediction"] = Drawing(
            "Residuals by prediction",
            chart(
                [Series("median, 10% to 90%", [(x, middle) for x, _, middle, _ in lines], 1, whiskers, marked=True)],
                alt="Median residual of the challenger, and its middle 80%, in ten bins of the prediction.",
                x_label="predicted (unit of the target)",
                y_label="actual − predicted",
                level=0.0,
            ),
            "Each point is a tenth of the rows; its whisker holds the middle 80% of their residuals.",
        )
    return made


def _calibration(found: Mapping[str, Sequence[plots.Bin]], of: str) -> dict[str, Drawing]:
    drawn = {role: bins for role, bins in found.items() if bins}
    if not drawn:
        return {}
    series = [
        Series(
            role,
            [(b.mean_score, b.share) for b in bins],
            _STYLE[role],
            [(b.lower, b.upper) for b in bins] if role == CHALLENGER else (),
            marked=True,
        )
        for role, bins in reversed(drawn.items())
    ]
    svg = chart(
        series,
        alt=f"Share of {of} against mean score, in {plots.CALIBRATION_BINS} bins of equally many holdout rows.",
        x_label="mean score of the bin",
        y_label=f"share of {of}",
        diagonal=True,
    )
    note = "On the dotted diagonal scores mean what they say. Whiskers: the challenger's 95%, of independent rows."
    return {"calibration": Drawing("Calibration", svg, note)}


def _confusion(actual: NDArray[np.intp], predicted: NDArray[np.intp], classes: Sequence[str]) -> Drawing:
    names, note = list(classes), ""
    if len(classes) > _SHOWN_CLASSES:  # the largest, and the rest as one
        order = np.argsort(-np.bincount(actual, minlength=len(classes)), kind="stable")[: _SHOWN_CLASSES - 1]
        place = np.full(len(classes), len(order))
        place[order] = np.arange(len(order))
        actual, predicted = place[actual], place[predicted]
        names = [classes[one] for one in order] + ["others"]
        note = f" The {len(order)} classes with the most rows of {len(classes)}."
    counts = plots.confusion(actual, predicted, len(names))
    right = int(np.trace(counts))
    svg = heat_map(
        counts,
        names,
        names,
        alt=f"Confusion matrix of the challenger: {right:,} of {int(counts.sum()):,} holdout rows on the diagonal.",
        x_label="answered",
        y_label="actual",
    )
    unit = "percent of the row" if len(names) > 6 else "rows, and their share of the row"
    return Drawing(
        "Confusion of the challenger", svg, f"{unit.capitalize()}: of all that are so, how many are answered so.{note}"
    )


def _importances(found: Sequence[Importance], metric: str) -> Drawing:
    shown = found[:_SHOWN_FEATURES]
    svg = ranked(
        [one.feature for one in shown],
        [one.mean for one in shown],
        [one.spread for one in shown],
        alt=f"Permutation importance of {len(shown)} features of the challenger, largest first: {shown[0].feature}.",
        x_label=f"loss in {metric} where the feature is shuffled",
    )
    rest = f" The first {len(shown)} of {len(found)}." if len(shown) < len(found) else ""
    note = f"Whiskers: standard deviation over shuffles. Features that say the same stand in for each other.{rest}"
    return Drawing("Importance of features", svg, note)


def _finite(scores: Floats | None) -> bool:
    return scores is not None and len(scores) > 0 and bool(np.isfinite(scores).all())


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()
