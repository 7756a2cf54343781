"""Comparing a shadow with the version beside it: what is a pair, what is proven, and what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clearway.errors import ClearwayError
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.params import ShadowRules
from clearway.shadow import (
    READ,
    ShadowReport,
    Versions,
    _difference,
    compare,
    interval,
    latest_trial,
    pair,
    summary_text,
)
from clearway.target import Target

A, B, C = "a" * 64, "b" * 64, "c" * 64
BEGAN = pd.Timestamp("2026-01-01", tz="UTC")
BINARY = Versions(A, B)
RULES = ShadowRules(min_pairs=100, max_flip_rate=0.1, max_error_rate=0.1, max_difference=0.05)


def logged(stable: list[float], shadow: list[float | None], **more: list[Any]) -> pd.DataFrame:
    """The log of so many answers of A and their copies; without a score an answer failed."""
    rows = []
    for number, scores in enumerate(zip(stable, shadow, strict=True)):
        for role, version, score in zip(("stable", "shadow"), (A, B), scores, strict=True):
            row = {
                "id": f"q{number}",
                "revision": 2,
                "version": version,
                "role": role,
                "entity": f"e{number}",
                "served_at": BEGAN + pd.Timedelta(seconds=number),
                "status": 500 if score is None else 200,
                "latency_ms": 2.0 if role == "stable" else 1.0,
                "score": np.nan if score is None else score,
                "probabilities": None,
            }
            rows.append(row | {name: values[number] for name, values in more.items()})
    return pd.DataFrame(rows, columns=list(READ))


def report(log: pd.DataFrame, versions: Versions = BINARY) -> ShadowReport:
    return compare(log, versions, RULES, environment="production", since_revision=2)


def test_the_same_answers_pass_and_every_figure_is_that_of_the_pairs() -> None:
    scores = np.linspace(0, 1, 400).tolist()
    found = report(logged(scores, [score + 0.01 for score in scores]))
    assert (found.verdict, found.copies, found.pairs, found.units, found.uncopied) == ("pass", 400, 400, 400, 0)
    assert found.flips is not None
    assert found.flips.count == 4  # between 0.49 and 0.5
    exact = stats.binomtest(4, 400).proportion_ci(0.95, method="exact")
    assert found.flips.lower is not None
    assert found.flips.upper is not None
    assert 0 < found.flips.lower < exact.low < 0.01 < exact.high < found.flips.upper < 2 * exact.high
    assert found.difference.mean == pytest.approx(0.01)
    assert found.difference.quantiles == pytest.approx((0.01, 0.01, 0.01))
    assert (found.latency.p50, found.stable_latency.p95) == (1.0, 2.0)
    assert "4 of 400" in summary_text(found)


def test_each_version_answers_by_its_own_threshold() -> None:
    log = logged([0.4] * 200, [0.4] * 200)
    assert report(log, Versions(A, B, thresholds=(0.5, 0.3))).verdict == "fail"
    assert report(log, Versions(A, B, thresholds=(0.3, 0.3))).verdict == "pass"


def test_no_copy_and_too_few_pairs_prove_nothing() -> None:
    empty = report(logged([], []))
    assert (empty.verdict, empty.copies, empty.difference.mean) == ("hold", 0, None)
    assert "none" in summary_text(empty)
    assert report(logged([0.2] * 99, [0.2] * 99)).verdict == "hold"
    assert report(logged([0.2] * 100, [0.2] * 100)).verdict == "pass"


def test_what_is_proven_worse_fails_before_the_quota_is_filled() -> None:
    found = report(logged([0.2] * 20, [0.9] * 20))
    assert (found.verdict, found.units) == ("fail", 20)
    assert "flips" in found.sentence


def test_errors_of_the_shadow_count_against_it_and_those_of_stable_do_not() -> None:
    found = report(logged([0.2] * 200, [None] * 100 + [0.2] * 100))
    assert (found.verdict, found.errors.count, found.pairs) == ("fail", 100, 100)
    found = report(logged([None] * 100 + [0.2] * 100, [0.2] * 200))  # type: ignore[list-item]
    assert (found.verdict, found.stable_errors.count, found.errors.count) == ("pass", 100, 0)


def test_rules_between_the_bounds_are_not_decided() -> None:
    found = report(logged([0.2] * 100, [0.9] * 8 + [0.2] * 92))
    assert found.verdict == "hold"
    assert "not decided yet: flips" in found.sentence


def test_a_shift_of_all_scores_fails_either_way_without_a_flip() -> None:
    for shift in (-0.1, 0.1):
        found = report(logged([0.3] * 200, [0.3 + shift] * 200))
        assert (found.verdict, found.flips is not None and found.flips.count) == ("fail", 0)
        assert "mean difference" in found.sentence


def test_an_entity_that_asks_often_is_one_unit() -> None:
    found = report(logged([0.2] * 300, [0.2] * 300, entity=["busy"] * 300))
    assert (found.verdict, found.pairs, found.units) == ("hold", 300, 1)
    found = report(logged([0.2] * 300, [0.2] * 300, entity=[f"e{number % 60}" for number in range(300)]))
    assert (found.verdict, found.units) == ("hold", 60)
    assert "fewer pairs than the 100" in found.sentence
    found = report(logged([0.2] * 300, [0.2] * 300, entity=[None] * 300))  # else each row is
    assert (found.verdict, found.units) == ("pass", 300)


def test_pairs_are_of_one_answer_each_and_of_these_two_versions() -> None:
    log = logged([0.2] * 4, [0.3] * 4)
    twice = log[log["id"] == "q0"]  # the same id twice in one request: nobody can say which is whose
    stranger = log[log["id"] == "q1"].assign(version=C, id="q9")
    tester = log[(log["id"] == "q2") & (log["role"] == "stable")].assign(role="tester")
    canary = log[log["role"] == "stable"].assign(role="canary", version=B, id="q8")
    mixed = pd.concat([log, twice, stranger, tester, canary])
    assert sorted(pair(mixed, Versions(A, B))["id"]) == ["q1", "q2", "q3"]
    lost = log[(log["role"] == "stable") | (log["id"] == "q1")]
    assert report(lost).uncopied == 3


def test_classes_flip_when_another_is_likeliest_and_differ_by_half_of_all_differences() -> None:
    target = Target(kind="multiclass", classes=("ash", "elm", "oak"))
    log = logged([0.6] * 100, [0.5] * 100)
    said = [{"ash": 0.6, "elm": 0.3, "oak": 0.1}, {"ash": 0.4, "elm": 0.5, "oak": 0.1}]
    log["probabilities"] = [said[0] if role == "stable" else said[1] for role in log["role"]]
    found = report(log, Versions(A, B, target))
    assert found.flips is not None
    assert (found.verdict, found.flips.count) == ("fail", 100)
    assert found.difference.mean == pytest.approx(0.2)


def test_numbers_have_no_flips_and_differ_in_spreads() -> None:
    target = Target(kind="regression", centre=100.0, spread=50.0)
    found = report(logged([100.0] * 200, [101.0] * 200), Versions(A, B, target))
    assert (found.verdict, found.flips, found.difference.mean) == ("pass", None, pytest.approx(0.02))
    assert report(logged([100.0] * 200, [105.0] * 200), Versions(A, B, target)).verdict == "fail"


def test_a_trial_is_the_last_one_of_its_digest_also_when_it_has_ended(tmp_path: Path) -> None:
    for shadow in (None, B, B, None, B, C, None):
        change = Change(action="shadow", stable=A, shadow=shadow, actor="tester", reason="a test")
        append(tmp_path, "production", change, expected_head=head_hash(read_ledger(tmp_path, "production")))
    entries = read_ledger(tmp_path, "production")
    assert [entry.sequence for entry in latest_trial(entries, "production", B)] == [5]
    assert [entry.sequence for entry in latest_trial(entries[:3], "production")] == [2, 3]
    with pytest.raises(ClearwayError, match="has no shadow"):
        latest_trial(entries, "production")
    with pytest.raises(ClearwayError, match="was never a shadow"):
        latest_trial(entries, "production", "d" * 64)


@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 1000), (1000, 1000), (3, 10), (500, 100_000)])
def test_an_interval_holds_what_was_seen_and_ends_where_the_evidence_does(count: int, of: int) -> None:
    lower, upper = interval(count, of, 0.95)
    assert 0 <= lower <= count / of <= upper <= 1
    assert (lower == 0) == (count == 0) or of == 1
    assert (upper == 1) == (count == of) or of == 1
    wider = interval(count, of, 0.99)
    assert wider[0] <= lower
    assert wider[1] >= upper


def test_a_share_is_seldom_outside_its_interval_at_any_of_a_thousand_looks() -> None:
    looks = 1000
    table = [[interval(count, of, 0.9) for count in range(of + 1)] for of in range(1, 81)]
    random = np.random.default_rng(3)
    for share in (0.05, 0.5):
        missed = 0
        for seen in (random.random((looks, 80)) < share).cumsum(axis=1):
            bounds = [table[at][count] for at, count in enumerate(seen)]
            missed += any(not lower <= share <= upper for lower, upper in bounds)
        assert missed / looks < 0.1


def test_a_mean_is_seldom_outside_its_interval_at_any_look() -> None:
    random, rollouts = np.random.default_rng(4), 200
    rules = ShadowRules(min_pairs=100, max_difference=0.0, confidence=0.9)
    missed = 0
    for values in random.normal(0.0, 0.1, (rollouts, 400)):
        found = [_difference(values[:looked], rules) for looked in range(20, 400, 40)]
        missed += any(not (one.lower or 0) <= 0 <= (one.upper or 0) for one in found)
    assert missed / rollouts < 0.1
