"""A small project whose features are defined with Feast, a bundle of it, and rows in its online store."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import yaml
from live_server import keep
from onnx import TensorProto, helper, numpy_helper

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.files import write_json
from clearway.model import INPUT, OUTPUT
from clearway.params import load_params
from clearway.schema import Column
from clearway.workspace import Workspace

PACKAGE = '''
"""Will an apple be ripe? Two stored views, and one computed when it is asked for."""

from datetime import timedelta

from clearway.feature_store.definitions import Definitions
from feast import Entity, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import Float64, String

ORCHARD = Entity(name="orchard", join_keys=["orchard"], value_type=ValueType.STRING)
STATION = Entity(name="station", join_keys=["station"], value_type=ValueType.STRING)
SOIL = FeatureView(
    name="soil",
    entities=[ORCHARD],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="orchard", dtype=String),
        Field(name="acidity", dtype=Float64),
        Field(name="wetness", dtype=Float64),
    ],
    source=FileSource(name="soil", path="data/feature_tables/soil.parquet", timestamp_field="known_at"),
)
WEATHER = FeatureView(
    name="weather",
    entities=[STATION],
    ttl=timedelta(0),
    schema=[Field(name="station", dtype=String), Field(name="rain", dtype=Float64)],
    source=FileSource(name="weather", path="data/feature_tables/weather.parquet", timestamp_field="known_at"),
)
ASKED = RequestSource(
    name="asked",
    schema=[
        Field(name="variety", dtype=String),
        Field(name="planted", dtype=Float64),
        Field(name="prediction_time", dtype=Float64),
    ],
)


def growth(given):
    """Hours since an apple was planted; nobody plants them later than now."""
    hours = [
        None if planted is None else (asked - planted) / 3600
        for planted, asked in zip(given["planted"], given["prediction_time"])
    ]
    if any(each is not None and each < 0 for each in hours):
        raise ValueError("planted in the future")
    return {"age_hours": hours}


GROWTH = OnDemandFeatureView(
    name="growth",
    sources=[ASKED],
    schema=[Field(name="age_hours", dtype=Float64)],
    udf=growth,
    udf_string="",
    mode="python",
)


def soil(tables):
    return tables["soil"]


def weather(tables):
    return tables["weather"]


class Apples:
    numeric = ("acidity", "wetness", "rain", "age_hours")
    categorical = ("variety",)

    def known_at(self, table, frame, as_of):
        return frame

    def questions(self, tables):
        raise NotImplementedError

    def inputs(self, questions, tables):
        raise NotImplementedError

    def definitions(self):
        return Definitions((ORCHARD, STATION), (SOIL, WEATHER), {"soil": soil, "weather": weather}, ASKED, (GROWTH,))


PROJECT = Apples()
'''
FEATURES = ("acidity", "wetness", "rain", "age_hours", "variety")
ASKED_AT = datetime(2024, 6, 1, 12, tzinfo=UTC)
BY_KEY: dict[str, Any] = {
    "orchard": "north",
    "station": "hill",
    "variety": "gala",
    "planted": ASKED_AT.timestamp() - 7200,
    "asked_at": ASKED_AT.isoformat(),
}
SOIL = {"acidity": 6.5, "wetness": 0.25}
ROW: dict[str, Any] = {**SOIL, "rain": 3.0, "age_hours": 2.0, "variety": "gala"}
"""What the features of ``BY_KEY`` are."""


def write_package(folder: Path) -> None:
    (folder / "orchards").mkdir(parents=True)
    (folder / "orchards" / "__init__.py").write_text(PACKAGE)


def import_package(folder: Path) -> ModuleType:
    """The package in this process too; servers find it by ``PYTHONPATH``."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("orchards")
    finally:
        sys.path.remove(str(folder))


def write_project(root: Path, online_store: Mapping[str, Any], lookup: Mapping[str, Any] | None = None) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    params = {
        "project": {"name": "orchards", "package": "orchards"},
        "sources": {"soil": {"kind": "csv", "path": "soil.csv"}},
        "environments": {"staging": {"port": 0}},
        "serving": {"features": {"timeout_ms": 500.0, **(lookup or {})}},
    }
    store = {
        "project": "orchards",
        "provider": "local",
        "entity_key_serialization_version": 3,
        "registry": {"path": "var/feature_store/registry.db"},
        "offline_store": {"type": "clearway.feature_store.offline.PointInTimeOfflineStore"},
        "online_store": dict(online_store),
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "feature_store.yaml").write_text(yaml.safe_dump(store))
    return Workspace(root)


