"""Judge raw tables against ``schema.yaml``: what was expected, what was found, and which rows are bad.

:func:`validate_tables` is pure. pandera runs the checks, all of them even after one has failed; this module says what
a failure means: an error stops the line, a warning never does, and a tolerated share of bad rows is neither.
"""

import difflib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import pandera.pandas as pandera
from pandera.errors import SchemaErrorReason, SchemaErrors
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from clearway import reporting
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_json
from clearway.params import CsvSource, Params, ParquetSource
from clearway.schema import Bounds, Column, DataSchema, ForeignKey, Kind, Severity, TableSchema, load_schema
from clearway.snapshot import load_snapshot, load_tables
from clearway.sources import read_source
from clearway.workspace import Workspace

Status = Literal["pass", "warn", "fail", "unknown"]

EXAMPLES = 5
"""Bad rows shown per check."""
WIDTH = 140
"""Columns of the terminal table where there is no terminal, such as in a job's log."""
_WORST_FIRST: tuple[Status, ...] = ("fail", "warn", "unknown", "pass")


class CheckResult(BaseModel):
    """One check of one table or column, with its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    column: str | None
    check: str
    severity: Severity
    status: Status
    """``unknown`` means not judged, because what it needs is missing or of the wrong kind (which itself fails)."""
    failures: int
    """Bad rows, tolerated ones too."""
    rows: int
    """Rows of the table."""
    expected: str
    found: str
    examples: tuple[dict[str, Any], ...] = ()
    """The first bad rows: ``row`` (position in the table, from 0) and the values that were checked."""
    detail: str

    @property
    def name(self) -> str:
        """``table.column check``."""
        return f"{self.table}.{self.column} {self.check}" if self.column else f"{self.table} {self.check}"


class ValidationReport(BaseModel):
    """All checks, in the order of the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[CheckResult, ...]

    @property
    def verdict(self) -> Literal["passed", "failed"]:
        """``failed`` when any check of severity error failed; warnings do not count."""
        return "failed" if self.having("fail") else "passed"

    @property
    def sentence(self) -> str:
        """One sentence: how many checks, and how they came out."""
        counts = Counter(check.status for check in self.checks)
        tables = len({check.table for check in self.checks})
        words: dict[Status, str] = {"pass": "passed", "warn": "warned", "fail": "failed", "unknown": "not judged"}
        parts = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
        return f"{len(self.checks)} checks on {tables} table{'s' if tables != 1 else ''}: {parts}"

    def having(self, status: Status) -> tuple[CheckResult, ...]:
        """The checks with that status."""
        return tuple(check for check in self.checks if check.status == status)

    def require_passed(self) -> None:
        """Stop the line when the verdict is failed.

        Raises
        ------
        ClearwayError
            Names table, column and check of the first failures.
        """
        failed = self.having("fail")
        if failed:
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            causes = "; ".join(f"{check.name}: {check.detail}" for check in failed[:3])
            raise ClearwayError(f"data validation failed: {causes}{more}")


def validate_tables(tables: Mapping[str, pd.DataFrame], schema: DataSchema) -> ValidationReport:
    """Judge every table that the schema names, and name every table it does not.

    Parameters
    ----------
    tables : mapping of name to DataFrame
    schema : DataSchema

    Returns
    -------
    ValidationReport
        ``failed`` when a table is missing or any check of severity error fails.
    """
    checks: list[CheckResult] = []
    for name, expected in schema.tables.items():
        if name in tables:
            checks += _validate(name, tables[name], expected, tables)
        else:
            checks.append(_table_result(name, "in the data", "missing", f"table {name} is missing: add it to sources"))
    for name in tables:
        if name not in schema.tables:
            advice = "it is in the data but not in schema.yaml: describe it there"
            checks.append(_table_result(name, "in schema.yaml", "not there", advice))
    return ValidationReport(checks=tuple(checks))


