"""The search for arguments: Optuna suggests, parts of the training rows judge, and a killed search goes on.

What is suggested to a trial follows from the seed, its number and what the trials before it came to, and from nothing
else: the sampler is made anew for each. So a search that was killed is walked again from its first trial, with the
results of the finished ones read from the study and not fitted again, and ends where an undisturbed one would.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sqlalchemy.exc import SQLAlchemyError

from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_path, canonical_json, sha256_bytes
from clearway.params import CategoricalSpace, FloatSpace, IntSpace, TuneParams
from clearway.progress import Show, silent

KEY = "train.tune"
_STUDY = "search"
_CHECK = "sha256"
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Rows to learn from, and rows to be judged on."""
Evaluate = Callable[[Mapping[str, Any], int], float]
"""Arguments and the number of a fold → the metric; raises :class:`ClearwayError` where they cannot be fitted."""


@dataclass(frozen=True)
class Trial:
    """One set of arguments that was tried."""

    number: int
    arguments: dict[str, Any]
    state: Literal["complete", "failed"]
    value: float | None
    """Mean of the metric over the folds; None where the trial failed."""
    seconds: float
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Search:
    """What a search came to."""

    best: Trial
    trials: tuple[Trial, ...]
    """All that were finished, failed ones too: as many again choose the same arguments."""
    resumed_at: int
    """How many of them an earlier process had finished."""
    ended_by: Literal["trials", "timeout"]

    def report(self, tune: TuneParams, metric: str) -> dict[str, Any]:
        """What ``reports/training.json`` says of it."""
        timed_out = self.ended_by == "timeout"
        note = (
            f"{KEY}.timeout_seconds ended the search after {len(self.trials)} of {tune.trials} trials: a faster or "
            "slower machine ends it elsewhere, and may choose other arguments"
        )
        return {
            "metric": metric,
            "best_trial": self.best.number,
            "best_value": self.best.value,
            "arguments": self.best.arguments,
            "finished": len(self.trials),
            "failed": sum(trial.value is None for trial in self.trials),
            "resumed_at": self.resumed_at,
            "ended_by": self.ended_by,
            "depends_on_machine": timed_out,
            "note": note if timed_out else "",
            "trials": [asdict(trial) for trial in self.trials],
        }


# --- decisions: pure -------------------------------------------------------------------------------------------------


