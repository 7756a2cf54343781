"""Bundles made by hand in milliseconds, of a model with one feature that answers one score whatever it is asked."""

import json
from pathlib import Path

import numpy as np
import onnx
import yaml
from live_server import keep
from onnx import TensorProto, helper, numpy_helper

from clearway.encoding import InputSchema, NumericFeature
from clearway.model import INPUT, OUTPUT
from clearway.workspace import Workspace

ROW = {"weight": 1.5}


def write_small_project(root: Path, **staging: object) -> Workspace:
    """A flat project whose environment ``staging`` has these settings beside a free port."""
    root.mkdir(parents=True, exist_ok=True)
    params = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe"},
        "environments": {"staging": {"port": 0, **staging}},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(root)


def small_bundle(workspace: Workspace, score: float) -> str:
    """The digest of a bundle whose model answers ``score``, which float32 must hold exactly."""
    payload = workspace.build / f"payload-{score}"
    payload.mkdir(parents=True)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", [INPUT, "axis"], ["sums"], keepdims=1),
            helper.make_node("Mul", ["sums", "nothings"], ["rows"]),
            helper.make_node("Add", ["rows", "answer"], [OUTPUT]),
        ],
        "constant",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
            numpy_helper.from_array(np.zeros((1, 2), dtype=np.float32), "nothings"),
            numpy_helper.from_array(np.array([[1 - score, score]], dtype=np.float32), "answer"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(payload / "model.onnx"))
    schema = InputSchema(features=(NumericFeature(name="weight", nullable=False),))
    (payload / "schema.json").write_text(schema.model_dump_json())
    (payload / "features.json").write_text("{}")
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    params = {"project": "apples", "seed": 1, "threshold": 0.5, "train": train}
    (payload / "params.json").write_text(json.dumps(params))
    (payload / "model.skops").write_bytes(b"never read, because there is a network")
    return keep(payload, [ROW, {"weight": 2.0}], [score, score], workspace)
