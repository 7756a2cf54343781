"""One table for the checks, whatever it came as: pandas, Polars, or a Parquet file that is read in pieces."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from clearway.errors import ClearwayError
from clearway.schema import Kind, TableSchema

if TYPE_CHECKING:
    import pandas as pd

RAW = "\x00raw "
"""Head of the name under which a column is kept as it came, where it was cast to what the schema says it is."""
ROW = "\x00row"
"""Position of a row in the table, from 0."""

_CAST = {"int": pl.Int64, "float": pl.Float64, "str": pl.String, "bool": pl.Boolean}
_NUMBERS = ("int", "float")


@dataclass(frozen=True)
class Frame:
    """A table and how it is read."""

    lazy: pl.LazyFrame
    dtypes: Mapping[str, pl.DataType]
    streamed: bool
    """Whether it does not fit in memory by promise, so that queries run in pieces."""
    mixed: Mapping[str, str] = field(default_factory=dict)
    """Columns of Python objects that are of no one kind, and of what kinds they are. Their values are text here."""

    @property
    def engine(self) -> Literal["streaming", "in-memory"]:
        """How Polars runs queries over it."""
        return "streaming" if self.streamed else "in-memory"

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Run a query over the table."""
        return query.collect(engine=self.engine)

    def numbered(self) -> pl.LazyFrame:
        """The table with :data:`ROW`."""
        return self.lazy.with_row_index(ROW)


def frame_of(name: str, table: Any, columns: Collection[str] | None = None) -> Frame:
    """A table as Polars reads it; of a pandas table only ``columns``, if any are named.

    Parameters
    ----------
    name : str
        Of the table, for the error line.
    table : pandas DataFrame, or Polars DataFrame or LazyFrame
        A LazyFrame is read in pieces, as often as the checks need it, and is never held whole.
    columns : collection of str, optional

    Raises
    ------
    ClearwayError
        The table cannot be read, has two columns of one name, or one whose name stands for several.
    """
    mixed: dict[str, str] = {}
    if isinstance(table, pl.LazyFrame):
        try:
            schema = table.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ClearwayError(f"table {name} cannot be read: {' '.join(str(error).split())[:200]}") from None
        check_names(name, schema.names())
        return Frame(table, schema, streamed=True)
    if not isinstance(table, pl.DataFrame):
        table, mixed = _from_pandas(name, table, columns)
    check_names(name, table.columns)
    return Frame(table.lazy(), table.schema, streamed=False, mixed=mixed)


def check_names(table: str, names: Iterable[str]) -> None:
    """Check that no column has a name that stands for several in an expression of polars: ``*`` and ``^…$``.

    Raises
    ------
    ClearwayError
        One has.
    """
    for name in names:
        if name == "*" or (name.startswith("^") and name.endswith("$")):
            raise ClearwayError(f"table {table} has a column named {name!r}, which stands for several: rename it")


def _from_pandas(
    name: str, frame: "pd.DataFrame", columns: Collection[str] | None
) -> tuple[pl.DataFrame, dict[str, str]]:
    """A pandas table without its index. NaN is missing; columns of mixed Python objects become text."""
    import pandas as pd
    import pyarrow as pa

    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ClearwayError(f"table {name} has two columns named {twice[0]!r}: name each once")
    mixed: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    for label in frame.columns:
        if columns is not None and label not in columns:
            continue
        values = frame[label]
        if values.dtype == object:
            kind = pd.api.types.infer_dtype(values, skipna=True)
            if kind == "decimal":
                values = values.astype("float64")
            elif kind not in ("string", "boolean", "empty"):
                mixed[str(label)] = "mixed values" if kind.startswith("mixed") else kind
                values = values.map(str, na_action="ignore")
        try:
            arrays[str(label)] = pa.Array.from_pandas(values)
        except (pa.ArrowException, ValueError, TypeError) as error:
            cause = " ".join(str(error).split())[:160]
            raise ClearwayError(f"table {name}: column {label} cannot be read as one type: {cause}") from None
    made = pl.from_arrow(pa.table(arrays)) if arrays else pl.DataFrame()
    assert isinstance(made, pl.DataFrame)
    if not arrays and len(frame):  # a table without columns has rows all the same
        made = pl.DataFrame({ROW: range(len(frame))}).select([])
    return made, mixed


def canonical(frame: Frame, expected: TableSchema) -> pl.LazyFrame:
    """The table with every declared column of the type of its kind: Int64, Float64, String, Boolean, UTC time.

    What does not fit becomes missing, and stays readable under :data:`RAW`, where the check of the kind finds it. NaN
    is missing. So no later expression depends on how a column arrived. A table in memory is cast here, once for all
    that is asked of it.
    """
    changed: list[pl.Expr] = []
    for name, column in expected.columns.items():
        if name not in frame.dtypes:
            continue
        dtype, value = frame.dtypes[name], pl.col(name)
        if dtype.is_float():
            value = value.fill_nan(None)
        wanted = canonical_type(dtype, column.kind)
        if wanted != dtype:
            if column.kind == "timestamp":
                value = _to_utc(value, dtype)
            elif fits(dtype, column.kind) or dtype == pl.Null:
                value = value.cast(wanted, strict=False)
            else:
                value = pl.lit(None, dtype=wanted)
            raw = pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)
            changed.append(raw.alias(RAW + name))
        if wanted != dtype or dtype.is_float():
            changed.append(value.alias(name))
    if not changed:
        return frame.lazy
    cast = frame.lazy.with_columns(changed)
    return cast if frame.streamed else frame.collect(cast).lazy()


def canonical_type(dtype: pl.DataType, kind: Kind) -> pl.DataType:
    """The type in which the values of a kind are compared."""
    if kind != "timestamp":
        return _CAST[kind]()
    unit = dtype.time_unit if isinstance(dtype, pl.Datetime) else "us"
    return pl.Datetime(unit, "UTC")


def fits(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether a column of this type can hold values of the kind at all. A column of nothing fits every kind."""
    if dtype == pl.Null:
        return True
    if kind in _NUMBERS:
        return dtype.is_numeric()
    if kind == "str":
        return isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))
    if kind == "bool":
        return dtype == pl.Boolean
    return isinstance(dtype, pl.Datetime) and dtype.time_zone is not None


def is_text(dtype: pl.DataType) -> bool:
    """Whether values are text, from which a number might still be read."""
    return isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))


def type_name(dtype: pl.DataType) -> str:
    """A type in the words of the schema."""
    if is_text(dtype):
        return "text"
    if isinstance(dtype, pl.Datetime):
        return "timestamp" if dtype.time_zone else "timestamp without a zone"
    for name, found in (("int", dtype.is_integer()), ("float", dtype.is_numeric()), ("bool", dtype == pl.Boolean)):
        if found:
            return name
    return str(dtype).lower()


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, pl.Series):  # a list
        return str(value.to_list())
    return value if isinstance(value, (bool, int, str)) else str(value)


def _to_utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return value.dt.convert_time_zone("UTC")
    return pl.lit(None, dtype=canonical_type(dtype, "timestamp"))
