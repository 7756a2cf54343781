"""Feast's offline store over Parquet: point-in-time joins that keep every question, in bounded memory.

Feast loads it by its class path (``offline_store.type`` in feature_store.yaml). What it answers:

- A question (a row of the entity frame) gets, of each view, the newest row of its key whose timestamp is at or before
  the question's, and not older than the view's TTL (a row exactly that old still counts; no TTL or zero: no limit).
- Of rows with one timestamp the one created last wins, a null created timestamp being the oldest; where that too is
  equal, or the source names no created timestamp, the last row of the file (of the last file, by name) wins.
- Times without a zone are UTC. Values keep the types of the file. A null key, or a null time, matches nothing.
- Every question is answered: order, duplicates and all columns of the entity frame stay; what is not known is null.

A table is read in batches of ``batch_rows`` rows, only the columns that are asked for, without the row groups that by
their statistics hold no row of use. What each batch offers is compared with the best so far, so the answer does not
depend on how rows are spread over batches, row groups and files.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import isnan
from numbers import Number
from pathlib import Path
from typing import Any, Literal, cast

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _get_requested_feature_views_to_features_dict
from filelock import FileLock, Timeout
from pydantic import Field

from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_path
from clearway.frames import is_text, type_name
from clearway.instants import micros

_LOCK_SECONDS = 60.0
_TICKS = {"ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks a second, by unit of time."""
_LEAST, _MOST = -(2**63), 2**63 - 1
_VIEWS_AT_ONCE = 2
"""Views that are read and joined at a time: most steps of a join keep one core busy, and a batch is held for each."""
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


class PointInTimeOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """``offline_store`` of feature_store.yaml."""

    type: Literal["clearway.feature_store.offline.PointInTimeOfflineStore"] = (
        "clearway.feature_store.offline.PointInTimeOfflineStore"
    )
    batch_rows: int = Field(1_000_000, ge=1)
    """Rows of a feature table held at once. A table of fewer rows is read and joined in one go."""


