"""Feature tables: the questions a project asks, their features, and which of them train, are held out, or are current.

``build_features`` is the stage of the line, ``replay_questions`` the traffic of a rollout. Both ask the project the
same two things, so a replayed question carries the features that training would give it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.acceptance import accept_raw
from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, RESERVED, ROW_ID
from clearway.encoding import as_encoded
from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_directory, atomic_path, canonical_json, sha256_bytes, sha256_file, write_json
from clearway.lineage import RECIPE_MODULES
from clearway.params import Kind, Params, SplitParams
from clearway.project import AnyProject, Project, StoredProject, Tables, definitions_sha256
from clearway.schema import Column, DataSchema, RowCount, TableSchema, load_schema
from clearway.snapshot import load_tables, read_tables_at
from clearway.stored_features import (
    check_no_foresight,
    definitions_of,
    describe,
    event_tables,
    historical_features,
    inputs_of,
    write_event_tables,
)
from clearway.target import class_names, refused_label
from clearway.workspace import Workspace

WINDOWS = ("training", "holdout", "current")
SOURCE_MODULES = ("snapshot.py", "sources.py", "stored_features.py")
"""What shapes replayed traffic, beside the modules of the recipe."""
Ask = Callable[[pd.DataFrame, Tables], pd.DataFrame]
"""From questions and the raw tables to the features of each question."""


class NoQuestionsError(ClearwayError):
    """There is nothing to replay: the source has no rows after ``as_of``."""


@dataclass(frozen=True)
class Windows:
    """Which questions train, are held out, and are current; each is a boolean array over all questions."""

    training: NDArray[np.bool_]
    """Labelled questions, their answers known before the holdout begins."""
    holdout: NDArray[np.bool_]
    """Labelled questions that training never sees."""
    current: NDArray[np.bool_]
    """What the world asks now, answered or not."""
    bounds: Mapping[str, tuple[datetime, datetime] | None]
    """Of each window, its first time and the time at which it ends; None where there is no such bound."""

    def mask(self, window: str) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = getattr(self, window)
        return mask


@dataclass(frozen=True)
class FeatureTables:
    """What :func:`build_features` wrote."""

    as_of: datetime | None
    rows: Mapping[str, int]
    """Rows of each window."""
    features: int
    folder: Path
    set_aside: int
    """Questions left out of all windows, because a feature is not what the schema declares (severity quarantine)."""
    warnings: tuple[str, ...]
    """What the schema warns of in the features of labelled questions."""
    views: Mapping[str, "ViewHealth"]
    """Of each feature view and on-demand view; none where the features are not stored."""


@dataclass(frozen=True)
class ViewHealth:
    """How fresh and how complete a feature view is; an entry of ``reports/features.json``."""

    rows: int | None
    """Rows of its table; None for an on-demand view."""
    keys: int | None
    age_hours: float | None
    """From the newest row to ``as_of``; None without a row."""
    ttl_hours: float | None
    """How long a row holds at most; None without an end."""
    null_share: float | None
    """Share of missing values among its features of the questions of all windows; None where it has none."""


def build_features(params: Params, workspace: Workspace, project: AnyProject) -> FeatureTables:
    """Turn the raw tables into ``data/features``: one Parquet file per window, and ``features.json``.

    The rows of a :class:`StoredProject`'s views go to ``data/feature_tables`` first, and its features are read from
    there through Feast. How fresh and complete its views are is written to ``reports/features.json``. The same raw
    tables, params and code give the same bytes.

    Raises
    ------
    UsageError
        The questions have times, but params.yaml has no ``as_of``, or the other way round; or a definition or
        ``feature_store.yaml`` is wrong.
    ClearwayError
        A raw table is missing; the project breaks its contract; an answer is known that must not be known yet; what a
        feature view knew before the holdout changes with what became known later; a feature is not what the schema
        declares; a window is empty; a numeric feature has no value in the training window.
    """
    as_of = params.time()
    if as_of is None and isinstance(project, StoredProject):
        raise UsageError("params.yaml: as_of is missing: stored features are known from some time on; set it")
    declared = declared_features(load_schema(workspace.root / params.data_schema), params, project)
    tables = accept_raw(load_tables(workspace, params), params, workspace, as_of)
    events = event_tables(project, tables, known_until=as_of) if isinstance(project, StoredProject) else {}
    if isinstance(project, StoredProject) and as_of is not None:
        check_no_foresight(project, tables, events, as_of - timedelta(days=params.split.holdout_days))
    write_event_tables(events, workspace.feature_tables)
    found = _features(params, workspace, project)
    asked = ask(project, tables, known_until=as_of, features=found, kind=params.target.kind)
    waived = params.decision.override_veto is not None
    judged = _waived(declared) if waived else declared
    warnings = check_features(asked[asked[LABEL].notna()], judged, most_aside=1.0 if waived else None)
    frame = accept_features(asked, judged)
    windows = split(frame, params.split, as_of, params.seed, (*project.numeric, *project.categorical))
    rows = {window: int(windows.mask(window).sum()) for window in WINDOWS}
    unknown = [name for name in project.numeric if frame.loc[windows.training, name].isna().all()]
    if unknown:
        raise ClearwayError(
            f"feature {', '.join(unknown)} has no value in the {rows['training']} rows of the training window: nothing "
            "can be learnt from it; take it out (params.yaml: data.ignore, or the project's features), or bring data"
        )
    with atomic_directory(workspace.features) as folder:
        for window in WINDOWS:
            _write_parquet(frame[windows.mask(window)], folder / f"{window}.parquet")
        write_json(
            folder / "features.json",
            {
                "numeric": list(project.numeric),
                "categorical": list(project.categorical),
                "declared": {
                    name: column.model_dump(mode="json", exclude_defaults=True) for name, column in declared.items()
                },
                **_defined(params, project),
                "rows": rows,
                "windows": {name: _iso(bounds) for name, bounds in windows.bounds.items()},
                "answers_until": {name: _last_answer(frame[windows.mask(name)]) for name in ("training", "holdout")},
            },
        )
    used = np.logical_or.reduce([windows.mask(window) for window in WINDOWS])
    views = view_health(project, events, frame[used], as_of) if isinstance(project, StoredProject) else {}
    write_json(
        workspace.reports / "features.json",
        {
            "as_of": None if as_of is None else as_of.isoformat(),
            "views": {name: asdict(v) for name, v in views.items()},
        },
    )
    features = len(project.numeric) + len(project.categorical)
    return FeatureTables(as_of, rows, features, workspace.features, len(asked) - len(frame), warnings, views)


def view_health(
    project: StoredProject, events: Mapping[str, pd.DataFrame], features: pd.DataFrame, as_of: datetime | None
) -> dict[str, ViewHealth]:
    """How fresh and how complete each view is, by name.

    Parameters
    ----------
    events : mapping of view to DataFrame
        Of :func:`event_tables`.
    features : DataFrame of n rows
        The project's features.
    """
    definitions = definitions_of(project)
    described = describe(project)
    health = {}
    for view in (*definitions.views, *definitions.on_demand):
        rows = events.get(view.name)
        names = [name for name, feature in described.items() if feature.view == view.name]
        newest = None if rows is None or rows.empty else rows[view.batch_source.timestamp_field].max()
        health[view.name] = ViewHealth(
            rows=None if rows is None else len(rows),
            keys=None if rows is None else len(rows[list(view.join_keys)].drop_duplicates()),
            age_hours=None if newest is None or as_of is None else round((as_of - newest).total_seconds() / 3600, 3),
            ttl_hours=view.ttl.total_seconds() / 3600 if getattr(view, "ttl", None) else None,
            null_share=round(float(features[names].isna().to_numpy().mean()), 6) if names else None,
        )
    return health


def summary_of(views: Mapping[str, ViewHealth]) -> str:
    """One line: the view that has been silent longest, and the one that misses most."""
    aging = {name: view.age_hours for name, view in views.items() if view.ttl_hours and view.age_hours is not None}
    silent = max(((age, name) for name, age in aging.items()), default=None)
    missing = max(((v.null_share, n) for n, v in views.items() if v.null_share is not None), default=None)
    parts = [
        f"{len(views)}",
        *([] if silent is None else [f"oldest newest row: {silent[1]}, {silent[0]:,.1f} h"]),
        *([] if missing is None else [f"most nulls: {missing[1]}, {missing[0]:.1%}"]),
    ]
    return "; ".join(parts)


def _features(params: Params, workspace: Workspace, project: AnyProject) -> Ask | None:
    """How the features of a stored project are found from its own tables."""
    if not isinstance(project, StoredProject):
        return None

    def found(questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
        return historical_features(params, workspace, project, questions, inputs_of(project, questions, tables))

    return found


def _defined(params: Params, project: AnyProject) -> dict[str, Any]:
    """What ``features.json`` says of how the features are defined, and so what a bundle will say of it."""
    if not isinstance(project, StoredProject):
        return {"definitions_sha256": definitions_sha256(params)}
    from clearway.feature_store.definitions import definitions_hash, service_name

    described = describe(project)
    hashed = definitions_hash(described)
    return {
        "feature_service": service_name(params.project.name, hashed),
        "definitions": {name: feature.model_dump(mode="json") for name, feature in described.items()},
        "definitions_sha256": hashed,
    }


def replay_questions(params: Params, workspace: Workspace, project: AnyProject) -> pd.DataFrame:
    """The questions that the world asks in the ``replay.days`` after ``as_of``, with features, in time order.

    With a :class:`StoredProject` they carry what a caller sends instead: join keys and request fields. Without time in
    the data they are the holdout rows in a seeded order. The table is kept under ``var/replay/`` for the next call; it
    is made anew when the snapshot, the params or the code that shape it differ.

    Raises
    ------
    UsageError
        As :func:`build_features`.
    NoQuestionsError
        The source holds no question after ``as_of``.
    ClearwayError
        As :func:`build_features`.
    """
    if isinstance(project, StoredProject):
        return pd.read_parquet(_stored_traffic(params, workspace, project) / "questions.parquet")
    kept = workspace.var / "replay" / f"{_replay_key(params, workspace)}.parquet"
    if kept.exists():
        return pd.read_parquet(kept)
    as_of = params.time()
    frame = _holdout_traffic(params, workspace, project) if as_of is None else _later(params, workspace, project, as_of)
    with atomic_path(kept) as temporary:
        _write_parquet(frame, temporary)
    return pd.read_parquet(kept)


def replay_events(params: Params, workspace: Workspace, project: StoredProject) -> dict[str, pd.DataFrame]:
    """The rows of each feature view up to the last of the :func:`replay_questions`, kept beside these.

    Raises
    ------
    UsageError, ClearwayError
        As :func:`replay_questions`.
    """
    folder = _stored_traffic(params, workspace, project) / "events"
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def ask(
    project: AnyProject,
    tables: Tables,
    *,
    known_until: datetime | None,
    since: datetime | None = None,
    until: datetime | None = None,
    features: Ask | None = None,
    kind: Kind = "binary",
) -> pd.DataFrame:
    """The project's questions with their features: reserved columns, numeric, categorical; in the project's order.

    Parameters
    ----------
    known_until : datetime or None
        When the tables were read: no answer may be known later than this. None where the data knows no time.
    since, until : datetime, optional
        Only questions with ``prediction_time`` in [since, until).
    features : function of questions and tables, optional
        How features are found, if not by the project's own ``features()``, which a :class:`StoredProject` lacks: see
        :func:`~clearway.stored_features.historical_features`.
    kind : Kind
        What a label may be.

    Raises
    ------
    UsageError
        Questions have times and ``known_until`` is None, or the other way round; or the project has no ``features()``
        and none are given.
    ClearwayError
        The project breaks its contract, or an answer is known that must not be known yet.
    """
    questions = project.questions(tables)
    _check_questions(questions, known_until, kind)
    if since is not None:
        questions = questions[questions[PREDICTION_TIME] >= since]
    if until is not None:
        questions = questions[questions[PREDICTION_TIME] < until]
    found = features or getattr(project, "features", None)
    if found is None:
        raise UsageError("the project's features are stored: ask with historical_features of clearway.stored_features")
    safe = _safe(found(questions, tables), project, questions.index)
    return pd.concat([_reserved(questions, kind), safe], axis="columns").reset_index(drop=True)


def declared_features(schema: DataSchema, params: Params, project: AnyProject) -> dict[str, Column]:
    """What the schema says of the project's features, by feature: one rule for training rows and for requests.

    A package's features are described by ``features`` in the schema, a flat table's by the table's columns. Of those
    only what holds of each value is taken: mean, unique and shares were judged on the whole table.

    Raises
    ------
    UsageError
        The schema describes a feature that the project does not have, or as text where it is a number, or the other
        way round.
    """
    if params.project.package is None:
        assert params.data is not None  # checked when params were loaded
        if schema.features:
            raise UsageError(
                f"{params.data_schema}: features is for project packages: what a feature of a flat table may be is "
                f"said in tables.{params.data.table}.columns"
            )
        columns = schema.table(params.data.table).columns
        return {name: _of_each_value(columns[name]) for name in (*project.numeric, *project.categorical)}
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(project.numeric, ("int", "float"))
    kinds |= dict.fromkeys(project.categorical, ("str",))
    for name, column in schema.features.items():
        if name not in kinds:
            similar = difflib.get_close_matches(name, kinds, n=1)
            hint = f": do you mean {similar[0]}?" if similar else f" (features: {', '.join(kinds)})"
            raise UsageError(f"{params.data_schema}: features.{name} is no feature of the project{hint}")
        if column.kind not in kinds[name]:
            raise UsageError(
                f"{params.data_schema}: features.{name}.kind = {column.kind}, but the project's feature is of kind "
                f"{' or '.join(kinds[name])}"
            )
    return dict(schema.features)


def check_features(
    frame: pd.DataFrame, declared: Mapping[str, Column], *, most_aside: float | None = None
) -> tuple[str, ...]:
    """Judge rows of features by what the schema declares of them, as requests are judged.

    Parameters
    ----------
    frame : DataFrame
    declared : mapping of feature to Column
    most_aside : float, optional
        Largest share of rows that may be set aside, if not that of every table. Where it is given, what sets rows
        aside is among the warnings.

    Returns
    -------
    warnings : tuple of str
        What the schema warns of, one line per check.

    Raises
    ------
    ClearwayError
        A feature is not what is declared, or more rows are to be set aside than may be; names features and checks.
    """
    if not declared:
        return ()
    from clearway.validation import validate_table

    report = validate_table("features", frame, _feature_schema(declared, most_aside))
    failed = report.having("fail")
    if failed:
        causes = "; ".join(f"{check.column or 'all'} {check.check}: {check.detail}" for check in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise ClearwayError(
            f"features of the {len(frame)} labelled questions are not what the schema declares: {causes}{more}"
        )
    told = [*report.having("warn"), *(report.having("quarantine") if most_aside is not None else ())]
    return tuple(
        f"feature {check.column} {check.check}: {check.detail}{'; set aside' if check.status == 'quarantine' else ''}"
        for check in told
    )


def accept_features(frame: pd.DataFrame, declared: Mapping[str, Column]) -> pd.DataFrame:
    """The questions without those that a server would refuse for a feature of severity ``quarantine``."""
    if not any(column.severity == "quarantine" for column in declared.values()):
        return frame
    from clearway.acceptance import accept

    return accept({"features": frame}, _feature_schema(declared), {})["features"].reset_index(drop=True)


def _waived(declared: Mapping[str, Column]) -> dict[str, Column]:
    """With ``decision.override_veto`` bad questions do not stop the line, but are never learnt from: a server will
    refuse their like."""
    return {
        name: column.model_copy(update={"severity": "quarantine", "error_share": None})
        if column.severity == "error"
        else column
        for name, column in declared.items()
    }


def _of_each_value(column: Column) -> Column:
    whole = {"max_null": None, "mean": None, "std": None, "unique": False, "min_distinct": None, "error_share": None}
    return column.model_copy(update=whole | ({} if column.min_known is None else {"min_known": 0.0}))


def _feature_schema(declared: Mapping[str, Column], most_aside: float | None = None) -> DataSchema:
    columns = {name: as_encoded(column) for name, column in declared.items()}
    table = TableSchema(rows=RowCount(min=0), extra_columns="allow", columns=columns)
    if most_aside is not None:
        table = table.model_copy(update={"max_quarantine": most_aside})
    return DataSchema(tables={"features": table})


def split(
    frame: pd.DataFrame, params: SplitParams, as_of: datetime | None, seed: int, features: tuple[str, ...]
) -> Windows:
    """Set questions aside.

    With time, the holdout is the labelled questions of the last ``holdout_days`` before ``as_of``; training is the
    labelled questions before it whose answers were known before it begins; current is all questions of the last
    ``current_days``. Without time, a row's place follows from a seeded hash of its content: reordering the table moves
    no row, and equal rows are never on both sides. Current is then every row.

    Raises
    ------
    ClearwayError
        A window is empty.
    """
    labelled = frame[LABEL].notna().to_numpy()
    if as_of is None:
        held = content_hash(frame, features, seed) < params.holdout_share
        windows = Windows(labelled & ~held, labelled & held, np.ones(len(frame), dtype=bool), dict.fromkeys(WINDOWS))
        _refuse_empty(windows, frame, params)
        return windows
    held_from = as_of - timedelta(days=params.holdout_days)
    current_from = as_of - timedelta(days=params.current_days)
    asked, answered = frame[PREDICTION_TIME], frame[LABEL_TIME]
    training = labelled & ((asked < held_from) & (answered < held_from)).to_numpy()
    holdout = labelled & ((asked >= held_from) & (asked < as_of)).to_numpy()
    current = ((asked >= current_from) & (asked < as_of)).to_numpy()
    first = asked.min().to_pydatetime() if len(frame) else held_from
    bounds = {"training": (first, held_from), "holdout": (held_from, as_of), "current": (current_from, as_of)}
    windows = Windows(training, holdout, current, bounds)
    _refuse_empty(windows, frame, params)
    return windows


def content_hash(frame: pd.DataFrame, features: tuple[str, ...], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) per row, from the seed and the row's entity, label and features, not from its place."""
    content = frame[[ENTITY, LABEL, *features]].assign(seed=np.uint64(seed))
    hashes = pd.util.hash_pandas_object(content, index=False).to_numpy()
    return hashes / 2.0**64


