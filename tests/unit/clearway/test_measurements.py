"""Every metric with its interval, part by part: what people read beside the verdict."""

import json

import numpy as np
import pandas as pd
import pytest

from clearway.gates import Holdout
from clearway.measurements import MOST_PARTS, Measurements, feature_importances, measurements
from clearway.metrics import METRICS, measure

RANDOM = np.random.default_rng(6)
ROWS = 1200
LABELS = (RANDOM.random(ROWS) < 0.4).astype(float)
SCORES = np.clip(0.4 + 0.2 * LABELS + 0.2 * RANDOM.normal(size=ROWS), 0, 1)
FRAME = pd.DataFrame(
    {
        "colour": np.where(np.arange(ROWS) < 20, "rare", np.where(np.arange(ROWS) % 2, "red", "green")),
        "size": RANDOM.normal(size=ROWS),
        "id": np.arange(ROWS).astype(str),
    }
)
HOLDOUT = Holdout(LABELS, threshold=0.5, confidence=0.95, resamples=20, seed=1)


def of(columns, scores=SCORES, champion=None, min_rows=100, **changes) -> Measurements:
    return measurements(
        HOLDOUT,
        {"challenger": scores, "champion": champion, "baseline": SCORES / 2},
        {"challenger": 0.5, "champion": 0.2, "baseline": 0.5},
        FRAME,
        columns,
        changes.get("found", []),
        metric="roc_auc",
        training={"challenger": {"roc_auc": 0.9}},
        min_rows=min_rows,
        bins=4,
    )


def test_every_metric_of_the_holdout_has_its_interval() -> None:
    found = of([]).intervals
    assert set(found) == set(METRICS)
    values = measure(LABELS, SCORES, 0.5)
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(values[name])
        assert interval.lower < interval.estimate < interval.upper


def test_parts_hold_the_metrics_of_their_rows_by_role_at_each_ones_threshold() -> None:
    found = of(["colour"], champion=SCORES)
    assert [part.name for part in found.parts] == ["colour=green", "colour=red"]
    assert found.left_out == 1  # the rare
    red = found.parts[1]
    rows = (FRAME["colour"] == "red").to_numpy()
    assert red.rows == rows.sum()
    assert red.metrics["challenger"] == pytest.approx(measure(LABELS[rows], SCORES[rows], 0.5))
    assert red.metrics["champion"] == pytest.approx(measure(LABELS[rows], SCORES[rows], 0.2))
    assert red.interval is not None
    assert red.interval.estimate == pytest.approx(red.metrics["challenger"]["roc_auc"])


def test_combinations_numbers_and_columns_named_twice() -> None:
    found = of([("colour", "size"), "size", "size", "absent"], min_rows=50)
    columns = [part.column for part in found.parts]
    assert columns.count("size") == 4
    assert columns.count("colour&size") == 8


def test_a_column_of_ids_does_not_flood_the_report() -> None:
    found = of(["id", "colour"], min_rows=1)
    assert len(found.parts) == MOST_PARTS
    assert found.left_out == ROWS + 3 - MOST_PARTS
    assert {"green", "red"} <= {part.value for part in found.parts}


def test_scores_that_are_no_numbers_are_measured_nowhere() -> None:
    found = of(["colour"], scores=np.full(ROWS, np.nan))
    assert found.intervals == {}
    assert all(part.interval is None and part.metrics["challenger"] == {} for part in found.parts)
    json.dumps(found.document(), allow_nan=False)


def test_the_importance_of_a_loss_is_what_is_lost() -> None:
    matrix = RANDOM.normal(size=(ROWS, 2)).astype(np.float32)
    matrix[:, 0] = SCORES
    found = feature_importances(HOLDOUT, lambda rows: rows[:, 0].astype(float), matrix, ("score", "noise"), "brier")
    assert [one.feature for one in found] == ["score", "noise"]
    assert found[0].mean > 0
    assert (
        json.loads(json.dumps(of([], found=found).document(), allow_nan=False))["importances"][0]["feature"] == "score"
    )