def validate_table(name: str, frame: pd.DataFrame, schema: DataSchema) -> ValidationReport:
    """Judge one table alone; its foreign keys are not judged.

    Raises
    ------
    UsageError
        The schema has no table of that name.
    """
    return ValidationReport(checks=tuple(_validate(name, frame, schema.table(name), {})))


def validate_snapshot(params: Params, workspace: Workspace) -> ValidationReport:
    """Judge ``data/raw`` and write ``reports/data_validation.json`` and ``.html``, whatever the verdict.

    Raises
    ------
    ClearwayError
        The snapshot is missing or was changed.
    UsageError
        ``schema.yaml`` is missing or wrong.
    """
    schema = load_schema(workspace.root / params.data_schema)
    report = validate_tables(load_tables(workspace, params), schema)
    snapshot = load_snapshot(workspace)
    facts = [("as of", str(snapshot.as_of or "no time in the data")), ("rows", f"{snapshot.rows:,}")]
    write_reports(report, workspace.reports, facts)
    return report


def validate_file(file: str, table: str | None, params: Params, workspace: Workspace) -> ValidationReport:
    """Judge one CSV or Parquet file (path or fsspec URL) as ``table``; without it, as the schema's only table.

    Raises
    ------
    ClearwayError
        The file is missing or cannot be read.
    UsageError
        The table is not named, or not in the schema.
    """
    schema = load_schema(workspace.root / params.data_schema)
    if table is None and len(schema.tables) > 1:
        raise UsageError(f"--table is missing: name one of {', '.join(schema.tables)}")
    name = table or next(iter(schema.tables))
    timestamps = tuple(column for column, kind in schema.kinds(name).items() if kind == "timestamp")
    source: CsvSource | ParquetSource
    if PurePosixPath(file).suffix in (".parquet", ".pq"):
        source = ParquetSource(kind="parquet", path=file, timestamps=timestamps)
    else:
        declared = params.sources.get(name)
        read = getattr(declared, "read", {})
        source = CsvSource(kind="csv", path=file, timestamps=timestamps, read=read)
    frame = read_source(source, workspace.root, key=f"sources.{name}", named_by="--against")
    return validate_table(name, frame, schema)


