"""What is wrong comes first, with its evidence; what the data holds cannot break out of the page or the terminal."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from clearway.schema import DataSchema
from clearway.validation import ValidationReport, validate_tables
from clearway.validation_report import print_report, write_reports

EVIL = "<script>alert(1)</script>"


def report(**changed: Any) -> ValidationReport:
    """One table with a check of each outcome."""
    columns: dict[str, Any] = {
        "price": {"kind": "float", "min": 0, "max": 100},
        "speed": {"kind": "float", "max": 50, "severity": "quarantine"},
        "town": {"kind": "str", "values": ["York", "Bath"], "severity": "warn"},
        "age": {"kind": "int", "max": 120},
        "day": {"kind": "timestamp"},
    }
    rows = {
        "price": [float(i) for i in range(99)] + [999_999_999.0],
        "speed": [10.0] * 99 + [1048.36],
        "town": ["York"] * 60 + ["Bath"] * 39 + [EVIL],
        "age": ["25 years"] * 100,
    }
    schema = DataSchema.model_validate({"tables": {"shop": {"columns": columns, "max_quarantine": 0.05}}})
    return validate_tables({"shop": pl.DataFrame({**rows, **changed})}, schema)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reports")
    write_reports(report(), folder, [("as of", "2024-01-05")])
    return (folder / "data_validation.html").read_text()


def card(page: str, name: str) -> str:
    """The one card of that name."""
    (found,) = [part for part in page.split('<section class="card')[1:] if f"</span> {name}</h3>" in part]
    return found.split("</section>")[0]


def test_the_json_holds_every_check_and_what_was_set_aside(tmp_path: Path) -> None:
    judged = report()
    write_reports(judged, tmp_path)
    content = json.loads((tmp_path / "data_validation.json").read_text())
    assert content["verdict"] == "failed"
    assert content["quarantined"] == {"shop": 1}
    assert content["sentence"] == judged.sentence
    assert len(content["checks"]) == len(judged.checks)
    (price,) = [check for check in content["checks"] if (check["column"], check["check"]) == ("price", "range")]
    assert price["examples"] == [{"row": 99, "price": 999999999.0}]
    assert price["distribution"]["high"] == 100


def test_the_page_tells_failures_then_warnings_then_quarantine_then_the_rest(page: str) -> None:
    heads = ["What failed (", "Warnings (1)", "Rows set aside (1)", "Not judged (", "checks passed"]
    places = [page.index(head) for head in heads]
    assert places == sorted(places)
    assert "<details>" in page[places[3] :]
    assert "2024-01-05" in page


def test_a_failure_is_shown_with_what_was_expected_and_found_its_rows_and_a_picture(page: str) -> None:
    shown = card(page, "shop.price range")
    for words in ("0 to 100", "999999999 in 1 row", "1 of 100 (1%)", "<td>99</td>", "<td>999999999</td>"):
        assert words in shown
    assert shown.count('class="allowed"') == 1
    assert shown.count('class="bound"') == 2
    assert shown.count('<rect class="bad"') == 1
    assert "no such column" in card(page, "shop.day present")
    assert "<svg" not in card(page, "shop.day present")


def test_rows_set_aside_are_counted_with_where_they_are(page: str) -> None:
    assert "The line would go on without 1 row of shop. Each stands in data/quarantine" in page
    assert "1048.36" in card(page, "shop.speed range")


def test_only_values_that_are_not_allowed_are_coloured(page: str) -> None:
    shown = card(page, "shop.town values")
    assert shown.count('<rect class="bar"') == 2
    assert shown.count('<rect class="bad"') == 1


def test_nothing_in_the_data_becomes_markup(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, "fail"),
        ({"price": 1.0, "age": 1, "day": "d"}, "warn"),
        ({"price": 1.0, "age": 1, "day": "d", "town": "York", "speed": 1.0}, "pass"),
    ],
)
def test_the_colour_of_the_page_is_that_of_its_worst_check(tmp_path: Path, changed: Any, status: str) -> None:
    from datetime import UTC, datetime

    filled = {
        name: [datetime(2024, 1, 1, tzinfo=UTC) if value == "d" else value] * 100 for name, value in changed.items()
    }
    write_reports(report(**filled), tmp_path)
    assert f'<span class="verdict {status}">' in (tmp_path / "data_validation.html").read_text()


def test_the_terminal_shows_what_is_wrong_worst_first_and_the_sentence() -> None:
    judged = report(town=["York"] * 99 + ["[red]Bonn"])
    console = Console(width=140, record=True, file=io.StringIO())
    print_report(judged, console)
    lines = console.export_text().splitlines()
    marks = [line.split()[0] for line in lines[1:-1] if line[:1].strip()]
    assert marks == sorted(marks, key=["fail", "warn", "quarantine"].index)
    assert set(marks) == {"fail", "warn", "quarantine"}
    assert any("'[red]Bonn'" in line for line in lines)
    places = {line.index("shop") for line in lines[1:-1] if "shop" in line}
    assert len(places) == 1, "the names stand under each other"
    assert lines[-1].endswith(f"data validation failed: {judged.sentence}"[-40:])


def test_a_report_without_a_fault_is_one_line() -> None:
    schema = DataSchema.model_validate({"tables": {"shop": {"columns": {"a": {"kind": "int"}}}}})
    console = Console(width=140, record=True, file=io.StringIO())
    print_report(validate_tables({"shop": pl.DataFrame({"a": [1]})}, schema), console)
    (line,) = console.export_text().splitlines()
    assert line.startswith("data validation passed: ")
