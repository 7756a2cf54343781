"""Each kind of target has its own plots; a model whose scores are no numbers is left out of them."""

import csv
import io

import numpy as np
import pytest

from clearway.model_drawings import TABLES, drawings, tables
from clearway.plots import Importance

RANDOM = np.random.default_rng(4)
LABELS = (RANDOM.random(600) < 0.4).astype(float)
GOOD = np.clip(0.4 + 0.3 * LABELS + 0.2 * RANDOM.normal(size=600), 0, 1)
FOUND = [Importance("size", 0.2, 0.01), Importance("weight", 0.0, 0.0)]
HALF = dict.fromkeys(("challenger", "champion", "baseline"), 0.5)


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def draw(kind, labels, scores, found=FOUND, classes=("no", "yes")):
    return drawings(kind, labels, scores, found, metric="roc_auc", thresholds=HALF, classes=classes, seed=1)


def test_a_binary_model_is_drawn_beside_champion_and_baseline() -> None:
    made = draw("binary", LABELS, {"challenger": GOOD, "champion": GOOD / 2, "baseline": 1 - GOOD})
    assert list(made) == ["roc", "precision_recall", "calibration", "scores", "confusion", "importances"]
    for name in ("roc", "precision_recall", "calibration"):
        assert all(f">{role}" in made[name].svg for role in ("challenger", "champion", "baseline")), name
    assert "Area under each: challenger" in made["roc"].svg
    assert "size" in made["importances"].svg


def test_a_model_that_could_not_score_is_left_out() -> None:
    made = draw("binary", LABELS, {"challenger": GOOD, "champion": None, "baseline": np.full(600, np.nan)})
    assert "champion" not in made["roc"].svg
    assert "baseline" not in made["calibration"].svg
    broken = draw("binary", LABELS, {"challenger": np.full(600, np.nan), "baseline": GOOD}, [])
    assert set(broken) == {"roc", "precision_recall", "calibration"}
    assert draw("binary", LABELS, {"challenger": None}, []) == {}


def test_rows_of_one_answer_have_no_curve_and_a_confusion_all_the_same() -> None:
    made = draw("binary", np.zeros(600), {"challenger": GOOD}, [])
    assert set(made) == {"calibration", "scores", "confusion"}


def test_a_multiclass_model_has_a_curve_for_each_class() -> None:
    codes = RANDOM.integers(0, 20, 2000)
    chances = RANDOM.dirichlet(np.ones(20), 2000)
    classes = [f"class {i}" for i in range(20)]
    made = draw("multiclass", codes, {"challenger": chances, "baseline": chances}, [], classes)
    assert set(made) == {"roc", "precision_recall", "confusion", "calibration"}
    assert "Of the 6 classes with the most rows, of 20" in made["precision_recall"].note
    assert "Of the 6 classes with the most rows, of 20" in made["roc"].note
    assert "others" in made["confusion"].svg
    three = draw("multiclass", codes % 3, {"challenger": chances[:, :3]}, [], classes[:3])
    assert all(name in three["confusion"].svg for name in classes[:3])


def test_a_regression_shows_predictions_and_residuals() -> None:
    actual = RANDOM.normal(size=500)
    made = draw("regression", actual, {"challenger": actual + 0.1, "baseline": np.zeros(500)})
    assert list(made) == ["predicted", "residuals", "residuals_by_prediction", "importances"]
    assert "unit of the target" in made["predicted"].svg
    assert draw("regression", actual, {"challenger": None}, []) == {}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_every_table_is_written_whatever_the_kind(kind: str) -> None:
    scores = RANDOM.dirichlet([1, 1], 600) if kind == "multiclass" else GOOD
    made = tables(kind, LABELS, scores, FOUND, threshold=0.5, classes=("no", "yes"))
    assert set(made) == {f"{name}.csv" for name in TABLES}
    assert all(tuple(read(made[f"{name}.csv"])[0]) == columns for name, columns in TABLES.items())
    assert read(made["importances.csv"])[1] == ["size", "0.200000", "0.010000"]
    assert (len(read(made["roc.csv"])) > 1) == (kind == "binary")
    assert (len(read(made["confusion.csv"])) > 1) == (kind != "regression")
    empty = tables(kind, LABELS, None, [], threshold=0.5, classes=("no", "yes"))
    assert all(len(read(text)) == 1 for text in empty.values())
