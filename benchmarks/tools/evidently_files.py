"""Evidently's default scores of every pair ``NAME.reference.parquet`` and ``NAME.current.parquet`` in a folder."""

import json
import sys
from pathlib import Path

import pandas as pd
from evidently_scores import score


def main() -> None:
    said = {}
    references: dict[str, pd.DataFrame] = {}
    for path in sorted(Path(sys.argv[1]).glob("*.current.parquet")):
        name = path.name.removesuffix(".current.parquet")
        current = pd.read_parquet(path)
        whose = path.with_name(f"{name.split('_')[0]}.reference.parquet")
        reference = references[whose.name] = references.get(whose.name, pd.read_parquet(whose))
        numeric = [pd.api.types.is_numeric_dtype(reference[column]) for column in current]
        said[name] = [
            score(reference[column], current[column], number)[0]
            for column, number in zip(current, numeric, strict=True)
        ]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
