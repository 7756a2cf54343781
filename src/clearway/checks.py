"""``schema.yaml`` compiled to Polars expressions: for each check of a table, its bad rows, or one number to judge.

Nothing is read here. The names of the checks of a column are ``present``, ``extra``, ``kind``, ``nulls``, ``range``,
``values``, ``pattern``, ``length``, ``unique``, ``mean``, ``std``, ``min_distinct`` and ``in TABLE.COLUMN``; those of
a table are ``table``, ``rows``, ``ordered``, ``unique (A, B)``, ``duplicates``, ``freshness (COLUMN)``,
``cadence (COLUMN by A, B)``, ``quarantine``, and the names of its rules and Python checks.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import polars as pl

from clearway.errors import UsageError
from clearway.frames import RAW, ROW, Frame, canonical, fits, is_text
from clearway.schema import (
    Bounds,
    Cadence,
    Column,
    DataSchema,
    ForeignKey,
    Freshness,
    PythonCheck,
    Rule,
    Severity,
    TableSchema,
)

AS_OF = "as_of"
"""Name under which rules and Python checks find the time of the run; null where there is none."""
NEVER = pl.lit(False)
DUPLICATES = "duplicates"
"""The check whose bad rows are the later ones of those that are equal; of ``unique`` all of them are bad."""

Checks = Mapping[str, pl.Expr]
Keys = Callable[[ForeignKey], "pl.Series | None"]
"""From a foreign key to the values of the column it refers to; None where that table is not at hand."""


@dataclass(frozen=True)
class RowCheck:
    """A check that each row passes or fails."""

    column: str | None
    check: str
    expected: str
    bad: pl.Expr
    """True for a bad row, never null. Of a check with ``repeats``: true where its columns may be compared."""
    subject: str | None = None
    """Column (perhaps raw) whose bad values say what was found; None for a check of several columns."""
    says: Literal["kind", "nulls", "range", "values", "repeats", "rows"] = "values"
    """In which words they say it."""
    severity: Severity = "error"
    error_share: float | None = None
    tolerated: float = 0.0
    """Share of the table's rows (of the values that are there, where ``of_values``) that may fail."""
    of_values: bool = False
    narrower: pl.Expr | None = None
    """Where it holds for any row, the bad rows are those for which it holds."""
    shows: tuple[str, ...] = ()
    """Columns shown in examples."""
    needs: tuple[str, ...] = ()
    """Columns whose kind must be right for this to mean anything."""
    repeats: Literal["", "all", "later"] = ""
    """Rows that share their values of ``compared`` are bad: all of them, or all but the first."""
    compared: tuple[str, ...] = ()
    blocked: str = ""
    """Why the check cannot be run."""

    @property
    def label(self) -> str:
        """Why a row of the table is set aside: ``column check``."""
        return f"{self.column} {self.check}" if self.column else self.check


@dataclass(frozen=True)
class TableCheck:
    """A check of one number about a column or the table."""

    column: str | None
    check: str
    expected: str
    value: pl.Expr
    """An aggregate."""
    judge: Callable[[Any], tuple[bool | None, str]]
    """From the number to whether it passes (None: cannot be said) and what was found."""
    severity: Severity = "error"
    needs: tuple[str, ...] = ()
    of_kept: bool = False
    """Whether only the rows that are not set aside count."""
    blocked: str = ""


@dataclass(frozen=True)
class CompiledTable:
    """The checks of one table, over ``rows``."""

    frame: Frame
    """The table with its columns as their kinds say."""
    row_checks: tuple[RowCheck, ...]
    table_checks: tuple[TableCheck, ...]
    cadences: tuple[Cadence, ...]

    @property
    def quarantining(self) -> tuple[RowCheck, ...]:
        """The checks whose bad rows are set aside."""
        return tuple(check for check in self.row_checks if check.severity == "quarantine" and not check.blocked)


