"""The drift check of the line: reads the champion's reference and the current window, writes the report for people."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.table import Table as TerminalTable

from clearway.champion import champion_bundle, read_champion
from clearway.drift import DriftReport, FeatureDrift, Status, measure_drift, no_reference
from clearway.errors import ClearwayError
from clearway.files import read_json, write_json, write_text
from clearway.params import Params
from clearway.profile import read_reference
from clearway.reporting import Page, Picture, Table, draw, write_page
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = 6
"""How many features are drawn, those that moved most first."""
CATEGORIES_DRAWN = 12

_COLUMNS = ("feature", "verdict", "test", "effect", "limit", "p (Holm)", "missing", "rows", "what")
_PAGE_STATUS = {"drift": "warn", "no_drift": "pass", "unknown": "unknown", "bootstrap": "unknown"}


def check_drift(params: Params, workspace: Workspace) -> DriftReport:
    """Measure the current window against the champion's own reference and write ``drift.json``, page and result.

    Raises
    ------
    ClearwayError
        The champion, its reference or the feature tables are missing or damaged.
    """
    champion = read_champion(workspace)
    if champion.bootstrap:
        report, pictures = no_reference(champion.reason, params.drift), []
    else:
        reference = read_reference(champion_bundle(champion, workspace).evidence("reference.parquet"))
        current = _current(workspace)
        names = read_json(workspace.features / "features.json", made_by="scripts/build_features.py")
        measured = measure_drift(reference, current, names["numeric"], names["categorical"], params.drift)
        report = measured.model_copy(update={"champion": champion.digest})
        pictures = _pictures(report, reference, current)
    write_json(workspace.reports / "drift.json", report.model_dump(mode="json"))
    write_page(workspace.reports / "drift.html", _page(report, pictures))
    write_text(workspace.drift_result, json.dumps(report.drift) + "\n")
    return report


def terminal_table(report: DriftReport) -> TerminalTable:
    """The features as a table for the terminal, the largest shift first."""
    colours: dict[Status, str] = {"drift": "yellow", "no_drift": "green", "unknown": "dim"}
    table = TerminalTable(box=None, pad_edge=False)
    for column in _COLUMNS[:-1]:
        table.add_column(column, justify="left" if column in _COLUMNS[:3] else "right", no_wrap=True)
    for feature in report.features:
        table.add_row(*_cells(feature)[:-1], style=colours[feature.status])
    return table


def _current(workspace: Workspace) -> pd.DataFrame:
    path = workspace.features / "current.parquet"
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first") from None
    except (OSError, ValueError) as error:
        raise ClearwayError(f"{path} is not readable ({' '.join(str(error).split())}): run its step again") from None


def _page(report: DriftReport, pictures: list[Picture]) -> Page:
    status: dict[Status, str] = {"drift": "warn", "no_drift": "pass", "unknown": "unknown"}
    table = Table(
        title="Features, largest shift first",
        columns=_COLUMNS,
        rows=[_cells(feature) for feature in report.features],
        status=[status[feature.status] for feature in report.features],
        note="Effect: Wasserstein distance in reference standard deviations (numeric), Jensen-Shannon distance "
        "(categorical). A feature drifts if its effect reaches the limit and its p value survives Holm's correction.",
    )
    facts = [
        ("champion", report.champion or "none"),
        ("reference rows", f"{report.rows_reference:,}"),
        ("current rows", f"{report.rows_current:,}"),
        ("share of features drifted", "-" if report.share is None else f"{report.share:.0%}"),
        ("limit", f"{report.feature_share:.0%}"),
    ]
    return Page(
        title="Drift",
        verdict=report.verdict.replace("_", " "),
        status=_PAGE_STATUS[report.verdict],
        sentence=report.sentence,
        facts=facts,
        blocks=[table, *pictures] if report.features else [],
    )


def _cells(feature: FeatureDrift) -> list[str]:
    missing = "-"
    if feature.missing_reference is not None and feature.missing_current is not None:
        missing = f"{feature.missing_reference:.1%} → {feature.missing_current:.1%}"
    return [
        feature.name,
        feature.status.replace("_", " "),
        feature.test,
        "-" if feature.effect is None else f"{feature.effect:.3f}",
        f"{feature.effect_threshold:g}",
        "-" if feature.p_adjusted is None else f"{feature.p_adjusted:.2g}",
        missing,
        f"{feature.n_reference:,} / {feature.n_current:,}",
        feature.detail,
    ]


def _pictures(report: DriftReport, reference: pd.DataFrame, current: pd.DataFrame) -> list[Picture]:
    from matplotlib.figure import Figure

    pictures = []
    for feature in [f for f in report.features if f.effect is not None and f.n_current > 0][:PICTURES]:
        figure = Figure(figsize=(7, 2.6))
        axes = figure.subplots()
        paint: Callable[[Axes, pd.Series, pd.Series], None]
        paint = _histograms if feature.kind == "numeric" else _bars
        paint(axes, reference[feature.name], current[feature.name])
        axes.set_ylabel("share")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        alt = f"Distribution of {feature.name} in the champion's reference and now: {feature.detail}"
        pictures.append(Picture(title=feature.name, alt=alt, png=draw(figure)))
    return pictures


def _histograms(axes: "Axes", reference: pd.Series, current: pd.Series) -> None:
    """Both on the same bins, cut at the outer half percent so that one outlier does not flatten the rest."""
    sides = [pd.to_numeric(side, errors="coerce").astype("float64") for side in (reference, current)]
    finite = [side[np.isfinite(side)].to_numpy() for side in sides]
    both = np.concatenate(finite)
    low, high = np.quantile(both, [0.005, 0.995])
    if low == high:
        low, high = float(both.min()), float(both.max())
    bins = np.linspace(low, high, 41) if low < high else np.array([low - 0.5, low + 0.5])
    for values, label, colour in zip(finite, ("reference", "now"), _COLOURS, strict=True):
        weights = np.full(len(values), 1 / len(values))
        clipped = np.clip(values, bins[0], bins[-1])
        axes.hist(clipped, bins=bins.tolist(), weights=weights, label=label, color=colour, alpha=0.55)


def _bars(axes: "Axes", reference: pd.Series, current: pd.Series) -> None:
    """The commonest categories of both side by side."""
    shares = [side.dropna().astype(str).value_counts(normalize=True) for side in (reference, current)]
    both = shares[0].add(shares[1], fill_value=0)
    names = [str(name) for name in both.sort_values(ascending=False, kind="stable").index[:CATEGORIES_DRAWN]]
    places = np.arange(len(names))
    for offset, share, label, colour in zip((-0.2, 0.2), shares, ("reference", "now"), _COLOURS, strict=True):
        axes.bar(places + offset, [float(share.get(n, 0.0)) for n in names], 0.4, label=label, color=colour, alpha=0.75)
    axes.set_xticks(places, names, rotation=45, ha="right")


_COLOURS = ("#5b6675", "#d1731c")