def _later(params: Params, workspace: Workspace, project: Project, as_of: datetime) -> pd.DataFrame:
    until = as_of + timedelta(days=params.replay.days)
    tables = accept_raw(read_tables_at(params, workspace, project, until), params, workspace, until)
    declared = declared_features(load_schema(workspace.root / params.data_schema), params, project)
    asked = ask(project, tables, known_until=until, since=as_of, until=until, kind=params.target.kind)
    frame = accept_features(asked, declared)
    if frame.empty:
        raise _no_questions(params, as_of, until)
    return frame.sort_values([PREDICTION_TIME, ROW_ID], kind="stable", ignore_index=True)


def _stored_traffic(params: Params, workspace: Workspace, project: StoredProject) -> Path:
    """The folder that holds the questions of a replay, and the rows that its online store is told as time goes on.

    A question is left out for an input that the schema sets aside, not for a feature: to know its features is the
    server's part, and one that it refuses is counted as refused.
    """
    kept = workspace.var / "replay" / _replay_key(params, workspace)
    if kept.is_dir():
        return kept
    as_of = params.time()
    if as_of is None:
        raise UsageError("params.yaml: as_of is missing: features that are read by key have a time; set it")
    until = as_of + timedelta(days=params.replay.days)
    tables = accept_raw(read_tables_at(params, workspace, project, until), params, workspace, until)
    questions = project.questions(tables)
    _check_questions(questions, until, params.target.kind)
    questions = questions[(questions[PREDICTION_TIME] >= as_of) & (questions[PREDICTION_TIME] < until)]
    inputs = inputs_of(project, questions, tables)
    frame = pd.concat([_reserved(questions, params.target.kind), inputs], axis="columns")
    declared = declared_features(load_schema(workspace.root / params.data_schema), params, project)
    frame = accept_features(frame, {name: column for name, column in declared.items() if name in inputs.columns})
    if frame.empty:
        raise _no_questions(params, as_of, until)
    frame = frame.sort_values([PREDICTION_TIME, ROW_ID], kind="stable", ignore_index=True)
    with atomic_directory(kept) as folder:
        _write_parquet(frame, folder / "questions.parquet")
        write_event_tables(event_tables(project, tables, known_until=until), folder / "events")
    return kept


