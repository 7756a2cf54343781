"""SciPy's KS and χ² and two effects per column, called by hand: ``pandas_drift.py REFERENCE CURRENT``."""

import sys
import time

from _measure import peak_mb, report

started = time.perf_counter()
import pandas as pd  # noqa: E402
from scipy.spatial.distance import jensenshannon  # noqa: E402
from scipy.stats import chi2_contingency, ks_2samp, wasserstein_distance  # noqa: E402

imported = time.perf_counter() - started


def column(reference: pd.Series, current: pd.Series) -> tuple[float, float]:
    """Effect and p value."""
    sides = reference.dropna(), current.dropna()
    if pd.api.types.is_numeric_dtype(reference):
        effect = wasserstein_distance(*sides) / reference.std()
        return float(effect), float(ks_2samp(*sides, method="asymp").pvalue)
    table = pd.DataFrame([side.value_counts() for side in sides]).fillna(0).to_numpy()
    return float(jensenshannon(*table, base=2)), float(chi2_contingency(table).pvalue)


def main() -> None:
    reference, current = (pd.read_parquet(file) for file in sys.argv[1:3])
    took = []

    def verdict() -> None:
        started = time.perf_counter()
        for name in reference:
            column(reference[name], current[name])
        took.append(time.perf_counter() - started)

    peak = peak_mb(verdict)
    report(import_seconds=imported, seconds=took, extra_mb=peak)


if __name__ == "__main__":
    main()