def load_checks(package: str | None, schema: DataSchema) -> Checks:
    """The Python checks that the schema names: ``CHECKS`` of the module ``checks`` of the project package.

    It is imported only if the schema names a check.

    Raises
    ------
    UsageError
        There is no package, the module fails, or lacks a check.
    """
    named = {check.name: f"tables.{name}.checks" for name, table in schema.tables.items() for check in table.checks}
    if not named:
        return {}
    if package is None:
        raise UsageError(f"schema.yaml: {next(iter(named.values()))} needs a project package (params.yaml: project)")
    try:
        checks = importlib.import_module(f"{package}.checks").CHECKS
    except Exception as error:  # a package may raise anything while it is imported
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{package}.checks offers no CHECKS, which schema.yaml needs: {cause}") from None
    for check, key in named.items():
        if not isinstance(checks.get(check), pl.Expr):
            raise UsageError(f"schema.yaml: {key} names {check!r}, but {package}.checks.CHECKS holds {sorted(checks)}")
    return {check: checks[check] for check in named}


def compile_table(
    name: str, expected: TableSchema, frame: Frame, keys: Keys, as_of: datetime | None, checks: Checks
) -> CompiledTable:
    """The checks of those columns that are there.

    Raises
    ------
    UsageError
        A rule or a Python check names a column that neither schema nor table has, is not true or false of a row, or
        is not in ``checks``.
    """
    present = [column for column in expected.columns if column in frame.dtypes]
    rows, whole = [], [_row_count(expected)]
    if expected.ordered:
        whole.append(_ordered(expected, frame))
    for column in present:
        rows += _column_rows(column, expected.columns[column], frame)
        whole += _column_whole(column, expected.columns[column])
    for key in expected.unique:
        if set(key) <= set(present):
            rows.append(_unique_key(key))
    if expected.max_duplicates is not None:
        rows.append(_duplicates(tuple(frame.dtypes), expected.max_duplicates))
    rows += [_foreign_key(key, keys(key)) for key in expected.foreign_keys if key.column in present]
    lazy = canonical(frame, expected)
    used: set[str] = set()
    rules: tuple[Rule | PythonCheck, ...] = (*expected.rules, *expected.checks)
    for rule in rules:
        made = _row_rule(name, rule, checks, expected, frame)
        rows.append(made)
        used |= set(made.needs)
    if AS_OF in used and AS_OF not in frame.dtypes:
        lazy = lazy.with_columns(pl.lit(as_of, dtype=pl.Datetime("us", "UTC")).alias(AS_OF))
    if expected.freshness is not None and expected.freshness.column in present:
        whole.append(_freshness(expected.freshness, as_of))
    _check_types(name, [check for check in rows if check.says == "rows" and not check.blocked], lazy)
    cadences = tuple(steps for steps in expected.cadence if {steps.column, *steps.by} <= set(present))
    return CompiledTable(replace(frame, lazy=lazy), tuple(rows), tuple(whole), cadences)


def _column_rows(name: str, column: Column, frame: Frame) -> list[RowCheck]:
    """What each value must be: kind first, then missing values, then the values that are there."""
    value = pl.col(name)
    checks = [_kind(name, column, frame)]
    severity: Severity = "quarantine" if column.severity == "quarantine" else "error"
    raw = RAW + name if checks[0].subject == RAW + name else name
    if not column.nullable:
        share = column.error_share if severity == "quarantine" else None
        checks.append(
            RowCheck(
                name, "nulls", "none missing", pl.col(raw).is_null(), name, "nulls", severity, share, shows=(name,)
            )
        )
    elif column.max_null is not None:
        expected = f"at most {percent(column.max_null)} missing"
        bad = pl.col(raw).is_null()
        checks.append(RowCheck(name, "nulls", expected, bad, name, "nulls", tolerated=column.max_null, shows=(name,)))

    def add(
        check: str, expected: str, fails: pl.Expr, says: Literal["range", "values"] = "values", **more: Any
    ) -> None:
        common = {"severity": column.severity, "error_share": column.error_share, "shows": (name,), "needs": (name,)}
        bad = fails.fill_null(value=False)
        checks.append(RowCheck(name, check, expected, bad, name, says, **{**common, **more}))

    if column.min is not None or column.max is not None:
        fails = _outside(value, column.min, column.max)
        if column.kind == "float":
            fails |= value.is_infinite()
        add("range", range_words(column.min, column.max), fails, "range")
    if column.values is not None:
        shown = ", ".join(map(_shown, column.values[:12])) + (", …" if len(column.values) > 12 else "")
        fails = ~value.is_in(_listed(column))
        if column.min_known is None:
            add("values", f"one of {shown}", fails)
        else:
            add(
                "values",
                f"at least {percent(column.min_known)} of values one of {shown}",
                fails,
                severity="warn" if column.severity == "warn" else "error",
                error_share=None,
                tolerated=1.0 - column.min_known,
                of_values=True,
            )
    if column.pattern is not None:
        add("pattern", f"text that matches {column.pattern}", ~matches(value, column.pattern))
    if column.min_length is not None or column.max_length is not None:
        length = value.str.len_chars()
        words = range_words(column.min_length, column.max_length)
        add("length", f"{words} characters", _outside(length, column.min_length, column.max_length))
    if column.unique:
        checks.append(
            RowCheck(
                name,
                "unique",
                "each value once",
                value.is_not_null(),
                name,
                "repeats",
                column.severity,
                column.error_share,
                shows=(name,),
                needs=(name,),
                repeats="all",
                compared=(name,),
            )
        )
    return checks


