"""The OpenAPI document says of a value what the server does with it."""

from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from clearway.encoding import CategoricalFeature, NumericFeature
from clearway.params import ServingParams
from clearway.schema import Column
from clearway.serving.docs_page import render_page
from clearway.serving.openapi import describe_api, feature_schema
from clearway.serving.requests import RequestError, compile_check

FEATURES = (
    NumericFeature(name="free", minimum=-1.0, maximum=2.5),
    NumericFeature(name="needed", nullable=False),
    NumericFeature(name="bounded", declared=Column(kind="float", min=0.1, max=0.7)),
    NumericFeature(name="whole", declared=Column(kind="int", min=-3, max=16_777_217, nullable=True)),
    NumericFeature(name="warned", declared=Column(kind="float", min=0, max=1, severity="warn")),
    NumericFeature(name="listed", declared=Column(kind="float", values=(1.0, 2.5))),
    CategoricalFeature(name="word", categories=("a", "b")),
    CategoricalFeature(name="code", declared=Column(kind="str", pattern="[A-Z]{2}|x"), categories=("AB",)),
    CategoricalFeature(name="long", declared=Column(kind="str", min_length=2, max_length=3), categories=("ab",)),
    CategoricalFeature(name="known", declared=Column(kind="str", values=("a", "b"), nullable=True), categories=("a",)),
    CategoricalFeature(name="newer", declared=Column(kind="str", values=("a",), min_known=0.5), categories=("a",)),
    CategoricalFeature(name="truth", declared=Column(kind="bool", nullable=True), categories=("True",)),
)
VALUES = (
    st.sampled_from([None, True, False, "a", "b", "AB", "ABC", "x", "", "ab", "abcd", [], {}, 0.1, 0.7, 1, 2.5, 1e39])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-10, 20)
    | st.text(max_size=4)
)


def admitted(feature: Any, value: Any) -> bool:
    try:
        compile_check(feature)(value)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
@given(value=VALUES)
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_what_the_document_allows_is_admitted(feature: Any, value: Any) -> None:
    if Draft202012Validator(feature_schema(feature)).is_valid(value):
        assert admitted(feature, value)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_what_the_document_forbids_is_refused(feature: Any) -> None:
    allowed = Draft202012Validator(feature_schema(feature)).is_valid
    for value in (None, True, "a", "ABC", "", [], {}, 5, -7, 0.5, 1e39, 3, "zz", "abcde", 1.5, 16_777_300):
        if not allowed(value):
            assert not admitted(feature, value), value


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_examples_are_admitted_where_training_saw_nothing_else(feature: Any) -> None:
    assert all(admitted(feature, value) for value in feature_schema(feature).get("examples", ()))


def test_a_server_without_a_deployment_describes_itself() -> None:
    document = describe_api(None, "trees", ServingParams())
    assert "Nothing is deployed yet" in document["info"]["description"]
    page = render_page(document, "http://127.0.0.1:1")
    assert "<h1>trees</h1>" in page
    assert "curl" not in page


def test_the_page_escapes_what_it_is_given_and_loads_nothing() -> None:
    page = render_page(describe_api(None, "<script>", ServingParams()), "http://127.0.0.1:1")
    assert "<script" not in page
    for loading in ("src=", "<link", "@import", "url("):
        assert loading not in page
