"""The skew check: reads served predictions from the log, recomputes their features, writes the report for people."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table as TerminalTable

from clearway.acceptance import accept_raw
from clearway.bundle import BundleError, verify
from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_json
from clearway.ledger import canary_digest, read_ledger, stable_digest
from clearway.log_hiding import hidden_in
from clearway.model import recorded_definitions
from clearway.params import Params, UtcTime
from clearway.prediction_log import read_log
from clearway.project import StoredProject, load_project
from clearway.reporting import Block, Card, Cards, Page, Table, write_page
from clearway.schema import flat_columns
from clearway.skew import (
    Example,
    FeatureSkew,
    Required,
    Served,
    SkewReport,
    StoredView,
    compare,
    differing,
    named,
    shown,
)
from clearway.skew_state import SkewState, write_skew_state
from clearway.snapshot import read_tables_at
from clearway.stored_features import event_tables, historical_features, typed_inputs
from clearway.targets import target_of
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.definitions import Definitions, FeatureDefinition

READ = (
    "id",
    "version",
    "role",
    "asked_at",
    "asked_text",
    "served_at",
    "status",
    "features",
    "inputs",
    "hidden",
    "where",
)
NO_FEATURES = "their features were not logged (params.yaml: serving.log.leave_out)"
HIDDEN_INPUTS = "what they were looked up by is left out of the log or hashed (params.yaml: serving.log)"
NO_INPUTS = "they carried their features themselves"
NO_TIME = "they did not say when they were asked"
NOT_A_TIME = "their asked_at is no time between the years 1678 and 2261"
FUTURE = "they were asked of a time after they were served, of which nothing was known yet"
NO_LOOKUP = "the server could not look up their features"
REFUSED = "they were refused (status 422) before their features were looked up"
CELL = 24
"""Characters of a cell in the terminal."""
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
    digest: str | None = None,
    rollout: bool = False,
) -> SkewReport | None:
    """Compare the features that an environment served with those recomputed offline; write ``skew.json`` and page.

    None where the project stores no features: what a request carries is then what the model sees.

    Any value that differs is skew, whichever version it was served to. ``no_skew`` also needs a value of each feature
    of one version, ``digest``: what others were served clears nobody. A check of a whole rollout is recorded beside the
    ledger (:mod:`clearway.skew_state`), where the promotion of the canary asks for it.

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
    digest : str, optional
        The version that is to be cleared: by default the open canary, else the stable version.
    rollout : bool
        Only predictions since the current rollout began: an earlier one's skew does not count against this one.

    Raises
    ------
    UsageError
        There is no such environment, ``last`` is below 1, or ``digest`` is none.
    ClearwayError
        A source cannot be read, or features cannot be recomputed.
    """
    target = target_of(params, workspace, environment)
    if last is not None and last < 1:
        raise UsageError(f"last = {last}: must be at least 1")
    project = load_project(params, flat_columns(params, workspace.root))
    if not isinstance(project, StoredProject):
        return None
    from clearway.feature_store.definitions import describe_features
    from clearway.replay import rollout_revision

    definitions = project.definitions()
    described = describe_features(definitions, project.numeric, project.categorical)
    target.pull()
    entries = read_ledger(workspace.environment(environment), environment)
    digest = digest or canary_digest(entries) or stable_digest(entries)
    began = rollout_revision(entries) if rollout else None
    target.pull_log(began)
    log = read_log(workspace.environment(environment) / "predictions", since_revision=began, columns=READ)
    damage = (log.attrs["damaged_lines"], log.attrs["damaged"])
    if since is not None:
        log = log[log["asked_at"] >= pd.Timestamp(since)]
    log = log[log["role"] != "shadow"]  # copies, whose features are logged with the answers themselves
    log = log if last is None else log.tail(last)
    refused = _refused(log["version"].unique().tolist(), workspace, described)
    kept, left_out = comparable(log, refused, input_types(project), damage)
    served = Served(
        id=[None if pd.isna(name) else str(name) for name in kept["id"]],
        asked_at=[time.to_pydatetime(warn=False) for time in kept["asked_at"]],
        version=kept["version"].tolist(),
        inputs=kept["inputs"].tolist(),
        features=kept["features"].tolist(),
    )
    names = [*project.numeric, *project.categorical]
    recomputed, tolerated, events = pd.DataFrame(columns=names), None, dict[str, pd.DataFrame]()
    if len(served):
        recomputed, events = recompute(params, workspace, project, served)
        tolerated = _tolerated(params, workspace, project, served, recomputed)
    report = compare(
        served,
        recomputed,
        project.numeric,
        project.categorical,
        environment=environment,
        views=_stored_views(definitions, described, events),
        view_of={name: definition.view for name, definition in described.items()},
        not_compared=left_out,
        tolerated=tolerated,
        required=None if digest is None else Required(digest, _features_of(digest, workspace, names)),
        rollout=began,
    )
    write_report(report, described, workspace.reports)
    if digest is not None and began is not None and last is None and since is None:
        state = SkewState(environment=environment, digest=digest, rollout=began, verdict=report.verdict,
                          sentence=report.sentence)  # fmt: skip
        write_skew_state(workspace.environment(environment), state)
        target.publish()
    return report


def write_report(report: SkewReport, described: "Mapping[str, FeatureDefinition]", folder: Path) -> None:
    """Write ``skew.json`` and ``skew.html`` into ``folder``; ``described`` says where each feature comes from."""
    write_json(folder / "skew.json", report.model_dump(mode="json"))
    write_page(folder / "skew.html", _page(report, described))


def recompute(
    params: Params, workspace: Workspace, project: StoredProject, served: Served, tolerance: timedelta = timedelta(0)
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The features of served predictions as of the times of their questions, and the rows of each view.

    The rows are made anew from the sources, as these were known when the last question was asked. Beside the replay of
    traffic this is the only reader that may go past ``params.as_of``: the present of a served prediction is the time
    of its question.

    Parameters
    ----------
    tolerance
        How long after a question what becomes known still counts as known: rows are taken as known so much earlier.
        The questions keep their times, so that features computed from them are those that were served.

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
    last = max(served.asked_at) + tolerance
    tables = accept_raw(read_tables_at(params, workspace, project, last), params, workspace, last)
    events = event_tables(project, tables, known_until=last)
    if tolerance:
        times = {view.name: view.batch_source.timestamp_field for view in project.definitions().views}
        events = {name: rows.assign(**{times[name]: rows[times[name]] - tolerance}) for name, rows in events.items()}
    questions = pd.DataFrame({PREDICTION_TIME: pd.Series(served.asked_at, dtype="datetime64[ns, UTC]")})
    inputs = typed_inputs(project, pd.DataFrame(list(served.inputs)), "the inputs of the prediction log")
    return historical_features(params, workspace, project, questions, inputs, events), events


def comparable(
    log: pd.DataFrame,
    refused: Mapping[str, str],
    inputs: Mapping[str, str],
    damage: tuple[int, str] = (0, ""),
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The logged predictions whose features can be recomputed, the earliest question first; and why not the others.

    The status decides nothing: a row by key that the model's schema refuses (422) is logged with the features that were
    looked up, and they are compared like all others.

    Parameters
    ----------
    log : DataFrame
        With the columns :data:`READ`, in the order served.
    refused : mapping of version to reason
        Versions whose predictions cannot be compared.
    inputs : mapping of name to Feast's type
        What a question by key carries.
    damage : int and str
        Records that could not be read, and where the first of them is.
    """
    by_key, seen = log["inputs"].notna(), log["features"].notna()
    reasons = pd.Series(pd.NA, index=log.index, dtype="string")
    faults = [None if carried is None else _input_fault(carried, inputs) for carried in log["inputs"]]
    if any(faults):
        place = next(place for place, fault in enumerate(faults) if fault)
        first = f"{log['where'].iloc[place]}: {faults[place]}"
        faulty = pd.Series([fault is not None for fault in faults], index=log.index)
        reasons[faulty] = f"their inputs are not what the definitions ask for, the first is {first}"
    reasons[log["asked_at"] > log["served_at"]] = FUTURE
    reasons[log["asked_at"].isna()] = NOT_A_TIME
    reasons[log["asked_text"].isna()] = NO_TIME
    reasons = reasons.mask(log["version"].isin(list(refused)), log["version"].map(refused))
    reasons[~seen] = NO_FEATURES
    reasons[~seen & by_key & (log["status"] >= 500)] = NO_LOOKUP
    reasons[~seen & by_key & (log["status"] == 422)] = REFUSED
    reasons[seen & ~by_key] = NO_INPUTS
    lost = {fields: hidden_in(fields, "inputs") for fields in log["hidden"].dropna().unique()}
    whole = log["hidden"].isin([fields for fields, names in lost.items() if names is None])
    parts = log["hidden"].isin([fields for fields, names in lost.items() if names and names & inputs.keys()])
    reasons[seen & (whole | (parts & by_key))] = HIDDEN_INPUTS
    kept = log[reasons.isna()].sort_values("asked_at", kind="stable", ignore_index=True)
    left_out = {str(reason): int(number) for reason, number in reasons.value_counts().items()}
    kept, hidden = _without_hidden(kept)
    left_out |= {f"feature {name} is left out of the log or hashed (params.yaml: serving.log)": count
                 for name, count in hidden.items()}  # fmt: skip
    count, place_and_cause = damage
    return kept, left_out | ({f"their records are damaged, the first is {place_and_cause}": count} if count else {})


