"""The full verdict over all columns of two files: ``clearway_drift.py REFERENCE CURRENT REPEATS``."""

import sys
import time

from _measure import peak_mb, report, seconds

started = time.perf_counter()
import pandas as pd  # noqa: E402

from clearway.drift import measure_drift  # noqa: E402
from clearway.params import DriftParams  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    reference, current = (pd.read_parquet(file) for file in sys.argv[1:3])
    numeric = [name for name in reference if pd.api.types.is_numeric_dtype(reference[name])]
    categorical = [name for name in reference if name not in numeric]
    # what the first call imports is counted with the imports
    small = reference.head(1000), current.head(1000)
    (first,) = seconds(lambda: measure_drift(*small, numeric, categorical, DriftParams()), 1)
    (again,) = seconds(lambda: measure_drift(*small, numeric, categorical, DriftParams()), 1)

    def verdict() -> object:
        return measure_drift(reference, current, numeric, categorical, DriftParams())

    data = sum(side.memory_usage(index=False).sum() for side in (reference, current)) / 2**20
    peak = peak_mb(verdict)
    times = seconds(verdict, int(sys.argv[3]))
    report(import_seconds=imported + first - again, seconds=times, extra_mb=peak, data_mb=float(data))


if __name__ == "__main__":
    main()
