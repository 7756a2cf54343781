"""Point-in-time joins through Feast, held against its duckdb store and against the plainest cases."""

from datetime import UTC, datetime, timedelta

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import clearway.feature_store  # noqa: F401  # imports Feast the quick way
from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.offline import PointInTimeOfflineStore

OURS = "clearway.feature_store.offline.PointInTimeOfflineStore"
START = pd.Timestamp("2024-03-09T22:00:00Z")  # New York changes its clocks four hours later
HOUR = timedelta(hours=1)
KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.STRING)
OTHER = Entity(name="other", join_keys=["other"], value_type=ValueType.STRING)


def open_store(folder, objects, name="ours", type=OURS, **options):
    config = RepoConfig(
        project="test",
        provider="local",
        registry=str(folder / f"{name}.db"),
        offline_store={"type": type, **options},
        online_store={"type": "sqlite", "path": str(folder / f"{name}_online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply(list(objects))
    return store


def view(name, path, ttl=None, created="", entities=(KEY,), fields=("value",), dtype=Float64, mapping=None):
    """A view whose features have its name in theirs, so that several fit in one result."""
    source = FileSource(
        name=name,
        path=str(path),
        timestamp_field="known_at",
        created_timestamp_column=created,
        field_mapping=mapping,
    )
    schema = [Field(name=field, dtype=dtype) for field in fields]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=schema, source=source)


def hours(values):
    return [None if value is None else START + pd.Timedelta(hours=value) for value in values]


def times(values, unit="us", zone="UTC"):
    """Times in the way of a file: of some unit, in some zone; None is UTC without saying so."""
    instants = pa.array(hours(values), pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))
    return instants.cast(pa.int64()).cast(pa.timestamp(unit, zone))


def events(path, rows, unit="us", zone="UTC", row_group_size=None, **columns):
    """Write rows of (hour, key, value) or (hour, key, value, created hour)."""
    known, keys, values, *created = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = {
        "known_at": times(known, unit, zone),
        "key": pa.array(keys, pa.string()),
        "value": pa.array(values, pa.float64()),
        **({"made_at": times(created[0], unit, zone)} if created else {}),
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def questions(rows, **columns):
    """An entity frame of (hour, key), each row with its number."""
    asked, keys = zip(*rows, strict=True) if rows else ((), ())
    asked = pd.to_datetime(pd.Series(hours(asked), dtype="object"), utc=True).astype("datetime64[us, UTC]")
    frame = pd.DataFrame({"key": pd.Series(keys, dtype="object"), "event_timestamp": asked, **columns})
    return frame.assign(number=np.arange(len(frame)))


def ask(store, frame, features=("view:value",), **options):
    return store.get_historical_features(entity_df=frame, features=list(features), **options).to_df()


def plain(values):
    return [None if pd.isna(value) else value for value in values]


# Equal to Feast's duckdb store

TTL = 3 * HOUR
keys = st.sampled_from(["a", "b", "", None])
asked_rows = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["a", "b", "", "c", None])), min_size=1, max_size=40
)
known_rows = st.lists(
    st.tuples(
        st.integers(0, 12), keys, st.one_of(st.none(), st.integers(0, 99)), st.one_of(st.none(), st.integers(0, 14))
    ),
    max_size=50,
    unique_by=lambda row: (row[0], row[1], row[3]),  # of equal rows duckdb picks any
)
units, zones = st.sampled_from(["ms", "us", "ns"]), st.sampled_from(["UTC", None, "America/New_York", "Asia/Kolkata"])


