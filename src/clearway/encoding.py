"""One encoding of a row into numbers, used by training and by serving, so that the two cannot disagree."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from clearway.errors import ClearwayError
from clearway.schema import Column

if TYPE_CHECKING:
    import pandas as pd


class DeclaredFeature(BaseModel):
    """What every feature has: its name, and what ``schema.yaml`` says of its values."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    name: str
    nullable: bool = True
    """Whether a value may be missing, where nothing is declared; ``declared`` may be stricter."""
    declared: Column | None = None
    """What its values may be, in training and in a request; null where the schema does not list the feature."""

    @field_serializer("declared")
    def _only_what_was_said(self, declared: Column | None) -> dict[str, Any] | None:
        return None if declared is None else declared.model_dump(mode="json", exclude_defaults=True)


class NumericFeature(DeclaredFeature):
    """A number; missing is NaN."""

    kind: Literal["numeric"] = "numeric"
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _declared_as_number(self) -> Self:
        if self.declared is not None and self.declared.kind not in ("int", "float"):
            raise ValueError(f"feature {self.name} is a number, but declared of kind {self.declared.kind}")
        return self


class CategoricalFeature(DeclaredFeature):
    """One of the categories seen in training, encoded as its position; unseen and missing are NaN."""

    kind: Literal["categorical"] = "categorical"
    categories: tuple[str, ...]

    @model_validator(mode="after")
    def _declared_as_category(self) -> Self:
        if self.declared is not None and self.declared.kind not in ("str", "bool"):
            raise ValueError(f"feature {self.name} is a category, but declared of kind {self.declared.kind}")
        return self


Feature = Annotated[NumericFeature | CategoricalFeature, Field(discriminator="kind")]


class InputSchema(BaseModel):
    """The ordered features of a model: what a request must carry and how it becomes a vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: tuple[Feature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def categorical_positions(self) -> tuple[int, ...]:
        return tuple(i for i, feature in enumerate(self.features) if feature.kind == "categorical")

    @property
    def numeric_positions(self) -> tuple[int, ...]:
        return tuple(i for i, feature in enumerate(self.features) if feature.kind == "numeric")

    def encode(self, frame: "pd.DataFrame") -> NDArray[np.float32]:
        """Encode a table: (rows) → float32 array of shape (rows, features).

        float32 before training, not after: ONNX compares in float32, and a split threshold that fell between
        a float64 value and its rounding would send the row the other way.

        Raises
        ------
        ClearwayError
            A feature's column is missing, or holds what cannot be a number.
        """
        import pandas as pd  # late, because a server never needs it

        missing = [name for name in self.names if name not in frame.columns]
        if missing:
            raise ClearwayError(f"features missing from the table: {', '.join(missing)}")
        encoded = np.empty((len(frame), len(self.features)), dtype=np.float32)
        for position, feature in enumerate(self.features):
            column = frame[feature.name]
            if isinstance(feature, CategoricalFeature):
                if feature.declared is not None and feature.declared.kind == "bool":
                    column = column.astype("string")  # a request may say true, training says "True"
                codes = pd.Categorical(column.astype("object"), categories=list(feature.categories)).codes
                encoded[:, position] = np.where(codes < 0, np.nan, codes)
                continue
            encoded[:, position] = _numbers(column)
        return encoded


def _numbers(column: "pd.Series[Any]") -> NDArray[np.float64]:
    import pandas as pd

    try:
        numbers: NDArray[np.float64] = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ClearwayError(f"feature {column.name} is not numeric: {error}") from None
    return numbers


def learn_schema(
    frame: "pd.DataFrame",
    categorical: tuple[str, ...],
    numeric: tuple[str, ...],
    declared: Mapping[str, Column] | None = None,
) -> InputSchema:
    """The input schema of training rows: order as given (numeric first), sorted categories, observed ranges.

    Parameters
    ----------
    frame : DataFrame
        Training rows, one column per feature.
    categorical, numeric : tuple of str
        Names of the features.
    declared : mapping of str to Column, optional
        What the values of a feature may be, where that is declared; see :func:`clearway.features.declared_features`.

    Raises
    ------
    ClearwayError
        A numeric feature holds what cannot be a number.
    pydantic.ValidationError
        A numeric feature is declared as text, or the other way round.
    """
    said = declared or {}
    features: list[Any] = []
    for name in numeric:
        values = _numbers(frame[name])
        finite = values[np.isfinite(values)]
        features.append(
            NumericFeature(
                name=name,
                declared=said.get(name),
                minimum=float(finite.min()) if finite.size else None,
                maximum=float(finite.max()) if finite.size else None,
            )
        )
    for name in categorical:
        categories = tuple(sorted(str(value) for value in frame[name].dropna().unique()))
        features.append(CategoricalFeature(name=name, declared=said.get(name), categories=categories))
    return InputSchema(features=tuple(features))


def as_encoded(declared: Column) -> Column:
    """A declared column in the values that rows of features hold: float32 numbers, and truth values as text.

    Rows are rounded to float32 before training. A bound of 0.1 rounded the same way still admits 0.1, and, since
    rounding keeps order, every number it admitted before.
    """
    changes: dict[str, Any] = {name: _rounded(getattr(declared, name)) for name in ("min", "max")}
    if declared.kind in ("int", "float") and declared.values is not None:
        changes["values"] = tuple(_rounded(value) for value in declared.values)
    if declared.kind == "bool":
        changes |= {"kind": "str", "values": tuple(str(value) for value in declared.values or (False, True))}
    return declared.model_copy(update=changes)


def _rounded(bound: Any) -> Any:
    if not isinstance(bound, float):
        return bound
    with np.errstate(over="ignore"):
        return float(np.float32(bound))
