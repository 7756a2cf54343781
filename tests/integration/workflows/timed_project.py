"""A project whose data knows time: visits of half a year, and a clock of its own that a scheduled run moves a week."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

START = "2024-04-01T00:00:00Z"

PACKAGE = '''
"""Will a visitor come back? Asked when they leave, known two days later."""

import pandas as pd


class Visits:
    numeric = ("minutes", "pages")
    categorical = ("device",)

    def known_at(self, table, frame, as_of):
        frame = frame[frame["left_at"] <= as_of].copy()
        unknown = frame["known_at"] > as_of
        frame.loc[unknown, "back"] = None
        frame.loc[unknown, "known_at"] = pd.NaT
        return frame

    def questions(self, tables):
        frame = tables["visits"].sort_values("left_at")
        return pd.DataFrame(
            {
                "row_id": frame["visit"].astype("string"),
                "entity": frame["visit"].astype("string"),
                "prediction_time": frame["left_at"],
                "label_time": frame["known_at"],
                "label": frame["back"].astype("float64"),
            }
        )

    def features(self, questions, tables):
        features = tables["visits"].loc[questions.index, ["minutes", "pages", "device"]].copy()
        features["device"] = features["device"].astype("string")
        return features


PROJECT = Visits()
'''

SCHEMA = {
    "tables": {
        "visits": {
            "columns": {
                "visit": {"kind": "str"},
                "left_at": {"kind": "timestamp"},
                "known_at": {"kind": "timestamp", "nullable": True},
                "minutes": {"kind": "float", "min": 0},
                "pages": {"kind": "float", "min": 0},
                "device": {"kind": "str", "values": ["phone", "desk"]},
                "back": {"kind": "float", "nullable": True},
            }
        }
    }
}

PARAMS = {
    "project": {"name": "visits", "package": "visits"},
    "as_of": "auto",
    "clock": {"start": START, "step_days": 7},
    "sources": {"visits": {"kind": "csv", "path": "visits.csv", "timestamps": ["left_at", "known_at"]}},
    "split": {"holdout_days": 14, "current_days": 7},
    "decision": {"schedule": {"max_age_days": 7}},
}


DAYS_TO_START = 91


def write_timed_project(folder: Path, days: int = 180) -> None:
    """Twenty visits a day, whose makeup never changes: nothing but time asks for another model."""
    random = np.random.default_rng(7)
    count = 20 * days
    left = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(count) * 72, unit="min")
    minutes, pages = random.gamma(2, 5, count), random.integers(1, 20, count).astype(float)
    back = (minutes / 10 + pages / 10 + random.normal(0, 0.4, count) > 2).astype(float)
    visits = pd.DataFrame(
        {
            "visit": [f"v{number}" for number in range(count)],
            "left_at": left,
            "known_at": left + pd.Timedelta(days=2),
            "minutes": minutes,
            "pages": pages,
            "device": random.choice(["phone", "desk"], count),
            "back": back,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    visits.to_csv(folder / "visits.csv", index=False)
    (folder / "visits.py").write_text(PACKAGE)
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
