"""What the prediction log does not say."""

from typing import Any

import pytest
from pydantic import ValidationError

from clearway.errors import UsageError
from clearway.log_hiding import NOTHING_HIDDEN, Hiding, hidden_in, hiding_of
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
