"""Behavioural tests of a model: what must not change its score, what must move it one way, what it must know.

After CheckList (Ribeiro, Wu, Guestrin & Singh, ACL 2020). A project package declares them as ``PROJECT.behaviour``, a
tuple or a method that returns one; a flat table without code declares changes of one column in ``params.yaml``::

    def later(rows):
        return rows.assign(delay=rows["delay"] + 30)

    behaviour = (Directional("more_delay", later, "up"),)

A change is given a copy of holdout rows, features only, and returns the same rows changed. Rows that it leaves as they
were tell nothing and are not counted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.encoding import CategoricalFeature, InputSchema
from clearway.errors import ClearwayError, UsageError
from clearway.gates import Gate
from clearway.robustness import Score
from clearway.shares import share_gate
from clearway.target import BINARY, Target, refused_label

MOST_ROWS = 5000
"""Holdout rows that a change is tried on, drawn with the seed."""

Change = Callable[[pd.DataFrame], pd.DataFrame]
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Invariance:
    """A change of the rows that must not matter: no score moves by more than ``tolerance``."""

    name: str
    change: Change
    tolerance: float = 0.05
    """In probability; for regression in spreads of the training labels (:class:`clearway.target.Target`)."""
    min_share: float = 0.95
    """Smallest share of changed rows that must behave; below 1, which no sample can show."""
    of_class: str | None = None
    """Of several classes the one whose probability must not move; None: none of them may."""

    def __post_init__(self) -> None:
        _check(self.name, self.tolerance, self.min_share)


@dataclass(frozen=True)
class Directional:
    """A change of the rows after which the score is not lower (``up``) or not higher (``down``)."""

    name: str
    change: Change
    direction: Literal["up", "down"]
    tolerance: float = 0.01
    """How far a score may still move the other way."""
    min_share: float = 0.95
    of_class: str | None = None
    """Of several classes the one whose probability is meant: there it must be given."""

    def __post_init__(self) -> None:
        _check(self.name, self.tolerance, self.min_share)
        if self.direction not in ("up", "down"):
            raise UsageError(f"behaviour {self.name!r}: direction = {self.direction!r}: give up or down")


@dataclass(frozen=True)
class MinimumFunctionality:
    """Rows made for the purpose, to which the answer is plain."""

    name: str
    rows: pd.DataFrame | Callable[[], pd.DataFrame]
    """With a column for each feature."""
    answer: int | float | str
    """0 or 1, the name of a class, or a number."""
    min_share: float = 1.0
    """Smallest share of the rows that must be answered so. They are all there are, and no sample: no bound is taken."""
    tolerance: float = 0.1
    """Regression: how far a prediction may be from ``answer``, in spreads of the training labels."""

    def __post_init__(self) -> None:
        _check(self.name, self.tolerance, self.min_share, most=1.0)


BehaviouralTest = Invariance | Directional | MinimumFunctionality


def declared_by(project: Any) -> tuple[BehaviouralTest, ...]:
    """The tests that a project declares; none if it has no ``behaviour``.

    Raises
    ------
    UsageError
        ``behaviour`` is no tuple of tests, or two have one name.
    ClearwayError
        ``behaviour()`` raised.
    """
    declared = getattr(project, "behaviour", ())
    if callable(declared):
        try:
            declared = declared()
        except ClearwayError:
            raise
        except Exception as error:  # the project's own code may raise anything
            raise ClearwayError(f"the project's behaviour() raised {type(error).__name__}: {error}") from error
    if not isinstance(declared, (tuple, list)) or not all(isinstance(test, BehaviouralTest) for test in declared):
        raise UsageError(
            "the project's behaviour must be a tuple of Invariance, Directional and MinimumFunctionality, of "
            f"clearway.behaviour, not {declared!r:.80}"
        )
    tests = tuple(declared)
    _refuse_repeated(tests)
    return tests


def column_test(
    *,
    name: str,
    column: str,
    multiply: float | None = None,
    add: float | None = None,
    set: float | str | None = None,
    expect: Literal["same", "up", "down"],
    tolerance: float,
    min_share: float,
    of_class: str | None = None,
) -> Invariance | Directional:
    """The test of one change of one column, as ``params.yaml: gates.behaviour`` declares it.

    Missing values stay missing under ``multiply`` and ``add``; ``set`` replaces them too.

    Raises
    ------
    UsageError
        Not just one of multiply, add and set is given.
    """
    given = {key: value for key, value in (("multiply", multiply), ("add", add), ("set", set)) if value is not None}
    if len(given) != 1:
        raise UsageError(
            f"params.yaml: gates.behaviour: {name}: give one of multiply, add and set, not "
            f"{' and '.join(given) or 'none'}"
        )
    ((kind, value),) = given.items()

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        if column not in rows.columns:
            raise ClearwayError(f"column {column!r} is no feature")
        if isinstance(value, str) or kind == "set":
            return rows.assign(**{column: value})
        numbers = pd.to_numeric(rows[column])
        return rows.assign(**{column: numbers * value if kind == "multiply" else numbers + value})

    if expect == "same":
        return Invariance(name, change, tolerance, min_share, of_class)
    return Directional(name, change, expect, tolerance, min_share, of_class)


def behaviour_gates(
    tests: Sequence[BehaviouralTest],
    frame: pd.DataFrame,
    schema: InputSchema,
    score: Score,
    threshold: float,
    *,
    confidence: float = 0.95,
    seed: int,
    target: Target = BINARY,
) -> list[Gate]:
    """One gate per test, named ``behaviour_<name>``.

    For a change, the lower bound of the share of changed rows that behave must be at least ``min_share``; for a minimum
    functionality the share itself. A test that raises, changes nothing, returns other rows or other columns, or leads
    to a score that is no finite number is a fail that says so.

    Parameters
    ----------
    tests : sequence of Invariance, Directional or MinimumFunctionality
    frame : DataFrame of shape (rows, …)
        The holdout, with a column for each feature of ``schema``.
    schema : InputSchema
    score : callable
        Encoded rows → outputs.
    threshold : float
        Score from which the answer is yes.
    confidence : float
        One-sided level of each bound.
    seed : int
        Draws the rows, at most ``MOST_ROWS``.
    target : Target
        What is answered.

    Raises
    ------
    UsageError
        Two tests have one name.
    """
    _refuse_repeated(tests)
    rows = frame[list(schema.names)]
    if len(rows) > MOST_ROWS:
        rows = rows.iloc[np.sort(np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False))]
    gates = []
    for test in tests:
        name = f"behaviour_{test.name}"
        try:
            if isinstance(test, MinimumFunctionality):
                gates.append(_functionality(name, test, schema, score, threshold, target))
            else:
                gates.append(_changed(name, test, rows, schema, score, confidence, target))
        except Exception as error:  # a project's own code and the runtime may raise anything
            cause = str(error) if isinstance(error, ClearwayError) else f"{type(error).__name__}: {error}"
            gates.append(Gate(name, "fail", " ".join(f"the test raised: {cause}".split()), threshold=test.min_share))
    return gates


def _changed(
    name: str,
    test: Invariance | Directional,
    rows: pd.DataFrame,
    schema: InputSchema,
    score: Score,
    confidence: float,
    target: Target,
) -> Gate:
    if target.kind == "multiclass" and test.of_class is None and isinstance(test, Directional):
        detail = f"say the probability of which class must go {test.direction}: give the test of_class"
        return Gate(name, "fail", detail, threshold=test.min_share, n=len(rows))
    original = schema.encode(rows)
    changed_rows = test.change(rows.copy())
    problem = _problem(rows, changed_rows, schema)
    if problem:
        return Gate(name, "fail", f"the change {problem}", threshold=test.min_share, n=len(rows))
    changed = schema.encode(changed_rows)
    moved = ((original != changed) & ~(np.isnan(original) & np.isnan(changed))).any(axis=1)
    if not moved.any():
        detail = f"the change leaves all {len(rows):,} rows as the model sees them: it tests nothing"
        return Gate(name, "fail", detail, threshold=test.min_share, n=0)
    before, after = score(original[moved]), score(changed[moved])
    if problem := _not_finite(np.concatenate([before, after])):
        return Gate(name, "fail", problem, threshold=test.min_share, n=len(before))
    rises = target.rises(before, after, test.of_class)
    limit = f"{test.tolerance:g}{' spreads' if target.kind == 'regression' else ''}"
    what = "scores" if test.of_class is None else f"probabilities of {test.of_class!r}"
    behaves: NDArray[np.bool_]
    if isinstance(test, Invariance):
        behaves, said = np.abs(rises) <= test.tolerance, f"{what} stay within {limit}"
    elif test.direction == "up":
        behaves, said = rises >= -test.tolerance, f"{what} do not fall by more than {limit}"
    else:
        behaves, said = rises <= test.tolerance, f"{what} do not rise by more than {limit}"
    return share_gate(name, int(behaves.sum()), len(before), test.min_share, confidence, f"changed {said}")


def _functionality(
    name: str, test: MinimumFunctionality, schema: InputSchema, score: Score, threshold: float, target: Target
) -> Gate:
    if refused := refused_label(target.kind, test.answer):
        detail = refused.replace("label", "answer", 1)
        return Gate(name, "fail", f"the test asks for what the model cannot answer: {detail}", threshold=test.min_share)
    made = test.rows() if callable(test.rows) else test.rows
    if not isinstance(made, pd.DataFrame) or made.empty:
        return Gate(name, "fail", "the test has no rows", threshold=test.min_share, n=0)
    scores = score(schema.encode(made))
    if problem := _not_finite(scores):
        return Gate(name, "fail", problem, threshold=test.min_share, n=len(scores))
    if target.kind == "regression":
        assert target.spread is not None  # checked when it was made
        right = int(np.count_nonzero(np.abs(scores - float(test.answer)) <= test.tolerance * target.spread))
    else:
        wanted = target.position(str(test.answer)) if target.classes else float(test.answer)
        right = int(np.count_nonzero(target.answers(scores, threshold) == wanted))
    share = right / len(scores)
    detail = f"{right:,} of {len(scores):,} rows are answered {test.answer}, a share of {test.min_share:g} is needed"
    return Gate(
        name, "pass" if share >= test.min_share else "fail", detail, share, threshold=test.min_share, n=len(scores)
    )


def _problem(rows: pd.DataFrame, changed: Any, schema: InputSchema) -> str:
    """Why what a change returned is not the rows it was given, changed; empty if it is."""
    if not isinstance(changed, pd.DataFrame):
        return f"returned {type(changed).__name__}, not the changed rows"
    if not changed.index.equals(rows.index):
        return f"returned {len(changed):,} rows that are not the {len(rows):,} it was given"
    lost = [name for name in schema.names if name not in changed.columns]
    if lost:
        return f"lost the feature {', '.join(lost)}"
    odd = [
        feature.name
        for feature in schema.features
        if isinstance(feature, CategoricalFeature)
        and pd.api.types.is_numeric_dtype(changed[feature.name].dtype)
        and not pd.api.types.is_bool_dtype(changed[feature.name].dtype)
        and changed[feature.name].notna().any()
    ]
    return f"turned the category {', '.join(odd)} into a number" if odd else ""


def _not_finite(scores: NDArray[np.float64]) -> str:
    bad = int(len(scores) - np.count_nonzero(np.isfinite(scores).reshape(len(scores), -1).all(axis=1)))
    return f"{bad:,} of {len(scores):,} scores are no finite number" if bad else ""


def _check(name: str, tolerance: float, min_share: float, most: float = 0.9999) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"behaviour {name!r}: a name is of small letters, digits and _, at most 63")
    if not tolerance >= 0:
        raise UsageError(f"behaviour {name!r}: tolerance = {tolerance!r}: give 0 or more")
    if not 0 < min_share <= most:
        raise UsageError(f"behaviour {name!r}: min_share = {min_share!r}: give a share above 0, at most {most:g}")


def _refuse_repeated(tests: Sequence[BehaviouralTest]) -> None:
    names = [test.name for test in tests]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"behaviour {repeated[0]!r} is declared {names.count(repeated[0])} times: rename one")
