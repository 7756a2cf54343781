from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from clearway.compatibility import Interface, breaking, dropped_categories, narrower, schema_gate
from clearway.encoding import CategoricalFeature, Feature, InputSchema, NumericFeature
from clearway.schema import Column
from clearway.serving.requests import RequestError, RowEncoder, compile_check


def number(name: str = "size", *, nullable: bool = True, **declared: Any) -> NumericFeature:
    return NumericFeature(name=name, nullable=nullable, declared=Column(**declared) if declared else None)


def text(name: str = "size", categories: tuple[str, ...] = ("a", "b"), **declared: Any) -> CategoricalFeature:
    return CategoricalFeature(name=name, categories=categories, declared=Column(**declared) if declared else None)


def flat(*features: Feature) -> Interface:
    return Interface(InputSchema(features=features))


def stored(**definitions: Mapping[str, Any]) -> Interface:
    features = tuple(NumericFeature(name=name) for name in definitions)
    return Interface(InputSchema(features=features), definitions)


WEATHER = {"kind": "stored", "entity": ["port"], "sources": ["data/feature_tables/weather.parquet"]}
SCHEDULE = {"kind": "on_demand", "entity": [], "sources": ["request:leaves_at", "request:prediction_time"]}
BERTH = {"kind": "stored", "entity": ["ship"], "sources": ["data/feature_tables/berths.parquet"]}

FEATURES: list[Feature] = [
    number(),
    number(nullable=False),
    number(kind="float"),
    number(kind="float", nullable=True),
    number(kind="int", nullable=True),
    number(kind="float", min=0, max=10),
    number(kind="float", min=0, max=5),
    number(kind="int", min=0, max=5),
    number(kind="float", max=5),
    number(kind="float", min=0, max=5, severity="warn"),
    number(kind="float", min=0, max=5, severity="quarantine"),
    number(kind="float", values=(1, 2, 3)),
    number(kind="float", values=(1, 2)),
    number(kind="float", values=(1, 2), min_known=0.5),
    text(),
    text(kind="str", nullable=True),
    text(kind="str"),
    text(kind="str", values=("a", "b")),
    text(kind="str", values=("a", "True")),
    text(kind="str", values=("a", "b"), min_known=0.5),
    text(kind="str", values=("a", "b"), severity="warn"),
    text(kind="str", pattern="[a-z]"),
    text(kind="str", pattern="[a-z]+"),
    text(kind="str", max_length=1),
    text(kind="str", min_length=2),
    text(kind="bool"),
    text(kind="bool", nullable=True),
    text(kind="bool", values=(True,)),
    text(kind="bool", severity="warn"),
]
VALUES: list[Any] = [
    None, -1, 0, 0.5, 1, 1.0, 2, 3, 4.5, 5, 7, 10, 11, 1e30, "", "a", "b", "z", "zz", "A", "True", True, False, "1",
]  # fmt: skip


def takes(feature: Feature, value: Any) -> bool:
    try:
        compile_check(feature)(value)
    except RequestError:
        return False
    return True


def test_what_is_called_compatible_is_what_the_servers_own_check_accepts() -> None:
    """Each pair of declarations, against the check that requests go through; what a pattern allows nobody works out."""
    for before in FEATURES:
        for after in FEATURES:
            refused = [value for value in VALUES if takes(before, value) and not takes(after, value)]
            said = narrower(before, after)
            assert said or not refused, (before, after, refused)
            patterns = [each.declared is not None and each.declared.pattern is not None for each in (before, after)]
            assert refused or not said or any(patterns), (before, after, said)


def test_the_same_schema_is_compatible_and_its_order_does_not_matter() -> None:
    gate = schema_gate(flat(number("a"), text("b")), flat(text("b"), number("a")))
    assert (gate.name, gate.status, gate.estimate, gate.n) == ("schema_compatibility", "pass", 0, 2)
    assert gate.detail == "0 changes refuse requests that the champion answers"


def test_new_and_lost_features_of_a_flat_table_are_breaking_as_the_server_says() -> None:
    """Nullable or not: a server wants each feature sent, and no other."""
    old, new = flat(number("a"), number("b")), flat(number("a"), number("c"))
    with pytest.raises(RequestError, match="feature c is missing"):
        encode(new, {"a": 1.0, "b": 1.0})
    with pytest.raises(RequestError, match="unknown field 'b'"):
        encode(new, {"a": 1.0, "b": 1.0, "c": None})
    gate = schema_gate(old, new)
    assert (gate.status, gate.estimate) == ("fail", 2)
    assert "b is no feature any more: a row that has it is refused" in gate.detail
    assert "c is a new feature: callers do not send it" in gate.detail


def encode(interface: Interface, row: dict[str, Any]) -> None:
    RowEncoder(interface.schema).encode_into(row, np.empty(len(interface.schema.features), dtype=np.float32))


def test_a_change_that_callers_are_ready_for_is_accepted_by_name() -> None:
    old, new = flat(number("a"), number("b")), flat(number("a"), number("c"))
    assert schema_gate(old, new, accepted=("b",)).estimate == 1
    gate = schema_gate(old, new, accepted=("b", "c", "unrelated"))
    assert gate.status == "pass"
    assert gate.detail.endswith("accepted by params.yaml: b, c")


def test_a_number_that_became_a_category_is_breaking() -> None:
    gate = schema_gate(flat(number("a")), flat(text("a")))
    assert gate.status == "fail"
    assert "a was a number and is a text" in gate.detail


def test_categories_that_are_gone_are_told_and_refused_to_nobody() -> None:
    old, new = text("colour", ("blue", "red")), text("colour", ("green", "red"))
    assert dropped_categories(flat(old).schema, flat(new).schema) == {"colour": ("blue",)}
    gate = schema_gate(flat(old), flat(new))
    assert gate.status == "pass"
    assert gate.detail.endswith("categories that are now taken as missing: colour (blue)")


def test_by_key_a_feature_comes_and_goes_as_long_as_the_request_stays() -> None:
    old, new = stored(wind=WEATHER, leaves=SCHEDULE), stored(rain=WEATHER, leaves=SCHEDULE)
    assert breaking(old, new) == {}


def test_by_key_a_new_key_or_field_is_breaking() -> None:
    old, new = stored(wind=WEATHER), stored(wind=WEATHER, berth=BERTH, leaves=SCHEDULE)
    assert breaking(old, new) == {
        "leaves_at": "is a new field of the request: callers do not send it",
        "ship": "is a new entity to be found by: callers do not send it",
    }
    assert breaking(new, old).keys() == {"leaves_at", "ship"}


def test_what_the_line_itself_gives_is_no_field() -> None:
    assert (
        breaking(stored(wind=WEATHER), stored(wind=WEATHER, age={**WEATHER, "sources": ["request:prediction_time"]}))
        == {}
    )


def test_by_key_a_feature_that_takes_less_is_breaking_still() -> None:
    narrow = NumericFeature(name="wind", declared=Column(kind="float", nullable=True, max=5))
    challenger = Interface(InputSchema(features=(narrow,)), {"wind": WEATHER})
    assert breaking(stored(wind=WEATHER), challenger).keys() == {"wind"}


def test_a_challenger_that_reads_no_features_cannot_follow_one_that_does() -> None:
    gate = schema_gate(stored(wind=WEATHER), flat(number("wind")))
    assert (gate.status, gate.estimate) == ("fail", 1)
    assert "the challenger reads no features by key" in gate.detail
    assert schema_gate(flat(number("wind")), stored(wind=WEATHER)).status == "pass"