def make_folds(
    tune: TuneParams,
    seed: int,
    rows: int,
    *,
    times: pd.Series | None = None,
    answered: pd.Series | None = None,
    strata: NDArray[Any] | None = None,
    entities: pd.Series | None = None,
) -> list[Fold]:
    """Which training rows judge what was learnt from which others.

    With time, the last ``validation_share`` of the rows is cut into ``folds`` windows; each judges what was learnt
    from the rows asked before it begins whose answers were known by then. Without, rows are dealt into seeded folds:
    alike in their answers, and an entity never in two of them.

    Parameters
    ----------
    tune : TuneParams
        ``folds`` and ``validation_share``.
    seed : int
        Of the dealing.
    rows : int
        Number of training rows.
    times, answered : Series of UTC times, shape (rows,), optional
        When each question was asked, and when its answer was known; without the second, at once.
    strata : array of shape (rows,), optional
        Answers of which every fold shall have its share; None for those that are numbers.
    entities : Series of shape (rows,), optional
        Used without time only.

    Raises
    ------
    UsageError
        There are too few rows for so many folds.
    """
    if times is None:
        return _dealt(tune, seed, rows, strata, entities)
    asked = times.to_numpy(dtype="datetime64[ns]")
    known = asked if answered is None else answered.fillna(times).to_numpy(dtype="datetime64[ns]")
    in_order = np.sort(asked, kind="stable")
    first = int(rows * (1 - tune.validation_share))
    starts = [in_order[min(first + (rows - first) * fold // tune.folds, rows - 1)] for fold in range(tune.folds)]
    made = []
    for fold, start in enumerate(starts):
        judging = asked >= start
        if fold + 1 < tune.folds:
            judging &= asked < starts[fold + 1]
        learning = (asked < start) & (known < start)
        if not judging.any() or not learning.any():
            what = "judge" if not judging.any() else "learn from, asked and answered before it"
            raise UsageError(
                f"params.yaml: {KEY}.folds = {tune.folds}: window {fold + 1} of the last {tune.validation_share:g} of "
                f"{rows:,} training rows has no rows to {what}: ask for fewer folds or another {KEY}.validation_share"
            )
        made.append((np.flatnonzero(learning), np.flatnonzero(judging)))
    return made


def _dealt(
    tune: TuneParams, seed: int, rows: int, strata: NDArray[Any] | None, entities: pd.Series | None
) -> list[Fold]:
    count = tune.folds if tune.folds > 1 else max(2, round(1 / tune.validation_share))
    groups: NDArray[np.intp] | None = None
    if entities is not None and entities.notna().any():
        groups = pd.factorize(entities)[0]
        groups[groups < 0] = rows + np.flatnonzero(groups < 0)  # who is nobody is nobody else
    kinds = {
        (True, True): StratifiedGroupKFold,
        (True, False): StratifiedKFold,
        (False, True): GroupKFold,
        (False, False): KFold,
    }
    dealer = kinds[strata is not None, groups is not None](count, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a class with fewer rows than there are folds
            made = list(dealer.split(np.zeros(rows), strata, groups))
    except (ValueError, UserWarning) as error:
        raise UsageError(
            f"params.yaml: {KEY}.folds = {tune.folds}: {rows:,} training rows cannot be dealt into {count} folds "
            f"({' '.join(str(error).split())})"
        ) from None
    return made[: tune.folds]


def distributions(tune: TuneParams) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it, by name in alphabetical order; choices are canonical JSON, and may be lists."""
    made: dict[str, BaseDistribution] = {}
    for name, space in sorted(tune.space.items()):
        if isinstance(space, IntSpace):
            made[name] = IntDistribution(space.low, space.high, log=space.log, step=space.step)
        elif isinstance(space, FloatSpace):
            made[name] = FloatDistribution(space.low, space.high, log=space.log, step=space.step)
        else:
            made[name] = CategoricalDistribution([_spelled(choice) for choice in space.choices])
    return made


def starting_point(tune: TuneParams, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``train.arguments`` says of the arguments that are searched: the first trial tries it, as Optuna spells it.

    Raises
    ------
    UsageError
        A value lies outside its space.
    """
    found = {}
    for name, distribution in distributions(tune).items():
        if name not in arguments:
            continue
        value = arguments[name]
        if isinstance(distribution, CategoricalDistribution):
            value = _spelled(value)
            inside = value in distribution.choices
        else:
            fitting = int if isinstance(distribution, IntDistribution) else (int, float)
            inside = isinstance(value, fitting) and not isinstance(value, bool) and distribution._contains(value)
        if not inside:
            raise UsageError(
                f"params.yaml: train.arguments.{name} = {arguments[name]!r}, from which the search starts, is not in "
                f"{KEY}.space.{name} ({_said(tune.space[name])}): correct one of them, or leave the argument out"
            )
        found[name] = value
    return found


def best_of(trials: Sequence[Trial], sign: int) -> Trial | None:
    """The first of the best trials that are complete; ``sign`` is −1 where less is better. None without one."""
    complete = [trial for trial in trials if trial.value is not None]
    return max(complete, key=lambda trial: (sign * float(trial.value or 0.0), -trial.number), default=None)


def _said(space: IntSpace | FloatSpace | CategoricalSpace) -> str:
    return ", ".join(f"{name}: {value}" for name, value in space.model_dump(exclude_defaults=True).items())


def _spelled(choice: Any) -> str:
    return canonical_json(choice).decode()


def _arguments(suggested: Mapping[str, Any], tune: TuneParams) -> dict[str, Any]:
    """Arguments of an estimator from what Optuna suggests."""
    choices = {name for name, space in tune.space.items() if isinstance(space, CategoricalSpace)}
    return {name: json.loads(value) if name in choices else value for name, value in sorted(suggested.items())}


# --- effects ---------------------------------------------------------------------------------------------------------


def search(
    tune: TuneParams,
    evaluate: Evaluate,
    folds: int,
    *,
    start: Mapping[str, Any],
    sign: int,
    seed: int,
    study: Path,
    show: Show = silent,
) -> Search:
    """Try arguments, and say which are best.

    Trials of a batch, and their folds, are handed to joblib together, and run where its configured backend runs them.

    Parameters
    ----------
    tune : TuneParams
        Space, number of trials, batch, timeout.
    evaluate : Evaluate
        Fits and judges one fold; picklable where joblib's backend needs it.
    folds : int
        Number of folds.
    start : mapping
        What the first trial tries, of :func:`starting_point`.
    sign : int
        −1 where a smaller metric is better.
    seed : int
        Of the sampler.
    study : Path
        Where finished trials are kept, an SQLite file of Optuna's. Its name must say all that decides the search.

    Raises
    ------
    UsageError
        No trial was finished in time, or all failed.
    ClearwayError
        The study cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, trials = distributions(tune), list[Trial]()
    walked = optuna.create_study(direction="maximize")
    if start:
        walked.enqueue_trial(dict(start))
    ended_by: Literal["trials", "timeout"] = "trials"
    with _opened(study) as (kept, add):
        resumed_at = min(len(kept), tune.trials)
        while len(trials) < tune.trials:
            began = len(trials)
            asked = []
            for number in range(began, min(began + tune.batch, tune.trials)):
                walked.sampler = optuna.samplers.TPESampler(seed=_seed(seed, number))
                asked.append(walked.ask(space))
            there = asked[: max(0, len(kept) - began)]
            known = [_kept_trial(kept[each.number], each.params, tune, study) for each in there]
            left = None
            if tune.timeout_seconds is not None:
                left = tune.timeout_seconds - sum(trial.seconds for trial in trials)
            fitted = _fit_batch(evaluate, [_arguments(each.params, tune) for each in asked[len(there) :]], folds, left)
            if fitted is None:
                ended_by = "timeout"
                break
            for each, (state, value, seconds, reason) in zip(asked[len(there) :], fitted, strict=True):
                trial = Trial(each.number, _arguments(each.params, tune), state, value, seconds, reason)
                add(each.params, space, trial)
                known.append(trial)
            for each, trial in zip(asked, known, strict=True):
                if trial.value is None:
                    walked.tell(each, state=TrialState.FAIL)
                else:
                    walked.tell(each, sign * trial.value)
            trials += known
            best = best_of(trials, sign)
            said = "all failed so far" if best is None else f"best {best.value:.5g} of trial {best.number}"
            show("search", len(trials), tune.trials, said)
    best = best_of(trials, sign)
    if best is not None:
        return Search(best, tuple(trials), resumed_at, ended_by)
    if not trials:
        raise UsageError(
            f"params.yaml: {KEY}.timeout_seconds = {tune.timeout_seconds:g}: no trial was finished in time: allow "
            "more, or let a trial cost less (fewer folds, a narrower space)"
        )
    raise UsageError(
        f"params.yaml: {KEY}.space: all {len(trials)} trials failed, the first with {trials[0].arguments}: "
        f"{trials[0].reason}"
    )


def _seed(seed: int, number: int) -> int:
    """Of a trial's sampler: another one for each number, and unlike those of the next seed."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


Outcome = tuple[Literal["complete", "failed"], float | None, float, str]


class _OutOfTimeError(Exception):
    """A fold was not begun because the time of the search is over."""


def _fit_batch(
    evaluate: Evaluate, batch: Sequence[Mapping[str, Any]], folds: int, left: float | None
) -> list[Outcome] | None:
    """State, value, seconds and reason for each set of arguments; None where the time ended before they did."""
    if left is not None and left <= 0:
        return None
    until = None if left is None else time.time() + left
    began = time.perf_counter()
    try:
        results = joblib.Parallel()(
            joblib.delayed(_judged)(evaluate, arguments, fold, until) for arguments in batch for fold in range(folds)
        )
    except _OutOfTimeError:
        return None
    seconds = round((time.perf_counter() - began) / max(1, len(batch)), 3)
    made: list[Outcome] = []
    for place in range(len(batch)):
        parts = results[place * folds : (place + 1) * folds]
        reason = next((said for _, said in parts if said), "")
        # twelve digits: the last bits of a sum must not decide what is tried next
        value = None if reason else float(f"{np.mean([part for part, _ in parts]):.12g}")
        made.append(("failed" if reason else "complete", value, seconds, reason))
    return made


def _judged(
    evaluate: Evaluate, arguments: Mapping[str, Any], fold: int, until: float | None
) -> tuple[float | None, str]:
    if until is not None and time.time() >= until:
        raise _OutOfTimeError
    try:
        value = evaluate(arguments, fold)
    except ClearwayError as error:
        return None, str(error)[:500]
    if not np.isfinite(value):
        return None, f"the metric is {value} on fold {fold + 1}: are its rows all of one answer?"
    return float(value), ""


def _kept_trial(kept: Any, suggested: Mapping[str, Any], tune: TuneParams, study: Path) -> Trial:
    """A finished trial of the study, which must be the one that this search would try."""
    if kept.params != dict(suggested):
        raise ClearwayError(
            f"{study}: its trial {kept.number} tried {kept.params}, and this search would try {dict(suggested)}: "
            "delete the file, and the search starts again"
        )
    said = kept.user_attrs
    value = None if kept.state == TrialState.FAIL else kept.value
    if said.get(_CHECK) != _check_of(suggested, value, said.get("seconds"), said.get("reason")):
        raise ClearwayError(
            f"{study}: its trial {kept.number} is not as it was kept: delete the file, and the search starts again"
        )
    state: Literal["complete", "failed"] = "failed" if value is None else "complete"
    return Trial(kept.number, _arguments(suggested, tune), state, value, said["seconds"], said["reason"])


def _check_of(suggested: Mapping[str, Any], value: float | None, seconds: Any, reason: Any) -> str:
    """A hash of all that a study keeps of a trial: SQLite has none."""
    return sha256_bytes(canonical_json([dict(suggested), value, seconds, reason]))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[Any], Callable[[Mapping[str, Any], Any, Trial], None]]]:
    """The finished trials of a study, and what adds one. A trial is added whole, once it is finished."""
    try:
        if not path.exists():
            with atomic_path(path) as made:  # a study that was killed while it was made is none
                _study(made).engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise ClearwayError(f"{path} cannot be made ({_cause(error)}): make room, and train again") from None
    try:
        storage = _study(path)
        study = optuna.load_study(storage=storage, study_name=_STUDY)
        kept = study.get_trials(deepcopy=False)
    except Exception as error:  # of a damaged file SQLAlchemy, Alembic and Optuna raise whatever they come upon
        raise ClearwayError(
            f"{path} cannot be used as a study of Optuna: delete it, and the search starts again ({_cause(error)})"
        ) from None

    def add(suggested: Mapping[str, Any], space: dict[str, BaseDistribution], trial: Trial) -> None:
        check = _check_of(suggested, trial.value, trial.seconds, trial.reason)
        attributes = {"seconds": trial.seconds, "reason": trial.reason, _CHECK: check}
        state = TrialState.FAIL if trial.value is None else TrialState.COMPLETE
        made = optuna.create_trial(
            state=state, value=trial.value, params=dict(suggested), distributions=space, user_attrs=attributes
        )
        try:
            study.add_trial(made)
        except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise ClearwayError(
                f"{path}: trial {trial.number} cannot be kept ({_cause(error)}): make room and "
                "train again, and the search goes on; or delete the file"
            ) from None

    try:
        yield kept, add
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _cause(error: Exception) -> str:
    """What the database said, on one line: Optuna hides it behind an error of its own."""
    return " ".join(str(error.__cause__ or error).split())[:200]


def _study(path: Path) -> optuna.storages.RDBStorage:
    """An SQLite file as Optuna's storage, with a study in it."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.create_study(storage=storage, study_name=_STUDY, load_if_exists=True)
    storage.remove_session()
    return storage
