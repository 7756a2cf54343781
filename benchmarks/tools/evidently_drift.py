"""Evidently's default preset over all columns of two files: ``evidently_drift.py REFERENCE CURRENT``."""

import sys
import time

from _measure import peak_mb, report

started = time.perf_counter()
import pandas as pd  # noqa: E402
from evidently import DataDefinition, Dataset, Report  # noqa: E402
from evidently.presets import DataDriftPreset  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    reference, current = (pd.read_parquet(file) for file in sys.argv[1:3])
    numeric = [name for name in reference if pd.api.types.is_numeric_dtype(reference[name])]
    definition = DataDefinition(
        numerical_columns=numeric, categorical_columns=[name for name in reference if name not in numeric]
    )
    took = []

    def verdict() -> None:
        started = time.perf_counter()
        sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in (current, reference)]
        Report([DataDriftPreset()]).run(*sides).dict()
        took.append(time.perf_counter() - started)

    data = sum(side.memory_usage(index=False).sum() for side in (reference, current)) / 2**20
    peak = peak_mb(verdict)
    report(import_seconds=imported, seconds=took, extra_mb=peak, data_mb=float(data))


if __name__ == "__main__":
    main()
