from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature, as_encoded, learn_schema
from clearway.errors import ClearwayError
from clearway.schema import Column


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"wind": [3.5, None, 7.0], "port": ["b", "a", None], "extra": [1, 2, 3]})


def test_the_schema_learns_ranges_and_sorted_categories(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    assert schema.names == ("wind", "port")
    wind, port = schema.features
    assert isinstance(wind, NumericFeature)
    assert (wind.minimum, wind.maximum) == (3.5, 7.0)
    assert isinstance(port, CategoricalFeature)
    assert port.categories == ("a", "b")
    assert (schema.numeric_positions, schema.categorical_positions) == ((0,), (1,))


def test_rows_become_float32_with_codes_and_nan(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    encoded = schema.encode(frame)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.array([[3.5, 1], [np.nan, 0], [7.0, np.nan]], dtype=np.float32))


def test_an_unseen_category_is_missing(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    assert np.isnan(schema.encode(pd.DataFrame({"wind": [1.0], "port": ["z"]}))[0, 1])


def test_a_missing_column_is_named(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    with pytest.raises(ClearwayError, match="wind"):
        schema.encode(frame.drop(columns="wind"))


def test_text_in_a_numeric_column_is_named(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    with pytest.raises(ClearwayError, match="feature wind is not numeric"):
        schema.encode(pd.DataFrame({"wind": ["25 years"], "port": ["a"]}))


def test_the_schema_survives_json(frame: pd.DataFrame) -> None:
    schema = learn_schema(frame, categorical=("port",), numeric=("wind",))
    assert InputSchema.model_validate_json(schema.model_dump_json()) == schema


def test_what_is_declared_of_a_feature_survives_json_and_says_only_what_was_said(frame: pd.DataFrame) -> None:
    declared = {"wind": Column(kind="float", nullable=True, max=100), "port": Column(kind="str", values=("a", "b"))}
    schema = learn_schema(frame, ("port",), ("wind",), declared)
    assert [feature.declared for feature in schema.features] == [declared["wind"], declared["port"]]
    assert InputSchema.model_validate_json(schema.model_dump_json()) == schema
    assert schema.model_dump(mode="json")["features"][0]["declared"] == {"kind": "float", "nullable": True, "max": 100}
    assert learn_schema(frame, ("port",), ("wind",)).features[0].declared is None


def test_a_schema_from_before_declarations_is_read() -> None:
    before = '{"features": [{"kind": "numeric", "name": "wind", "nullable": true, "minimum": 0, "maximum": 1}]}'
    assert InputSchema.model_validate_json(before).features[0].declared is None


@pytest.mark.parametrize("kind", ["str", "bool", "timestamp"])
def test_a_number_declared_otherwise_is_refused(frame: pd.DataFrame, kind: str) -> None:
    with pytest.raises(ValidationError, match=f"wind is a number, but declared of kind {kind}"):
        learn_schema(frame, ("port",), ("wind",), {"wind": Column.model_validate({"kind": kind})})


def test_a_category_declared_as_a_number_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ValidationError, match="port is a category, but declared of kind int"):
        learn_schema(frame, ("port",), ("wind",), {"port": Column(kind="int")})


def test_a_declaration_is_rounded_as_rows_are() -> None:
    column = as_encoded(Column(kind="float", min=0.1, max=0.3, values=(0.1, 0.25)))
    assert (column.min, column.max) == (float(np.float32(0.1)), float(np.float32(0.3)))
    assert column.values == (float(np.float32(0.1)), 0.25)
    truth = as_encoded(Column(kind="bool", nullable=True, severity="warn"))
    assert (truth.kind, truth.values, truth.nullable, truth.severity) == ("str", ("False", "True"), True, "warn")


@pytest.mark.parametrize("values", [["heavy", "light"], [[1], [2]]])
def test_a_numeric_feature_that_is_no_number_is_named_where_it_is_learnt(values: list[Any]) -> None:
    with pytest.raises(ClearwayError, match="feature weight is not numeric"):
        learn_schema(pd.DataFrame({"weight": pd.Series(values, dtype="object")}), (), ("weight",))