def untied(rows):
    return list({row[:2]: row for row in rows}.values())


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Three views over two files, in stores of each kind."""
    folder = tmp_path_factory.mktemp("judged")
    plainest, created = folder / "plain.parquet", folder / "created.parquet"
    events(plainest, [(0, "a", 1)])
    events(created, [(0, "a", 1, 0)])
    views = [
        view("forever", plainest),
        view("fresh", plainest, TTL),
        view("versions", created, TTL, created="made_at"),
    ]
    stores = {
        name: open_store(folder, [KEY, *views], name, **options)
        for name, options in {
            "ours": {"type": OURS},
            "streamed": {"type": OURS, "batch_rows": 3},
            "duckdb": {"type": "duckdb"},
            "dask": {"type": "dask"},
        }.items()
    }
    return folder, stores, [f"{each.name}:value" for each in views]


def answers(store, frame, features, **options):
    found = ask(store, frame, features, full_feature_names=True, **options).sort_values("number")
    return {name.replace(":", "__"): plain(found[name.replace(":", "__")]) for name in features}


@settings(max_examples=8, deadline=None)
@given(asked_rows, known_rows, units, zones, st.booleans())
def test_answers_equal_those_of_feasts_duckdb_store(judged, asked, known, unit, zone, by_created):
    folder, stores, features = judged
    events(folder / "plain.parquet", [row[:3] for row in untied(known)], unit, zone, row_group_size=4)
    events(folder / "created.parquet", known, unit, zone, row_group_size=4)
    options = {"filter_by_created_timestamp": by_created}
    expected = answers(stores["duckdb"], questions(asked), features, **options)
    assert answers(stores["ours"], questions(asked), features, **options) == expected
    assert answers(stores["streamed"], questions(asked), features, **options) == expected


@settings(max_examples=8, deadline=None)
@given(asked_rows, known_rows, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_rows_and_the_size_of_batches_change_no_answer(judged, asked, known, random, by_created):
    folder, stores, _ = judged
    features, options = ["versions:value"], {"filter_by_created_timestamp": by_created}
    events(folder / "created.parquet", known)
    expected = answers(stores["ours"], questions(asked), features, **options)
    shuffled = random.sample(known, len(known))
    events(folder / "created.parquet", shuffled, row_group_size=random.randint(1, 5))
    assert answers(stores["ours"], questions(asked), features, **options) == expected
    assert answers(stores["streamed"], questions(asked), features, **options) == expected


@settings(max_examples=6, deadline=None)
@given(known_rows, st.sampled_from(["ms", "us"]), zones, st.integers(0, 6), st.integers(6, 12))
def test_pulled_rows_equal_those_of_feasts_duckdb_store(judged, known, unit, zone, start, end):
    folder, stores, _ = judged
    keyed = [row for row in known if row[1] is not None]  # a null key is a key to duckdb
    path = events(folder / "pulled.parquet", keyed, unit, zone, row_group_size=4)
    source = FileSource(path=str(path), timestamp_field="known_at", created_timestamp_column="made_at")
    for pull in ("pull_latest_from_table_or_query", "pull_all_from_table_or_query"):
        pulled = {}
        for name in ("ours", "streamed", "duckdb"):
            store = stores[name]
            job = getattr(store._get_provider().offline_store, pull)(
                store.config, source, ["key"], ["value"], "known_at", "made_at", *hours([start, end])
            )
            rows = job.to_df()
            for column in ("known_at", "made_at"):
                rows[column] = pd.to_datetime(rows[column], utc=True).astype("datetime64[us, UTC]").astype(str)
            columns = ["key", "known_at", "made_at", "value"]
            pulled[name] = [plain(row) for row in rows.sort_values(columns)[columns].itertuples(index=False)]
        assert pulled["ours"] == pulled["duckdb"]
        assert pulled["streamed"] == pulled["duckdb"]


def test_feasts_default_store_loses_rows_that_this_one_keeps(judged):
    folder, stores, _ = judged
    events(folder / "plain.parquet", [(0, "a", 1), (0, "b", 2)])
    frame = questions([(1, "a"), (1, "a"), (9, "b"), (1, "c")])  # one twice, one with an expired feature
    assert ask(stores["dask"], frame, ["fresh:value"])["number"].nunique() == 2
    assert plain(ask(stores["ours"], frame, ["fresh:value"])["value"]) == [1, 1, None, None]


# What a question gets


@pytest.fixture
def ours(tmp_path):
    """A store of one view of ``table.parquet``, with a TTL of three hours."""
    events(tmp_path / "table.parquet", [(0, "a", 1.0)])
    return open_store(tmp_path, [KEY, view("view", "table.parquet", TTL)])


def test_a_row_holds_from_its_own_instant_to_the_end_of_the_ttl_both_included(ours):
    found = ask(ours, questions([(-0.001, "a"), (0, "a"), (3, "a"), (3.001, "a")]))
    assert plain(found["value"]) == [None, 1, 1, None]


@pytest.mark.parametrize("ttl", [None, timedelta(0)])
def test_without_a_ttl_a_row_holds_for_ever(tmp_path, ttl):
    events(tmp_path / "table.parquet", [(0, "a", 1.0)])
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", ttl)])
    assert plain(ask(store, questions([(10**6, "a")]))["value"]) == [1]


def test_a_ttl_of_centuries_reaches_back_as_far_as_times_do(tmp_path):
    events(tmp_path / "table.parquet", [(-24 * 365 * 70, "a", 1.0)], "ns")
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", timedelta(days=365 * 300))])
    frame = questions([(0, "a"), (0, "a"), (0, "a")])
    frame["event_timestamp"] = pd.to_datetime(["1950-01-01", "1960-01-01", "2200-01-01"], utc=True)
    assert plain(ask(store, frame)["value"]) == [None, 1, 1]


def test_nanoseconds_are_not_rounded_into_the_future(ours, tmp_path):
    known = pa.array([START.value + 500], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"known_at": known, "key": ["a"], "value": [1.0]}), tmp_path / "table.parquet")
    frame = questions([(0, "a"), (0, "a")])
    frame["event_timestamp"] = pd.to_datetime([START.value + 499, START.value + 500], utc=True)
    assert plain(ask(ours, frame)["value"]) == [None, 1]


@pytest.mark.parametrize("way", [{}, {"use_deprecated_int96_timestamps": True}])  # Spark's way
def test_times_that_nanoseconds_cannot_hold_are_no_times_before(tmp_path, way):
    known = pa.array([START, datetime(9999, 12, 31, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    table = pa.table({"known_at": known, "key": ["a", "b"], "value": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "table.parquet", **way)
    store, frame = open_store(tmp_path, [KEY, view("view", "table.parquet")]), questions([(0, "a"), (0, "b")])
    for unit in ("us", "ns"):
        frame["event_timestamp"] = frame["event_timestamp"].astype(f"datetime64[{unit}, UTC]")
        assert plain(ask(store, frame)["value"]) == [1, None]


def test_order_duplicates_index_and_columns_of_the_entity_frame_stay(ours):
    frame = questions(
        [(2, "b"), (1, "a"), (2, None), (1, "a"), (0, "a")], extra=pd.Series(list("vwxyz"), dtype="string")
    )
    frame.index = [7, 7, 3, 1, 1]
    given_frame = frame.copy()
    found = ask(ours, frame)
    assert found.columns.tolist() == ["key", "event_timestamp", "extra", "number", "value"]
    assert plain(found["value"]) == [None, 1, None, 1, 1]
    expected = frame.reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns="value"), expected)
    pd.testing.assert_frame_equal(frame, given_frame)


def test_a_question_without_a_time_is_kept_and_knows_nothing(ours):
    assert plain(ask(ours, questions([(None, "a"), (1, "a")]))["value"]) == [None, 1]


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
@pytest.mark.parametrize("row_group_size", [1, 3, None])
def test_of_rows_that_are_equally_new_the_last_in_the_file_wins(tmp_path, batch_rows, row_group_size):
    rows = [(1, "a", 1.0, 5), (1, "a", 2.0, 5), (0, "a", 3.0, 9), (1, "b", 4.0, None), (1, "b", 5.0, None)]
    rows += [(1, "c", 6.0, 5), (1, "c", 7.0, 4)]
    events(tmp_path / "table.parquet", rows, row_group_size=row_group_size)
    views = [view("plain", "table.parquet"), view("made", "table.parquet", created="made_at")]
    store = open_store(tmp_path, [KEY, *views], batch_rows=batch_rows)
    frame = questions([(6, "a"), (6, "b"), (6, "c")])
    assert plain(ask(store, frame, ["plain:value"])["value"]) == [2, 5, 7]
    assert plain(ask(store, frame, ["made:value"])["value"]) == [2, 5, 6]  # the last made, if not the last written


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for number in reversed(range(30)):
        events(tmp_path / "table" / f"{number:02}.parquet", [(0, "a", number), (0, f"{number}", number)])
    events(tmp_path / "table" / "day=1" / "1.parquet", [(0, "a", 77), (0, "b", 77)])
    events(tmp_path / "table" / ".99.parquet", [(0, "h", 99)])  # hidden: being written
    integers = pa.table({"known_at": times([0]), "key": ["c"], "value": pa.array([7], pa.int32())})
    pq.write_table(integers, tmp_path / "table" / "30.parquet")  # another type that the others' can hold
    store = open_store(tmp_path, [KEY, view("view", "table")], batch_rows=1)
    frame = questions([(0, "a"), (0, "7"), (0, "b"), (0, "c"), (0, "h")])
    assert plain(ask(store, frame)["value"]) == [77, 7, 77, 7, None]
    (tmp_path / "table" / "day=1" / "1.parquet").unlink()
    assert plain(ask(store, frame)["value"]) == [29, 7, None, 7, None]


def test_a_row_made_later_is_known_later_where_that_is_asked_for(tmp_path):
    rows = [(0, "a", 1.0, 0), (1, "a", 2.0, 5), (2, "a", 3.0, 2), (2, "a", 4.0, 6), (3, "b", 5.0, None)]
    events(tmp_path / "table.parquet", rows)
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", created="made_at")])
    frame = questions([(1, "a"), (4, "a"), (5, "a"), (6, "a"), (6, "b")])
    assert plain(ask(store, frame, filter_by_created_timestamp=True)["value"]) == [1, 3, 3, 4, None]
    assert plain(ask(store, frame)["value"]) == [2, 4, 4, 4, 5]


def test_a_view_is_asked_under_other_names_and_for_other_columns(tmp_path):
    rows = [(0, "a", 1.0), (0, "b", 2.0)]
    events(tmp_path / "table.parquet", rows, second=pa.array(["x", "y"]))
    base = view("view", "table.parquet", TTL, entities=(KEY, OTHER), mapping={"second": "other"})
    store = open_store(tmp_path, [KEY, OTHER, base])
    stored = store.get_feature_view("view")
    one = stored.with_name("one")[["value"]].with_join_key_map({"key": "first_key"})
    two = stored.with_name("two")[["value"]].with_join_key_map({"key": "second_key", "other": "second_other"})
    frame = questions([(1, None), (1, None)]).drop(columns="key")
    frame = frame.assign(first_key=["a", "b"], other=["x", "x"], second_key=["b", "a"], second_other=["y", "x"])
    service = FeatureService(name="both", features=[one, two])
    store.apply(service)
    found = store.get_historical_features(frame, service, full_feature_names=True).to_df()
    assert plain(found["one__value"]) == [1, None]
    assert plain(found["two__value"]) == [2, 1]


def test_columns_are_found_under_their_names_in_the_file(tmp_path):
    mapping = {"v": "value", "k": "key", "at": "known_at", "made": "made_at"}
    stored = pa.table({"at": times([0, 0]), "made": times([2, 1]), "k": ["a", "a"], "v": [1.0, 2.0]})
    pq.write_table(stored, tmp_path / "table.parquet")
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", TTL, created="made_at", mapping=mapping)])
    assert plain(ask(store, questions([(3, "a")]))["value"]) == [1]


def test_a_view_without_entities_answers_every_question(tmp_path):
    events(tmp_path / "table.parquet", [(0, "x", 1.0), (2, "x", 2.0)])
    store = open_store(tmp_path, [view("view", "table.parquet", entities=())], batch_rows=1)
    frame = questions([(1, "a"), (2, None), (-1, "a")])
    assert plain(ask(store, frame)["value"]) == [1, 2, None]
    stored = store.get_feature_view("view")
    assert [column.name for column in stored.entity_columns] == ["__dummy_id"]  # Feast's own, which no table has
    job = PointInTimeOfflineStore.get_historical_features(
        store.config, [stored], ["view:value"], frame, store.registry, store.project
    )
    assert plain(job.to_df()["value"]) == [1, 2, None]
    store.materialize(START.to_pydatetime(), (START + 9 * HOUR).to_pydatetime())
    assert store.get_online_features(["view:value"], [{"__dummy_id": ""}]).to_dict()["value"] == [2]


def test_values_keep_the_type_of_the_file(tmp_path):
    columns = {
        "small": pa.array([1, None], pa.int8()),
        "text": pa.array(["x", None]).dictionary_encode(),
        "many": pa.array([[1.0, None], None], pa.list_(pa.float32())),
        "when": times([1, None], zone="America/New_York"),
        "pair": pa.array([{"a": 1}, None], pa.struct([("a", pa.int64())])),
    }
    events(tmp_path / "table.parquet", [(0, "a", float("nan")), (0, "b", None)], row_group_size=1, **columns)
    fields = ("value", *columns)
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", fields=fields)], batch_rows=1)
    job = store.get_historical_features(questions([(1, "a"), (1, "b"), (1, "c")]), [f"view:{f}" for f in fields])
    found = job.to_arrow()
    for name, column in columns.items():
        expected = column.type.value_type if name == "text" else column.type
        assert found[name].type == expected
        assert found[name].to_pylist() == [*column.to_pylist(), None]
    assert str(found["value"].to_pylist()) == "[nan, None, None]"


def test_on_demand_features_are_computed_from_stored_and_requested_ones(tmp_path):
    events(tmp_path / "table.parquet", [(0, "a", 1.0)])
    stored = view("view", "table.parquet")
    request = RequestSource(name="request", schema=[Field(name="offered", dtype=Float64)])

    @on_demand_feature_view(sources=[stored, request], schema=[Field(name="total", dtype=Float64)], mode="python")
    def totals(inputs):
        both = zip(inputs["value"], inputs["offered"], strict=True)
        return {"total": [None if value is None else value + offered for value, offered in both]}

    store = open_store(tmp_path, [KEY, stored, totals])
    frame = questions([(1, "a"), (1, "b")], offered=[10.0, 20.0])
    assert plain(ask(store, frame, ["totals:total"])["total"]) == [11, None]
    full = ask(store, frame, ["view:value", "totals:total"], full_feature_names=True)
    assert plain(full["totals__total"]) == [11, None]
    assert plain(full["view__value"]) == [1, None]


@pytest.mark.parametrize("stored", [pa.int32(), pa.int64(), pa.uint64(), pa.float64()])
@pytest.mark.parametrize("asked", ["int16", "int64", "uint64", "Int64", "float64"])
def test_keys_of_different_kinds_of_numbers_are_equal_where_their_values_are(tmp_path, stored, asked):
    pq.write_table(
        pa.table({"known_at": times([0, 0]), "key": pa.array([1, 2], stored), "value": [1.0, 2.0]}),
        tmp_path / "table.parquet",
    )
    store = open_store(tmp_path, [Entity(name="key", value_type=ValueType.INT64), view("view", "table.parquet")])
    gap = [None, 1.5] if asked == "float64" else [None, 3] if asked == "Int64" else [7, 3]
    frame = questions([(1, None)] * 4).assign(key=pd.array([2, *gap, 1], dtype=asked))
    assert plain(ask(store, frame)["value"]) == [2, None, None, 1]


@pytest.mark.parametrize("coerced", [True, False])  # whether Feast itself makes columns of times UTC
def test_entity_times_may_be_text_without_zone_or_in_another_zone(ours, coerced):
    ours.config.coerce_tz_aware = coerced
    instant = START + HOUR
    for asked in (
        [str(instant)] * 2,
        [instant.tz_localize(None)] * 2,
        [instant.tz_convert("Asia/Tokyo")] * 2,
        [instant.to_pydatetime(), instant.tz_convert("Asia/Tokyo").to_pydatetime()],
    ):
        found = ask(ours, questions([(0, "a"), (0, "b")]).assign(event_timestamp=asked))
        assert plain(found["value"]) == [1, None]
        assert found["event_timestamp"].tolist() == [instant, instant]
        assert str(found["event_timestamp"].dt.tz) == "UTC"


def test_the_only_column_of_times_is_the_time_of_the_questions(ours):
    found = ask(ours, questions([(1, "a")]).rename(columns={"event_timestamp": "asked_at"}))
    assert plain(found["value"]) == [1]


def test_nobody_asks_or_nothing_is_known(ours, tmp_path):
    asked = questions([(1, "a")])
    for nobody in (questions([]), asked.iloc[:0], pd.DataFrame(columns=["key", "event_timestamp"])):
        found = ask(ours, nobody)
        assert len(found) == 0
        assert found["value"].dtype == "float64"
    events(tmp_path / "table.parquet", [])
    assert plain(ask(ours, asked)["value"]) == [None]
    pq.write_table(pa.table({n: pa.nulls(2) for n in ("known_at", "key", "value")}), tmp_path / "table.parquet")
    assert plain(ask(ours, asked)["value"]) == [None]


def test_the_job_tells_what_it_was_asked(ours):
    job = ours.get_historical_features(questions([(1, "a"), (0, "b")]), ["view:value"])
    assert job.metadata.features == ["view:value"]
    assert job.metadata.keys == ["key", "number"]
    assert job.metadata.min_event_timestamp == START
    assert job.metadata.max_event_timestamp == START + HOUR
    assert ours.get_historical_features(questions([]), ["view:value"]).metadata.min_event_timestamp is None


# Files


def test_row_groups_outside_the_questions_are_not_read(ours, tmp_path):
    path = events(tmp_path / "table.parquet", [(h, "a", float(h)) for h in range(12)], row_group_size=2)
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (0, 1, 5):  # break what lies before the oldest useful hour, 5, and after the last question, 9
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    assert plain(ask(ours, questions([(8, "a"), (9, "a")]))["value"]) == [8, 9]
    with pytest.raises(ClearwayError, match=r"feature view 'view': .*table.parquet cannot be read"):
        ask(ours, questions([(6, "a")]))  # which needs the row of hour 3


def test_only_a_batch_is_held_beside_the_answer(tmp_path):
    rows = 200_000
    table = pa.table(
        {
            "known_at": pa.array(np.arange(rows) + START.value // 1000, pa.timestamp("us", "UTC")),
            "key": pa.array(np.arange(rows) % 7),
            "value": np.arange(rows, dtype="float64"),
            "unused": pa.array(["a long text that nobody asks for"] * rows),
        }
    )
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=10_000)
    del table
    entity = Entity(name="key", value_type=ValueType.INT64)
    store = open_store(tmp_path, [entity, view("view", "table.parquet")], batch_rows=10_000)
    frame = questions([(1, None)] * 2).assign(key=[3, 200])
    held = max_arrow_bytes(lambda: ask(store, frame))
    assert held < 2_000_000  # of 4.8 million bytes that are asked for


def max_arrow_bytes(act):
    """The most that Arrow held at once, beyond what it held before."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        act()
        return pool.max_memory()
    finally:
        pa.set_memory_pool(before)


