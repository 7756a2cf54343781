"""Judge raw tables against ``schema.yaml``: what was expected, what was found, and which rows are bad.

:func:`validate_tables` is pure. :mod:`clearway.checks` compiles the schema; all of a table's counts come from one fused
pass over it, and only what failed is looked at again. This module says what a failure means: an error stops the line,
``quarantine`` sets the bad rows aside, a warning does neither, and a tolerated share of bad rows is none of them.
"""

import difflib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from clearway.acceptance import keys_of, nothing_aside, resolve, set_aside
from clearway.cadence import missing_steps
from clearway.checks import (
    NEVER,
    Checks,
    CompiledTable,
    Keys,
    RowCheck,
    TableCheck,
    compile_table,
    load_checks,
    percent,
)
from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_directory, sha256_file, write_json
from clearway.findings import Distribution, bad_rows, counted, distribution, examples, words
from clearway.frames import ROW, Frame, frame_of
from clearway.params import CsvSource, Params, ParquetSource
from clearway.schema import Cadence, DataSchema, Severity, TableSchema, load_schema
from clearway.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CheckResult",
    "Distribution",
    "Status",
    "ValidationReport",
    "validate_file",
    "validate_snapshot",
    "validate_table",
    "validate_tables",
]

Status = Literal["pass", "warn", "quarantine", "fail", "unknown"]

_STATUS: Mapping[Severity, Status] = {"error": "fail", "quarantine": "quarantine", "warn": "warn"}
MANY_ROWS = 1_000_000
"""Rows above which a terminal is told that work is going on."""


class CheckResult(BaseModel):
    """One check of one table or column, with its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    column: str | None
    check: str
    severity: Severity
    status: Status
    """``unknown`` means not judged, because what it needs is missing or of the wrong kind (which itself fails);
    ``quarantine`` that the bad rows are set aside and the line goes on without them."""
    failures: int
    """Bad rows, tolerated ones too; of a cadence, missing steps."""
    rows: int
    """Rows of the table."""
    expected: str
    found: str
    examples: tuple[dict[str, Any], ...] = ()
    """The first bad rows: ``row`` (position in the table, from 0) and the values that were checked."""
    detail: str
    distribution: Distribution | None = None
    """Of the column, where the check names one and did not pass."""

    @property
    def name(self) -> str:
        """``table.column check``."""
        return f"{self.table}.{self.column} {self.check}" if self.column else f"{self.table} {self.check}"


class ValidationReport(BaseModel):
    """All checks, in the order of the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[CheckResult, ...]
    quarantined: dict[str, int] = Field(default_factory=dict)
    """Rows set aside, by table; tables without any are not named."""

    @property
    def verdict(self) -> Literal["passed", "failed"]:
        """``failed`` when any check of severity error failed; warnings and rows set aside do not count."""
        return "failed" if self.having("fail") else "passed"

    @property
    def sentence(self) -> str:
        """One sentence: how many checks, how they came out, and how many rows are set aside."""
        counts = Counter(check.status for check in self.checks)
        tables = len({check.table for check in self.checks})
        outcomes: dict[Status, str] = {
            "pass": "passed",
            "warn": "warned",
            "quarantine": "set rows aside",
            "fail": "failed",
            "unknown": "not judged",
        }
        parts = ", ".join(f"{counts[status]} {word}" for status, word in outcomes.items() if counts[status])
        aside = sum(self.quarantined.values())
        rows = f"; {counted(aside)} in quarantine" if aside else ""
        return f"{len(self.checks)} checks on {tables} table{'s' if tables != 1 else ''}: {parts}{rows}"

    def having(self, status: Status) -> tuple[CheckResult, ...]:
        """The checks with that status."""
        return tuple(check for check in self.checks if check.status == status)

    def require_passed(self, override: str | None = None) -> str | None:
        """Stop the line when the verdict is failed, unless a person has given a reason not to.

        Parameters
        ----------
        override : str, optional
            ``decision.override_veto`` of ``params.yaml``.

        Returns
        -------
        str or None
            What was overridden, and why; None where nothing was.

        Raises
        ------
        ClearwayError
            Names table, column and check of the first failures.
        """
        failed = self.having("fail")
        if not failed:
            return None
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        causes = "; ".join(f"{check.name}: {check.detail}" for check in failed[:3])
        sentence = f"data validation failed: {causes}{more}"
        if override is None:
            raise ClearwayError(sentence)
        return f"{sentence}; overridden by params.yaml: decision.override_veto = {override!r}"


