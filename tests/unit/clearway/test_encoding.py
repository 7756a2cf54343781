import numpy as np
import pandas as pd
import pytest

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature, learn_schema
from clearway.errors import ClearwayError


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
