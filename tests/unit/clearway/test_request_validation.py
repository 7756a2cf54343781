"""Requests: the fast path encodes exactly as training did, and what it refuses it names."""

import math
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.errors import ClearwayError
from clearway.serving.requests import FLOAT32_MAX, RequestError, RowEncoder, read_envelope, strip_envelope

SCHEMA = InputSchema(
    features=(
        NumericFeature(name="height", nullable=True),
        NumericFeature(name="count", nullable=False),
        CategoricalFeature(name="colour", nullable=True, categories=("blue", "green", "red")),
        CategoricalFeature(name="shape", nullable=False, categories=("", "round", "1")),
    )
)
GOOD: dict[str, Any] = {"height": 1.5, "count": 3, "colour": "green", "shape": "round"}

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False, min_value=-3e38, max_value=3e38)
)
ROWS = st.fixed_dictionaries(
    {
        "height": st.none() | NUMBERS,
        "count": NUMBERS,
        "colour": st.none() | st.sampled_from(["blue", "green", "red", "mauve"]) | st.text(max_size=4),
        "shape": st.sampled_from(["", "round", "1", "square"]) | st.text(max_size=4),
    }
)


def encode(row: dict[str, Any], encoder: RowEncoder | None = None) -> np.ndarray:
    encoder = encoder or RowEncoder(SCHEMA)
    vector = np.full(encoder.width, 77.0, dtype=np.float32)
    encoder.encode_into(row, vector)
    return vector


def ask(row: Any) -> np.ndarray:
    read_envelope(row)
    return encode(row)


def refusal(row: Any) -> str:
    with pytest.raises(RequestError) as caught:
        ask(row)
    assert 400 <= caught.value.status < 500
    return str(caught.value)


@given(row=ROWS)
@settings(max_examples=120, deadline=None)
def test_one_row_is_encoded_as_the_input_schema_does(row: dict[str, Any]) -> None:
    np.testing.assert_array_equal(encode(row), SCHEMA.encode(pd.DataFrame([row]))[0])


@given(rows=st.lists(ROWS, min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_many_rows_are_encoded_as_the_input_schema_does(rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype="object") for name in SCHEMA.names})
    np.testing.assert_array_equal(np.stack([encode(row) for row in rows]), SCHEMA.encode(frame))


@given(row=ROWS)
@settings(max_examples=100, deadline=None)
def test_a_row_survives_the_journey_as_json(row: dict[str, Any]) -> None:
    np.testing.assert_array_equal(encode(orjson.loads(orjson.dumps(row))), encode(row))


def test_nothing_of_the_row_before_remains() -> None:
    encoder, vector = RowEncoder(SCHEMA), np.empty(4, dtype=np.float32)
    encoder.encode_into(GOOD, vector)
    encoder.encode_into({"height": None, "count": 0, "colour": None, "shape": "round"}, vector)
    assert np.isnan(vector[[0, 2]]).all()
    assert vector[1] == 0


@pytest.mark.parametrize("name", ["height", "count", "colour", "shape"])
def test_absent_feature_is_refused(name: str) -> None:
    assert f"feature {name} is missing" in refusal({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": "1.5"}, "feature height must be a number or null, not a string"),
        ({"height": True}, "feature height must be a number or null, not a boolean"),
        ({"height": [1]}, "feature height must be a number or null, not an array"),
        ({"height": {}}, "feature height must be a number or null, not an object"),
        ({"height": math.nan}, "feature height = nan"),
        ({"height": math.inf}, "feature height = inf"),
        ({"height": -math.inf}, "feature height = -inf"),
        ({"height": 2 * FLOAT32_MAX}, "feature height = 6.8"),
        ({"count": 10**300}, "feature count = 1e+300"),
        ({"count": None}, "feature count may not be null"),
        ({"shape": None}, "feature shape may not be null"),
        ({"colour": 1}, "feature colour must be a string or null, not a number"),
        ({"colour": False}, "feature colour must be a string or null, not a boolean"),
        ({"weight": 1}, "unknown field 'weight'"),
        ({"id": 7}, "id must be a string or null, not a number"),
        ({"id": ""}, "id must have 1 to 256 characters"),
        ({"entity": ["x"]}, "entity must be a string or null, not an array"),
        ({"entity": "x" * 300}, "entity must have 1 to 256 characters, has 300"),
        ({"asked_at": "yesterday"}, "asked_at must be an ISO 8601 time"),
        ({"asked_at": "2013-07-01T12:00:00"}, "asked_at must be an ISO 8601 time with its zone"),
        ({"asked_at": 1372636800}, "asked_at must be an ISO 8601 time"),
    ],
)
def test_wrong_value_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    assert said in refusal({**GOOD, **change})


@pytest.mark.parametrize("row", [None, [], "row", 3, True])
def test_a_row_must_be_an_object(row: Any) -> None:
    assert "a row must be an object" in refusal(row)


def test_largest_float32_is_accepted_and_stays_finite() -> None:
    assert np.isfinite(encode({**GOOD, "height": FLOAT32_MAX})).all()


def test_unseen_category_is_missing_and_counted() -> None:
    encoder = RowEncoder(SCHEMA)
    assert np.isnan(encode({**GOOD, "colour": "mauve"}, encoder)[2])
    encode(GOOD, encoder)
    encode({**GOOD, "colour": None}, encoder)
    assert encoder.unseen == 1


def test_envelope_is_read_and_is_no_feature() -> None:
    row = {**GOOD, "id": "q1", "entity": "N1", "asked_at": "2013-07-01T12:00:00Z"}
    envelope = read_envelope(row)
    assert (envelope.id, envelope.entity, envelope.asked_at) == ("q1", "N1", "2013-07-01T12:00:00Z")
    encode(row)
    assert strip_envelope(row) == GOOD
    assert read_envelope(GOOD).id is read_envelope({**GOOD, "id": None}).id is None


def test_feature_of_another_live_version_is_ignored_not_refused() -> None:
    np.testing.assert_array_equal(
        encode({**GOOD, "weight": 1}, RowEncoder(SCHEMA, also_known=["weight"])), encode(GOOD)
    )


def test_feature_named_like_the_envelope_is_refused_when_compiled() -> None:
    with pytest.raises(ClearwayError, match="'id'"):
        RowEncoder(InputSchema(features=(NumericFeature(name="id"),)))
