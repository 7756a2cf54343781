"""A draft loads, the data it came from passes it, broken data does not, and nothing that exists is overwritten."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clearway.errors import ClearwayError, UsageError
from clearway.params import Params
from clearway.schema import Column, DataSchema, TableSchema, load_schema
from clearway.schema_inference import draft_file, draft_schema, draft_snapshot
from clearway.validation import validate_tables
from clearway.workspace import Workspace

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 2000


def readings() -> pd.DataFrame:
    """Two stations, a row each hour."""
    draw = np.random.default_rng(7)
    half = ROWS // 2
    hours = [START + timedelta(hours=i) for i in range(half)]
    temp = draw.normal(60, 10, ROWS).round(2)
    temp[::10] = np.nan
    return pd.DataFrame(
        {
            "station": ["EWR"] * half + ["JFK"] * half,
            "hour": pd.to_datetime(hours * 2, utc=True).astype("datetime64[ns, UTC]"),
            "temp": temp,
            "count": pd.Series(draw.integers(0, 50, ROWS)).where(draw.random(ROWS) > 0.1),
            "serial": [f"N{i:03d}{'A' if i % 3 else 'AB'}" for i in range(ROWS // 4)] * 4,
            "remark": [f"note {'x' * (i % 9)} of {i % 300}" for i in range(ROWS)],
            "open": draw.random(ROWS) > 0.5,
            "year": 2024,
        }
    )


def stations() -> pd.DataFrame:
    codes = ["EWR", "JFK", *(f"{a}{b}X" for a in "ABCDEFGH" for b in "ABCDEFGH")]
    return pd.DataFrame({"code": codes, "height": np.arange(len(codes)) * 1.5})


def drafted(tables: dict[str, Any], **options: Any) -> DataSchema:
    return DataSchema.model_validate(yaml.safe_load(draft_schema(tables, **options)))


@pytest.fixture(scope="module")
def table() -> TableSchema:
    as_of = START + timedelta(days=43)
    return drafted({"readings": readings(), "stations": stations()}, as_of=as_of).tables["readings"]


@pytest.fixture(scope="module")
def columns(table: TableSchema) -> dict[str, Column]:
    return table.columns


def test_kinds_are_told_whole_numbers_with_gaps_among_them(columns: dict[str, Column]) -> None:
    assert {name: column.kind for name, column in columns.items()} == {
        "station": "str",
        "hour": "timestamp",
        "temp": "float",
        "count": "int",
        "serial": "str",
        "remark": "str",
        "open": "bool",
        "year": "int",
    }


def test_missing_values_are_allowed_where_there_were_any_with_room(columns: dict[str, Column]) -> None:
    assert [name for name, column in columns.items() if column.nullable] == ["temp", "count"]
    assert columns["temp"].max_null is not None
    assert 0.1 < columns["temp"].max_null <= 0.15


def test_ranges_and_means_have_room_but_not_for_another_unit(columns: dict[str, Column]) -> None:
    temp, seen = columns["temp"], readings()["temp"]
    assert isinstance(temp.min, float)
    assert isinstance(temp.max, float)
    assert seen.min() - 0.2 * np.ptp(seen.dropna()) < temp.min < seen.min()
    assert seen.max() < temp.max < seen.max() + 0.2 * np.ptp(seen.dropna())
    assert temp.mean is not None
    assert temp.std is not None
    assert 50 < temp.mean.min < 58  # type: ignore[operator]
    assert 62 < temp.mean.max < 70  # type: ignore[operator]
    celsius = (seen - 32) / 1.8
    assert not temp.mean.min <= celsius.mean() <= temp.mean.max  # type: ignore[operator]
    assert not temp.std.min <= celsius.std() <= temp.std.max  # type: ignore[operator]
    assert columns["count"].min == 0, "what was never negative stays so"


def test_few_texts_are_listed_codes_get_a_pattern_and_others_a_length(columns: dict[str, Column]) -> None:
    assert columns["station"].values == ("EWR", "JFK")
    assert columns["station"].min_known == 0.99
    assert columns["serial"].pattern == "N[0-9]{3}AB{0,1}"
    assert columns["remark"].pattern is None
    assert columns["remark"].max_length is not None


def test_a_constant_is_fixed_and_what_varies_must_go_on_varying(columns: dict[str, Column]) -> None:
    assert (columns["year"].min, columns["year"].max, columns["year"].min_distinct) == (2024, 2024, None)
    assert all(columns[name].min_distinct == 2 for name in ("temp", "open", "station", "remark"))


def test_keys_references_steps_and_age_are_found(table: TableSchema) -> None:
    assert table.unique == (("station", "hour"),)
    (steps,) = table.cadence
    assert (steps.column, steps.every, steps.by, steps.max_missing) == ("hour", "1h", ("station",), 0)
    assert table.freshness is not None
    assert table.freshness.max_age_days == 3
    (link,) = table.foreign_keys
    assert (link.column, link.references, link.severity) == ("station", "stations.code", "warn")


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (lambda frame: frame.rename(columns={"temp": "temperature"}), ("temp", "present")),
        (lambda frame: frame.assign(count="25 years"), ("count", "kind")),
        (lambda frame: frame.assign(temp=frame["temp"].where(frame.index % 5 == 1)), ("temp", "nulls")),
        (lambda frame: frame.assign(temp=frame["temp"].mask(frame.index == 5, 999_999_999)), ("temp", "range")),
        (lambda frame: frame.assign(temp=(frame["temp"] - 32) / 1.8), ("temp", "mean")),
        (lambda frame: pd.concat([frame, frame.head(24)]), (None, "unique (station, hour)")),
        (lambda frame: frame.drop(index=[500]), (None, "cadence (hour by station)")),
        (lambda frame: frame.assign(open=True), ("open", "min_distinct")),
        (
            lambda frame: frame.assign(station=frame["station"].mask(frame.index % 20 == 1, "XXX")),
            ("station", "values"),
        ),
        (lambda frame: frame.head(500), (None, "rows")),
    ],
)
def test_a_draft_already_refuses_broken_data(table: TableSchema, broken: Any, check: tuple[str | None, str]) -> None:
    schema = DataSchema(tables={"readings": table.model_copy(update={"foreign_keys": ()})})
    assert validate_tables({"readings": readings()}, schema, as_of=START + timedelta(days=43)).verdict == "passed"
    report = validate_tables({"readings": broken(readings())}, schema, as_of=START + timedelta(days=43))
    assert check in {(found.column, found.check) for found in report.having("fail")}


def test_every_guess_stands_under_what_was_seen() -> None:
    frame = readings().assign(speed=[10.0 + i % 7 for i in range(ROWS - 1)] + [1048.36])
    text = draft_schema({"readings": frame}, of="a\nfile")
    lines = text.splitlines()
    for column in frame.columns:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"      {column}:")]
        assert lines[at - 1].startswith("      # "), column
    assert "is 1048.36 an error?" in " ".join(text.split())
    assert max(map(len, lines)) <= 120
    assert "from a file:" in text


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@st.composite
def any_table(draw: st.DrawFn) -> pl.DataFrame:
    """A table of any columns and odd values, such as a person might have."""
    rows = draw(st.integers(1, 60))
    values: dict[pl.DataType, st.SearchStrategy[Any]] = {
        pl.Int64(): st.integers(-(2**40), 2**40),
        pl.Float64(): st.one_of(st.floats(-1e12, 1e12), st.just(float("nan")), st.integers(-5, 5).map(float)),
        pl.String(): texts,
        pl.Boolean(): st.booleans(),
        pl.Datetime("us", "UTC"): st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)).map(
            lambda moment: moment.replace(tzinfo=UTC)
        ),
        pl.Null(): st.none(),
    }
    named = texts.filter(lambda name: bool(name) and name != "*" and not (name[0] == "^" and name[-1] == "$"))
    names = draw(st.lists(named, min_size=1, max_size=4, unique=True))
    columns = []
    for name in names:
        dtype = draw(st.sampled_from(list(values)))
        column = st.lists(draw(st.sampled_from([values[dtype], st.one_of(st.none(), values[dtype])])), min_size=1)
        few = draw(column)
        columns.append(pl.Series(name, [few[i % len(few)] for i in range(rows)], dtype=dtype))
    return pl.DataFrame(columns)


@pytest.mark.parametrize("name", ["*", "^$", "^temp.*$"])
def test_a_name_that_stands_for_several_columns_is_refused(name: str) -> None:
    with pytest.raises(ClearwayError, match=r"table yes has a column named .*: rename it"):
        drafted({"yes": pl.DataFrame({"temp": [1.0, 2.0], name: [1, 2]})}, as_of=datetime(2024, 1, 1, tzinfo=UTC))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_table())
@example(
    pl.DataFrame({"a\nb": ["x: y, {z}", "- 'q'", "[1]", "\u2028", "#"] * 4, "null": [1, 2] * 10, "1.5": [True] * 20})
)
def test_any_table_passes_its_own_draft(table: pl.DataFrame) -> None:
    schema = drafted({"yes": table}, as_of=datetime(2024, 1, 1, tzinfo=UTC))
    report = validate_tables({"yes": table}, schema, as_of=datetime(2024, 1, 1, tzinfo=UTC))
    assert [(check.name, check.detail) for check in report.having("fail")] == []
    assert list(schema.tables["yes"].columns) == table.columns


def test_columns_of_no_known_kind_are_left_out_aloud() -> None:
    table = pl.DataFrame({"a": [1, 2], "when": [datetime(2024, 1, 1)] * 2, "many": [[1], [2]]})
    text = draft_schema({"t": table})
    words = " ".join(text.replace("#", "").split())
    assert "when (datetime" in words
    assert "many (list(int64))" in words
    schema = DataSchema.model_validate(yaml.safe_load(text))
    assert validate_tables({"t": table}, schema).verdict == "passed"
    with pytest.raises(ClearwayError, match="no column of kind"):
        draft_schema({"t": table.select("many")})
    with pytest.raises(ClearwayError, match="table t has no rows"):
        draft_schema({"t": table.head(0)})


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Workspace]:
    (tmp_path / "people.csv").write_text("name;born\n" + "".join(f"p{i};2024-01-{i % 28 + 1:02d}\n" for i in range(99)))
    source = {"kind": "csv", "path": "people.csv", "read": {"sep": ";"}, "timestamps": ["born"]}
    params = Params.model_validate(
        {
            "project": {"name": "people"},
            "data": {"table": "people", "label": "name"},
            "sources": {"people": source},
            "environments": {"production": {"port": 8080}},
        }
    )
    return params, Workspace(tmp_path)


def test_before_anything_was_ingested_the_sources_are_read(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    output = workspace.root / "schema.draft.yaml"
    assert draft_snapshot(params, workspace, output).verdict == "passed"
    assert load_schema(output).kinds("people") == {"name": "str", "born": "timestamp"}


def test_a_file_is_read_as_the_source_of_its_name_says(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    output = workspace.root / "new.yaml"
    draft_file("people.csv", "people", params, workspace, output)
    assert load_schema(output).kinds("people") == {"name": "str", "born": "timestamp"}
    readings().to_parquet(workspace.root / "r.parquet")
    assert draft_file("r.parquet", "r", None, workspace, workspace.root / "r.yaml").verdict == "passed"


def test_a_file_that_is_there_is_not_overwritten(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    output = workspace.root / "schema.yaml"
    output.write_text("mine")
    with pytest.raises(UsageError, match=r"schema\.yaml is there already"):
        draft_snapshot(params, workspace, output)
    with pytest.raises(UsageError, match=r"schema\.yaml is there already"):
        draft_file("people.csv", "people", params, workspace, output)
    assert output.read_text() == "mine"
