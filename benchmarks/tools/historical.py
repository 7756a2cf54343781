"""``get_historical_features`` of one offline store: ``historical.py FOLDER STORE TTL_DAYS REPEATS``.

The answer is written to ``STORE.parquet``, in the order of the rows asked.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from _measure import peak_mb, report

started = time.perf_counter()
import pandas as pd  # noqa: E402
from _feast_repository import write  # noqa: E402
from feast import FeatureStore  # noqa: E402
from sensors import FIELDS, PROJECT, VIEW  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    folder, name, days, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.chdir(folder)  # Feast's duckdb store looks for files from here
    write(folder, name, {"type": "sqlite", "path": "unused.db"})
    store = FeatureStore(repo_path=str(folder))
    defined = PROJECT.definitions(ttl=timedelta(days=days))
    store.apply([*defined.entities, *defined.views])
    asked = pd.read_parquet("entity_df.parquet")
    features = [f"{VIEW}:{field}" for field in FIELDS]
    took: list[float] = []
    answers: list[pd.DataFrame] = []

    def get(rows: pd.DataFrame) -> None:
        began = time.perf_counter()
        answers[:] = [store.get_historical_features(entity_df=rows, features=features).to_df()]
        took.append(time.perf_counter() - began)

    get(asked.head(1000).copy())  # what the first call imports is no part of the others
    first = took.pop()
    peak = peak_mb(lambda: get(asked))
    if repeats > 1:
        took.clear()
        for _ in range(repeats):
            get(asked.copy())
    answer = answers[0].sort_values("row", kind="stable")[["row", *FIELDS]]
    answer.to_parquet(f"{name}.parquet", index=False)
    lost = len(asked) - answer["row"].nunique()
    report(
        import_seconds=imported,
        first_seconds=first,
        seconds=took,
        extra_mb=peak,
        rows=len(answer),
        lost=lost,
        null_rows=int(answer[FIELDS[0]].isna().sum()),
    )


if __name__ == "__main__":
    main()
