"""Whether the holdout can be believed: no feature gives the answer away, and training saw neither its rows nor times.

After the taxonomy of Kapoor & Narayanan (Leakage and the reproducibility crisis in machine-learning-based science,
Patterns 4, 2023): a feature that is a proxy of the answer, duplicates across the split, and a training set that knows
the future of the test set.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.preprocessing import TargetEncoder
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.encoding import CategoricalFeature, InputSchema
from clearway.gates import Gate
from clearway.metrics import METRICS, Floats
from clearway.target import BINARY, Target

FEW_VALUES = 50
"""A number with no more different values is judged as a category too: a code of the answer need not rise with it."""
FOLDS = 5
MOST_ROWS = 5000
"""Holdout rows that trees of one feature are tried on, drawn with the seed."""
MAX_DUPLICATES_WITH_TIME = 0.05

_LISTED = 5


def target_gate(
    frame: pd.DataFrame, labels: Floats, schema: InputSchema, limit: float, seed: int, target: Target = BINARY
) -> Gate:
    """No single feature separates the answers almost perfectly, as one made from the answer would.

    A number is judged by how it ranks the answers, up or down, its missing values first or last: that something is
    missing can give the answer away too. A category, and a number of few values, is judged by the rate of yes among
    the other folds' rows of its value (scikit-learn's ``TargetEncoder``, cross-fitted), so that many rare values do not
    seem to know what they only repeat.

    Of several classes, and of numbers, a small tree of the one feature answers for the rows of each fold from the
    others'. Its areas are averaged over the classes, each against the rest: one class that a feature tells from all
    others is no leak. Numbers are judged by R² on their ranks, so that neither a heavy tail nor the form of the
    dependence matters. A feature that ranks as they do, or gives each class a range of its own, has 1 whatever the tree
    finds.

    Parameters
    ----------
    frame : DataFrame of shape (rows, …)
        The holdout, with a column for each feature.
    labels : float64 array of shape (rows,)
        0.0 or 1.0, the position of a class, or a number.
    schema : InputSchema
    limit : float
        Largest area under the ROC curve (regression: R²) that a feature may have alone, not reached by any.
    seed : int
        Deals the rows to folds.
    target : Target
        What is answered.

    Returns
    -------
    Gate
        ``target_leakage``; ``estimate`` is the largest area or R². Fail, too, where a feature is missing or cannot be
        ranked, and where there are too few rows of an answer to tell.
    """
    name = "target_leakage"
    measure, what = ("R²", "explains the labels") if target.kind == "regression" else ("AUC", "separates the answers")
    kept, problem = _told_apart(labels, target, seed)
    if problem:
        return Gate(name, "fail", problem, threshold=limit, n=len(labels))
    rows, answers = frame.iloc[kept], labels[kept]
    missing = [feature for feature in schema.names if feature not in frame.columns]
    if missing:
        return Gate(name, "fail", f"the holdout lacks {', '.join(missing)}", threshold=limit, n=len(labels))
    areas = {}
    for feature in schema.features:
        column, category = rows[feature.name], isinstance(feature, CategoricalFeature)
        try:
            if target.binary:
                alone = _category_auc if category else _number_auc
                areas[feature.name] = alone(column, answers == 1, seed)
            else:
                areas[feature.name] = _alone(column, answers, seed, category=category, target=target)
        except (ValueError, TypeError) as error:
            cause = " ".join(str(error).split())
            return Gate(name, "fail", f"feature {feature.name} cannot be ranked: {cause}", threshold=limit)
    if not areas:
        return Gate(name, "fail", "the model has no features", threshold=limit, n=len(labels))
    strongest = max(areas, key=lambda feature: areas[feature])
    leaks = sorted((feature for feature in areas if areas[feature] >= limit), key=lambda feature: -areas[feature])
    found = f"an {measure} of {areas[strongest]:.4f}"
    detail = f"the strongest feature alone is {strongest} with {found}, below {limit:g} is needed"
    if leaks:
        said = ", ".join(f"{feature} ({measure} {areas[feature]:.4f})" for feature in leaks[:_LISTED])
        more = f" and {len(leaks) - _LISTED} more" if len(leaks) > _LISTED else ""
        detail = f"alone {what}: {said}{more}; below {limit:g} is needed: is it made from the answer?"
    return Gate(name, "fail" if leaks else "pass", detail, areas[strongest], threshold=limit, n=len(labels))


def row_id_gate(training: pd.DataFrame, holdout: pd.DataFrame) -> Gate:
    """No question of the holdout was trained on: every ``row_id`` is known, and in one window only."""
    name = "split_row_ids"
    for window, frame in (("training", training), ("holdout", holdout)):
        if ROW_ID not in frame.columns or frame.empty:
            return Gate(name, "fail", f"{window} rows or their {ROW_ID} are missing", threshold=0)
        unnamed = int(frame[ROW_ID].isna().sum())
        if unnamed:
            return Gate(name, "fail", f"{unnamed:,} {window} rows have no {ROW_ID}", threshold=0, n=len(holdout))
    both = holdout.loc[holdout[ROW_ID].isin(training[ROW_ID]), ROW_ID]
    example = f", for example {both.iloc[0]!r}" if len(both) else ""
    detail = f"{len(both):,} of {len(holdout):,} holdout rows have a {ROW_ID} that was trained on{example}"
    return Gate(name, "fail" if len(both) else "pass", detail, len(both), threshold=0, n=len(holdout))


def duplicate_gate(
    training: pd.DataFrame, holdout: pd.DataFrame, schema: InputSchema, *, timed: bool, max_duplicates: float | None
) -> Gate:
    """Few rows of the holdout have a twin in training, from which the model knows rather than predicts.

    With time a twin is a training row with the same features. Without, rows of few categories repeat honestly, and the
    split keeps rows of the same entity, label and features together: a twin has all of these, and none is allowed.
    With ``max_duplicates`` set, a twin has the same features in either case.

    Parameters
    ----------
    training, holdout : DataFrame
        With the schema's features, ``label``, and ``entity`` where there is one.
    schema : InputSchema
    timed : bool
        Whether the split is by time.
    max_duplicates : float or None
        Largest share of holdout rows that may have a twin; None: ``MAX_DUPLICATES_WITH_TIME`` with time, else 0.

    Returns
    -------
    Gate
        ``split_duplicates``; ``estimate`` is the share.
    """
    name = "split_duplicates"
    limit = max_duplicates if max_duplicates is not None else MAX_DUPLICATES_WITH_TIME if timed else 0.0
    features = schema.names
    needed = (*features, LABEL)
    for window, frame in (("training", training), ("holdout", holdout)):
        lacking = [column for column in needed if column not in frame.columns]
        if frame.empty or lacking:
            said = f"lacks {', '.join(lacking)}" if lacking else "has no rows"
            return Gate(name, "fail", f"the {window} window {said}", threshold=limit)
    whole = [*needed, *([ENTITY] if ENTITY in training.columns and ENTITY in holdout.columns else [])]
    alike, same = (
        int(np.isin(_hashes(holdout, schema, columns), _hashes(training, schema, columns)).sum())
        for columns in (list(features), whole)
    )
    by_features = timed or max_duplicates is not None
    share = (alike if by_features else same) / len(holdout)
    detail = (
        f"{alike:,} of {len(holdout):,} holdout rows have the features of a training row, {same:,} its "
        f"{'entity and ' if ENTITY in whole else ''}label too; "
        f"{'the former' if by_features else 'the latter'} may be at most {limit:.3g} of them"
    )
    return Gate(name, "pass" if share <= limit else "fail", detail, share, threshold=limit, n=len(holdout))


def time_gate(training: pd.DataFrame, holdout: pd.DataFrame) -> Gate:
    """Every training row was asked, and its answer known, before the first question of the holdout was asked.

    The rule is strict: the latest ``prediction_time`` and ``label_time`` of training are both earlier than the earliest
    ``prediction_time`` of the holdout, which is what :func:`clearway.features.split` makes. A time that is missing
    proves nothing: fail.

    Parameters
    ----------
    training, holdout : DataFrame
        With ``prediction_time`` (UTC), training with ``label_time`` (UTC) too.

    Returns
    -------
    Gate
        ``time_overlap``; ``estimate`` is the number of training rows that are too late.
    """
    name = "time_overlap"
    for window, frame, columns in (
        ("training", training, (PREDICTION_TIME, LABEL_TIME)),
        ("holdout", holdout, (PREDICTION_TIME,)),
    ):
        if frame.empty:
            return Gate(name, "fail", f"the {window} window has no rows", threshold=0)
        for column in columns:
            if column not in frame.columns:
                return Gate(name, "fail", f"the {window} window has no {column}", threshold=0)
            unknown = int(frame[column].isna().sum())
            if unknown:
                return Gate(name, "fail", f"{unknown:,} {window} rows have no {column}", threshold=0, n=len(holdout))
    begins = holdout[PREDICTION_TIME].min()
    late = training[(training[PREDICTION_TIME] >= begins) | (training[LABEL_TIME] >= begins)]
    last = max(training[PREDICTION_TIME].max(), training[LABEL_TIME].max())
    detail = (
        f"{len(late):,} of {len(training):,} training rows were asked or answered at or after "
        f"{begins.isoformat()}, when the holdout begins; the last at {last.isoformat()}"
    )
    return Gate(name, "fail" if len(late) else "pass", detail, len(late), threshold=0, n=len(training))


def _told_apart(labels: Floats, target: Target, seed: int) -> tuple[NDArray[np.intp], str]:
    """The rows that can be dealt to folds, and why there are none. Rare classes are left out; ``MOST_ROWS`` of other
    kinds than binary are enough."""
    every = np.arange(len(labels))
    if target.kind == "regression":
        if len(labels) < 2 * FOLDS or not labels.min() < labels.max():
            return every, f"{len(labels)} holdout rows, at least {2 * FOLDS} of different numbers are needed"
    else:
        classes, rows = np.unique(labels, return_counts=True)
        enough = classes[rows >= FOLDS]
        if target.binary and (len(classes) < 2 or len(enough) < 2):
            scarce = int(rows.min()) if len(classes) > 1 else 0
            return every, f"{scarce} holdout rows of one answer, at least {FOLDS} of each are needed"
        if len(enough) < 2:
            return every, f"{len(enough)} classes have the {FOLDS} holdout rows that are needed, of two or more"
        every = every[np.isin(labels, enough)]
    if target.binary or len(every) <= MOST_ROWS:
        return every, ""
    return np.sort(np.random.default_rng(seed).choice(every, MOST_ROWS, replace=False)), ""


def _alone(column: pd.Series, labels: Floats, seed: int, *, category: bool, target: Target) -> float:
    """How well one feature answers by itself, by a tree of it that has not seen the row."""
    regression = target.kind == "regression"
    wanted = rankdata(labels) if regression else np.unique(labels, return_inverse=True)[1]
    folds = (KFold if regression else StratifiedKFold)(FOLDS, shuffle=True, random_state=seed)
    if category:
        codes = column.astype("object").factorize()[0].reshape(-1, 1)  # missing is a value too
        kind = "continuous" if regression else "multiclass" if wanted.max() > 1 else "binary"
        found = TargetEncoder(target_type=kind, cv=folds).fit_transform(codes, wanted)
        if found.shape[1] == 1 and not regression:
            found = np.hstack([1 - found, found])
    else:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
        ranks = pd.Series(values).rank(method="dense").fillna(0).to_numpy().reshape(-1, 1)  # infinities too
        tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(min_samples_leaf=5, random_state=seed)
        method = "predict" if regression else "predict_proba"
        found = cross_val_predict(tree, ranks, wanted, cv=folds, method=method).reshape(len(wanted), -1)
    if not regression:
        area = float(np.mean([_area(wanted == k, found[:, k]) for k in range(found.shape[1])]))
        return area if category else max(area, _side_by_side(ranks[:, 0].astype(np.float64), wanted))
    explained = float(r2_score(wanted, found[:, 0]))
    if category or len(np.unique(ranks)) < 2:
        return explained
    return max(explained, float(spearmanr(ranks[:, 0], wanted).statistic) ** 2)


def _side_by_side(ranks: Floats, classes: NDArray[np.intp]) -> float:
    """The mean area between neighbours among the classes, ordered by their mean rank.

    1 where each has a range of its own. A tree that has not seen the row at the end of such a range takes it for the
    neighbour's, which of small classes is a large share.
    """
    rows = np.bincount(classes)
    order = np.argsort(np.bincount(classes, ranks) / rows, kind="stable")
    between = [np.isin(classes, pair) for pair in pairwise(order)]
    return float(np.mean([_area(classes[b] == k, ranks[b]) for k, b in zip(order[1:], between, strict=True)]))


def _area(positive: NDArray[np.bool_], scores: Floats) -> float:
    return METRICS["roc_auc"].value(positive.astype(np.float64), scores, 0.5)


def _number_auc(column: pd.Series, positive: NDArray[np.bool_], seed: int) -> float:
    values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    ranks = pd.Series(values).rank(method="dense").to_numpy()  # infinities too
    places = (0.0, len(ranks) + 1.0) if np.isnan(ranks).any() else (0.0,)
    found = [_area(positive, np.where(np.isnan(ranks), place, ranks)) for place in places]
    area = max(max(each, 1 - each) for each in found)
    few = len(np.unique(ranks[~np.isnan(ranks)])) <= FEW_VALUES
    return max(area, _category_auc(column, positive, seed)) if few else area


def _category_auc(column: pd.Series, positive: NDArray[np.bool_], seed: int) -> float:
    codes = column.astype("object").factorize()[0].reshape(-1, 1)  # missing is a value too
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    encoder = TargetEncoder(target_type="binary", cv=folds)
    return _area(positive, encoder.fit_transform(codes, positive.astype(int))[:, 0])


def _hashes(frame: pd.DataFrame, schema: InputSchema, columns: list[str]) -> NDArray[np.uint64]:
    """A hash per row of the columns, whatever pandas calls the types they were read with."""
    plain = {}
    label = {LABEL} if pd.api.types.is_numeric_dtype(frame[LABEL].dtype) else set()
    numeric = {*label, *(schema.names[position] for position in schema.numeric_positions)}
    for column in columns:
        if column in numeric:
            numbers = pd.to_numeric(frame[column]).to_numpy(dtype=np.float64, na_value=np.nan)
            plain[column] = numbers + 0.0  # -0.0 is 0.0
        else:
            text = frame[column].astype("object")
            plain[column] = text.where(text.notna(), None).to_numpy()
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(plain), index=False), dtype=np.uint64)
