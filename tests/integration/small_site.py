"""A project whose models answer one number each, so that deploying them costs nothing but deploying."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from clearway.bundle import pack, payload_digest
from clearway.encoding import InputSchema, NumericFeature
from clearway.files import write_json
from clearway.ledger import Entry, read_ledger
from clearway.model import INPUT, OUTPUT
from clearway.params import Params, load_params
from clearway.schema import Column
from clearway.workspace import Workspace

ENV = "staging"
REPORT = {"verdict": "passed"}
"""The gates' report on every one of them."""
WHO = {"actor": "tester", "reason": "a test"}


@dataclass(frozen=True)
class Site:
    """A project with three kept bundles, and an environment."""

    workspace: Workspace
    a: str
    b: str
    c: str

    @property
    def params(self) -> Params:
        return load_params(self.workspace.params_file)

    @property
    def folder(self) -> Path:
        return self.workspace.environment(ENV)

    def entries(self) -> list[Entry]:
        return read_ledger(self.folder, ENV)

    def do(self, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return action(self.params, self.workspace, ENV, *arguments, **{**WHO, **named})


def write_model(workspace: Workspace, name: str, score: float) -> str:
    """A model that answers the same whatever it is asked."""
    payload = workspace.build / name
    payload.mkdir(parents=True)
    schema = InputSchema(features=(NumericFeature(name="size", declared=Column(kind="float")),))
    write_json(payload / "schema.json", schema.model_dump(mode="json"))
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "sizes", "seed": 1, "threshold": 0.5, "train": train})
    write_json(payload / "features.json", {"numeric": ["size"], "categorical": []})
    (payload / "model.skops").write_bytes(b"never read by a server")
    weights = numpy_helper.from_array(np.zeros((1, 2), dtype=np.float32), "w")
    bias = numpy_helper.from_array(np.array([1 - score, score], dtype=np.float32), "b")
    graph = helper.make_graph(
        [helper.make_node("Gemm", [INPUT, "w", "b"], [OUTPUT])],
        "constant",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [weights, bias],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), payload / "model.onnx"
    )
    digest = payload_digest(payload)
    golden = {"rows": [{"size": 1.0}], "scores": [score]}
    lineage = {
        **{"project": "sizes", "role": "challenger", "as_of": None, "snapshot_sha256": "5" * 64, "recipe_sha256": "r"},
        **{"training_rows": 9, "labelled_rows": 9, "metrics": {}, "git_commit": "c0ffee", "lock_sha256": None},
        **{"trigger": "local", "reasons": [], "packages": {}},
    }
    evidence = {"golden.json": golden, "lineage.json": lineage, "model_validation.json": REPORT}
    packed = {name: json.dumps(content).encode() for name, content in evidence.items()}
    pack(payload, packed, workspace.bundles / digest)
    return digest


def make_site(folder: Path) -> Site:
    """Make it in ``folder``, which exists."""
    workspace = Workspace(folder)
    params = {
        "project": {"name": "sizes"},
        "sources": {"sizes": {"kind": "csv", "path": "sizes.csv"}},
        "data": {"table": "sizes", "label": "large"},
        # production, whose alias MLflow keeps, is another one
        "environments": {ENV: {"port": 0}, "production": {"port": 0, "requires": ENV}},
        "deployment": {"strategy": "blue-green"},
        "serving": {"salt": "sizes", "routing_key": "id"},  # neither is what a table without them would say
        "alerts": {"timeout_seconds": 120},  # what a busy machine may need
    }
    workspace.params_file.write_text(yaml.safe_dump(params))
    digests = [write_model(workspace, name, score) for name, score in (("a", 0.25), ("b", 0.5), ("c", 0.75))]
    lineage = {"verdict": "passed", "digest": digests[1], "baseline_digest": digests[0]}
    write_json(workspace.bundle / "outcome.json", lineage)
    return Site(workspace, *digests)
