"""Draft ``schema.yaml`` from data, for a person to review: every guess stands under a comment of what was seen.

The gate never infers: a draft is a file of its own, and counts only once somebody has made it ``schema.yaml``.
:func:`draft_schema` is pure; :func:`draft_snapshot` and :func:`draft_file` read and write.
"""

import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import yaml

from clearway.cadence import missing_steps
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_text
from clearway.frames import Frame, fits, frame_of
from clearway.params import CsvSource, Params, ParquetSource
from clearway.schema import Cadence, Kind, load_schema
from clearway.validation import ValidationReport, validate_tables
from clearway.workspace import Workspace

DRAFT = "schema.draft.yaml"
FEW = 20
"""Different texts up to which they are listed one by one."""
KNOWN = 0.99
"""Smallest share of rows whose text must be a listed one: a new one is no error at once."""
ROOM = 0.1
"""Head-room of a range, as a share of what was seen."""
ENOUGH = 50
"""Rows below which that no value repeats may be chance."""
KEY_COLUMNS = 8
"""Columns of which keys are combined: times and texts first, then those with most different values."""
KEY_ROWS = 2_000_000
LINKED = 0.8
"""Share of rows whose value is found in another table's key from which it counts as a reference."""
FAR = 10
"""An extreme is called an outlier where it lies this many times further from the median than 99.9% of values."""
_WIDTH = 116
_STEPS = ("15m", "30m", "1h", "1d")
_COVERED = 0.98
"""Share of steps with a row from which the rows count as coming regularly."""
_KINDS: tuple[Kind, ...] = ("bool", "int", "float", "str", "timestamp")
_CLASSES = ("[0-9]", "[A-Z]", "[a-z]", "[A-Z0-9]", "[a-z0-9]", "[A-Za-z0-9]")
_PUNCTUATION = "-_./:#+"


@dataclass
class _Column:
    """What was seen of one column, and what is guessed from it."""

    kind: Kind
    keys: dict[str, Any]
    seen: list[str]
    distinct: int
    missing: int


