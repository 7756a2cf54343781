"""What Evidently's default preset says of synthetic columns: its own test per column, in units of its own limit.

``evidently_scores.py pool COLUMNS REFERENCE CURRENT SEED REPETITIONS`` or
``evidently_scores.py SCENARIO KIND SEED REPETITIONS``. A score of 1 or more is drift. The tests are called one by one,
as its ``ValueDrift`` does: the preset itself spends most of its time on pictures. The first column of the first
repetition is measured by the preset too, and the two must agree.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType
from evidently.presets import DataDriftPreset

sys.path.insert(0, str(Path(__file__).parents[1]))
from _synthetic import COLUMNS, KINDS, SCENARIOS, pool, shifted


def score(reference: pd.Series, current: pd.Series, numeric: bool) -> tuple[float, float]:
    """Evidently's score of a column over its limit, and the bare score; p values count the other way round."""
    kind = ColumnType.Numerical if numeric else ColumnType.Categorical
    sides = [side.replace([-np.inf, np.inf], np.nan).dropna() for side in (reference, current)]
    if min(map(len, sides)) == 0:
        return 0.0, 0.0
    test = get_stattest(*sides, kind, None)
    found = test(*sides, kind, test.default_threshold)
    limit = found.actual_threshold
    if len(reference) <= 1000:  # its small-sample tests give p values
        return float(np.log(max(found.drift_score, 1e-300)) / np.log(limit)), float(found.drift_score)
    return float(found.drift_score / limit), float(found.drift_score)


def scores(reference: pd.DataFrame, current: pd.DataFrame, kinds: list[str]) -> list[float]:
    names = enumerate(reference.columns)
    return [score(reference[name], current[name], KINDS[kinds[i]].numeric)[0] for i, name in names]


def check(reference: pd.DataFrame, current: pd.DataFrame, kinds: list[str]) -> None:
    """The preset must say of the first column what :func:`score` says."""
    name = reference.columns[0]
    numeric = KINDS[kinds[0]].numeric
    side = DataDefinition(**{"numerical_columns" if numeric else "categorical_columns": [name]})
    sets = [Dataset.from_pandas(frame[[name]], data_definition=side) for frame in (current, reference)]
    metrics = Report([DataDriftPreset()]).run(*sets).dict()["metrics"]
    (said,) = [metric["value"] for metric in metrics if metric["metric_name"].startswith("ValueDrift")]
    ours = score(reference[name], current[name], numeric)[1]
    if not np.isclose(said, ours):
        sys.exit(f"the preset says {said}, its test says {ours}")


def main() -> None:
    what, *rest = sys.argv[1:]
    results: list[object] = []
    if what == "pool":
        columns, first, second, seed, repetitions = map(int, rest)
        for i in range(repetitions):
            kinds, reference, current = pool(columns, (first, second), (seed, i))
            if i == 0:
                check(reference, current, kinds)
            results.append(scores(reference, current, kinds))
    else:
        kind, seed, repetitions = rest[0], int(rest[1]), int(rest[2])
        kinds = [kind] * COLUMNS
        for i in range(repetitions):
            reference, current, moved = shifted(SCENARIOS[what], kind, (seed, i))
            if i == 0:
                check(reference, current, kinds)
            results.append([scores(reference, side, kinds) for side in (current, moved)])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