def _kind(name: str, column: Column, frame: Frame) -> RowCheck:
    """Which values are not of the kind. A missing value is of every kind; a float column may hold whole numbers.

    Where numbers arrived as text, only the values that cannot be read as one are singled out, if there are any.
    """
    dtype, kind = frame.dtypes[name], column.kind
    narrower, subject = None, RAW + name
    bad, raw = NEVER, pl.col(RAW + name)
    if name in frame.mixed and kind == "str":
        bad, subject = pl.col(name).is_not_null(), name
    elif not fits(dtype, kind):
        bad = raw.is_not_null()
        if kind in ("int", "float") and is_text(dtype):
            narrower = bad & raw.cast(pl.String).cast(pl.Float64, strict=False).is_null()
    elif kind == "int" and dtype.is_float():
        bad = ((raw % 1 != 0) | (raw.abs() >= 2.0**63)).fill_null(value=False)  # beyond 64 bits nothing is judged
    elif kind == "int" and dtype.is_decimal():
        bad = (raw.cast(pl.Float64) % 1 != 0).fill_null(value=False)
    elif kind == "int" and dtype == pl.UInt64:
        bad = (raw > 2**63 - 1).fill_null(value=False)
    elif kind == "float" and column.min is None and column.max is None and dtype.is_float():
        bad, subject = pl.col(name).is_infinite().fill_null(value=False), name
    else:
        subject = name
    return RowCheck(name, "kind", kind, bad, subject, "kind", narrower=narrower, shows=(subject,))


def _column_whole(name: str, column: Column) -> list[TableCheck]:
    """What can only be said of all values together. Infinite ones are judged apart."""
    value, severity = pl.col(name), _whole_severity(column.severity)
    checks = []
    for check, bounds, words in (("mean", column.mean, "a mean"), ("std", column.std, "a standard deviation")):
        if bounds is not None:
            number = pl.when(value.is_finite()).then(value) if column.kind == "float" else value
            checks.append(
                TableCheck(
                    name,
                    check,
                    f"{words} {_words_of(bounds)}",
                    number.mean() if check == "mean" else number.std(),
                    _judge_bounds(bounds),
                    severity,
                    (name,),
                    of_kept=True,
                )
            )
    if column.min_distinct is not None:
        least = column.min_distinct
        # that a column is not constant needs no set of all its values; texts are ranked by their hashes, which is cheap
        ranked = pl.when(value.is_not_null()).then(value.hash()) if column.kind == "str" else value
        differs = (ranked.min() != ranked.max()).fill_null(value=False).cast(pl.Int64) + value.count().clip(0, 1)
        number = differs if least == 2 else value.drop_nulls().n_unique()

        def judge(found: int) -> tuple[bool | None, str]:
            words = "no value" if not found else "one value only" if found == 1 else f"{found:,} different values"
            return found >= least, words

        checks.append(
            TableCheck(
                name,
                "min_distinct",
                f"at least {least} different values",
                number,
                judge,
                severity,
                (name,),
                of_kept=True,
            )
        )
    return checks


def _row_count(expected: TableSchema) -> TableCheck:
    low, high = expected.rows.min, expected.rows.max
    words = f"at least {low:,} rows" if high is None else f"{low:,} to {high:,} rows"

    def judge(rows: int) -> tuple[bool | None, str]:
        return low <= rows and (high is None or rows <= high), f"{rows:,}"

    return TableCheck(None, "rows", words, pl.len(), judge)


