"""Seconds and memory of one process; imported by the scripts beside it, whatever environment they run in."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall time of each of ``repeats`` runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def peak_mb(work: Callable[[], Any]) -> float:
    """Largest growth of the resident memory while ``work`` runs, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = _status("VmRSS")
    work()
    return max(0.0, _status("VmHWM") - before)


def report(**measured: Any) -> None:
    """Print the result for :mod:`_peers`; a list of times as its median."""
    said = {
        key: statistics.median(value) if key.endswith("seconds") and isinstance(value, list) else value
        for key, value in measured.items()
    }
    print(json.dumps(said))


def _status(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024