@dataclass
class _Table:
    frame: Frame
    rows: int
    columns: dict[str, _Column] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Columns that no kind fits, and their type."""


def draft_schema(tables: Mapping[str, Any], *, as_of: datetime | None = None, of: str = "the data") -> str:
    """A ``schema.yaml`` that these tables pass, with a comment over every guess.

    Bounds have head-room: a range a tenth of what it spans, a mean a quarter of the standard deviation beyond the
    means of single months (half of it where there is no time), a standard deviation from 0.6 to 1.6 of its own.

    Parameters
    ----------
    tables : mapping of name to pandas DataFrame, or Polars DataFrame or LazyFrame
        At least one row each.
    as_of : datetime, optional
        What is now; freshness is drafted only where it is known.
    of : str
        Where the tables came from, for the head of the file.

    Returns
    -------
    str
        YAML.

    Raises
    ------
    ClearwayError
        A table cannot be read, is empty, or has no column of a known kind.
    """
    seen = {name: _look(name, table) for name, table in tables.items()}
    lines = [
        f"# Drafted by scripts/infer_schema.py from {_one_line(of)}: every bound is a guess from what was seen there.",
        "# Review each, tighten what you know better, say what severity it has (error, quarantine or warn), and rename",
        "# this file to schema.yaml. All keys: docs/schema.md.",
        "tables:",
    ]
    for name, table in seen.items():
        others = {other: it for other, it in seen.items() if other != name}
        lines += [f"  {line}".rstrip() for line in _table_lines(name, table, others, as_of)]
    return "\n".join(lines) + "\n"


def draft_snapshot(params: Params, workspace: Workspace, output: Path) -> ValidationReport:
    """Draft from ``data/raw``, or, where nothing was ingested yet, from the sources of ``params.yaml``.

    Returns
    -------
    ValidationReport
        How the same data does by the draft: what fails is wrong with the data whatever one expects of it.

    Raises
    ------
    ClearwayError
        The data is missing or broken.
    UsageError
        ``output`` is there already.
    """
    from clearway.snapshot import scan_tables
    from clearway.sources import read_source

    _refuse_existing(output)
    if workspace.snapshot.exists():
        return _write(scan_tables(workspace, params), params.time(), str(workspace.raw), output)
    tables = {
        name: read_source(source, workspace.root, key=f"sources.{name}") for name, source in params.sources.items()
    }
    as_of = params.as_of if isinstance(params.as_of, datetime) else None
    return _write(tables, as_of, f"the sources of {workspace.params_file}", output)


def draft_file(file: str, table: str, params: Params | None, workspace: Workspace, output: Path) -> ValidationReport:
    """Draft from one CSV or Parquet file (path or fsspec URL), as the table of that name.

    How a CSV is read, and which of its columns are times, is what ``params.yaml`` says of the source of that name, if
    there is one.

    Raises
    ------
    ClearwayError
        The file is missing or cannot be read.
    UsageError
        ``output`` is there already.
    """
    from clearway.sources import read_source, scan_parquet_file

    _refuse_existing(output)
    declared = params.sources.get(table) if params else None
    as_of = params.as_of if params and isinstance(params.as_of, datetime) else None
    times, key = getattr(declared, "timestamps", ()), f"sources.{table}"
    if PurePosixPath(file).suffix not in (".parquet", ".pq"):
        source = CsvSource(kind="csv", path=file, timestamps=times, read=getattr(declared, "read", {}))
        frame = read_source(source, workspace.root, key=key, named_by="--from")
        return _write({table: frame}, as_of, file, output)
    parquet = ParquetSource(kind="parquet", path=file, timestamps=times)
    with scan_parquet_file(parquet, workspace.root, key=key, named_by="--from") as rows:
        return _write({table: rows}, as_of, file, output)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise UsageError(f"{output} is there already: review it, and move or delete it before you draft another")


def _write(tables: Mapping[str, Any], as_of: datetime | None, of: str, output: Path) -> ValidationReport:
    write_text(output, draft_schema(tables, as_of=as_of, of=of))
    return validate_tables(tables, load_schema(output), as_of=as_of)


def _look(name: str, table: Any) -> _Table:
    """Everything that is seen of one table, column by column."""
    frame = frame_of(name, table)
    floats = [column for column, dtype in frame.dtypes.items() if dtype.is_float()]
    frame = replace(frame, lazy=frame.lazy.with_columns(pl.col(floats).fill_nan(None)))
    rows = int(frame.collect(frame.lazy.select(pl.len())).item())
    if not rows:
        raise ClearwayError(f"table {name} has no rows: a schema cannot be drafted from nothing")
    found = _Table(frame, rows)
    kinds = {column: _kind(frame, column, dtype) for column, dtype in frame.dtypes.items()}
    time = next((column for column, kind in kinds.items() if kind == "timestamp"), None)
    for column, kind in kinds.items():
        if kind is None:
            found.unreadable[column] = frame.mixed.get(column) or str(frame.dtypes[column]).lower()
        else:
            found.columns[column] = _column(found, column, kind, time)
    if not found.columns:
        raise ClearwayError(f"table {name} has no column of kind {', '.join(_KINDS)}: convert them first")
    return found


def _kind(frame: Frame, name: str, dtype: pl.DataType) -> Kind | None:
    if name in frame.mixed:
        return None
    if dtype == pl.Null:
        return "str"
    if dtype.is_float():
        value = pl.col(name)
        whole = ((value % 1 == 0) & (value.abs() < 2.0**53)).all() & value.is_not_null().any()
        asked = frame.collect(frame.lazy.select(whole=whole, gaps=value.is_null().any())).row(0)
        return "int" if all(asked) else "float"  # a column of whole numbers becomes float where some are missing
    if dtype.is_integer():
        return "int"
    return next((kind for kind in _KINDS if fits(dtype, kind)), None)


def _column(table: _Table, name: str, kind: Kind, time: str | None) -> _Column:
    frame, value = table.frame, pl.col(name)
    different = value.approx_n_unique() if frame.streamed else value.drop_nulls().n_unique()
    asked = frame.lazy.select(missing=value.null_count(), distinct=different)
    missing, distinct = map(int, frame.collect(asked).row(0))
    found = _Column(kind, {"kind": kind}, [], distinct, missing)
    if missing:
        share = missing / table.rows
        found.keys["nullable"] = True
        most = _up(share + max(0.01, share / 4, 3 * math.sqrt(share * (1 - share) / table.rows)), 0.01)
        if most < 1:
            found.keys["max_null"] = most
        found.seen.append(f"{100 * share:.3g}% missing")
    if missing == table.rows:
        found.seen.append("the kind is a guess")
        return found
    if kind == "int" and frame.dtypes[name].is_float():
        found.seen.append("whole numbers, kept as float because some are missing")
    if kind in ("int", "float"):
        _numbers(table, name, value, found, time)
    elif kind == "timestamp":
        _times(table, name, found)
    elif kind == "str":
        _texts(table, name, found)
    if kind in ("int", "str", "timestamp") and not frame.streamed and not missing and distinct == table.rows >= ENOUGH:
        found.keys["unique"] = True
        found.seen.append("no value twice")
    elif distinct >= 2:
        found.keys["min_distinct"] = 2
    else:
        found.seen.append("one value only: what is it for?")
    return found


def _numbers(table: _Table, name: str, value: pl.Expr, found: _Column, time: str | None) -> None:
    """Range, mean and standard deviation, with head-room."""
    frame = table.frame
    number = value if found.kind == "int" else pl.when(value.is_finite()).then(value)
    number = number.cast(pl.Float64)
    asked = [number.min(), number.max(), number.mean(), number.std(), number.median()]
    asked += [number.quantile(0.001), number.quantile(0.999)]
    names = ("low", "high", "mean", "std", "median", "first", "last")
    seen = frame.collect(frame.lazy.select(**dict(zip(names, asked, strict=True)))).row(0, named=True)
    low, high, std = seen["low"], seen["high"], seen["std"]
    if low is None:
        found.seen.append("no finite value")
        return
    room = ROOM * (high - low)
    smallest, largest = _down(low - room, room), _up(high + room, room)
    if low >= 0:
        smallest = max(smallest, 0.0)  # what was never negative hardly becomes so
    if high <= 0:
        largest = min(largest, 0.0)
    if found.kind == "int":
        smallest, largest = low if low in (0, 1) else math.floor(smallest), math.ceil(largest)
    found.keys |= {"min": smallest, "max": largest}
    found.seen.append(f"{low:.10g} to {high:.10g}")
    for extreme, usual, key in ((low, seen["first"], "min"), (high, seen["last"], "max")):
        if abs(extreme - seen["median"]) > FAR * abs(usual - seen["median"]) > 0:
            found.seen.append(f"99.9% end at {usual:.6g}: is {extreme:.10g} an error? Then a closer {key}, quarantine")
    if not std or found.distinct == table.rows:
        return
    means = _monthly(frame, number, time)
    if len(means) > 1:
        least, most, reach = min(*means, seen["mean"]), max(*means, seen["mean"]), std / 4
        words = f", {least:.4g} to {most:.4g} by month"
    else:
        least = most = seen["mean"]
        reach, words = std / 2, ""
    bounds = [_down(least - reach, reach), _up(most + reach, reach)]
    found.keys["mean"] = dict(zip(("min", "max"), _within(bounds, low, high), strict=True))
    found.keys["std"] = {"min": _down(0.6 * std, 0.6 * std), "max": _up(1.6 * std, 1.6 * std)}
    found.seen.append(f"mean {seen['mean']:.4g}{words}, standard deviation {std:.4g}")


def _within(bounds: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """No mean is beyond zero where no value is."""
    return max(bounds[0], 0.0) if low >= 0 else bounds[0], min(bounds[1], 0.0) if high <= 0 else bounds[1]


def _monthly(frame: Frame, number: pl.Expr, time: str | None) -> list[float]:
    """The means of the months with enough rows; empty without time."""
    if time is None:
        return []
    grouped = frame.lazy.group_by(pl.col(time).dt.truncate("1mo")).agg(mean=number.mean(), rows=number.count())
    # a month of which only a day is in the data says little
    whole = pl.col("rows") >= pl.max_horizontal(pl.lit(ENOUGH), pl.col("rows").mean() / 4)
    return [float(mean) for mean in frame.collect(grouped.filter(whole))["mean"]]


def _times(table: _Table, name: str, found: _Column) -> None:
    value = pl.col(name).dt.convert_time_zone("UTC")
    first, last = table.frame.collect(table.frame.lazy.select(low=value.min(), high=value.max())).row(0)
    span = max(last - first, timedelta(days=1))
    found.keys["min"] = (first - ROOM * span).date()
    # time goes on: a limit is there for dates of another century, or of a clock gone wrong
    found.keys["max"] = date((last + max(5 * span, timedelta(days=366))).year + 1, 1, 1)
    found.seen.append(f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC")


def _texts(table: _Table, name: str, found: _Column) -> None:
    """Few different texts are listed; codes of a fixed form get a pattern; of all others the length is bounded."""
    frame, value = table.frame, pl.col(name).cast(pl.String)
    found.seen.append(f"{found.distinct:,} different texts")
    numbers = frame.collect(frame.lazy.select(value.cast(pl.Float64, strict=False).count())).item()
    there = table.rows - found.missing
    if numbers > there / 2:
        what = "all are numbers as text" if numbers == there else f"{there - numbers:,} of {there:,} are no number"
        found.seen.append(f"{what}: should the source read them as numbers?")
    elif _all_times(frame, value, there):
        found.seen.append("they look like times: list the column under sources.*.timestamps and draft again")
    if found.distinct <= FEW and found.distinct * 3 <= there:
        values = frame.collect(frame.lazy.select(value.drop_nulls().unique())).to_series().sort()
        found.keys |= {"values": values.to_list(), "min_known": KNOWN}
        return
    pattern = _pattern(frame, value) if found.distinct >= FEW else None
    if pattern:
        found.keys["pattern"] = pattern
        return
    shortest, longest = _lengths(frame, value)
    found.keys |= {"min_length": min(shortest, 1), "max_length": int(_up(2.0 * max(longest, 1), 10))}
    found.seen.append(f"{shortest} to {longest} characters")


def _all_times(frame: Frame, value: pl.Expr, there: int) -> bool:
    some = frame.collect(frame.lazy.select(value.drop_nulls().head(1000))).to_series()
    if not some.str.contains(r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d|$)").all():
        return False
    read = value.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).count()
    return bool(frame.collect(frame.lazy.select(read)).item() == there)


def _lengths(frame: Frame, value: pl.Expr) -> tuple[int, int]:
    length = value.str.len_chars()
    low, high = frame.collect(frame.lazy.select(low=length.min(), high=length.max())).row(0)
    return int(low), int(high)


def _pattern(frame: Frame, value: pl.Expr) -> str | None:
    """A regular expression that all texts match, where each place holds one class of characters; None otherwise."""
    shortest, longest = _lengths(frame, value)
    if not 2 <= shortest <= longest <= 40 or longest - shortest > 4:
        return None
    places = [value.str.slice(i, 1).drop_nulls().unique().implode().alias(str(i)) for i in range(longest)]
    sets = frame.collect(frame.lazy.select(places)).row(0)
    classes = [_class([character for character in characters if character]) for characters in sets]
    if any(each is None for each in classes) or all(len(str(each)) <= 2 for each in classes):
        return None
    if longest > shortest:  # words vary in length too: a code of varying length has capitals or digits only
        tail = _class(sorted({c for characters in sets[shortest:] for c in characters if c}))
        if tail is None or any("a-z" in str(each) for each in classes):
            return None
        head, same = [str(each) for each in classes[:shortest]], 0
        while head and head[-1] == tail:
            head.pop()
            same += 1
        return _runs(head) + f"{tail}{{{same},{same + longest - shortest}}}"
    return _runs([str(each) for each in classes])


def _class(characters: Sequence[str]) -> str | None:
    """The narrowest class of these characters; None where they are none of a code's."""
    if len(characters) == 1 and (characters[0] in _PUNCTUATION or "A" <= characters[0] <= "Z"):
        return re.escape(characters[0]) if characters[0] in ".+" else characters[0]
    return next((each for each in _CLASSES if all(re.fullmatch(each, c) for c in characters)), None)


