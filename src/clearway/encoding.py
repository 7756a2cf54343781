"""One encoding of a row into numbers, used by training and by serving, so that the two cannot disagree."""

from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from clearway.errors import ClearwayError


class NumericFeature(BaseModel):
    """A number; missing is NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["numeric"] = "numeric"
    name: str
    nullable: bool = True
    minimum: float | None = None
    maximum: float | None = None


class CategoricalFeature(BaseModel):
    """One of the categories seen in training, encoded as its position; unseen and missing are NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["categorical"] = "categorical"
    name: str
    nullable: bool = True
    categories: tuple[str, ...]


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

    def encode(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Encode a table: (rows) → float32 array of shape (rows, features).

        float32 before training, not after: ONNX compares in float32, and a split threshold that fell between
        a float64 value and its rounding would send the row the other way.

        Raises
        ------
        ClearwayError
            A feature's column is missing, or holds what cannot be a number.
        """
        missing = [name for name in self.names if name not in frame.columns]
        if missing:
            raise ClearwayError(f"features missing from the table: {', '.join(missing)}")
        encoded = np.empty((len(frame), len(self.features)), dtype=np.float32)
        for position, feature in enumerate(self.features):
            column = frame[feature.name]
            if isinstance(feature, CategoricalFeature):
                codes = pd.Categorical(column.astype("object"), categories=list(feature.categories)).codes
                encoded[:, position] = np.where(codes < 0, np.nan, codes)
                continue
            try:
                encoded[:, position] = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
            except (ValueError, TypeError) as error:
                raise ClearwayError(f"feature {feature.name} is not numeric: {error}") from None
        return encoded


def learn_schema(frame: pd.DataFrame, categorical: tuple[str, ...], numeric: tuple[str, ...]) -> InputSchema:
    """The input schema of training rows: order as given (numeric first), sorted categories, observed ranges."""
    features: list[Any] = []
    for name in numeric:
        values = pd.to_numeric(frame[name]).to_numpy(dtype=np.float64, na_value=np.nan)
        finite = values[np.isfinite(values)]
        features.append(
            NumericFeature(
                name=name,
                nullable=True,
                minimum=float(finite.min()) if finite.size else None,
                maximum=float(finite.max()) if finite.size else None,
            )
        )
    for name in categorical:
        categories = tuple(sorted(str(value) for value in frame[name].dropna().unique()))
        features.append(CategoricalFeature(name=name, nullable=True, categories=categories))
    return InputSchema(features=tuple(features))
