"""What a schema sets aside is left out everywhere the same way, counted, kept with its reason, and capped."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from clearway.acceptance import accept
from clearway.errors import ClearwayError
from clearway.params import Params
from clearway.schema import DataSchema, flat_columns
from clearway.snapshot import load_tables, take_snapshot
from clearway.validation import CheckResult, ValidationReport, validate_snapshot, validate_tables
from clearway.workspace import Workspace


def schema(aside: dict[str, Any] | None = None, **sales: Any) -> DataSchema:
    """Prices of towns; what makes a row of sales be set aside is ``aside`` of the price, or a key of the table."""
    price = {"kind": "float", "nullable": True, **(aside or {})}
    return DataSchema.model_validate(
        {
            "tables": {
                "towns": {"columns": {"name": {"kind": "str"}}},
                "sales": {
                    "max_quarantine": 0.5,
                    "columns": {"town": {"kind": "str", "nullable": True}, "price": price, "day": {"kind": "int"}},
                    **sales,
                },
            }
        }
    )


def tables(**changed: Any) -> dict[str, pd.DataFrame]:
    columns = {"town": ["york", "bath", "york", None], "price": [10.0, 12.0, 999.0, None], "day": [1, 2, 3, 4]}
    sales = pd.DataFrame({**columns, **changed}, index=[10, 20, 20, 40])
    return {"towns": pd.DataFrame({"name": ["york", "bath"]}), "sales": sales}


ASIDE: dict[str, tuple[DataSchema, dict[str, Any], list[int], str]] = {
    "range": (schema({"max": 100, "severity": "quarantine"}), {}, [2], "price range"),
    "nulls": (schema({"nullable": False, "severity": "quarantine"}), {}, [3], "price nulls"),
    "values": (schema({"values": [10, 12], "severity": "quarantine"}), {}, [2], "price values"),
    "unique": (
        schema({"unique": True, "severity": "quarantine"}),
        {"price": [5.0, 5.0, 1.0, None]},
        [0, 1],
        "price unique",
    ),
    "rule": (
        schema(rules=[{"name": "cheap", "expression": "price < 100 * day", "severity": "quarantine"}]),
        {},
        [2],
        "cheap",
    ),
    "check": (schema(checks=[{"name": "even", "severity": "quarantine"}]), {}, [0, 2], "even"),
    "foreign key": (
        schema(foreign_keys=[{"column": "town", "references": "towns.name", "severity": "quarantine"}]),
        {"town": ["york", "rome", "bath", None]},
        [1],
        "town in towns.name",
    ),
    "an absent time": (
        schema(rules=[{"name": "past", "expression": "as_of IS NOT NULL", "severity": "quarantine"}], max_quarantine=1),
        {},
        [0, 1, 2, 3],
        "past",
    ),
}
CHECKS = {"even": pl.col("day") % 2 == 0}


@pytest.mark.parametrize("name", ASIDE)
def test_rows_are_set_aside_and_the_index_is_kept(name: str) -> None:
    expected, changed, gone, reason = ASIDE[name]
    before = tables(**changed)
    accepted = accept(before, expected, CHECKS)
    kept = [row for row in range(4) if row not in gone]
    pd.testing.assert_frame_equal(accepted["sales"], before["sales"].iloc[kept])
    assert accepted["towns"] is before["towns"]
    report = validate_tables(before, expected, checks=CHECKS)
    assert report.verdict == ("passed" if kept else "failed")  # of what is empty nothing can be learnt
    assert report.quarantined == {"sales": len(gone)}
    (found,) = report.having("quarantine")
    assert found.name.removeprefix("sales").lstrip(". ") == reason
    assert [example["row"] for example in found.examples] == gone


@pytest.mark.parametrize("keys", [{}, {"max": 100}, {"max": 100, "severity": "warn"}])
def test_tables_without_such_checks_come_back_as_they_are(keys: dict[str, Any]) -> None:
    before = tables()
    assert accept(before, schema(keys), {})["sales"] is before["sales"]


def judge(report: ValidationReport, check: str) -> CheckResult:
    (result,) = [result for result in report.checks if result.check == check]
    return result


def test_the_mean_is_of_the_rows_that_go_on() -> None:
    mean = {"mean": {"max": 20}, "std": {"max": 2}, "max": 100}
    assert validate_tables(tables(), schema(mean | {"severity": "quarantine"})).verdict == "passed"
    assert judge(validate_tables(tables(), schema(mean)), "mean").found == "340.333"


def test_more_rows_than_may_be_set_aside_are_an_error() -> None:
    keys = {"max": 11, "severity": "quarantine"}
    report = validate_tables(tables(), schema(keys, max_quarantine=0.5))
    assert (judge(report, "quarantine").status, report.verdict) == ("pass", "passed")
    assert report.sentence.endswith("; 2 rows in quarantine")
    report = validate_tables(tables(), schema(keys, max_quarantine=0.49))
    assert (judge(report, "quarantine").status, report.verdict) == ("fail", "failed")
    report = validate_tables(tables(), schema(keys | {"error_share": 0.3}))
    assert (judge(report, "range").status, judge(report, "range").severity) == ("fail", "error")


def test_a_wrong_kind_stops_the_line_and_sets_nothing_aside() -> None:
    before = tables(price=["10 pounds", "12", "999", None])
    expected = schema({"max": 100, "severity": "quarantine"})
    report = validate_tables(before, expected)
    assert (report.verdict, report.quarantined) == ("failed", {})
    assert judge(report, "range").status == "unknown"
    assert accept(before, expected, {})["sales"].equals(before["sales"])


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Workspace]:
    (tmp_path / "people.csv").write_text("name,age,row\nann,30,1\nbob,250,2\ncyd,41,3\nBAD,251,4\n")
    (tmp_path / "schema.yaml").write_text(
        "tables: { people: { max_quarantine: 0.5, columns: { row: { kind: int },\n"
        "  name: { kind: str, pattern: '[a-z]+', severity: quarantine },\n"
        "  age: { kind: int, max: 120, severity: quarantine } } } }"
    )
    params = Params.model_validate(
        {
            "project": {"name": "people"},
            "data": {"table": "people", "label": "age"},
            "sources": {"people": {"kind": "csv", "path": "people.csv"}},
            "environments": {"production": {"port": 8080}},
        }
    )
    return params, Workspace(tmp_path)


def snapshot(params: Params, workspace: Workspace) -> None:
    from clearway.project import load_project

    take_snapshot(params, workspace, load_project(params, flat_columns(params, workspace.root)))


@pytest.mark.parametrize("held", [0, 2_000_000], ids=["streamed", "in memory"])
def test_the_quarantine_holds_the_rows_their_place_and_why(
    project: tuple[Params, Workspace], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = project
    monkeypatch.setattr("clearway.snapshot.HELD_ROWS", held)
    snapshot(params, workspace)
    report = validate_snapshot(params, workspace)
    assert report.verdict == "passed"
    rows = pd.read_parquet(workspace.quarantine / "people.parquet")
    raw = load_tables(workspace, params)["people"]
    assert list(rows.columns) == ["row", "name", "age", "row_", "reason"]  # the table has a column row of its own
    assert raw["name"].iloc[rows["row"]].tolist() == rows["name"].tolist()
    assert dict(zip(rows["name"], rows["reason"], strict=True)) == {
        "BAD": "name pattern; age range",
        "bob": "age range",
    }
    summary = json.loads((workspace.quarantine / "quarantine.json").read_text())
    assert summary["tables"]["people"] == {"rows": 2, "reasons": {"age range": 1, "name pattern; age range": 1}}
    assert len(summary["snapshot_sha256"]) == 64


def test_the_quarantine_is_there_even_when_nothing_is_in_it(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    workspace.quarantine.mkdir(parents=True)
    (workspace.quarantine / "people.parquet").write_text("of an earlier run")
    (workspace.root / "people.csv").write_text("name,age,row\nann,30,1\n")
    snapshot(params, workspace)
    validate_snapshot(params, workspace)
    assert [path.name for path in workspace.quarantine.iterdir()] == ["quarantine.json"]


def test_a_reason_overrides_a_failure_and_is_said() -> None:
    report = validate_tables(tables(), schema({"max": 100}))
    sentence = report.require_passed("the shop was closed")
    assert sentence is not None
    assert "sales.price range" in sentence
    assert "decision.override_veto = 'the shop was closed'" in sentence
    assert validate_tables(tables(), schema()).require_passed("the shop was closed") is None
    with pytest.raises(ClearwayError, match=r"sales\.price range"):
        report.require_passed()