def embedded() -> dict[str, Any]:
    return {"type": "clearway.feature_store.embedded.EmbeddedOnlineStore", "path": "var/feature_store/online.db"}


def redis(connection_string: str) -> dict[str, Any]:
    return {"type": "redis", "connection_string": connection_string}


def fill(workspace: Workspace, package: ModuleType) -> None:
    """Make the online store's tables, and write what is known of one orchard and of one weather station."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    from clearway.feature_store.store import open_store

    store = open_store(load_params(workspace.params_file), workspace)
    provider = store._get_provider()
    views = [package.SOIL, package.WEATHER]
    provider.online_store.update(store.config, [], views, [], [], partial=False)
    for view, key, values in ((views[0], "north", SOIL), (views[1], "hill", {"rain": 3.0})):
        entity = EntityKey(join_keys=[view.entities[0]], entity_values=[Value(string_val=key)])
        protos = {name: Value(double_val=value) for name, value in values.items()}
        known = ASKED_AT - timedelta(minutes=1)
        provider.online_write_batch(store.config, view, [(entity, protos, known, None)], None)


def write_bundle(
    workspace: Workspace, package: ModuleType, features: Sequence[str] = FEATURES, **changes: Mapping[str, Any]
) -> str:
    """A model whose score is a thousandth of the sum of its features; ``changes`` are to recorded definitions."""
    from clearway.feature_store.definitions import describe_features

    project = package.PROJECT
    described = describe_features(project.definitions(), project.numeric, project.categorical)
    definitions = {name: described[name].model_dump(mode="json") for name in features}
    for name, changed in changes.items():
        definitions[name] |= changed
    return _keep(workspace, {"feature_service": "orchards_0", "definitions": definitions}, features)


def write_flat_bundle(workspace: Workspace) -> str:
    """The same model, of features that nobody defined with Feast."""
    return _keep(workspace, {})


def _keep(workspace: Workspace, recorded: Mapping[str, Any], features: Sequence[str] = FEATURES) -> str:
    payload = workspace.build / f"payload-{len(list(workspace.build.glob('payload-*')))}"
    payload.mkdir(parents=True)
    numeric = [
        NumericFeature(name=name, declared=Column(kind="float", nullable=name != "acidity", max=100))
        for name in features[:-1]
    ]
    schema = InputSchema(features=(*numeric, CategoricalFeature(name="variety", categories=("fuji", "gala"))))
    write_json(payload / "schema.json", schema.model_dump(mode="json"))
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "orchards", "seed": 1, "threshold": 0.01, "train": train})
    write_json(payload / "features.json", {"numeric": features[:-1], "categorical": ["variety"], **recorded})
    (payload / "model.skops").write_bytes(b"never read by a server")
    _write_network(payload / "model.onnx", len(features))
    rows = [{name: row[name] for name in features} for row in (ROW, ROW | {"rain": None})]
    return keep(payload, rows, [score(row) for row in rows], workspace)


def score(row: Mapping[str, Any]) -> float:
    """What the model of these features answers."""
    numbers = [row.get(name) or 0.0 for name in FEATURES[:-1]] + [float(row["variety"] == "gala")]
    return sum(numbers) / 1000


def _write_network(path: Path, features: int) -> None:
    nodes = [
        helper.make_node("IsNaN", [INPUT], ["missing"]),
        helper.make_node("Where", ["missing", "zero", INPUT], ["numbers"]),
        helper.make_node("MatMul", ["numbers", "weights"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], [OUTPUT], axis=1),
    ]
    constants = {
        "zero": np.zeros(1, dtype=np.float32),
        "one": np.ones(1, dtype=np.float32),
        "weights": np.full((features, 1), 0.001, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(network)
    path.write_bytes(network.SerializeToString())


def with_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
