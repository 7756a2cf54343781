"""What schema.yaml asks of the flights, by Great Expectations: ``great_expectations_checks.py FILE REPEATS``.

Its set-up (context, source, suite) is counted apart from its checks.
"""

import sys
import time

from _flights_checks import BOUNDS, DEST, KEY, MEANS, NOT_NULL, ORIGINS, ROWS, TAILNUM
from _measure import report, seconds

started = time.perf_counter()
import great_expectations as gx  # noqa: E402
import great_expectations.expectations as expect  # noqa: E402
import pandas as pd  # noqa: E402
from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: E402

imported = time.perf_counter() - started


def expectations() -> list[expect.Expectation]:
    made = [
        expect.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)
        for column, (low, high) in BOUNDS.items()
    ]
    made += [expect.ExpectColumnValuesToNotBeNull(column=column) for column in NOT_NULL]
    made += [
        expect.ExpectColumnMeanToBeBetween(column=column, min_value=low, max_value=high)
        for column, (low, high) in MEANS.items()
    ]
    return [
        *made,
        expect.ExpectColumnValuesToBeInSet(column="origin", value_set=list(ORIGINS)),
        expect.ExpectColumnValuesToMatchRegex(column="dest", regex=f"^{DEST}$"),
        expect.ExpectColumnValuesToMatchRegex(column="tailnum", regex=f"^{TAILNUM}$"),
        expect.ExpectCompoundColumnsToBeUnique(column_list=list(KEY)),
        expect.ExpectTableRowCountToBeBetween(min_value=ROWS[0], max_value=ROWS[1]),
    ]


def main() -> None:
    file, repeats = sys.argv[1], int(sys.argv[2])
    started = time.perf_counter()
    table = pd.read_parquet(file)
    read = time.perf_counter() - started
    started = time.perf_counter()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("flights")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    suite = gx.ExpectationSuite(name="flights", expectations=expectations())
    set_up = time.perf_counter() - started
    results = []
    times = seconds(lambda: results.append(batch.validate(suite)), max(1, repeats))
    failed = [result.expectation_config.type for result in results[0].results if not result.success]
    report(
        import_seconds=imported,
        read_seconds=read,
        set_up_seconds=set_up,
        seconds=times,
        checks=len(suite.expectations),
        verdict="failed" if failed else "passed",
        failed=failed,
    )


if __name__ == "__main__":
    main()
