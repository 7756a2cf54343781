"""Routing: an even salted split, an entity that stays where it is, and tables that are whole or refused."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from clearway.errors import ClearwayError
from clearway.routing import BUCKETS, RoutingTable, bucket, read_routing, write_routing

KEYS = [f"N{number}" for number in range(200_000)]


def table(weight: int, salt: str = "pepper") -> RoutingTable:
    canary = "b" * 64 if weight else None
    return RoutingTable(
        environment="production",
        revision=3,
        ledger_hash="c" * 64,
        salt=salt,
        stable="a" * 64,
        canary=canary,
        canary_weight=weight,
    )


def test_buckets_are_even() -> None:
    counts = np.bincount([bucket(key, "pepper") for key in KEYS], minlength=BUCKETS)
    assert len(counts) == BUCKETS
    # Pearson's chi²: with a fixed salt this is one draw, so that the bounds only catch a hash that is not uniform
    assert 0.0001 < stats.chisquare(counts).pvalue < 0.9999


@pytest.mark.parametrize("weight", [1, 10, 25, 50, 99])
def test_share_of_the_canary_is_its_weight(weight: int) -> None:
    routes = table(weight)
    canaries = sum(routes.route(key) == "canary" for key in KEYS)
    expected = [len(KEYS) * weight / 100, len(KEYS) * (100 - weight) / 100]
    assert stats.chisquare([canaries, len(KEYS) - canaries], expected).pvalue > 0.0001


def test_entity_that_saw_the_canary_keeps_it_as_the_weight_grows() -> None:
    seen = [{key for key in KEYS[:20_000] if table(weight).route(key) == "canary"} for weight in (10, 25, 50)]
    assert seen[0] < seen[1] < seen[2]


def test_one_key_always_goes_the_same_way() -> None:
    assert {table(50).route("N14228") for _ in range(100)} in ({"canary"}, {"stable"})


def test_another_salt_is_another_split() -> None:
    first, second = (np.array([table(50, salt).route(key) == "canary" for key in KEYS[:20_000]]) for salt in "ab")
    # two independent halvings agree on half of the keys
    assert stats.binomtest(int((first == second).sum()), 20_000, 0.5).pvalue > 0.0001


def test_without_canary_everything_is_stable() -> None:
    assert {table(0).route(key) for key in KEYS[:2000]} == {"stable"}


@pytest.mark.parametrize("key", ["", "ключ", "🛫" * 500, "\x00"])
def test_any_text_is_a_key(key: str) -> None:
    assert table(50).route(key) in ("canary", "stable")


@pytest.mark.parametrize(
    "change", [{"canary": None}, {"canary_weight": 0}, {"canary_weight": 101}, {"revision": -1}, {"surprise": 1}]
)
def test_impossible_table_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RoutingTable.model_validate({**table(10).model_dump(), **change})


def test_a_table_is_read_as_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    with pytest.raises(ClearwayError, match="nothing was deployed"):
        read_routing(path)
    write_routing(path, table(10))
    assert read_routing(path) == table(10)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ClearwayError, match="damaged"):
        read_routing(path)
