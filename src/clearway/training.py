"""Training: from feature tables to two payloads, the challenger and the simple model it must beat.

The same rows, parameters and code give the same bytes, in any process: that is what lets a digest say that a model
is the one already in production.
"""

import importlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from clearway.bundle import payload_digest
from clearway.calibration import BASELINE_ANSWER, BASELINE_SCORE, Calibration, calibrate
from clearway.checkpoints import Checkpoints, array_sha256, fit_in_parts, state_basis, state_key
from clearway.class_weights import ClassWeights, row_weights
from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME
from clearway.domain import calibrate_domain
from clearway.encoding import CategoricalFeature, InputSchema, learn_schema
from clearway.errors import ClearwayError, UsageError
from clearway.export import ExportError, to_joblib, to_onnx, to_skops
from clearway.files import atomic_directory, canonical_json, held, read_json, sha256_bytes, write_json, write_text
from clearway.labelled_rows import read_rows
from clearway.metrics import measure, metric
from clearway.model import ESTIMATOR, FEATURES, NETWORK, PARAMS, PICKLE, SCHEMA, estimated, needed_types, read_estimator
from clearway.parallel import in_order, joblib_backend, numeric_threads, of_cluster
from clearway.params import MAIN_METRIC, JoblibParams, Kind, Params, ScoreCalibrationParams, TuneParams
from clearway.profile import ANSWER, SCORE, sample_positions, write_reference
from clearway.progress import Show, silent
from clearway.resources import names_memory, peak_memory_mb
from clearway.schema import Column
from clearway.score_calibration import calibrated, calibration_rows
from clearway.target import Target, constants, learn_target
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.tuning import Fold, Search