@dataclass(frozen=True)
class _Judged:
    """One table: its results, and the rows that are set aside (:data:`clearway.frames.ROW` and ``reason``)."""

    results: list[CheckResult]
    aside: pl.DataFrame


def validate_tables(
    tables: "Mapping[str, pd.DataFrame | pl.DataFrame | pl.LazyFrame]",
    schema: DataSchema,
    *,
    as_of: datetime | None = None,
    checks: Checks | None = None,
) -> ValidationReport:
    """Judge every table that the schema names, and name every table it does not.

    Parameters
    ----------
    tables : mapping of name to table
        A LazyFrame is read in pieces and never held whole.
    schema : DataSchema
    as_of : datetime, optional
        What is now, for freshness and rules. Without it freshness is not judged.
    checks : mapping of name to Expr, optional
        The project's own checks (:func:`clearway.checks.load_checks`).

    Returns
    -------
    ValidationReport
        ``failed`` when a table is missing or any check of severity error fails.

    Raises
    ------
    UsageError
        A rule or a check of the schema cannot be evaluated.
    """
    return _report(_judge_all(tables, schema, as_of, checks or {}))


def validate_table(
    name: str,
    frame: "pd.DataFrame | pl.DataFrame | pl.LazyFrame",
    schema: DataSchema | TableSchema,
    *,
    as_of: datetime | None = None,
    checks: Checks | None = None,
) -> ValidationReport:
    """Judge one table alone; its foreign keys are not judged.

    Raises
    ------
    UsageError
        The schema has no table of that name, or a rule or check of it cannot be evaluated.
    """
    expected = schema if isinstance(schema, TableSchema) else schema.table(name)
    return _report({name: _judge_table(name, expected, frame_of(name, frame), lambda key: None, as_of, checks or {})})


def validate_snapshot(params: Params, workspace: Workspace) -> ValidationReport:
    """Judge ``data/raw``; write ``reports/data_validation.json`` and ``.html``, and ``data/quarantine``.

    All are written whatever the verdict.

    Raises
    ------
    ClearwayError
        The snapshot is missing or was changed.
    UsageError
        ``schema.yaml`` is missing or wrong.
    """
    from clearway.snapshot import load_snapshot, scan_tables
    from clearway.validation_report import write_reports

    schema = load_schema(workspace.root / params.data_schema)
    checks = load_checks(params.project.package, schema)
    tables = scan_tables(workspace, params)
    judged = _judge_all(tables, schema, params.time(), checks)
    report = _report(judged)
    snapshot = load_snapshot(workspace)
    _write_quarantine(workspace, tables, judged)
    facts = [("as of", str(snapshot.as_of or "no time in the data")), ("rows", f"{snapshot.rows:,}")]
    write_reports(report, workspace.reports, facts)
    return report


