"""The skew check: reads served predictions from the log, recomputes their features, writes the report for people."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table as TerminalTable

from clearway.acceptance import accept_raw
from clearway.bundle import BundleError, verify
from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_json
from clearway.model import recorded_definitions
from clearway.params import Params, UtcTime
from clearway.prediction_log import read_log
from clearway.project import StoredProject, load_project
from clearway.reporting import Block, Card, Cards, Page, Table, write_page
from clearway.schema import flat_columns
from clearway.skew import Example, FeatureSkew, Served, SkewReport, StoredView, compare, shown
from clearway.snapshot import read_tables_at
from clearway.stored_features import event_tables, historical_features, typed_inputs
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.definitions import Definitions, FeatureDefinition

READ = ("id", "version", "asked_at", "status", "features", "inputs")
NO_FEATURES = "their features were not logged (params.yaml: serving.log_features)"
NO_INPUTS = "they carried their features themselves"
NO_TIME = "they did not say when they were asked"
NO_LOOKUP = "the server could not look up their features"
_PAGE_STATUS = {"skew": "fail", "no_skew": "pass", "unknown": "unknown"}
_METHOD = (
    "Each served value is compared, bit by bit, with the one that the offline store gives for the same keys as of the "
    "time of the question, from event tables built anew from the sources."
)


def check_skew(
    params: Params,
    workspace: Workspace,
    environment: str,
    *,
    last: int | None = None,
    since: datetime | None = None,
) -> SkewReport | None:
    """Compare the features that an environment served with those recomputed offline; write ``skew.json`` and page.

    None where the project stores no features: what a request carries is then what the model sees.

    Parameters
    ----------
    params, workspace
        The project.
    environment
        Whose prediction log is read.
    last : int, optional
        Only the newest so many predictions of the log.
    since : datetime, optional
        Only questions asked then or later.

    Raises
    ------
    UsageError
        There is no such environment, or ``last`` is below 1.
    ClearwayError
        A source cannot be read, or features cannot be recomputed.
    """
    params.environment(environment)
    if last is not None and last < 1:
        raise UsageError(f"last = {last}: must be at least 1")
    project = load_project(params, flat_columns(params, workspace.root))
    if not isinstance(project, StoredProject):
        return None
    from clearway.feature_store.definitions import describe_features

    definitions = project.definitions()
    described = describe_features(definitions, project.numeric, project.categorical)
    log = read_log(workspace.environment(environment) / "predictions", columns=READ)
    if since is not None:
        log = log[log["asked_at"] >= pd.Timestamp(since)]
    log = log if last is None else log.tail(last)
    kept, left_out = comparable(log, _refused(log["version"].unique().tolist(), workspace, described))
    served = Served(
        id=[None if pd.isna(name) else str(name) for name in kept["id"]],
        asked_at=[time.to_pydatetime(warn=False) for time in kept["asked_at"]],
        version=kept["version"].tolist(),
        inputs=kept["inputs"].tolist(),
        features=kept["features"].tolist(),
    )
    names = [*project.numeric, *project.categorical]
    recomputed, events = pd.DataFrame(columns=names), dict[str, pd.DataFrame]()
    if len(served):
        recomputed, events = recompute(params, workspace, project, served)
    report = compare(
        served,
        recomputed,
        project.numeric,
        project.categorical,
        environment=environment,
        views=_stored_views(definitions, described, events),
        view_of={name: definition.view for name, definition in described.items()},
        not_compared=left_out,
    )
    write_report(report, described, workspace.reports)
    return report


def write_report(report: SkewReport, described: "Mapping[str, FeatureDefinition]", folder: Path) -> None:
    """Write ``skew.json`` and ``skew.html`` into ``folder``; ``described`` says where each feature comes from."""
    write_json(folder / "skew.json", report.model_dump(mode="json"))
    write_page(folder / "skew.html", _page(report, described))


def recompute(
    params: Params, workspace: Workspace, project: StoredProject, served: Served
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The features of served predictions as of the times of their questions, and the rows of each view.

    The rows are made anew from the sources, as these were known when the last question was asked. Beside the replay of
    traffic this is the only reader that may go past ``params.as_of``: the present of a served prediction is the time
    of its question.

    Returns
    -------
    features : DataFrame of n rows
        In the order of ``served``.
    events : dict of view to DataFrame

    Raises
    ------
    ClearwayError
        A source cannot be read, an input is of another type than its definition says, or Feast fails.
    """
    last = max(served.asked_at)
    tables = accept_raw(read_tables_at(params, workspace, project, last), params, workspace, last)
    events = event_tables(project, tables, known_until=last)
    questions = pd.DataFrame({PREDICTION_TIME: pd.Series(served.asked_at, dtype="datetime64[ns, UTC]")})
    inputs = typed_inputs(project, pd.DataFrame(list(served.inputs)), "the inputs of the prediction log")
    return historical_features(params, workspace, project, questions, inputs, events), events


