"""Every promise of a schema is kept or broken out loud; a warning stops nothing; what is wrong is shown."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from clearway.errors import ClearwayError, UsageError
from clearway.params import Params
from clearway.schema import DataSchema
from clearway.snapshot import take_snapshot
from clearway.validation import (
    CheckResult,
    ValidationReport,
    conforms,
    print_report,
    validate_file,
    validate_snapshot,
    validate_table,
    validate_tables,
    write_reports,
)
from clearway.workspace import Workspace


def people(**changed: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "name": ["ann", "bob", "cyd", "dan"],
        "age": [30, 25, 41, 52],
        "weight": [60.5, 81.0, np.nan, 75.25],
        "town": ["York", "Bath", "York", None],
        "member": [True, False, True, True],
        "joined": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"], utc=True),
    }
    return pd.DataFrame({**columns, **changed})


def schema(**columns: dict[str, Any]) -> DataSchema:
    """The schema of people, with some columns' keys changed."""
    base: dict[str, dict[str, Any]] = {
        "name": {"kind": "str"},
        "age": {"kind": "int"},
        "weight": {"kind": "float", "nullable": True},
        "town": {"kind": "str", "nullable": True},
        "member": {"kind": "bool"},
        "joined": {"kind": "timestamp"},
    }
    changed = {name: {**keys, **columns.get(name, {})} for name, keys in base.items()}
    return DataSchema.model_validate({"tables": {"people": {"columns": changed}}})


def judge(frame: pd.DataFrame, expected: DataSchema, column: str | None, check: str) -> CheckResult:
    """The one result of that name, having seen that nothing else went wrong that is not of the same column."""
    report = validate_tables({"people": frame}, expected)
    (result,) = [result for result in report.checks if (result.column, result.check) == (column, check)]
    assert {bad.column for bad in report.checks if bad.status in ("fail", "warn")} <= {column}
    return result


def test_tables_as_described_pass() -> None:
    report = validate_tables({"people": people()}, schema())
    assert report.verdict == "passed"
    assert {check.status for check in report.checks} == {"pass"}
    report.require_passed()


@pytest.mark.parametrize(
    ("keys", "values", "check", "failures", "found"),
    [
        ({"min": 26}, [30, 25, 41, 52], "range", 1, "25 in 1 row"),
        ({"max": 40}, [30, 25, 41, 52], "range", 2, "41 to 52 in 2 rows"),
        ({"values": [30, 25]}, [30, 25, 41, 30], "values", 1, "41"),
        ({"unique": True}, [30, 25, 30, 52], "unique", 2, "2 rows"),
        ({}, [30, 25, np.nan, 52], "nulls", 1, "25% missing (1 row)"),
        ({"nullable": True, "max_null": 0.3}, [30, np.nan, np.nan, 52], "nulls", 2, "50% missing"),
        ({"mean": {"max": 50}}, [90, 25, 90, 52], "mean", 4, "64.25"),
        ({}, [30, 25.5, 41, 52], "kind", 1, "25.5"),
        ({}, ["30", "25 years", "41", "52"], "kind", 1, "text in 1 row, such as '25 years'"),
        ({}, ["30", "25", "41", "52"], "kind", 4, "text in 4 rows"),
        ({}, [True, False, True, True], "kind", 4, "bool"),
    ],
)
def test_each_check_of_a_number_can_fail(
    keys: dict[str, Any], values: list[Any], check: str, failures: int, found: str
) -> None:
    result = judge(people(age=values), schema(age=keys), "age", check)
    assert (result.status, result.failures, result.rows) == ("fail", failures, 4)
    assert found in result.found
    assert result.expected in result.detail
    assert result.found in result.detail


@pytest.mark.parametrize(
    ("column", "keys", "values", "check", "found"),
    [
        ("name", {"pattern": "[a-z]+"}, ["ann", "bob", "Cyd", "dan1"], "pattern", "'Cyd', 'dan1'"),
        ("name", {}, [1, 2, 3, 4], "kind", "int"),
        ("name", {}, ["ann", 2, "cyd", "dan"], "kind", "mixed"),
        ("member", {}, ["yes", "no", "yes", "yes"], "kind", "text"),
        ("weight", {}, ["60,5", "81", None, "75"], "kind", "'60,5'"),
        ("joined", {}, ["2024-01-01"] * 4, "kind", "text"),
        ("joined", {"min": "2024-01-02"}, people()["joined"], "range", "2024-01-01"),
        ("joined", {"max": "2024-01-03T12:00:00Z"}, people()["joined"], "range", "2024-01-04"),
    ],
)
def test_each_check_of_other_kinds_can_fail(
    column: str, keys: dict[str, Any], values: Any, check: str, found: str
) -> None:
    result = judge(people(**{column: values}), schema(**{column: keys}), column, check)
    assert result.status == "fail"
    assert found in result.found


