"""Training: from feature tables to two payloads, the challenger and the simple model it must beat.

The same rows, parameters and code give the same bytes, in any process: that is what lets a digest say that a model
is the one already in production.
"""

import importlib
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from clearway.bundle import payload_digest
from clearway.calibration import BASELINE_ANSWER, BASELINE_SCORE, Calibration, calibrate
from clearway.columns import LABEL, PREDICTION_TIME
from clearway.domain import calibrate_domain
from clearway.encoding import CategoricalFeature, InputSchema, learn_schema
from clearway.errors import ClearwayError, UsageError
from clearway.export import ExportError, to_onnx, to_skops
from clearway.files import atomic_directory, read_json, write_json
from clearway.labelled_rows import read_rows
from clearway.metrics import measure
from clearway.model import ESTIMATOR, FEATURES, NETWORK, PARAMS, SCHEMA, estimated, read_estimator
from clearway.params import Kind, Params
from clearway.profile import ANSWER, SCORE, sample_positions, write_reference
from clearway.schema import Column
from clearway.target import Target, constants, learn_target
from clearway.workspace import Workspace

DEFINED = ("definitions_sha256", "numeric", "categorical")
DEFINED_IF_STORED = ("feature_service", "definitions")
"""What the payload keeps of ``features.json``."""


@dataclass(frozen=True)
class Recipe:
    """What to fit, and under which keys of ``params.yaml`` it is written, for errors."""

    role: str
    key: str
    estimator: str
    arguments_key: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """What a training run made; the content of ``reports/training.json``."""

    digest: str
    baseline_digest: str
    rows: int
    features: int
    seconds: float
    peak_memory_mb: float
    report: dict[str, Any]


def recipes(params: Params) -> tuple[Recipe, Recipe]:
    """The challenger's recipe and the baseline's."""
    train = params.train
    return (
        Recipe("challenger", "train.estimator", train.estimator, "train.arguments", train.arguments),
        Recipe("baseline", "train.baseline", train.baseline, "train.baseline_arguments", train.baseline_arguments),
    )


