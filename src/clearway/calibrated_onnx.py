"""The curves of a calibrated classifier as ONNX.

Of an isotonic curve skl2onnx 1.20 answers with the value of the nearest point; scikit-learn draws lines between points.
Here each segment is a leaf of a tree, so that one row costs the logarithm of the number of points: the leaf says where
the segment begins, and its slope. Before a sigmoid, skl2onnx asks some forests for scores that they do not have.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression

from clearway.model import OUTPUT

_SCORES = "calibrated_scores"
"""Begins the names of what is added, apart from those of any graph."""


def calibrated_part(classifier: Any) -> Any | None:
    """The one estimator and its curves in a calibrated classifier; None of any other, and of one that has several."""
    parts: list[Any] = getattr(classifier, "calibrated_classifiers_", [])
    return (
        parts[0]
        if len(parts) == 1
        and isinstance(classifier, CalibratedClassifierCV)
        and parts[0].method in ("isotonic", "sigmoid")
        else None
    )


def add_curves(model: Any, part: Any) -> None:
    """Let an ONNX model whose ``probabilities`` are the scores before the curves answer what is after them, in place.

    The graph then has no ``label``: its was that of the scores.

    Parameters
    ----------
    model : onnx.ModelProto
        Answers float32 (rows, classes): of two classes, the second column counts.
    part : fitted ``_CalibratedClassifier`` of scikit-learn
        One curve for two classes, else one for each.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for node in graph.node:
        node.output[:] = [_SCORES if name == OUTPUT else name for name in node.output]
        node.input[:] = [_SCORES if name == OUTPUT else name for name in node.input]
    del graph.output[:]
    classes = len(part.classes)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, classes]))

    def constant(name: str, values: Any, kind: type) -> str:
        name = f"{_SCORES}_{name.removeprefix(_SCORES)}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=kind), name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        domain = "ai.onnx.ml" if operator.startswith("TreeEnsemble") else ""
        output = output if output == OUTPUT or output.startswith(_SCORES) else f"{_SCORES}_{output}"
        graph.node.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    parts = [constant(f"part_{each}", [each], np.int64) for each in range(3 if part.method == "isotonic" else 0)]

    def sigmoid(own: str, score: str, curve: Any) -> str:
        scaled = add("Mul", [score, constant(f"{own}_a", -curve.a_, np.float32)], f"{own}_scaled")
        moved = add("Add", [scaled, constant(f"{own}_b", -curve.b_, np.float32)], f"{own}_moved")
        return add("Sigmoid", [moved], f"{own}_value")

    def isotonic(own: str, score: str, curve: IsotonicRegression) -> str:
        ends = [constant(f"{own}_low", curve.X_min_, np.float32), constant(f"{own}_high", curve.X_max_, np.float32)]
        score = add("Clip", [score, *ends], f"{own}_clipped")
        found = add("TreeEnsembleRegressor", [score], f"{own}_segment", **_tree(*_segments(curve)))
        start, value, slope = (add("Gather", [found, each], f"{own}_{each}", axis=1) for each in parts)
        along = add("Sub", [score, start], f"{own}_along")
        risen = add("Mul", [along, slope], f"{own}_risen")
        return add("Add", [value, risen], f"{own}_value")

    curved = []
    for position, curve in enumerate(part.calibrators):
        own = f"{_SCORES}_{position}"
        column = constant(f"{own}_column", [1 if classes == 2 else position], np.int64)
        score = add("Gather", [_SCORES, column], own, axis=1)
        curved.append((isotonic if part.method == "isotonic" else sigmoid)(own, score, curve))
    if classes == 2:
        other = add("Sub", [constant("one", 1.0, np.float32), curved[0]], "other")
        add("Concat", [other, curved[0]], OUTPUT, axis=1)
        return
    together = add("Concat", curved, "together", axis=1)
    total = add("ReduceSum", [together, constant("axis", [1], np.int64)], "total", keepdims=1)
    none = add("Equal", [total, constant("zero", 0.0, np.float32)], "none")
    divided = add("Div", [together, total], "divided")
    add("Where", [none, constant("alike", 1.0 / classes, np.float32), divided], OUTPUT)


def _segments(curve: IsotonicRegression) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where each segment but the first begins, and the start of each, the value there, and the slope.

    Of shapes (segments − 1,) and (segments, 3). Float32 as in the graph, and of points that it tells apart.
    """
    points, first = np.unique(curve.X_thresholds_.astype(np.float32), return_index=True)
    values = curve.y_thresholds_[first].astype(np.float32)
    if len(points) == 1:
        return points[:0], np.array([[points[0], values[0], 0.0]], dtype=np.float32)
    slopes = np.diff(values.astype(np.float64)) / np.diff(points.astype(np.float64))
    rows = np.stack([points[:-1], values[:-1], slopes.astype(np.float32)], axis=1)
    return points[1:-1], rows


def _tree(cuts: NDArray[np.float32], leaves: NDArray[np.float32]) -> dict[str, Any]:
    """Attributes of a ``TreeEnsembleRegressor``: a balanced tree over sorted cuts; leaf k is row k of ``leaves``."""
    nodes: list[tuple[str, float, int, int]] = []
    targets: list[tuple[int, int, float]] = []

    def grow(low: int, high: int) -> int:
        """The tree over leaves ``low`` to ``high``; the number of its top node."""
        own = len(nodes)
        if low == high:
            nodes.append(("LEAF", 0.0, 0, 0))
            targets.extend((own, target, float(value)) for target, value in enumerate(leaves[low]))
            return own
        middle = (low + high) // 2
        nodes.append(("BRANCH_LEQ", float(cuts[middle]), 0, 0))
        left, right = grow(low, middle), grow(middle + 1, high)
        nodes[own] = ("BRANCH_LEQ", float(cuts[middle]), left, right)
        return own

    grow(0, len(leaves) - 1)
    return {
        "n_targets": leaves.shape[1],
        "nodes_treeids": [0] * len(nodes),
        "nodes_nodeids": list(range(len(nodes))),
        "nodes_featureids": [0] * len(nodes),
        "nodes_modes": [mode for mode, _, _, _ in nodes],
        "nodes_values": [cut for _, cut, _, _ in nodes],
        "nodes_truenodeids": [left for _, _, left, _ in nodes],
        "nodes_falsenodeids": [right for _, _, _, right in nodes],
        "target_treeids": [0] * len(targets),
        "target_nodeids": [node for node, _, _ in targets],
        "target_ids": [target for _, target, _ in targets],
        "target_weights": [value for _, _, value in targets],
    }