def _runs(classes: Sequence[str]) -> str:
    runs = [(each, len(list(group))) for each, group in itertools.groupby(classes)]
    return "".join(each if times == 1 else f"{each}{{{times}}}" for each, times in runs)


def _table_lines(name: str, table: _Table, others: Mapping[str, _Table], as_of: datetime | None) -> Iterator[str]:
    """The lines of one table, without their common indent."""
    rows = table.rows
    yield f"{_flow(name)}:"
    yield f"  # {rows:,} rows"
    yield f"  rows: {_flow({'min': max(1, int(_down(rows / 2, rows / 10))), 'max': int(_up(10 * rows, rows))})}"
    if table.unreadable:
        named = ", ".join(f"{column} ({dtype})" for column, dtype in table.unreadable.items())
        advice = "convert them (times without a zone: list them under sources.*.timestamps) and draft again"
        yield from _comment("  ", f"left out, being of no kind that is known here: {named}; {advice}")
        yield "  extra_columns: allow"
    key, note = _key(table)
    yield from _comment("  ", note)
    if key:
        yield f"  unique: {_flow([list(key)])}"
    if not key and not table.frame.streamed and not any("unique" in column.keys for column in table.columns.values()):
        yield from _duplicates(table)
    yield from _clock(table, key, as_of)
    links = list(_links(table, others))
    if links:
        yield "  foreign_keys:"
        for comment, keys in links:
            yield from _comment("    ", comment)
            yield f"    - {_flow(keys)}"
    yield "  columns:"
    for column, found in table.columns.items():
        yield from _comment("    ", "; ".join(found.seen) or "true and false")
        line = f"    {_flow(column)}: {_flow(found.keys)}"
        if len(line) + 2 <= _WIDTH:
            yield line
        else:
            yield f"    {_flow(column)}:"
            yield from (f"      {key}: {_flow(value)}" for key, value in found.keys.items())


