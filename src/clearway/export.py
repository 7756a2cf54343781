"""A fitted estimator as bytes: a skops or joblib file, and an ONNX graph where ONNX can say it; the same bytes for the
same estimator.

A skops file is a zip with the time of writing in each entry, and it names objects and arrays by their address in
memory, so no two processes write the same one. Here addresses become 1, 2, 3… in order of first appearance, entries
are sorted, stored without compression, and dated 1980. Bytes between the fields of a table, which hold whatever was in
memory, become zero. What the file means does not change: skops only asks which nodes share an id. Names inside the
ONNX graph are numbered the same way.

A joblib file is a plain pickle, as it comes: the same bytes wherever the same fit made the same objects, but not of an
estimator with a set of text, whose order differs from process to process, or with trees that were read from a file.
"""

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway.errors import ClearwayError
from clearway.model import INPUT, NUMBERS, OUTPUT

OPSET = {"": 17, "ai.onnx.ml": 3}
"""The ONNX operator sets to write, pinned so that a newer skl2onnx writes the same graph."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


class ExportError(ClearwayError):
    """The estimator cannot be stored or exported."""


def to_skops(estimator: Any) -> bytes:
    """The estimator as a canonical skops file.

    Raises
    ------
    ExportError
        skops cannot store an object of it.
    """
    import skops.io

    _forget_threads(estimator)
    try:
        return canonical_skops(skops.io.dumps(estimator))
    except (TypeError, RecursionError, skops.io.exceptions.UnsupportedTypeException) as error:
        raise ExportError(f"cannot be stored by skops: {' '.join(str(error).split())}") from None


def _forget_threads(part: Any) -> None:
    """Let histogram gradient boosting, wherever it is in ``part``, no longer know on how many threads it was fitted.

    It keeps the number and never asks for it again. Nothing else of it differs.
    """
    if type(part).__name__ == "_BinMapper":
        part.n_threads = 1
    elif isinstance(part, list | tuple | dict):
        for each in part.values() if isinstance(part, dict) else part:
            _forget_threads(each)
    elif type(part).__module__.startswith("sklearn.") or hasattr(part, "get_params"):
        _forget_threads(getattr(part, "__dict__", {}))


def to_joblib(estimator: Any) -> bytes:
    """The estimator as a joblib file: a pickle, which runs what it holds when it is opened.

    Raises
    ------
    ExportError
        It cannot be pickled, or not read again.
    """
    import joblib

    _forget_threads(estimator)
    stream = io.BytesIO()
    try:
        joblib.dump(estimator, stream, compress=0, protocol=5)
        stream.seek(0)
        joblib.load(stream)  # what could not be read back must not become a model
        return stream.getvalue()
    except Exception as error:  # pickle lets through whatever the objects raise
        raise ExportError(f"cannot be stored by joblib ({type(error).__name__}: {error})") from None


def canonical_skops(content: bytes) -> bytes:
    """Rewrite a skops file without what differs between two writings of the same estimator."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(entries.pop("schema.json"))
    renamed: dict[str, str] = {}
    _renumber(schema, {}, renamed, frozenset(entries))
    written = {renamed[name]: _without_padding(entry) for name, entry in entries.items()}
    written["schema.json"] = json.dumps(schema, separators=(",", ":")).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_STORED) as archive:
        for name in sorted(written):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, written[name])
    return target.getvalue()


def _without_padding(entry: bytes) -> bytes:
    """A ``.npy`` file whose rows hold nothing but their fields: the padding of a tree that was read is not zero."""
    if not entry.startswith(np.lib.format.MAGIC_PREFIX):
        return entry
    array = np.load(io.BytesIO(entry), allow_pickle=False)
    if array.dtype.names is None or sum(kind.itemsize for kind, *_ in array.dtype.fields.values()) == array.itemsize:
        return entry
    clean = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        clean[name] = array[name]
    target = io.BytesIO()
    np.save(target, clean, allow_pickle=False)
    return target.getvalue()


def _renumber(
    node: Any, ids: dict[int | str, int], files: dict[str, str], known: frozenset[str], *, member: bool = False
) -> None:
    """Replace ids and file names in place, depth first, in the order in which the file has them.

    Members of an ensemble may come from other processes, where what they share with the rest, such as the number 0.5
    of an argument, became a copy. So in them equal constants are one, wherever they were made.
    """
    if isinstance(node, list):
        for item in node:
            _renumber(item, ids, files, known, member=member)
    elif isinstance(node, dict):
        address, file = node.get("__id__"), node.get("file")
        if member and node.get("__loader__") == "JsonNode":
            node["__id__"] = ids.setdefault(node["content"], len(ids) + 1)
            return
        if isinstance(address, int):
            node["__id__"] = ids.setdefault(address, len(ids) + 1)
        if isinstance(file, str) and file in known:
            node["file"] = files.setdefault(file, f"{len(files) + 1:06d}{PurePosixPath(file).suffix}")
        for name, value in node.items():
            _renumber(value, ids, files, known, member=member or name == "estimators_")


