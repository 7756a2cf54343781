"""The prediction log: what a record costs a request, how fast it is written, compacted and read, and at what size.

The records are like those of the flights: 17 features each, by key. ``--quick`` writes 200,000 of them, the whole 10
million, of fifty revisions, in one process; compaction and reading are measured in processes of their own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from _figures import Figures, arguments

RECORDS, QUICK, REVISIONS = 10_000_000, 200_000, 50
BATCH = 10_000
"""Records that are offered at once; the writer is then let to catch up."""

MEASURE = """
import json, resource, sys, time
from datetime import UTC, datetime
from pathlib import Path
from clearway.log_compaction import compact
from clearway.prediction_log import read_log
folder, what = Path(sys.argv[1]), sys.argv[2]
began, processor = time.perf_counter(), time.process_time()
if what == "compact":
    made = compact(folder, datetime.now(UTC)).records
else:
    judged = ["id", "version", "role", "entity", "served_at", "status", "latency_ms", "score"]
    columns = None if what == "all" else judged
    made = len(read_log(folder, revisions=[25], columns=columns))
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"made": made, "seconds": seconds, "processor": time.process_time() - processor, "gb": peak}))
"""


def record(number: int, total: int, began: datetime) -> dict[str, Any]:
    """A prediction by key."""
    features: dict[str, Any] = {f"feature_{place}": (number * 7919 + place) % 10_007 / 7 for place in range(14)}
    features |= {"origin": ("EWR", "JFK", "LGA")[number % 3], "carrier": f"C{number % 16}", "dest": f"D{number % 100}"}
    return {
        "id": f"{number * 2654435761 % 2**32:032x}",
        "revision": 1 + number * REVISIONS // total,
        "version": ("a" if number % 10 else "b") * 64,
        "role": "stable" if number % 10 else "canary",
        "entity": f"N{number % 4000}",
        "asked_at": "2013-07-01T12:00:00+00:00",
        "served_at": began + timedelta(microseconds=number * 8640),
        "status": 200,
        "latency_ms": 0.2 + number % 100 / 50,
        "score": number % 1000 / 1000,
        "inputs": {"origin": "JFK", "aircraft": f"N{number % 4000}", "distance": 187.0},
        "features": features,
    }


def nanoseconds(call: Callable[[], object], times: int = 50_000) -> float:
    """Of one call: the median of nine series, by the processor time of this thread."""
    series = []
    for _ in range(9):
        began = time.thread_time_ns()
        for _ in range(times):
            call()
        series.append((time.thread_time_ns() - began) / times)
    return statistics.median(series)


def measured(folder: Path, what: str) -> dict[str, float]:
    """A compaction or a read in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def write(folder: Path, records: int) -> float:
    """Seconds in which a log of so many records was written."""
    from clearway.prediction_log import PredictionLog

    log, spent = PredictionLog(folder), 0.0
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    for first in range(0, records, BATCH):
        batch = [record(number, records, midnight) for number in range(first, min(first + BATCH, records))]
        began = time.perf_counter()
        log.extend(batch)
        while log.written + log.dropped < first + len(batch):
            time.sleep(0.002)
        spent += time.perf_counter() - began
    log.close()
    assert log.dropped == 0
    return spent


def main() -> int:
    options = arguments(__doc__ or "")
    figures = Figures("prediction_log")
    from clearway.prediction_log import PredictionLog

    records = QUICK if options.quick else RECORDS
    with tempfile.TemporaryDirectory(prefix="clearway-bench-") as temporary:
        log, one = PredictionLog(Path(temporary) / "cost", capacity=10**8), {"id": "1"}
        figures.add("append_ns", nanoseconds(lambda: log.append(one)))
        log.close()
        folder = Path(temporary) / "log"
        figures.add("written_per_second", records / write(folder, records))
        lines = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
        compacted = measured(folder, "compact")
        assert compacted["made"] == records
        figures.add("compacted_per_second", records / compacted["seconds"])
        figures.add("compaction_processor_seconds_per_million", compacted["processor"] / records * 1e6)
        figures.add("compaction_peak_gb", compacted["gb"])
        figures.add("bytes_per_record_before", lines / records)
        parts = list(folder.rglob("part-*.parquet"))
        figures.add("bytes_per_record", sum(path.stat().st_size for path in parts) / records)
        judged = measured(folder, "judged")
        assert judged["made"] == records // REVISIONS
        figures.add("read_revision_seconds", judged["seconds"])
        figures.add("read_revision_peak_gb", judged["gb"])
        figures.add("read_revision_with_features_seconds", measured(folder, "all")["seconds"])
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