def _key(table: _Table) -> tuple[tuple[str, ...], str]:
    """Two or three columns that tell all rows apart, where no single one does; and what was seen."""
    alone = [name for name, column in table.columns.items() if "unique" in column.keys]
    if alone:
        return (), f"{alone[0]} tells all rows apart"
    if table.rows < ENOUGH or table.frame.streamed or table.rows > KEY_ROWS:
        return (), "no key was looked for: list the columns that tell all rows apart"
    usable = [
        name
        for name, column in table.columns.items()
        if column.kind in ("int", "str", "timestamp") and not column.missing and column.distinct > 1
    ]
    usable.sort(key=lambda name: (table.columns[name].kind == "int", -table.columns[name].distinct))
    usable = usable[:KEY_COLUMNS]
    for size in (2, 3):
        candidates = []
        for names in itertools.combinations(usable, size):
            if math.prod(table.columns[name].distinct for name in names) >= table.rows and _tells_apart(table, names):
                candidates.append(names)
        if candidates:
            # an identity is made of codes and times, and of no more than it needs: others tell rows apart by chance
            def fitness(names: tuple[str, ...]) -> tuple[int, int]:
                chosen = [table.columns[name] for name in names]
                return sum(column.kind == "int" for column in chosen), math.prod(column.distinct for column in chosen)

            best = min(candidates, key=fitness)
            ordered = tuple(name for name in table.columns if name in best)
            more = len(candidates) - 1
            note = f"tells all rows apart, as {more} other combinations do" if more else "tells all rows apart"
            return ordered, f"{', '.join(ordered)} {note}: is it what a row is about?"
    return (), "no two or three columns tell all rows apart"


