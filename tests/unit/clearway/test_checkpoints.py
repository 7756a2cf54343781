"""A fit in parts ends at the bytes of a plain fit, and goes on from what it has kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from clearway.checkpoints import Checkpoints, fit_in_parts, state_basis, state_key, why_not
from clearway.errors import ClearwayError
from clearway.export import to_skops
from clearway.params import Params

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(200, 3)).astype(np.float32)
LABELS = (MATRIX[:, 0] + MATRIX[:, 1] ** 2 + RANDOM.normal(size=200) > 0.7).astype(np.int64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Beside busy neighbours, threads of fits as small as these wait for one another."""
    with threadpool_limits(limits=1):
        yield


class KilledError(Exception):
    pass


def killed_after(parts: int) -> Any:
    seen = []

    def show(what: str, done: int, total: int, said: str = "") -> None:
        seen.append(done)
        if len(seen) > parts:
            raise KilledError

    return show


CONTINUABLE = [
    HistGradientBoostingClassifier(max_iter=7, max_leaf_nodes=5, early_stopping=False, random_state=3),
    HistGradientBoostingClassifier(max_iter=7, max_leaf_nodes=5, max_features=0.5, random_state=3),
    HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.8, early_stopping=True, n_iter_no_change=2, random_state=3
    ),
    HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.8, early_stopping=True, validation_fraction=None, tol=0.1, random_state=3
    ),
    HistGradientBoostingRegressor(max_iter=7, max_leaf_nodes=5, random_state=3),
    GradientBoostingClassifier(n_estimators=7, subsample=0.5, max_features=2, random_state=3),
    RandomForestClassifier(n_estimators=7, oob_score=True, class_weight="balanced_subsample", random_state=3),
    RandomForestRegressor(n_estimators=7, random_state=3),
    ExtraTreesClassifier(n_estimators=7, random_state=3),
]


@pytest.mark.parametrize("template", CONTINUABLE, ids=lambda each: type(each).__name__)
@pytest.mark.filterwarnings("ignore:Some inputs do not have OOB scores")
def test_a_fit_in_parts_killed_or_not_ends_at_the_bytes_of_a_plain_one(template: Any, tmp_path: Path) -> None:
    plain = to_skops(clone(template).fit(MATRIX, LABELS))
    whole = clone(template)
    fit_in_parts(whole, MATRIX, LABELS, Checkpoints(tmp_path / "whole.skops", 0))
    assert to_skops(whole) == plain
    kills = 0
    while True:
        fitted = clone(template)
        checkpoints = Checkpoints(tmp_path / "killed.skops", 0, show=killed_after(2 + 10 * (kills > 5)))
        try:
            fit_in_parts(fitted, MATRIX, LABELS, checkpoints)
        except KilledError:
            kills += 1
            continue
        break
    assert kills >= 1
    assert checkpoints.record.resumed_at > 0
    assert to_skops(fitted) == plain


def test_early_stopping_that_ends_just_with_a_part_is_seen() -> None:
    template = CONTINUABLE[2]
    plain = HistGradientBoostingClassifier(**template.get_params()).fit(MATRIX, LABELS)
    assert plain.n_iter_ < 20
    for first in (plain.n_iter_ - 1, plain.n_iter_, plain.n_iter_ + 1):
        fitted = HistGradientBoostingClassifier(**{**template.get_params(), "max_iter": 20 * first})
        fit_in_parts(fitted, MATRIX, LABELS, Checkpoints(Path("none"), 1e9))
        assert fitted.n_iter_ == plain.n_iter_


def test_a_short_fit_keeps_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "short.skops", 30.0)
    fit_in_parts(RandomForestClassifier(n_estimators=5, random_state=3), MATRIX, LABELS, checkpoints)
    assert (checkpoints.record.written, list(tmp_path.iterdir())) == (0, [])


