"""The event rows of one feature view, in the order in which they became known, ready for an online store."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key, serialize_entity_key_prefix
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Bool, Float32, Float64, Int32, Int64, String
from feast.value_type import ValueType

from clearway.errors import ClearwayError
from clearway.feature_store.embedded import EncodedRow, encode_values
from clearway.instants import EPOCH

FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]

_ATTRIBUTES = {
    Float64: "double_val",
    Float32: "float_val",
    Int64: "int64_val",
    Int32: "int32_val",
    String: "string_val",
    Bool: "bool_val",
}
_POLARS = {
    Float64: pl.Float64,
    Float32: pl.Float64,
    Int64: pl.Int64,
    Int32: pl.Int32,
    String: pl.String,
    Bool: pl.Boolean,
}
_KNOWN, _CREATED, _ROW = "\0known", "\0created", "\0row"
FEW = 1000
_TEXT, _DOUBLE = struct.Struct("<II"), struct.Struct("<d")
_STRING = ValueType.STRING.value
_NUMBER = Value(double_val=0.0).SerializeToString()[: -_DOUBLE.size]
"""A serialised Float64 without the number's eight bytes, which are its last."""


class EventRows:
    """Rows sorted by known time; of one instant by created time (none first), then as they came.

    Parameters
    ----------
    view
        Its source names the timestamp field, and the created column if there is one.
    frame
        Join keys, timestamp field, created column, fields. A time without a zone is UTC; NaN is missing as null is.
        Rows without a join key or a known time match nothing, and are left out.

    Raises
    ------
    ClearwayError
        A column is missing, or does not hold values of its type.
    """

    def __init__(self, view: FeatureView, frame: pl.DataFrame) -> None:
        self.view = view
        self._keys = {field.name: field.dtype for field in sorted(view.entity_columns, key=lambda field: field.name)}
        self._fields = {field.name: field.dtype for field in view.features}
        source = view.batch_source
        for name in columns_of(view):
            if name not in frame.columns:
                raise ClearwayError(f"event rows of view {view.name!r}: column {name!r} is missing: add it")
        columns = [self._typed(frame[name], dtype) for name, dtype in {**self._keys, **self._fields}.items()]
        known = self._micros(frame[source.timestamp_field]).alias(_KNOWN)
        created = source.created_timestamp_column
        made = self._micros(frame[created]) if created else pl.repeat(None, len(frame), dtype=pl.Int64, eager=True)
        table = pl.DataFrame([*columns, known, made.alias(_CREATED)]).drop_nulls([*self._keys, _KNOWN])
        table = table.sort(_KNOWN, _CREATED, nulls_last=False, maintain_order=True)
        self._table = table.rechunk()
        self._columns = self._table.to_dict()
        self._known: npt.NDArray[np.int64] = self._columns[_KNOWN].to_numpy()

    def __len__(self) -> int:
        return len(self._known)

    def count_until(self, time: int) -> int:
        """How many rows were known at ``time`` (µs since 1970), the instant itself included."""
        return int(np.searchsorted(self._known, time, side="right"))

    def newest(self, start: int, end: int) -> list[int]:
        """Of the rows from ``start`` to ``end`` the newest of each key, sorted by key: neighbours in a store."""
        names = list(self._keys)
        if end - start <= FEW:  # Polars takes a millisecond for however few
            keys = zip(*(self._columns[name].slice(start, end - start).to_list() for name in names), strict=True)
            return [row for _, row in sorted({key: row for row, key in enumerate(keys, start)}.items())]
        part = self._table.slice(start, end - start).select(names).with_row_index(_ROW, offset=start)
        return part.unique(names, keep="last").sort(names)[_ROW].to_list()

    def known(self, rows: Sequence[int]) -> list[int]:
        """When each of the rows became known, in microseconds since 1970."""
        found: list[int] = self._known[list(rows)].tolist()
        return found

    def times(self, rows: Sequence[int]) -> list[datetime]:
        """When each of the rows became known, UTC."""
        return [EPOCH + timedelta(microseconds=time) for time in self.known(rows)]

    def entity_keys(self, rows: Sequence[int]) -> list[EntityKey]:
        """The key of each row, as Feast asks a store for it."""
        names = list(self._keys)
        values = [self._protos(name, rows, dtype) for name, dtype in self._keys.items()]
        return [EntityKey(join_keys=names, entity_values=row) for row in zip(*values, strict=True)]

    def for_feast(self, rows: Sequence[int]) -> list[FeastRow]:
        """The rows as Feast's ``online_write_batch`` takes them."""
        protos = [self._protos(name, rows, dtype) for name, dtype in self._fields.items()]
        values = [dict(zip(self._fields, row, strict=True)) for row in zip(*protos, strict=True)]
        created = [None if time is None else EPOCH + timedelta(microseconds=time) for time in self._created(rows)]
        return list(zip(self.entity_keys(rows), values, self.times(rows), created, strict=True))

    def encoded(self, rows: Sequence[int], version: int) -> Iterator[EncodedRow]:
        """The rows as the embedded store holds them: the same content, made faster."""
        keys, known, created = self.key_bytes(rows, version), self.known(rows), self._created(rows)
        columns = [self._encoded_column(name, rows, dtype) for name, dtype in self._fields.items()]
        # protos that follow one another are merged: maps of one feature each make the map of all
        content = map(b"".join, zip(*columns, strict=True))
        return zip(keys, known, created, content, strict=True)

    def key_bytes(self, rows: Sequence[int], version: int) -> list[bytes]:
        """The key of each row as Feast's ``serialize_entity_key`` has it."""
        if any(dtype != String for dtype in self._keys.values()):
            keys = self.entity_keys(rows)
            return [serialize_entity_key(key, entity_key_serialization_version=version) for key in keys]
        prefix = serialize_entity_key_prefix(list(self._keys), entity_key_serialization_version=version)
        texts = zip(*(self._values(name, rows) for name in self._keys), strict=True)
        return [prefix + b"".join(map(_text_bytes, row)) for row in texts]

    def value_bytes(self, name: str, rows: Sequence[int]) -> list[bytes]:
        """The value of a feature in each of the rows as a serialised proto of Feast."""
        dtype = self._fields[name]
        if dtype != Float64:
            return [value.SerializeToString() for value in self._protos(name, rows, dtype)]
        missing = b""  # an unset proto
        return [missing if value is None else _NUMBER + _DOUBLE.pack(value) for value in self._values(name, rows)]

    def fingerprint(self, end: int) -> str:
        """SHA-256 of the first ``end`` rows; rows of several keys may have come in any order within one instant."""
        table = self._table.slice(0, end).sort(_KNOWN, _CREATED, *self._keys, maintain_order=True)
        digest = hashlib.sha256(repr([*self._keys, *self._fields]).encode())
        for column in table.iter_columns():
            digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
            if column.dtype == pl.String:
                digest.update(column.str.len_bytes().fill_null(0).to_numpy().tobytes())
                digest.update("".join(column.drop_nulls().to_list()).encode())
            elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
                digest.update(column.drop_nulls().to_numpy().tobytes())
            else:
                digest.update(repr(column.to_list()).encode())
        return digest.hexdigest()

    def _created(self, rows: Sequence[int]) -> list[int | None]:
        return self._values(_CREATED, rows)

    def _micros(self, column: pl.Series) -> pl.Series:
        if not isinstance(column.dtype, pl.Datetime):
            raise self._wrong(column, "time")
        if column.dtype.time_unit != "ns":
            return column.dt.cast_time_unit("us").to_physical()
        # a row is never known before its time: what is finer than the store's microseconds is rounded up
        return (column.to_physical() + 999) // 1000

    def _typed(self, column: pl.Series, dtype: Any) -> pl.Series:
        """The column with the type of its field; NaN becomes null."""
        given = column.dtype
        wanted = _POLARS.get(dtype)
        if wanted is None or given == pl.Null:
            return column if wanted is None else column.cast(wanted)
        text = given == pl.String or isinstance(given, pl.Categorical | pl.Enum)
        fits = text if wanted == pl.String else given == pl.Boolean if wanted == pl.Boolean else given.is_numeric()
        if not fits:
            raise self._wrong(column, dtype)
        if given.is_float():
            column = column.fill_nan(None)
        if wanted in (pl.Int64, pl.Int32) and not given.is_integer() and not (column == column.round()).all():
            raise self._wrong(column, dtype)
        try:
            return column.cast(wanted)
        except pl.exceptions.PolarsError:
            raise self._wrong(column, dtype) from None

    def _wrong(self, column: pl.Series, dtype: Any) -> ClearwayError:
        example = column.drop_nulls().head(1).to_list()
        return ClearwayError(
            f"event rows of view {self.view.name!r}: column {column.name!r} holds {column.dtype}, such as "
            f"{example[0] if example else None!r}; the view says {dtype}: correct one of them"
        )

    def _values(self, name: str, rows: Sequence[int]) -> list[Any]:
        first, last = min(rows, default=0), max(rows, default=-1)
        if last - first < FEW:
            near = self._columns[name].slice(first, last - first + 1).to_list()
            return [near[row - first] for row in rows]
        return self._columns[name].gather(list(rows)).to_list()

    def _protos(self, name: str, rows: Sequence[int], dtype: Any) -> list[Value]:
        """Feast's protos of the values; unset where there is none."""
        attribute = _ATTRIBUTES.get(dtype)
        if attribute is None:
            return list(python_values_to_proto_values(self._values(name, rows), dtype.to_value_type()))
        return [Value() if value is None else Value(**{attribute: value}) for value in self._values(name, rows)]

    def _encoded_column(self, name: str, rows: Sequence[int], dtype: Any) -> list[bytes]:
        """A Feast ``Map`` of one feature for each of the rows."""
        if dtype != Float64:
            return [encode_values({name: value}) for value in self._protos(name, rows, dtype)]
        number, missing = _number_and_none(name)
        values = self._values(name, rows)
        return [missing if value is None else number + _DOUBLE.pack(value) for value in values]


def columns_of(view: FeatureView) -> list[str]:
    """Names of the columns that the event rows of a view have."""
    source = view.batch_source
    times = [source.timestamp_field, *([source.created_timestamp_column] if source.created_timestamp_column else [])]
    return [*(field.name for field in (*view.entity_columns, *view.features)), *times]


@lru_cache
def _number_and_none(name: str) -> tuple[bytes, bytes]:
    """A Feast ``Map`` of one Float64 without the number's eight bytes, which are its last; and one without a value."""
    return encode_values({name: Value(double_val=0.0)})[: -_DOUBLE.size], encode_values({name: Value()})


def _text_bytes(text: str) -> bytes:
    """A text as Feast's ``serialize_entity_key`` has it."""
    content = text.encode()
    return _TEXT.pack(_STRING, len(content)) + content