def _tells_apart(table: _Table, names: Sequence[str]) -> bool:
    frame = table.frame
    for rows in (20_000, table.rows):  # most combinations repeat early
        part = frame.lazy.select(names).head(rows)
        if frame.collect(part.select(pl.struct(names).n_unique())).item() < min(rows, table.rows):
            return False
    return True


def _duplicates(table: _Table) -> Iterator[str]:
    names = list(table.frame.dtypes)
    repeated = table.rows - table.frame.collect(table.frame.lazy.select(pl.struct(names).n_unique())).item()
    yield f"  # {repeated:,} rows repeat an earlier one wholly"
    yield f"  max_duplicates: {_flow(min(_up(1.5 * repeated / table.rows, repeated / table.rows), 1.0))}"


def _clock(table: _Table, key: Sequence[str], as_of: datetime | None) -> Iterator[str]:
    """Freshness, and the step in which rows come, of the first column of times."""
    name = next((name for name, column in table.columns.items() if column.kind == "timestamp"), None)
    if name is None:
        return
    value = pl.col(name).dt.convert_time_zone("UTC")
    last = table.frame.collect(table.frame.lazy.select(value.max())).item()
    if last is None:
        return
    if as_of is not None:
        age = max((as_of.astimezone(UTC) - last).total_seconds() / 86400, 0.0)
        yield f"  # the last row was {age:.3g} days old at {as_of:%Y-%m-%d %H:%M} UTC"
        yield f"  freshness: {_flow({'column': name, 'max_age_days': max(1, math.ceil(2 * age))})}"
    by = [other for other in key if other != name] if len(key) == 2 and name in key else []
    for every, columns in itertools.product(_STEPS, ([by, []] if by else [[]])):
        cadence = Cadence(column=name, every=every, by=tuple(columns))
        steps = missing_steps(table.frame, cadence)
        if steps.expected >= ENOUGH and steps.missing <= (1 - _COVERED) * steps.expected:
            words = f" for each {columns[0]}" if columns else ""
            yield f"  # rows come every {every}{words}: {steps.missing:,} of {steps.expected:,} steps have none"
            keys = {"column": name, "every": every, **({"by": columns} if columns else {})}
            yield f"  cadence: [{_flow({**keys, 'max_missing': math.ceil(1.5 * steps.missing)})}]"
            return


