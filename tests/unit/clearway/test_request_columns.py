"""Many rows encoded by column: the same bits, counts and refusals as row by row."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.schema import Column
from clearway.serving.requests import FLOAT32_MAX, Columns, RequestError, RowEncoder, as_columns, read_envelopes

SCHEMA = InputSchema(
    features=(
        NumericFeature(name="free"),
        NumericFeature(name="whole", declared=Column(kind="int", min=-5, max=2e15, nullable=True)),
        NumericFeature(name="warned", declared=Column(kind="float", min=0.1, max=10, severity="warn")),
        NumericFeature(name="listed", declared=Column(kind="float", values=(0.1, 2.0, 3.0), min_known=0.5)),
        CategoricalFeature(name="word", categories=("blue", "red", "True")),
        CategoricalFeature(
            name="short", declared=Column(kind="str", max_length=3, severity="warn"), categories=("a", "long one")
        ),
        CategoricalFeature(name="truth", declared=Column(kind="bool", nullable=True), categories=("False", "True")),
    )
)
EDGES = [
    0.1,
    10.0,
    10.000001,
    -0.0,
    2.0**53,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2e15,
    2000000000000001,
    3.4028234663852886e38,
]
ODD = st.sampled_from([None, True, "", "1", [], {}, math.nan, math.inf, 1e39, 10**400, 2**128 - 2**103, 0.5])
NUMBERS = st.integers(-10, 20) | st.floats(-1, 12, width=32) | st.sampled_from(EDGES)
TEXTS = st.sampled_from(["blue", "red", "True", "a", "long one", "mauve", ""])
WORDS = TEXTS | st.none()


def mixed(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly usual values: a row of seven odd ones is refused by its first."""
    return st.integers(0, 30).flatmap(lambda one: ODD if one == 0 else usual)


ROWS = st.fixed_dictionaries(
    {
        "free": mixed(NUMBERS | st.none()),
        "whole": mixed(st.integers(-5, 20) | st.just(3.0) | st.none()),
        "warned": mixed(NUMBERS),
        "listed": mixed(st.sampled_from([0.1, 2, 3.0, 7])),
        "word": mixed(WORDS),
        "short": mixed(TEXTS),
        "truth": mixed(st.sampled_from([True, False, None, "True"])),
    }
)


def by_row(encoder: RowEncoder, rows: list[dict[str, Any]]) -> bytes | None:
    """The bits of all rows; None where one is refused."""
    matrix = np.full((len(rows), encoder.width), 77, dtype=np.float32)
    try:
        for row, vector in zip(rows, matrix, strict=True):
            encoder.encode_into(row, vector)
    except RequestError:
        return None
    return matrix.tobytes()


def by_column(encoder: RowEncoder, rows: list[dict[str, Any]]) -> bytes | None:
    matrix = np.full((len(rows), encoder.width), 77, dtype=np.float32)
    columns = as_columns(rows)
    assert columns is not None
    try:
        encoder.encode_columns(columns.values, matrix)
    except RequestError:
        return None
    return matrix.tobytes()


@given(rows=st.lists(ROWS, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(
    rows=[{"free": v, "whole": 1, "warned": 1, "listed": 2, "word": "", "short": "", "truth": None} for v in EDGES]
)
def test_columns_are_encoded_counted_and_refused_as_rows(rows: list[dict[str, Any]]) -> None:
    one, other = RowEncoder(SCHEMA), RowEncoder(SCHEMA)
    expected = by_row(one, rows)
    assert by_column(other, rows) == expected
    if expected is None:
        assert other.counted() == ({}, {}), "what is refused was counted"
    else:
        assert other.counted() == one.counted()


@pytest.mark.parametrize("name", SCHEMA.names)
@pytest.mark.parametrize(
    "value", [None, True, "", "1", [], {}, math.nan, math.inf, -math.inf, 10**400, int(FLOAT32_MAX) + 1, *EDGES]
)
def test_any_value_of_any_feature_is_judged_as_in_a_row(name: str, value: Any) -> None:
    good = {"free": 1.0, "whole": 1, "warned": 1.5, "listed": 2, "word": "red", "short": "a", "truth": True}
    rows = [good, {**good, name: value}, good]
    one, other = RowEncoder(SCHEMA), RowEncoder(SCHEMA)
    assert by_column(other, rows) == by_row(one, rows)


def test_rows_become_columns_only_where_they_have_the_same_fields() -> None:
    columns = as_columns([{"a": 1, "b": 2}, {"b": 4, "a": 3}])
    assert columns is not None
    assert columns.values == {"a": [1, 3], "b": [2, 4]}
    assert columns.rows() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    for rows in ([{"a": 1}, {"b": 1}], [{"a": 1}, {"a": 1, "b": 2}], [{"a": 1}, [1]], [3, 4], [None], ["a", "b"]):
        assert as_columns(rows) is None


@pytest.mark.parametrize(("change", "fits"), [({}, True), ({"id": "x"}, True), ({"else": 1}, False)])
def test_fields_fit_if_all_features_are_there_and_nothing_unknown(change: dict[str, Any], fits: bool) -> None:
    encoder = RowEncoder(SCHEMA, also_known=("other",))
    assert encoder.fits({**dict.fromkeys(SCHEMA.names), **change}) is fits
    assert not encoder.fits(SCHEMA.names[1:])
    assert encoder.fits((*SCHEMA.names, "other"))


def test_envelopes_of_columns_are_those_of_rows() -> None:
    found = read_envelopes(Columns({"a": [1, 2], "id": ["x", None], "asked_at": [None, "2013-07-01T12:00:00Z"]}, 2))
    assert found == (["x", None], [None, None], [None, "2013-07-01T12:00:00+00:00"])
    assert read_envelopes(Columns({"a": [1, 2]}, 2)) == ([None] * 2,) * 3
    with pytest.raises(RequestError, match="id must be a string"):
        read_envelopes(Columns({"id": ["x", 3]}, 2))
