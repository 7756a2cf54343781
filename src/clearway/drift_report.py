"""The drift check of the line: reads the champion's reference and the current window, writes the report for people."""

import json
import re
from typing import TYPE_CHECKING

from clearway.champion import champion_bundle, read_champion
from clearway.drift import Aspect, DriftReport, FeatureDrift, Status, no_reference
from clearway.errors import ClearwayError
from clearway.files import read_json, write_json, write_text
from clearway.params import Params
from clearway.reporting import Block, Drawing, Drawings, Page, Table, bars, overlay, write_page
from clearway.trust import NOTHING_MORE, Trust, trust_of
from clearway.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from rich.table import Table as TerminalTable

    from clearway.bundle import Bundle
    from clearway.performance_estimate import PerformanceEstimate, ScoreMap

DRAWN = 9
"""How many features are drawn, those that moved most first."""
CATEGORIES_DRAWN = 10
BINS = 32
NO_BREAK = "\N{NO-BREAK SPACE}"

_COLUMNS = ("column", "verdict", "aspect", "effect", "limit", "p (Holm)", "missing", "what")
_LEFT = ("column", "verdict", "aspect")
_EFFECTS = (
    "A column drifts if some aspect of it is material (its effect reaches the limit) and no chance (its p value "
    "survives Holm's correction over all aspects of all columns). Effects: Wasserstein distance in reference standard "
    "deviations, or Jensen-Shannon distance, of the distribution; difference in standard deviations of the mean; log "
    "ratio of the standard deviations of the spread; shares of unseen categories and of missing values."
)
_PAGE_STATUS = {"drift": "warn", "no_drift": "pass", "unknown": "unknown", "bootstrap": "unknown"}


def check_drift(params: Params, workspace: Workspace) -> DriftReport:
    """Measure the current window against the champion's own reference and write ``drift.json``, page and result.

    Raises
    ------
    ClearwayError
        The champion, its reference or the feature tables are missing or damaged.
    """
    champion = read_champion(workspace)
    drawings: list[Drawing] = []
    if champion.bootstrap:
        report = no_reference(champion.reason, params.drift)
    else:
        from clearway.drift_reference import compare_with, reference_of

        bundle = champion_bundle(champion, workspace)
        past = reference_of(bundle)
        names = read_json(workspace.features / "features.json", made_by="scripts/build_features.py")
        scored, expected = _score(bundle, _current(workspace), past.score_map, trust_of(params, workspace))
        measured = compare_with(past, scored, names["numeric"], names["categorical"], params.drift, params.seed)
        report = measured.model_copy(update={"champion": champion.digest, "estimate": expected})
        drawings = _drawings(report, *_in_season(past.rows, scored, params))
    write_json(workspace.reports / "drift.json", report.model_dump(mode="json"))
    write_page(workspace.reports / "drift.html", _page(report, drawings))
    write_text(workspace.drift_result, json.dumps(report.drift) + "\n")
    return report


def terminal_table(report: DriftReport) -> "TerminalTable":
    """The columns as a table for the terminal, the largest shift first, the model's answers last."""
    from rich.table import Table as TerminalTable

    colours: dict[Status, str] = {"drift": "yellow", "no_drift": "green", "unknown": "dim"}
    table = TerminalTable(box=None, pad_edge=False)
    for column in _COLUMNS[:-1]:
        table.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    for number, feature in enumerate((*report.features, *report.outputs)):
        if number == len(report.features):
            table.add_section()
        table.add_row(*_cells(feature, feature.leading)[:-1], style=colours[feature.status])
    return table


def remarks(report: DriftReport) -> tuple[str, ...]:
    """What the report says beside its columns, one sentence each: season, domain classifier, estimate."""
    season = f"{report.season[0].upper()}{report.season[1:]}." if report.season else ""
    domain = report.domain.sentence if report.domain else ""
    estimated = report.estimate.sentence if report.estimate else ""
    return tuple(said for said in (season, domain, estimated) if said)


