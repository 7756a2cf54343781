"""What a model answers, and what follows from it for everyone who asks: ``params.yaml: target.kind``.

=============  ===============================  ==============================  =============================
kind           label in the tables              a model's **output**            its **score**, one a row
=============  ===============================  ==============================  =============================
binary         0.0 or 1.0                       probability of 1, (rows,)       the output
multiclass     name of the class, text          probability of each class,      probability of the class that
                                                (rows, classes)                 is answered: the likeliest
regression     finite number                    the number, (rows,)             the output
=============  ===============================  ==============================  =============================

Metrics and gates look at outputs. The score is what the prediction log, the drift of predictions and the canary have
one of for each row. Where labels are judged, a class is its position among the classes: see :func:`judged`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from clearway.errors import ClearwayError
from clearway.params import Kind

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

MAX_CLASSES = 1000
"""A label of more values than this is a number, or the name of the row."""
LARGEST = float(np.finfo(np.float32).max)
"""A label beyond it cannot be answered: ONNX Runtime answers in float32."""
_NORMAL_RANGE = 3.2897072539029435
"""From the 5th to the 95th percentile of a normal distribution, in standard deviations."""


class Told(NamedTuple):
    """What callers are told of some rows."""

    scores: list[float]
    labels: list[Any]
    probabilities: list[dict[str, float]] | None = None
    """Of several classes: by class."""


class Target(BaseModel):
    """What one model answers: ``target`` in ``params.json`` of its payload, left out where it is binary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "binary"
    classes: tuple[str, ...] = ()
    """Multiclass: the classes of the training labels, sorted; column k of an output is the probability of the k-th."""
    centre: float | None = None
    """Regression: median of the training labels."""
    spread: float | None = None
    """Regression: what differences of predictions are measured in. From the 5th to the 95th percentile of the training
    labels over 3.29, which is the standard deviation of normal ones and is not drawn out by a heavy tail; the standard
    deviation itself where the percentiles are equal."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "multiclass" and (len(self.classes) < 2 or len(set(self.classes)) != len(self.classes)):
            raise ValueError(f"two or more different classes are needed, got {self.classes}")
        if self.kind == "regression" and not (self.centre is not None and self.spread is not None and self.spread > 0):
            raise ValueError(f"centre and a spread above 0 are needed, got {self.centre} and {self.spread}")
        return self

    @property
    def binary(self) -> bool:
        return self.kind == "binary"

    def score(self, outputs: Floats) -> Floats:
        """One number a row: see the table above."""
        found: Floats = outputs.max(axis=1) if self.kind == "multiclass" else outputs
        return found

    def answers(self, outputs: Floats, threshold: float) -> Floats:
        """What is answered for each row, in the unit of judged labels: 0.0 or 1.0, a class's position, or a number."""
        if self.kind == "multiclass":
            return np.asarray(outputs.argmax(axis=1), dtype=np.float64)
        return outputs if self.kind == "regression" else np.asarray(outputs >= threshold, dtype=np.float64)

    def named(self, outputs: Floats, threshold: float) -> list[Any]:
        """What is answered for each row, as a caller is told: 0 or 1, the name of a class, or a number."""
        answers: list[Any] = self.answers(outputs, threshold).tolist()
        if self.kind == "regression":
            return answers
        codes = map(int, answers)
        return [self.classes[code] for code in codes] if self.kind == "multiclass" else list(codes)

    def told(self, outputs: Floats, threshold: float) -> Told:
        """Each row as a caller is told."""
        scores = self.score(outputs).tolist()
        if self.kind == "binary":
            return Told(scores, [1 if score >= threshold else 0 for score in scores])
        rows = outputs.tolist() if self.classes else None
        return Told(
            scores,
            self.named(outputs, threshold),
            None if rows is None else [dict(zip(self.classes, row, strict=True)) for row in rows],
        )

    def kept(self, before: Floats, after: Floats, threshold: float, tolerance: float) -> NDArray[np.bool_]:
        """Which rows keep their answer: the same one, or a number within ``tolerance`` standard deviations of all."""
        if self.kind == "regression":
            close: NDArray[np.bool_] = np.abs(after - before) <= tolerance * before.std()
            return close
        same: NDArray[np.bool_] = self.answers(before, threshold) == self.answers(after, threshold)
        return same

    def sane(self, outputs: Floats) -> NDArray[np.bool_]:
        """Which rows have an output that can be one: probabilities that sum to 1, or a number that float32 holds."""
        if self.kind == "regression":
            within: NDArray[np.bool_] = np.abs(outputs) <= LARGEST
            return within
        good = np.isfinite(outputs) & (outputs >= 0) & (outputs <= 1 + 1e-6 * (outputs.ndim == 2))
        return good.all(axis=1) & (np.abs(outputs.sum(axis=1) - 1) <= 1e-3) if outputs.ndim == 2 else good

    def differences(self, ours: Floats, theirs: Floats) -> Floats:
        """How far two outputs are apart, row by row, in the unit of ``gates.onnx_tolerance``; NaN where either is.

        Of probabilities the largest difference. Of numbers relative to the larger of the two, or to the spread where
        that is larger: float32 holds seven digits of a number, however small its distance to the next label.
        """
        apart = np.abs(ours - theirs)
        if self.kind == "regression":
            assert self.spread is not None  # checked when it was made
            return np.asarray(apart / np.maximum(self.spread, np.maximum(np.abs(ours), np.abs(theirs))))
        return np.asarray(apart.max(axis=1)) if apart.ndim == 2 else apart

    def rises(self, before: Floats, after: Floats, of_class: str | None) -> Floats:
        """By how much the probability rises, of ``of_class`` or of a 1; of a number, in spreads.

        Without ``of_class`` the change of several probabilities that is furthest from 0.

        Raises
        ------
        ClearwayError
            There is no such class.
        """
        change = after - before
        if self.kind == "regression":
            assert self.spread is not None  # checked when it was made
            return np.asarray(change / self.spread)
        if self.kind == "binary":
            return change
        if of_class is None:
            furthest = np.abs(change).argmax(axis=1)
            return np.asarray(change[np.arange(len(change)), furthest])
        return np.asarray(change[:, self.position(of_class)])

    def position(self, name: str) -> int:
        """The place of a class.

        Raises
        ------
        ClearwayError
            Training saw no such class.
        """
        if name not in self.classes:
            raise ClearwayError(f"class {name!r} is none that training saw (classes: {listed(self.classes)})")
        return self.classes.index(name)


