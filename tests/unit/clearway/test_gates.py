"""The gates are pure: labels, scores and numbers in, a judgement out."""

import time

import numpy as np
import pytest

from clearway.errors import UsageError
from clearway.gates import (
    Gate,
    Holdout,
    baseline_gate,
    champion_gate,
    constant_gate,
    finite_gate,
    floor_gate,
    judge,
    latency_gate,
    parity_gate,
    rows_gate,
    unchanged,
)
from clearway.metrics import METRICS
from clearway.params import GateParams

RANDOM = np.random.default_rng(5)
ROWS = 2000
LABELS = (RANDOM.random(ROWS) < 0.3).astype(float)
NOISE = RANDOM.normal(size=ROWS)
GOOD = np.clip(0.3 + 0.15 * LABELS + 0.15 * NOISE, 0, 1)
WORSE = np.clip(0.3 + 0.05 * LABELS + 0.15 * NOISE, 0, 1)


def holdout(rows: int = ROWS, seed: int = 1) -> Holdout:
    return Holdout(LABELS[:rows], threshold=0.4, confidence=0.95, resamples=200, seed=seed)


def test_the_same_seed_draws_the_same_interval() -> None:
    first, again, other = (holdout(seed=s).interval(METRICS["roc_auc"], GOOD) for s in (1, 1, 2))
    assert first == again != other


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """100 samples of a known AUC (Φ(1/√2) for normal scores one deviation apart), 90% intervals of 100 resamples."""
    truth, covered = 0.7602499389065233, 0
    for sample in range(100):
        random = np.random.default_rng(sample)
        labels = (np.arange(200) < 80).astype(float)
        scores = random.normal(size=200) + labels
        found = Holdout(labels, 0.5, 0.95, 100, sample).interval(METRICS["roc_auc"], scores)
        assert found.lower is not None
        assert found.upper is not None
        covered += found.lower <= truth <= found.upper
    assert 80 <= covered <= 98


def test_a_paired_comparison_is_sharper_than_two_intervals() -> None:
    jitter = GOOD + 0.001 * np.random.default_rng(8).normal(size=ROWS)
    gain = holdout().gain(METRICS["roc_auc"], GOOD, jitter)
    alone = holdout().interval(METRICS["roc_auc"], GOOD)
    assert gain.lower is not None
    assert gain.upper is not None
    assert alone.lower is not None
    assert alone.upper is not None
    assert gain.upper - gain.lower < (alone.upper - alone.lower) / 5
    assert holdout().gain(METRICS["roc_auc"], GOOD, GOOD).upper == 0


def test_a_floor_binds_on_the_lower_bound_not_the_estimate() -> None:
    found = holdout().interval(METRICS["roc_auc"], GOOD)
    assert found.lower is not None
    between = (found.lower + found.estimate) / 2
    assert floor_gate(holdout(), "roc_auc", found.lower - 1e-9, GOOD).status == "pass"
    gate = floor_gate(holdout(), "roc_auc", between, GOOD)
    assert (gate.name, gate.status, gate.threshold, gate.n) == ("floor_roc_auc", "fail", between, ROWS)
    assert gate.estimate == pytest.approx(found.estimate)


def test_a_floor_of_a_loss_is_a_ceiling_on_its_upper_bound() -> None:
    found = holdout().interval(METRICS["brier"], GOOD)
    assert found.upper is not None
    assert floor_gate(holdout(), "brier", found.upper + 1e-9, GOOD).status == "pass"
    assert floor_gate(holdout(), "brier", found.upper - 1e-9, GOOD).status == "fail"


def test_few_rows_make_a_floor_harder() -> None:
    assert floor_gate(holdout(), "roc_auc", 0.7, GOOD).status == "pass"
    assert floor_gate(holdout(40), "roc_auc", 0.7, GOOD[:40]).status == "fail"


def test_an_unknown_floor_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"gates\.floors: unknown metric 'gini'"):
        floor_gate(holdout(), "gini", 0.5, GOOD)


@pytest.mark.parametrize("scores", [np.full(ROWS, np.nan), np.where(np.arange(ROWS) == 3, np.inf, GOOD), GOOD[:-1]])
def test_scores_that_cannot_be_measured_fail_every_gate(scores: np.ndarray) -> None:
    assert floor_gate(holdout(), "roc_auc", 0.0, scores).status == "fail"
    assert constant_gate(holdout(), "roc_auc", scores, 0.3).status == "fail"
    assert baseline_gate(holdout(), "roc_auc", scores, WORSE, -1).status == "fail"
    assert champion_gate(holdout(), "roc_auc", scores, WORSE, 1).status == "fail"


def test_labels_all_the_same_fail() -> None:
    same = Holdout(np.ones(100), 0.4, 0.95, 200, 1)
    assert rows_gate(same, 50).status == "fail"
    assert floor_gate(same, "roc_auc", 0.0, GOOD[:100]).status == "fail"


def test_rows() -> None:
    assert rows_gate(holdout(60), 50).status == "pass"
    assert rows_gate(holdout(60), 61).status == "fail"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_finite_scores(bad: float) -> None:
    assert finite_gate(GOOD).status == "pass"
    gate = finite_gate(np.append(GOOD, bad))
    assert (gate.status, gate.estimate) == ("fail", 1)