def _ordered(expected: TableSchema, frame: Frame) -> TableCheck:
    found = [name for name in frame.dtypes if name in expected.columns]
    wanted = [name for name in expected.columns if name in frame.dtypes]
    first = next((f"{b} where {a} belongs" for a, b in zip(wanted, found, strict=True) if a != b), "")
    return TableCheck(
        None, "ordered", "columns in the order of the schema", pl.len(), lambda rows: (not first, first or "in order")
    )


def _unique_key(key: tuple[str, ...]) -> RowCheck:
    """A key follows the table: it has no severity of its own. Missing values equal each other."""
    return RowCheck(
        None,
        f"unique ({', '.join(key)})",
        "each combination once",
        pl.lit(value=True),
        None,
        "repeats",
        shows=key,
        repeats="all",
        compared=key,
    )


def _duplicates(columns: tuple[str, ...], most: float) -> RowCheck:
    return RowCheck(
        None,
        DUPLICATES,
        f"at most {percent(most)} of rows repeat an earlier one" if most else "no row repeats an earlier one",
        pl.lit(value=True),
        None,
        "repeats",
        tolerated=most,
        shows=columns,
        repeats="later",
        compared=columns,
    )


def _foreign_key(key: ForeignKey, known: pl.Series | None) -> RowCheck:
    blocked = "" if known is not None else f"{key.references} is not at hand"
    value = pl.col(key.column)
    bad = NEVER if known is None else (value.is_not_null() & ~value.is_in(known.implode()).fill_null(value=False))
    return RowCheck(
        key.column,
        f"in {key.references}",
        f"all but {percent(key.max_missing)} of rows" if key.max_missing else "every value",
        bad,
        key.column,
        "values",
        key.severity,
        key.error_share,
        key.max_missing,
        shows=(key.column,),
        needs=(key.column,),
        blocked=blocked,
    )


def _row_rule(table: str, rule: Rule | PythonCheck, checks: Checks, expected: TableSchema, frame: Frame) -> RowCheck:
    """A rule or a Python check: true of a good row, and null passes."""
    key = f"schema.yaml: tables.{table}.{'rules' if isinstance(rule, Rule) else 'checks'}.{rule.name}"
    if isinstance(rule, Rule):
        holds, expected_words = pl.sql_expr(rule.expression), rule.expression
    elif rule.name in checks:
        holds, expected_words = checks[rule.name], f"what {rule.name} of the project's checks says"
    else:
        raise UsageError(f"{key}: no such check is at hand")
    roots = tuple(dict.fromkeys(holds.meta.root_names()))
    strange = [name for name in roots if name not in expected.columns and name not in frame.dtypes and name != AS_OF]
    if strange:
        raise UsageError(f"{key} names the column {strange[0]}, which tables.{table}.columns does not list")
    absent = [name for name in roots if name not in frame.dtypes and name != AS_OF]
    own = tuple(name for name in roots if name in frame.dtypes)
    tolerated = rule.max_failing
    return RowCheck(
        None,
        rule.name,
        " ".join(expected_words.split()) + (f", but for {percent(tolerated)} of rows" if tolerated else ""),
        NEVER if absent else (~holds).fill_null(value=False),
        None,
        "rows",
        rule.severity,
        rule.error_share,
        tolerated,
        shows=own,
        needs=roots,
        blocked=f"column {absent[0]} is missing" if absent else "",
    )


def _check_types(table: str, rules: Sequence[RowCheck], lazy: pl.LazyFrame) -> None:
    """See that each rule is true or false of a row of this table.

    Raises
    ------
    UsageError
        One is not.
    """
    try:
        types = lazy.select(rule.bad.alias(rule.check) for rule in rules).collect_schema()
    except Exception as error:  # Polars raises several kinds
        if len(rules) > 1:
            for rule in rules:  # which one is it?
                _check_types(table, [rule], lazy)
        cause = " ".join(str(error).split("\n\n")[0].split())[:160]
        raise UsageError(f"schema.yaml: tables.{table}: {rules[0].check} cannot be evaluated: {cause}") from None
    for name, dtype in types.items():
        if dtype != pl.Boolean:
            raise UsageError(f"schema.yaml: tables.{table}: {name} is of type {dtype}: it must be true or false")
    try:
        seen = lazy.head(2).select(pl.len().alias(ROW), *(rule.bad.len().alias(rule.check) for rule in rules)).collect()
    except Exception:  # it fails on these values: which the pass over all of them says
        return
    whole = [rule.check for rule in rules if seen[rule.check][0] < seen[ROW][0]]
    if whole:
        advice = "a rule is about one row; for all together a column has mean, std and min_distinct"
        raise UsageError(f"schema.yaml: tables.{table}: {whole[0]} says one thing of the whole table: {advice}")