def _without_hidden(log: pd.DataFrame) -> tuple[pd.DataFrame, Counter[str]]:
    """Records without features of which only a hash is written, and how many records hide each."""
    hidden = Counter[str]()
    features = list(log["features"])
    for place, fields in enumerate(log["hidden"]):
        if isinstance(fields, str) and (names := hidden_in(fields, "features")) != frozenset():
            names = frozenset(features[place]) if names is None else names
            features[place] = {name: value for name, value in features[place].items() if name not in names}
            hidden.update(names)
    return log.assign(features=pd.Series(features, index=log.index, dtype="object")), hidden


def input_types(project: StoredProject) -> dict[str, str]:
    """Join keys and request fields that a question by key carries, and Feast's name of their types."""
    definitions = project.definitions()
    sent = [] if definitions.request is None else definitions.request.schema
    keys = {entity.join_key: "String" for entity in definitions.entities}
    return keys | {field.name: str(field.dtype) for field in sent if field.name != PREDICTION_TIME}


def _input_fault(carried: Mapping[str, Any], types: Mapping[str, str]) -> str | None:
    """What is wrong with the inputs of a record: a part of them cannot be looked up."""
    for name, dtype in types.items():
        if name not in carried:
            return f"inputs lack {name}"
        value = carried[name]
        if value is not None and type(value) not in _HELD.get(dtype, (type(value),)):
            return f"inputs.{name} is {shown(value)}, not {dtype}"
    return None