def validate_file(file: str, table: str | None, params: Params, workspace: Workspace) -> ValidationReport:
    """Judge one CSV or Parquet file (path or fsspec URL) as ``table``; without it, as the schema's only table.

    Parquet is read in pieces. Freshness is judged only where ``params.as_of`` says what is now.

    Raises
    ------
    ClearwayError
        The file is missing or cannot be read.
    UsageError
        The table is not named, or not in the schema.
    """
    from clearway.sources import read_source, scan_parquet_file

    schema = load_schema(workspace.root / params.data_schema)
    if table is None and len(schema.tables) > 1:
        raise UsageError(f"--table is missing: name one of {', '.join(schema.tables)}")
    name = table or next(iter(schema.tables))
    expected = schema.table(name)
    checks = load_checks(
        params.project.package, DataSchema(tables={name: expected.model_copy(update={"foreign_keys": ()})})
    )
    as_of = params.as_of if isinstance(params.as_of, datetime) else None
    timestamps = tuple(column for column, kind in schema.kinds(name).items() if kind == "timestamp")
    key, named_by = f"sources.{name}", "--against"
    if PurePosixPath(file).suffix in (".parquet", ".pq"):
        source = ParquetSource(kind="parquet", path=file, timestamps=timestamps)
        with scan_parquet_file(source, workspace.root, key=key, named_by=named_by) as rows:
            return validate_table(name, rows, schema, as_of=as_of, checks=checks)
    read = getattr(params.sources.get(name), "read", {})
    csv = CsvSource(kind="csv", path=file, timestamps=timestamps, read=read)
    frame = read_source(csv, workspace.root, key=key, named_by=named_by)
    return validate_table(name, frame, schema, as_of=as_of, checks=checks)


def _judge_all(
    tables: Mapping[str, Any], schema: DataSchema, as_of: datetime | None, checks: Checks
) -> dict[str, _Judged]:
    """Every table of the schema, then the tables that it does not name."""
    frames = {name: frame_of(name, tables[name]) for name in schema.tables if name in tables}
    keys = keys_of(schema, lambda table, column: frames.get(table))
    judged = {}
    for name, expected in schema.tables.items():
        if name in frames:
            judged[name] = _judge_table(name, expected, frames[name], keys, as_of, checks)
        else:
            judged[name] = _no_table(name, "in the data", "missing", f"table {name} is missing: add it to sources")
    for name in tables:
        if name not in schema.tables:
            advice = "it is in the data but not in schema.yaml: describe it there"
            judged[name] = _no_table(name, "in schema.yaml", "not there", advice)
    return judged


def _report(judged: Mapping[str, _Judged]) -> ValidationReport:
    return ValidationReport(
        checks=tuple(result for table in judged.values() for result in table.results),
        quarantined={name: len(table.aside) for name, table in judged.items() if len(table.aside)},
    )


def _judge_table(
    name: str, expected: TableSchema, frame: Frame, keys: Keys, as_of: datetime | None, checks: Checks
) -> _Judged:
    """All results of one table, in the order of its schema, and its rows that are set aside."""
    compiled = compile_table(name, expected, frame, keys, as_of, checks)
    with _telling(name, compiled.frame):
        counts = _count(name, compiled)
        rows = int(counts["rows"])
        wrong = frozenset(
            str(check.column)
            for i, check in enumerate(compiled.row_checks)
            if check.check == "kind" and counts.get(f"bad {i}")
        )
        row_checks, failures = [], []
        for i, check in enumerate(compiled.row_checks):
            narrower, bad = counts.get(f"narrower {i}"), counts.get(f"bad {i}") or 0
            if check.narrower is not None and narrower:
                check, bad = replace(check, bad=check.narrower), narrower
            elif check.repeats and not wrong & set(check.needs):
                check, bad = resolve(check, compiled.frame)
            row_checks.append(check)
            failures.append(int(bad))
        aside_by = [
            (check, bad)
            for check, bad in zip(row_checks, failures, strict=True)
            if bad and check.severity == "quarantine" and not wrong & set(check.needs)
        ]
        aside = set_aside(compiled.frame, [check for check, _ in aside_by])
        if len(aside):
            counts |= _count_kept(compiled, aside[ROW])
        extremes = _extremes(compiled.frame, row_checks, failures)
        results = _absent(name, expected, frame, rows)
        for i, whole in enumerate(compiled.table_checks):
            if whole.of_kept and rows and len(aside) == rows:
                whole = replace(whole, blocked="no row is left: all are set aside")
            results.append(_judge_whole(name, compiled.frame, whole, counts[f"whole {i}"], rows, wrong, expected))
        if compiled.quarantining:
            causes = Counter({check.label: bad for check, bad in aside_by})
            results.append(_judge_aside(name, len(aside), rows, expected.max_quarantine, causes))
        for i, (check, bad) in enumerate(zip(row_checks, failures, strict=True)):
            there = int(counts[f"there {i}"]) if check.of_values else rows
            cause = check.blocked or _of_wrong_kind(check.needs, wrong)
            if cause:
                results.append(_unknown(name, check, rows, cause))
            else:
                results.append(_judge_rows(name, compiled.frame, check, bad, rows, there, extremes.get(i), expected))
        for cadence in compiled.cadences:
            results.append(_judge_cadence(name, compiled.frame, cadence, rows, wrong))
    order = [None, *expected.columns]
    results.sort(key=lambda result: order.index(result.column) if result.column in order else len(order))
    return _Judged(results, aside)


