"""A fit in parts: what was learnt is kept now and then, so that a killed fit goes on from there.

Only estimators that make the same bytes in parts as at once are fitted so: forests and boosted trees, which keep what
they have learnt (``warm_start``) and the state of their random numbers. Others start again, and the report says so.

A checkpoint is a skops file, read back through the allow-list of :mod:`clearway.model`, under the name of all that
decides what a fit learns: it is never continued by another one.
"""

import hashlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

from clearway.errors import ClearwayError
from clearway.export import ExportError, to_skops
from clearway.files import atomic_path, canonical_json, sha256_bytes, sha256_file
from clearway.lineage import RECIPE_MODULES, package_versions
from clearway.model import read_estimator
from clearway.params import Params
from clearway.progress import Show, silent
from clearway.project import own_sources_sha256

ITERATIONS: Mapping[type, str] = {
    HistGradientBoostingClassifier: "max_iter",
    HistGradientBoostingRegressor: "max_iter",
    GradientBoostingClassifier: "n_estimators",
    GradientBoostingRegressor: "n_estimators",
    RandomForestClassifier: "n_estimators",
    RandomForestRegressor: "n_estimators",
    ExtraTreesClassifier: "n_estimators",
    ExtraTreesRegressor: "n_estimators",
}
"""Estimators that can go on, and the argument that says how far. Just these classes: a subclass may do otherwise."""

_FIRST_SHARE = 20
"""The first part is one in so many of the iterations: it tells how long they take."""

_NOT_DECIDING: Any = {
    "checkpoint_seconds": True,
    "resources": True,
    "joblib": True,
    "tune": {"trials", "timeout_seconds"},
}
"""Keys of ``params.train`` that change how long a training works or where, and nothing of what it comes to."""

_OF_PARTS = "class_weight presets|Some inputs do not have OOB scores"
"""What forests warn of that are fitted in parts: all parts see the same rows, and the last has all trees."""


@dataclass
class FitRecord:
    """How a fit was carried out; part of ``reports/training.json``."""

    continuable: bool = False
    reason: str = ""
    """Why a killed fit of this estimator starts again; empty where it goes on."""
    iterations: int = 0
    """Of an estimator that can go on, how many this fit has made or found."""
    resumed_at: int = 0
    """From which iteration this fit went on; 0: from the start."""
    written: int = 0
    """Checkpoints that this process has written."""


@dataclass
class Checkpoints:
    """Where a fit keeps what it has learnt, how often, and what became of it."""

    path: Path
    """The checkpoint; its name must say all that decides the fit."""
    seconds: float | None
    """Shortest time between two checkpoints; None: none are kept."""
    title: str = "fit"
    """What progress is shown of."""
    show: Show = silent
    clock: Callable[[], float] = time.monotonic
    record: FitRecord = field(default_factory=FitRecord)


def state_basis(params: Params, kinds: Iterable[type], matrix: NDArray[Any], labels: NDArray[Any]) -> dict[str, str]:
    """Hashes of what decides every search and fit of a training: rows, settings, code, libraries, processor.

    Parameters
    ----------
    params : Params
        Of its ``train``, what only says how long to work is left out: more may be allowed to a search that goes on.
    kinds : iterable of type
        The classes to fit; the file of each counts, and of a package that is not installed every file.
    matrix, labels : arrays of shape (rows, features) and (rows,)
    """
    here = Path(__file__).parent
    sources = {path for kind in kinds if (path := getattr(sys.modules.get(kind.__module__), "__file__", None))}
    settings = {"seed": params.seed, "train": params.train.model_dump(mode="json", exclude=_NOT_DECIDING)}
    return {
        "matrix": array_sha256(matrix),
        "labels": array_sha256(labels),
        "settings": sha256_bytes(canonical_json(settings)),
        "code": sha256_bytes(canonical_json({name: sha256_file(here / name) for name in RECIPE_MODULES})),
        "estimators": sha256_bytes(canonical_json(sorted(sha256_file(Path(path)) for path in sources))),
        "own": own_sources_sha256((params.train.estimator, params.train.baseline)),
        "packages": sha256_bytes(canonical_json(package_versions())),
    }


def state_key(basis: Mapping[str, Any]) -> str:
    """The name of a kept state: a hash of all that decides it."""
    return sha256_bytes(canonical_json(basis))[:32]


def array_sha256(array: NDArray[Any]) -> str:
    """Hash of an array's type, shape and values."""
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype.str}{content.shape}".encode() + content.tobytes()).hexdigest()