def _no_questions(params: Params, as_of: datetime, until: datetime) -> NoQuestionsError:
    return NoQuestionsError(
        f"no question to replay in [{as_of.isoformat()}, {until.isoformat()}) (params.yaml: replay.days = "
        f"{params.replay.days}): the source ends before as_of; set an earlier as_of"
    )


def _holdout_traffic(params: Params, workspace: Workspace, project: Project) -> pd.DataFrame:
    tables = accept_raw(load_tables(workspace, params), params, workspace, None)
    frame = ask(project, tables, known_until=None, kind=params.target.kind)
    features = (*project.numeric, *project.categorical)
    windows = split(frame, params.split, None, params.seed, features)
    held = frame[windows.holdout]
    order = np.random.default_rng(params.seed).permutation(len(held))
    return held.iloc[order].reset_index(drop=True)


def _replay_key(params: Params, workspace: Workspace) -> str:
    shaping = {"project", "as_of", "seed", "sources", "data", "target", "split", "replay"}
    here = Path(__file__).parent
    if not workspace.snapshot.exists():
        raise ClearwayError(f"{workspace.snapshot} is missing: run scripts/ingest.py first")
    key = {
        "snapshot": sha256_file(workspace.snapshot),
        "params": params.model_dump(mode="json", include=shaping),
        "definitions": definitions_sha256(params),
        "schema": sha256_file(workspace.root / params.data_schema),
        "code": {name: sha256_file(here / name) for name in (*RECIPE_MODULES, *SOURCE_MODULES)},
    }
    return sha256_bytes(canonical_json(key))[:16]