def _count(name: str, compiled: CompiledTable) -> dict[str, Any]:
    """The one pass over all rows: how many are bad for each check, and the number that each other check judges.

    Raises
    ------
    ClearwayError
        An expression fails on these rows.
    """
    frame, wanted = compiled.frame, {"rows": pl.len()}
    for i, check in enumerate(compiled.row_checks):
        if check.bad is not NEVER and not check.repeats:
            wanted[f"bad {i}"] = check.bad.sum()
        if check.narrower is not None:
            wanted[f"narrower {i}"] = check.narrower.sum()
        if check.of_values:
            wanted[f"there {i}"] = pl.col(str(check.subject)).count()
    wanted |= {f"whole {i}": whole.value for i, whole in enumerate(compiled.table_checks)}
    try:
        return frame.collect(frame.lazy.select(**wanted)).row(0, named=True)
    except Exception as error:  # a rule or a check of a project may raise anything on these rows
        cause = " ".join(str(error).split("\n\n")[0].split())[:200]
        culprit = _culprit(compiled)
        raise ClearwayError(f"table {name} cannot be checked{culprit}: {cause}") from None


def _culprit(compiled: CompiledTable) -> str:
    """Which check it is that cannot be evaluated, after the pass of all has failed."""
    for check in compiled.row_checks:
        try:
            compiled.frame.collect(compiled.frame.lazy.select(check.bad.sum()))
        except Exception:  # what it raises has been said
            return f", because {check.check} fails"
    return ""


def _count_kept(compiled: CompiledTable, aside: pl.Series) -> dict[str, Any]:
    """What is judged of the rows that go on only."""
    wanted = {f"whole {i}": whole.value for i, whole in enumerate(compiled.table_checks) if whole.of_kept}
    if not wanted:
        return {}
    kept = compiled.frame.numbered().filter(~pl.col(ROW).is_in(aside.implode()))
    return compiled.frame.collect(kept.select(**wanted)).row(0, named=True)


def _extremes(frame: Frame, checks: Sequence[RowCheck], failures: Sequence[int]) -> dict[int, tuple[Any, Any]]:
    """Smallest and largest bad value of every range that some rows leave, by position of its check."""
    broken = [i for i, check in enumerate(checks) if check.says == "range" and failures[i]]
    wanted: dict[str, pl.Expr] = {}
    for i in broken:
        value = pl.when(checks[i].bad).then(pl.col(str(checks[i].subject)))
        wanted |= {f"min {i}": value.min(), f"max {i}": value.max()}
    found = frame.collect(frame.lazy.select(**wanted)).row(0, named=True) if broken else {}
    return {i: (found[f"min {i}"], found[f"max {i}"]) for i in broken}


