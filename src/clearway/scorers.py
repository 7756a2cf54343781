"""Any scorer of scikit-learn as a metric of a model's outputs, by its name (``sklearn.metrics.get_scorer_names``).

As there, higher is better of every scorer: those of losses are negative and begin with ``neg_``. Under row weights a
row is repeated as often as it was drawn, so that a scorer needs to know nothing of weights; each call costs what
scikit-learn takes for it, hundreds of times an interval.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names

from clearway.metrics import Floats, Metric, Weighted
from clearway.params import Kind

NO_BOUND = "no resample has a larger error than the holdout, so nothing is known of its bound"


def why_not(name: str, kind: Kind) -> str:
    """Why no scorer of that name judges models of that kind; empty where one does."""
    if name not in get_scorer_names():
        return "it is no scorer of scikit-learn (sklearn.metrics.get_scorer_names() lists them)"
    if name == "neg_max_error":
        return NO_BOUND
    # a scorer of numbers would take the positions of classes for numbers, and one of groupings takes anything at all
    numbers, names = _fault(name, "regression"), _fault(name, "multiclass")
    fault = {"regression": numbers, "multiclass": names, "binary": _fault(name, "binary")}[kind]
    if not fault and ((kind == "regression" and not names) or (kind == "binary" and names and not numbers)):
        fault = f"it judges {'classes' if kind == 'regression' else 'numbers'}"
    return fault and f"it does not judge {kind} targets ({fault})"


def scorer_metric(name: str, kind: Kind) -> Metric:
    """The scorer of that name as a metric of models of that kind.

    Its value is NaN where scikit-learn refuses the rows, such as one answer alone.
    """

    def value(labels: Floats, outputs: Floats, threshold: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _score(name, kind, labels, outputs, threshold)
            except ValueError:
                return float("nan")

    def weighted(labels: Floats, outputs: Floats, threshold: float) -> Weighted:
        def resampled(weights: NDArray[Any]) -> float:
            rows = np.repeat(np.arange(len(labels)), weights.astype(np.intp))
            return value(labels[rows], outputs[rows], threshold)

        return resampled

    return Metric(name, True, value, weighted)


class _Answered(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What a scorer wants to be called with: an estimator; this one is asked what a model put out, and answers it."""

    def __sklearn_is_fitted__(self) -> bool:
        return True


class _Numbers(RegressorMixin, _Answered):  # type: ignore[misc]
    def predict(self, outputs: Floats) -> Floats:
        return outputs


class _Classes(ClassifierMixin, _Answered):  # type: ignore[misc]
    def __init__(self, classes: NDArray[Any], threshold: float) -> None:
        self.threshold = threshold
        self.classes_ = classes

    def predict(self, outputs: Floats) -> NDArray[Any]:
        answers = outputs >= self.threshold if outputs.ndim == 1 else outputs.argmax(axis=1)
        found: NDArray[Any] = self.classes_[answers.astype(np.intp)]
        return found

    def predict_proba(self, outputs: Floats) -> Floats:
        return np.column_stack([1 - outputs, outputs]) if outputs.ndim == 1 else outputs


def _score(name: str, kind: Kind, labels: Floats, outputs: Floats, threshold: float) -> float:
    scorer = get_scorer(name)
    if kind == "regression":
        return float(scorer(_Numbers(), outputs, labels))
    classes = np.arange(2 if outputs.ndim == 1 else outputs.shape[1])
    return float(scorer(_Classes(classes, threshold), outputs, labels.astype(np.intp)))


def _fault(name: str, kind: Kind) -> str:
    """What a scorer says of a few rows of a model that is mostly right; empty if it gives them a value."""
    scorer = get_scorer(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "regression":
                value = scorer(_Numbers(), np.array([1.1, 2.0, 2.5, 4.2]), np.array([1.0, 2.0, 3.0, 4.0]))
            elif kind == "binary":
                scores = np.array([0.1, 0.3, 0.8, 0.9, 0.6, 0.4])
                value = scorer(_Classes(np.arange(2), 0.5), scores, np.array([0, 0, 1, 1, 0, 1]))
            else:
                told = np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [5, 3, 2], [2, 5, 3], [4, 3, 3]]) / 10
                value = scorer(_Classes(np.array(["a", "b", "c"]), 0.5), told, np.array(list("abcabc")))
    except Exception as error:  # whatever a scorer raises of the simplest case, it does not judge this kind
        return " ".join(str(error).split())[:100]
    return "" if np.isfinite(value) else "no value"