def to_onnx(estimator: Any, width: int) -> bytes:
    """The estimator as an ONNX graph: float32 ``features`` (rows, width) → ``probabilities`` (rows, classes).

    Of a regressor → ``numbers`` (rows, 1).

    Raises
    ------
    ExportError
        skl2onnx knows no conversion for a part of the estimator, or its graph has no probabilities.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.base import is_regressor
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline

    from clearway.calibrated_onnx import add_curves, calibrated_part

    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    options = {"zipmap": False}
    part = calibrated_part(last)
    if part is not None:  # its curves are added below
        last = part.estimator
        estimator = Pipeline([*estimator.steps[:-1], ("model", last)]) if hasattr(estimator, "steps") else last
        if hasattr(last, "decision_function"):
            options["raw_scores"] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = convert_sklearn(
                estimator,
                name="clearway",
                initial_types=[(INPUT, FloatTensorType([None, width]))],
                options=None if is_regressor(last) else {id(last): options},
                custom_conversion_functions=dict.fromkeys(
                    (HistGradientBoostingClassifier, HistGradientBoostingRegressor), _convert_histogram_trees
                ),
                target_opset=OPSET,
            )
    except Exception as error:  # skl2onnx raises several unrelated types for what it cannot convert
        reason = " ".join(str(error).split())
        raise ExportError(f"cannot be exported to ONNX ({type(error).__name__}: {reason[:200]})") from None
    outputs = [output.name for output in graph.graph.output]
    if is_regressor(last) and len(outputs) == 1:
        if isinstance(last, HistGradientBoostingRegressor) and last.loss in ("poisson", "gamma"):
            _append_exponential(graph.graph)
        return canonical_onnx(graph, {outputs[0]: NUMBERS})
    if OUTPUT not in outputs:
        raise ExportError(f"cannot be exported to ONNX: its graph answers {', '.join(outputs)}, not {OUTPUT}")
    if part is not None:
        add_curves(graph, part)
    return canonical_onnx(graph)


def _append_exponential(graph: Any) -> None:
    """End the graph with the exponential of what it answers: skl2onnx 1.20 leaves out the link of such losses."""
    from onnx import helper

    (output,) = graph.output
    for node in graph.node:
        node.output[:] = ["logarithm" if name == output.name else name for name in node.output]
    graph.node.append(helper.make_node("Exp", ["logarithm"], [output.name]))


def _convert_histogram_trees(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's conversion of histogram gradient boosting, from thresholds that float32 holds exactly.

    scikit-learn compares with float64 thresholds, the graph with float32 ones. skl2onnx 1.20 rounds them to the
    nearest, so that a value between a threshold and its rounding takes the other branch; for scikit-learn's other
    trees it rounds down itself. All branch on ``<=``. The fitted estimator is left as it is.
    """
    from skl2onnx.common._registration import get_converter

    fitted = operator.raw_operator
    rounded = copy.copy(fitted)
    rounded._predictors = [[_rounded_down(tree) for tree in trees] for trees in fitted._predictors]
    container.add_options(id(rounded), container.get_options(fitted))  # skl2onnx knows an estimator by its address
    operator.raw_operator = rounded  # the operator outlives the conversion, so no other estimator gets this address
    get_converter(operator.type)(scope, operator, container)


def _rounded_down(tree: Any) -> Any:
    """A copy of a ``TreePredictor`` with rounded thresholds."""
    made = copy.copy(tree)
    made.nodes = tree.nodes.copy()
    made.nodes["num_threshold"] = float32_floor(tree.nodes["num_threshold"])
    return made


def float32_floor(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 at or below each threshold, of the same shape.

    A float32 ``x`` that is at most ``threshold`` is also at most this, and the other way round.
    """
    with np.errstate(over="ignore"):  # beyond float32 the nearest is infinity, and the one below it the largest
        nearest = thresholds.astype(np.float32)
        return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def canonical_onnx(model: Any, called: Mapping[str, str] | None = None) -> bytes:
    """The bytes of an ONNX model whose inner names are numbered in order of appearance, its operator sets sorted.

    Some converters build names from addresses in memory, and skl2onnx lists the operator sets in the order of a set.
    The names of the graph's inputs and outputs are kept, since they are what callers ask for, or changed as ``called``
    says.
    """
    opsets = sorted((opset.domain, opset.version) for opset in model.opset_import)
    for opset, (domain, version) in zip(model.opset_import, opsets, strict=True):
        opset.domain, opset.version = domain, version
    kept = [value.name for value in (*model.graph.input, *model.graph.output)]
    _rename(model.graph, {"": "", **{name: name for name in kept}, **(called or {})})
    for output in model.graph.output:
        output.name = (called or {}).get(output.name, output.name)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename in place. A subgraph sees the names of the graphs around it, so one table serves them all."""

    def renamed(name: str) -> str:
        return names.setdefault(name, f"value_{len(names)}")

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for value in (*graph.input, *graph.output):
        value.name = renamed(value.name)
    for index, node in enumerate(graph.node):
        node.name = f"node_{index}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            for below in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                below.name = "part"
                _rename(below, names)
    del graph.value_info[:]