def test_parity() -> None:
    assert parity_gate(GOOD, GOOD + 1e-7, 1e-5).status == "pass"
    assert parity_gate(GOOD, GOOD + 1e-4 * (np.arange(ROWS) == 7), 1e-5).status == "fail"
    assert parity_gate(np.full(ROWS, np.nan), GOOD, 1e-5).status == "fail"


def test_latency_is_judged_at_the_95th_percentile() -> None:
    assert latency_gate([1.0] * 96 + [500.0] * 4, 100).status == "pass"
    assert latency_gate([1.0] * 94 + [500.0] * 6, 100).status == "fail"
    assert latency_gate([], 100).status == "fail"


def test_a_constant_gains_nothing_over_a_constant() -> None:
    assert constant_gate(holdout(), "roc_auc", GOOD, 0.3).status == "pass"
    assert constant_gate(holdout(), "roc_auc", np.full(ROWS, 0.9), 0.3).status == "fail"
    assert constant_gate(holdout(), "log_loss", np.full(ROWS, 0.9), 0.3).status == "fail"


def test_the_baseline_must_be_beaten_surely() -> None:
    assert baseline_gate(holdout(), "roc_auc", GOOD, WORSE, 0.0).status == "pass"
    assert baseline_gate(holdout(), "roc_auc", WORSE, GOOD, 0.0).status == "fail"
    jitter = np.clip(GOOD + 0.01 * np.random.default_rng(8).normal(size=ROWS), 0, 1)
    assert baseline_gate(holdout(), "roc_auc", GOOD, jitter, 0.0).status == "unknown"
    assert baseline_gate(holdout(), "roc_auc", GOOD, None, -1.0).status == "fail"


def test_no_worse_than_the_champion_by_the_margin() -> None:
    slightly = np.clip(GOOD + 0.01 * np.random.default_rng(8).normal(size=ROWS), 0, 1)
    assert champion_gate(holdout(), "roc_auc", slightly, GOOD, 0.01).status == "pass"
    assert champion_gate(holdout(), "roc_auc", WORSE, GOOD, 0.01).status == "fail"
    assert (
        champion_gate(holdout(60), "roc_auc", WORSE[:60] * 0 + NOISE[:60], NOISE[::-1][:60], 0.01).status == "unknown"
    )


def test_the_champion_answers_from_its_own_threshold() -> None:
    """A challenger with the champion's scores and a worse threshold is a worse model, by a metric of answers."""
    careless = Holdout(LABELS, threshold=0.9, confidence=0.95, resamples=200, seed=1)
    assert champion_gate(careless, "f1", GOOD, GOOD, 0.01, threshold=0.4).status == "fail"
    assert champion_gate(holdout(), "f1", GOOD, GOOD, 0.01, threshold=0.9).status == "pass"
    assert champion_gate(careless, "roc_auc", GOOD, GOOD, 0.01, threshold=0.4).status == "pass"


def test_a_lower_loss_counts_as_better_than_the_champion() -> None:
    assert champion_gate(holdout(), "brier", GOOD, WORSE, 0.0).status == "pass"
    assert champion_gate(holdout(), "brier", WORSE, GOOD, 0.0).status == "fail"


def test_a_champion_without_scores_is_unknown_never_a_pass() -> None:
    assert champion_gate(holdout(), "roc_auc", GOOD, np.full(ROWS, np.nan), 0.01).status == "unknown"


PASS, FAIL, UNKNOWN = (Gate(name, name, f"detail of {name}") for name in ("pass", "fail", "unknown"))


@pytest.mark.parametrize(
    ("gates", "blocks", "verdict"),
    [
        ((PASS,), True, "passed"),
        ((PASS, FAIL), True, "rejected"),
        ((PASS, FAIL), False, "rejected"),
        ((PASS, UNKNOWN), True, "rejected"),
        ((PASS, UNKNOWN), False, "passed"),
    ],
)
def test_the_verdict_follows_from_the_gates(gates: tuple[Gate, ...], blocks: bool, verdict: str) -> None:
    judged = judge(gates, GateParams(unknown_blocks=blocks), champion="c" * 64)
    assert judged.verdict == verdict
    assert judged.gates == gates


def test_nothing_judged_is_never_a_pass() -> None:
    assert judge((), GateParams(), champion=None).verdict == "rejected"


def test_the_reason_names_every_gate_that_stopped_it() -> None:
    reason = judge((FAIL, PASS, UNKNOWN), GateParams(), champion=None, bootstrap="nothing was deployed").reason
    assert "fail failed: detail of fail; unknown is too uncertain to call: detail of unknown" in reason
    assert "bootstrap: nothing was deployed" in reason
    assert "detail of pass" not in reason


def test_unchanged_names_the_digest() -> None:
    assert unchanged("a" * 64).verdict == "unchanged"
    assert "aaaaaaaaaaaa" in unchanged("a" * 64).reason


def test_the_bootstrap_is_fast_enough_for_a_month_of_rows() -> None:
    random = np.random.default_rng(1)
    labels = (random.random(26_000) < 0.3).astype(float)
    started = time.process_time()
    Holdout(labels, 0.4, 0.95, 400, 1).interval(METRICS["roc_auc"], random.random(26_000))
    assert time.process_time() - started < 3  # of this process: the machine may be busy
