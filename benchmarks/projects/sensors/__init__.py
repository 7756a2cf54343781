"""A small stored project to measure with: one entity, one view of five numbers, and nothing else in the way."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from clearway.feature_store.definitions import Definitions
    from clearway.project import Tables

FIELDS = ("heat", "load", "noise", "pressure", "speed")
TTL = timedelta(days=7)
VIEW = "readings"
PATH = f"data/feature_tables/{VIEW}.parquet"


def readings(tables: "Tables") -> pd.DataFrame:
    """The rows of the view: the raw table as it is."""
    return tables["readings"]


class Sensors:
    """Will a sensor raise an alarm, by its last reading?"""

    numeric = FIELDS
    categorical: tuple[str, ...] = ()

    def known_at(self, table: str, frame: pd.DataFrame, as_of: datetime | None) -> pd.DataFrame:
        time = {"readings": "known_at", "alarms": "asked_at"}[table]
        return frame if as_of is None else frame[frame[time] <= as_of]

    def questions(self, tables: "Tables") -> pd.DataFrame:
        asked = tables["alarms"].sort_values(["asked_at", "alarm"], kind="stable")
        return pd.DataFrame(
            {
                "row_id": asked["alarm"].astype("string"),
                "entity": asked["sensor"].astype("string"),
                "prediction_time": asked["asked_at"],
                "label_time": asked["asked_at"],
                "label": asked["raised"].astype("float64"),
            }
        )

    def definitions(self, ttl: timedelta = TTL) -> "Definitions":
        from feast import Entity, FeatureView, Field, FileSource
        from feast.types import Float64, String
        from feast.value_type import ValueType

        from clearway.feature_store.definitions import Definitions

        sensor = Entity(name="sensor", join_keys=["sensor"], value_type=ValueType.STRING, description="A machine's eye")
        view = FeatureView(
            name=VIEW,
            entities=[sensor],
            ttl=ttl,
            schema=[Field(name="sensor", dtype=String), *(Field(name=name, dtype=Float64) for name in FIELDS)],
            source=FileSource(name=VIEW, path=PATH, timestamp_field="known_at"),
            owner="benchmarks",
            description="What a sensor said last",
        )
        return Definitions(entities=(sensor,), views=(view,), events={VIEW: readings})

    def inputs(self, questions: pd.DataFrame, tables: "Tables") -> pd.DataFrame:
        return pd.DataFrame({"sensor": questions["entity"].astype("string")}, index=questions.index)


PROJECT = Sensors()
