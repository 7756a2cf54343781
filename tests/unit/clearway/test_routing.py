"""Routing: an even salted split, an entity that stays where it is, and tables that are whole or refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from clearway.errors import ClearwayError
from clearway.ledger import Change, Entry, append, head_hash, read_ledger
from clearway.routing import (
    BUCKETS,
    RoutingTable,
    Split,
    bucket,
    key_text,
    read_routing,
    salt_of,
    split_of,
    write_routing,
)

MILLION = 1_000_000
WEIGHTS = (1, 5, 10, 25, 50, 99)
DIGEST = "0123456789abcdef" * 4
KEYS = [f"N{number}" for number in range(20_000)]


@pytest.fixture(scope="module")
def buckets() -> np.ndarray:
    """Of a million different keys."""
    return np.array([bucket(f"N{number}", "pepper") for number in range(MILLION)])


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


# With a fixed salt each of these is one draw: the bounds only catch a hash that is not uniform, or a share that is not
# exact. A split that is off by 0.2% of itself at 50% would be found.


def test_a_million_keys_fill_all_buckets_evenly(buckets: np.ndarray) -> None:
    counts = np.bincount(buckets, minlength=BUCKETS)
    assert len(counts) == BUCKETS
    assert counts.min() > 0
    assert 0.0001 < stats.chisquare(counts).pvalue < 0.9999


@pytest.mark.parametrize("weight", WEIGHTS)
def test_share_of_the_canary_among_a_million_keys_is_its_weight(weight: int, buckets: np.ndarray) -> None:
    canaries = int((buckets < weight * BUCKETS // 100).sum())
    expected = [MILLION * weight / 100, MILLION * (100 - weight) / 100]
    assert stats.chisquare([canaries, MILLION - canaries], expected).pvalue > 0.0001


@pytest.mark.parametrize("weight", WEIGHTS)
def test_route_is_the_canary_below_the_weight_and_stable_above(weight: int, buckets: np.ndarray) -> None:
    routes = table(weight)
    assert [routes.route(key) == "canary" for key in KEYS] == (buckets[: len(KEYS)] < weight * BUCKETS // 100).tolist()


def test_every_whole_percent_is_a_whole_number_of_buckets_without_modulo_bias() -> None:
    assert all(weight * BUCKETS % 100 == 0 for weight in range(101))
    fullest = -(-(2**64) // BUCKETS)  # buckets at the start get one hash more than those at the end
    assert fullest / (2**64 / BUCKETS) - 1 < 1e-15


def test_entity_that_saw_the_canary_keeps_it_as_the_weight_grows() -> None:
    seen = [{key for key in KEYS if table(weight).route(key) == "canary"} for weight in WEIGHTS]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(seen))


def test_one_key_always_goes_the_same_way() -> None:
    assert {table(50).route("N14228") for _ in range(100)} in ({"canary"}, {"stable"})


def test_splits_of_other_salts_and_rollouts_are_independent() -> None:
    salts = [salt_of(canary, salt) for canary in (None, "a" * 64, DIGEST) for salt in ("clearway", "other")]
    filled = [np.array([bucket(key, salt) for key in KEYS]) for salt in salts]
    for first, second in itertools.combinations(filled, 2):
        for share in (0.1, 0.5):
            # a share of the share of the first is in the second, no more and no less
            both = (first < share * BUCKETS) & (second < share * BUCKETS)
            assert stats.binomtest(int(both.sum()), len(KEYS), share**2).pvalue > 0.00001


def test_salts_of_any_length_differ() -> None:
    long = "s" * 100
    assert [bucket(key, long + "1") for key in KEYS[:50]] != [bucket(key, long + "2") for key in KEYS[:50]]


def test_without_canary_everything_is_stable() -> None:
    assert {table(0).route(key) for key in KEYS} == {"stable"}


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


def test_a_table_of_before_routing_keys_and_shadows_is_read(tmp_path: Path) -> None:
    content = table(10).model_dump()
    del content["key"], content["shadow"]
    assert RoutingTable.model_validate(content) == table(10)


@pytest.mark.parametrize(
    ("value", "text"),
    [("N14228", "N14228"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "True"), (None, None), ("", None)],
)
def test_a_routing_key_is_one_text_whatever_its_type(value: object, text: str | None) -> None:
    assert key_text(value) == text


@pytest.mark.parametrize("value", [[], {}, ["N14228"], "x" * 257])
def test_what_names_nobody_is_no_routing_key(value: object) -> None:
    with pytest.raises(ValueError, match="must"):
        key_text(value)


def entries(folder: Path, *changes: dict[str, object]) -> list[Entry]:
    for content in changes:
        given = {"action": "canary", "stable": "a" * 64, "actor": "tester", "reason": "a test", **content}
        change = Change.model_validate(given)
        append(folder, "production", change, expected_head=head_hash(read_ledger(folder, "production")))
    return read_ledger(folder, "production")


def test_a_rollout_keeps_the_split_that_its_first_entry_records(tmp_path: Path) -> None:
    trial = {"canary": "b" * 64, "canary_weight": 10}
    began = Split("tailnum", "pepper")
    opened = entries(tmp_path, {}, {**trial, "evidence": began.as_evidence()}, {**trial, "canary_weight": 50})
    assert split_of(opened) == began
    other = Split("carrier", "salt")
    closed = entries(tmp_path, {})
    assert split_of(closed) is None
    assert split_of(entries(tmp_path, {**trial, "evidence": other.as_evidence()})) == other
    assert split_of(entries(tmp_path, {"canary": "c" * 64, "canary_weight": 10})) is None  # records none
