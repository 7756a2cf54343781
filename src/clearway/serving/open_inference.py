"""The Open Inference Protocol, version 2, over REST: its requests as columns, its answers as tensors.

One input is one feature: ``shape`` is ``[rows]`` or ``[rows, 1]``, ``data`` its values in order. Beside features an
input may be a field of a row (``id``, ``entity``, ``asked_at``), or what features are looked up by. See
https://github.com/kserve/open-inference-protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from clearway.encoding import Feature, NumericFeature
from clearway.model import Model
from clearway.serving.requests import MAX_NAME, Columns, RequestError
from clearway.target import Target

HEADER_LENGTH = b"inference-header-content-length"
"""The header by which a request says that tensors follow its JSON as bytes: an extension that is not spoken here."""
_BINARY = "binary tensor data is not supported: send tensors as JSON (binary_data=False in most clients)"
_REQUEST, _INPUT, _OUTPUT = (
    frozenset(("id", "model_name", "parameters", "inputs", "outputs")),
    frozenset(("name", "shape", "datatype", "parameters", "data")),
    frozenset(("name", "parameters")),
)
_WHOLE = {f"{sign}INT{bits}": (sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)}
_RANGES = {
    name: (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for name, (sign, bits) in _WHOLE.items()
}
_NULL = type(None)
_TYPES: Mapping[str, frozenset[type]] = {
    "BOOL": frozenset((bool, _NULL)),
    "BYTES": frozenset((str, _NULL)),
    **dict.fromkeys(_WHOLE, frozenset((int, _NULL))),
    **dict.fromkeys(("FP16", "FP32", "FP64"), frozenset((int, float, _NULL))),
}
"""Types of JSON values by datatype. Null is a value that is not known; the feature says whether it may be so."""
DATATYPES = tuple(_TYPES)
PER_ROW = ("id", "version")
"""Outputs of every model, told only when they are asked for by name."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked."""

    id: str | None
    columns: Columns
    outputs: tuple[str, ...] | None
    """Names of the outputs that are wanted; None for those of the model."""

    def whole(self, identity: str) -> Columns:
        """The rows, with an entity that keeps them together: where none has its own, one version answers them all."""
        values, count = self.columns.values, self.columns.count
        if count == 1 or "entity" in values:
            return self.columns
        return Columns({**values, "entity": [identity] * count}, count)


