"""The Open Inference Protocol: what is read from a request, what is refused by name, and how an answer is written."""

from typing import Any

import pytest

from clearway.encoding import CategoricalFeature, NumericFeature
from clearway.schema import Column
from clearway.serving.open_inference import (
    InferRequest,
    check_outputs,
    datatype_of,
    infer_response,
    output_tensors,
    read_infer,
)
from clearway.serving.requests import Columns, RequestError
from clearway.target import BINARY, Target

CLASSES = Target(kind="multiclass", classes=("a", "b"))
NUMBER = Target(kind="regression", centre=1.0, spread=2.0)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "height", "shape": [2], "datatype": "FP64", "data": [1.5, None], **changes}


def read(body: Any, **headers: bytes) -> InferRequest:
    return read_infer({name.replace("_", "-").encode(): value for name, value in headers.items()}, body, "trees", 3)


def test_each_input_is_a_column() -> None:
    colour = {"name": "colour", "shape": [2, 1], "datatype": "BYTES", "data": [["red"], [""]]}
    flat = {**colour, "name": "kind", "data": ["x", None], "parameters": {"content_type": "str"}}
    read_one = read(
        {"id": "42", "inputs": [tensor(), colour, flat], "parameters": {"a": 1}, "outputs": [{"name": "o"}]}
    )
    assert read_one == InferRequest(
        "42", Columns({"height": [1.5, None], "colour": ["red", ""], "kind": ["x", None]}, 2), ("o",)
    )
    assert read({"inputs": [tensor()], "outputs": []}).outputs is None


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-128, 127]),
        ("UINT8", [0, 255]),
        ("INT64", [-(2**63), None]),
        ("UINT64", [2**64 - 1, 0]),
        ("FP16", [1, 0.5]),
        ("FP32", [1e30, None]),
        ("BYTES", ["", None]),
    ],
)
def test_values_of_each_datatype_are_taken_as_they_are(datatype: str, values: list[Any]) -> None:
    assert read({"inputs": [tensor(datatype=datatype, data=values)]}).columns.values["height"] == values


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 422, "must be an object"),
        ({}, 422, "inputs must be an array"),
        ({"inputs": []}, 422, "at least one tensor"),
        ({"inputs": [tensor()], "id": 7}, 422, "id must be a string"),
        ({"inputs": [tensor()], "id": ""}, 422, "id must be a string of 1 to"),
        ({"inputs": [tensor()], "model_name": "shrubs"}, 422, "model_name"),
        ({"inputs": [tensor()], "extra": 7}, 422, "unknown field 'extra'"),
        ({"inputs": [tensor()], "parameters": 7}, 422, "parameters must be an object"),
        ({"inputs": [tensor()], "outputs": {}}, 422, "outputs must be an array"),
        ({"inputs": [tensor()], "outputs": [{"name": 3}]}, 422, "outputs[0]: name"),
        ({"inputs": [tensor()], "outputs": [{"name": "o", "x": 3}]}, 422, "unknown field 'x'"),
        ({"inputs": [3]}, 422, "inputs[0] must be an object"),
        ({"inputs": [tensor(name=None)]}, 422, "inputs[0]: name must be a string"),
        ({"inputs": [tensor(), tensor()]}, 422, "'height' stands there twice"),
        ({"inputs": [tensor(), tensor(name="b", shape=[1], data=[1])]}, 422, "'b' has 1 rows, the inputs before it 2"),
        ({"inputs": [tensor(datatype="STRING")]}, 422, "'height': datatype must be one of BOOL"),
        ({"inputs": [tensor(datatype=["FP64"])]}, 422, "'height': datatype must be one of"),
        ({"inputs": [tensor(shape=[1, 2])]}, 422, "'height': shape must be [rows] or [rows, 1], not [1,2]"),
        ({"inputs": [tensor(shape=[-1])]}, 422, "'height': shape must be"),
        ({"inputs": [tensor(shape=[True])]}, 422, "'height': shape must be"),
        ({"inputs": [tensor(shape=[3])]}, 422, "'height': shape says 3 rows, data has 2"),
        ({"inputs": [tensor(shape=[0], data=[])]}, 422, "'height': shape says 0 rows"),
        ({"inputs": [tensor(shape=[4], data=[1] * 4)]}, 413, "'height' has 4 rows, more than serving.max_rows = 3"),
        ({"inputs": [tensor(shape=[10**18])]}, 413, "'height' has 1000000000000000000 rows"),
        ({"inputs": [tensor(data="12")]}, 422, "'height': data must be an array"),
        ({"inputs": [tensor(data=[[1.0], [2.0]])]}, 422, "'height': row 0 is [1.0], which is not of datatype FP64"),
        ({"inputs": [tensor(shape=[2, 1], data=[[1.0], 2.0])]}, 422, "'height': row 0 is [1.0]"),
        ({"inputs": [tensor(data=[1.0, "2"])]}, 422, "'height': row 1 is \"2\", which is not of datatype FP64"),
        ({"inputs": [tensor(data=[1.0, True])]}, 422, "'height': row 1 is true"),
        ({"inputs": [tensor(datatype="INT32", data=[1, 1.5])]}, 422, "'height': row 1 is 1.5"),
        ({"inputs": [tensor(datatype="INT8", data=[1, 128])]}, 422, "'height': row 1 is 128, which is not of"),
        ({"inputs": [tensor(datatype="UINT32", data=[1, -1])]}, 422, "'height': row 1 is -1"),
        ({"inputs": [tensor(datatype="BYTES", data=["x", 1])]}, 422, "'height': row 1 is 1"),
        ({"inputs": [tensor(parameters={"binary_data_size": 16})]}, 400, "'height': binary tensor data"),
    ],
)
def test_what_is_no_inference_request_is_refused_by_name(body: Any, status: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert (caught.value.status, said in str(caught.value)) == (status, True), str(caught.value)


def test_tensors_as_bytes_are_refused_by_their_header() -> None:
    with pytest.raises(RequestError, match="binary tensor data is not supported") as caught:
        read(None, inference_header_content_length=b"12")
    assert caught.value.status == 400


def test_rows_of_a_request_stay_together_unless_each_has_its_own_entity() -> None:
    assert read({"inputs": [tensor()]}).whole("r").values["entity"] == ["r", "r"]
    own = {"name": "entity", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
    assert read({"inputs": [tensor(), own]}).whole("r").values["entity"] == ["a", "b"]
    assert "entity" not in read({"inputs": [tensor(shape=[1], data=[1])]}).whole("r").values


def answered(**more: Any) -> dict[str, Any]:
    return {"id": "r/0", "version": "d", "role": "stable", "score": 0.7, "label": 1, **more}


def test_answers_are_written_as_tensors() -> None:
    asked = read({"id": "42", "inputs": [tensor()]})
    assert infer_response("trees", "d", asked, "made", [answered(), answered(score=0.2, label=0)]) == {
        "model_name": "trees",
        "model_version": "d",
        "id": "42",
        "outputs": [
            {"name": "score", "datatype": "FP64", "shape": [2], "data": [0.7, 0.2]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }


def test_classes_that_one_version_does_not_know_are_improbable() -> None:
    rows = [answered(label="a", probabilities={"a": 1.0, "b": 0.0}), answered(label="c", probabilities={"c": 1.0})]
    tensors = infer_response("trees", "d,e", read({"inputs": [tensor()]}), "made", rows)["outputs"]
    assert tensors[1] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a", "c"]}
    assert (tensors[2]["shape"], tensors[2]["data"]) == ([2, 3], [1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert tensors[2]["parameters"] == {"classes": '["a","b","c"]'}


def test_outputs_are_told_as_they_are_asked_for() -> None:
    asked = read({"inputs": [tensor()], "outputs": [{"name": "version"}, {"name": "label"}]})
    response = infer_response("trees", "d", asked, "made", [answered()])
    assert [one["name"] for one in response["outputs"]] == ["version", "label"]
    assert response["id"] == "made"


@pytest.mark.parametrize(
    ("target", "names"),
    [(BINARY, ["score", "label"]), (CLASSES, ["score", "label", "probabilities"]), (NUMBER, ["score", "label"])],
)
def test_each_kind_of_target_has_its_outputs(target: Target, names: list[str]) -> None:
    assert [one["name"] for one in output_tensors(target)] == names
    for name in (*names, "id", "version"):
        check_outputs(read({"inputs": [tensor()], "outputs": [{"name": name}]}), target)
    with pytest.raises(RequestError, match="output 'odds' is none of this model"):
        check_outputs(read({"inputs": [tensor()], "outputs": [{"name": "odds"}]}), target)


def test_features_have_the_datatype_of_their_kind() -> None:
    assert datatype_of(NumericFeature(name="x")) == "FP64"
    assert datatype_of(NumericFeature(name="x", declared=Column(kind="int"))) == "INT64"
    assert datatype_of(CategoricalFeature(name="x", categories=("a",))) == "BYTES"
    assert datatype_of(CategoricalFeature(name="x", declared=Column(kind="bool"), categories=("True",))) == "BOOL"
