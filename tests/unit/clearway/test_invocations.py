"""MLflow's protocol: the five forms of a table, what is refused, and how predictions are written."""

import json
from typing import Any

import pytest

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.schema import Column
from clearway.serving.bodies import CSV, JSON
from clearway.serving.invocations import predictions, read_invocation, refusal
from clearway.serving.requests import Columns, RequestError

SCHEMA = InputSchema(
    features=(
        NumericFeature(name="height"),
        NumericFeature(name="rings", declared=Column(kind="int")),
        CategoricalFeature(name="kind", categories=("elm", "oak")),
        CategoricalFeature(name="old", declared=Column(kind="bool", nullable=True), categories=("False", "True")),
    )
)
ROWS = [
    {"height": 1.5, "rings": 3, "kind": "oak", "old": True},
    {"height": None, "rings": 4, "kind": None, "old": None},
]


def read(content: Any, kind: str = JSON) -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    found = read_invocation(body, kind, SCHEMA, {"seen": "int", "key": "key"}, 3)
    return found.rows() if isinstance(found, Columns) else found


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": ROWS},
        {"instances": ROWS, "params": {}},
        {"inputs": ROWS},
        {"inputs": {name: [row[name] for row in ROWS] for name in ROWS[0]}},
        {"dataframe_split": {"index": [0, 1], "columns": list(ROWS[0]), "data": [list(r.values()) for r in ROWS]}},
        b'{"dataframe_records": ['
        + json.dumps(ROWS[0]).encode()
        + b', {"height": NaN, "rings": 4, "kind": NaN, "old": NaN}]}',
    ],
)
def test_each_form_of_a_table_is_the_same_rows(body: Any) -> None:
    assert read(body) == ROWS


def test_csv_is_read_by_the_kind_of_each_feature() -> None:
    text = "height,rings,kind,old,seen,key\r\n1.5,3,oak,TRUE,12345678901234567,007\n,4,,,,\n\n"
    assert read(text.encode(), CSV) == [
        {**ROWS[0], "seen": 12345678901234567, "key": "007"},
        {**ROWS[1], "seen": None, "key": None},
    ]
    assert read("\ufeffheight\n1".encode(), CSV) == [{"height": 1.0}]


@pytest.mark.parametrize("cell", ["high", "nan", "inf", "1_000", "1e999", "0x10"])
def test_cells_that_are_no_number_stay_text_to_be_refused_by_name(cell: str) -> None:
    assert read(f"height\n{cell}".encode(), CSV) == [{"height": cell}]


def test_single_values_by_name_are_one_row() -> None:
    assert read({"inputs": ROWS[0]}) == ROWS[:1]


def test_records_of_different_fields_stay_rows() -> None:
    assert read({"dataframe_records": [{"a": 1}, {"b": 1}]}) == [{"a": 1}, {"b": 1}]


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"{", JSON, 400, "not valid JSON"),
        (b'{"inputs": {"a": [Infinity, NaN]}}', JSON, 400, "not valid JSON"),
        (b'{"inputs": {"a": [1e999, NaN]}}', JSON, 400, "not valid JSON"),
        (b'{"inputs": {"a": ["\\ud800", NaN]}}', JSON, 400, "not valid JSON"),
        (b'{"inputs": {"a": [' + b"1" * 5000 + b", NaN]}}", JSON, 400, "not valid JSON"),
        (b'{"NaN":' + b"[" * 100_000, JSON, 400, "not valid JSON"),
        ([1], JSON, 422, "must be an object"),
        ({}, JSON, 422, "exactly one of dataframe_split"),
        ({"inputs": ROWS, "instances": ROWS}, JSON, 422, "exactly one of"),
        ({"inputs": ROWS, "else": 1}, JSON, 422, "unknown field 'else'"),
        ({"inputs": ROWS, "params": {"a": 1}}, JSON, 422, "params must be left out"),
        ({"inputs": []}, JSON, 422, "no rows"),
        ({"inputs": {}}, JSON, 422, "no rows"),
        ({"inputs": ROWS * 2}, JSON, 413, "4 rows, more than serving.max_rows = 3"),
        ({"inputs": {"a": [1, 2], "b": [1]}}, JSON, 422, "same length"),
        ({"inputs": {"a": [1], "b": 1}}, JSON, 422, "same length"),
        ({"inputs": "rows"}, JSON, 422, "inputs must be an array"),
        ({"instances": [[1, 2]]}, JSON, 422, "instances[0] must be an object"),
        ({"dataframe_records": {"a": [1]}}, JSON, 422, "dataframe_records must be an array"),
        ({"dataframe_split": [1]}, JSON, 422, "dataframe_split must be"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, JSON, 422, "different names"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, JSON, 422, "data[0] must be an array of 1"),
        ({"dataframe_split": {"columns": ["a"], "data": []}}, JSON, 422, "no rows"),
        ({"dataframe_split": {"data": [[1]]}}, JSON, 422, "columns must be"),
        (b"", CSV, 422, "no rows"),
        (b"a,b", CSV, 422, "no rows"),
        (b"a,a\n1,2", CSV, 422, "the header names 'a' twice"),
        (b"a,b\n1", CSV, 422, "line 2 has 1 cells, the header 2"),
        (b"a\n1\n2\n3\n4", CSV, 413, "more rows than serving.max_rows = 3"),
        (b'a\n"x', CSV, 400, "not valid CSV"),
        (b"a\n\xff", CSV, 400, "not UTF-8"),
        (b"a\n" + b"x" * 200_000, CSV, 400, "not valid CSV"),
    ],
)
def test_what_is_no_table_is_refused(body: Any, kind: str, status: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(body, kind)
    assert (caught.value.status, said in str(caught.value)) == (status, True), str(caught.value)


def test_predictions_are_records_as_the_registered_model_answers() -> None:
    assert predictions([{"score": 0.7, "label": 1}], binary=True) == {"predictions": [{"score": 0.7, "answer": True}]}
    several = {"score": 0.7, "label": "b", "probabilities": {"a": 0.3, "b": 0.7}}
    assert predictions([several], binary=False)["predictions"] == [
        {"score": 0.7, "answer": "b", "probability_a": 0.3, "probability_b": 0.7}
    ]


def test_refusals_have_mlflows_codes() -> None:
    assert refusal(422, "why") == {"error_code": "BAD_REQUEST", "message": "why"}
    assert refusal(500, "why")["error_code"] == "INTERNAL_ERROR"