def test_files_are_read_wherever_fsspec_reads(tmp_path):
    local = events(tmp_path / "table.parquet", [(0, "a", 1.0)])
    with fsspec.open("memory://feature_tables/table.parquet", "wb") as remote:
        remote.write(local.read_bytes())
    store = open_store(tmp_path, [KEY, view("view", "memory://feature_tables/table.parquet")])
    assert plain(ask(store, questions([(1, "a")]))["value"]) == [1]
    store = open_store(tmp_path, [KEY, view("view", f"file://{local}")])
    assert plain(ask(store, questions([(1, "a")]))["value"]) == [1]


@pytest.mark.parametrize("zone", ["+05:30", "-02:00"])
def test_a_zone_may_be_an_offset(tmp_path, zone):
    path = events(tmp_path / "table.parquet", [(0, "a", 1.0, 0), (2, "a", 2.0, 2)], zone=zone, row_group_size=1)
    pq.write_table(pq.read_table(path).append_column("seen", times([0, 2], zone=zone)), path)
    store = open_store(tmp_path, [KEY, view("view", path, created="made_at", fields=("value", "seen"))])
    found = ask(store, questions([(1, "a"), (3, "a")]), ["view:value", "view:seen"])
    assert plain(found["value"]) == [1, 2]
    assert list(found["seen"]) == hours([0, 2])
    span = (START.to_pydatetime(), (START + HOUR).to_pydatetime())
    pulled = store._get_provider().offline_store.pull_latest_from_table_or_query(
        store.config, view("view", path).batch_source, ["key"], ["value"], "known_at", "made_at", *span
    )
    assert pulled.to_arrow()["value"].to_pylist() == [1]