_LOCK_SECONDS = 5.0
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
    trials: int | None = None
    """Of the search that chose among the arguments; None without one."""


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
    accepted = _accepted(imported)
    if recipe.arguments.get("random_state", seed) is None:
        raise UsageError(
            f"params.yaml: {recipe.arguments_key}.random_state = None would draw another model each time: leave it "
            "out, and it is the seed, or give a number"
        )
    if "n_jobs" in recipe.arguments:
        raise UsageError(
            f"params.yaml: {recipe.arguments_key}.n_jobs = {recipe.arguments['n_jobs']!r} would make another model of "
            "the same one: say on how many cores it is fitted in train.resources.threads"
        )
    seeded = {"random_state": seed} if "random_state" in accepted else {}
    try:
        estimator = imported(**{**seeded, **recipe.arguments, **_one_object_each(recipe.arguments)})
    except TypeError as error:
        raise UsageError(
            f"params.yaml: {recipe.arguments_key} = {dict(recipe.arguments)!r}: {error}; "
            f"{recipe.estimator} takes {', '.join(accepted)}"
        ) from None
    except Exception as error:  # it may be anybody's class
        raise UsageError(
            f"params.yaml: {recipe.arguments_key} = {dict(recipe.arguments)!r}: {_reason(error)}"
        ) from None
    if kind == "regression":
        if not _is(is_regressor, estimator):
            raise UsageError(
                f"params.yaml: {recipe.key} = {recipe.estimator!r} is no regressor, but target.kind is regression: "
                "choose one that predicts a number"
            )
    elif not _is(is_classifier, estimator) or not hasattr(estimator, "predict_proba"):
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
    *,
    classes: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
    class_weights: ClassWeights | None = None,
    calibration: ScoreCalibrationParams | None = None,
    times: NDArray[np.datetime64] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Fit the recipe's estimator, and the curve after it where scores are calibrated.

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
        Threads of OpenMP. Whatever they are, linear algebra uses one, so that their number changes no bit.
    kind : Kind
        What is to be learnt.
    classes : sequence of str, optional
        Names of the classes that labels are positions of, for their weights.
    checkpoints : Checkpoints, optional
        Where to keep what was learnt so far, and go on from it.
    class_weights : "balanced" or mapping of label → weight, optional
        How much a row counts, by its label.
    calibration : ScoreCalibrationParams, optional
        Which rows are kept from the estimator for a curve, and of which kind that is.
    times : datetime64 array of shape (rows,), optional
        When each row was asked; says which rows are the latest.

    Returns
    -------
    estimator, warnings
        The fitted estimator, and what it warned of, each message once.

    Raises
    ------
    UsageError
        Class or arguments are wrong, or the class takes no weights.
    ClearwayError
        The labels are too few for a curve, or the estimator fails on the data.
    """
    estimator = make_estimator(recipe, schema, seed, kind)
    held = None if calibration is None else calibration_rows(labels, times, calibration, seed, classes)
    kept = slice(None) if held is None else ~held
    weights = None if class_weights is None else row_weights(labels[kept], class_weights, classes)
    if weights is not None:
        _check_weighable(recipe, estimator)
    answers = labels if kind == "regression" else labels.astype(np.int64)
    with numeric_threads(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            given = {} if weights is None else {"sample_weight": weights}
            ready = matrix[kept]
            if isinstance(estimator, Pipeline):
                with in_order():  # quick; from a cluster its parts would come back as copies
                    ready = estimator[0].fit_transform(ready)
            last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
            fit_in_parts(last, ready, answers[kept], checkpoints, **given)
            if calibration is not None:
                estimator = calibrated(estimator, matrix[held], answers[held], calibration)
        except (ClearwayError, MemoryError, OSError, KeyboardInterrupt):  # of the system, or of a cluster's connection
            raise
        except BaseException as error:  # it may be anybody's class, and one that calls exit() has made no model
            if of_cluster(error):
                raise
            reason = _reason(error)
            empty = [name for name, values in zip(schema.names, matrix[kept].T, strict=True) if np.isnan(values).all()]
            if empty:
                reason += f" (these rows have no value of {', '.join(empty)})"
            if type(error).__name__ == "InvalidParameterError" or isinstance(error, TypeError):
                raise UsageError(
                    f"params.yaml: {recipe.arguments_key} = {dict(recipe.arguments)!r}: {reason}"
                ) from None
            raise ClearwayError(f"{recipe.key} {recipe.estimator} cannot be fitted on these rows: {reason}") from None
    return estimator, tuple(dict.fromkeys(" ".join(str(w.message).split())[:200] for w in caught))


@names_memory
def train(params: Params, workspace: Workspace, show: Show = silent) -> Trained:
    """Fit challenger and baseline on ``data/features/training.parquet``; write both payloads and the report.

    Writes ``build/model/``, ``build/baseline/``, ``build/reference.parquet``, ``build/drift_calibration.json`` and
    ``reports/training.json``. What a killed training has left in ``var/training/`` is gone on from, and removed at
    the end.

    Raises
    ------
    UsageError
        ``params.train`` names an impossible estimator, argument or search.
    ClearwayError
        The feature tables are missing, empty or not numeric, the labels are all the same, another training of this
        folder is running, the system has no more memory, or the cluster that ``params.train.joblib`` names fails.
    """
    with held(workspace.build / "training.lock", _LOCK_SECONDS):
        made = _train(params, workspace, show)
        shutil.rmtree(workspace.unfinished, ignore_errors=True)
        return made


def _train(params: Params, workspace: Workspace, show: Show) -> Trained:
    started = time.perf_counter()
    (workspace.reports / "training.json").unlink(missing_ok=True)  # it is there when all else of this run is
    frame, told = read_rows(workspace, "training", params.target.kind)
    try:
        target, labels = learn_target(params.target.kind, told)
    except ClearwayError as error:
        raise ClearwayError(f"{workspace.features / 'training.parquet'}: {error}") from None
    definitions, schema = _described(workspace, frame)
    matrix = schema.encode(frame)
    infinite = [name for name, column in zip(schema.names, matrix.T, strict=True) if np.isinf(column).any()]
    if infinite:
        raise ClearwayError(
            f"features too large for float32 or infinite: {', '.join(infinite)}; correct their definition"
        )

    report: dict[str, Any] = {"rows": len(frame), "features": len(schema.features), **constants(target, labels)}
    given: dict[str, NDArray[np.float64]] = {}
    challenger, baseline = recipes(params)
    for recipe in (challenger, baseline) if params.train.tune is None else (baseline,):
        make_estimator(recipe, schema, params.seed, target.kind)  # what is none is named before anything is fitted
    times = _times(frame)
    basis = {
        **state_basis(params, [_import_class(recipe) for recipe in (challenger, baseline)], matrix, labels),
        "columns": sha256_bytes(canonical_json(schema.model_dump(mode="json"))),
        "target": sha256_bytes(canonical_json(target.model_dump(mode="json"))),
        "times": "" if times is None else array_sha256(times),
    }
    if params.train.tune is not None:
        found = _search(
            params.train.tune, challenger, params, workspace, schema, matrix, labels, target, frame, basis, show
        )
        challenger = replace(
            challenger, arguments={**challenger.arguments, **found.best.arguments}, trials=len(found.trials)
        )
        report["tuning"] = found.report(params.train.tune, judged_by(params.train.tune, target.kind))
    _write_plot(report.get("tuning", {}).get("trials", ()), workspace)
    for recipe, folder in ((challenger, workspace.model), (baseline, workspace.baseline)):
        began = time.perf_counter()
        name = state_key({**basis, "role": recipe.role, "arguments": dict(recipe.arguments)})
        # a pickle tells trees that were read from those that were grown: it can only be of a fit at once, and here
        tells = params.train.format == "joblib"
        seconds = None if tells else params.train.checkpoint_seconds
        checkpoints = Checkpoints(workspace.unfinished / f"{name}.skops", seconds, f"fit {recipe.role}", show)
        where = JoblibParams() if tells else params.train.joblib
        with joblib_backend(where, params.train.resources.threads):
            estimator, warned = fit(
                recipe,
                schema,
                matrix,
                labels,
                params.seed,
                params.train.resources.threads,
                target.kind,
                classes=target.classes,
                checkpoints=checkpoints,
                class_weights=params.train.class_weights,
                calibration=params.train.calibration,
                times=times,
            )
        outputs = _outputs(recipe, estimator, target, matrix)
        no_onnx = _write_payload(folder, recipe, estimator, schema, definitions, params, target)
        given[recipe.role] = outputs
        report[recipe.role] = {
            "digest": payload_digest(folder),
            "estimator": recipe.estimator,
            "seconds": round(time.perf_counter() - began, 3),
            "training_metrics": measure(labels, outputs, params.train.threshold, kind=target.kind),
            "warnings": list(warned),
            "checkpoints": asdict(checkpoints.record),
            "runtime": "scikit-learn" if no_onnx else "onnx",
            **({"no_onnx": f"no ONNX, so no fast path: {recipe.estimator} {no_onnx}"} if no_onnx else {}),
        }
    _write_past(frame, schema, told, given, params, workspace, target)
    report["seconds"] = round(time.perf_counter() - started, 3)
    report["peak_memory_mb"] = round(peak_memory_mb(), 1)
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


def _described(workspace: Workspace, frame: pd.DataFrame) -> tuple[dict[str, Any], InputSchema]:
    """What the payload keeps of ``features.json``, and the schema of the training rows.

    Raises
    ------
    ClearwayError
        The file is missing or not what the stage writes, or the rows lack a feature that it names.
    """
    path = workspace.features / "features.json"
    described = read_json(path, made_by="scripts/build_features.py")
    try:
        kept = (*DEFINED, *(key for key in DEFINED_IF_STORED if key in described))
        definitions = {key: described[key] for key in kept}
        numeric, categorical = tuple(definitions["numeric"]), tuple(definitions["categorical"])
        missing = [name for name in (*numeric, *categorical) if name not in frame.columns]
        if missing:
            raise ClearwayError(
                f"{workspace.features / 'training.parquet'} lacks {', '.join(missing)}, which features.json names: "
                "run scripts/build_features.py again"
            )
        declared = {name: Column.model_validate(said) for name, said in described["declared"].items()}
        return definitions, learn_schema(frame, categorical, numeric, declared)
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # pydantic's is a ValueError
        raise ClearwayError(
            f"{path} is not what scripts/build_features.py writes ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}): run it again"
        ) from None


def _search(
    tune: TuneParams,
    recipe: Recipe,
    params: Params,
    workspace: Workspace,
    schema: InputSchema,
    matrix: NDArray[np.float32],
    labels: NDArray[np.float64],
    target: Target,
    frame: pd.DataFrame,
    basis: Mapping[str, str],
    show: Show,
) -> "Search":
    """Search the challenger's arguments on folds of the training rows."""
    from clearway.tuning import KEY, make_folds, search, starting_point  # Optuna, which few trainings need

    judge = metric(judged_by(tune, target.kind), f"params.yaml: {KEY}.metric", target.kind)
    accepted = _accepted(_import_class(recipe))
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for name in tune.space:
        if name not in accepted and not open_ended:
            raise UsageError(
                f"params.yaml: {KEY}.space.{name} is no argument of {recipe.estimator}; it takes {', '.join(accepted)}"
            )
    start = starting_point(tune, recipe.arguments)
    seed = params.seed if tune.seed is None else tune.seed
    timed = PREDICTION_TIME in frame and frame[PREDICTION_TIME].notna().all()
    folds = make_folds(
        tune,
        seed,
        len(frame),
        times=frame[PREDICTION_TIME] if timed else None,
        answered=frame.get(LABEL_TIME),
        strata=None if target.kind == "regression" else labels,
        entities=frame.get(ENTITY),
    )
    places = {
        f"fold {place} {side}": array_sha256(rows)
        for place, fold in enumerate(folds)
        for side, rows in zip(("learning", "judging"), fold, strict=True)
    }
    evaluate = partial(
        _fold_value,
        replace(recipe, arguments_key=f"{KEY}.space"),
        schema,
        matrix,
        labels,
        target,
        folds,
        _times(frame),
        params,
        judge.name,
    )
    study = workspace.unfinished / f"{state_key({**basis, **places, 'metric': judge.name})}.db"
    threads = params.train.resources.threads
    with joblib_backend(params.train.joblib, threads), numeric_threads(threads):
        return search(tune, evaluate, len(folds), start=start, sign=judge.sign, seed=seed, study=study, show=show)