def _judge_rows(
    table: str,
    frame: Frame,
    check: RowCheck,
    failures: int,
    rows: int,
    of: int,
    extremes: tuple[Any, Any] | None,
    expected: TableSchema,
) -> CheckResult:
    """From the number of bad rows to a status; what is set aside is never tolerated."""
    share = failures / of if of else 0.0
    severity, wanted = check.severity, check.expected
    ok = not failures or (severity != "quarantine" and share <= check.tolerated + 1e-12)
    if not ok and check.error_share is not None and share > check.error_share:
        severity = "error"
        wanted += f" (more than {percent(check.error_share)} bad rows is an error)"
    columns = [*check.shows, *([check.subject] if check.subject else [])]
    seen = bad_rows(frame, check.bad, columns, failures) if failures else None
    picture = None
    if not ok and check.column is not None and check.subject is not None:
        by_value = check.bad if check.says in ("values", "kind") else None
        picture = distribution(frame, check.subject, expected.columns.get(check.column), by_value)
    return _result(
        table,
        replace(check, severity=severity, expected=wanted),
        rows,
        "as expected" if seen is None else words(check, frame, seen, failures, of, extremes),
        status="pass" if ok else _STATUS[severity],
        failures=failures,
        examples=() if seen is None else examples(seen, check.shows),
        distribution=picture,
    )


def _judge_whole(
    table: str,
    frame: Frame,
    check: TableCheck,
    value: Any,
    rows: int,
    wrong: frozenset[str],
    expected: TableSchema,
) -> CheckResult:
    """From one number about a column or the table to a status."""
    cause = check.blocked or _of_wrong_kind(check.needs, wrong)
    ok, found = (None, cause) if cause else check.judge(value)
    if ok is None:
        return _unknown(table, check, rows, found)
    status: Status = "pass" if ok else _STATUS[check.severity]
    picture = None
    if not ok and check.column is not None:
        picture = distribution(frame, check.column, expected.columns.get(check.column), None)
    return _result(table, check, rows, found, status=status, failures=0 if ok else rows, distribution=picture)


def _judge_aside(table: str, aside: int, rows: int, most: float, causes: Counter[str]) -> CheckResult:
    """Whether few enough rows are set aside, and some are left; ``causes`` counts them by check."""
    ok = aside <= most * rows + 1e-9 and (aside < rows or not rows)
    expected = f"at most {percent(most)} of rows set aside"
    found = "none"
    if aside:
        named = ", ".join(f"{check} in {counted(bad)}" for check, bad in causes.most_common(3))
        found = f"{counted(aside)} ({percent(aside / rows)}): {named}{', …' if len(causes) > 3 else ''}"
    status: Status = "pass" if ok else "fail"
    return _result(table, _Plain("quarantine", expected), rows, found, status=status, failures=aside)


def _judge_cadence(table: str, frame: Frame, cadence: Cadence, rows: int, wrong: frozenset[str]) -> CheckResult:
    """Missing steps are failures; a share of them is a share of the steps."""
    by = f" by {', '.join(cadence.by)}" if cadence.by else ""
    hours = f" from {cadence.hours[0]} to {cadence.hours[1]} o'clock ({cadence.zone})" if cadence.hours else ""
    most = f", but for {cadence.max_missing:,}" if cadence.max_missing else ""
    severity: Severity = "warn" if cadence.severity == "warn" else "error"
    expected = f"rows every {cadence.every}{hours}{by}{most}"
    check = _Plain(f"cadence ({cadence.column}{by})", expected, severity=severity)
    cause = _of_wrong_kind((cadence.column, *cadence.by), wrong)
    if cause:
        return _unknown(table, check, rows, cause)
    steps = missing_steps(frame, cadence)
    ok = steps.missing <= cadence.max_missing
    if not ok and cadence.error_share is not None and steps.missing / steps.expected > cadence.error_share:
        expected += f" (more than {percent(cadence.error_share)} missing is an error)"
        check = replace(check, severity="error", expected=expected)
    found = f"{steps.missing:,} of {steps.expected:,} missing" if steps.missing else "no gap"
    if steps.examples:
        found += ", such as " + ", ".join(str(value) for value in steps.examples[0].values())
    status: Status = "pass" if ok else _STATUS[check.severity]
    return _result(table, check, rows, found, status=status, failures=steps.missing, examples=steps.examples)