def test_bad_rows_are_shown_with_their_position_and_value() -> None:
    frame = people().set_index(pd.Index([7, 7, 8, 9]))
    result = judge(frame, schema(age={"min": 26, "max": 50}), "age", "range")
    assert result.examples == ({"row": 1, "age": 25}, {"row": 3, "age": 52})
    many = validate_tables({"people": pd.concat([people()] * 9)}, schema(age={"min": 60}))
    (worst,) = many.having("fail")
    assert (worst.failures, len(worst.examples)) == (36, 5)


def test_missing_values_are_judged_by_their_own_check_only() -> None:
    keys = {"min": 0, "max": 100, "mean": {"min": 70, "max": 75}}
    assert judge(people(), schema(weight=keys), "weight", "range").status == "pass"
    empty = people(weight=[np.nan] * 4, town=[None] * 4)
    assert validate_tables({"people": empty}, schema(weight=keys, town={"values": ["York"]})).verdict == "passed"


def test_a_tolerated_share_of_missing_values_passes_and_is_reported() -> None:
    result = judge(people(), schema(weight={"max_null": 0.25}), "weight", "nulls")
    assert (result.status, result.failures) == ("pass", 1)
    assert result.found == "25% missing (1 row)"


def test_a_warning_does_not_stop_the_line_until_its_share_is_passed() -> None:
    keys = {"max": 50, "severity": "warn", "error_share": 0.25}
    result = judge(people(), schema(age=keys), "age", "range")
    assert (result.status, result.severity) == ("warn", "warn")
    report = validate_tables({"people": people()}, schema(age=keys))
    assert report.verdict == "passed"
    report.require_passed()
    worse = judge(people(age=[30, 55, 41, 52]), schema(age=keys), "age", "range")
    assert (worse.status, worse.severity) == ("fail", "error")
    assert "25%" in worse.expected


def test_a_wrong_kind_is_an_error_even_where_values_only_warn() -> None:
    report = validate_tables({"people": people(age=["old"] * 4)}, schema(age={"max": 50, "severity": "warn"}))
    assert [(check.check, check.status) for check in report.checks if check.column == "age"] == [
        ("kind", "fail"),
        ("nulls", "pass"),
        ("range", "unknown"),
    ]


def test_missing_values_are_an_error_even_where_values_only_warn() -> None:
    keys = {"max": 50, "severity": "warn", "error_share": 0.5}
    result = judge(people(age=[30, 25, 41, None]), schema(age=keys), "age", "nulls")
    assert (result.status, result.severity) == ("fail", "error")


def test_a_renamed_column_is_missing_and_its_new_name_is_suggested() -> None:
    report = validate_tables({"people": people().rename(columns={"weight": "weight_kg"})}, schema())
    failed = {(check.column, check.check): check for check in report.having("fail")}
    assert set(failed) == {("weight", "present"), ("weight_kg", "extra")}
    assert "was it renamed to 'weight_kg'?" in failed["weight", "present"].detail
    with pytest.raises(ClearwayError, match=r"people\.weight present: the column is missing"):
        report.require_passed()


def test_extra_columns_may_be_allowed() -> None:
    allowing = schema().model_dump(mode="python", exclude_none=True)
    allowing["tables"]["people"]["extra_columns"] = "allow"
    report = validate_tables({"people": people(extra=1)}, DataSchema.model_validate(allowing))
    assert report.verdict == "passed"
    assert validate_tables({"people": people(extra=1)}, schema()).verdict == "failed"


def test_a_missing_table_and_an_undescribed_one_fail() -> None:
    report = validate_tables({"persons": people()}, schema())
    assert [(check.table, check.check, check.status) for check in report.checks] == [
        ("people", "table", "fail"),
        ("persons", "table", "fail"),
    ]