def read_infer(headers: Mapping[bytes, bytes], body: Any, model: str, max_rows: int) -> InferRequest:
    """Read the JSON of an inference request for ``model``.

    Raises
    ------
    RequestError
        It is none, or sends tensors as bytes (400), or asks for another model (422), or for too many rows (413); names
        the input and the field. What the values may be is checked where rows are.
    """
    if HEADER_LENGTH in headers:
        raise RequestError(400, _BINARY)
    request = _object(body, "an inference request", _REQUEST)
    if (named := request.get("model_name")) is not None and named != model:
        raise RequestError(422, f"model_name is {_brief(named)}, but the path names {model!r}")
    _parameters(request, "the request")
    identity = request.get("id")
    if identity is not None and (type(identity) is not str or not 0 < len(identity) <= MAX_NAME // 2):
        raise RequestError(422, f"id must be a string of 1 to {MAX_NAME // 2} characters or null")
    inputs = request.get("inputs")
    if type(inputs) is not list or not inputs:
        raise RequestError(422, "inputs must be an array with at least one tensor")
    columns: dict[str, list[Any]] = {}
    count = -1
    for place, tensor in enumerate(inputs):
        name, values = _read_input(tensor, place, max_rows)
        if name in columns:
            raise RequestError(422, f"input {name[:MAX_NAME]!r} stands there twice")
        if count not in (-1, len(values)):
            raise RequestError(422, f"input {name[:MAX_NAME]!r} has {len(values)} rows, the inputs before it {count}")
        columns[name], count = values, len(values)
    return InferRequest(identity, Columns(columns, count), _read_outputs(request.get("outputs")))


def _read_input(tensor: Any, place: int, max_rows: int) -> tuple[str, list[Any]]:
    tensor = _object(tensor, f"inputs[{place}]", _INPUT)
    name = tensor.get("name")
    if type(name) is not str:
        raise RequestError(422, f"inputs[{place}]: name must be a string")
    where = f"input {name[:MAX_NAME]!r}"
    if "binary_data_size" in _parameters(tensor, where):
        raise RequestError(400, f"{where}: {_BINARY}")
    datatype, shape, data = tensor.get("datatype"), tensor.get("shape"), tensor.get("data")
    allowed = _TYPES.get(datatype) if type(datatype) is str else None
    if allowed is None:
        raise RequestError(422, f"{where}: datatype must be one of {', '.join(_TYPES)}, not {_brief(datatype)}")
    good = type(shape) is list and len(shape) in (1, 2) and all(type(one) is int and one >= 0 for one in shape)
    if not good or (len(shape) == 2 and shape[1] != 1):
        raise RequestError(422, f"{where}: shape must be [rows] or [rows, 1], not {_brief(shape)}")
    if shape[0] > max_rows:
        raise RequestError(413, f"{where} has {shape[0]} rows, more than serving.max_rows = {max_rows}")
    if type(data) is not list:
        raise RequestError(422, f"{where}: data must be an array")
    if len(data) != shape[0] or not data:
        raise RequestError(422, f"{where}: shape says {shape[0]} rows, data has {len(data)}; at least one is needed")
    values = _flat(data) if len(shape) == 2 else data
    if not allowed.issuperset(map(type, values)):
        row, value = next((row, value) for row, value in enumerate(values) if type(value) not in allowed)
        raise RequestError(422, f"{where}: row {row} is {_brief(value)}, which is not of datatype {datatype}")
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        for row, value in enumerate(values):
            if value is not None and not low <= value <= high:
                raise RequestError(422, f"{where}: row {row} is {value}, which is not of datatype {datatype}")
    return name, values


def _flat(data: list[Any]) -> list[Any]:
    """The values of a tensor of one column, whether it is written in rows or not."""
    if all(type(row) is list and len(row) == 1 for row in data):
        return [row[0] for row in data]
    return data


def _read_outputs(outputs: Any) -> tuple[str, ...] | None:
    if outputs is None or outputs == []:
        return None
    if type(outputs) is not list:
        raise RequestError(422, "outputs must be an array")
    names = []
    for place, output in enumerate(outputs):
        name = _object(output, f"outputs[{place}]", _OUTPUT).get("name")
        if type(name) is not str:
            raise RequestError(422, f"outputs[{place}]: name must be a string")
        _parameters(output, f"output {name[:MAX_NAME]!r}")
        names.append(name)
    return tuple(names)


def _object(value: Any, what: str, known: frozenset[str]) -> dict[str, Any]:
    if type(value) is not dict:
        raise RequestError(422, f"{what} must be an object")
    if not value.keys() <= known:
        raise RequestError(422, f"{what}: unknown field {min(value.keys() - known)[:MAX_NAME]!r}")
    return value


def _parameters(of: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    given = of.get("parameters")
    if given is not None and type(given) is not dict:
        raise RequestError(422, f"{where}: parameters must be an object")
    return given or {}


def _brief(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"


def infer_response(
    model: str, version: str, request: InferRequest, identity: str, answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The answer to an inference request.

    Parameters
    ----------
    model, version
        What answered: the name, and the digest; several digests joined by commas where rows went to several.
    request
        Whose id is given back; ``identity`` is that of a request that had none.
    answers
        Of each row: see :class:`clearway.serving.answering.Answerer`.
    """
    tensors = _outputs(answers)
    names = tuple(name for name in tensors if name not in PER_ROW) if request.outputs is None else request.outputs
    return {
        "model_name": model,
        "model_version": version,
        "id": request.id or identity,
        "outputs": [{"name": name, **tensors[name]} for name in names if name in tensors],
    }


def check_outputs(request: InferRequest, target: Target) -> None:
    """Refuse outputs that a model does not have, before it is asked.

    Raises
    ------
    RequestError
        It does not have one of them; 422.
    """
    known = [*(one["name"] for one in output_tensors(target)), *PER_ROW]
    for name in request.outputs or ():
        if name not in known:
            raise RequestError(422, f"output {name[:MAX_NAME]!r} is none of this model: {', '.join(known)}")


def _outputs(answers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    count, labels = len(answers), [one["label"] for one in answers]
    kind = {int: "INT64", float: "FP64"}.get(type(labels[0]), "BYTES")
    made: dict[str, dict[str, Any]] = {
        "score": {"datatype": "FP64", "shape": [count], "data": [one["score"] for one in answers]},
        "label": {"datatype": kind, "shape": [count], "data": labels},
    }
    if "probabilities" in answers[0]:
        # two versions may know different classes: what one does not know is as improbable as can be
        classes = list(dict.fromkeys(name for one in answers for name in one["probabilities"]))
        data = [one["probabilities"].get(name, 0.0) for one in answers for name in classes]
        made["probabilities"] = {
            "datatype": "FP64",
            "shape": [count, len(classes)],
            "parameters": {"classes": orjson.dumps(classes).decode()},
            "data": data,
        }
    for name in PER_ROW:
        made[name] = {"datatype": "BYTES", "shape": [count], "data": [one[name] for one in answers]}
    return made


def output_tensors(target: Target) -> list[dict[str, Any]]:
    """The outputs of a model of this target, as its metadata lists them."""
    kind = {"binary": "INT64", "multiclass": "BYTES", "regression": "FP64"}[target.kind]
    outputs: list[dict[str, Any]] = [
        {"name": "score", "datatype": "FP64", "shape": [-1]},
        {"name": "label", "datatype": kind, "shape": [-1]},
    ]
    if target.classes:
        probabilities = {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(target.classes)]}
        outputs.append({**probabilities, "parameters": {"classes": orjson.dumps(list(target.classes)).decode()}})
    return outputs


def datatype_of(feature: Feature) -> str:
    """The datatype by which a feature is announced."""
    declared = feature.declared.kind if feature.declared is not None else None
    if isinstance(feature, NumericFeature):
        return "INT64" if declared == "int" else "FP64"
    return "BOOL" if declared == "bool" else "BYTES"


def model_metadata(name: str, model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """What ``GET /v2/models/NAME`` says of a model; ``versions`` are the digests that can be asked for."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "onnxruntime_onnxv1" if model.runtime == "onnx" else "sklearn_skops",
        "inputs": [
            {"name": feature.name, "datatype": datatype_of(feature), "shape": [-1]} for feature in model.schema.features
        ],
        "outputs": output_tensors(model.target),
    }


def server_metadata(version: str) -> dict[str, Any]:
    """What ``GET /v2`` says of a server of this version of Clearway."""
    return {"name": "clearway", "version": version, "extensions": []}
