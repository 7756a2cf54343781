"""Feast's own ``materialize`` of the project ``sensors``: ``feast_materialize.py FOLDER STORE AS_OF``.

FOLDER holds the event table; STORE is ``sqlite``, or ``redis:PORT``. The offline store is Feast's duckdb one.
"""

import os
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

from _measure import peak_mb, report

started = time.perf_counter()
import pyarrow.parquet as pq  # noqa: E402
from _feast_repository import write  # noqa: E402
from feast import FeatureStore  # noqa: E402
from sensors import PATH, PROJECT  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    folder, name, as_of = Path(sys.argv[1]), sys.argv[2], datetime.fromisoformat(sys.argv[3])
    os.chdir(folder)  # Feast's duckdb store looks for files from here
    kind, _, port = name.partition(":")
    online = {"redis": {"type": "redis", "connection_string": f"127.0.0.1:{port}"}}
    write(folder, "duckdb", online.get(kind, {"type": "sqlite", "path": "online.db"}))
    store = FeatureStore(repo_path=str(folder))
    defined = PROJECT.definitions()
    store.apply([*defined.entities, *defined.views])
    took: list[float] = []

    def materialize() -> None:
        began = time.perf_counter()
        store.materialize(start_date=as_of - timedelta(days=30), end_date=as_of)
        took.append(time.perf_counter() - began)

    peak = peak_mb(materialize)
    rows = pq.read_metadata(PATH).num_rows  # one of each entity
    report(import_seconds=imported, seconds=took[0], rows=rows, extra_mb=peak)


if __name__ == "__main__":
    main()