def test_parts_are_as_long_as_the_time_between_checkpoints(tmp_path: Path) -> None:
    now, seen = [0.0], []

    class Slow(RandomForestClassifier):
        pass

    estimator = RandomForestClassifier(n_estimators=40, max_depth=1, random_state=3)

    def clock() -> float:
        now[0] = float(len(getattr(estimator, "estimators_", ())))  # a tree a second
        return now[0]

    checkpoints = Checkpoints(
        tmp_path / "slow.skops", 10.0, show=lambda what, done, total, said: seen.append(done), clock=clock
    )
    fit_in_parts(estimator, MATRIX, LABELS, checkpoints)
    assert seen == [2, 12, 22, 32, 40]
    assert checkpoints.record.written == 3
    assert why_not(Slow()) == "Slow cannot go on from a part of a fit and end at the same bytes"


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LogisticRegression(), "LogisticRegression cannot go on"),
        (MLPClassifier(hidden_layer_sizes=[2], max_iter=2), "MLPClassifier cannot go on"),
        (GradientBoostingClassifier(n_estimators=3, n_iter_no_change=2), "forgets between two parts how it got on"),
        (RandomForestClassifier(n_estimators=3, warm_start=True), "warm_start is set among its arguments"),
        (RandomForestClassifier(n_estimators=1), "n_estimators = 1 leaves nothing to part"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_what_cannot_go_on_is_fitted_at_once_and_says_so(estimator: Any, reason: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "fit.skops", 0)
    fit_in_parts(estimator, MATRIX, LABELS, checkpoints)
    assert reason in checkpoints.record.reason
    assert not checkpoints.record.continuable
    assert len(estimator.predict(MATRIX)) == 200
    assert list(tmp_path.iterdir()) == []


def test_a_fit_of_which_nothing_is_kept_says_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "fit.skops", None)
    fit_in_parts(RandomForestClassifier(n_estimators=3), MATRIX, LABELS, checkpoints)
    assert not checkpoints.record.continuable
    assert checkpoints.record.reason.startswith("none are kept")


@pytest.mark.parametrize("content", [b"", b"no archive", to_skops(LogisticRegression())])
def test_a_checkpoint_that_is_none_of_this_fit_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fit.skops"
    path.write_bytes(content)
    with pytest.raises(ClearwayError, match=r"fit\.skops.* delete it, and the fit starts again"):
        fit_in_parts(RandomForestClassifier(n_estimators=4), MATRIX, LABELS, Checkpoints(path, 0))


def test_what_is_kept_is_named_by_all_that_decides_it_and_not_by_how_long_to_work() -> None:
    def name(matrix: Any = MATRIX, labels: Any = LABELS, seed: int = 1, **train: Any) -> str:
        space = {"max_depth": {"kind": "int", "low": 1, "high": 3}}
        tune = {"space": space, **train.pop("tune", {})}
        content = {
            "project": {"name": "toy"},
            "seed": seed,
            "sources": {"things": {"kind": "csv", "path": "things.csv"}},
            "data": {"table": "things", "label": "answer"},
            "train": {"tune": tune, **train},
            "environments": {"production": {"port": 0}},
        }
        return state_key(state_basis(Params.model_validate(content), [RandomForestClassifier], matrix, labels))

    longer = name(tune={"trials": 99, "timeout_seconds": 5}, checkpoint_seconds=1, resources={"threads": 2})
    assert name() == longer
    others = {
        name(seed=2),
        name(MATRIX[:-1]),
        name(MATRIX.reshape(3, 200)),
        name(labels=1 - LABELS),
        name(arguments={"max_depth": 2}),
        name(class_weights="balanced"),
        name(calibration={"method": "sigmoid"}),
        name(tune={"folds": 4}),
        name(tune={"metric": "brier"}),
    }
    assert len(others | {longer}) == 10


def test_what_is_kept_is_named_by_all_files_of_an_own_estimators_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "estimator_of_a_test"
    package.mkdir()
    for name in ("__init__", "helper"):
        (package / f"{name}.py").write_text("a = 1\n")
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {"estimator": "estimator_of_a_test.Model"},
        "environments": {"production": {"port": 0}},
    }

    def name() -> str:
        return state_key(state_basis(Params.model_validate(content), [RandomForestClassifier], MATRIX, LABELS))

    before = name()
    (package / "helper.py").write_text("a = 2\n")
    assert name() != before