@pytest.mark.parametrize("ticks", [315_569_520_000_000_000, -(2**62)])
def test_a_time_that_python_has_not_matches_nothing_and_stops_nothing(tmp_path, ticks):
    known = pa.concat_arrays([times([0]), pa.array([ticks]).cast(pa.timestamp("us", "UTC"))])
    table = pa.table({"known_at": known, "key": ["a", "b"], "value": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "table.parquet")
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", ttl=HOUR)])
    assert plain(ask(store, questions([(1, "a"), (1, "b")]))["value"]) == [1, None]


def test_a_view_of_text_or_bytes_is_read_as_these(tmp_path):
    shown = {"key": pa.array(["a", "b"], pa.string_view()), "raw": pa.array([b"x", None], pa.binary_view())}
    path = events(tmp_path / "table.parquet", [(0, "a", 1.0), (0, "b", 2.0)], **shown, text=shown["key"])
    store = open_store(tmp_path, [KEY, view("view", path, fields=("raw", "text"))], batch_rows=1)
    found = ask(store, questions([(1, "a"), (1, "b"), (1, "c")]), ["view:raw", "view:text"])
    assert (plain(found["raw"]), plain(found["text"])) == ([b"x", None, None], ["a", "b", None])


# Rows as they are


def test_pulled_rows_are_of_one_piece_and_the_latest_of_named_keys(ours, tmp_path):
    path = events(tmp_path / "table.parquet", [(0, "a", 1.0), (1, None, 2.0), (-1, "b", 3.0)], row_group_size=1)
    source = FileSource(path=str(path), timestamp_field="known_at")
    store, span = ours._get_provider().offline_store, (datetime(2020, 1, 1), datetime.max)
    job = store.pull_latest_from_table_or_query(ours.config, source, ["key"], ["value"], "known_at", None, *span)
    assert job.to_arrow()["value"].to_pylist() == [1, 3]
    found = store.pull_all_from_table_or_query(ours.config, source, ["key"], ["value"], "known_at").to_arrow()
    assert found["value"].to_pylist() == [1, 2, 3]
    assert found["value"].num_chunks == 1  # Feast writes the first to the online store, and only that
    job = store.pull_latest_from_table_or_query(ours.config, source, [], ["value"], "known_at", None, *span)
    assert job.to_arrow().select(["value", "__dummy_id"]).to_pylist() == [{"value": 2.0, "__dummy_id": ""}]


@pytest.mark.parametrize("batch_rows", [1, 100])
def test_feast_materialises_through_this_store(tmp_path, batch_rows):
    rows = [(0, "a", 1.0, 0), (1, "a", 2.0, 5), (1, "a", 3.0, 4), (0, "b", 4.0, 0), (9, "b", 5.0, 9)]
    events(tmp_path / "table.parquet", rows, row_group_size=1)
    store = open_store(tmp_path, [KEY, view("view", "table.parquet", created="made_at")], batch_rows=batch_rows)
    store.materialize(START.to_pydatetime(), (START + 2 * HOUR).to_pydatetime())
    found = store.get_online_features(["view:value"], [{"key": "a"}, {"key": "b"}, {"key": "c"}]).to_dict()
    assert found["value"] == [2, 4, None]


def test_rows_are_appended_to_the_file(ours, tmp_path):
    added = pd.DataFrame({"value": [5.0], "key": ["a"], "known_at": pd.to_datetime([START + HOUR])}, index=[3])
    ours.write_to_offline_store("view", added)
    written = pq.read_table(tmp_path / "table.parquet")
    assert written["value"].to_pylist() == [1, 5]
    assert written.schema.field("known_at").type == pa.timestamp("us", "UTC")
    assert plain(ask(ours, questions([(0, "a"), (1, "a")]))["value"]) == [1, 5]


def test_the_first_rows_make_the_file(ours, tmp_path):
    table = pq.read_table(tmp_path / "table.parquet")
    (tmp_path / "table.parquet").unlink()
    seen = []
    PointInTimeOfflineStore.offline_write_batch(ours.config, ours.get_feature_view("view"), table, seen.append)
    assert pq.read_table(tmp_path / "table.parquet").equals(table)
    assert seen == [1]


def test_the_first_rows_are_named_as_those_appended_later(tmp_path):
    path = tmp_path / "new.parquet"
    stored = view("view", path, mapping={"v": "value"})
    store = open_store(tmp_path, [KEY, stored])
    rows = pd.DataFrame({"known_at": hours([0]), "key": ["a"], "value": [1.0]}, index=[7])
    for known_at in (rows["known_at"], rows["known_at"] + HOUR):
        PointInTimeOfflineStore.offline_write_batch(
            store.config, stored, pa.Table.from_pandas(rows.assign(known_at=known_at)), None
        )
        assert pq.read_schema(path).names == ["known_at", "key", "v"]
    assert pq.read_schema(path).metadata is None or b"pandas" not in pq.read_schema(path).metadata
    assert plain(ask(store, questions([(0, "a"), (1, "a"), (0, "b")]))["value"]) == [1, 1, None]
    path.unlink()
    twice = pa.table({"known_at": times([0]), "key": ["a"], "value": [1.0], "v": [2.0]})
    with pytest.raises(ClearwayError, match=r"new\.parquet has 2 columns named 'v'"):
        PointInTimeOfflineStore.offline_write_batch(store.config, stored, twice, None)
    assert not path.exists()


def test_rows_that_do_not_fit_the_file_leave_it_as_it_was(ours, tmp_path):
    path, stored = tmp_path / "table.parquet", ours.get_feature_view("view")
    before, table = path.read_bytes(), pq.read_table(path)
    renamed = table.rename_columns(["known_at", "key", "worth"])
    text = table.set_column(2, "value", pa.array(["much"]))
    for rows, complaint in ((renamed, "missing value, unknown worth"), (text, "do not fit the types")):
        with pytest.raises(ClearwayError, match=complaint):
            PointInTimeOfflineStore.offline_write_batch(ours.config, stored, rows, None)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    folder = view("folder", "folder")
    with pytest.raises(UsageError, match="one local Parquet file"):
        PointInTimeOfflineStore.offline_write_batch(ours.config, folder, table, None)


def test_a_result_is_stored_and_read_again(ours, tmp_path):
    job = ours.get_historical_features(questions([(1, "a"), (1, "b")]), ["view:value"])
    storage = SavedDatasetFileStorage("sets/asked.parquet")
    saved = ours.create_saved_dataset(job, "asked", storage)
    assert plain(saved.to_df()["value"]) == [1, None]
    assert (tmp_path / "sets" / "asked.parquet").is_file()
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    with pytest.raises(UsageError, match="is a folder"):
        job.persist(SavedDatasetFileStorage("sets"), allow_overwrite=True)


# What cannot be


def assert_refused(store, frame, *parts, features=("view:value",), kind=ClearwayError):
    with pytest.raises(kind) as caught:
        ask(store, frame, features)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_sql_and_no_questions_at_all_are_refused(ours):
    assert_refused(ours, "select * from questions", "entity_df is SQL text", kind=UsageError)
    with pytest.raises(UsageError, match="give a pandas DataFrame"):
        ours.get_historical_features(features=["view:value"], start_date=datetime(2024, 1, 1, tzinfo=UTC))


def test_what_a_question_lacks_is_named(ours):
    frame = questions([(1, "a")])
    assert_refused(ours, frame.drop(columns="key"), "feature view 'view'", "no column 'key'")
    assert_refused(ours, frame.drop(columns="event_timestamp"), "no column 'event_timestamp'")
    assert_refused(ours, frame.assign(event_timestamp=1), "event_timestamp", "int64")
    for number in (1, 1.5, True):
        mixed = pd.concat([frame, frame]).astype({"event_timestamp": object}).reset_index(drop=True)
        mixed.loc[1, "event_timestamp"] = number
        assert_refused(ours, mixed, f"event_timestamp holds {number!r}, a number: give times")
    assert_refused(ours, frame.assign(event_timestamp="soon"), "entity_df cannot be read", "soon")
    assert_refused(ours, frame.assign(value=1), "two columns named 'value'", "full_feature_names")
    assert_refused(
        ours, frame.assign(mixed=pd.Series([b"1"])).assign(mixed=[object()]), "entity_df cannot be read", "mixed"
    )


def test_a_key_that_is_text_here_and_a_number_there_is_named_with_both(ours):
    frame = questions([(1, "a")])
    assert_refused(
        ours, frame.assign(key=1), "feature view 'view'", "key 'key'", "int in entity_df", "text in", "table.parquet"
    )


def test_a_missing_file_folder_or_column_is_named(ours, tmp_path):
    path, frame = tmp_path / "table.parquet", questions([(1, "a")])
    pq.write_table(pq.read_table(path).drop(["value"]), path)
    assert_refused(ours, frame, "feature view 'view'", str(path), "no column 'value'", "known_at, key")
    twice = [times([0]), pa.array(["a"]), pa.array([1.0]), pa.array([2.0])]
    pq.write_table(pa.Table.from_arrays(twice, ["known_at", "key", "value", "value"]), path)
    assert_refused(ours, frame, "feature view 'view'", str(path), "2 columns named 'value'")
    path.unlink()
    assert_refused(ours, frame, "feature view 'view'", str(path), "is missing")
    path.mkdir()
    assert_refused(ours, frame, str(path), "holds no .parquet file")
    (path / "broken.parquet").write_bytes(b"PAR1 but no more")
    assert_refused(ours, frame, "broken.parquet cannot be read")
    pq.write_table(pa.table({"known_at": ["now"], "key": ["a"], "value": [1.0]}), path / "broken.parquet")
    assert_refused(ours, frame, "column 'known_at'", "must be a time, found text")
    pq.write_table(pa.table({"known_at": times([0]), "key": ["a"], "value": ["x"]}), path / "broken.parquet")
    pq.write_table(pa.table({"known_at": times([0]), "key": ["a"], "value": [1.0]}), path / "other.parquet")
    assert_refused(ours, frame, "differ in their types", "value")


def test_a_source_that_is_no_parquet_file_is_named(tmp_path):
    delta = view("view", "table.parquet")
    delta.batch_source.file_options.file_format = DeltaFormat()
    config = open_store(tmp_path, []).config
    for source, complaint in (
        (delta.batch_source, "DeltaFormat"),
        (PushSource(name="p", batch_source=None), "PushSource"),
    ):
        delta.batch_source = source
        with pytest.raises(UsageError, match=f"feature view 'view'.*{complaint}"):
            PointInTimeOfflineStore.offline_write_batch(config, delta, pa.table({}), None)


def test_logs_are_kept_elsewhere(ours):
    with pytest.raises(NotImplementedError, match="prediction log"):
        PointInTimeOfflineStore.write_logged_features(ours.config, pa.table({}), None, None, None)


@pytest.mark.parametrize("options", [{"batch_rows": 0}, {"batch_row": 5}])
def test_a_wrong_option_is_refused(tmp_path, options):
    with pytest.raises(ValidationError, match="batch_row"):
        open_store(tmp_path, [], **options)