def shop() -> DataSchema:
    return DataSchema.model_validate(
        {
            "tables": {
                "people": {"rows": {"min": 1, "max": 3}, "columns": {"name": {"kind": "str", "nullable": True}}},
                "sales": {
                    "unique": [["day", "buyer"]],
                    "columns": {"day": {"kind": "int"}, "buyer": {"kind": "str", "nullable": True}},
                    "foreign_keys": [{"column": "buyer", "references": "people.name", "max_missing": 0.25}],
                },
            }
        }
    )


def sales(*buyers: str | None) -> pd.DataFrame:
    return pd.DataFrame({"day": range(len(buyers)), "buyer": list(buyers)})


@pytest.mark.parametrize(
    ("buyers", "status", "failures"),
    [
        (("ann", "bob", "ann", None), "pass", 0),
        (("ann", "bob", "ann", "eve"), "pass", 1),
        (("ann", "bob", "fay", "eve"), "fail", 2),
    ],
)
def test_foreign_keys_tolerate_a_share(buyers: tuple[str | None, ...], status: str, failures: int) -> None:
    tables = {"people": pd.DataFrame({"name": ["ann", "bob"]}), "sales": sales(*buyers)}
    report = validate_tables(tables, shop())
    (result,) = [check for check in report.checks if check.check == "in people.name"]
    assert (result.status, result.failures) == (status, failures)


def test_a_foreign_key_without_its_table_is_not_judged() -> None:
    report = validate_table("sales", sales("ann", "eve"), shop())
    (result,) = [check for check in report.checks if check.check == "in people.name"]
    assert result.status == "unknown"
    assert "people.name is not at hand" in result.detail
    assert report.verdict == "passed"


def test_a_key_that_repeats_and_a_row_count_out_of_bounds_fail() -> None:
    twice = pd.concat([sales("ann", "bob"), sales("ann")])
    report = validate_tables({"people": pd.DataFrame({"name": list("abcd")}), "sales": twice}, shop())
    failed = {(check.table, check.check): check for check in report.having("fail")}
    assert failed["people", "rows"].found == "4"
    key = failed["sales", "unique (day, buyer)"]
    assert key.failures == 2
    assert key.examples == ({"row": 0, "day": 0, "buyer": "ann"}, {"row": 2, "day": 0, "buyer": "ann"})


def test_a_table_without_rows_fails_for_its_row_count_only() -> None:
    report = validate_tables({"people": people().head(0)}, schema(age={"min": 0, "mean": {"min": 1}}))
    assert [check.check for check in report.having("fail")] == ["rows"]


def test_the_tables_are_not_changed() -> None:
    frame, before = people(), people()
    validate_tables({"people": frame}, schema(age={"max": 1}))
    pd.testing.assert_frame_equal(frame, before)


def test_whole_numbers_in_float_columns_are_ints_because_missing_values_make_them_floats() -> None:
    assert conforms(pd.Series([1.0, np.nan, 3.0]), "int").all()
    assert conforms(pd.Series([1.0, np.inf, 3.5]), "int").tolist() == [True, False, False]
    assert conforms(pd.Series([True, None, False], dtype=object), "bool").all()
    assert conforms(pd.Series(["a", None], dtype="string"), "str").all()
    assert conforms(pd.Series([1, 2]), "float").all()
    assert not conforms(pd.Series(pd.to_datetime(["2024-01-01"])), "timestamp").any()  # no zone


def test_the_error_line_names_the_first_failures_and_counts_the_rest() -> None:
    broken = people(age=[1.5] * 4, weight=["x"] * 4, member=[1] * 4, joined=["x"] * 4, town=[3] * 4)
    with pytest.raises(ClearwayError) as caught:
        validate_tables({"people": broken}, schema()).require_passed()
    message = str(caught.value)
    assert "people.age kind: expected int, found float in 4 rows, such as 1.5" in message
    assert message.endswith("; and 2 more")
    assert "\n" not in message


