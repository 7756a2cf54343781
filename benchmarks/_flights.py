"""The example's real data for benchmarks: the feature rows of the whole year, and weeks left out of their reference."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
SEED = 2013
END = datetime(2014, 1, 2, tzinfo=UTC)
"""When all of 2013 is known."""
START = pd.Timestamp("2013-01-01T05:00", tz="UTC")
"""The first midnight of New York."""


def year_of_features(folder: Path) -> None:
    """Write ``year.parquet``: every question of 2013 with its features, in the order of time."""
    from clearway.columns import PREDICTION_TIME, ROW_ID
    from clearway.features import ask
    from clearway.params import load_params
    from clearway.project import load_project
    from clearway.snapshot import read_tables_at
    from clearway.stored_features import event_tables, historical_features, inputs_of
    from clearway.workspace import Workspace

    workspace = Workspace(ROOT)
    params = load_params(workspace.params_file)
    project = load_project(params, {})
    tables = read_tables_at(params, workspace, project, END)

    def found(questions: pd.DataFrame, tables: Any) -> pd.DataFrame:
        inputs = inputs_of(project, questions, tables)
        events = event_tables(project, tables, known_until=END)
        return historical_features(params, workspace, project, questions, inputs, events)

    frame = ask(project, tables, known_until=END, features=found)
    frame = frame.sort_values([PREDICTION_TIME, ROW_ID], kind="stable")
    frame.to_parquet(folder / "year.parquet", index=False)


def check_left_out(folder: Path, first: int, weeks: int, *, around: int, of: int) -> list[dict[str, Any]]:
    """Check ``weeks`` weeks from week ``first``, and two of their days where it is one, against the weeks around them.

    The reference is the ``around`` weeks nearest of ``of``, thinned and calibrated as training does with its own. The
    labels are compared too, as where answers are known; scores are not, for no model is trained.
    """
    from clearway.columns import LABEL, PREDICTION_TIME
    from clearway.drift_reference import compare_with
    from clearway.params import load_params
    from flights.features import CATEGORICAL, NUMERIC

    params = load_params(ROOT / "params.yaml").drift
    year = pd.read_parquet(folder / "year.parquet", columns=[PREDICTION_TIME, LABEL, *NUMERIC, *CATEGORICAL])
    week = ((year[PREDICTION_TIME] - START) // pd.Timedelta(days=7)).to_numpy()
    since = int(np.clip(first - around // 2, 0, of - around - weeks))
    left_out = (week >= first) & (week < first + weeks)
    learnt = (week >= since) & (week < since + around + weeks) & ~left_out & year[LABEL].notna()
    rest = year[learnt].reset_index(drop=True)
    past = reference_as_trained(rest, NUMERIC, CATEGORICAL, params)
    name = f"{first}-{weeks}"
    features = [*NUMERIC, *CATEGORICAL]
    past.rows[features].to_parquet(folder / f"{name}.reference.parquet", index=False)
    windows = {"week" if weeks == 1 else "weeks": year[left_out]}
    if weeks == 1:
        day = ((year[PREDICTION_TIME] - START) // pd.Timedelta(days=1)).to_numpy() % 7
        windows |= {f"day{number}": year[left_out & (day == number)] for number in (first % 7, (first + 3) % 7)}
    checks = []
    for span, rows in windows.items():
        rows[features].to_parquet(folder / f"{name}_{span}.current.parquet", index=False)
        report = compare_with(past, rows, NUMERIC, CATEGORICAL, params, SEED)
        domain = report.domain
        checks.append(
            {
                "name": f"{name}_{span}",
                "span": span.rstrip("0123456"),
                "rows": len(rows),
                "drift": report.drift,
                "unknown": report.verdict == "unknown",
                "columns": report.share is not None and report.share >= params.feature_share,
                "classifier": domain is not None and domain.status == "drift",
                "any": len(report.drifted) > 0,
                "drifted": list(report.drifted),
                "auc": domain and domain.auc,
                "auc_limit": domain and domain.limit,
                "found": _changes_found(past, rows, params) if span == "week" else {},
            }
        )
    return checks


CHANGES: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    "temperature in °C": ("temp", lambda x: (x - 32) / 1.8),
    "wind in knots": ("wind_speed", lambda x: x / 1.151),
    "distance in kilometres": ("distance", lambda x: x * 1.609),
    "distance + 0.2σ": ("distance", lambda x: x + 0.2 * x.std()),
    "departures an hour late": ("departure_minute", lambda x: x + 60),
    "5% of carriers new": ("carrier", lambda x: x.mask(np.arange(len(x)) % 20 == 0, "ZZ")),
    "pressure lost in a third": ("pressure", lambda x: x.mask(np.arange(len(x)) % 3 == 0)),
    "visibility constant": ("visib", lambda x: x * 0 + 10),
}
"""What is done to one column of a real week, to see whether the calibration left the check any sight."""


def _changes_found(past: Any, rows: pd.DataFrame, params: Any) -> dict[str, bool]:
    """Whether each change makes the column it was done to drift, the other columns being as they are."""
    from clearway.drift import measure_drift
    from flights.features import CATEGORICAL, NUMERIC

    found = {}
    for change, (column, do) in CHANGES.items():
        changed = rows.assign(**{column: do(rows[column])})
        report = measure_drift(past.rows, changed, NUMERIC, CATEGORICAL, params, calibration=past.calibration)
        found[change] = column in report.drifted
    return found


def reference_as_trained(rows: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str], params: Any) -> Any:
    """What training would keep of these rows, in the order of time: a sample and its calibration."""
    from clearway.calibration import calibrate
    from clearway.columns import LABEL
    from clearway.domain import calibrate_domain
    from clearway.drift_reference import DriftReference
    from clearway.profile import sample_positions

    sampled = sample_positions(len(rows), seed=SEED)
    kinds = dict.fromkeys(numeric, "numeric") | dict.fromkeys(categorical, "categorical")
    calibration = calibrate(
        rows,
        kinds,
        outputs={LABEL: ("categorical", rows[LABEL])},
        sampled=sampled,
        domain=calibrate_domain(rows, numeric, categorical, params.domain, SEED),
    )
    return DriftReference(rows.iloc[sampled].reset_index(drop=True), calibration, None)
