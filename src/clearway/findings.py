"""What was found where a check found something: the first bad rows, their values in words, and how the column lies."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from clearway.checks import DUPLICATES, RowCheck, number, percent
from clearway.frames import RAW, ROW, Frame, plain, type_name
from clearway.schema import Column

EXAMPLES = 5
"""Bad rows shown per check."""
SAMPLE = 1_000
"""Bad rows read to say what they hold."""
HEAD = 20_000
"""Rows in which bad ones are looked for first."""
BINS = 24
CATEGORIES = 12
DRAWN_ROWS = 1_000_000
"""Of a table that is read in pieces, categories are counted among about as many evenly spaced rows."""
_QUANTILE_ROWS = 100_000
"""Rows from which the bulk of a column is told."""


class Distribution(BaseModel):
    """How the values of a column lie: a small picture in numbers, for the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["numeric", "timestamp", "categorical"]
    edges: tuple[float, ...] = ()
    """Numeric and timestamp: edges of the bins, one more than ``counts``; timestamps in seconds since 1970 (UTC). The
    first and the last bin may be far wider than the others, to hold outliers: draw all bins equally wide."""
    labels: tuple[str, ...] = ()
    """Categorical: the most frequent values, most frequent first, one per count; the last may stand for all others."""
    counts: tuple[int, ...]
    """Rows in each bin or category."""
    low: float | None = None
    """Smallest allowed value, in the unit of ``edges``; null where there is none."""
    high: float | None = None
    """Largest allowed value."""
    allowed: tuple[str, ...] | None = None
    """Categorical: those of ``labels`` that are allowed; null where all are."""


def bad_rows(frame: Frame, bad: pl.Expr, columns: Sequence[str], failures: int) -> pl.DataFrame:
    """The first bad rows, up to :data:`SAMPLE`: :data:`ROW` and the columns. ``failures`` says how many there are."""
    for rows in (HEAD, None):  # most often the beginning of the table holds enough of them
        part = (frame.numbered().head(rows) if rows else frame.numbered()).filter(bad)
        found = part.select(ROW, *dict.fromkeys(columns)).head(SAMPLE)
        read = frame.collect(found)
        if len(read) >= min(failures, 4 * EXAMPLES):
            break
    return read


