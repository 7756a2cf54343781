"""The flights as the line sees them: their questions, their features, and what was known when."""

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.errors import ClearwayError
from clearway.project import Tables
from flights import features, sources, times
from flights.zones import NEW_YORK, ZONES

if TYPE_CHECKING:
    from clearway.feature_store.definitions import Definitions

LATE_MINUTES = 15
"""A flight that arrives more than this many minutes after its schedule is late."""


class Flights:
    """Fulfils :class:`clearway.project.StoredProject`."""

    numeric = features.NUMERIC
    categorical = features.CATEGORICAL

    def known_at(self, table: str, frame: pd.DataFrame, as_of: datetime | None) -> pd.DataFrame:
        return sources.known_at(table, frame, as_of)

    def questions(self, tables: Tables) -> pd.DataFrame:
        """One question per scheduled flight; the index is that of the flights table.

        The label of a flight that was cancelled or diverted, or has not landed, is null.

        Raises
        ------
        ClearwayError
            The time zone of a destination is not known.
        """
        flights = tables["flights"]
        unknown = sorted(set(flights["dest"].astype(str)) - set(ZONES))
        if unknown:
            raise ClearwayError(f"flights: dest {', '.join(unknown)} has no time zone: add it to src/flights/zones.py")
        landing = times.landing(flights)
        questions = pd.DataFrame(
            {
                ROW_ID: row_ids(flights),
                ENTITY: flights["tailnum"].astype("string"),
                PREDICTION_TIME: times.prediction_time(flights),
                LABEL_TIME: landing,
                LABEL: (flights["arr_delay"] > LATE_MINUTES).astype("float64").where(landing.notna()),
            }
        )
        return questions.sort_values([PREDICTION_TIME, ROW_ID], kind="stable")

    def definitions(self) -> "Definitions":
        from flights.definitions import DEFINITIONS  # imports Feast, which ingest has no use for

        return DEFINITIONS

    def inputs(self, questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
        return features.inputs(questions, tables["flights"])


def row_ids(flights: pd.DataFrame) -> pd.Series:
    """The identity of a scheduled flight: local date and time of departure, carrier, number and origin.

    A carrier may use one number for several legs of a day, so the origin belongs to it.
    """
    local = times.scheduled_departure(flights).dt.tz_convert(NEW_YORK).dt.tz_localize(None)
    minute = pd.Series(np.datetime_as_string(local.to_numpy(), unit="m"), index=flights.index)  # 2013-06-01T17:45
    parts = flights[["carrier", "flight", "origin"]].astype(str)
    return minute.str.cat(parts, sep="-").astype("string")


PROJECT = Flights()