def _absent(table: str, expected: TableSchema, frame: Frame, rows: int) -> list[CheckResult]:
    """Columns that are missing, and columns that the schema does not know."""
    extra = [name for name in frame.dtypes if name not in expected.columns]
    results = []
    for name, column in expected.columns.items():
        if name not in frame.dtypes:
            similar = difflib.get_close_matches(name, extra, n=1, cutoff=0.5)
            hint = f": was it renamed to {similar[0]!r}?" if similar else ""
            check, detail = _Plain("present", f"a column of kind {column.kind}", name), f"the column is missing{hint}"
            results.append(_result(table, check, rows, "no such column", status="fail", failures=rows, detail=detail))
    if expected.extra_columns == "error":
        advice = f"describe it there, or set tables.{table}.extra_columns: allow"
        detail = f"the column is not in the schema: {advice}"
        for name in extra:
            check = _Plain("extra", "no column of that name", name)
            results.append(_result(table, check, rows, "one", status="fail", failures=rows, detail=detail))
    return results


def _no_table(table: str, expected: str, found: str, detail: str) -> _Judged:
    check = _Plain("table", expected)
    return _Judged([_result(table, check, 0, found, status="fail", failures=0, detail=detail)], nothing_aside())


@dataclass(frozen=True)
class _Plain:
    """A check that is no expression over rows: that something is there, a cadence, the share set aside."""

    check: str
    expected: str
    column: str | None = None
    severity: Severity = "error"


def _result(
    table: str,
    check: RowCheck | TableCheck | _Plain,
    rows: int,
    found: str,
    *,
    status: Status,
    failures: int,
    detail: str = "",
    examples: tuple[dict[str, Any], ...] = (),
    distribution: Distribution | None = None,
) -> CheckResult:
    """``detail`` says what was expected and found, unless there is more to say."""
    return CheckResult(
        table=table,
        column=check.column,
        check=check.check,
        severity=check.severity,
        status=status,
        failures=failures,
        rows=rows,
        expected=check.expected,
        found=found,
        examples=examples,
        detail=detail or f"expected {check.expected}, found {found}",
        distribution=distribution,
    )


def _unknown(table: str, check: RowCheck | TableCheck | _Plain, rows: int, cause: str) -> CheckResult:
    return _result(table, check, rows, "not judged", status="unknown", failures=0, detail=f"not judged: {cause}")


def _of_wrong_kind(needs: Sequence[str], wrong: frozenset[str]) -> str:
    found = [name for name in needs if name in wrong]
    return f"column {found[0]} is of the wrong kind" if found else ""


@contextmanager
def _telling(table: str, frame: Frame) -> Iterator[None]:
    """Say on a terminal that a large table is being checked."""
    if not sys.stderr.isatty() or int(frame.collect(frame.lazy.select(pl.len())).item()) < MANY_ROWS:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"checking {table}"):
        yield


def _write_quarantine(
    workspace: Workspace, tables: Mapping[str, pl.DataFrame | pl.LazyFrame], judged: Mapping[str, _Judged]
) -> None:
    """``data/quarantine``: the rows set aside of each table that has any, where they stood and why, and a summary."""
    counts: dict[str, Any] = {}
    with atomic_directory(workspace.quarantine) as folder:
        for name, table in judged.items():
            if not len(table.aside):
                continue
            frame = frame_of(name, tables[name])
            own = frame.numbered().rename(_out_of_the_way(frame.dtypes)).rename({ROW: "row"})
            found = own.join(table.aside.lazy().rename({ROW: "row"}), on="row", how="inner", maintain_order="left")
            found.sink_parquet(folder / f"{name}.parquet")
            reasons = table.aside["reason"].value_counts(sort=True)
            counts[name] = {"rows": len(table.aside), "reasons": dict(reasons.iter_rows())}
        content = {"snapshot_sha256": sha256_file(workspace.snapshot), "tables": counts}
        write_json(folder / "quarantine.json", content)


def _out_of_the_way(columns: Iterable[str]) -> dict[str, str]:
    """New names for a table's own columns ``row`` and ``reason``, which no other column has."""
    taken = set(columns)
    renamed: dict[str, str] = {}
    for label in ("row", "reason"):
        if label in taken:
            free = f"{label}_"
            while free in taken:
                free += "_"
            taken.add(free)
            renamed[label] = free
    return renamed
