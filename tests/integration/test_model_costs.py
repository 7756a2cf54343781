"""What a model costs, measured in real processes: memory in a fresh one, latency through the real server."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import psutil
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from clearway.bundle import payload_digest
from clearway.files import write_json
from clearway.footprint import measure_memory
from clearway.model import INPUT, NETWORK, OUTPUT, load_payload
from clearway.params import Params, load_params
from clearway.served_latency import ASKED, measure_served, served_latency_gate, served_memory_gate
from clearway.training import train
from clearway.workspace import Workspace


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Workspace, pd.DataFrame]:
    """A trained model of a small flat table, which says that its features are stored."""
    workspace = Workspace(tmp_path_factory.mktemp("apples"))
    content: dict[str, Any] = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe"},
        "train": {"arguments": {"max_iter": 5, "min_samples_leaf": 5}},
        "environments": {"staging": {"port": 0}},
    }
    workspace.params_file.write_text(yaml.safe_dump(content))
    random = np.random.default_rng(7)
    frame = pd.DataFrame({"weight": random.normal(170, 30, 400), "colour": random.choice(["green", "red"], 400)})
    frame.loc[::9, "weight"] = np.nan
    frame["label"] = (frame["colour"] == "red").astype("float64")
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["weight"],
        "categorical": ["colour"],
        "declared": {"weight": {"kind": "float", "nullable": True, "max": 400}},
        "definitions_sha256": "0" * 64,
        "feature_service": "apples_000000000000",
        "definitions": {"weight": {"sha256": "0" * 64}, "colour": {"sha256": "0" * 64}},
    }
    write_json(workspace.features / "features.json", described)
    params = load_params(workspace.params_file)
    train(params, workspace)
    return params, workspace, frame.drop(columns="label")


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "serve.py" in " ".join(child.cmdline())]


def test_a_model_answers_through_the_real_server_and_leaves_nothing_behind(
    project: tuple[Params, Workspace, pd.DataFrame],
) -> None:
    params, workspace, frame = project
    before = sorted(workspace.root.rglob("*"))
    model = load_payload(workspace.model, payload_digest(workspace.model))
    served = measure_served(params, workspace.model, model, frame)
    assert served.problem == ""
    assert served.requests == ASKED
    assert served.p50_ms is not None
    assert served.p95_ms is not None
    assert served.p99_ms is not None
    assert served.rss_mb is not None
    assert 0 < served.p50_ms <= served.p95_ms <= served.p99_ms
    assert 20 < served.rss_mb < 2000
    assert served_latency_gate(served, 1e6).status == "pass"
    assert servers() == []
    assert sorted(workspace.root.rglob("*")) == before


def test_a_row_that_the_server_refuses_is_told_and_the_server_ended(
    project: tuple[Params, Workspace, pd.DataFrame],
) -> None:
    params, workspace, frame = project
    model = load_payload(workspace.model, payload_digest(workspace.model))
    odd = frame.copy()
    odd.loc[20, "weight"] = 1000.0
    served = measure_served(params, workspace.model, model, odd)
    assert served.p95_ms is None
    assert served.problem.startswith("the server answers 422: ")
    assert "weight = 1000 is above 400" in served.problem
    assert servers() == []


def test_a_model_that_no_server_would_serve_is_not_measured(
    project: tuple[Params, Workspace, pd.DataFrame],
) -> None:
    params, workspace, frame = project
    model = load_payload(workspace.model, payload_digest(workspace.model))
    odd = frame.copy()
    odd.loc[0, "weight"] = 1000.0
    served = measure_served(params, workspace.model, model, odd)
    assert served.p95_ms is None
    assert served.problem.startswith("the server refuses the model: bundle ")
    assert "fails its warm-up: golden row 0: feature weight = 1000 is above 400" in served.problem
    assert servers() == []


def test_a_payload_that_changed_since_it_was_loaded_is_never_served(
    project: tuple[Params, Workspace, pd.DataFrame], tmp_path: Path
) -> None:
    params, workspace, frame = project
    model = load_payload(workspace.model, payload_digest(workspace.model))
    changed = tmp_path / "model"
    shutil.copytree(workspace.model, changed)
    (changed / NETWORK).write_bytes(b"other")
    served = measure_served(params, changed, model, frame)
    assert served.p95_ms is None
    assert "has changed since it was loaded: expected digest" in served.problem


def test_the_memory_of_a_model_is_measured_in_a_process_of_its_own(
    project: tuple[Params, Workspace, pd.DataFrame], tmp_path: Path
) -> None:
    _, workspace, frame = project
    model = load_payload(workspace.model, payload_digest(workspace.model))
    matrix = model.schema.encode(frame)
    small = measure_memory(workspace.model, model.digest, matrix)
    hungry = tmp_path / "hungry"
    write_hungry_payload(hungry, like=workspace.model)
    ballast = np.ones(80_000_000)  # 640 MB of this process are none of the model's
    large = measure_memory(hungry, payload_digest(hungry), matrix)
    del ballast
    assert small.mb is not None
    assert large.mb is not None
    assert small.mb < 100
    assert large.mb > small.mb + 200


def test_the_memory_of_the_server_is_that_of_the_process_that_answers(
    project: tuple[Params, Workspace, pd.DataFrame], tmp_path: Path
) -> None:
    """The one that ``server.json`` names only starts workers, and loads no model."""
    params, workspace, frame = project
    hungry = tmp_path / "hungry"
    write_hungry_payload(hungry, like=workspace.model)
    small, large = (
        measure_served(params, folder, load_payload(folder, payload_digest(folder)), frame)
        for folder in (workspace.model, hungry)
    )
    assert small.rss_mb is not None
    assert large.rss_mb is not None
    assert large.rss_mb > small.rss_mb + 100
    assert served_memory_gate(small, small.rss_mb + 50).status == "pass"
    assert served_memory_gate(large, small.rss_mb + 50).status == "fail"


def write_hungry_payload(folder: Path, like: Path) -> None:
    """A model that fills 256 MB to answer 0.25 to everyone."""
    shutil.copytree(like, folder)
    initial = {
        "many": np.array([64 * 2**20], dtype=np.int64),
        "axis": np.array([0], dtype=np.int64),
        "answer": np.array([[0.75, 0.25]], dtype=np.float32),
        "zero": np.array(0, dtype=np.int64),
        "pair": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("ConstantOfShape", ["wanted"], ["filled"]),
        helper.make_node("Shape", [INPUT], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["rows"]),
        helper.make_node("Min", ["many", "enough"], ["wanted"]),
        helper.make_node("Mul", ["rows", "many"], ["enough"]),
        helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0),
        helper.make_node("Concat", ["rows", "pair"], ["wide"], axis=0),
        helper.make_node("Expand", ["answer", "wide"], ["answers"]),
        helper.make_node("Add", ["answers", "total"], [OUTPUT]),
    ]
    order = [1, 2, 4, 3, 0, 5, 6, 7, 8]
    graph = helper.make_graph(
        [nodes[place] for place in order],
        "hungry",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(value, name) for name, value in initial.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    (folder / NETWORK).write_bytes(made.SerializeToString())


def test_memory_is_not_measured_of_another_digest_or_for_longer_than_allowed(
    project: tuple[Params, Workspace, pd.DataFrame],
) -> None:
    _, workspace, frame = project
    digest = payload_digest(workspace.model)
    matrix = load_payload(workspace.model, digest).schema.encode(frame)
    other = measure_memory(workspace.model, "0" * 64, matrix)
    assert other.mb is None
    assert "has changed since it was trained: expected digest 000" in other.problem
    late = measure_memory(workspace.model, digest, matrix, timeout=0.05)
    assert (late.mb, late.problem) == (None, "the process took more than 0.05 s")
    assert not [child for child in psutil.Process().children() if "memory_probe" in json.dumps(child.cmdline())]
