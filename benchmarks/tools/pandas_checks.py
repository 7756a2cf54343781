"""The same checks by hand in pandas, no report of any kind: ``pandas_checks.py FILE REPEATS``."""

import sys
import time

from _flights_checks import BOUNDS, DEST, KEY, MEANS, NOT_NULL, ORIGINS, ROWS, TAILNUM
from _measure import report, seconds

started = time.perf_counter()
import pandas as pd  # noqa: E402

imported = time.perf_counter() - started


def checks(table: pd.DataFrame) -> list[bool]:
    """One truth per check."""
    inside = [
        bool((table[column].between(low, high) | table[column].isna()).all()) for column, (low, high) in BOUNDS.items()
    ]
    present = [bool(table[column].notna().all()) for column in NOT_NULL]
    means = [low <= table[column].mean() <= high for column, (low, high) in MEANS.items()]
    return [
        *inside,
        *present,
        *means,
        bool(table["origin"].isin(ORIGINS).all()),
        bool(table["dest"].str.fullmatch(DEST).all()),
        bool(table["tailnum"].dropna().str.fullmatch(TAILNUM).all()),
        not table.duplicated(list(KEY)).any(),
        ROWS[0] <= len(table) <= ROWS[1],
    ]


def main() -> None:
    file, repeats = sys.argv[1], int(sys.argv[2])
    started = time.perf_counter()
    table = pd.read_parquet(file)
    read = time.perf_counter() - started
    found = checks(table)
    report(
        import_seconds=imported,
        read_seconds=read,
        seconds=seconds(lambda: checks(table), repeats),
        checks=len(found),
        verdict="passed" if all(found) else "failed",
    )


if __name__ == "__main__":
    main()
