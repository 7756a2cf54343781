"""Every promise of a schema is kept or broken out loud; a warning stops nothing; what is wrong is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.params import Params
from clearway.schema import DataSchema
from clearway.snapshot import take_snapshot
from clearway.validation import (
    CheckResult,
    ValidationReport,
    validate_file,
    validate_snapshot,
    validate_table,
    validate_tables,
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
    assert key.found == "2 rows that share theirs"
    assert key.examples == ({"row": 0, "day": 0, "buyer": "ann"}, {"row": 2, "day": 0, "buyer": "ann"})


def test_a_table_without_rows_fails_for_its_row_count_only() -> None:
    report = validate_tables({"people": people().head(0)}, schema(age={"min": 0, "mean": {"min": 1}}))
    assert [check.check for check in report.having("fail")] == ["rows"]


def test_a_table_of_which_no_row_is_left_is_broken_and_the_cause_is_named() -> None:
    columns = schema(age={"max": 20, "severity": "quarantine", "mean": {"max": 20}}, name={"min_distinct": 2})
    expected = columns.tables["people"].model_copy(update={"max_quarantine": 1.0})
    report = validate_tables({"people": people()}, DataSchema(tables={"people": expected}))
    (failed,) = report.having("fail")
    assert (failed.check, failed.found) == ("quarantine", "4 rows (100%): age range in 4 rows")
    assert {check.name for check in report.having("unknown")} == {"people.age mean", "people.name min_distinct"}


def test_text_among_numbers_is_told_apart_in_the_picture() -> None:
    ages = schema()
    (check,) = validate_tables({"people": people(age=["30", "25 years", "41", "52"])}, ages).having("fail")
    assert check.distribution is not None
    assert set(check.distribution.labels) - set(check.distribution.allowed or ()) == {"25 years"}


def test_lists_and_numbers_beyond_64_bits_are_of_the_wrong_kind() -> None:
    lists = pl.DataFrame(people()).with_columns(age=pl.concat_list("age"), weight=pl.lit(2**64 - 1, dtype=pl.UInt64))
    report = validate_tables({"people": lists}, schema(weight={"kind": "int"}))
    found = {check.name: check.found for check in report.having("fail")}
    assert found["people.age kind"] == "list(int64) in 4 rows, such as '[30]', '[25]', '[41]', …"
    assert found["people.weight kind"] == "int beyond 64 bits in 4 rows, such as 18446744073709551615"


def test_the_tables_are_not_changed() -> None:
    frame, before = people(), people()
    validate_tables({"people": frame}, schema(age={"max": 1}))
    pd.testing.assert_frame_equal(frame, before)


def test_the_error_line_names_the_first_failures_and_counts_the_rest() -> None:
    broken = people(age=[1.5] * 4, weight=["x"] * 4, member=[1] * 4, joined=["x"] * 4, town=[3] * 4)
    with pytest.raises(ClearwayError) as caught:
        validate_tables({"people": broken}, schema()).require_passed()
    message = str(caught.value)
    assert "people.age kind: expected int, found float in 4 rows, such as 1.5" in message
    assert message.endswith("; and 2 more")
    assert "\n" not in message


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


def test_a_parquet_file_is_read_in_pieces_and_its_times_are_utc(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    (workspace.root / "schema.yaml").write_text(
        "tables: { people: { columns: { at: { kind: timestamp, min: 2024-01-01 } } } }"
    )
    for at in (["2024-01-01T00:00"], pd.to_datetime(["2024-01-01"]), pd.to_datetime(["2024-01-01"], utc=True)):
        pd.DataFrame({"at": at}).to_parquet(workspace.root / "new.parquet")
        assert validate_file("new.parquet", None, params, workspace).verdict == "passed"
    pd.DataFrame({"at": pd.to_datetime(["2023-12-31T23:59:59"])}).to_parquet("memory://late.parquet")
    assert validate_file("memory://late.parquet", None, params, workspace).verdict == "failed"
    whole = (workspace.root / "new.parquet").read_bytes()
    for content, cause in (
        (whole[:-9], r"new\.parquet \(--against\) is truncated or damaged .* fetch it again"),
        (b"at\n2024-01-01\n", "it is no Parquet file"),
        (b"", "is empty"),
    ):
        (workspace.root / "new.parquet").write_bytes(content)
        with pytest.raises(ClearwayError, match=cause):
            validate_file("new.parquet", None, params, workspace)
    pd.DataFrame({"at": pd.to_datetime([])}).to_parquet(workspace.root / "new.parquet")
    with pytest.raises(ClearwayError, match="has no rows"):
        validate_file("new.parquet", None, params, workspace)
    with pytest.raises(ClearwayError, match=r"gone\.parquet \(--against\) is missing"):
        validate_file("gone.parquet", None, params, workspace)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_wrong_is_drawn(streamed: bool) -> None:
    values = [*range(100), 10_000_000]
    frame = pl.DataFrame({"x": values, "y": ["a", "b", "b", "c", *["b"] * 97]})
    columns = {"x": {"kind": "int", "min": 0, "max": 200}, "y": {"kind": "str", "values": ["a", "b"]}}
    schema_ = DataSchema.model_validate({"tables": {"t": {"columns": columns}}})
    report = validate_tables({"t": frame.lazy() if streamed else frame}, schema_)
    assert all(check.distribution is None for check in report.having("pass"))
    x, y = (check.distribution for check in report.having("fail"))
    assert x is not None
    assert y is not None
    assert (x.kind, x.low, x.high, sum(x.counts)) == ("numeric", 0, 200, 101)
    assert len(x.edges) == len(x.counts) + 1 <= 25
    assert x.counts[-1] == 1  # the outlier has a bin of its own, and does not flatten the others
    assert sum(count > 0 for count in x.counts) > 5
    assert (y.labels, y.counts, y.allowed) == (("b", "a", "c"), (99, 1, 1), ("b", "a"))


def test_a_report_is_typed_and_frozen() -> None:
    report = validate_tables({"people": people()}, schema())
    assert ValidationReport.model_validate(report.model_dump()) == report
    with pytest.raises(ValueError, match="frozen"):
        report.checks = ()  # type: ignore[misc]


def test_rows_set_aside_keep_their_own_columns_row_and_reason(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    (workspace.root / "people.csv").write_text("name;age;row;row_;reason\nann;30;7;8;x\nbob;250;9;10;y\n")
    (workspace.root / "schema.yaml").write_text(
        "tables: { people: { extra_columns: allow, max_quarantine: 0.5, columns: { name: { kind: str }, "
        "age: { kind: int, max: 120, severity: quarantine } } } }"
    )
    snapshot(params, workspace)
    assert validate_snapshot(params, workspace).quarantined == {"people": 1}
    aside = pl.read_parquet(workspace.quarantine / "people.parquet").with_columns(pl.col("reason").cast(pl.String))
    assert aside.to_dicts() == [
        {"row": 1, "name": "bob", "age": 250, "row__": 9, "row_": 10, "reason_": "y", "reason": "age range"}
    ]