def judged_by(tune: TuneParams, kind: Kind) -> str:
    """The metric that judges a search. Nothing but ``train`` says it: a gate must not change which model is trained."""
    return tune.metric or MAIN_METRIC[kind]


def _write_plot(trials: Sequence[Mapping[str, Any]], workspace: Workspace) -> None:
    """The values of a search's trials, in their order; without a search the table has no rows."""
    rows = [f"{trial['number']},{trial['value']}" for trial in trials if trial["value"] is not None]
    write_text(workspace.reports / "plots" / "tuning.csv", "\n".join(("trial,value", *rows)) + "\n")


def _fold_value(
    recipe: Recipe,
    schema: InputSchema,
    matrix: NDArray[np.float32],
    labels: NDArray[np.float64],
    target: Target,
    folds: Sequence["Fold"],
    times: NDArray[np.datetime64] | None,
    params: Params,
    judge: str,
    arguments: Mapping[str, Any],
    fold: int,
) -> float:
    """The metric of what is learnt from a fold with these arguments. Its own are plain: a worker can be sent them."""
    learning, judging = folds[fold]
    found = np.unique(labels[learning])
    if target.kind != "regression" and len(found) < len(target.classes or (0, 1)):
        raise ClearwayError(f"fold {fold + 1} has rows of {len(found)} classes only to learn from")
    tried = replace(recipe, arguments={**recipe.arguments, **arguments})
    estimator, _ = fit(
        tried,
        schema,
        matrix[learning],
        labels[learning],
        params.seed,
        params.train.resources.threads,
        target.kind,
        classes=target.classes,
        class_weights=params.train.class_weights,
        calibration=params.train.calibration,
        times=None if times is None else times[learning],
    )
    outputs = _outputs(tried, estimator, target, matrix[judging])
    if not np.isfinite(outputs).all():
        raise ClearwayError(f"it answers what is no number on fold {fold + 1}")
    return float(metric(judge, kind=target.kind).value(labels[judging], outputs, params.train.threshold))