def why_not(estimator: Any) -> str:
    """Why a killed fit of ``estimator`` has to start again; empty if it can go on."""
    kind = type(estimator)
    if kind not in ITERATIONS:
        return f"{kind.__name__} cannot go on from a part of a fit and end at the same bytes"
    if isinstance(estimator, GradientBoostingClassifier | GradientBoostingRegressor) and estimator.n_iter_no_change:
        return f"{kind.__name__} with n_iter_no_change forgets between two parts how it got on"
    if estimator.warm_start:
        return "warm_start is set among its arguments"
    total = getattr(estimator, ITERATIONS[kind])
    if not isinstance(total, int) or total < 2:
        return f"{ITERATIONS[kind]} = {total!r} leaves nothing to part"
    return ""


def fit_in_parts(
    estimator: Any, matrix: NDArray[Any], labels: NDArray[Any], checkpoints: Checkpoints | None, **arguments: Any
) -> None:
    """Fit ``estimator`` in place, as ``estimator.fit`` does and to the same bytes, keeping checkpoints on the way.

    Parameters
    ----------
    estimator : Any
        An unfitted estimator.
    matrix : array of shape (rows, features)
    labels : array of shape (rows,)
    checkpoints : Checkpoints, optional
        None: one plain fit.
    **arguments
        Further arguments of ``fit``, such as ``sample_weight``.
    """
    if checkpoints is not None:
        unkept = (
            "" if checkpoints.seconds is not None else "none are kept: checkpoint_seconds is null, or format joblib"
        )
        checkpoints.record.reason = why_not(estimator) or unkept
        checkpoints.record.continuable = not checkpoints.record.reason
    if checkpoints is None or checkpoints.record.reason or checkpoints.seconds is None:
        estimator.fit(matrix, labels, **arguments)
        return
    _fit_parts(estimator, matrix, labels, checkpoints, checkpoints.seconds, arguments)


def _fit_parts(
    estimator: Any,
    matrix: NDArray[Any],
    labels: NDArray[Any],
    checkpoints: Checkpoints,
    seconds: float,
    arguments: Mapping[str, Any],
) -> None:
    name = ITERATIONS[type(estimator)]
    total = getattr(estimator, name)
    record, clock = checkpoints.record, checkpoints.clock
    done = record.resumed_at = _resume(estimator, checkpoints.path)
    size = max(1, total // _FIRST_SHARE)
    kept_at = clock()
    stopped = bool(done) and _stopped(estimator, done)
    estimator.set_params(warm_start=True)
    try:
        while done < total and not stopped:
            aim = min(total, done + size)
            began = clock()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_OF_PARTS)
                estimator.set_params(**{name: aim}).fit(matrix, labels, **arguments)
            now = clock()
            each = max((now - began) / (aim - done), 1e-9)
            done, stopped = aim, _stopped(estimator, aim)
            checkpoints.show(checkpoints.title, done, total, type(estimator).__name__)
            if done < total and not stopped and now - kept_at >= seconds:
                record.written += _keep(estimator, checkpoints.path)
                kept_at = clock()
            size = max(1, min(total, int(seconds / each)))  # one part from here to the next checkpoint
    finally:
        estimator.set_params(**{name: total, "warm_start": False})
    record.iterations = int(getattr(estimator, "n_iter_", total))


def _stopped(estimator: Any, aim: int) -> bool:
    """Whether early stopping has ended the fit; asked for another part, it would learn on."""
    if not getattr(estimator, "do_early_stopping_", False):
        return False
    scores = estimator.validation_score_ if estimator._use_validation_data else estimator.train_score_
    return bool(estimator.n_iter_ < aim or estimator._should_stop(scores))


def _keep(estimator: Any, path: Path) -> int:
    """Write a checkpoint; how many were written."""
    try:
        content = to_skops(estimator)
    except ExportError:  # then neither can the model be stored, which the caller will hear in time
        return 0
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return 1


def _resume(estimator: Any, path: Path) -> int:
    """Let ``estimator`` know what the checkpoint has learnt, if there is one; after how many iterations it was."""
    try:
        found = read_estimator(path.read_bytes())
    except FileNotFoundError:
        return 0
    except (OSError, ClearwayError) as error:
        raise ClearwayError(f"{path}: {error}; delete it, and the fit starts again") from None
    if type(found) is not type(estimator):
        raise ClearwayError(f"{path} holds a {type(found).__name__}: delete it, and the fit starts again")
    _intern(found)
    estimator.__dict__.update(vars(found))  # arguments too: trees hold the same objects
    return int(getattr(found, ITERATIONS[type(found)]))


def _intern(value: Any) -> Any:
    """Make equal strings of a read estimator one object again, as those of code are: a stored model tells which are."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, BaseEstimator):
        for name, inner in vars(value).items():
            with suppress(AttributeError):
                setattr(value, name, _intern(inner))
    elif isinstance(value, list):
        value[:] = [_intern(inner) for inner in value]
    elif isinstance(value, np.ndarray) and value.dtype == object:
        for place in np.ndindex(value.shape):
            value[place] = _intern(value[place])
    return value
