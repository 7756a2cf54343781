"""The features of a :class:`~clearway.project.StoredProject`: the rows of its views, and what they said at any time.

Feast is imported by the functions here, not by this module: a project without stored features never needs it.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError
from clearway.files import atomic_directory
from clearway.online_record import EMBEDDED
from clearway.params import Params
from clearway.project import StoredProject, Tables
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

    from clearway.feature_store.definitions import Definitions, FeatureDefinition

_DTYPES = {
    "String": "string[pyarrow]",  # Feast and Polars take it without a copy
    "Float64": "float64",
    "Float32": "float32",
    "Int64": "Int64",
    "Int32": "Int32",
    "Bool": "boolean",
}
"""pandas' dtype of each of Feast's types that needs one; the others are kept as they are."""


def event_tables(
    project: StoredProject, tables: Tables, *, known_until: datetime | None = None
) -> dict[str, pd.DataFrame]:
    """The rows of each feature view, by its name: join keys (text), when each row became known (UTC, µs), fields.

    They are in the order in which they became known, then of their keys. Of rows of one key and one time the last one
    stays; a row without a key matches nothing, and is left out.

    Parameters
    ----------
    tables : mapping of name to DataFrame
        The raw tables.
    known_until : datetime, optional
        Leave out what becomes known, or is created, later: a window's end can be foretold, but not what else happens
        until then.

    Raises
    ------
    ClearwayError
        An event builder fails, or gives no table; or the rows of a view lack a column or have it twice, have no known
        time, or values of another type; names view and column.
    """
    definitions = definitions_of(project)
    made = {}
    for view in definitions.views:
        try:
            rows = definitions.events[view.name](tables)
            made[view.name] = _checked(view, _join_keys(definitions.entities, view), rows, known_until)
        except ClearwayError:
            raise
        except Exception as error:  # an event builder is the project's own, and may raise anything
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise ClearwayError(f"the rows of feature view {view.name} cannot be made: {cause}") from error
    return made


def check_no_foresight(
    project: StoredProject, tables: Tables, events: Mapping[str, pd.DataFrame], earlier: datetime
) -> None:
    """Check that what counts as known at an earlier time does not change with what became known after it.

    The rows of each view are made once more from the tables as the world knew them ``earlier``; an event builder that
    looks ahead, such as one that subtracts the mean of a whole table, makes other rows then.

    Parameters
    ----------
    tables, events
        The raw tables, and :func:`event_tables` of them.
    earlier : datetime
        Before the time as of which the tables are known.

    Raises
    ------
    ClearwayError
        A row known by then differs; names view, key, time and field, and both values.
    """
    definitions = definitions_of(project)
    as_known = {name: project.known_at(name, frame, earlier) for name, frame in tables.items()}
    then = event_tables(project, as_known, known_until=earlier)
    for view in definitions.views:
        time, keys = view.batch_source.timestamp_field, _join_keys(definitions.entities, view)
        if view.batch_source.created_timestamp_column:  # of two rows of one time, the later correction is not known yet
            now = _checked(view, keys, definitions.events[view.name](tables), earlier)
        else:
            now = events[view.name][events[view.name][time] <= earlier].reset_index(drop=True)
        if not now.equals(then[view.name]):
            changed = _first_change(now, then[view.name], [*keys, time])
            raise ClearwayError(
                f"feature view {view.name} looks ahead: {changed}, though it was known by then "
                f"({earlier.isoformat()}): correct its event builder, or the project's known_at()"
            )


def _first_change(now: pd.DataFrame, then: pd.DataFrame, identity: list[str]) -> str:
    """The first row that is not the same, and where, in words."""
    both = then.merge(now, on=identity, how="outer", suffixes=("", " now"), indicator="_found", sort=False)
    both = both.sort_values(identity[-1], kind="stable")
    alone = both[both["_found"] != "both"]
    if not alone.empty:
        first = alone.iloc[0].to_dict()
        when = "only without" if first["_found"] == "left_only" else "only with"
        return f"{_named(first, identity)} has a row {when} what became known later"
    for row in both.rename(columns=str).to_dict("records"):
        for field in then.columns.difference(identity, sort=False):
            old, new = row[field], row[f"{field} now"]
            if (old == new) is not True and not (pd.isna(old) and pd.isna(new)):  # it may be pd.NA
                return f"{field} of {_named(row, identity)} was {old}, and is {new} with what became known later"
    return "its rows come in another order with what became known later"


def _named(row: Mapping[Any, Any], identity: list[str]) -> str:
    *keys, time = identity
    return f"{', '.join(str(row[key]) for key in keys) or 'a row'} at {row[time].isoformat()}"


def write_event_tables(events: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Put one Parquet file per view into ``folder``, in place of all that it holds. Equal rows give equal bytes."""
    with atomic_directory(folder) as made:
        for view, rows in events.items():
            rows.to_parquet(made / f"{view}.parquet", index=False, engine="pyarrow", compression="zstd")


