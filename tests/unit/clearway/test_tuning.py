"""The search: what is tried follows from seed and results alone, and a search that was ended goes on."""

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import optuna
import pandas as pd
import pytest
from sqlalchemy.exc import OperationalError

from clearway.errors import ClearwayError, UsageError
from clearway.params import TuneParams
from clearway.tuning import Search, best_of, distributions, make_folds, search, starting_point

SPACE = {
    "depth": {"kind": "int", "low": 2, "high": 30, "log": True},
    "rate": {"kind": "float", "low": 0.01, "high": 1.0},
    "shape": {"kind": "categorical", "choices": [[8], [8, 4], None]},
}


def tune(**changes: Any) -> TuneParams:
    return TuneParams.model_validate({"space": SPACE, "trials": 12, "folds": 2, **changes})


class Objective:
    """Counts its calls, and is ended by a kill at one of them."""

    def __init__(self, killed_at: int | None = None, fails: bool = False) -> None:
        self.calls, self._killed_at, self._fails = 0, killed_at, fails

    def __call__(self, arguments: Mapping[str, Any], fold: int) -> float:
        self.calls += 1
        if self.calls == self._killed_at:
            raise KeyboardInterrupt
        if self._fails or arguments["depth"] == 3:
            raise ClearwayError("3 is too deep")
        return arguments["rate"] / 3 - abs(arguments["depth"] - 12) / 10 + (arguments["shape"] == [8, 4]) + fold


def run(objective: Any, study: Path, start: Mapping[str, Any] | None = None, sign: int = 1, **changes: Any) -> Search:
    return search(tune(**changes), objective, 2, start=start or {}, sign=sign, seed=5, study=study)


def outcome(found: Search) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.arguments, trial.state, trial.value, trial.reason) for trial in found.trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return run(Objective(), tmp_path_factory.mktemp("undisturbed") / "study.db")


def test_a_search_learns_and_says_what_is_best(undisturbed: Search) -> None:
    assert [trial.number for trial in undisturbed.trials] == list(range(12))
    assert undisturbed.best.arguments["shape"] == [8, 4]
    assert undisturbed.best.value == max(trial.value for trial in undisturbed.trials if trial.value is not None)
    assert (undisturbed.ended_by, undisturbed.resumed_at) == ("trials", 0)
    assert not undisturbed.report(tune(), "roc_auc")["depends_on_machine"]


@pytest.mark.parametrize("killed_at", [1, 6, 23])
def test_a_killed_search_goes_on_after_the_last_finished_trial_and_ends_alike(
    tmp_path: Path, undisturbed: Search, killed_at: int
) -> None:
    study = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        run(Objective(killed_at), study)
    objective = Objective()
    found = run(objective, study)
    finished = (killed_at - 1) // 2
    assert found.resumed_at == finished
    assert objective.calls == 2 * (12 - finished)
    assert outcome(found) == outcome(undisturbed)


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one(tmp_path: Path, undisturbed: Search) -> None:
    short = run(Objective(), tmp_path / "study.db", trials=11)
    assert outcome(short) == outcome(undisturbed)[:11]
    more = Objective()
    assert outcome(run(more, tmp_path / "study.db")) == outcome(undisturbed)
    assert more.calls == 2


def test_a_batch_killed_while_it_is_kept_ends_alike(tmp_path: Path) -> None:
    whole = run(Objective(), tmp_path / "whole.db", batch=4)
    run(Objective(), tmp_path / "study.db", batch=4, trials=6)  # the second batch has two of its four
    assert outcome(run(Objective(), tmp_path / "study.db", batch=4)) == outcome(whole)


def test_workers_change_nothing(tmp_path: Path, undisturbed: Search) -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        found = run(Objective(), tmp_path / "study.db")
    assert outcome(found) == outcome(undisturbed)


