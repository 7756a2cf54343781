"""The protocol of MLflow's scoring server, ``POST /invocations``: its requests as columns, its answers as records.

What MLflow's own server would answer for the registered model (:mod:`clearway.mlflow_model`) is answered here, checked
more strictly: a column that is no feature is refused, and so is a record that lacks one.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clearway.encoding import Feature, InputSchema, NumericFeature
from clearway.serving.bodies import CSV, parse_json
from clearway.serving.requests import MAX_NAME, Columns, RequestError, as_columns

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_TRUTHS = {"true": True, "false": False}


def read_invocation(
    content: bytes, kind: str, schema: InputSchema, also: Mapping[str, str], max_rows: int
) -> Columns | list[Any]:
    """The rows of an invocation, as columns where they all have the same fields.

    Parameters
    ----------
    content, kind
        The body, and its media type: JSON or CSV.
    schema
        Features, by which the cells of a CSV are read.
    also
        Request fields that features are looked up by: name → ``float``, ``int``, ``bool`` or text of another kind.
    max_rows
        ``serving.max_rows``.

    Raises
    ------
    RequestError
        The body is not what MLflow's clients send (400 or 422), or has too many rows (413).
    """
    rows = _read_csv(content, schema, also, max_rows) if kind == CSV else _read_json(content)
    count = rows.count if isinstance(rows, Columns) else len(rows)
    if count == 0:
        raise RequestError(422, "there are no rows")
    if count > max_rows:
        raise RequestError(413, f"there are {count} rows, more than serving.max_rows = {max_rows}")
    return rows if isinstance(rows, Columns) else as_columns(rows) or rows


def _read_json(content: bytes) -> Columns | list[Any]:
    body = _parse(content)
    if type(body) is not dict:
        raise RequestError(422, f"the body must be an object with one of {', '.join(FORMATS)}")
    if unknown := body.keys() - {*FORMATS, "params"}:
        raise RequestError(422, f"unknown field {min(unknown)[:MAX_NAME]!r}: send one of {', '.join(FORMATS)}")
    named = [name for name in FORMATS if name in body]
    if len(named) != 1:
        raise RequestError(422, f"the body must have exactly one of {', '.join(FORMATS)}")
    if body.get("params"):
        raise RequestError(422, "params must be left out: the model takes none")
    name, value = named[0], body[named[0]]
    if name == "dataframe_split":
        return _split(value)
    if name == "inputs" and type(value) is dict:
        return _by_column(value)
    if type(value) is not list:
        raise RequestError(422, f"{name} must be an array of rows")
    for place, row in enumerate(value):
        if type(row) is not dict:
            raise RequestError(422, f"{name}[{place}] must be an object of features by name")
    return value


def _parse(content: bytes) -> Any:
    """JSON as MLflow's clients write it: what a DataFrame lacks is NaN, which is no JSON."""
    try:
        return parse_json(content)
    except RequestError:
        if b"NaN" not in content:
            raise
        try:
            written = json.dumps(json.loads(content, parse_constant=_constant)).encode()
        except (ValueError, RecursionError):
            written = content
        # again, because Python's parser lets through halves of surrogate pairs and numbers beyond float64
        return parse_json(written)


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(name)


def _split(value: Any) -> Columns:
    if type(value) is not dict or not value.keys() <= {"columns", "data", "index"}:
        raise RequestError(422, "dataframe_split must be an object of columns and data, and index if need be")
    names, data = value.get("columns"), value.get("data")
    if type(names) is not list or not all(type(name) is str for name in names) or len(set(names)) != len(names):
        raise RequestError(422, "dataframe_split: columns must be an array of different names")
    if type(data) is not list:
        raise RequestError(422, "dataframe_split: data must be an array of rows")
    for place, row in enumerate(data):
        if type(row) is not list or len(row) != len(names):
            raise RequestError(422, f"dataframe_split: data[{place}] must be an array of {len(names)} values")
    return Columns(dict(zip(names, zip(*data, strict=True), strict=True)) if data else {}, len(data))


def _by_column(value: Mapping[str, Any]) -> Columns:
    """``inputs`` by name: of each feature an array of values, or all of them single values of one row."""
    lists = [type(values) is list for values in value.values()]
    if not any(lists):
        return Columns({name: [one] for name, one in value.items()}, 1 if value else 0)
    counts = {len(values) for values in value.values() if type(values) is list}
    if not all(lists) or len(counts) != 1:
        raise RequestError(422, "inputs: each feature needs an array, and all arrays the same length")
    return Columns(value, counts.pop())


def _read_csv(content: bytes, schema: InputSchema, also: Mapping[str, str], max_rows: int) -> Columns:
    """A table with a header; an empty cell is a value that is not known."""
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise RequestError(422, f"the header names {next(n for n in names if names.count(n) > 1)!r} twice")
        lines = []
        for line in reader:
            if not line:
                continue
            if len(line) != len(names):
                raise RequestError(422, f"line {reader.line_num} has {len(line)} cells, the header {len(names)}")
            lines.append(line)
            if len(lines) > max_rows:
                raise RequestError(413, f"there are more rows than serving.max_rows = {max_rows}")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise RequestError(400, f"the body is not valid CSV: line {reader.line_num}: {error}") from None
    readers = {name: _CELLS.get(kind, str) for name, kind in also.items()}
    readers |= {feature.name: _cell_reader(feature) for feature in schema.features}
    columns = zip(*lines, strict=True) if lines else [()] * len(names)
    return Columns(
        {name: _cells(column, readers.get(name, str)) for name, column in zip(names, columns, strict=True)}, len(lines)
    )


def _cells(column: Sequence[str], read: Callable[[str], Any]) -> list[Any]:
    if read is str:
        return [cell or None for cell in column]
    return [read(cell) if cell else None for cell in column]


def _cell_reader(feature: Feature) -> Callable[[str], Any]:
    if isinstance(feature, NumericFeature):
        return _number
    return _truth if feature.declared is not None and feature.declared.kind == "bool" else str


def _number(cell: str) -> Any:
    """A number; a cell that is none stays text, and is refused by name where features are checked."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return value if math.isfinite(value) and "_" not in cell else cell


def _whole(cell: str) -> Any:
    """A whole number, exact beyond 2⁵³ too."""
    value = _number(cell)
    return int(cell) if type(value) is float and cell.lstrip("+-").isdigit() and len(cell) <= 20 else value


def _truth(cell: str) -> Any:
    return _TRUTHS.get(cell.lower(), cell)


_CELLS: Mapping[str, Callable[[str], Any]] = {"float": _number, "int": _whole, "bool": _truth}


def predictions(answers: Sequence[Mapping[str, Any]], *, binary: bool) -> dict[str, Any]:
    """The answer to an invocation: of each row ``score``, ``answer``, and of several classes each one's probability."""
    return {
        "predictions": [
            {
                "score": one["score"],
                "answer": bool(one["label"]) if binary else one["label"],
                **{f"probability_{name}": share for name, share in one.get("probabilities", {}).items()},
            }
            for one in answers
        ]
    }


def refusal(status: int, message: str) -> dict[str, Any]:
    """A refused invocation, as MLflow's errors are written."""
    codes = {404: "RESOURCE_DOES_NOT_EXIST", 503: "TEMPORARILY_UNAVAILABLE"}
    return {"error_code": codes.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"), "message": message}