def _freshness(freshness: Freshness, as_of: datetime | None) -> TableCheck:
    limit = None if as_of is None else as_of.astimezone(UTC) - timedelta(days=freshness.max_age_days)
    days = f"{freshness.max_age_days:g} day{'s' if freshness.max_age_days != 1 else ''}"

    def judge(last: datetime | None) -> tuple[bool | None, str]:
        if limit is None or last is None:
            return False, "no time"
        return last >= limit, f"the last row is of {last:%Y-%m-%dT%H:%M:%SZ}"

    return TableCheck(
        None,
        f"freshness ({freshness.column})",
        f"a row at most {days} old" + (f", of {limit:%Y-%m-%dT%H:%M:%SZ} or later" if limit else ""),
        pl.col(freshness.column).max(),
        judge,
        _whole_severity(freshness.severity),
        (freshness.column,),
        blocked="" if as_of else "no as_of says what is now",
    )


def matches(value: pl.Expr, pattern: str) -> pl.Expr:
    """Whether each whole text matches, as :func:`re.fullmatch` has it; null for null.

    Polars' own engine runs the patterns that mean the same to both; for others each distinct text is asked once.
    """
    if _COMMON.fullmatch(pattern) and not _DIFFERENT.search(pattern):
        try:
            anchored = rf"\A(?:{pattern})\z"
            pl.select(pl.lit("").str.contains(anchored))
        except pl.exceptions.ComputeError:
            pass  # a pattern of Python's alone
        else:
            return value.str.contains(anchored)
    compiled = re.compile(pattern)

    def ask(texts: pl.Series) -> pl.Series:
        distinct = texts.unique().drop_nulls()
        good = pl.Series([text for text in distinct if compiled.fullmatch(text)], dtype=pl.String)
        return texts.is_in(good.implode())

    return value.map_batches(ask, return_dtype=pl.Boolean, is_elementwise=True)


_COMMON = re.compile(r"(?:[A-Za-z0-9_ ,:;/@#%=<>!'\"~&.\[\](){}?*+|^$-]|\\[dD.+*?()\[\]{}|/\\^$-])*")
"""Patterns of these characters only: no classes but digits, no options, no look-around, no back references."""
_DIFFERENT = re.compile(r"[*+?}][+]|\{,|\[[^\]]*\[|&&|--|~~|\(\?(?!:)|\[\^?\]|\\[^dD.+*?()\[\]{}|/\\^$-]")
"""What Python and Polars read differently all the same: possessive quantifiers, sets within sets, options."""


def _listed(column: Column) -> list[Any]:
    """The known values in the column's own type; one that no whole number equals is left out."""
    values = column.values or ()
    if column.kind == "int":
        return [int(value) for value in values if isinstance(value, float) and value.is_integer()]
    return list(values)


def _outside(value: pl.Expr, low: Any, high: Any) -> pl.Expr:
    """Whether a value is outside inclusive bounds; null for null."""
    return pl.any_horizontal(([] if low is None else [value < low]) + ([] if high is None else [value > high]))


def _judge_bounds(bounds: Bounds) -> Callable[[Any], tuple[bool | None, str]]:
    low = -math.inf if bounds.min is None else bounds.min
    high = math.inf if bounds.max is None else bounds.max

    def judge(found: float | None) -> tuple[bool | None, str]:
        if found is None or math.isnan(found):
            return None, "too few values"
        return low <= found <= high, f"{found:.6g}"

    return judge


def _whole_severity(severity: Severity) -> Severity:
    """What a whole column or table lacks cannot be set aside."""
    return "warn" if severity == "warn" else "error"


def _words_of(bounds: Bounds) -> str:
    return "of any size" if bounds.min is None and bounds.max is None else range_words(bounds.min, bounds.max)


def range_words(low: Any, high: Any) -> str:
    """An inclusive range in words."""
    if low is None:
        return f"at most {number(high)}"
    return f"at least {number(low)}" if high is None else f"{number(low)} to {number(high)}"


def number(value: Any) -> str:
    """A bound for people."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """A share as percent, with enough digits that a small one is not shown as 0%."""
    return f"{100 * share:.3g}%"
