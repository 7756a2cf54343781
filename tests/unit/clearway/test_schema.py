"""schema.yaml says what it means or is refused, with the file, the key and the value."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clearway.errors import UsageError
from clearway.params import Params
from clearway.schema import flat_columns, load_schema

GOOD = """
tables:
  people:
    rows: { min: 2, max: 10 }
    extra_columns: allow
    unique: [[name, born]]
    foreign_keys: [{ column: town, references: towns.name, max_missing: 0.1, severity: warn, error_share: 0.5 }]
    columns:
      name: { kind: str, pattern: "[a-z]+", unique: true }
      born: { kind: timestamp, min: 1900-01-01, max: 2024-12-31T12:00:00Z }
      town: { kind: str, values: [York, Bath] }
      age: { kind: int, nullable: true, max_null: 0.2, min: 0, max: 120, mean: { max: 60 }, severity: warn }
      member: { kind: bool }
  towns:
    columns: { name: { kind: str } }
"""


def schema_file(folder: Path, text: str) -> Path:
    path = folder / "schema.yaml"
    path.write_text(text)
    return path


def test_a_schema_is_read(tmp_path: Path) -> None:
    schema = load_schema(schema_file(tmp_path, GOOD))
    people = schema.table("people")
    assert people.columns["born"].min == datetime(1900, 1, 1, tzinfo=UTC)
    assert people.columns["age"].min == 0.0
    assert people.foreign_keys[0].table == "towns"
    assert people.foreign_keys[0].key == "name"
    assert schema.table("towns").extra_columns == "error"
    assert schema.table("towns").rows.min == 1
    assert not schema.table("towns").columns["name"].nullable


def test_kinds_come_in_the_order_of_the_schema(tmp_path: Path) -> None:
    kinds = load_schema(schema_file(tmp_path, GOOD)).kinds("people")
    assert list(kinds.items()) == [
        ("name", "str"),
        ("born", "timestamp"),
        ("town", "str"),
        ("age", "int"),
        ("member", "bool"),
    ]


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"table 'persons' is not in the schema \(tables: people, towns\)"):
        load_schema(schema_file(tmp_path, GOOD)).kinds("persons")


@pytest.mark.parametrize(
    ("old", "new", "key", "value"),
    [
        ("extra_columns: allow", "extra_column: allow", "tables.people.extra_column", "allow"),
        ("extra_columns: allow", "extra_columns: maybe", "tables.people.extra_columns", "maybe"),
        ("kind: bool", "kind: boolean", "tables.people.columns.member.kind", "boolean"),
        ("kind: bool", "kind: bool, min: 0", "tables.people.columns.member", "min"),
        ("kind: bool", "nullable: true", "tables.people.columns.member.kind", "missing"),
        ("max_null: 0.2", "max_null: 20", "tables.people.columns.age.max_null", "20"),
        ("nullable: true, max_null: 0.2", "max_null: 0.2", "tables.people.columns.age", "nullable"),
        ("min: 0, max: 120", "min: 120, max: 0", "tables.people.columns.age", "above"),
        ("min: 0, max: 120", "min: 2024-01-01", "tables.people.columns.age", "does not fit kind int"),
        ("min: 1900-01-01", "min: 1900", "tables.people.columns.born", "does not fit kind timestamp"),
        ("min: 2, max: 10", "min: 20, max: 10", "tables.people.rows", "above"),
        ("[York, Bath]", "[York, 7]", "tables.people.columns.town", "7"),
        ('"[a-z]+"', '"[a-z+"', "tables.people.columns.name.pattern", "regular expression"),
        ("severity: warn, error_share: 0.5", "severity: error, error_share: 0.5", "tables.people", "error_share"),
        ("towns.name", "towns.nam", "references", "towns.nam"),
        ("towns.name", "towns", "references", "towns"),
        ("[[name, born]]", "[[name, birth]]", "tables.people", "birth"),
        ("min: 0, max: 120", "min: 0, max: .nan", "tables.people.columns.age.max", "finite"),
        ("min: 0, max: 120", "min: 0, max: .inf", "tables.people.columns.age.max", "finite"),
        ("[[name, born]]", "[[]]", "tables.people.unique.0", "at least 1"),
        (
            "extra_columns: allow",
            "extra_columns: allow\n    extra_columns: error",
            "key tables.people.extra_columns stands twice",
            "line ",
        ),
        (
            "  towns:\n    columns: { name: { kind: str } }",
            "  towns:\n    columns: {}",
            "tables.towns.columns",
            "at least 1",
        ),
    ],
)
def test_each_mistake_names_file_key_and_value(tmp_path: Path, old: str, new: str, key: str, value: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load_schema(schema_file(tmp_path, GOOD.replace(old, new)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "schema.yaml"))
    assert key in message
    assert value in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("tables: [", "not valid YAML"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("{}", "tables is missing"),
    ],
)
def test_a_file_that_is_no_schema_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        load_schema(schema_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"schema\.yaml is missing"):
        load_schema(tmp_path / "schema.yaml")


def test_flat_columns_are_those_of_the_flat_table_and_of_no_package(tmp_path: Path) -> None:
    schema_file(tmp_path, GOOD)
    base = {"sources": {"towns": {"kind": "csv", "path": "t.csv"}}, "environments": {"production": {"port": 8080}}}
    flat = Params.model_validate({"project": {"name": "t"}, "data": {"table": "towns", "label": "name"}, **base})
    assert flat_columns(flat, tmp_path) == {"name": "str"}
    packaged = Params.model_validate({"project": {"name": "t", "package": "t"}, **base})
    assert flat_columns(packaged, tmp_path / "nowhere") == {}


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read.*schema must name a file"):
        load_schema(tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("zone: Mars/Olympus", "zone = 'Mars/Olympus': is not an IANA time zone"),
        ("hours: [6, 24]", "hours.1 = 24"),  # no hour of a day: nothing would be expected in it
        ("zone: ../etc", "is not an IANA time zone"),
    ],
)
def test_a_cadence_that_expects_nothing_is_refused(tmp_path: Path, said: str, message: str) -> None:
    steps = f"cadence: [{{ column: at, every: 1h, {said} }}]"
    text = f"tables: {{ x: {{ columns: {{ at: {{ kind: timestamp }} }}, {steps} }} }}"
    with pytest.raises(UsageError, match=message):
        load_schema(schema_file(tmp_path, text))