def inputs_of(project: StoredProject, questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """What a caller would send with each question, on its index: join keys as text, then the fields of the request.

    Raises
    ------
    ClearwayError
        The project's ``inputs()`` has other rows than the questions, lacks a column, or has one of another type.
    """
    inputs = project.inputs(questions, tables)
    if not inputs.index.equals(questions.index):
        raise ClearwayError(
            f"the project's inputs() returned {len(inputs)} rows that are not its {len(questions)} questions"
        )
    return typed_inputs(project, inputs, "the project's inputs()")


def typed_inputs(project: StoredProject, inputs: pd.DataFrame, owner: str) -> pd.DataFrame:
    """Join keys as text, then the fields of the request, each of the type that its definition says; same index.

    Raises
    ------
    ClearwayError
        ``owner``, whose the inputs are, lacks a column, or has one of another type.
    """
    definitions = project.definitions()
    types = {entity.join_key: "String" for entity in definitions.entities}
    if definitions.request is not None:
        sent = [field for field in definitions.request.schema if field.name != PREDICTION_TIME]  # the line gives that
        types |= {field.name: str(field.dtype) for field in sent}
    missing = [name for name in types if name not in inputs.columns]
    if missing:
        raise ClearwayError(f"{owner} lacks {', '.join(missing)}, which is a join key or a field of the request")
    typed = {name: _typed(inputs[name], dtype, owner) for name, dtype in types.items()}
    return pd.DataFrame(typed, index=inputs.index)


def definitions_of(project: StoredProject) -> "Definitions":
    """What the project defines."""
    import clearway.feature_store  # noqa: F401 - imports Feast in a third of the time that the project's import takes

    return project.definitions()


def describe(project: StoredProject) -> "dict[str, FeatureDefinition]":
    """How each of the project's features is defined."""
    definitions = definitions_of(project)
    from clearway.feature_store.definitions import describe_features

    return describe_features(definitions, project.numeric, project.categorical)


def historical_features(
    params: Params,
    workspace: Workspace,
    project: StoredProject,
    questions: pd.DataFrame,
    inputs: pd.DataFrame,
    events: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """The features of each question, on its index, as Feast finds them at its ``prediction_time``.

    Registers the definitions first. Without ``events`` the views' rows are those of ``data/feature_tables``; with them,
    they are these, and neither the project's tables nor its registry is touched.

    Parameters
    ----------
    questions : DataFrame of n rows
        With ``prediction_time`` (UTC).
    inputs : DataFrame of n rows
        Of :func:`inputs_of`, same index.
    events : mapping of view to DataFrame, optional
        Of :func:`event_tables`.

    Returns
    -------
    DataFrame of n rows
        The project's numeric and categorical features, in their order; null where nothing was known.

    Raises
    ------
    UsageError
        ``feature_store.yaml`` or a definition is wrong.
    ClearwayError
        A feature table is missing or wrong, or an on-demand function fails.
    """
    from clearway.feature_store.store import open_store

    if events is None:
        return _retrieve(open_store(params, workspace), project, params, questions, inputs)
    with TemporaryDirectory(prefix="clearway-") as folder:
        write_event_tables(events, Workspace(Path(folder)).feature_tables)
        return _retrieve(open_scratch_store(params, workspace, Path(folder)), project, params, questions, inputs)


def open_scratch_store(params: Params, workspace: Workspace, folder: Path) -> "FeatureStore":
    """The configured store with its tables, its registry and an online store of its own in ``folder``."""
    from feast import FeatureStore, RepoConfig

    from clearway.feature_store.store import open_store

    config = open_store(params, workspace, repo=folder).config
    own = RepoConfig(
        project=config.project,
        provider=config.provider,
        registry={"path": str(folder / "registry.db")},
        offline_store=config.offline_store.model_dump(by_alias=True),
        online_store={"type": EMBEDDED, "path": str(folder / "online.db")},
        entity_key_serialization_version=config.entity_key_serialization_version,
        repo_path=folder,
    )
    return FeatureStore(config=own, repo_path=str(folder))


def _retrieve(
    store: "FeatureStore", project: StoredProject, params: Params, questions: pd.DataFrame, inputs: pd.DataFrame
) -> pd.DataFrame:
    from clearway.feature_store.store import register

    service = register(store, params, project)
    times = questions[PREDICTION_TIME]
    asked = inputs.assign(event_timestamp=times, **{PREDICTION_TIME: seconds(times)})
    names = [*project.numeric, *project.categorical]
    try:
        table = store.get_historical_features(entity_df=asked.reset_index(drop=True), features=service).to_arrow()
    except ClearwayError:
        raise
    except Exception as error:  # an on-demand function is the project's own, and may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClearwayError(f"the features of {len(questions)} questions cannot be read: {cause}") from error
    if len(table) != len(questions):
        raise ClearwayError(
            f"the offline store answered {len(table)} of {len(questions)} questions: use one that keeps every row "
            f"({params.feature_store}: offline_store.type)"
        )
    if lost := [name for name in names if name not in table.column_names]:
        views = [view.name for view in definitions_of(project).on_demand if lost[0] in {f.name for f in view.features}]
        raise ClearwayError(
            f"on-demand view {', '.join(views)} gives no {lost[0]!r}: have its function return what its schema declares"
        )
    found: pd.DataFrame = table.select(names).to_pandas()  # what was asked with is not needed again: no copy of it
    found.index = questions.index
    return found


def seconds(times: pd.Series) -> NDArray[np.float64]:
    """Times as Float64 seconds since 1970, UTC: how a time is written as a value.

    Of whole microseconds, as :meth:`datetime.datetime.timestamp` counts: what a server computes is this to the bit.
    """
    return np.asarray(times.astype("datetime64[us, UTC]").astype("int64") / 1e6, dtype=np.float64)


def _join_keys(entities: tuple[Any, ...], view: "FeatureView") -> list[str]:
    return [entity.join_key for entity in entities if entity.name in view.entities]


def _checked(view: "FeatureView", keys: list[str], rows: pd.DataFrame, known_until: datetime | None) -> pd.DataFrame:
    owner = f"the rows of feature view {view.name}"
    if not isinstance(rows, pd.DataFrame):
        raise ClearwayError(f"{owner} are {type(rows).__name__}, not a DataFrame: correct its event builder")
    time = view.batch_source.timestamp_field
    created = view.batch_source.created_timestamp_column or None
    types = {**dict.fromkeys(keys, "String"), **{field.name: str(field.dtype) for field in view.features}}
    missing = [name for name in (time, *([created] if created else []), *types) if name not in rows.columns]
    if missing:
        raise ClearwayError(f"{owner} lack the column {', '.join(missing)}: correct its event builder")
    twice = [str(name) for name in dict.fromkeys(rows.columns[rows.columns.duplicated()])]
    if twice:
        raise ClearwayError(f"{owner} have more than one column {', '.join(twice)}: correct its event builder")
    columns = {name: _typed(rows[name], dtype, owner) for name, dtype in types.items()}
    times = {name: _times(rows[name], owner, name) for name in (time, created) if name}
    empty = int(times[time].isna().sum())
    if empty:
        raise ClearwayError(f"{owner}: {empty} of {len(rows)} have no {time}: leave out what is not known yet")
    order = {name: columns[name] for name in keys} | times | {name: columns[name] for name in columns}
    frame = pd.DataFrame(order)
    frame = frame[frame[keys].notna().all(axis="columns")]
    if known_until is not None:
        frame = frame[frame[time] <= known_until]
        if created is not None:  # a correction that is made later hides no row that was there
            frame = frame[~(frame[created] > known_until)]
    codes = [pd.factorize(frame[key], sort=True)[0] for key in keys]
    known = frame[time].astype("int64").to_numpy()
    made = [] if created is None else [frame[created].astype("int64").to_numpy()]
    places = np.lexsort([*made, *reversed(codes), known])  # stable: of equal rows the last stays the last
    last = np.ones(len(places), dtype=bool)
    last[:-1] = np.any([np.diff(each[places]) != 0 for each in (known, *codes)], axis=0)
    return frame.iloc[places[last]].reset_index(drop=True)


def _times(column: pd.Series, owner: str, name: str) -> pd.Series:
    """UTC, in microseconds. What is finer is rounded up: nothing is known before its time."""
    if not isinstance(column.dtype, pd.DatetimeTZDtype):
        raise ClearwayError(f"{owner}: {name} must be a UTC time, found {column.dtype}: correct its event builder")
    rounded: pd.Series = column.dt.tz_convert("UTC").dt.ceil("us").astype("datetime64[us, UTC]")
    return rounded


def _typed(column: pd.Series, dtype: str, owner: str) -> pd.Series:
    """The column as the pandas dtype of Feast's type."""
    values = column.astype(column.cat.categories.dtype) if isinstance(column.dtype, pd.CategoricalDtype) else column
    kind = pd.api.types.infer_dtype(values, skipna=True) if column.notna().any() else "empty"
    is_text, is_number = kind in ("string", "empty"), kind != "string"
    try:
        if (dtype == "String" and not is_text) or (dtype != "String" and dtype in _DTYPES and not is_number):
            raise TypeError(f"found {column.dtype}")  # pandas would read the text "1" as a number, and 1 as a text
        typed: pd.Series[Any] = column.astype(_DTYPES[dtype]) if dtype in _DTYPES else column  # type: ignore[call-overload]
        return typed
    except (TypeError, ValueError) as error:
        cause = " ".join(str(error).split())
        remedy = f"give values of that type, or declare {column.name} as what it is"
        raise ClearwayError(f"{owner}: {column.name} must be {dtype}: {cause}: {remedy}") from None