def comparable(log: pd.DataFrame, refused: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The logged predictions whose features can be recomputed, the earliest question first; and why not the others.

    Parameters
    ----------
    log : DataFrame
        With the columns :data:`READ`, in the order served.
    refused : mapping of version to reason
        Versions whose predictions cannot be compared.
    """
    reasons = pd.Series(pd.NA, index=log.index, dtype="string")
    reasons[log["asked_at"].isna()] = NO_TIME
    reasons = reasons.mask(log["version"].isin(list(refused)), log["version"].map(refused))
    reasons[log["features"].isna()] = NO_FEATURES
    reasons[log["features"].isna() & log["inputs"].notna() & (log["status"] >= 500)] = NO_LOOKUP
    reasons[log["features"].notna() & log["inputs"].isna()] = NO_INPUTS
    kept = log[reasons.isna()].sort_values("asked_at", kind="stable", ignore_index=True)
    return kept, {str(reason): int(count) for reason, count in reasons.value_counts().items()}


def parse_time(text: str) -> datetime:
    """``--since`` as a time; one without a zone is UTC.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        return TypeAdapter(UtcTime).validate_python(text)
    except ValidationError:
        raise UsageError(f"--since {text!r} is no time: write it as 2013-07-01T12:00:00Z") from None


def terminal_table(report: SkewReport) -> TerminalTable:
    """The features that differ, those with the earliest difference first."""
    table = TerminalTable(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    for feature in _differing(report):
        table.add_row(*map(escape, _cells(feature)), style="red")
    return table


def remarks(report: SkewReport) -> tuple[str, ...]:
    """What the report says beside its table, one sentence each: causes, and what was not compared."""
    causes = dict.fromkeys((feature.hint, feature.view) for feature in _differing(report) if feature.hint)
    named = {
        cause: ", ".join(feature.name for feature in _differing(report) if (feature.hint, feature.view) == cause)
        for cause in causes
    }
    return (
        *(f"{names}: {hint}." for (hint, _), names in named.items()),
        *(f"{one.predictions:,} predictions not compared: {one.reason}." for one in report.not_compared),
    )


def _refused(versions: Sequence[str], workspace: Workspace, own: "Mapping[str, FeatureDefinition]") -> dict[str, str]:
    """The versions that were trained from features defined otherwise here, or nobody knows from what; and why."""
    from clearway.feature_store.definitions import differences, parse_definitions

    refused = {}
    for digest in versions:
        version = f"version {digest[:12]}"
        try:
            recorded = recorded_definitions(verify(workspace.bundles / digest, digest))
            if recorded is None:
                refused[digest] = f"{version} was not trained from features defined with Feast"
            elif differing := differences(parse_definitions(recorded, version), own):
                refused[digest] = f"{version} was served under other definitions: {'; '.join(differing)}"
        except BundleError:
            refused[digest] = f"the bundle of {version} is not whole in {workspace.bundles}"
        except ClearwayError as error:
            refused[digest] = str(error)
    return refused


def _stored_views(
    definitions: "Definitions", described: "Mapping[str, FeatureDefinition]", events: Mapping[str, pd.DataFrame]
) -> list[StoredView]:
    return [
        StoredView(
            name=view.name,
            keys=tuple(key for key in view.join_keys if key in events[view.name].columns),
            time=view.batch_source.timestamp_field,
            fields=tuple(
                name for name, known in described.items() if known.kind == "stored" and known.view == view.name
            ),
            ttl=view.ttl or None,
            rows=events[view.name],
        )
        for view in definitions.views
        if view.name in events
    ]


_COLUMNS = ("feature", "view", "compared", "differ", "share", "largest", "first asked (UTC)", "served", "recomputed")
_LEFT = ("feature", "view", "first asked (UTC)")


def _differing(report: SkewReport) -> list[FeatureSkew]:
    """The features that differ, in the order in which they first did."""
    found = [(feature.first.asked_at, place, feature) for place, feature in enumerate(report.features) if feature.first]
    return [feature for _, _, feature in sorted(found, key=lambda each: each[:2])]


def _cells(feature: FeatureSkew) -> list[str]:
    first = feature.first
    return [
        feature.name,
        feature.view or "request",
        f"{feature.compared:,}",
        f"{feature.different:,}",
        f"{feature.share:.2%}",
        "-" if feature.largest is None else f"{feature.largest:.6g}",
        "-" if first is None else f"{first.asked_at:%Y-%m-%d %H:%M:%S}",
        "-" if first is None else shown(first.served),
        "-" if first is None else shown(first.recomputed),
    ]


def _page(report: SkewReport, described: "Mapping[str, FeatureDefinition]") -> Page:
    asked = "-"
    if report.asked_from and report.asked_until:
        asked = f"{report.asked_from:%Y-%m-%d %H:%M} to {report.asked_until:%Y-%m-%d %H:%M} UTC"
    facts = [
        ("environment", report.environment),
        ("predictions compared", f"{report.predictions:,}"),
        ("asked", asked),
        ("values compared", f"{report.values:,}"),
        ("values that differ", f"{report.different:,}"),
        ("predictions with any", f"{report.predictions_different:,}"),
    ]
    differing = _differing(report)
    blocks: list[Block] = []
    if differing:
        cards = [_card(feature, described.get(feature.name)) for feature in differing if feature.first]
        blocks.append(Cards(f"What differs ({len(cards)}), earliest first", cards, _METHOD))
    if report.not_compared:
        rows = [(one.reason, f"{one.predictions:,}") for one in report.not_compared]
        blocks.append(Table("Not compared", ("why", "predictions"), rows, ["unknown"] * len(rows)))
    if report.predictions:
        status = ["fail" if feature.different else "pass" for feature in report.features]
        values = [_cells(feature) for feature in report.features]
        note = "" if differing else _METHOD
        blocks.append(Table("All features, in the model's order", _COLUMNS, values, status, note))
    return Page("Train-serve skew", report.verdict.replace("_", " "), _PAGE_STATUS[report.verdict], report.sentence,
                facts, blocks)  # fmt: skip


def _card(feature: FeatureSkew, definition: "FeatureDefinition | None") -> Card:
    first = feature.first
    assert first is not None  # only of features that differ
    facts = [
        ("values that differ", f"{feature.different:,} of {feature.compared:,} ({feature.share:.2%})"),
        *([("cause", feature.hint)] if feature.hint else []),
        *([("largest difference", f"{feature.largest:.10g}")] if feature.largest is not None else []),
        *(_defined(definition) if definition else []),
    ]
    return Card(feature.name, "fail", feature.view or "request", facts, _example(first))


def _defined(definition: "FeatureDefinition") -> list[tuple[str, str]]:
    """What helps to find where a feature comes from."""
    return [
        ("meaning", definition.description),
        ("made from", ", ".join(definition.sources) or "-"),
        ("owner", definition.owner or "-"),
    ]


def _example(first: Example) -> Table:
    inputs: dict[str, Any] = first.inputs
    rows = [
        ("asked (UTC)", f"{first.asked_at:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".")),
        ("id", first.id or "-"),
        ("version", first.version[:12]),
        ("served", shown(first.served)),
        ("recomputed", shown(first.recomputed)),
        *((name, shown(value)) for name, value in inputs.items()),
    ]
    return Table("", ("the first", "value"), rows)