def _in_season(
    reference: "pd.DataFrame", current: "pd.DataFrame", params: Params
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The rows that were compared: the same draw as that of the comparison."""
    from clearway.season import match_season

    if not params.drift.season:
        return reference, current
    matched = match_season(reference, current, params.drift.season, params.seed)
    return reference.iloc[matched.reference], current.iloc[matched.current]


def _score(
    bundle: "Bundle", current: "pd.DataFrame", score_map: "ScoreMap | None", trust: Trust = NOTHING_MORE
) -> tuple["pd.DataFrame", "PerformanceEstimate"]:
    """The current rows with the champion's score of each, and what it is expected to be worth on them.

    Rows that lack a feature of the champion, or hold text where it reads a number, as after a change of the features'
    code, have no score: a new model must be able to replace one that cannot read the rows of now.
    """
    import pandas as pd

    from clearway.model import load_model
    from clearway.performance_estimate import estimate, no_estimate
    from clearway.profile import ANSWER, SCORE

    model = load_model(bundle.path, bundle.digest, trust)
    lacking = [name for name in model.schema.names if name not in current]
    if lacking:
        reason = f"the current rows lack {', '.join(lacking[:5])}, which the champion asks for"
        return current.assign(**{SCORE: float("nan")}), no_estimate(len(current), reason)
    try:
        encoded = model.schema.encode(current)
    except ClearwayError as error:
        reason = f"the champion cannot read the current rows ({error})"
        return current.assign(**{SCORE: float("nan")}), no_estimate(len(current), reason)
    outputs = model.output(encoded)
    scores = model.target.score(outputs)
    scored = current.assign(**{SCORE: scores})
    if model.target.classes:
        scored[ANSWER] = pd.Series(model.target.named(outputs, model.threshold), dtype="string").array
    if model.target.kind == "regression":
        return scored, no_estimate(len(current), "a number that is predicted does not say how far it is off")
    if score_map is None:
        return scored, no_estimate(len(current), "the champion's bundle has no score map, its successor's will")
    return scored, estimate(scores, score_map, model.threshold, holdout=bundle.lineage().metrics, target=model.target)


def _current(workspace: Workspace) -> "pd.DataFrame":
    import pandas as pd

    path = workspace.features / "current.parquet"
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise ClearwayError(f"{path} is missing: run scripts/build_features.py first") from None
    except (OSError, ValueError) as error:
        raise ClearwayError(f"{path} is not readable ({' '.join(str(error).split())}): run its step again") from None


def _page(report: DriftReport, drawings: list[Drawing]) -> Page:
    facts = [
        ("champion", report.champion or "none"),
        ("reference rows", f"{report.rows_reference:,}"),
        ("current rows", f"{report.rows_current:,}"),
        ("share of features drifted", "-" if report.share is None else f"{report.share:.0%}"),
        (
            "limit",
            f"{report.feature_share:.0%}" + (f", or {report.feature_count} features" if report.feature_count else ""),
        ),
        ("dependence between rows", "accounted for" if report.calibrated else "none assumed"),
        *([("season", report.season)] if report.season else []),
    ]
    blocks: list[Block] = []
    if report.features:
        blocks.append(_table("Features, largest shift first", report.features, _EFFECTS))
    if drawings:
        blocks.append(Drawings("The largest shifts, drawn", drawings))
    if report.outputs:
        note = "Tested together with the features, not counted among them."
        blocks.append(_table("The model's answers", report.outputs, note))
    blocks += [block for block in (_domain(report), _estimate(report)) if block]
    every = [(feature, aspect) for feature in (*report.features, *report.outputs) for aspect in feature.aspects]
    if every:
        blocks.append(
            Table(
                title=f"All {report.tests} tests",
                columns=(
                    "column",
                    "verdict",
                    "aspect",
                    "test",
                    "effect",
                    "limit",
                    "p",
                    "p (Holm)",
                    "inflation",
                    "rows",
                ),
                rows=[_test_cells(feature, aspect) for feature, aspect in every],
                status=["warn" if aspect.drifted else "pass" for _, aspect in every],
                note="Inflation: variance of the statistic among windows of the reference itself, in units of that of "
                "independent rows; the test is weakened by it.",
                folded=True,
            )
        )
    return Page(
        title="Drift",
        verdict=report.verdict.replace("_", " "),
        status=_PAGE_STATUS[report.verdict],
        sentence=report.sentence,
        facts=facts,
        blocks=blocks,
    )


def _table(title: str, features: tuple[FeatureDrift, ...], note: str) -> Table:
    return Table(
        title=title,
        columns=_COLUMNS,
        rows=[_cells(feature, feature.leading) for feature in features],
        status=[_PAGE_STATUS[feature.status] for feature in features],
        note=note,
    )


def _domain(report: DriftReport) -> Table | None:
    """What the domain classifier found."""
    found = report.domain
    if found is None:
        return None
    numbers = [
        ("AUC, cross-validated", found.auc),
        (f"its lower bound ({found.confidence:.0%}, one-sided)", found.lower),
        ("limit" + (", from windows of the reference itself" if found.calibrated else ""), found.limit),
    ]
    rows = [(name, "-" if value is None else f"{value:.3f}") for name, value in numbers]
    rows += [(f"AUC lost without {one.name}", f"{one.auc_lost:.3f}") for one in found.importance]
    status = _PAGE_STATUS[found.status]
    return Table(
        title="All features together: a domain classifier",
        columns=("what", "value"),
        rows=rows,
        status=[status] * len(rows),
        note=found.sentence,
    )


def _estimate(report: DriftReport) -> Table | None:
    """What the champion is expected to be worth now."""
    found = report.estimate
    if found is None:
        return None
    rows = [
        (name, f"{value:.4f}", f"{found.holdout[name]:.4f}" if name in found.holdout else "-")
        for name, value in found.metrics.items()
    ]
    assumed = f" It holds only if {'; '.join(found.assumptions)}. It decides nothing." if found.assumptions else ""
    return Table(
        title="Performance expected without answers",
        columns=("metric", "expected now", "on the holdout"),
        rows=rows,
        note=f"{found.sentence if not rows else f'From {found.rows:,} scores (confidence-based estimate).'}{assumed}",
    )


def _cells(feature: FeatureDrift, aspect: Aspect | None) -> list[str]:
    """A feature by the aspect of it that moved most."""
    shares = feature.missing_reference, feature.missing_current
    missing = "-" if shares[0] is None else "none" if not any(shares) else f"{shares[0]:.1%} → {shares[1]:.1%}"
    measured = ["-"] * 4 if aspect is None else _measured(aspect)
    return [
        feature.name,
        feature.status.replace("_", " "),
        *measured,
        missing.replace(" ", NO_BREAK),
        re.sub(r"(?<![,;]) ", NO_BREAK, feature.detail),  # else a narrow page breaks it after each word
    ]


def _test_cells(feature: FeatureDrift, aspect: Aspect) -> list[str]:
    name, effect, limit, p_adjusted = _measured(aspect)
    verdict = "drift" if aspect.drifted else "no drift"
    test, p_value, inflation = aspect.test.replace("_", "-"), f"{aspect.p_value:.2g}", f"{aspect.inflation:.3g}"
    rows = f"{feature.n_reference:,} / {feature.n_current:,}".replace(" ", NO_BREAK)
    return [feature.name, verdict, name, test, effect, limit, p_value, p_adjusted, inflation, rows]


def _measured(aspect: Aspect) -> list[str]:
    return [aspect.name, f"{aspect.effect:.3f}", f"{aspect.limit:g}", f"{aspect.p_adjusted:.2g}"]


def _drawings(report: DriftReport, reference: "pd.DataFrame", current: "pd.DataFrame") -> list[Drawing]:
    """What drifted, what else moved most, and the model's answers, each side as shares of its own rows."""
    drifted_first = sorted(report.features, key=lambda feature: feature.status != "drift")
    measured = [f for f in drifted_first if f.aspects and f.n_reference and f.n_current][:DRAWN]
    measured += [f for f in report.outputs if f.aspects and f.n_reference and f.n_current]
    paint = {"numeric": _histograms, "categorical": _bars}
    return [Drawing(f.name, paint[f.kind](f, reference[f.name], current[f.name]), f.detail) for f in measured]


def _histograms(feature: FeatureDrift, reference: "pd.Series", current: "pd.Series") -> "Markup":
    """Both on the same bins, cut at the outer half percent so that one outlier does not flatten the rest."""
    import numpy as np
    import pandas as pd

    sides = [pd.to_numeric(side, errors="coerce").to_numpy(dtype=np.float64) for side in (reference, current)]
    finite = [side[np.isfinite(side)] for side in sides]
    low = min(float(np.quantile(side, 0.005)) for side in finite)
    high = max(float(np.quantile(side, 0.995)) for side in finite)
    edges = np.linspace(low, high, BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    counts = [np.histogram(np.clip(side, edges[0], edges[-1]), bins=edges)[0].tolist() for side in finite]
    return overlay(edges.tolist(), counts[0], counts[1], alt=_alt(feature), names=_SIDES)


def _bars(feature: FeatureDrift, reference: "pd.Series", current: "pd.Series") -> "Markup":
    """The commonest categories of both side by side."""
    shares = [side.dropna().astype(str).value_counts(normalize=True) for side in (reference, current)]
    both = shares[0].add(shares[1], fill_value=0)
    names = [str(name) for name in both.sort_values(ascending=False, kind="stable").index[:CATEGORIES_DRAWN]]
    series = [(side, [float(share.get(n, 0.0)) for n in names]) for side, share in zip(_SIDES, shares, strict=True)]
    return bars(names, series, alt=_alt(feature), as_share=True)


def _alt(feature: FeatureDrift) -> str:
    return f"Distribution of {feature.name} in the champion's reference and now: {feature.detail}"


_SIDES = ("reference", "now")