def examples(rows: pl.DataFrame, columns: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The first bad rows as JSON has them: ``row``, and the values that were checked."""
    return tuple(
        {"row": row[ROW], **{name.removeprefix(RAW): plain(row[name]) for name in dict.fromkeys(columns)}}
        for row in rows.head(EXAMPLES).iter_rows(named=True)
    )


def words(
    check: RowCheck, frame: Frame, rows: pl.DataFrame, failures: int, of: int, extremes: tuple[Any, Any] | None
) -> str:
    """What was found, in words.

    Parameters
    ----------
    check, frame, rows
        The check, its table, and the first bad rows.
    failures, of
        How many rows are bad, of how many.
    extremes : pair or None
        Smallest and largest bad value, of a check of the range.
    """
    share = f"{counted(failures)} ({percent(failures / of if of else 1.0)})"
    if check.says == "nulls":
        return f"{percent(failures / of if of else 1.0)} missing ({counted(failures)})"
    if check.says == "repeats":
        return f"{counted(failures)} that " + ("repeat an earlier one" if check.check == DUPLICATES else "share theirs")
    if check.says == "range" and extremes is not None:
        low, high = (number(plain(end)) for end in extremes)
        return f"{low if low == high else f'{low} to {high}'} in {counted(failures)}"
    if check.says == "rows" or check.subject is None:
        return share
    if check.says == "kind":
        name = check.subject.removeprefix(RAW)
        kind = frame.mixed.get(name) or type_name(frame.dtypes[name])
        kind += " beyond 64 bits" if kind == check.expected else ""
        return f"{kind} in {counted(failures)}, such as {some(rows[check.subject])}"
    return f"{some(rows[check.subject])} in {share}"


def some(values: pl.Series) -> str:
    """Up to three different values."""
    distinct = [repr(plain(value)) for value in values.drop_nulls().unique(maintain_order=True).head(4)]
    return ", ".join(distinct[:3]) + (", …" if len(distinct) > 3 else "") if distinct else "missing values"


def counted(rows: int) -> str:
    """A number of rows in words."""
    return f"{rows:,} row{'s' if rows != 1 else ''}"


def distribution(frame: Frame, name: str, column: Column | None, bad: pl.Expr | None) -> Distribution | None:
    """How a column lies; None where it holds nothing that can be drawn.

    Parameters
    ----------
    name : str
        Of the column, perhaps as it came (:data:`clearway.frames.RAW`).
    column : Column or None
        Gives the allowed bounds.
    bad : Expr or None
        Which rows the check refuses for their value, which tells the allowed categories from the others.
    """
    dtype = frame.lazy.collect_schema()[name]
    if isinstance(dtype, pl.Datetime):
        seconds = pl.col(name).dt.epoch("us") / 1e6
        return _binned(frame, seconds, "timestamp", *_bounds(column))
    if dtype.is_numeric():
        value = pl.col(name).cast(pl.Float64)
        return _binned(frame, pl.when(value.is_finite()).then(value), "numeric", *_bounds(column))
    if dtype.is_nested() or dtype == pl.Object:
        return None
    return _categories(frame, name, bad)


def _bounds(column: Column | None) -> tuple[float | None, float | None]:
    def seconds(bound: Any) -> float | None:
        return bound.timestamp() if isinstance(bound, datetime) else bound

    return (None, None) if column is None else (seconds(column.min), seconds(column.max))


def _binned(
    frame: Frame, value: pl.Expr, kind: Literal["numeric", "timestamp"], low: float | None, high: float | None
) -> Distribution | None:
    """Bins of equal width over the bulk of the values, and one more at each end for what lies far out."""
    table = frame.lazy.select(value.alias("v"))
    least, most, rows = frame.collect(table.select(pl.min("v"), most=pl.max("v"), rows=pl.count("v"))).row(0)
    if least is None:
        return None
    stride = max(1, rows // _QUANTILE_ROWS)
    drawn = frame.collect(table.filter(pl.col("v").is_not_null()).select(pl.col("v").gather_every(stride)))["v"]
    first, last = np.quantile(drawn.to_numpy(), [0.01, 0.99])
    reach = 2 * (last - first) or abs(last) or 1.0
    inner = [max(least, first - reach), min(most, last + reach)]
    for bound in (low, high):  # a limit near the bulk is in the picture, even where no value reaches it
        if bound is not None and first - 2 * reach <= bound <= last + 2 * reach:
            inner = [min(inner[0], bound), max(inner[1], bound)]
    if inner[1] - inner[0] <= 1e-9 * abs(inner[0]):
        half = max(0.5, 1e-6 * abs(inner[0]))
        inner = [inner[0] - half, inner[1] + half]
    edges = _edges(inner, low, high)
    edges = ([least] if least < edges[0] else []) + edges + ([most] if most > edges[-1] else [])
    labels = [str(position) for position in range(len(edges) - 1)]  # those that Polars makes of edges may be equal
    place = pl.col("v").cut(edges[1:-1], labels=labels, left_closed=True).to_physical()
    counts = frame.collect(table.filter(pl.col("v").is_not_null()).group_by(place.alias("bin")).len())
    heights = [0] * (len(edges) - 1)
    for bin_, count in counts.iter_rows():
        heights[bin_] = count
    return Distribution(kind=kind, edges=tuple(map(float, edges)), counts=tuple(heights), low=low, high=high)


def _edges(inner: Sequence[float], low: float | None, high: float | None) -> list[float]:
    """Edges of the bins over the bulk. A limit is one of them, so that no bin holds both allowed values and others."""
    edges = np.linspace(inner[0], inner[1], BINS - 1)
    beyond = None if high is None else float(np.nextafter(high, np.inf))  # the limit itself is allowed
    for limit, bound in ((low, low), (high, beyond)):
        if limit is not None and bound is not None and inner[0] <= limit <= inner[1]:
            moved = edges.copy()
            moved[np.argmin(np.abs(edges - bound))] = bound
            edges = moved if (np.diff(moved) > 0).all() else edges
    return [float(edge) for edge in edges]


def _categories(frame: Frame, name: str, bad: pl.Expr | None) -> Distribution | None:
    """The most frequent values, half of the places kept for those that are refused."""
    values = frame.lazy.select(name)
    if frame.streamed:
        values = values.gather_every(max(1, frame.collect(values.select(pl.len())).item() // DRAWN_ROWS))
    grouped = values.filter(pl.col(name).is_not_null()).group_by(name).agg(n=pl.len())
    refused = bad if bad is not None else pl.lit(value=False)
    asked = grouped.with_columns(v=pl.col(name).cast(pl.String), bad=refused).select("v", "n", "bad")
    counts = frame.collect(asked).sort("n", "v", descending=[True, False])
    if not len(counts):
        return None
    wrong, right = counts.filter("bad"), counts.filter(~pl.col("bad"))
    places = CATEGORIES if len(counts) <= CATEGORIES else CATEGORIES - 1
    shown_wrong = wrong.head(max(places // 2, places - len(right)))
    shown = pl.concat([shown_wrong, right.head(places - len(shown_wrong))]).sort("n", "v", descending=[True, False])
    labels, heights = [str(label)[:60] for label in shown["v"]], shown["n"].to_list()
    rest = int(counts["n"].sum()) - sum(heights)
    if rest:
        labels, heights = [*labels, f"{len(counts) - len(shown):,} others"], [*heights, rest]
    allowed = None
    if bad is not None:
        allowed = tuple(str(label)[:60] for label in shown.filter(~pl.col("bad"))["v"])
    return Distribution(kind="categorical", labels=tuple(labels), counts=tuple(heights), allowed=allowed)
