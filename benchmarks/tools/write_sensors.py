"""Data of the project ``sensors``, written by a process of its own, so that its memory is not counted.

``write_sensors.py historical FOLDER ENTITIES QUESTIONS``: fifty readings of each entity, and one of some more; of the
questions (``entity_df.parquet``) 1% ask entities that are unknown, 0.5% are asked twice, and some come too early.
``write_sensors.py online FOLDER ENTITIES AS_OF``: three readings of each entity, and the questions to learn from.
``write_sensors.py events FOLDER ENTITIES AS_OF``: one reading of each entity, ready to be filled into a store.
"""

import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "projects"))
from sensors import FIELDS, PATH

READINGS = 50
GAP = timedelta(days=2)
"""Mean time between two readings of an entity; the TTL is 7 days."""
START = datetime.fromisoformat("2024-01-01T00:00:00+00:00")


def _times(start: datetime, seconds: np.ndarray) -> pd.Series:
    moments = pd.Series(pd.to_timedelta(seconds, unit="s")) + pd.Timestamp(start)
    return moments.astype("datetime64[us, UTC]")


def _rows(keys: np.ndarray, times: pd.Series, random: np.random.Generator) -> pd.DataFrame:
    values = {name: random.normal(50, 10, len(keys)).round(3) for name in FIELDS}
    frame = pd.DataFrame({"sensor": pd.Series(keys).map("s{}".format).astype("string"), "known_at": times, **values})
    return frame.drop_duplicates(["sensor", "known_at"]).sort_values("known_at", kind="stable", ignore_index=True)


def historical(folder: Path, entities: int, questions: int) -> None:
    random = np.random.default_rng(1)
    gaps = random.exponential(GAP.total_seconds(), (entities, READINGS))
    once = np.arange(entities, entities + entities // 5)
    keys = np.concatenate([np.repeat(np.arange(entities), READINGS), once])
    end = READINGS * GAP.total_seconds()
    seconds = np.concatenate([gaps.cumsum(axis=1).ravel(), random.uniform(0, end, len(once))])
    _write(_rows(keys, _times(START, seconds), random), folder)
    asked = random.integers(0, entities, questions)
    asked[: questions // 100] += 10**6  # nobody knows these
    asked[questions // 100 : questions // 50] = random.choice(once, questions // 50 - questions // 100)
    twice = questions // 200
    times = random.uniform(0, end, questions)
    asked[-twice:], times[-twice:] = asked[-2 * twice : -twice], times[-2 * twice : -twice]
    order = random.permutation(questions)
    frame = pd.DataFrame(
        {
            "sensor": pd.Series(asked[order]).map("s{}".format),
            "event_timestamp": _times(START, times[order]),
            "row": np.arange(questions),
        }
    )
    _write(frame, folder, "entity_df.parquet")


def online(folder: Path, entities: int, as_of: datetime) -> None:
    random = np.random.default_rng(2)
    keys = np.arange(entities)
    hours = ((-288, -216), (-120, -72), (-6, -1))
    seconds = np.concatenate([random.uniform(low * 3600, high * 3600, entities) for low, high in hours])
    _write(_rows(np.tile(keys, 3), _times(as_of, seconds), random), folder, "source/readings.parquet")
    asked = 4000
    alarms = pd.DataFrame(
        {
            "alarm": pd.Series(np.arange(asked)).map("a{}".format),
            "sensor": pd.Series(random.choice(keys, asked)).map("s{}".format),
            "asked_at": _times(as_of, random.uniform(-10 * 86400, -60, asked)),
            "raised": random.integers(0, 2, asked),
        }
    )
    _write(alarms, folder, "source/alarms.parquet")


def events(folder: Path, entities: int, as_of: datetime) -> None:
    random = np.random.default_rng(3)
    _write(_rows(np.arange(entities), _times(as_of, random.uniform(-6 * 3600, -3600, entities)), random), folder)


def _write(frame: pd.DataFrame, folder: Path, name: str = PATH) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
    print(f'{{"rows": {len(frame)}}}')


def main() -> None:
    what, folder, entities, last = sys.argv[1:]
    if what == "historical":
        historical(Path(folder), int(entities), int(last))
    else:
        {"online": online, "events": events}[what](Path(folder), int(entities), datetime.fromisoformat(last))


if __name__ == "__main__":
    main()