def test_a_smaller_metric_may_be_better(tmp_path: Path) -> None:
    found = run(lambda arguments, fold: arguments["rate"], tmp_path / "study.db", sign=-1, trials=3)
    assert found.best.value == min(trial.value or 0 for trial in found.trials)


def test_of_equals_the_first_is_best(undisturbed: Search) -> None:
    twice = [*undisturbed.trials, undisturbed.best]
    assert best_of(twice, 1) is undisturbed.best
    assert best_of([], 1) is None


def test_the_first_trial_is_what_the_arguments_say(tmp_path: Path) -> None:
    start = starting_point(tune(), {"depth": 7, "shape": [8], "other": 1})
    found = run(Objective(), tmp_path / "study.db", start, trials=2)
    assert found.trials[0].arguments.items() >= {"depth": 7, "shape": [8]}.items()
    assert found.trials[1].arguments["depth"] != 7


@pytest.mark.parametrize(
    ("argument", "value"), [("depth", 31), ("depth", 2.5), ("depth", True), ("rate", "fast"), ("shape", [9])]
)
def test_a_start_outside_of_its_space_is_named(argument: str, value: Any) -> None:
    with pytest.raises(
        UsageError, match=rf"train\.arguments\.{argument} = .* is not in train\.tune\.space\.{argument}"
    ):
        starting_point(tune(), {argument: value})


def test_the_order_of_the_space_does_not_matter() -> None:
    assert list(distributions(tune(space=dict(reversed(SPACE.items()))))) == sorted(SPACE)


def test_a_timeout_ends_the_search_and_the_report_says_that_it_depends_on_the_machine(tmp_path: Path) -> None:
    def slow(arguments: Mapping[str, Any], fold: int) -> float:
        time.sleep(0.01)
        return arguments["rate"]

    run(slow, tmp_path / "study.db", trials=3)
    found = run(slow, tmp_path / "study.db", trials=10, timeout_seconds=0.015)
    assert found.ended_by == "timeout"
    assert len(found.trials) == 1  # the time that its trials took in an earlier process counts
    said = found.report(tune(trials=10, timeout_seconds=0.015), "roc_auc")
    assert said["depends_on_machine"]
    assert "after 1 of 10 trials" in said["note"]


def test_a_timeout_before_any_trial_is_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.tune\.timeout_seconds = 0\.001: no trial was finished in time"):
        run(lambda arguments, fold: time.sleep(0.01) or 1.0, tmp_path / "study.db", timeout_seconds=0.001)


def test_when_all_trials_fail_the_first_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.tune\.space: all 3 trials failed, .*: 3 is too deep") as caught:
        run(Objective(fails=True), tmp_path / "study.db", trials=3)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"the metric is nan on fold 1"):
        run(lambda arguments, fold: float("nan"), tmp_path / "nan.db", trials=1)


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    run(Objective(), study, trials=1)
    with pytest.raises(ClearwayError, match=r"study\.db: its trial 0 tried .*delete the file"):
        search(tune(), Objective(), 2, start={}, sign=1, seed=6, study=study)


def test_a_damaged_study_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    study.write_bytes(b"no database" * 1000)
    with pytest.raises(ClearwayError, match=r"study\.db cannot be used as a study of Optuna: delete it") as caught:
        run(Objective(), study)
    assert "\n" not in str(caught.value)


