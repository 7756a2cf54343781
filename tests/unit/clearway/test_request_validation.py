"""Requests: the fast path encodes exactly as training did, and what it refuses it names."""

import math
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pandera.pandas as pandera
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.errors import ClearwayError
from clearway.features import check_features
from clearway.schema import Column
from clearway.serving.requests import (
    FLOAT32_MAX,
    RequestError,
    RowEncoder,
    compile_check,
    read_envelope,
    strip_envelope,
)

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


@pytest.mark.parametrize(("name", "nullable"), [("height", True), ("count", False), ("colour", True), ("shape", False)])
def test_absent_feature_is_refused_and_null_is_offered_only_where_it_may_be(name: str, nullable: bool) -> None:
    hint = "send null if it is not known" if nullable else "it may not be null"
    said = f"feature {name} is missing: {hint}"
    assert said == refusal({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": "1.5"}, "feature height must be a number or null, not a string: '1.5'"),
        ({"height": True}, "feature height must be a number or null, not a boolean: True"),
        ({"height": [1]}, "feature height must be a number or null, not an array"),
        ({"height": {}}, "feature height must be a number or null, not an object"),
        ({"height": math.nan}, "feature height = nan"),
        ({"height": math.inf}, "feature height = inf"),
        ({"height": -math.inf}, "feature height = -inf"),
        ({"height": 2 * FLOAT32_MAX}, "feature height = 6.8"),
        ({"count": 10**300}, "feature count = 1e+300"),
        ({"count": None}, "feature count may not be null"),
        ({"shape": None}, "feature shape may not be null"),
        ({"colour": 1}, "feature colour must be a string or null, not a number: 1"),
        ({"colour": False}, "feature colour must be a string or null, not a boolean"),
        ({"weight": 1}, "unknown field 'weight'"),
        ({"id": 7}, "id must be a string or null, not a number"),
        ({"id": ""}, "id must have 1 to 256 characters"),
        ({"entity": ["x"]}, "entity must be a string or null, not an array"),
        ({"entity": "x" * 300}, "entity must have 1 to 256 characters, has 300"),
        ({"asked_at": "yesterday"}, "asked_at must be an ISO 8601 time"),
        ({"asked_at": "2013-07-01T12:00:00"}, "asked_at must be an ISO 8601 time with its zone"),
        ({"asked_at": 1372636800}, "asked_at must be an ISO 8601 time"),
        ({"asked_at": "9999-12-31T23:00:00Z"}, "of the years 1700 to 2200"),
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


@pytest.mark.parametrize(
    "said",
    ["2013-07-01T14:00:00+02:00", "2013-W27-1T12:00:00Z", "20130701T120000Z", "2013-07-01x12:00:00,0Z"],
)
def test_time_of_a_question_is_kept_in_one_form(said: str) -> None:
    assert read_envelope({"asked_at": said}).asked_at == "2013-07-01T12:00:00+00:00"


def test_envelope_is_read_and_is_no_feature() -> None:
    row = {**GOOD, "id": "q1", "entity": "N1", "asked_at": "2013-07-01T12:00:00Z"}
    envelope = read_envelope(row)
    assert (envelope.id, envelope.entity, envelope.asked_at) == ("q1", "N1", "2013-07-01T12:00:00+00:00")
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


def declared(**said: Any) -> NumericFeature | CategoricalFeature:
    """A feature called x, declared so; training saw the categories a, b and c."""
    column = Column(**said)
    if column.kind in ("int", "float"):
        return NumericFeature(name="x", declared=column)
    return CategoricalFeature(name="x", declared=column, categories=("False", "True", "a", "b", "c"))


def declared_refusal(feature: NumericFeature | CategoricalFeature, value: Any) -> str:
    encoder = RowEncoder(InputSchema(features=(feature,)))
    with pytest.raises(RequestError) as caught:
        encode({"x": value}, encoder)
    assert caught.value.status == 422
    return str(caught.value)


@pytest.mark.parametrize("severity", ["error", "quarantine"])
@pytest.mark.parametrize(
    ("said", "value", "answer"),
    [
        ({"kind": "float"}, None, "feature x may not be null"),
        ({"kind": "float"}, "1", "feature x must be a number, not a string"),
        ({"kind": "float", "min": -20, "max": 115}, 451.0, "feature x = 451 is not between -20 and 115"),
        ({"kind": "float", "min": 0}, -1, "feature x = -1 is below 0"),
        ({"kind": "float", "max": 0.1, "nullable": True}, 0.2, "feature x = 0.2 is above 0.1"),
        ({"kind": "int", "nullable": True}, 1.5, "feature x = 1.5 must be a whole number of 64 bits or null"),
        ({"kind": "int"}, 2**63, "feature x = 9.22337203685e+18 must be a whole number of 64 bits"),
        ({"kind": "int", "values": [1, 2]}, 3, "feature x = 3 is not one of 1, 2"),
        ({"kind": "str"}, None, "feature x may not be null"),
        ({"kind": "str", "values": ["a", "b"]}, "c", "feature x = 'c' is not one of 'a', 'b'"),
        ({"kind": "str", "values": [str(i) for i in range(99)]}, "c", "'11' … (99 values)"),
        ({"kind": "str", "pattern": "[0-9]{2}"}, "123", "feature x = '123' does not match [0-9]{2}"),
        ({"kind": "str", "min_length": 2}, "a", "feature x = 'a' has fewer than 2 characters"),
        ({"kind": "str", "max_length": 2}, "b" * 500, "feature x = 'bbbb"),
        ({"kind": "bool"}, 1, "feature x must be true or false, not a number"),
        ({"kind": "bool", "values": [True]}, False, "feature x = False is not one of True"),
    ],
)
def test_what_the_schema_refuses_is_answered_with_feature_value_and_what_is_allowed(
    severity: str, said: dict[str, Any], value: Any, answer: str
) -> None:
    refused = declared_refusal(declared(severity=severity, **said), value)
    assert answer in refused
    assert len(refused) < 200


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ({"kind": "float", "max": 1, "severity": "warn"}, 2.0),
        ({"kind": "int", "values": [1], "severity": "warn"}, 2),
        ({"kind": "int", "values": [1], "min_known": 0.9}, 2),
        ({"kind": "str", "values": ["a"], "severity": "warn"}, "b"),
        ({"kind": "str", "values": ["a"], "min_known": 0.9}, "b"),
        ({"kind": "str", "pattern": "a", "severity": "warn"}, "b"),
    ],
)
def test_what_the_schema_warns_of_is_encoded_and_counted(said: dict[str, Any], value: Any) -> None:
    schema = InputSchema(features=(declared(**said),))
    encoder = RowEncoder(schema)
    np.testing.assert_array_equal(encode({"x": value}, encoder), schema.encode(pd.DataFrame({"x": [value]}))[0])
    assert encoder.warned == {"x": 1}
    assert encoder.unseen == 0