_HELD: dict[str, tuple[type, ...]] = {
    "String": (str,),
    "Bool": (bool,),
    **dict.fromkeys(("Float64", "Float32", "Int64", "Int32"), (float, int)),
}
"""Types of a JSON value that is read as each of Feast's types."""


def parse_time(text: str, option: str = "--since") -> datetime:
    """What a command's ``option`` says as a time; one without a zone is UTC.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        if _is_number(text):  # it would be read as seconds since 1970
            raise ValueError
        time = TypeAdapter(UtcTime).validate_python(text)
        pd.Timestamp(time).as_unit("ns")
    except ValueError:  # pydantic's and pandas' own errors are ValueErrors
        raise UsageError(f"{option} {text!r} is no time: write it as 2013-07-01T12:00:00Z") from None
    return time


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def terminal_table(report: SkewReport) -> TerminalTable:
    """The features that differ, those with the earliest difference first."""
    table = TerminalTable(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    for feature in _differing(report):
        table.add_row(*(escape(_fit(cell)) for cell in _cells(feature)), style="red")
    return table


def _fit(cell: str) -> str:
    """A cell that leaves room for the others."""
    return cell if len(cell) <= CELL else cell[: CELL - 1] + "…"


def way_on(report: SkewReport) -> str:
    """What to do about a verdict that is not ``no_skew``, as the end of a sentence."""
    name = report.environment
    if report.verdict == "unknown":
        return f"have it asked by key (scripts/replay_traffic.py --env {name}), then check again"
    if report.rollout is None:
        return "--rollout looks at the current rollout only, what was served before it remains in the log"
    return (
        f"end the rollout (scripts/rollback.py --env {name}), correct the cause, and open another: what was served "
        "before it will not count"
    )


def remarks(report: SkewReport) -> tuple[str, ...]:
    """What the report says beside its table, one sentence each: causes, and what was not compared."""
    causes = dict.fromkeys((feature.hint, feature.view) for feature in _differing(report) if feature.hint)
    of_cause = {
        cause: ", ".join(feature.name for feature in _differing(report) if (feature.hint, feature.view) == cause)
        for cause in causes
    }
    return (
        *(f"{names}: {hint}." for (hint, _), names in of_cause.items()),
        *(
            [f"{report.within_tolerance:,} values became known within the clock tolerance after their question."]
            if report.within_tolerance
            else []
        ),
        *(f"{one.predictions:,} predictions not compared: {one.reason}." for one in report.not_compared),
    )


def _refused(versions: Sequence[str], workspace: Workspace, own: "Mapping[str, FeatureDefinition]") -> dict[str, str]:
    """The versions that were trained from features defined otherwise here, or nobody knows from what; and why."""
    from clearway.feature_store.definitions import differences, parse_definitions

    refused = {}
    for digest in versions:
        version = f"version {named(digest[:12])}"
        if not _DIGEST.fullmatch(digest):  # it would be read as a path
            refused[digest] = f"{version} is no digest"
            continue
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


_DIGEST = re.compile(r"[0-9a-f]{64}")


def _features_of(digest: str, workspace: Workspace, otherwise: Sequence[str]) -> Sequence[str]:
    """The features of a version; those of the project where its bundle does not say, which refuses it anyhow."""
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"--digest {named(digest)}: must be the 64 hex digits of a version")
    try:
        return tuple(recorded_definitions(verify(workspace.bundles / digest, digest)) or otherwise)
    except ClearwayError:
        return tuple(otherwise)


def _tolerated(
    params: Params, workspace: Workspace, project: StoredProject, served: Served, recomputed: pd.DataFrame
) -> pd.DataFrame | None:
    """The features of the predictions that differ, with what became known within the server's clock tolerance."""
    tolerance = timedelta(seconds=params.serving.features.clock_tolerance_seconds)
    places = differing(served, recomputed, project.numeric, project.categorical) if tolerance else []
    if not places:
        return None
    questions = Served(
        id=[served.id[i] for i in places],
        asked_at=[served.asked_at[i] for i in places],
        version=[served.version[i] for i in places],
        inputs=[served.inputs[i] for i in places],
        features=[served.features[i] for i in places],
    )
    later, _ = recompute(params, workspace, project, questions, tolerance)
    return later.set_axis(places)


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
        ("values within the clock tolerance", f"{report.within_tolerance:,}"),
        *([("since revision", f"{report.rollout}")] if report.rollout is not None else []),
        *([("version to be cleared", report.version)] if report.version else []),
    ]
    wrong = _differing(report)
    blocks: list[Block] = []
    if wrong:
        cards = [_card(feature, described.get(feature.name)) for feature in wrong if feature.first]
        blocks.append(Cards(f"What differs ({len(cards)}), earliest first", cards, _METHOD))
    if report.not_compared:
        rows = [(one.reason, f"{one.predictions:,}") for one in report.not_compared]
        blocks.append(Table("Not compared", ("why", "predictions"), rows, ["unknown"] * len(rows)))
    if report.predictions:
        status = ["fail" if feature.different else "pass" for feature in report.features]
        values = [_cells(feature) for feature in report.features]
        note = "" if wrong else _METHOD
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
        ("id", "-" if first.id is None else named(first.id)),
        ("version", named(first.version[:12])),
        ("served", shown(first.served)),
        ("recomputed", shown(first.recomputed)),
        *((name, shown(value)) for name, value in inputs.items()),
    ]
    return Table("", ("the first", "value"), rows)
