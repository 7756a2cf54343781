"""Project folders whose model is one multiplication: many are made in a moment, each with its own digest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from live_server import deploy, keep
from onnx import TensorProto, helper, numpy_helper

from clearway.files import write_json
from clearway.model import INPUT, OUTPUT
from clearway.workspace import Workspace

BALLAST = 20_000
"""Numbers that each model carries about, so that its memory is seen: 80 kB in its file."""


def write_tiny(root: Path, name: str = "tiny", **sections: Any) -> Workspace:
    """A project with nothing deployed; ``sections`` of its params.yaml are added or replaced."""
    root.mkdir(parents=True, exist_ok=True)
    params = {
        "project": {"name": name},
        "sources": {"numbers": {"kind": "csv", "path": "numbers.csv"}},
        "data": {"table": "numbers", "label": "yes"},
        "environments": {"staging": {"port": 0}},
        **sections,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(root)


def write_tiny_bundle(
    workspace: Workspace, weight: float, ballast: int = BALLAST, features: Mapping[str, Any] | None = None
) -> str:
    """A bundle that answers ``weight`` times ``x``; its digest."""
    payload = workspace.build / f"payload-{weight}"
    payload.mkdir(parents=True)
    write_json(payload / "schema.json", {"features": [{"kind": "numeric", "name": "x"}]})
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "tiny", "seed": 1, "threshold": 0.5, "train": train})
    write_json(payload / "features.json", {"numeric": ["x"], "categorical": [], **(features or {})})
    (payload / "model.skops").write_bytes(b"never read by a server")
    nodes = [
        helper.make_node("MatMul", [INPUT, "weight"], ["yes"]),
        helper.make_node("ReduceMin", ["ballast"], ["zero"], keepdims=0),  # nothing here is folded away
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Add", ["no", "zero"], ["rest"]),
        helper.make_node("Concat", ["rest", "yes"], [OUTPUT], axis=1),
    ]
    constants = {
        "one": np.ones(1, dtype=np.float32),
        "weight": np.full((1, 1), weight, dtype=np.float32),
        "ballast": np.arange(ballast, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (payload / "model.onnx").write_bytes(network.SerializeToString())
    return keep(payload, [{"x": 1.0}], [weight], workspace)


def deployed_tiny(root: Path, weight: float, **sections: Any) -> Workspace:
    """A project whose model is live in staging."""
    workspace = write_tiny(root, **sections)
    deploy(workspace.environment("staging"), write_tiny_bundle(workspace, weight))
    return workspace