def write_reports(report: ValidationReport, folder: Path, facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write ``data_validation.json`` for the line and ``data_validation.html`` for people, what failed first."""
    checks = [check.model_dump(mode="json") for check in report.checks]
    write_json(folder / "data_validation.json", {"verdict": report.verdict, "checks": checks})
    status = "fail" if report.verdict == "failed" else "warn" if report.having("warn") else "pass"
    ordered = sorted(report.checks, key=lambda check: _WORST_FIRST.index(check.status))
    blocks = []
    for title, wanted in (("What is wrong", ("fail", "warn")), ("All other checks", ("unknown", "pass"))):
        rows = [check for check in ordered if check.status in wanted]
        if rows:
            blocks.append(
                reporting.Table(
                    title=title,
                    columns=("status", "table", "column", "check", "expected", "found", "bad rows", "examples"),
                    rows=[_page_row(check) for check in rows],
                    status=[check.status for check in rows],
                )
            )
    page = reporting.Page("Data validation", report.verdict, status, f"{report.sentence}.", facts, blocks)
    reporting.write_page(folder / "data_validation.html", page)


def print_report(report: ValidationReport, console: Console | None = None) -> None:
    """Show what failed and what warned, and the count of all the rest."""
    console = console or (Console() if sys.stdout.isatty() else Console(width=WIDTH))
    table = TerminalTable(box=None, pad_edge=False, header_style="dim")
    for column in ("", "check", "expected", "found"):
        table.add_column(column, overflow="fold")
    colours = {"fail": "red", "warn": "yellow"}
    for check in (*report.having("fail"), *report.having("warn")):
        cells = map(escape, (check.name, check.expected, check.found))
        table.add_row(f"[{colours[check.status]}]{check.status}[/]", *cells)
    if table.row_count:
        console.print(table)
    console.print(f"data validation {report.verdict}: {report.sentence}", highlight=False)


@dataclass(frozen=True)
class _Rule:
    """One check to run: what pandera evaluates, and what to make of the rows that fail it."""

    column: str | None
    check: str
    expected: str
    passes: Callable[[Any], Any]
    """From a column without its missing values (or the whole table) to one bool per row, or to one bool."""
    found: Callable[[pd.DataFrame, "pd.Series[bool]", int], str]
    """From the table, its bad rows and their number to words."""
    severity: Severity = "error"
    error_share: float | None = None
    tolerated: float = 0.0
    """Share of the table's rows that may fail."""
    nulls: bool = False
    """Whether missing values are handed to ``passes``."""
    shows: tuple[str, ...] = ()
    """Columns shown in examples."""
    needs_kind: bool = True
    """Whether a value of the wrong kind makes this check meaningless."""
    blocked: str = ""
    """Why the check cannot be run at all."""

    @property
    def id(self) -> str:
        return f"{self.column or ''}\n{self.check}"


def _validate(
    name: str, frame: pd.DataFrame, expected: TableSchema, tables: Mapping[str, pd.DataFrame]
) -> list[CheckResult]:
    """All results of one table, in the order of its schema."""
    frame = frame.reset_index(drop=True)
    rules = _rules(expected, frame.columns, tables)
    outputs, errors = _run(_pandera_schema(expected, rules), frame)
    missing = [column for column in expected.columns if column not in frame.columns]
    extra = [str(column) for column in frame.columns if column not in expected.columns]
    results = [_missing(name, column, expected, extra, len(frame)) for column in missing]
    if expected.extra_columns == "error":
        results += [_extra(name, column, expected, len(frame)) for column in extra]
    wrong = {rule.column for rule in rules if rule.check == "kind" and rule.id in outputs}
    for rule in rules:
        cause = rule.blocked or errors.get(rule.id, "")
        if rule.needs_kind and rule.column in wrong:
            cause = f"column {rule.column} is of the wrong kind"
        judged = _judge(name, rule, frame, outputs.get(rule.id, True)) if not cause else None
        results.append(judged or _unknown(name, rule, len(frame), cause))
    order = [None, *expected.columns]
    return sorted(results, key=lambda result: order.index(result.column) if result.column in order else len(order))


def _pandera_schema(expected: TableSchema, rules: Sequence[_Rule]) -> pandera.DataFrameSchema:
    """The pandera schema of one table. Missing values are a check of ours, so that a share of them can be tolerated."""
    by_column: dict[str | None, list[pandera.Check]] = {}
    for rule in (rule for rule in rules if not rule.blocked):
        # one failure case is enough: bad rows are counted from the check's output
        check = pandera.Check(rule.passes, name=rule.id, ignore_na=not rule.nulls, n_failure_cases=1)
        by_column.setdefault(rule.column, []).append(check)
    columns = {name: pandera.Column(checks=by_column.get(name, []), nullable=True) for name in expected.columns}
    return pandera.DataFrameSchema(columns, checks=by_column.get(None, []), strict=expected.extra_columns == "error")


def _run(schema: pandera.DataFrameSchema, frame: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all checks: the output of each that failed, and the error of each that could not run, by rule id."""
    outputs: dict[str, Any] = {}
    errors: dict[str, str] = {}
    try:
        schema.validate(frame, lazy=True, inplace=True)  # nothing is coerced, so nothing is changed
    except SchemaErrors as found:
        for error in found.schema_errors:
            if error.reason_code == SchemaErrorReason.DATAFRAME_CHECK:
                outputs[error.check.name] = error.check_output
            elif error.reason_code == SchemaErrorReason.CHECK_ERROR:
                errors[error.check.name] = f"the check could not run: {' '.join(str(error).split())[:160]}"
    return outputs, errors


def _judge(table: str, rule: _Rule, frame: pd.DataFrame, output: Any) -> CheckResult:
    """From what a check said about each row to its status."""
    rows = len(frame)
    bad = pd.Series(False, index=frame.index)
    if isinstance(output, pd.Series):
        bad[output.index[~output.astype(bool)]] = True
        failures, ok = int(bad.sum()), False
    else:
        ok = bool(output)
        failures = 0 if ok else rows
    share = failures / rows if rows else 1.0
    ok = ok or (failures > 0 and share <= rule.tolerated)
    severity = rule.severity
    expected = rule.expected
    if not ok and rule.error_share is not None and share > rule.error_share:
        severity = "error"
        expected += f" (more than {_percent(rule.error_share)} bad rows is an error)"
    status: Status = "pass" if ok else "warn" if severity == "warn" else "fail"
    found = rule.found(frame, bad, failures) if failures or not ok else "as expected"
    return CheckResult(
        table=table,
        column=rule.column,
        check=rule.check,
        severity=severity,
        status=status,
        failures=failures,
        rows=rows,
        expected=expected,
        found=found,
        examples=_examples(frame, bad, rule.shows),
        detail=f"expected {expected}, found {found}",
    )


def _rules(expected: TableSchema, present: "pd.Index[str]", tables: Mapping[str, pd.DataFrame]) -> list[_Rule]:
    """The checks of one table, leaving out those of columns that are not there."""
    rules = [_row_count(expected)]
    for name, column in expected.columns.items():
        if name in present:
            rules += _column_rules(name, column)
    for key in expected.unique:
        if all(name in present for name in key):
            rules.append(_unique_key(key))
    for foreign in expected.foreign_keys:
        if foreign.column in present:
            rules.append(_foreign_key(foreign, tables.get(foreign.table, pd.DataFrame()).get(foreign.key)))
    return rules


def _row_count(expected: TableSchema) -> _Rule:
    low, high = expected.rows.min, expected.rows.max
    return _Rule(
        column=None,
        check="rows",
        expected=f"at least {low:,} rows" if high is None else f"{low:,} to {high:,} rows",
        passes=lambda frame: low <= len(frame) and (high is None or len(frame) <= high),
        found=lambda frame, bad, failures: f"{len(frame):,}",
        nulls=True,
    )


def _unique_key(key: tuple[str, ...]) -> _Rule:
    return _Rule(
        column=None,
        check=f"unique ({', '.join(key)})",
        expected="each combination once",
        passes=lambda frame: ~frame.duplicated(list(key), keep=False),
        found=lambda frame, bad, failures: f"{_counted(failures)} that share theirs",
        nulls=True,
        shows=key,
        needs_kind=False,
    )


def _foreign_key(key: ForeignKey, keys: "pd.Series[Any] | None") -> _Rule:
    known = pd.Index([] if keys is None else keys.dropna().unique())
    most = f"all but {_percent(key.max_missing)} of rows" if key.max_missing else "every value"
    return _Rule(
        column=key.column,
        check=f"in {key.references}",
        expected=most,
        passes=lambda values: values.isin(known),
        found=lambda frame, bad, failures: _unlisted(frame[key.column], bad, failures),
        severity=key.severity,
        error_share=key.error_share,
        tolerated=key.max_missing,
        shows=(key.column,),
        blocked=f"{key.references} is not at hand" if keys is None else "",
    )


def _column_rules(name: str, column: Column) -> list[_Rule]:
    """The checks of one column: kind first, then missing values, then the values that are there."""

    def rule(check: str, expected: str, passes: Any, found: Any, **more: Any) -> _Rule:
        more = {"severity": column.severity, "error_share": column.error_share, "shows": (name,), **more}
        return _Rule(column=name, check=check, expected=expected, passes=passes, found=found, **more)

    rules = [
        rule(
            "kind",
            column.kind,
            lambda values: conforms(values, column.kind),
            lambda frame, bad, failures: _other_kind(frame[name], bad, failures),
            severity="error",
            error_share=None,
            needs_kind=False,
        )
    ]
    if not column.nullable or column.max_null is not None:
        share = column.max_null or 0.0
        rules.append(
            rule(
                "nulls",
                f"at most {_percent(share)} missing" if share else "none missing",
                lambda values: values.notna(),
                lambda frame, bad, failures: f"{_percent(failures / len(frame))} missing ({_counted(failures)})",
                severity="error",
                error_share=None,
                nulls=True,
                tolerated=share,
                needs_kind=False,
            )
        )
    if column.min is not None or column.max is not None:
        rules.append(
            rule(
                "range",
                _range_words(column.min, column.max),
                lambda values: _within(values, column.min, column.max),
                lambda frame, bad, failures: _outside(frame[name], bad, failures),
            )
        )
    if column.mean is not None:
        rules.append(_mean(name, column, column.mean))
    if column.values is not None:
        shown = ", ".join(map(str, column.values[:12])) + (", …" if len(column.values) > 12 else "")
        rules.append(
            rule(
                "values",
                f"one of {shown}",
                lambda values: values.isin(list(column.values or ())),
                lambda frame, bad, failures: _unlisted(frame[name], bad, failures),
            )
        )
    if column.pattern is not None:
        pattern = re.compile(column.pattern)
        rules.append(
            rule(
                "pattern",
                f"text that matches {column.pattern}",
                lambda values: values.isin([value for value in values.unique() if pattern.fullmatch(value)]),
                lambda frame, bad, failures: _unlisted(frame[name], bad, failures),
            )
        )
    if column.unique:
        rules.append(
            rule(
                "unique",
                "each value once",
                lambda values: ~values.duplicated(keep=False),
                lambda frame, bad, failures: f"{_counted(failures)} that share theirs",
            )
        )
    return rules


def _mean(name: str, column: Column, bounds: Bounds) -> _Rule:
    """The mean of all finite values; without any it passes, since missing ones are judged apart."""

    def mean(values: "pd.Series[float]") -> float:
        return float(values[np.isfinite(values.to_numpy(dtype="float64", na_value=np.nan))].mean())

    return _Rule(
        column=name,
        check="mean",
        expected=f"a mean {_range_words(bounds.min, bounds.max)}",
        passes=lambda values: values.empty or bool(_within(pd.Series([mean(values)]), bounds.min, bounds.max).all()),
        found=lambda frame, bad, failures: f"{mean(frame[name]):.6g}",
        severity=column.severity,
        error_share=None,
        shows=(name,),
    )


def conforms(values: "pd.Series[Any]", kind: Kind) -> "pd.Series[bool]":
    """Which values are of a kind. A missing value is of every kind; a float column may hold whole numbers as ints.

    Where numbers arrived as text, only the values that cannot be read as one are singled out, if there are any.
    """
    dtype, missing = values.dtype, values.isna()
    text = pd.api.types.is_object_dtype(dtype) or isinstance(dtype, (pd.StringDtype, pd.CategoricalDtype))
    inferred = pd.api.types.infer_dtype(values, skipna=True) if text else ""
    number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    fits = {
        "int": number,
        "float": number,
        "str": inferred == "string",
        "bool": pd.api.types.is_bool_dtype(dtype) or inferred == "boolean",
        "timestamp": isinstance(dtype, pd.DatetimeTZDtype),
    }[kind]
    if fits and kind == "int" and not pd.api.types.is_integer_dtype(dtype):
        return missing | (values % 1 == 0)
    if not fits and inferred == "string" and kind in ("int", "float"):
        unreadable = pd.to_numeric(values, errors="coerce").isna() & ~missing
        if unreadable.any():
            return ~unreadable
    return missing | fits


def _within(values: "pd.Series[Any]", low: Any, high: Any) -> "pd.Series[bool]":
    inside = pd.Series(True, index=values.index)
    if low is not None:
        inside &= values >= low
    if high is not None:
        inside &= values <= high
    return inside


def _examples(frame: pd.DataFrame, bad: "pd.Series[bool]", columns: Sequence[str]) -> tuple[dict[str, Any], ...]:
    rows = frame.index[bad][:EXAMPLES]
    return tuple(
        {"row": int(row), **{name: _plain(frame.at[row, name]) for name in dict.fromkeys(columns)}} for row in rows
    )


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if pd.isna(value):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    value = value.item() if isinstance(value, np.generic) else value
    return (
        value
        if isinstance(value, (bool, int, str)) or (isinstance(value, float) and np.isfinite(value))
        else str(value)
    )


def _other_kind(values: "pd.Series[Any]", bad: "pd.Series[bool]", failures: int) -> str:
    kind = pd.api.types.infer_dtype(values, skipna=True)
    name = {"string": "text", "integer": "int", "floating": "float", "boolean": "bool", "datetime64": "timestamp"}
    return f"{name.get(kind, kind)} in {_counted(failures)}, such as {_some(values[bad])}"


def _unlisted(values: "pd.Series[Any]", bad: "pd.Series[bool]", failures: int) -> str:
    return f"{_some(values[bad])} in {_counted(failures)} ({_percent(failures / len(values))})"


def _outside(values: "pd.Series[Any]", bad: "pd.Series[bool]", failures: int) -> str:
    outside = values[bad]
    low, high = _plain(outside.min()), _plain(outside.max())
    span = f"{_number(low)}" if low == high else f"{_number(low)} to {_number(high)}"
    return f"{span} in {_counted(failures)}"


def _some(values: "pd.Series[Any]") -> str:
    distinct = [repr(_plain(value)) for value in values.dropna().unique()[:4]]
    return ", ".join(distinct[:3]) + (", …" if len(distinct) > 3 else "") if distinct else "missing values"


def _range_words(low: Any, high: Any) -> str:
    if low is None:
        return f"at most {_number(high)}"
    return f"at least {_number(low)}" if high is None else f"{_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counted(rows: int) -> str:
    return f"{rows:,} row{'s' if rows != 1 else ''}"


def _percent(share: float) -> str:
    """A share as percent, with enough digits that a small one is not shown as 0%."""
    return f"{100 * share:.3g}%"


def _page_row(check: CheckResult) -> tuple[str, ...]:
    examples = "; ".join(", ".join(f"{name} {value}" for name, value in example.items()) for example in check.examples)
    head = (check.status, check.table, check.column or "", check.check)
    return (*head, check.expected, check.found, f"{check.failures:,} of {check.rows:,}", examples)


def _result(
    table: str, column: str | None, check: str, rows: int, expected: str, found: str, detail: str
) -> CheckResult:
    """A failure that concerns the whole column or table."""
    return CheckResult(
        table=table,
        column=column,
        check=check,
        severity="error",
        status="fail",
        failures=rows,
        rows=rows,
        expected=expected,
        found=found,
        detail=detail,
    )


def _table_result(table: str, expected: str, found: str, detail: str) -> CheckResult:
    return _result(table, None, "table", 0, expected, found, detail)


def _missing(table: str, column: str, expected: TableSchema, extra: Sequence[str], rows: int) -> CheckResult:
    similar = difflib.get_close_matches(column, extra, n=1, cutoff=0.5)
    hint = f": was it renamed to {similar[0]!r}?" if similar else ""
    detail = f"the column is missing{hint}"
    return _result(
        table, column, "present", rows, f"a column of kind {expected.columns[column].kind}", "no such column", detail
    )


def _extra(table: str, column: str, expected: TableSchema, rows: int) -> CheckResult:
    detail = f"the column is not in the schema: describe it there, or set tables.{table}.extra_columns: allow"
    return _result(table, column, "extra", rows, "no column of that name", "one", detail)


def _unknown(table: str, rule: _Rule, rows: int, cause: str) -> CheckResult:
    return CheckResult(
        table=table,
        column=rule.column,
        check=rule.check,
        severity=rule.severity,
        status="unknown",
        failures=0,
        rows=rows,
        expected=rule.expected,
        found="not judged",
        detail=f"not judged: {cause}",
    )