CHANGES = {
    "another value": "UPDATE trial_values SET value = value + 1 WHERE trial_id = 1",
    "another state": "UPDATE trials SET state = 'FAIL' WHERE trial_id = 1",
    "no check": "DELETE FROM trial_user_attributes",
    "no such direction": "UPDATE study_directions SET direction = '0'",
    "two versions": "INSERT INTO alembic_version VALUES ('v3.0.0.a')",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_that_something_has_changed_is_refused(change: str, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    run(Objective(), study, trials=2)
    with closing(sqlite3.connect(study)) as connection:
        connection.execute(CHANGES[change])
        connection.commit()
    with pytest.raises(ClearwayError, match=r"study\.db.* delete (it|the file), and the search starts again") as caught:
        run(Objective(), study, trials=3)
    assert "\n" not in str(caught.value)


def test_a_trial_that_cannot_be_kept_ends_the_search_and_says_so(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    run(Objective(), study, trials=1)
    with closing(sqlite3.connect(study)) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON trials BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        connection.commit()
    with pytest.raises(ClearwayError, match=r"study\.db: trial 1 cannot be kept .*: make room and train again"):
        run(Objective(), study, trials=2)


def test_a_disk_too_full_for_a_study_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("CREATE TABLE", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(optuna.storages.RDBStorage, "create_new_study", full)
    with pytest.raises(ClearwayError, match=r"study\.db cannot be made \(.*disk is full.*\): make room") as caught:
        run(Objective(), tmp_path / "study.db")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- folds -----------------------------------------------------------------------------------------------------------

TIMES = pd.Series(pd.date_range("2020-01-01", periods=100, freq="h", tz="UTC")).sample(frac=1, random_state=1)
LABELS = np.arange(100) % 2


def test_with_time_each_window_judges_what_was_known_before_it() -> None:
    answered = TIMES + pd.Timedelta(hours=5)
    folds = make_folds(tune(folds=3), 1, 100, times=TIMES, answered=answered)
    asked, known = TIMES.to_numpy(), answered.to_numpy()
    assert sum(len(judging) for _, judging in folds) == 30
    assert asked[folds[0][1]].min() == np.sort(asked)[70]
    assert asked[folds[-1][1]].max() == asked.max()
    for learning, judging in folds:
        assert known[learning].max() < asked[judging].min()
        assert len(learning) == np.sum(known < asked[judging].min())


def test_rows_asked_at_one_time_are_in_one_window() -> None:
    days = TIMES.dt.floor("D")
    for learning, judging in make_folds(tune(folds=2, validation_share=0.5), 1, 100, times=days):
        assert not set(days.to_numpy()[learning]) & set(days.to_numpy()[judging])


@pytest.mark.parametrize("count", [1, 4])
def test_without_time_rows_are_dealt_by_the_seed_alike_in_their_answers(count: int) -> None:
    first, again, other = (make_folds(tune(folds=count), seed, 100, strata=LABELS) for seed in (1, 1, 2))
    assert len(first) == count
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0][1], other[0][1])
    for learning, judging in first:
        assert not set(learning) & set(judging)
        assert LABELS[judging].mean() == pytest.approx(0.5, abs=0.03)
    assert len(first[0][1]) == (33 if count == 1 else 25) or len(first[0][1]) == 34


@pytest.mark.parametrize("strata", [LABELS, None])
def test_an_entity_is_never_on_both_sides(strata: Any) -> None:
    entities = pd.Series([f"e{place % 20}" for place in range(90)] + [None] * 10, dtype="string")
    for learning, judging in make_folds(tune(folds=3), 1, 100, strata=strata, entities=entities):
        assert not set(entities[learning].dropna()) & set(entities[judging].dropna())
    anybody = make_folds(tune(folds=3), 1, 100, entities=entities)
    assert len({fold for fold, (_, judging) in enumerate(anybody) for row in judging if row >= 90}) > 1


def test_folds_that_rows_cannot_fill_are_named() -> None:
    with pytest.raises(UsageError, match=r"train\.tune\.folds = 9: .*cannot be dealt into 9 folds"):
        make_folds(tune(folds=9), 1, 8, strata=LABELS[:8])
    with pytest.raises(UsageError, match=r"train\.tune\.folds = 2: window 1 .* no rows to learn from"):
        make_folds(tune(folds=2), 1, 100, times=TIMES, answered=TIMES + pd.Timedelta(days=30))
    with pytest.raises(UsageError, match=r"train\.tune\.folds = 40: window \d+ .* no rows to judge"):
        make_folds(tune(folds=40, validation_share=0.1), 1, 100, times=TIMES)