def _outputs(recipe: Recipe, estimator: Any, target: Target, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a fitted estimator answers, of the shape that its kind of target asks for."""
    wrong = f"params.yaml: {recipe.key} = {recipe.estimator!r} is fitted, but does not answer as it must"
    try:
        with in_order():
            outputs = estimated(estimator, target, matrix)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # it may be anybody's class
        raise UsageError(f"{wrong}: {_reason(error)}") from None
    shape = (len(matrix), len(target.classes)) if target.classes else (len(matrix),)
    if outputs.shape != shape:
        raise UsageError(f"{wrong}: answers of shape {outputs.shape}, not {shape}")
    return outputs


def _reason(error: BaseException) -> str:
    """What an error says, on one line; its type where that alone tells."""
    said = " ".join(str(error).split())
    return said if said and isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {said}"


def _one_object_each(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Texts among arguments, each the one object that equal texts of code are: a stored model tells which are one."""
    return {name: sys.intern(value) for name, value in arguments.items() if isinstance(value, str)}


def _times(frame: pd.DataFrame) -> NDArray[np.datetime64] | None:
    """When each row was asked; None where rows know no time."""
    if PREDICTION_TIME not in frame or frame[PREDICTION_TIME].isna().any():
        return None
    times: NDArray[np.datetime64] = frame[PREDICTION_TIME].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    return times


def _check_weighable(recipe: Recipe, estimator: Any) -> None:
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if not has_fit_parameter(last, "sample_weight"):
        raise UsageError(
            f"params.yaml: train.class_weights: {recipe.key} = {recipe.estimator!r} cannot weigh rows: choose an "
            "estimator whose fit takes sample_weight, or set train.class_weights: null"
        )


def _import_class(recipe: Recipe) -> Any:
    module_name, _, name = recipe.estimator.rpartition(".")
    wrong = f"params.yaml: {recipe.key} = {recipe.estimator!r}"
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a module runs what it likes
        raise UsageError(
            f"{wrong} cannot be imported ({' '.join(str(error).split())}): give an importable class, "
            "package.module.Class"
        ) from None
    if not isinstance(kind, type):
        raise UsageError(f"{wrong} is a {type(kind).__name__}, not a class")
    return kind


def _accepted(imported: type) -> Mapping[str, Parameter]:
    """The arguments of a class; none of one that is not written in Python, which has no estimators."""
    try:
        return signature(imported).parameters
    except (ValueError, TypeError):
        return {}


def _is(kind: Callable[[Any], bool], estimator: Any) -> bool:
    """Whether an object is of a kind of estimator, which only estimators can be asked."""
    try:
        return bool(kind(estimator))
    except AttributeError:
        return False


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
) -> str:
    """Write the files that the digest covers; returns why there is no ONNX among them, or nothing."""
    name, stored, types = _stored(recipe, estimator, params)
    network, no_onnx = b"", ""
    try:
        if params.train.onnx:
            network = to_onnx(estimator, len(schema.features))
        else:
            no_onnx = "is not exported, as params.yaml says (train.onnx)"
    except ExportError as error:
        no_onnx = str(error)
    train: dict[str, Any] = {
        "estimator": recipe.estimator,
        "arguments": dict(recipe.arguments),
        "threads": 1,
        **({"types": types} if types else {}),
    }
    if recipe.trials is not None:
        train["tune"] = {"trials": recipe.trials}
    optional = params.train.model_dump(mode="json", include={"class_weights", "calibration"}, exclude_none=True)
    train.update(optional)  # what is not set leaves no trace, so that a model stays what it was
    with atomic_directory(folder) as made:
        (made / name).write_bytes(stored)
        if network:
            (made / NETWORK).write_bytes(network)
        write_json(made / SCHEMA, schema.model_dump(mode="json"))
        write_json(made / FEATURES, definitions)
        made_by = {"project": params.project.name, "seed": params.seed, "threshold": params.train.threshold}
        answers = {} if target.binary else {"target": target.model_dump(mode="json", exclude_defaults=True)}
        write_json(made / PARAMS, {**made_by, "train": train, **answers})
    return no_onnx


def _stored(recipe: Recipe, estimator: Any, params: Params) -> tuple[str, bytes, list[str]]:
    """The estimator's file: its name, its bytes, and the types that its reader must allow."""
    wrong = f"params.yaml: {recipe.key} = {recipe.estimator!r}"
    try:
        if params.train.format == "joblib":
            return PICKLE, to_joblib(estimator), []
        stored = to_skops(estimator)
        read_estimator(stored, params.trust.types)  # what could not be read back must not become a model
        return ESTIMATOR, stored, needed_types(stored)
    except ExportError as error:
        other = "" if params.train.format == "joblib" else "; joblib may (train.format: joblib, trust.joblib: true)"
        raise UsageError(f"{wrong} {error}{other}") from None
    except ClearwayError as error:
        raise UsageError(f"{wrong} cannot be stored: {error}") from None


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
    times = frame[PREDICTION_TIME] if _times(frame) is not None else None
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