def test_reports_are_written_with_the_worst_first_and_data_is_escaped(tmp_path: Path) -> None:
    evil = people(name=["<script>alert(1)</script>", "[red]bob", "cyd", "dan"], weight=[np.inf, 1.0, np.nan, 2.0])
    report = validate_tables({"people": evil}, schema(name={"pattern": "[a-z]+"}, weight={"max": 50}))
    write_reports(report, tmp_path, [("as of", "2024-01-05")])
    content = json.loads((tmp_path / "data_validation.json").read_text())
    assert content["verdict"] == "failed"
    assert len(content["checks"]) == len(report.checks)
    wanted = {"table", "column", "check", "severity", "status", "failures", "rows", "examples", "detail"}
    assert all(wanted <= set(check) for check in content["checks"])
    assert [check["examples"][0] for check in content["checks"] if check["check"] == "range"] == [
        {"row": 0, "weight": "inf"}
    ]
    page = (tmp_path / "data_validation.html").read_text()
    assert "<script>" not in page
    assert page.index("text that matches") < page.index("none missing")
    assert "2024-01-05" in page


def test_the_terminal_shows_what_is_wrong_and_counts_the_rest() -> None:
    report = validate_tables({"people": people(name=["[red]ann", "b", "c", "d"])}, schema(name={"pattern": "[a-z]"}))
    console = Console(width=160, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    assert [line.split() for line in text.splitlines()][1][:3] == ["fail", "people.name", "pattern"]
    assert "'[red]ann' in 1 row (25%)" in text
    assert "data validation failed: 12 checks on 1 table: 11 passed, 1 failed" in text


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Workspace]:
    (tmp_path / "people.csv").write_text("name;age\nann;30\nbob;25\n")
    (tmp_path / "schema.yaml").write_text(
        "tables: { people: { columns: { name: { kind: str }, age: { kind: int, max: 120 } } } }"
    )
    params = Params.model_validate(
        {
            "project": {"name": "people"},
            "data": {"table": "people", "label": "age"},
            "sources": {"people": {"kind": "csv", "path": "people.csv", "read": {"sep": ";"}}},
            "environments": {"production": {"port": 8080}},
        }
    )
    return params, Workspace(tmp_path)


def snapshot(params: Params, workspace: Workspace) -> None:
    from clearway.project import load_project
    from clearway.schema import flat_columns

    take_snapshot(params, workspace, load_project(params, flat_columns(params, workspace.root)))


@pytest.mark.parametrize(("age", "verdict"), [("25", "passed"), ("250", "failed")])
def test_a_snapshot_is_judged_and_reported_whatever_the_verdict(
    project: tuple[Params, Workspace], age: str, verdict: str
) -> None:
    params, workspace = project
    (workspace.root / "people.csv").write_text(f"name;age\nann;30\nbob;{age}\n")
    snapshot(params, workspace)
    assert validate_snapshot(params, workspace).verdict == verdict
    assert json.loads((workspace.reports / "data_validation.json").read_text())["verdict"] == verdict
    assert verdict in (workspace.reports / "data_validation.html").read_text()


def test_the_reports_of_the_same_data_are_the_same_bytes(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    written = []
    for _ in range(2):
        snapshot(params, workspace)
        validate_snapshot(params, workspace)
        written.append([path.read_bytes() for path in sorted(workspace.reports.iterdir())])
    assert written[0] == written[1]


def test_one_file_is_judged_against_a_table(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    (workspace.root / "new.csv").write_text("name;age\ncyd;130\n")
    pd.DataFrame({"name": ["cyd"], "age": [13]}).to_parquet(workspace.root / "new.parquet")
    assert validate_file("new.csv", None, params, workspace).verdict == "failed"
    assert validate_file("new.parquet", "people", params, workspace).verdict == "passed"
    assert not workspace.reports.exists()
    with pytest.raises(ClearwayError, match=r"gone\.csv \(--against\) is missing"):
        validate_file("gone.csv", None, params, workspace)
    with pytest.raises(UsageError, match="table 'persons' is not in the schema"):
        validate_file("new.csv", "persons", params, workspace)
    (workspace.root / "schema.yaml").write_text(
        "tables: { a: { columns: { x: { kind: str } } }, b: { columns: { x: { kind: str } } } }"
    )
    with pytest.raises(UsageError, match="--table is missing: name one of a, b"):
        validate_file("new.csv", None, params, workspace)


def test_a_report_is_typed_and_frozen() -> None:
    report = validate_tables({"people": people()}, schema())
    assert ValidationReport.model_validate(report.model_dump()) == report
    with pytest.raises(ValueError, match="frozen"):
        report.checks = ()  # type: ignore[misc]