def test_a_wrong_kind_is_refused_even_where_the_schema_only_warns() -> None:
    assert "may not be null" in declared_refusal(declared(kind="int", severity="warn"), None)
    assert "whole number" in declared_refusal(declared(kind="int", severity="warn"), 1.5)
    assert "must be a string" in declared_refusal(declared(kind="str", severity="warn"), 1)
    assert "float32" in declared_refusal(declared(kind="float", severity="warn"), math.inf)
    assert "must be true or false" in declared_refusal(declared(kind="bool", severity="warn"), "yes")


def test_a_declared_category_that_training_never_saw_is_unseen_and_no_warning() -> None:
    encoder = RowEncoder(InputSchema(features=(declared(kind="str", values=["a", "z"]),)))
    assert np.isnan(encode({"x": "z"}, encoder)[0])
    assert (encoder.unseen, encoder.warned) == (1, {})


def test_a_truth_value_may_be_sent_as_one_or_as_training_wrote_it() -> None:
    schema = InputSchema(features=(declared(kind="bool"),))
    for value in (True, "True"):
        assert encode({"x": value}, RowEncoder(schema))[0] == 1
        assert schema.encode(pd.DataFrame({"x": pd.Series([value], dtype="object")}))[0] == 1


def test_a_bound_that_float32_rounds_admits_the_number_that_training_saw() -> None:
    as_trained = float(np.float32(0.1))
    assert as_trained > 0.1
    for value in (0.1, as_trained):
        assert encode({"x": value}, RowEncoder(InputSchema(features=(declared(kind="float", max=0.1),)))) == as_trained


WORDS = st.sampled_from(["", "a", "b", "ab", "N12", "é", "a\n", "12"])
EDGES = st.sampled_from([0.0, 0.1, 1.0, 2.5, -3.0, 16777217.0, 1e18, 1e30])
BY_SEVERITY = {"severity": st.sampled_from(["error", "quarantine", "warn"]), "nullable": st.booleans()}


@st.composite
def columns(draw: st.DrawFn) -> Column:
    said: dict[str, Any] = {name: draw(values) for name, values in BY_SEVERITY.items()}
    said["kind"] = draw(st.sampled_from(["int", "float", "str", "bool"]))
    listed = {"int": EDGES, "float": EDGES, "str": WORDS, "bool": st.booleans()}[said["kind"]]
    if draw(st.booleans()):
        listed = listed.filter(lambda value: said["kind"] != "int" or value < 2**63)
        said["values"] = draw(st.lists(listed, min_size=1, max_size=3))
        said["min_known"] = draw(st.sampled_from([None, 0.0]))
    if said["kind"] in ("int", "float"):
        low, high = sorted([draw(EDGES), draw(EDGES)])
        said |= {"min": draw(st.sampled_from([None, low])), "max": draw(st.sampled_from([None, high]))}
    if said["kind"] == "str":
        said["pattern"] = draw(st.sampled_from([None, "[a-z]*", "N[0-9]+", "a|ab"]))
        shortest, longest = sorted([draw(st.integers(0, 2)), draw(st.integers(0, 3))])
        said |= {"min_length": shortest, "max_length": draw(st.sampled_from([None, longest]))}
    return Column(**said)