BINARY = Target()


def learn_target(kind: Kind, labels: NDArray[Any]) -> tuple[Target, Floats]:
    """The target of a model from its training labels, and these as an estimator takes them.

    Parameters
    ----------
    kind : Kind
    labels : array of shape (rows,)
        Float64; text for multiclass.

    Returns
    -------
    Target, float64 array of shape (rows,)

    Raises
    ------
    ClearwayError
        There is nothing to learn: the labels are all the same; or they are more different classes than can be one
        target's.
    """
    if kind == "multiclass":
        classes = tuple(sorted(set(labels.tolist())))
        if len(classes) < 2:
            raise _nothing(f"two classes or more, found only {listed(classes) or 'none'}", len(labels))
        if len(classes) > MAX_CLASSES:
            raise ClearwayError(
                f"training labels are of {len(classes):,} classes, at most {MAX_CLASSES:,} can be learnt: is the label "
                "a number (params.yaml: target.kind: regression), or the name of the row?"
            )
        return Target(kind=kind, classes=classes), codes(labels, classes)
    found = np.unique(labels)
    if kind == "binary":
        if found.tolist() != [0.0, 1.0]:
            raise _nothing(f"both 0 and 1, found only {', '.join(f'{a:g}' for a in found) or 'none'}", len(labels))
        return BINARY, labels
    if len(found) < 2:
        raise _nothing(f"different numbers, found only {', '.join(f'{a:g}' for a in found) or 'none'}", len(labels))
    low, middle, high = np.quantile(labels, [0.05, 0.5, 0.95])
    spread = (high - low) / _NORMAL_RANGE if high > low else labels.std()
    return Target(kind=kind, centre=float(middle), spread=float(spread)), labels


def _nothing(needed: str, rows: int) -> ClearwayError:
    return ClearwayError(
        f"training labels must be {needed} in {rows} rows: there is nothing to learn; check the label's definition "
        "(params.yaml: data.label, data.positive, or the project's questions) and the training window (split, as_of)"
    )


def codes(labels: NDArray[Any], classes: Sequence[str]) -> Floats:
    """The position of each label among ``classes``, which must hold it: float64 of shape (rows,)."""
    place = {name: float(position) for position, name in enumerate(classes)}
    return np.array([place[label] for label in labels.tolist()], dtype=np.float64)