def make_estimator(recipe: Recipe, schema: InputSchema, seed: int, kind: Kind = "binary") -> Any:
    """An unfitted classifier, or regressor, that takes the encoded matrix.

    Histogram gradient boosting takes it as it is, missing values and category positions included. Everything else
    stands behind a preparation of its own: medians for missing numbers, scaled unless it is made of trees (they do
    not need it, and a rounding before a split can send a row the other way in ONNX), one column per category, and
    one for a missing or unseen category.

    Raises
    ------
    UsageError
        The class cannot be imported or is no classifier with probabilities (or no regressor), or an argument is not
        one of its own; names the key of ``params.yaml`` and the value.
    """
    imported = _import_class(recipe)
    accepted = signature(imported).parameters
    seeded = {"random_state": seed} if "random_state" in accepted else {}
    try:
        estimator = imported(**{**seeded, **recipe.arguments})
    except TypeError as error:
        raise UsageError(
            f"params.yaml: {recipe.arguments_key} = {dict(recipe.arguments)!r}: {error}; "
            f"{recipe.estimator} takes {', '.join(accepted)}"
        ) from None
    if kind == "regression":
        if not is_regressor(estimator):
            raise UsageError(
                f"params.yaml: {recipe.key} = {recipe.estimator!r} is no regressor, but target.kind is regression: "
                "choose one that predicts a number"
            )
    elif not is_classifier(estimator) or not hasattr(estimator, "predict_proba"):
        raise UsageError(
            f"params.yaml: {recipe.key} = {recipe.estimator!r} is no classifier with predict_proba: choose one that "
            "gives probabilities (or set the argument that makes it)"
        )
    if isinstance(estimator, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        return estimator
    trees = imported.__module__.startswith(("sklearn.tree.", "sklearn.ensemble."))
    return Pipeline([("prepare", _preparation(schema, scale=not trees)), ("model", estimator)])


def fit(
    recipe: Recipe,
    schema: InputSchema,
    matrix: NDArray[np.float32],
    labels: NDArray[np.float64],
    seed: int,
    threads: int,
    kind: Kind = "binary",
) -> tuple[Any, tuple[str, ...]]:
    """Fit the recipe's estimator.

    Parameters
    ----------
    recipe : Recipe
        Class and arguments.
    schema : InputSchema
        What each column of ``matrix`` is.
    matrix : float32 array of shape (rows, features)
        Encoded rows; missing values are NaN.
    labels : float64 array of shape (rows,)
        Of :func:`clearway.target.learn_target`: 0.0 or 1.0, the position of a class, or a number.
    seed : int
        ``random_state``, for a class that takes one and whose arguments do not set it.
    threads : int
        Most threads that BLAS and OpenMP may use; another number may change the last bits of a sum.
    kind : Kind
        What is to be learnt.

    Returns
    -------
    estimator, warnings
        The fitted estimator, and what it warned of, each message once.

    Raises
    ------
    UsageError
        Class or arguments are wrong.
    ClearwayError
        The estimator fails on the data.
    """
    estimator = make_estimator(recipe, schema, seed, kind)
    with threadpool_limits(limits=threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(matrix, labels if kind == "regression" else labels.astype(np.int64))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            if type(error).__name__ == "InvalidParameterError" or isinstance(error, TypeError):
                raise UsageError(
                    f"params.yaml: {recipe.arguments_key} = {dict(recipe.arguments)!r}: {reason}"
                ) from None
            raise ClearwayError(f"{recipe.key} {recipe.estimator} cannot be fitted on these rows: {reason}") from None
    return estimator, tuple(dict.fromkeys(" ".join(str(w.message).split())[:200] for w in caught))


def train(params: Params, workspace: Workspace) -> Trained:
    """Fit challenger and baseline on ``data/features/training.parquet``; write both payloads and the report.

    Writes ``build/model/``, ``build/baseline/``, ``build/reference.parquet``, ``build/drift_calibration.json`` and
    ``reports/training.json``.

    Raises
    ------
    UsageError
        ``params.train`` names an impossible estimator or argument.
    ClearwayError
        The feature tables are missing, empty or not numeric, or the labels are all the same.
    """
    started = time.perf_counter()
    described = read_json(workspace.features / "features.json", made_by="scripts/build_features.py")
    frame, told = read_rows(workspace, "training", params.target.kind)
    target, labels = learn_target(params.target.kind, told)
    kept = (*DEFINED, *(key for key in DEFINED_IF_STORED if key in described))
    definitions = {key: described[key] for key in kept}
    missing = [name for name in (*definitions["numeric"], *definitions["categorical"]) if name not in frame.columns]
    if missing:
        raise ClearwayError(
            f"{workspace.features / 'training.parquet'} lacks {', '.join(missing)}, which features.json names: "
            "run scripts/build_features.py again"
        )
    declared = {name: Column.model_validate(said) for name, said in described["declared"].items()}
    schema = learn_schema(frame, tuple(definitions["categorical"]), tuple(definitions["numeric"]), declared)
    matrix = schema.encode(frame)
    infinite = [name for name, column in zip(schema.names, matrix.T, strict=True) if np.isinf(column).any()]
    if infinite:
        raise ClearwayError(
            f"features too large for float32 or infinite: {', '.join(infinite)}; correct their definition"
        )

    report: dict[str, Any] = {"rows": len(frame), "features": len(schema.features), **constants(target, labels)}
    given: dict[str, NDArray[np.float64]] = {}
    for recipe, folder in zip(recipes(params), (workspace.model, workspace.baseline), strict=True):
        began = time.perf_counter()
        estimator, warned = fit(recipe, schema, matrix, labels, params.seed, params.train.threads, target.kind)
        with threadpool_limits(limits=params.train.threads):
            outputs = estimated(estimator, target, matrix)
        _write_payload(folder, recipe, estimator, schema, definitions, params, target)
        given[recipe.role] = outputs
        report[recipe.role] = {
            "digest": payload_digest(folder),
            "estimator": recipe.estimator,
            "seconds": round(time.perf_counter() - began, 3),
            "training_metrics": measure(labels, outputs, params.train.threshold, kind=target.kind),
            "warnings": list(warned),
        }
    _write_past(frame, schema, told, given, params, workspace, target)
    report["seconds"] = round(time.perf_counter() - started, 3)
    report["peak_memory_mb"] = round(_peak_memory_mb(), 1)
    write_json(workspace.reports / "training.json", report)
    return Trained(
        digest=report["challenger"]["digest"],
        baseline_digest=report["baseline"]["digest"],
        rows=report["rows"],
        features=report["features"],
        seconds=report["seconds"],
        peak_memory_mb=report["peak_memory_mb"],
        report=report,
    )


def _import_class(recipe: Recipe) -> Any:
    module_name, _, name = recipe.estimator.rpartition(".")
    wrong = f"params.yaml: {recipe.key} = {recipe.estimator!r}"
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{wrong} cannot be imported ({error}): give an importable class, package.module.Class"
        ) from None
    if not isinstance(kind, type):
        raise UsageError(f"{wrong} is a {type(kind).__name__}, not a class")
    return kind


def _preparation(schema: InputSchema, *, scale: bool) -> ColumnTransformer:
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    numeric = Pipeline([("fill", fill), ("scale", StandardScaler())] if scale else [("fill", fill)])
    categories = [
        np.arange(-1, len(feature.categories), dtype=np.float32)
        for feature in schema.features
        if isinstance(feature, CategoricalFeature)
    ]
    categorical = Pipeline(
        [
            ("fill", SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True)),
            (
                "columns",
                OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False, dtype=np.float32),
            ),
        ]
    )
    parts = [("numeric", numeric, list(schema.numeric_positions))] if schema.numeric_positions else []
    if schema.categorical_positions:
        parts.append(("categorical", categorical, list(schema.categorical_positions)))
    return ColumnTransformer(parts)