def _links(table: _Table, others: Mapping[str, _Table]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Columns of text whose values are, nearly all, a key of another table."""
    for name, column in table.columns.items():
        if column.kind != "str" or column.distinct < 2 or "unique" in column.keys:
            continue
        values = table.frame.lazy.select(pl.col(name).cast(pl.String)).drop_nulls()
        for other, target in others.items():
            for key, theirs in target.columns.items():
                if theirs.kind != "str" or "unique" not in theirs.keys:
                    continue
                known = target.frame.collect(target.frame.lazy.select(pl.col(key).cast(pl.String))).to_series()
                share = table.frame.collect(values.select((~pl.col(name).is_in(known.implode())).mean())).item()
                if share <= 1 - LINKED:
                    keys: dict[str, Any] = {"column": name, "references": f"{other}.{key}", "severity": "warn"}
                    keys["error_share"] = min(_up(1.25 * share + 0.01, 0.01), 1.0)
                    yield f"{100 * share:.3g}% of values are not in {other}.{key}", keys


def _comment(indent: str, text: str) -> Iterator[str]:
    """Lines of a comment: whatever text the data holds, it cannot end the comment."""
    return (f"{indent}# {line}" for line in textwrap.wrap(_one_line(text), _WIDTH - len(indent)))


def _flow(value: Any) -> str:
    """YAML in one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_flow(key)}: {_flow(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and not value.isprintable():
        return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    # within brackets a text is quoted where it must be in a line of this kind
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]


def _up(value: float, scale: float) -> float:
    """The next number above (or equal) that is round on the scale: with two digits of a number of that size."""
    return _round(value, scale, math.ceil)


def _down(value: float, scale: float) -> float:
    return _round(value, scale, math.floor)


def _round(value: float, scale: float, towards: Callable[[Fraction], int]) -> float:
    if not scale or not math.isfinite(value) or not math.isfinite(scale):
        return value
    digits = 1 - math.floor(math.log10(abs(scale)))
    step = Fraction(10**-digits) if digits < 0 else Fraction(1, 10**digits)
    return float(towards(Fraction(value) / step) * step)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