def class_name(value: Any) -> str:
    """The class that a label's value is, as text: 3, 3.0 and "3" are one class, and so are true and "True".

    >>> [class_name(value) for value in (3, 3.0, "3", True, 2.5)]
    ['3', '3', '3', 'True', '2.5']
    """
    if isinstance(value, (float, np.floating)) and float(value).is_integer() and abs(float(value)) < 2**53:
        value = int(value)
    elif isinstance(value, np.generic):
        value = value.item()
    return str(value)


def class_names(labels: "pd.Series[Any]") -> "pd.Series[Any]":
    """Labels as names of classes, of dtype string; null stays null."""
    import pandas as pd

    named = [pd.NA if pd.isna(value) else class_name(value) for value in labels.astype("object")]
    return pd.Series(named, index=labels.index, dtype="string")


def constants(target: Target, labels: Floats) -> dict[str, Any]:
    """What an answer that ignores the question would be made of: see :func:`constant_answer`."""
    if target.binary:
        return {"positive_share": labels.mean()}
    if target.kind == "regression":
        return {"label_mean": float(labels.mean()), "label_median": float(np.median(labels))}
    return {"class_shares": (np.bincount(labels.astype(np.intp)) / len(labels)).tolist()}


def constant_answer(report: Mapping[str, Any], metric: str) -> float | list[float]:
    """The best answer that ignores the question, by the training report: for absolute errors the median, not the mean.

    Of several classes the share of each, of which the most frequent is answered.
    """
    if "class_shares" in report:
        return list(report["class_shares"])
    if "label_mean" in report:
        absolute = metric in ("mae", "median_absolute_error", "p95_absolute_error")
        return float(report["label_median" if absolute else "label_mean"])
    return float(report["positive_share"])


@dataclass(frozen=True)
class Judged:
    """Labels and outputs as metrics take them."""

    labels: Floats
    """0.0 or 1.0, the position of a class among ``classes``, or a number."""
    outputs: tuple[Floats, ...]
    """Of each model; with one column for each of ``classes``."""
    classes: tuple[str, ...] = ()
    """Multiclass: those of the first model in its order, then others that the labels or other models have."""


def judged(target: Target, labels: NDArray[Any], *models: tuple[Target, Floats]) -> Judged:
    """Bring labels and the outputs of models of one kind onto the same classes.

    A class that a model has never seen gets the probability 0 from it: its rows are answered wrongly, and cost what
    scikit-learn's log loss makes of a 0.

    Parameters
    ----------
    target : Target
        Whose classes come first.
    labels : array of shape (rows,)
        Float64; text for multiclass.
    models : (Target, float64 array), of the same kind
        Outputs on the same rows.
    """
    if target.kind != "multiclass":
        return Judged(np.asarray(labels, dtype=np.float64), tuple(outputs for _, outputs in models))
    others = {name for model, _ in models for name in model.classes} | set(labels.tolist())
    classes = (*target.classes, *sorted(others - set(target.classes)))
    place = {name: position for position, name in enumerate(classes)}
    spread = []
    for model, outputs in models:
        wide = np.zeros((len(outputs), len(classes)))
        wide[:, [place[name] for name in model.classes]] = outputs
        spread.append(wide)
    return Judged(codes(labels, classes), tuple(spread), classes)


def top_label(labels: Floats, outputs: Floats) -> tuple[Floats, Floats]:
    """Labels and probabilities of 1; of several classes whether the answer is right, and how probable it was said to
    be. ``outputs`` are as of :func:`judged`."""
    if outputs.ndim == 1:
        return labels, outputs
    return (outputs.argmax(axis=1) == labels).astype(np.float64), outputs.max(axis=1)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names of classes for a message, quoted, so that odd ones are seen as they are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def refused_label(kind: Kind, label: Any) -> str:
    """Why a label that is known can be none of this kind; empty if it can."""
    if kind == "multiclass":
        named = class_name(label)
        return "" if named.strip() else f"label = {label!r}: a class needs a name (write null where it is not known)"
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if kind == "binary":
        return "" if number in (0.0, 1.0) else f"label = {label!r}: a label is 0, 1 or null"
    if not math.isfinite(number):
        return f"label = {label!r}: a label is a finite number or null (params.yaml: target.kind is regression)"
    return "" if abs(number) <= LARGEST else f"label = {label!r}: too large for float32, in which models answer"
