"""The compiled checks say of each row what pandera says, of keys and cadences what counting says."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.cadence import missing_steps
from clearway.checks import NEVER, compile_table, load_checks, matches
from clearway.errors import ClearwayError, UsageError
from clearway.frames import ROW, frame_of
from clearway.repeats import repeated_rows
from clearway.schema import Cadence, Column, DataSchema, TableSchema
from clearway.validation import CheckResult, ValidationReport, validate_table

AS_OF = datetime(2024, 1, 8, tzinfo=UTC)
PATTERNS = ("[a-c]+", "a|bb", r"\w+", "(?i)A.*", "[^a]", r"a\d?", "a*+b", "", ".")
TEXTS = st.text("abAB1 é\n", max_size=4)


def table(**keys: Any) -> TableSchema:
    return TableSchema.model_validate({"columns": {"x": {"kind": "int", "nullable": True}}, **keys})


def judged(frame: Any, expected: TableSchema, **more: Any) -> ValidationReport:
    return validate_table("t", frame, expected, as_of=AS_OF, **more)


def only(report: ValidationReport, check: str) -> CheckResult:
    (result,) = [result for result in report.checks if result.check == check]
    return result


# --- the same verdict as pandera, row by row ---------------------------------------------------------------------


@st.composite
def columns(draw: st.DrawFn) -> tuple[Column, list[Any]]:
    """A random column and values of its kind, at the bounds more often than not."""
    kind = draw(st.sampled_from(["int", "float", "str", "bool", "timestamp"]))
    keys: dict[str, Any] = {"kind": kind, "nullable": draw(st.booleans())}
    pool: st.SearchStrategy[Any]
    if kind in ("int", "float"):
        low, high = sorted(draw(st.tuples(st.integers(-5, 5), st.integers(-5, 5))))
        keys |= draw(st.sampled_from([{}, {"min": low}, {"max": high}, {"min": low, "max": high}]))
        keys |= draw(st.sampled_from([{}, {"values": [0.0, 1.0, 2.5]}, {"unique": True}]))
        pool = st.integers(-7, 7)
        if kind == "float":
            pool = pool.map(float) | st.sampled_from([2.5, -0.0, np.inf if "min" in keys or "max" in keys else 1.5])
    elif kind == "str":
        keys |= draw(st.sampled_from([{}, {"values": ["a", "bb"]}, {"unique": True}]))
        keys |= draw(st.sampled_from([{}, {"min_length": 1}, {"max_length": 2}, {"min_length": 1, "max_length": 2}]))
        keys |= draw(st.sampled_from([{}, *({"pattern": pattern} for pattern in PATTERNS)]))
        pool = TEXTS
    elif kind == "bool":
        keys |= draw(st.sampled_from([{}, {"values": [True]}]))
        pool = st.booleans()
    else:
        keys |= draw(st.sampled_from([{}, {"min": AS_OF}, {"max": AS_OF}]))
        pool = st.integers(-2, 2).map(lambda days: pd.Timestamp(AS_OF) + pd.Timedelta(days=days, nanoseconds=days))
    return Column.model_validate(keys), draw(st.lists(pool | st.none(), min_size=1, max_size=8))


def as_series(kind: str, values: list[Any]) -> "pd.Series[Any]":
    if kind == "timestamp":
        return pd.Series(pd.to_datetime(values, utc=True)).astype("datetime64[ns, UTC]")
    if kind == "int":
        return pd.Series(values, dtype="float64" if None in values else "int64")
    return pd.Series(values, dtype="float64" if kind == "float" else object)


def by_pandera(column: Column, values: "pd.Series[Any]") -> set[int]:
    """The rows that a pandera schema refuses, built here from the keys alone."""
    checks = []
    if column.min is not None:
        checks.append(pandera.Check.greater_than_or_equal_to(column.min))
    if column.max is not None:
        checks.append(pandera.Check.less_than_or_equal_to(column.max))
    if column.kind == "float" and (column.min is not None or column.max is not None):
        checks.append(pandera.Check(np.isfinite))
    if column.values is not None:
        checks.append(pandera.Check.isin(list(column.values)))
    if column.pattern is not None:
        compiled = re.compile(column.pattern)
        checks.append(pandera.Check(lambda text: compiled.fullmatch(text) is not None, element_wise=True))
    if column.min_length is not None or column.max_length is not None:
        checks.append(pandera.Check.str_length(column.min_length, column.max_length))
    bad: set[int] = set(values.index[values.isna()]) if not column.nullable else set()
    there = values.dropna()
    if column.unique:
        bad |= set(there.index[there.duplicated(keep=False)])
    schema = pandera.SeriesSchema(checks=checks, nullable=True)
    if len(there):
        try:
            schema.validate(there, lazy=True)
        except pandera.errors.SchemaErrors as errors:
            bad |= set(errors.failure_cases["index"])
    return bad


@settings(max_examples=120, deadline=None)
@given(columns())
def test_each_row_is_judged_as_pandera_judges_it(drawn: tuple[Column, list[Any]]) -> None:
    column, values = drawn
    frame = pd.DataFrame({"x": as_series(column.kind, values)})
    compiled = compile_table("t", TableSchema(columns={"x": column}), frame_of("t", frame), lambda key: None, None, {})
    bad: set[int] = set()
    for check in compiled.row_checks:
        if check.repeats:
            bad |= set(map(int, repeated_rows(compiled.frame, check.compared, check.bad, check.repeats)))
        elif check.bad is not NEVER:
            rows = compiled.frame.collect(compiled.frame.numbered().filter(check.bad).select(ROW))
            bad |= set(rows.to_series())
    assert bad == by_pandera(column, frame["x"])


@pytest.mark.filterwarnings("ignore:Possible")
@pytest.mark.parametrize("pattern", [*PATTERNS, "a++", "[a&&b]+", r"[\w]", "a{,2}", r"a$", "[[]a]*", r"(a)\1"])
def test_patterns_mean_what_python_means_by_them(pattern: str) -> None:
    texts = ["", "a", "aa", "aaa", "b", "bb", "A", "1", "²", "é", "a\n", "ab", "&", "a b", "[a]", "a1"]
    found = pl.DataFrame({"x": texts}).select(matches(pl.col("x"), pattern)).to_series().to_list()
    compiled = re.compile(pattern)
    assert found == [compiled.fullmatch(text) is not None for text in texts]


# --- what a column is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "bad"),
    [
        ("int", [1.0, np.nan, 3.0], []),
        ("int", [1.0, np.inf, 3.5], [1, 2]),
        ("float", [1, 2], []),
        ("float", [1.0, np.inf, np.nan], [1]),
        ("float", ["1.5", "60,5", None], [1]),
        ("float", ["1.5", "60.5", None], [0, 1]),
        ("bool", [True, None, False], []),
        ("bool", [1, 0], [0, 1]),
        ("str", pd.Series(["a", None], dtype="string"), []),
        ("str", pd.Series(["a", None], dtype="category"), []),
        ("str", [1, "a"], [0, 1]),
        ("timestamp", pd.to_datetime(["2024-01-01"]), [0]),
        ("timestamp", pd.to_datetime(["2024-01-01"], utc=True), []),
        ("timestamp", ["2024-01-01"], [0]),
        ("int", [None, None], []),
    ],
)
def test_kinds(kind: str, values: Any, bad: list[int]) -> None:
    frame = pd.DataFrame({"x": values})
    result = only(judged(frame, table(columns={"x": {"kind": kind, "nullable": True}})), "kind")
    assert [example["row"] for example in result.examples] == bad
    assert result.status == ("fail" if bad else "pass")


def test_unsigned_columns_subtract_like_any_numbers_in_rules() -> None:
    frame = pl.DataFrame({"x": [1, 9]}, schema={"x": pl.UInt8})
    assert only(judged(frame, table(rules=[{"name": "r", "expression": "x - 5 < 5"}])), "r").status == "pass"


# --- whole columns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "values", "check", "status", "found"),
    [
        ({"std": {"min": 1}}, [1.0, 1.0, 1.1], "std", "fail", "0.057735"),
        ({"std": {"min": 1}}, [1.0, None, None], "std", "unknown", "not judged"),
        ({"mean": {"min": 1}}, [None, None, None], "mean", "unknown", "not judged"),
        ({"mean": {"min": 1, "max": 3}}, [1.0, 3.0, None], "mean", "pass", "2"),
        ({"min_distinct": 2}, [7.0, 7.0, None], "min_distinct", "fail", "one value only"),
        ({"min_distinct": 2}, [None, None, None], "min_distinct", "fail", "no value"),
        ({"min_distinct": 3}, [1.0, 2.0, 2.0], "min_distinct", "fail", "2 different"),
        ({"min_distinct": 2}, [1.0, 2.0, 2.0], "min_distinct", "pass", ""),
        ({"values": [1, 2], "min_known": 0.5}, [1.0, 9.0, None], "values", "pass", "9.0 in 1 row (50%)"),
        ({"values": [1, 2], "min_known": 0.6}, [1.0, 9.0, None], "values", "fail", "9.0 in 1 row (50%)"),
        ({"values": [1], "min_known": 0.6, "severity": "warn"}, [1.0, 9.0, None], "values", "warn", "9.0"),
        ({"values": [1], "min_known": 0.6, "severity": "quarantine"}, [1.0, 9.0, 9.0], "values", "fail", "9.0"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_whole_columns(
    keys: dict[str, Any], values: list[Any], check: str, status: str, found: str, streamed: bool
) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    expected = table(columns={"x": {"kind": "float", "nullable": True, **keys}}, max_quarantine=1)
    result = only(judged(frame.lazy() if streamed else frame, expected), check)
    assert result.status == status
    assert found in result.found


@pytest.mark.parametrize("kind", ["str", "bool", "timestamp"])
def test_a_constant_column_of_any_kind_is_found(kind: str) -> None:
    value = {"str": "a", "bool": True, "timestamp": AS_OF}[kind]
    frame = pl.DataFrame({"x": [value, value, None]})
    expected = table(columns={"x": {"kind": kind, "nullable": True, "min_distinct": 2}})
    assert only(judged(frame, expected), "min_distinct").found == "one value only"


# --- whole tables -----------------------------------------------------------------------------------------------


def test_columns_out_of_order_are_named() -> None:
    expected = table(columns={name: {"kind": "int"} for name in "xyz"}, ordered=True, extra_columns="allow")
    assert (
        only(judged(pl.DataFrame({"x": [1], "extra": [1], "y": [1], "z": [1]}), expected), "ordered").status == "pass"
    )
    result = only(judged(pl.DataFrame({"x": [1], "z": [1], "y": [1]}), expected), "ordered")
    assert (result.status, result.found) == ("fail", "z where y belongs")


def test_rows_that_repeat_wholly_are_counted_but_for_the_first() -> None:
    frame = pl.DataFrame({"x": [1, 2, 1, 1, None, None]})
    result = only(judged(frame, table(max_duplicates=0.5)), "duplicates")
    assert (result.status, result.failures) == ("pass", 3)
    result = only(judged(frame, table(max_duplicates=0.4)), "duplicates")
    assert [example["row"] for example in result.examples] == [2, 3, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, None]), st.sampled_from(["a", "b", None])), max_size=12))
def test_repeated_keys_are_those_that_pandas_finds(pairs: list[tuple[int | None, str | None]]) -> None:
    frame = pl.DataFrame(pairs, schema={"x": pl.Int64, "y": pl.String}, orient="row")
    for streamed in (False, True):
        made = frame_of("t", frame.lazy() if streamed else frame)
        for which, keep in (("all", False), ("later", "first")):
            found = repeated_rows(made, ["x", "y"], pl.lit(value=True), which)  # type: ignore[arg-type]
            wanted = pd.DataFrame(pairs, columns=["x", "y"], dtype=object).duplicated(keep=keep)  # type: ignore[arg-type]
            assert list(found) == list(np.flatnonzero(wanted))


def test_what_is_not_fresh_fails_and_without_a_time_nothing_is_fresh_or_stale() -> None:
    expected = table(
        columns={"x": {"kind": "timestamp", "nullable": True}}, freshness={"column": "x", "max_age_days": 2}
    )
    late = pl.DataFrame({"x": [AS_OF - timedelta(days=2, seconds=1), None]})
    result = only(judged(late, expected), "freshness (x)")
    assert (result.status, result.found) == ("fail", "the last row is of 2024-01-05T23:59:59Z")
    assert only(judged(late.with_columns(x=AS_OF), expected), "freshness (x)").status == "pass"
    assert only(judged(late.clear(), expected), "freshness (x)").status == "fail"
    assert only(validate_table("t", late, expected), "freshness (x)").status == "unknown"


def hours(*gone: int, start: datetime = AS_OF, count: int = 72) -> pl.DataFrame:
    times = [start + timedelta(hours=hour, minutes=7) for hour in range(count) if hour not in gone]
    return pl.DataFrame({"x": times, "y": ["a"] * len(times)})


@pytest.mark.parametrize(
    ("keys", "frame", "missing"),
    [
        ({"every": "1h"}, hours(), 0),
        ({"every": "1h"}, hours(5, 6, 30), 3),
        ({"every": "1h", "hours": (6, 22)}, hours(5, 6, 30), 2),
        ({"every": "1h", "hours": (22, 6)}, hours(5, 6, 30), 3),
        ({"every": "1h", "hours": (6, 22), "zone": "Asia/Tokyo"}, hours(5, 16, 20), 1),
        ({"every": "2h"}, hours(4, 5, 7), 1),
        ({"every": "1d"}, hours(*range(24, 48)), 1),
        # a day in New York has hours of two days in UTC; the clock change makes one of 23 hours
        ({"every": "1d", "zone": "America/New_York"}, hours(*range(24, 48)), 0),
        ({"every": "1h"}, hours(3, start=datetime(2024, 3, 10, tzinfo=UTC)), 1),
        ({"every": "30m"}, hours(count=3), 2),
        ({"every": "1h"}, hours(count=0), 0),
    ],
)
def test_missing_steps_are_counted(keys: dict[str, Any], frame: pl.DataFrame, missing: int) -> None:
    steps = missing_steps(frame_of("t", frame), Cadence.model_validate({"column": "x", **keys}))
    assert steps.missing == missing


def test_steps_are_counted_for_each_combination_and_the_first_are_shown() -> None:
    frame = pl.concat([hours(5), hours(7, 8).with_columns(y=pl.lit("b"))])
    expected = table(
        columns={"x": {"kind": "timestamp"}, "y": {"kind": "str"}},
        cadence=[{"column": "x", "every": "1h", "by": ["y"], "max_missing": 2}],
    )
    result = only(judged(frame, expected), "cadence (x by y)")
    assert (result.status, result.failures) == ("fail", 3)
    assert result.examples[0] == {"y": "a", "x": "2024-01-08T05:00Z"}
    assert only(judged(hours(5), expected), "cadence (x by y)").status == "pass"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-30, 30), st.none() | st.sampled_from("ab"), st.integers(0, 2)), max_size=30
    ),
    st.sampled_from([{}, {"by": ["y"]}, {"by": ["y", "z"]}]),
    st.sampled_from(["1h", "3h", "1d"]),
    st.booleans(),
)
def test_steps_in_memory_are_those_of_a_table_that_is_read_in_pieces(
    rows: list[tuple[Any, ...]], by: dict[str, Any], every: str, outlier: bool
) -> None:
    frame = pl.DataFrame(rows, schema={"x": pl.Int64, "y": pl.String, "z": pl.Int64}, orient="row")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    frame = frame.with_columns(x=pl.lit(epoch) + pl.duration(hours="x"))
    if outlier:
        last = {"x": [datetime(2150, 1, 1, tzinfo=UTC)], "y": ["c"], "z": [9]}
        frame = pl.concat([frame, pl.DataFrame(last, schema_overrides=frame.schema)])
    cadence = Cadence.model_validate({"column": "x", "every": every, **by})
    assert missing_steps(frame_of("t", frame), cadence) == missing_steps(frame_of("t", frame.lazy()), cadence)


# --- rules and Python checks ------------------------------------------------------------------------------------


def test_rules_show_the_rows_that_break_them_and_nulls_pass() -> None:
    expected = table(
        columns={"x": {"kind": "int", "nullable": True}, "y": {"kind": "float", "nullable": True}},
        rules=[{"name": "order", "expression": "x <= y", "max_failing": 0.2}],
    )
    frame = pd.DataFrame({"x": [1.0, 5.0, np.nan, 7.0, 2], "y": [2.0, 4.0, 1.0, np.nan, np.nan]})
    result = only(judged(frame, expected), "order")
    assert (result.status, result.failures, result.examples) == ("pass", 1, ({"row": 1, "x": 5, "y": 4.0},))
    assert only(judged(frame.head(4), expected), "order").status == "fail"


def test_rules_know_the_time_of_the_run() -> None:
    expected = table(
        columns={"x": {"kind": "timestamp"}}, rules=[{"name": "past", "expression": "x < as_of - INTERVAL '1 day'"}]
    )
    frame = pl.DataFrame({"x": [AS_OF - timedelta(days=2), AS_OF]}, schema={"x": pl.Datetime("ns", "UTC")})
    assert only(judged(frame, expected), "past").failures == 1
    assert only(validate_table("t", frame, expected), "past").failures == 0


@pytest.mark.parametrize(
    ("expression", "cause"),
    [
        ("x + 1", "must be true or false"),
        ("y > 1", "names the column y, which tables.t.columns does not list"),
        ("x LIKE 'a'", "cannot be checked, because r fails"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(expression: str, cause: str) -> None:
    with pytest.raises(ClearwayError, match=re.escape(cause)) as caught:
        judged(pl.DataFrame({"x": [1]}), table(rules=[{"name": "r", "expression": expression}]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("expression", ["MAX(x) < 5", "SUM(x) OVER () < 5", "COUNT(*) > 0", "1 = 1"])
def test_a_rule_about_the_whole_table_is_refused_for_its_rows_could_not_be_counted(expression: str) -> None:
    with pytest.raises(UsageError, match="r says one thing of the whole table"):
        judged(pl.DataFrame({"x": [1, 9, 3]}), table(rules=[{"name": "r", "expression": expression}]))


def test_a_rule_about_a_missing_or_broken_column_is_not_judged_and_its_column_fails() -> None:
    expected = table(columns={"x": {"kind": "int"}, "y": {"kind": "int"}}, rules=[{"name": "r", "expression": "x < y"}])
    report = judged(pl.DataFrame({"x": [1]}), expected)
    assert (only(report, "r").status, report.verdict) == ("unknown", "failed")
    report = judged(pl.DataFrame({"x": [1], "y": ["old"]}), expected)
    assert (only(report, "r").status, report.verdict) == ("unknown", "failed")


def test_python_checks_are_those_of_the_package_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("shop.checks")
    module.CHECKS = {"even": pl.col("x") % 2 == 0}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.checks", module)
    schema = DataSchema(tables={"t": table(checks=[{"name": "even"}])})
    checks = load_checks("shop", schema)
    assert only(judged(pl.DataFrame({"x": [2, 3]}), schema.tables["t"], checks=checks), "even").failures == 1
    assert load_checks("no_such_package", DataSchema(tables={"t": table()})) == {}
    with pytest.raises(UsageError, match=r"names 'odd', but shop\.checks\.CHECKS holds"):
        load_checks("shop", DataSchema(tables={"t": table(checks=[{"name": "odd"}])}))
    with pytest.raises(UsageError, match="needs a project package"):
        load_checks(None, schema)
    with pytest.raises(UsageError, match=r"nowhere\.checks offers no CHECKS"):
        load_checks("nowhere", schema)
    with pytest.raises(UsageError, match="no such check is at hand"):
        judged(pl.DataFrame({"x": [2]}), schema.tables["t"])


def test_a_check_that_breaks_on_the_data_is_one_line() -> None:
    def broken(values: pl.Series) -> pl.Series:
        raise ValueError("no\nway")

    checks = {"odd": pl.col("x").map_batches(broken, return_dtype=pl.Boolean)}
    with pytest.raises(ClearwayError, match="table t cannot be checked, because odd fails") as caught:
        judged(pl.DataFrame({"x": [2]}), table(checks=[{"name": "odd"}]), checks=checks)
    assert "\n" not in str(caught.value)
