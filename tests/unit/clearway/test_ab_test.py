"""The A/B judge on made-up traffic: a winner, a loser, too little to tell, and a winner that breaks something."""

import numpy as np
import pandas as pd
import pytest

from clearway.ab_test import judge_ab
from clearway.canary import CanaryVerdict, Extra
from clearway.params import ABParams, CanaryParams

RULES = ABParams(metric="sold")


def run(gain: float, n: int = 12_000, *, errors: float = 0.001, seed: int = 0, low: float = 0.0) -> CanaryVerdict:
    """Stable sells 20 on average, between ``low`` and ``low`` + 100; the new version ``gain`` of that more."""
    random = np.random.default_rng(seed)
    new = random.random(n) < 0.5
    mean = np.where(new, 20 * (1 + gain), 20.0)
    sold = np.clip(random.gamma(4, mean / 4) - low, 0, 100)
    failed = random.random(n) < np.where(new, errors, 0.001)
    frame = pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "version": np.where(new, "new", "old"),
            "role": np.where(new, "canary", "stable"),
            "entity": None,
            "served_at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), unit="s"),
            "status": np.where(failed, 500, 200),
            "latency_ms": 5.0,
            "score": np.where(failed, np.nan, random.beta(2, 5, n)),
        }
    )
    goal = Extra("sold", pd.Series(1 - sold / 100, index=frame["id"]), margin=1.0, scale=100.0)
    return judge_ab(frame, goal, RULES, CanaryParams(), low=low)


def test_a_lift_that_is_proven_is_promoted() -> None:
    verdict = run(0.10)
    assert verdict.verdict == "promote", verdict.sentence
    assert "a lift of at least 2.0% is proven" in verdict.sentence
    assert verdict.metrics[0].estimate == pytest.approx(2.0, abs=0.5)
    assert verdict.metrics[0].lower > 0


def test_a_lift_that_is_not_reached_sends_it_away_without_blame() -> None:
    verdict = run(-0.08)
    assert (verdict.verdict, verdict.metrics[0].status) == ("withdraw", "fail")
    assert verdict.metrics[0].upper < 0


def test_a_lift_of_just_what_is_required_is_not_decided() -> None:
    assert [run(0.02, seed=seed).verdict for seed in range(5)].count("hold") >= 4


def test_fewer_samples_than_required_are_hold_however_good_they_look() -> None:
    verdict = run(0.5, n=9_000)
    assert verdict.verdict == "hold"
    assert "fewer than the 10,000" in verdict.sentence


def test_a_winner_that_fails_requests_is_rolled_back() -> None:
    verdict = run(0.10, errors=0.02)
    assert verdict.verdict == "rollback"
    assert "errors: canary" in verdict.sentence


def test_the_lift_is_a_share_of_the_mean_and_not_of_what_lies_above_the_least() -> None:
    """Numbers between 10 and 110: 2% of 20, not of the 10 above the least."""
    verdict = run(0.10, low=10.0)
    assert verdict.verdict == "promote"
    assert run(0.0, n=200_000, low=10.0).verdict == "withdraw"
