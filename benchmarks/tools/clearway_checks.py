"""All checks of one table by ``schema.yaml``, in memory: ``clearway_checks.py PROJECT TABLE REPEATS``.

Foreign keys need the other tables and are not judged here; the whole process does judge them.
"""

import sys
import time
from pathlib import Path

from _measure import report, seconds

started = time.perf_counter()
import polars as pl  # noqa: E402

from clearway.checks import load_checks  # noqa: E402
from clearway.params import load_params  # noqa: E402
from clearway.schema import load_schema  # noqa: E402
from clearway.validation import ValidationReport, validate_table  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    project, name, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    started = time.perf_counter()
    table = pl.read_parquet(project / "data" / "raw" / f"{name}.parquet")
    read = time.perf_counter() - started
    params, schema = load_params(project / "params.yaml"), load_schema(project / "schema.yaml")
    checks = load_checks(params.project.package, schema)

    def validate() -> ValidationReport:
        return validate_table(name, table, schema, as_of=params.time(), checks=checks)

    found = validate()
    report(
        import_seconds=imported,
        read_seconds=read,
        seconds=seconds(validate, repeats),
        checks=sum(check.status != "unknown" for check in found.checks),
        verdict=found.verdict,
    )


if __name__ == "__main__":
    main()
