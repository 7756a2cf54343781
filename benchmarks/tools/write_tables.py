"""Tables to measure with, written by a process of its own, so that its memory is not counted.

``write_tables.py many FLIGHTS TARGET COPIES``: the flights so many times, told apart by their flight number.
``write_tables.py drift FOLDER ROWS``: reference and current of 15 columns, unshifted, and of 30.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

FLIGHT_STEP = 10_000
"""Above the largest flight number."""
KINDS = (
    "normal", "exponential", "t, 5 df", "uniform", "Poisson, mean 3", "log-normal, σ = 2", "90% zeros", "normal",
    "normal, 30% missing", "exponential", "t, 2 df", "normal, 0.1% missing",
    "5 categories", "20 categories", "100 categories",
)  # fmt: skip
"""12 numeric, 3 categorical."""


def many(source: Path, target: Path, copies: int) -> int:
    table = pyarrow.parquet.read_table(source)
    position = table.schema.get_field_index("flight")
    field = table.schema.field(position)
    with pyarrow.parquet.ParquetWriter(target, table.schema, compression="zstd") as writer:
        for copy in range(copies):
            step = pa.scalar(FLIGHT_STEP * copy, type=field.type)
            writer.write_table(table.set_column(position, field, pyarrow.compute.add(table["flight"], step)))
    return table.num_rows * copies


def drift(folder: Path, rows: int) -> int:
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from _synthetic import frame

    rng = np.random.default_rng(rows)
    for side in ("reference", "current"):
        columns = frame(KINDS, rng, rows)
        columns.to_parquet(folder / f"{side}-{rows}.parquet", index=False)
        if rows <= 300_000:
            twice = columns.join(frame(KINDS, rng, rows).add_prefix("y"))
            twice.to_parquet(folder / f"{side}-{rows}-twice.parquet", index=False)
    return rows


def main() -> None:
    what, *rest = sys.argv[1:]
    made = many(Path(rest[0]), Path(rest[1]), int(rest[2])) if what == "many" else drift(Path(rest[0]), int(rest[1]))
    print(made)


if __name__ == "__main__":
    main()