def _write_payload(
    folder: Path,
    recipe: Recipe,
    estimator: Any,
    schema: InputSchema,
    definitions: Mapping[str, Any],
    params: Params,
    target: Target,
) -> None:
    try:
        stored = to_skops(estimator)
        read_estimator(stored)  # what could not be read back must not become a model
        network = to_onnx(estimator, len(schema.features))
    except ExportError as error:
        raise UsageError(f"params.yaml: {recipe.key} = {recipe.estimator!r} {error}") from None
    except ClearwayError as error:
        raise UsageError(f"params.yaml: {recipe.key} = {recipe.estimator!r} cannot be stored: {error}") from None
    train = {"estimator": recipe.estimator, "arguments": dict(recipe.arguments), "threads": params.train.threads}
    with atomic_directory(folder) as made:
        (made / ESTIMATOR).write_bytes(stored)
        (made / NETWORK).write_bytes(network)
        write_json(made / SCHEMA, schema.model_dump(mode="json"))
        write_json(made / FEATURES, definitions)
        made_by = {"project": params.project.name, "seed": params.seed, "threshold": params.train.threshold}
        answers = {} if target.binary else {"target": target.model_dump(mode="json", exclude_defaults=True)}
        write_json(made / PARAMS, {**made_by, "train": train, **answers})


def _write_past(
    frame: pd.DataFrame,
    schema: InputSchema,
    labels: NDArray[Any],
    given: Mapping[str, NDArray[np.float64]],
    params: Params,
    workspace: Workspace,
    target: Target,
) -> None:
    """What drift is later measured against: the reference, and how much windows of it differ by themselves."""
    times = frame[PREDICTION_TIME] if PREDICTION_TIME in frame and frame[PREDICTION_TIME].notna().all() else None
    features = frame[list(schema.names)]
    scores = {role: target.score(outputs) for role, outputs in given.items()}
    named = {role: np.array(target.named(o, 0.0)) for role, o in given.items()} if target.classes else {}
    write_reference(
        features,
        scores["challenger"],
        workspace.build / "reference.parquet",
        answers=named.get("challenger"),
        labels=labels,
        times=times,
        seed=params.seed,
    )
    calibration = Calibration(rows=len(frame), features={})  # rows that know no time are exchangeable
    if times is not None:
        order = np.argsort(times.to_numpy(), kind="stable")
        sampled = np.flatnonzero(np.isin(order, sample_positions(len(frame), seed=params.seed)))
        numeric = [schema.names[position] for position in schema.numeric_positions]
        categorical = [schema.names[position] for position in schema.categorical_positions]
        ordered = features.iloc[order]
        outputs = {SCORE: scores["challenger"], BASELINE_SCORE: scores["baseline"]}
        answers = {ANSWER: named["challenger"], BASELINE_ANSWER: named["baseline"]} if named else {}
        calibration = calibrate(
            ordered,
            {**dict.fromkeys(numeric, "numeric"), **dict.fromkeys(categorical, "categorical")},
            outputs={
                **{name: ("numeric", pd.Series(values[order])) for name, values in outputs.items()},
                **{name: ("categorical", pd.Series(values[order])) for name, values in answers.items()},
                LABEL: ("numeric" if target.kind == "regression" else "categorical", pd.Series(labels[order])),
            },
            sampled=sampled,
            domain=calibrate_domain(ordered, numeric, categorical, params.drift.domain, params.seed),
        )
    write_json(workspace.build / "drift_calibration.json", calibration.model_dump(mode="json"))


def _peak_memory_mb() -> float:
    """Largest resident size of this process so far; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
