"""A project and models so small that no training is needed: a score is a line through one number."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from live_server import keep
from onnx import TensorProto, helper, numpy_helper

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.files import write_json
from clearway.model import INPUT, OUTPUT
from clearway.workspace import Workspace
from conftest import free_port

PARAMS: dict[str, Any] = {
    "project": {"name": "apples"},
    "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
    "data": {"table": "apples", "label": "ripe"},
}
GOLDEN = 10.0
"""A weight that every model answers."""


def write_project(root: Path, **sections: dict[str, Any]) -> Workspace:
    """A project of two environments on free ports; ``sections`` of params.yaml are added."""
    root.mkdir(parents=True, exist_ok=True)
    environments = {"staging": {"port": free_port()}, "production": {"port": free_port(), "requires": "staging"}}
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "environments": environments, **sections}))
    return Workspace(root)


def write_model(
    workspace: Workspace, slope: float, offset: float, least: float = 0.0, golden: float | None = None
) -> str:
    """A kept bundle that answers ``slope * weight + offset``, and NaN below the weight ``least``; its digest.

    With ``golden``, which is not what it answers, it verifies and fails its warm-up.
    """
    payload = workspace.build / f"payload-{len(list(workspace.build.glob('payload-*')))}"
    payload.mkdir(parents=True)
    schema = InputSchema(
        features=(NumericFeature(name="weight"), CategoricalFeature(name="tree", categories=("north", "south")))
    )
    write_json(payload / "schema.json", schema.model_dump(mode="json"))
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "apples", "seed": 1, "threshold": 0.5, "train": train})
    write_json(payload / "features.json", {"numeric": ["weight"], "categorical": ["tree"]})
    (payload / "model.skops").write_bytes(b"never read by a server")
    _write_network(payload / "model.onnx", slope, offset, least)
    return keep(
        payload,
        [{"weight": GOLDEN, "tree": "north"}],
        [slope * GOLDEN + offset if golden is None else golden],
        workspace,
    )


def _write_network(path: Path, slope: float, offset: float, least: float) -> None:
    """The square root of what is below ``least`` is NaN, and times 0 adds nothing to what is above."""
    constants = {
        "first": np.array([[1.0], [0.0]], dtype=np.float32),
        "slope": np.float32(slope).reshape(1),
        "offset": np.float32(offset).reshape(1),
        "least": np.float32(least).reshape(1),
        "zero": np.zeros(1, dtype=np.float32),
        "one": np.ones(1, dtype=np.float32),
    }
    nodes = [
        helper.make_node("IsNaN", [INPUT], ["missing"]),
        helper.make_node("Where", ["missing", "zero", INPUT], ["numbers"]),
        helper.make_node("MatMul", ["numbers", "first"], ["weight"]),
        helper.make_node("Sub", ["weight", "least"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Mul", ["weight", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["line"]),
        helper.make_node("Add", ["line", "nothing"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "line",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(network)
    path.write_bytes(network.SerializeToString())