VALUES = st.lists(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-4, 4),
        EDGES,
        EDGES.map(lambda edge: float(np.nextafter(edge, 9))),
        EDGES.map(lambda edge: float(np.nextafter(np.float32(edge), np.float32(9)))),
        WORDS,
        st.text(max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def verdict(column: Column, value: Any) -> str:
    """good, warned or refused, as the compiled check says."""
    common = {"name": "x", "declared": column}
    feature = (
        NumericFeature(**common) if column.kind in ("int", "float") else CategoricalFeature(**common, categories=())
    )
    try:
        return "good" if compile_check(feature)(value) else "warned"
    except RequestError:
        return "refused"


def is_fraction_of_whole(column: Column, value: Any) -> bool:
    """Whether a fraction is sent where a whole number belongs: that is refused, though float32 may round it to one."""
    return column.kind == "int" and type(value) is float and not value.is_integer()


def oracle(column: Column, value: Any) -> str:
    """good, warned or refused, as pandera says of a table of that one value, in which numbers are float32."""
    numeric, lenient = column.kind in ("int", "float"), column.severity == "warn"
    single = np.float32 if numeric else lambda bound: bound
    strict: list[Any] = []
    tolerant: list[Any] = []
    if column.kind == "int":
        strict.append(pandera.Check(lambda numbers: (numbers % 1 == 0) & (numbers.abs() < 2.0**63)))
    by_severity = tolerant if lenient else strict
    if column.min is not None:
        by_severity.append(pandera.Check.ge(single(column.min)))
    if column.max is not None:
        by_severity.append(pandera.Check.le(single(column.max)))
    if column.values is not None:
        known = pandera.Check.isin([single(listed) for listed in column.values])
        (by_severity if column.min_known is None else tolerant).append(known)
    if column.pattern is not None:
        by_severity.append(pandera.Check.str_matches(rf"(?:{column.pattern})\Z"))
    if column.kind == "str":
        by_severity.append(pandera.Check.str_length(column.min_length, column.max_length))
    dtype = None if value is None else {"str": str, "bool": bool}.get(column.kind, "float32")
    series = pd.Series([value], dtype="object" if isinstance(value, str) or value is None else None)
    series = series.astype("float32") if series.dtype.kind in "iuf" else series

    def holds(checks: list[Any]) -> bool:
        try:
            pandera.SeriesSchema(dtype, checks, nullable=column.nullable).validate(series)
        except pandera.errors.SchemaError:
            return False
        return True

    if holds([*strict, *tolerant]):
        return "good"
    return "warned" if holds(strict) else "refused"


@given(column=columns(), values=VALUES)
@settings(max_examples=100, deadline=None)
def test_a_compiled_check_judges_as_pandera_does(column: Column, values: list[Any]) -> None:
    for value in values:
        if column.kind == "bool" and value in ("True", "False"):
            continue
        expected = "refused" if is_fraction_of_whole(column, value) else oracle(column, value)
        assert verdict(column, value) == expected, (column, value)


def judged_in_training(column: Column, value: Any) -> str:
    """good, warned or refused, as the feature table of one question is."""
    if column.kind in ("int", "float"):
        row = pd.Series([np.nan if value is None else float(np.float32(value))])
    else:
        row = pd.Series([None if value is None else str(value)], dtype="string")
    try:
        return "warned" if check_features(pd.DataFrame({"x": row}), {"x": column}) else "good"
    except ClearwayError:
        return "refused"


@given(column=columns(), values=VALUES)
@settings(max_examples=60, deadline=None)
def test_a_compiled_check_judges_as_training_does(column: Column, values: list[Any]) -> None:
    kinds = {"int": (int, float), "float": (int, float), "str": (str,), "bool": (bool,)}[column.kind]
    for value in values:
        if value is not None and type(value) not in kinds:
            continue  # the project's contract refuses it before
        if is_fraction_of_whole(column, value):
            assert verdict(column, value) == "refused", (column, value)
            continue
        asked, trained = verdict(column, value), judged_in_training(column, value)
        if column.min_known is not None:  # training tolerates a new value in silence, a server counts it
            asked, trained = ("accepted" if found != "refused" else found for found in (asked, trained))
        assert asked == trained, (column, value)


@given(column=columns(), values=VALUES)
@settings(max_examples=150, deadline=None)
def test_the_short_cut_of_the_encoder_never_differs_from_the_check(column: Column, values: list[Any]) -> None:
    feature = declared(**column.model_dump())
    check, encoder = compile_check(feature), RowEncoder(InputSchema(features=(feature,)))
    for value in values:
        encoder.warned.clear()
        if verdict(column, value) == "refused":
            declared_refusal(feature, value)
            continue
        encode({"x": value}, encoder)
        assert bool(encoder.warned) == (not check(value))
