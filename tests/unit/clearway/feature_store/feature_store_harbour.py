"""A small stored project for tests of the online store: ships and berths, in a workspace of its own."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Bool, Float64, Int64, String

from clearway.feature_store.definitions import Definitions
from clearway.params import Params
from clearway.project import Tables
from clearway.workspace import Workspace

SHIP = Entity(name="ship", join_keys=["ship"], value_type=ValueType.STRING)
BERTH = Entity(name="berth", join_keys=["berth"], value_type=ValueType.STRING)
NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
US = timedelta(microseconds=1)
EMBEDDED = {"type": "clearway.feature_store.embedded.EmbeddedOnlineStore", "path": "var/feature_store/online.db"}

DRAUGHT_FIELDS = {"draught": Float64, "containers": Int64, "flag": String, "towed": Bool}


def no_rows(tables: Tables) -> pd.DataFrame:
    return pd.DataFrame()


def draughts(fields: Mapping[str, Any] = DRAUGHT_FIELDS, name: str = "draughts", created: bool = True) -> FeatureView:
    """A view of one entity, with a created time."""
    return FeatureView(
        name=name,
        entities=[SHIP],
        ttl=timedelta(days=1),
        schema=[Field(name="ship", dtype=String), *(Field(name=field, dtype=dtype) for field, dtype in fields.items())],
        source=FileSource(
            path=f"data/feature_tables/{name}.parquet",
            timestamp_field="known_at",
            created_timestamp_column="created" if created else None,
        ),
    )


def moorings() -> FeatureView:
    """A view of two entities, without a created time."""
    return FeatureView(
        name="moorings",
        entities=[SHIP, BERTH],
        schema=[Field(name="ship", dtype=String), Field(name="berth", dtype=String), Field(name="ropes", dtype=Int64)],
        source=FileSource(path="data/feature_tables/moorings.parquet", timestamp_field="known_at"),
    )


class Harbour:
    """A stored project of the given views."""

    def __init__(self, *views: FeatureView) -> None:
        self.views = views
        fields = [field for view in views for field in view.features]
        self.numeric = tuple(field.name for field in fields if field.dtype != String)
        self.categorical = tuple(field.name for field in fields if field.dtype == String)

    def known_at(self, table: str, frame: pd.DataFrame, as_of: datetime | None) -> pd.DataFrame:
        return frame

    def questions(self, tables: Tables) -> pd.DataFrame:
        return pd.DataFrame()

    def inputs(self, questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
        return questions

    def definitions(self) -> Definitions:
        return Definitions(entities=(SHIP, BERTH), views=self.views, events={view.name: no_rows for view in self.views})


def harbour_workspace(folder: Path, online: Mapping[str, Any] = EMBEDDED) -> tuple[Params, Workspace]:
    """A workspace with feature_store.yaml; its package, ``harbour_package``, must be importable from ``folder``."""
    (folder / "harbour_package").mkdir(parents=True)
    (folder / "harbour_package" / "__init__.py").write_text('"""Ships and berths."""\n')
    config = {
        "project": "harbour",
        "provider": "local",
        "entity_key_serialization_version": 3,
        "registry": {"path": "var/feature_store/registry.db"},
        "offline_store": {"type": "clearway.feature_store.offline.PointInTimeOfflineStore"},
        "online_store": dict(online),
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    params = {
        "project": {"name": "harbour", "package": "harbour_package"},
        "sources": {"ships": {"kind": "csv", "path": "ships.csv"}},
        "environments": {"staging": {"port": 0}},
    }
    return Params.model_validate(params), Workspace(folder)


def write_table(workspace: Workspace, view: FeatureView, rows: pd.DataFrame) -> None:
    workspace.feature_tables.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(workspace.feature_tables / f"{view.name}.parquet", index=False)


def draught(ship: str, known_at: datetime, value: float | None, **others: Any) -> dict[str, Any]:
    row = {"ship": ship, "known_at": known_at, "created": None, "draught": value}
    return {**row, "containers": None, "flag": None, "towed": None, **others}


def draught_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=["ship", "known_at", "created", *DRAUGHT_FIELDS])
    frame["known_at"] = pd.to_datetime(frame["known_at"], utc=True).astype("datetime64[us, UTC]")
    frame["created"] = pd.to_datetime(frame["created"], utc=True).astype("datetime64[us, UTC]")
    types = {"draught": "float64", "containers": "Int64", "flag": "string", "towed": "boolean", "ship": "string"}
    return frame.astype(types)


def key(**values: str) -> EntityKey:
    return EntityKey(join_keys=list(values), entity_values=[Value(string_val=value) for value in values.values()])


def plain(value: Value) -> Any:
    kind = value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


def read(store: FeatureStore, view: FeatureView, *keys: EntityKey) -> list[tuple[datetime | None, Any]]:
    """What the online store holds of each key: event time, and plain values by feature."""
    rows = store._get_provider().online_read(store.config, view, list(keys))
    return [(time, None if row is None else {name: plain(v) for name, v in row.items()}) for time, row in rows]
