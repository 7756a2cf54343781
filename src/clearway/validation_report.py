"""What validation found, for people: a terminal table, and one HTML page with what failed first and a picture of each.

The pictures are inline SVG from the numbers of each check's :class:`~clearway.findings.Distribution`: the data is not
read again, and no plotting library is loaded.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from clearway import reporting
from clearway.checks import percent
from clearway.files import write_json
from clearway.findings import Distribution, counted
from clearway.validation import CheckResult, Status, ValidationReport

WIDTH = 140
"""Columns of the terminal table where there is no terminal, such as in a job's log."""
_SHOWN: tuple[Status, ...] = ("fail", "warn", "quarantine")
_COLOURS: Mapping[Status, str] = {"fail": "red", "warn": "yellow", "quarantine": "magenta"}
_WORDS: Mapping[Status, str] = {"fail": "failed", "warn": "warning", "quarantine": "quarantine"}
_STATUS: Mapping[Status, str] = {"fail": "fail", "warn": "warn", "quarantine": "warn"}
"""The page's colour of each status that has a card."""


def print_report(report: ValidationReport, console: Console | None = None) -> None:
    """Show what failed, what warned and what set rows aside, worst first, and the count of all the rest."""
    console = console or (Console() if sys.stdout.isatty() else Console(width=WIDTH))
    table = TerminalTable(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("check", overflow="fold", ratio=4)
    table.add_column("bad rows", justify="right", no_wrap=True)
    table.add_column("expected", overflow="fold", ratio=4)
    table.add_column("found", overflow="fold", ratio=5)
    for status in _SHOWN:
        for check in report.having(status):
            bad = f"{check.failures:,}" if _of_rows(check) else ""
            cells = map(escape, (check.name, bad, check.expected, check.found))
            table.add_row(f"[{_COLOURS[status]}]{status}[/]", *cells)
    if table.row_count:
        console.print(table)
    console.print(f"data validation {report.verdict}: {report.sentence}", highlight=False, markup=False)


def write_reports(report: ValidationReport, folder: Path, facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write ``data_validation.json`` for the line and ``data_validation.html`` for people.

    Parameters
    ----------
    report : ValidationReport
    folder : Path
        Where both files go.
    facts : sequence of (name, value)
        What was judged, for the head of the page.
    """
    content = {
        "verdict": report.verdict,
        "sentence": report.sentence,
        "quarantined": report.quarantined,
        "checks": [check.model_dump(mode="json") for check in report.checks],
    }
    write_json(folder / "data_validation.json", content)
    status = "fail" if report.verdict == "failed" else "warn" if _all(report, "warn", "quarantine") else "pass"
    page = reporting.Page("Data validation", report.verdict, status, f"{report.sentence}.", facts, _blocks(report))
    reporting.write_page(folder / "data_validation.html", page)


def _blocks(report: ValidationReport) -> list[reporting.Block]:
    """What failed, warned, set rows aside, could not be judged, and passed, in this order."""
    blocks: list[reporting.Block] = []
    titles: tuple[tuple[Status, str, str], ...] = (
        ("fail", "What failed", "Each of these stops the line."),
        ("warn", "Warnings", "These are reported and stop nothing."),
        ("quarantine", "Rows set aside", _aside(report)),
    )
    for status, title, note in titles:
        found = report.having(status)
        if found:
            blocks.append(reporting.Cards(f"{title} ({len(found)})", [_card(check) for check in found], note))
    unknown = report.having("unknown")
    if unknown:
        why = [(check.name, check.expected, check.detail) for check in unknown]
        note = "What a check needs is missing or of the wrong kind."
        title = f"Not judged ({len(why)})"
        blocks.append(reporting.Table(title, ("check", "expected", "why not"), why, ["unknown"] * len(why), note))
    passed = report.having("pass")
    for table in dict.fromkeys(check.table for check in passed):
        rows = [_passed_row(check) for check in passed if check.table == table]
        title = f"{table}: {len(rows)} check{'s' if len(rows) != 1 else ''} passed"
        columns = ("column", "check", "expected", "found")
        blocks.append(reporting.Table(title, columns, rows, ["pass"] * len(rows), folded=True))
    return blocks


def _aside(report: ValidationReport) -> str:
    tables = ", ".join(f"{counted(rows)} of {table}" for table, rows in report.quarantined.items())
    goes_on = "goes on" if report.verdict == "passed" else "would go on"
    if not tables:
        return f"The line {goes_on} without these rows."
    return (
        f"The line {goes_on} without {tables}. Each stands in data/quarantine with its reasons; a row may have several."
    )


def _card(check: CheckResult) -> reporting.Card:
    facts = [("expected", check.expected), ("found", check.found)]
    if _of_rows(check):
        facts.append(("bad rows", f"{check.failures:,} of {check.rows:,} ({percent(check.failures / check.rows)})"))
    if not check.detail.startswith("expected "):
        facts.append(("meaning", check.detail))
    return reporting.Card(
        title=check.name,
        status=_STATUS[check.status],
        verdict=_WORDS[check.status],
        facts=facts,
        examples=_examples(check),
        drawing=None if check.distribution is None else _drawing(check, check.distribution),
    )


def _of_rows(check: CheckResult) -> bool:
    """Whether single rows are bad, and not the whole column, the whole table or a step of time."""
    return any("row" in example for example in check.examples)


def _examples(check: CheckResult) -> reporting.Table | None:
    """The first bad rows, one column for each value that was checked."""
    if not check.examples:
        return None
    columns = list(dict.fromkeys(name for example in check.examples for name in example))
    rows = [[_cell(example.get(name)) for name in columns] for example in check.examples]
    more = check.failures - len(rows)
    note = f"and {more:,} more" if more > 0 else ""
    return reporting.Table("", columns, rows, note=note)


def _cell(value: Any) -> str:
    if value is None:
        return "missing"
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _drawing(check: CheckResult, found: Distribution) -> reporting.Drawing:
    title = f"All values of {check.column}"
    alt = f"Distribution of {check.table}.{check.column}: expected {check.expected}, found {check.found}"
    if found.kind == "categorical":
        rest = found.labels[-1].endswith(" others")
        named = found.labels[:-1] if rest else found.labels
        bad = () if found.allowed is None else [label for label in named if label not in found.allowed]
        return reporting.Drawing(
            title, reporting.bars(found.labels, [("rows", found.counts)], alt=alt, bad=bad, rest=rest)
        )
    times = found.kind == "timestamp"
    svg = reporting.histogram(
        found.edges,
        found.counts,
        alt=alt,
        low=found.low,
        high=found.high,
        x_label=f"{check.column} (UTC)" if times else str(check.column),
        times=times,
    )
    bounded = found.low is not None or found.high is not None
    return reporting.Drawing(title, svg, "Shaded: the range that is allowed." if bounded else "")


def _passed_row(check: CheckResult) -> tuple[str, str, str, str]:
    tolerated = f" ({counted(check.failures)} tolerated)" if check.failures and "row" not in check.found else ""
    return check.column or "(whole table)", check.check, check.expected, f"{check.found}{tolerated}"


def _all(report: ValidationReport, *statuses: Status) -> list[CheckResult]:
    return [check for status in statuses for check in report.having(status)]
