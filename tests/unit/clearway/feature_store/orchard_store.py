"""A small stored project for tests of reading by key: orchards and weather stations, asked for at one moment."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

from clearway.feature_store.definitions import Definitions
from clearway.feature_store.online import FeatureReader
from clearway.params import FeatureLookupParams

ASKED = datetime(2024, 6, 1, 12, tzinfo=UTC)
AT = ASKED.timestamp()
NAMES = ("acidity", "wetness", "rain", "age_hours", "ph_change", "variety")
QUESTION = {"orchard": "north", "station": "hill", "variety": "gala", "planted": AT - 7200.0}


def orchard_definitions() -> Definitions:
    orchard = Entity(name="orchard", join_keys=["orchard"], value_type=ValueType.STRING)
    station = Entity(name="weather_station", join_keys=["station"], value_type=ValueType.STRING)
    soil = FeatureView(
        name="soil",
        entities=[orchard],
        ttl=timedelta(hours=6),
        schema=[
            Field(name="orchard", dtype=String),
            Field(name="acidity", dtype=Float64),
            Field(name="wetness", dtype=Float64),
            Field(name="unused", dtype=Float64),
        ],
        source=FileSource(path="soil.parquet", timestamp_field="known_at"),
    )
    weather = FeatureView(
        name="weather",
        entities=[station],
        ttl=timedelta(0),
        schema=[Field(name="station", dtype=String), Field(name="rain", dtype=Int64)],
        source=FileSource(path="weather.parquet", timestamp_field="known_at"),
    )
    request = RequestSource(
        name="asked",
        schema=[
            Field(name="variety", dtype=String),
            Field(name="planted", dtype=Float64),
            Field(name="prediction_time", dtype=Float64),
        ],
    )

    @on_demand_feature_view(
        sources=[soil, request],
        schema=[Field(name="age_hours", dtype=Float64), Field(name="ph_change", dtype=Float64)],
        mode="python",
    )
    def growth(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "bitter" in given["variety"]:
            raise ZeroDivisionError("no such apple")
        return {
            "ph_change": [math.nan if value is None else value - 7 for value in given["acidity"]],
            "age_hours": [
                None if planted is None else int(asked - planted) // 3600
                for planted, asked in zip(given["planted"], given["prediction_time"], strict=True)
            ],
        }

    return Definitions((orchard, station), (soil, weather), {}, request, (growth,))


class Orchard:
    """A store of Feast's with two views, whose reading can be made to fail, to hang, or be counted."""

    def __init__(self, folder: Path, online: dict[str, str] | None = None) -> None:
        self.definitions = orchard_definitions()
        embedded = {"type": "clearway.feature_store.embedded.EmbeddedOnlineStore", "path": str(folder / "online.db")}
        config = RepoConfig(
            project="apples",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=online or embedded,
            entity_key_serialization_version=3,
        )
        self.store = FeatureStore(config=config)
        self.provider = self.store._get_provider()
        self.provider.online_store.update(config, [], self.definitions.views, [], [], partial=False)
        self.failure: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.batches: list[tuple[str, list[str]]] = []
        self.readers: list[threading.Thread] = []
        """Who read each batch."""
        self._read = self.provider.online_read
        self.provider.online_read = self.read  # type: ignore[method-assign]

    def read(self, config: Any, table: Any, entity_keys: Sequence[Any], requested_features: Any = None) -> Any:
        keys = [key.entity_values[0].string_val for key in entity_keys]
        if keys != [""]:  # a probe
            self.batches.append((table.name, keys))
            self.readers.append(threading.current_thread())
        self.open.wait(10)
        if self.failure is not None:
            raise self.failure
        return self._read(config, table, list(entity_keys), requested_features)

    def write(self, view: str, key: str, values: dict[str, float | int | None], age: float) -> None:
        table = next(each for each in self.definitions.views if each.name == view)
        join_key = "orchard" if view == "soil" else "station"
        protos = {
            name: Value() if value is None else Value(int64_val=value) if name == "rain" else Value(double_val=value)
            for name, value in values.items()
        }
        entity = EntityKey(join_keys=[join_key], entity_values=[Value(string_val=key)])
        row = (entity, protos, ASKED - timedelta(seconds=age), None)
        self.provider.online_write_batch(self.store.config, table, [row], None)

    @contextmanager
    def reader(self, names: Sequence[str] = NAMES, **settings: Any) -> Iterator[FeatureReader]:
        reader = FeatureReader(self.store, self.definitions, names, FeatureLookupParams(**settings))
        try:
            reader.store.wait()
            yield reader
        finally:
            self.open.set()
            reader.close()


def filled(folder: Path) -> Orchard:
    """With a reading of ``QUESTION``, a minute before it is asked."""
    made = Orchard(folder)
    made.write("soil", "north", {"acidity": 6.5, "wetness": 0.25, "unused": 1.0}, age=60)
    made.write("weather", "hill", {"rain": 3}, age=60)
    return made
