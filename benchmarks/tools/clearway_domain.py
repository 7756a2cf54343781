"""The domain classifier over all columns of two files: ``clearway_domain.py REFERENCE CURRENT REPEATS``."""

import sys
import time

from _measure import report, seconds

started = time.perf_counter()
import pandas as pd  # noqa: E402

from clearway.domain import measure_domain  # noqa: E402
from clearway.params import DomainParams  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    reference, current = (pd.read_parquet(file) for file in sys.argv[1:3])
    numeric = [name for name in reference if pd.api.types.is_numeric_dtype(reference[name])]
    categorical = [name for name in reference if name not in numeric]
    small = reference.head(200), current.head(200)
    (first,) = seconds(lambda: measure_domain(*small, numeric, categorical, DomainParams()), 1)
    times = seconds(lambda: measure_domain(reference, current, numeric, categorical, DomainParams()), int(sys.argv[3]))
    report(import_seconds=imported + first, seconds=times)


if __name__ == "__main__":
    main()