def _check_questions(questions: pd.DataFrame, known_until: datetime | None, kind: Kind) -> None:
    """The contract of ``Project.questions``, and the guard that no answer is known before its time."""
    missing = [name for name in RESERVED if name not in questions.columns]
    if missing:
        raise ClearwayError(f"the project's questions() lacks the columns {', '.join(missing)}")
    unnamed = int(questions[ROW_ID].isna().sum())
    if unnamed:
        raise ClearwayError(f"the project's questions() has {unnamed} rows without row_id")
    repeated = questions.loc[questions[ROW_ID].duplicated(), ROW_ID]
    if len(repeated):
        example = repeated.iloc[0]
        raise ClearwayError(f"the project's questions() repeats {len(repeated)} row_ids, for example {example!r}")
    if not questions.index.is_unique:
        raise ClearwayError("the project's questions() repeats values of its index: each row needs its own")
    for label in questions[LABEL].dropna().unique():
        if refused := refused_label(kind, label):
            raise ClearwayError(f"the project's questions() has {refused}")
    timed = questions[PREDICTION_TIME].notna()
    if known_until is None:
        if timed.any():
            raise UsageError(
                "params.yaml: as_of is missing, but the project's questions have a prediction_time: set it"
            )
        return
    if not timed.any() and len(questions):
        raise UsageError(f"params.yaml: as_of = {known_until.isoformat()}, but the project knows no time: remove as_of")
    if not timed.all():
        raise ClearwayError(f"{int((~timed).sum())} questions have no prediction_time, but others do")
    labelled = questions[questions[LABEL].notna()]
    known = labelled[LABEL_TIME]
    for offence, rows in (
        ("have a label but no label_time", labelled[known.isna()]),
        (f"have a label that becomes known only after {known_until.isoformat()}", labelled[known > known_until]),
        ("have a label that was known before the question was asked", labelled[known < labelled[PREDICTION_TIME]]),
    ):
        if len(rows):
            raise ClearwayError(f"{len(rows)} questions {offence}, for example row_id {rows[ROW_ID].iloc[0]!r}")


