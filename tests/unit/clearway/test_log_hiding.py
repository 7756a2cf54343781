"""What the prediction log does not say."""

from typing import Any

import pytest
from pydantic import ValidationError

from clearway.errors import ClearwayError, UsageError
from clearway.log_hiding import NOTHING_HIDDEN, Hiding, check_hiding, hidden_in, hiding_of
from clearway.params import LogParams

RECORD: dict[str, Any] = {
    "id": "1",
    "entity": "N123",
    "features": {"x": 1.0, "k": "a", "none": None},
    "inputs": {"aircraft": "N123", "n": 5},
}
KEY = {"CLEARWAY_LOG_KEY": "sixteen bytes at"}


def test_nothing_is_hidden_unless_asked_for() -> None:
    assert hiding_of(LogParams(), {}) == NOTHING_HIDDEN
    assert NOTHING_HIDDEN.apply(RECORD) is RECORD


def test_fields_and_single_values_are_left_out() -> None:
    found = Hiding(left_out=("inputs", "features.x", "features.missing")).apply(RECORD)
    assert found == {
        "id": "1",
        "entity": "N123",
        "features": {"k": "a", "none": None},
        "hidden": "features.missing,features.x,inputs",
    }


def test_a_value_has_one_hash_wherever_it_stands_and_null_stays_null() -> None:
    found = hiding_of(LogParams(hash=("entity", "inputs.aircraft", "features")), KEY).apply(RECORD)
    assert found["entity"] == found["inputs"]["aircraft"]
    assert found["entity"].startswith("hashed:")
    assert found["inputs"]["n"] == 5
    assert found["features"]["none"] is None
    assert len({found["features"]["x"], found["features"]["k"], found["entity"]}) == 3


def test_hashes_depend_on_the_key() -> None:
    one, same, other = (hiding_of(LogParams(hash=("entity",)), {"CLEARWAY_LOG_KEY": 4 * k}) for k in ("abcd", "abcd", "abce"))  # fmt: skip # noqa: E501
    assert one.entity("N123") == same.entity("N123") != other.entity("N123")
    assert "abcd" not in repr(one)


@pytest.mark.parametrize("environ", [{}, {"CLEARWAY_LOG_KEY": "short"}])
def test_without_a_good_key_nothing_is_hashed(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"serving\.log\.hash.*CLEARWAY_LOG_KEY has \d bytes"):
        hiding_of(LogParams(hash=("entity",)), environ)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"leave_out": ["entity"]}, "hash it instead"),
        ({"leave_out": ["score"]}, "leave_out cannot name 'score'"),
        ({"leave_out": ["probabilities"]}, "leave_out cannot name"),  # the canary is judged by them
        ({"hash": ["id"]}, "hash cannot name 'id'"),
        ({"hash": ["features."]}, "hash cannot name"),
        ({"hash": ["probabilities"]}, "hash cannot name"),
        ({"leave_out": ["features.a,b"]}, "leave_out cannot name"),
        ({"leave_out": ["features.x"], "hash": ["features.x"]}, "both in leave_out and in hash"),
    ],
)
def test_what_must_not_be_hidden_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LogParams.model_validate(settings)


def test_what_a_record_hides_is_read_from_it() -> None:
    assert hidden_in(None, "features") == frozenset()
    assert hidden_in("entity,features.x,features.y.z,inputs", "features") == {"x", "y.z"}
    assert hidden_in("entity,features.x,inputs", "inputs") is None


def check(settings: dict[str, Any], routing_key: str = "entity") -> None:
    """Of a model with the features x and both, asked by the keys both and k."""
    check_hiding(LogParams.model_validate(settings), routing_key, {"x", "both"}, {"both", "k"}, lambda: {"older"})


@pytest.mark.parametrize(
    ("settings", "routing_key"),
    [
        ({"leave_out": ["features.x"], "hash": ["entity"]}, "entity"),
        ({"hash": ["inputs.k", "entity"]}, "k"),
        ({"leave_out": ["features.both"], "hash": ["inputs.both"]}, "entity"),
        ({"leave_out": ["features"], "hash": ["inputs.both"]}, "entity"),
        ({"leave_out": ["inputs"], "hash": ["entity"]}, "k"),
        ({"hash": ["features.older"]}, "entity"),
        ({"leave_out": ["features"]}, "x"),
    ],
)
def test_what_hides_its_values_everywhere_is_accepted(settings: dict[str, Any], routing_key: str) -> None:
    check(settings, routing_key)


@pytest.mark.parametrize(
    ("settings", "routing_key", "said"),
    [
        ({"hash": ["features.X"]}, "entity", r"hash names features.X, which no version here has .*both, x"),
        ({"leave_out": ["inputs.kk"]}, "entity", r"leave_out names inputs.kk, which no version here has .*both, k"),
        ({"leave_out": ["features.k"]}, "entity", "hides features.k, but the log tells the same value as inputs.k"),
        ({"hash": ["features.both"]}, "entity", "hides features.both, but .* as inputs.both"),
        ({"hash": ["entity"]}, "k", "hides entity, but the log tells the same value as inputs.k"),
        ({"hash": ["entity", "inputs.both"]}, "both", "hides entity, but .* as features.both"),
        ({"leave_out": ["inputs.k"]}, "k", "hides inputs.k, but it is serving.routing_key"),
    ],
)
def test_what_would_hide_nothing_or_stands_elsewhere_is_refused(
    settings: dict[str, Any], routing_key: str, said: str
) -> None:
    with pytest.raises(ClearwayError, match=said):
        check(settings, routing_key)
