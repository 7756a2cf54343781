"""Bundles made by hand, without any training: every model answers the same score to everybody."""

import json
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from clearway.bundle import Bundle, pack
from clearway.encoding import InputSchema, NumericFeature
from clearway.files import write_json
from clearway.model import INPUT, OUTPUT
from clearway.workspace import Workspace

ROW = {"weight": 180.5}


def write_params(root: Path, environments: dict[str, object], **more: object) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    steps = [{"weight": weight, "margin": 0.2, "min_requests": 40} for weight in (25, 50)]
    content = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe"},
        "environments": environments,
        "canary": {"steps": steps, "latency_ms": 5000, "score_margin": 0.5},
        **more,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    return Workspace(root)


def make_bundle(folder: Path, score: float, golden: float | None = None) -> Bundle:
    """A bundle in ``folder/<digest>`` whose model answers ``score``, where ``golden`` is expected."""
    payload = folder / f"payload-{score}"
    payload.mkdir(parents=True)
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "apples", "seed": 1, "threshold": 0.5, "train": train})
    write_json(payload / "features.json", {"definitions_sha256": "0" * 64})
    schema = InputSchema(features=(NumericFeature(name="weight"),))
    (payload / "schema.json").write_text(schema.model_dump_json())
    (payload / "model.skops").write_bytes(b"never read: there is ONNX")
    answer = np.array([[1 - score, score]], dtype=np.float32)
    nodes = [
        helper.make_node("Shape", [INPUT], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Concat", ["rows", "two"], ["wanted"], axis=0),
        helper.make_node("Expand", ["answer", "wanted"], [OUTPUT]),
    ]
    constants = {"answer": answer, "first": np.array([0]), "two": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(payload / "model.onnx"))
    expected = score if golden is None else golden
    evidence = json.dumps({"rows": [ROW], "scores": [float(np.float32(expected))]}).encode()
    made = pack(payload, {"golden.json": evidence}, folder / "made")
    (folder / "made").rename(folder / made.digest)
    return Bundle(folder / made.digest, made.digest, made.manifest, made.evidence_manifest)