def _reserved(questions: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """The reserved columns in their order and with their types, whatever the project used."""
    columns = {
        ROW_ID: questions[ROW_ID].astype("string"),
        ENTITY: questions[ENTITY].astype("string"),
        PREDICTION_TIME: questions[PREDICTION_TIME].astype("datetime64[ns, UTC]"),
        LABEL_TIME: questions[LABEL_TIME].astype("datetime64[ns, UTC]"),
        LABEL: class_names(questions[LABEL]) if kind == "multiclass" else questions[LABEL].astype("float64"),
    }
    return pd.DataFrame(columns, columns=list(RESERVED))


def _safe(features: pd.DataFrame, project: AnyProject, index: pd.Index) -> pd.DataFrame:
    """Features as training and serving read them: numbers that float32 holds exactly, categories as strings.

    Numbers stay float64 in the table, rounded through float32: written as JSON in a request and read back, they are
    the numbers that training saw.
    """
    missing = [name for name in (*project.numeric, *project.categorical) if name not in features.columns]
    if missing:
        raise ClearwayError(f"the project's features() lacks {', '.join(missing)}, which it declares")
    clash = sorted(set(RESERVED) & {*project.numeric, *project.categorical})
    if clash:
        raise ClearwayError(f"the project declares a feature named {', '.join(clash)}: the name is reserved")
    if not features.index.equals(index):
        raise ClearwayError(
            f"the project's features() returned {len(features)} rows that are not its {len(index)} questions"
        )
    safe: dict[str, Any] = {}
    for name in project.numeric:
        if features[name].dtype.kind in "mM":  # as nanoseconds, a missing time would be the year 1677
            raise ClearwayError(
                f"feature {name} is a time or a span, not a number: derive one, or name it in params.yaml: data.ignore"
            )
        try:
            numbers = pd.to_numeric(features[name]).to_numpy(dtype=np.float64, na_value=np.nan)
        except (ValueError, TypeError) as error:
            raise ClearwayError(f"feature {name} is not numeric: {error}") from None
        with np.errstate(over="ignore"):
            rounded = numbers.astype(np.float32).astype(np.float64)
        if np.isinf(rounded).any():
            infinite = float(numbers[np.isinf(rounded)][0])
            raise ClearwayError(f"feature {name} = {infinite}: too large for float32; correct its definition")
        safe[name] = rounded
    for name in project.categorical:
        safe[name] = features[name].astype("string")
    return pd.DataFrame(safe, index=index)


def _refuse_empty(windows: Windows, frame: pd.DataFrame, params: SplitParams) -> None:
    keys = {
        "training": f"split.holdout_days = {params.holdout_days}",
        "holdout": f"split.holdout_days = {params.holdout_days}",
        "current": f"split.current_days = {params.current_days}",
    }
    for window in WINDOWS:
        if windows.mask(window).any():
            continue
        bounds = windows.bounds[window]
        if bounds is None:
            key, where = f"split.holdout_share = {params.holdout_share}", "in the data"
        else:
            key, where = f"as_of, {keys[window]}", f"in [{bounds[0].isoformat()}, {bounds[1].isoformat()})"
        kind = "question" if window == "current" else "labelled question"
        raise ClearwayError(
            f"the {window} window is empty: none of {len(frame)} questions is a {kind} {where}; "
            f"change params.yaml: {key}, or bring data"
        )


def _last_answer(rows: pd.DataFrame) -> str | None:
    """When the last answer among the rows became known; None where the data knows no time."""
    last = rows[LABEL_TIME].max()
    return None if pd.isna(last) else str(last.isoformat())


def _iso(bounds: tuple[datetime, datetime] | None) -> list[str] | None:
    return None if bounds is None else [bound.isoformat() for bound in bounds]


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False, engine="pyarrow", compression="zstd")