class PointInTimeOfflineStore(OfflineStore):  # type: ignore[misc]
    """Features as they were known, from Parquet files: local, or wherever pyarrow or fsspec reads."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Each row of ``entity_df`` with the features that were known at its time. See the module.

        Parameters
        ----------
        entity_df : DataFrame of n rows
            With every join key (or what ``join_key_map`` calls it) and ``event_timestamp``, or one column of times.
        filter_by_created_timestamp : bool
            Leave out rows that were created after the question; of sources without such a column none.

        Returns
        -------
        RetrievalJob
            Of n rows, in the order of ``entity_df``. Nothing is read before it is asked for its result.

        Raises
        ------
        UsageError
            ``entity_df`` is SQL text or absent, or a source is no Parquet ``FileSource``.
        ClearwayError
            ``entity_df`` lacks a column, or two result columns would share a name. When the job runs: a file or a
            column is missing, or a key is text in one table and a number in the other.
        """
        if not isinstance(entity_df, pd.DataFrame):
            given = "SQL text" if isinstance(entity_df, str) else type(entity_df).__name__
            raise UsageError(
                f"get_historical_features: entity_df is {given}: give a pandas DataFrame, one row a question"
            )
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        views = [_view(view, names, full_feature_names) for view, names in wanted.items()]
        questions, time = _questions(entity_df)
        _check_columns(questions, views)
        by_created = filter_by_created_timestamp
        first, last = _range_of(questions[time])
        return PointInTimeRetrievalJob(
            lambda: _answer(questions, time, views, config, by_created),
            Path(config.repo_path),
            full_feature_names,
            on_demand,
            RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in questions.column_names if name != time],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each key within [``start_date``, ``end_date``], ties as above; a null key has none."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        span = (start_date, end_date)
        return PointInTimeRetrievalJob(
            lambda: _pull(config, data_source, join_key_columns, feature_name_columns, times, span, _latest),
            Path(config.repo_path),
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row within [``start_date``, ``end_date``], in file order; a bound that is None does not bind."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        span = (start_date, end_date)
        return PointInTimeRetrievalJob(
            lambda: _pull(config, data_source, join_key_columns, feature_name_columns, times, span, _all),
            Path(config.repo_path),
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to the one local Parquet file of a view; readers see the old file or the new one.

        Raises
        ------
        UsageError
            The source is no single local Parquet file.
        ClearwayError
            The columns or their types are not those of the file, or another writer holds it for a minute.
        """
        owner = f"feature view {feature_view.name!r}"
        filesystem, path = _locate(_parquet_source(owner, feature_view.batch_source), config.repo_path)
        target = Path(path)
        if not isinstance(filesystem, pafs.LocalFileSystem) or target.is_dir():
            raise UsageError(f"{owner}: rows can be appended to one local Parquet file only, its source is {path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(target.with_name(f".{target.name}.lock"), timeout=_LOCK_SECONDS):
                _append(owner, target, table, feature_view.batch_source.field_mapping or {})
        except Timeout:
            raise ClearwayError(f"{owner}: another process is writing {target}: try again later") from None
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Not offered: what was served is in the prediction log of its environment.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "PointInTimeOfflineStore keeps no feature logs: the prediction log of each environment has what was served"
        )


class PointInTimeRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A retrieval that runs when its result is asked for, each time anew."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        repo_path: Path,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand = [_given_its_sources(view) for view in on_demand_feature_views]
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, as one Parquet file; a local one whole or not at all.

        Raises
        ------
        UsageError
            The storage is no Parquet file, or the path is a folder.
        SavedDatasetLocationAlreadyExists
            There is a file already, and ``allow_overwrite`` is false.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise UsageError(f"a retrieval is stored with SavedDatasetFileStorage, not {type(storage).__name__}")
        source = _parquet_source("saved dataset", storage.to_data_source())
        filesystem, path = _locate(source, self._repo_path)
        found = filesystem.get_file_info(path).type
        if found == pafs.FileType.Directory:
            raise UsageError(f"saved dataset: {path} is a folder: name a file")
        if found != pafs.FileType.NotFound and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=source.path)
        if not isinstance(filesystem, pafs.LocalFileSystem):
            pq.write_table(self.to_arrow(timeout=timeout), path, filesystem=filesystem)
            return
        with atomic_path(Path(path)) as temporary:
            pq.write_table(self.to_arrow(timeout=timeout), temporary)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return cast(pd.DataFrame, self._evaluate().to_pandas())


def _given_its_sources(view: OnDemandFeatureView) -> OnDemandFeatureView:
    """A copy of an on-demand view whose function is given the columns of its sources.

    Feast hands it all columns of the result, each turned into a list of Python values: of 340,000 questions and 30
    columns that is 20 of 22 seconds.
    """
    names = {field.name for source in view.source_request_sources.values() for field in source.schema}
    for projection in view.source_feature_view_projections.values():
        owner = projection.name_to_use()
        names |= {name for field in projection.features for name in (field.name, f"{owner}__{field.name}")}
    own = copy.copy(view)

    def transform(table: pa.Table, full_feature_names: bool = False) -> pa.Table:
        wanted = [name for name in table.column_names if name in names]
        return view.transform_arrow(table.select(wanted), full_feature_names)

    own.transform_arrow = transform
    return own


# What is asked


@dataclass(frozen=True)
class _View:
    """What is read of one feature view, under the names of the file, and what it is called in the result."""

    owner: str
    """As error lines name it."""
    source: FileSource
    keys: Mapping[str, str]
    """Column of the entity frame, by column of the file. Empty for a view without entities."""
    time: str
    created: str | None
    features: Mapping[str, str]
    """Column of the result, by column of the file."""
    ttl: timedelta | None

    @property
    def columns(self) -> list[str]:
        named = [*self.keys, self.time, *([self.created] if self.created else []), *self.features]
        return list(dict.fromkeys(named))


def _view(view: FeatureView, names: Sequence[str], full_names: bool) -> _View:
    owner = f"feature view {view.name!r}"
    source = _parquet_source(owner, view.batch_source)
    in_file = {mapped: name for name, mapped in (source.field_mapping or {}).items()}
    renamed = view.projection.join_key_map
    prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
    created = source.created_timestamp_column or None
    return _View(
        owner=owner,
        source=source,
        keys={
            in_file.get(key.name, key.name): renamed.get(key.name, key.name)
            for key in view.entity_columns
            if key.name != DUMMY_ENTITY_ID
        },
        time=in_file.get(source.timestamp_field, source.timestamp_field),
        created=in_file.get(created, created),
        features={in_file.get(name, name): prefix + name for name in names},
        ttl=view.ttl or None,
    )


def _parquet_source(owner: str, source: DataSource | None) -> FileSource:
    if not isinstance(source, FileSource):
        raise UsageError(f"{owner}: its source is {type(source).__name__}: PointInTimeOfflineStore reads FileSource")
    if source.file_format is not None and not isinstance(source.file_format, ParquetFormat):
        kind = type(source.file_format).__name__
        raise UsageError(f"{owner}: its source {source.path} is {kind}: PointInTimeOfflineStore reads Parquet")
    return source


def _questions(entity_df: pd.DataFrame) -> tuple[pa.Table, str]:
    """The entity frame without its index, its times as UTC; and the name of the column of times."""
    twice = entity_df.columns[entity_df.columns.duplicated()]
    if len(twice):
        raise ClearwayError(f"entity_df has two columns named {twice[0]!r}: name each once")
    time = _time_column(entity_df)
    times = entity_df[time]
    if pd.api.types.is_numeric_dtype(times.dtype) and len(times):
        raise ClearwayError(f"entity_df: {time} is {times.dtype}: give times")
    if times.dtype == object:
        numbers = [
            value for value in times if isinstance(value, Number) and not (isinstance(value, float) and isnan(value))
        ]
        if numbers:  # pandas would take them for nanoseconds
            raise ClearwayError(f"entity_df: {time} holds {numbers[0]!r}, a number: give times")
    try:
        if not isinstance(times.dtype, pd.DatetimeTZDtype) or str(times.dt.tz) != "UTC":
            entity_df = entity_df.assign(**{time: pd.to_datetime(times, utc=True)})
        return pa.Table.from_pandas(entity_df, preserve_index=False), time
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ClearwayError(f"entity_df cannot be read: {_one_line(error)}") from None


def _time_column(entity_df: pd.DataFrame) -> str:
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in entity_df.columns:
        return cast(str, DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)
    times = [name for name, dtype in entity_df.dtypes.items() if pd.api.types.is_datetime64_any_dtype(dtype)]
    if len(times) != 1:
        raise ClearwayError(
            f"entity_df has no column {DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL!r}: when was each row asked?"
        )
    return str(times[0])


def _check_columns(questions: pa.Table, views: Sequence[_View]) -> None:
    """Every key is in the entity frame, and no two columns of the result share a name."""
    taken = set(questions.column_names)
    for view in views:
        for key in view.keys.values():
            if key not in questions.column_names:
                raise ClearwayError(f"{view.owner}: entity_df has no column {key!r}, which is its join key")
        for name in view.features.values():
            if name in taken:
                raise ClearwayError(
                    f"{view.owner}: the result would have two columns named {name!r}: "
                    "rename the column of entity_df, or ask with full_feature_names=True"
                )
            taken.add(name)


def _range_of(times: pa.ChunkedArray) -> list[datetime | None]:
    """The first and the last time, to the microsecond; None where there is none, or beyond the year 9999."""
    ends = pc.min_max(times)
    both = (_datetime(ends["min"].as_py), _datetime(ends["max"].as_py))
    return [None if time is None else pd.Timestamp(time).to_pydatetime(warn=False) for time in both]


def _datetime(read: Callable[[], Any]) -> Any:
    """What ``read`` gives, which makes a Python time; None where Python has none: before year 1, after 9999."""
    try:
        return read()
    except (OverflowError, ValueError):
        return None


# The join


def _answer(questions: pa.Table, time: str, views: Sequence[_View], config: RepoConfig, by_created: bool) -> pa.Table:
    """The entity frame with the features of every view."""
    answered = questions
    asked = _series(questions[time])

    def joined(view: _View) -> pa.Table:
        table = _open(view.owner, view.source, config.repo_path, view.columns)
        return _join(view, questions, asked, table, config.offline_store.batch_rows, by_created)

    with ThreadPoolExecutor(_VIEWS_AT_ONCE) as pool:
        found = list(pool.map(joined, views))
    for view, values in zip(views, found, strict=True):
        for name, column in view.features.items():
            answered = answered.append_column(column, values[name])
    assert answered.num_rows == questions.num_rows
    return answered


def _join(
    view: _View, questions: pa.Table, asked: pl.Series, table: "_Table", batch_rows: int, by_created: bool
) -> pa.Table:
    """The features of one view for each question, under the names of the file; null where nothing is known."""
    times = [view.time, *([view.created] if view.created else [])]
    unit = _unit([asked.dtype, *(table.time(name) for name in times)])
    keys = _Keys.of(view, questions, table)
    left = pl.DataFrame({"question": np.arange(len(asked)), "asked": _ticks(asked, unit), "code": keys.codes})
    left = left.drop_nulls().sort("asked")
    best = _Best(questions.num_rows, pa.schema([table.schema.field(name) for name in view.features]))
    if left.is_empty():
        return best.values
    oldest = None if view.ttl is None else _oldest(left["asked"], view.ttl, unit)
    left = left.with_columns(oldest=pl.lit(_LEAST) if oldest is None else oldest)
    first, last = cast(int, left["oldest"].min()), cast(int, left["asked"].max())
    for batch in table.batches(view.columns, _Range(view.time, first, last, unit), batch_rows):
        named = [
            _ticks(_series(batch[name]), unit).alias(what)
            for name, what in zip(times, ("time", "created"), strict=False)
        ]
        rows = pl.DataFrame([*keys.columns(batch), *named]).with_row_index("row")
        right = keys.coded(rows.filter(pl.col("time").is_between(first, last)))
        best.offer(batch, _matches(left, right, by_created=by_created))
    return best.values


def _matches(left: pl.DataFrame, right: pl.DataFrame, *, by_created: bool) -> pl.DataFrame:
    """Of each question that has one, its row: ``question``, ``row``, ``time``, ``created``.

    Parameters
    ----------
    left : ``question``, ``asked``, ``oldest``, ``code``; sorted by ``asked``
    right : ``row``, ``time``, ``code`` in file order; ``created`` if there is one
    by_created : bool
        A row is seen only from its ``created`` on.
    """
    created = "created" in right.columns
    right = right.sort("time", *(["created"] if created else []), maintain_order=True).with_row_index("rank")
    if by_created and created:
        # Seen later, but older than a row seen before: the newest of all seen so far is the one known.
        seen = right.drop_nulls("created").select("code", "rank", seen=pl.max_horizontal("time", "created"))
        seen = seen.sort("seen", "rank").with_columns(pl.col("rank").cum_max().over("code"))
    else:
        seen = right.select("code", "rank", seen="time")
    found = left.join_asof(seen, left_on="asked", right_on="seen", by="code", coalesce=False, check_sortedness=False)
    found = found.select("question", "oldest", "rank").drop_nulls("rank")
    newest = pl.col("created").fill_null(_LEAST) if created else pl.lit(_LEAST).alias("created")
    rows = right.select("row", "time", newest)[found["rank"]]
    return found.hstack(rows).filter(pl.col("time") >= pl.col("oldest"))


class _Best:
    """The best row seen so far for each of n questions, and its values."""

    def __init__(self, questions: int, schema: pa.Schema) -> None:
        self._time = np.full(questions, _LEAST, dtype=np.int64)
        self._created = np.full(questions, _LEAST, dtype=np.int64)
        self._any = False
        self.values: pa.Table = schema.empty_table().take(pa.nulls(questions, pa.int64()))

    def offer(self, batch: pa.Table, matches: pl.DataFrame) -> None:
        """Take over the matches that are newer. Of equal ones the later batch wins: it is later in the file."""
        question, time, created = (matches[name].to_numpy() for name in ("question", "time", "created"))
        newer = (time > self._time[question]) | ((time == self._time[question]) & (created >= self._created[question]))
        question = question[newer]
        if not len(question):
            return
        self._time[question], self._created[question] = time[newer], created[newer]
        rows = np.full(len(self._time), -1, dtype=np.int64)
        rows[question] = matches["row"].to_numpy()[newer]
        offered = batch.select(self.values.column_names).take(pa.array(rows, mask=rows < 0))
        if self._any:
            mask = pa.array(rows >= 0)
            merged = [pc.if_else(mask, new, old) for new, old in zip(offered.columns, self.values.columns, strict=True)]
            offered = pa.table(merged, schema=self.values.schema)
        self.values, self._any = offered, True


@dataclass(frozen=True)
class _Keys:
    """Join keys as one number for each distinct key that is asked for."""

    types: Mapping[str, pl.DataType]
    """By column of the file, the type in which both tables are compared."""
    distinct: pl.DataFrame
    """The keys that are asked for, as :meth:`columns`, and ``code``."""
    codes: pl.Series
    """Of each question; null where a part of its key is."""

    @classmethod
    def of(cls, view: _View, questions: pa.Table, table: "_Table") -> "_Keys":
        if not view.keys:
            return cls({}, pl.DataFrame(), pl.repeat(0, questions.num_rows, dtype=pl.UInt32, eager=True))
        asked = {stored: _series(questions[key]) for stored, key in view.keys.items()}
        types = {name: _key_type(view, name, values, table) for name, values in asked.items()}
        frame = pl.DataFrame(_key_columns(asked, types))
        distinct = frame.unique().with_row_index("code")
        codes = frame.join(distinct, on=frame.columns, how="left", maintain_order="left")["code"]
        return cls(types, distinct, codes)

    def columns(self, batch: pa.Table) -> list[pl.Series]:
        """The keys of each row."""
        return _key_columns({name: _series(batch[name]) for name in self.types}, self.types)

    def coded(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows whose keys are asked for, in their order, with ``code`` in place of :meth:`columns`."""
        if not self.types:
            return rows.with_columns(code=pl.lit(0, dtype=pl.UInt32))
        on = self.distinct.columns[1:]
        return rows.join(self.distinct, on=on, how="inner", maintain_order="left").drop(on)


def _key_columns(values: Mapping[str, pl.Series], types: Mapping[str, pl.DataType]) -> list[pl.Series]:
    return [_as_key(values[name], types[name]).alias(f"key {i}") for i, name in enumerate(types)]


def _key_type(view: _View, name: str, asked: pl.Series, table: "_Table") -> pl.DataType:
    """The type in which a key is compared. An empty column fits any other."""
    stored = table.dtype(name)
    if stored == pl.Null or asked.null_count() == len(asked):
        return stored
    if is_text(stored) and is_text(asked.dtype):
        return pl.String()
    if stored == asked.dtype:
        return stored
    floats = [dtype.is_float() for dtype in (stored, asked.dtype) if dtype.is_integer() or dtype.is_float()]
    if len(floats) == 2:
        return pl.Float64() if all(floats) else pl.Int64()
    raise ClearwayError(
        f"{view.owner}: key {view.keys[name]!r} is {type_name(asked.dtype)} in entity_df and {type_name(stored)} in "
        f"{table.path}: make both of one type"
    )


def _as_key(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Values in the type of the comparison; null where they equal nothing of that type."""
    if values.dtype.is_float() and dtype.is_integer():  # pandas makes integers with gaps floats
        values = values.set(values != values.floor(), None)
    return values.cast(dtype, strict=False)


# Time


def _unit(dtypes: Sequence[pl.DataType]) -> str:
    """The unit in which times are compared: microseconds, or nanoseconds if any of them has those."""
    return "ns" if any(getattr(dtype, "time_unit", None) == "ns" for dtype in dtypes) else "us"


def _ticks(times: pl.Series, unit: str) -> pl.Series:
    """Times as ticks since 1970, UTC. A time that nanoseconds cannot hold (1677 to 2262) is the nearest they can."""
    if not isinstance(times.dtype, pl.Datetime):
        times = times.cast(pl.Datetime("us"))
    factor = _TICKS[unit] // _TICKS[str(times.dtype.time_unit)]  # type: ignore[attr-defined]
    whole = times.cast(pl.Int64)
    return whole if factor == 1 else whole.clip(-(_MOST // factor), _MOST // factor) * factor


def _oldest(asked: pl.Series, ttl: timedelta, unit: str) -> pl.Series:
    """The earliest tick that is not older than the TTL."""
    length = min(ttl // timedelta(microseconds=1) * (_TICKS[unit] // 10**6), _MOST)
    return asked.clip(lower_bound=_LEAST + length) - length


def _tick(time: datetime, unit: str) -> int:
    """The tick of a time; without a zone it is UTC."""
    tick = micros(time) * (_TICKS[unit] // 10**6)
    return max(_LEAST, min(tick, _MOST))


@dataclass(frozen=True)
class _Range:
    """The rows of a table with a time from ``first`` to ``last``, both included."""

    column: str
    first: int
    last: int
    unit: str

    def row_groups(self, metadata: Any) -> list[int]:
        """The row groups of a file that, by their statistics, may hold such rows."""
        paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        position, microsecond = paths.index(self.column), _TICKS[self.unit] // 10**6
        kept = []
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group).column(position).statistics
            if found is not None and found.has_min_max:
                least, most = _datetime(partial(getattr, found, "min")), _datetime(partial(getattr, found, "max"))
                if isinstance(most, datetime) and _tick(most, self.unit) + microsecond <= self.first:
                    continue
                if isinstance(least, datetime) and _tick(least, self.unit) > self.last:
                    continue
            kept.append(group)
        return kept

    def rows(self, batch: pa.Table) -> pa.Array:
        """Which rows of a batch are such."""
        return _ticks(_series(batch[self.column]), self.unit).is_between(self.first, self.last).to_arrow()


# Whole tables


@dataclass(frozen=True)
class _Order:
    """What makes a row the newest of its key."""

    keys: Sequence[str]
    times: Sequence[str]
    """The timestamp, and the created timestamp if there is one."""
    unit: str


def _pull(
    config: RepoConfig,
    source: DataSource,
    keys: Sequence[str],
    features: Sequence[str],
    times: Sequence[str],
    span: tuple[datetime | None, datetime | None],
    gather: Callable[[Iterator[pa.Table], pa.Schema, _Order], pa.Table],
) -> pa.Table:
    owner = f"source {source.name!r}"
    columns = list(dict.fromkeys([*keys, *features, *times]))
    table = _open(owner, _parquet_source(owner, source), config.repo_path, columns)
    unit = _unit([table.time(name) for name in times])
    start, end = span
    first, last = _LEAST if start is None else _tick(start, unit), _MOST if end is None else _tick(end, unit)
    wanted = _Range(times[0], first, last, unit)
    batches = table.batches(columns, wanted, config.offline_store.batch_rows)
    pulled = gather((batch.filter(wanted.rows(batch)) for batch in batches), table.schema, _Order(keys, times, unit))
    if not keys:  # Feast writes the one row of a view without entities under this key
        pulled = pulled.append_column(DUMMY_ENTITY_ID, pa.repeat(DUMMY_ENTITY_VAL, pulled.num_rows))
    return pulled.combine_chunks()  # Feast's conversion for online stores reads the first chunk only


def _all(batches: Iterator[pa.Table], schema: pa.Schema, order: _Order) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *batches])


def _latest(batches: Iterator[pa.Table], schema: pa.Schema, order: _Order) -> pa.Table:
    """The newest row of each key, in file order. Only those are held beside a batch."""
    newest = schema.empty_table()
    for batch in batches:
        both = pa.concat_tables([newest, batch])
        keys = [_series(both[name]).alias(f"key {i}") for i, name in enumerate(order.keys)]
        keys = keys or [pl.repeat(0, len(both), eager=True).alias("key")]
        times = [_ticks(_series(both[name]), order.unit).alias(f"time {i}") for i, name in enumerate(order.times)]
        rows = pl.DataFrame([*keys, *times]).with_row_index("row")
        by = [key.name for key in keys]
        rows = rows.drop_nulls(by).sort([time.name for time in times], maintain_order=True)
        newest = both.take(rows.unique(by, keep="last", maintain_order=True)["row"].sort().to_arrow())
    return newest


# Files


@dataclass(frozen=True)
class _Table:
    """A feature table in Parquet: one file, or the files of a folder in the order of their names."""

    owner: str
    path: str
    filesystem: Any
    files: tuple[str, ...]
    schema: pa.Schema
    """The columns that are asked for, of types that hold the values of every file."""

    def dtype(self, name: str) -> pl.DataType:
        return _series(pa.chunked_array([], self.schema.field(name).type)).dtype

    def time(self, name: str) -> pl.DataType:
        """The type of a column of times."""
        dtype = self.dtype(name)
        if dtype not in (pl.Date, pl.Datetime, pl.Null):
            raise ClearwayError(
                f"{self.owner}: column {name!r} of {self.path} must be a time, found {type_name(dtype)}"
            )
        return dtype

    def batches(self, columns: Sequence[str], wanted: _Range, rows: int) -> Iterator[pa.Table]:
        """Tables of at most ``rows`` rows, in file order; row groups without rows of the range are not read."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        held: list[pa.Table] = []
        for piece in self._pieces(schema, wanted, rows):
            if held and sum(map(len, held)) + len(piece) > rows:
                yield pa.concat_tables(held)
                held = []
            held.append(piece)
        if held:
            yield pa.concat_tables(held)

    def _pieces(self, schema: pa.Schema, wanted: _Range, rows: int) -> Iterator[pa.Table]:
        for path in self.files:
            with _reader(self.owner, path, self.filesystem) as reader:
                for group in wanted.row_groups(reader.metadata):
                    for batch in reader.iter_batches(rows, row_groups=[group], columns=schema.names):
                        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def _open(owner: str, source: FileSource, repo_path: Path | str | None, columns: Sequence[str]) -> _Table:
    """Find the files of a source, and that they have the columns."""
    filesystem, path = _locate(source, repo_path)
    files = _files(owner, filesystem, path)
    schemas = []
    for file in files:
        with _reader(owner, file, filesystem) as reader:
            schema = reader.schema_arrow
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise ClearwayError(
                f"{owner}: {file} has no column {missing[0]!r}, it has: {', '.join(schema.names)}. "
                "Correct the definition, or build the table again"
            )
        _check_once(owner, file, columns, schema.names)
        schemas.append(pa.schema([_plain(schema.field(name)) for name in columns]))
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise ClearwayError(f"{owner}: the files of {path} differ in their types: {_one_line(error)}") from None
    return _Table(owner, path, filesystem, files, unified)


def _check_once(owner: str, file: str | Path, columns: Sequence[str], found: Sequence[str]) -> None:
    twice = [name for name in columns if list(found).count(name) > 1]
    if twice:
        raise ClearwayError(
            f"{owner}: {file} has {list(found).count(twice[0])} columns named {twice[0]!r}: name each once, and "
            "build the table again"
        )


def _plain(field: pa.Field) -> pa.Field:
    """A field without metadata; a dictionary as the type of its values, a view of text or bytes as what it shows."""
    dtype = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if dtype in _VIEWS:  # pyarrow can take no rows of it
        dtype = _VIEWS[dtype]
    return pa.field(field.name, dtype)


def _locate(source: FileSource, repo_path: Path | str | None) -> tuple[Any, str]:
    """The file system of a source and the path in it; a relative path is relative to the repository."""
    uri = source.path.removeprefix("file://")
    if "://" not in uri:
        return pafs.LocalFileSystem(), FileSource.get_uri_for_file_path(repo_path, uri)
    if uri.startswith("s3://"):
        return cast(
            tuple[Any, str],
            FileSource.create_filesystem_and_path(uri, source.s3_endpoint_override, source.resolve_credentials()),
        )
    try:
        return cast(tuple[Any, str], pafs.FileSystem.from_uri(uri))
    except pa.ArrowInvalid:  # none of pyarrow's own
        filesystem, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _files(owner: str, filesystem: Any, path: str) -> tuple[str, ...]:
    found = filesystem.get_file_info(path)
    if found.type == pafs.FileType.NotFound:
        raise ClearwayError(f"{owner}: {path} is missing: build the feature tables, or correct the path of its source")
    if found.type != pafs.FileType.Directory:
        return (path,)
    inside = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    names = sorted(entry.path for entry in inside if entry.is_file and entry.path.endswith(".parquet"))
    kept = tuple(name for name in names if not Path(name).name.startswith((".", "_")))
    if not kept:
        raise ClearwayError(f"{owner}: the folder {path} holds no .parquet file: build the feature tables")
    return kept


@contextmanager
def _reader(owner: str, path: str, filesystem: Any) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, filesystem=filesystem, coerce_int96_timestamp_unit="us") as reader:
            yield reader
    except (pa.ArrowException, OSError) as error:
        raise ClearwayError(f"{owner}: {path} cannot be read: {_one_line(error)}") from None


def _append(owner: str, target: Path, table: pa.Table, field_mapping: Mapping[str, str]) -> None:
    """Write the rows of ``target``, then those of ``table``, to a new file in its place."""
    if not target.exists():
        first = _named(owner, target, table, (), field_mapping)
        with atomic_path(target) as temporary:
            pq.write_table(first.replace_schema_metadata(None), temporary)  # pandas' own names an index
        return
    with _reader(owner, str(target), None) as old:
        schema = old.schema_arrow
    rows = _fitted(owner, target, table, schema, field_mapping)
    with atomic_path(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in _whole_row_groups(owner, target):
            writer.write_table(group)
        writer.write_table(rows)


def _whole_row_groups(owner: str, path: Path) -> Iterator[pa.Table]:
    with _reader(owner, str(path), None) as reader:
        for group in range(reader.num_row_groups):
            yield reader.read_row_group(group)


def _fitted(owner: str, target: Path, table: pa.Table, schema: pa.Schema, field_mapping: Mapping[str, str]) -> pa.Table:
    """Rows in the columns of a file."""
    table = _named(owner, target, table, schema.names, field_mapping)
    names = table.column_names
    missing, extra = sorted(set(schema.names) - set(names)), sorted(set(names) - set(schema.names))
    if missing or extra:
        raise ClearwayError(
            f"{owner}: rows to append must have the columns of {target}: "
            f"missing {', '.join(missing) or 'none'}, unknown {', '.join(extra) or 'none'}"
        )
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise ClearwayError(f"{owner}: rows to append do not fit the types of {target}: {_one_line(error)}") from None


def _named(
    owner: str, target: Path, table: pa.Table, known: Sequence[str], field_mapping: Mapping[str, str]
) -> pa.Table:
    """Rows under the names of a file. Feast hands them over under those after ``field_mapping``, with an index.

    Parameters
    ----------
    known : sequence of str
        Columns of the file, as far as there is one: what has such a name keeps it.
    """
    in_file = {mapped: name for name, mapped in field_mapping.items()}
    table = table.drop([name for name in table.column_names if name.startswith("__index_level_") and name not in known])
    names = [name if name in known else in_file.get(name, name) for name in table.column_names]
    _check_once(owner, target, names, names)
    return table.rename_columns(names)


def _series(column: pa.ChunkedArray) -> pl.Series:
    """A column for polars; times are instants, so that any zone may be UTC: polars knows none such as +05:30."""
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
    return cast(pl.Series, pl.from_arrow(column))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
