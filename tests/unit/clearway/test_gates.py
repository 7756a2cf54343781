"""The gates are pure: labels, scores and numbers in, a judgement out."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm
from scipy.stats import t as student

from clearway.errors import UsageError
from clearway.gates import (
    Gate,
    Holdout,
    Interval,
    baseline_gate,
    champion_gate,
    constant_gate,
    finite_gate,
    floor_gate,
    judge,
    latency_gate,
    no_onnx_gate,
    parity_gate,
    rows_gate,
    unchanged,
)
from clearway.metrics import METRICS
from clearway.params import GateParams
from clearway.target import Target

RANDOM = np.random.default_rng(5)
ROWS = 2000
LABELS = (RANDOM.random(ROWS) < 0.3).astype(float)
NOISE = RANDOM.normal(size=ROWS)
GOOD = np.clip(0.3 + 0.15 * LABELS + 0.15 * NOISE, 0, 1)
WORSE = np.clip(0.3 + 0.05 * LABELS + 0.15 * NOISE, 0, 1)


def holdout(rows: int = ROWS, seed: int = 1) -> Holdout:
    return Holdout(LABELS[:rows], threshold=0.4, confidence=0.95, resamples=200, seed=seed)


def test_the_same_seed_draws_the_same_interval() -> None:
    first, again, other = (holdout(seed=s).interval(METRICS["brier"], GOOD) for s in (1, 1, 2))
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


def test_a_bound_beyond_all_resamples_is_not_the_last_of_them() -> None:
    random, mcc = np.random.default_rng(5), METRICS["matthews_corrcoef"]
    labels = (random.random(2000) < 0.3).astype(np.float64)
    scores = np.clip(labels * 0.2 + random.random(2000) * 0.8, 0, 1)
    usual, strict = (Holdout(labels, 0.5, level, 400, 1).interval(mcc, scores) for level in (0.95, 0.9999))
    assert usual.lower is not None
    assert strict.lower is not None
    spread = (usual.estimate - usual.lower) / 1.645
    assert usual.estimate - strict.lower == pytest.approx(3.72 * spread, rel=0.15)


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


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1"])
@pytest.mark.parametrize(("rows", "floor"), [(20, 0.9), (60, 0.95), (200, 0.98)])
def test_a_model_just_at_a_floor_passes_no_more_often_than_promised(name: str, rows: int, floor: float) -> None:
    """Exactly: each number of right rows by its chance where the share, or what F1 makes of it, is the floor itself."""
    share = floor / (2 - floor) if name == "f1" else floor
    passes = 0.0
    for right in range(rows + 1):
        is_right = np.arange(rows) < right
        others = np.zeros(100)  # answered no, and rightly
        labels, scores = {
            "accuracy": (np.arange(rows) % 2.0, np.where(is_right, np.arange(rows) % 2, 1 - np.arange(rows) % 2)),
            "precision": (np.r_[1.0 * is_right, others], np.r_[np.ones(rows), others]),
            "recall": (np.r_[np.ones(rows), others], np.r_[1.0 * is_right, others]),
            "f1": (np.r_[np.ones(rows), others], np.r_[1.0 * is_right, others]),
        }[name]
        gate = floor_gate(Holdout(labels, 0.5, 0.95, 100, 1), name, floor, scores)
        passes += (gate.status == "pass") * binom.pmf(right, rows, share)
    assert passes <= 0.05


@pytest.mark.parametrize(("area", "positives"), [(0.75, 10), (0.9, 10), (0.9, 50)])
def test_a_model_just_at_a_floor_of_auc_passes_no_more_often_than_promised(area: float, positives: int) -> None:
    """The percentile bootstrap passes 7, 19 and 10%."""
    labels, apart, passes = (np.arange(positives + 200) < positives) * 1.0, norm.ppf(area) * np.sqrt(2), 0
    for sample in range(1000):
        scores = norm.cdf(np.random.default_rng(sample).normal(size=len(labels)) + apart * labels)
        passes += floor_gate(Holdout(labels, 0.5, 0.95, 100, 1), "roc_auc", area, scores).status == "pass"
    assert passes / 1000 <= 0.05


def test_a_floor_of_auc_on_fewer_than_ten_rows_of_an_answer_fails() -> None:
    labels = (np.arange(300) < 9) * 1.0
    gate = floor_gate(Holdout(labels, 0.5, 0.95, 100, 1), "roc_auc", 0.1, np.linspace(1, 0, 300))
    assert (gate.status, gate.lower) == ("fail", None)
    assert gate.detail == "roc_auc has no interval: too few rows of one answer, or entities"


def test_no_wrong_row_is_no_certainty_where_rows_share_entities_or_a_metric_is_no_share() -> None:
    labels = np.repeat(np.arange(40) % 2.0, 20)
    together = Holdout(labels, 0.5, 0.95, 200, 1, np.repeat(np.arange(40), 20))
    scarce = Holdout((np.arange(200) < 12) * 1.0, 0.5, 0.95, 200, 1)
    for name in ("accuracy", "f1", "roc_auc", "balanced_accuracy", "average_precision"):
        found = together.interval(METRICS[name], labels)
        assert (found.estimate, found.upper) == (1, 1)
        assert found.lower == pytest.approx(0.05 ** (1 / 20))  # 20 entities of either answer
    rare = scarce.interval(METRICS["roc_auc"], scarce.labels)
    assert rare.lower == pytest.approx(0.05 ** (1 / 12))
    assert scarce.interval(METRICS["brier"], scarce.labels).upper == pytest.approx(1 - 0.05 ** (1 / 12))


def test_a_perfect_model_gains_over_a_constant() -> None:
    perfect = holdout()
    for name in ("roc_auc", "balanced_accuracy", "average_precision", "f1"):
        gate = constant_gate(perfect, name, LABELS, 0.3)
        assert gate.status == "pass", gate.detail
    gain = perfect.gain(METRICS["roc_auc"], LABELS, np.full(ROWS, 0.3))
    reach = 1 - 0.05 ** (1 / ROWS)
    assert (gain.estimate, gain.lower, gain.upper) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach))


def test_a_metric_without_a_value_fails_and_can_be_written_down() -> None:
    labels = np.linspace(1, 9, 80)
    numbers = Holdout(labels, 0.5, 0.95, 100, 1, target=Target(kind="regression", centre=5.0, spread=2.0))
    gate = floor_gate(numbers, "neg_root_mean_squared_log_error", -0.5, labels - 5)
    assert (gate.status, gate.estimate, gate.lower) == ("fail", None, None)
    huge = floor_gate(numbers, "rmse", 1e9, labels * 1e200)
    assert (huge.status, huge.estimate) == ("fail", None)


def test_an_unknown_floor_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"gates\.floors\.gini: it is no scorer"):
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


SLIGHTLY = np.clip(GOOD + 0.01 * np.random.default_rng(8).normal(size=ROWS), 0, 1)
PAIRS = np.arange(ROWS) // 2


def grouped(groups: np.ndarray = PAIRS) -> Holdout:
    return replace(holdout(), groups=groups)


@pytest.mark.parametrize(
    ("name", "said", "said_of_entities"),
    [
        ("roc_auc", "(DeLong)", "(DeLong over 1,000 entities)"),
        ("accuracy", "exact McNemar p = ", "(paired bootstrap over 1,000 entities)"),
        ("brier", "(paired bootstrap)", "(paired bootstrap over 1,000 entities)"),
    ],
)
def test_the_champion_is_compared_by_the_method_for_the_metric_and_says_which(
    name: str, said: str, said_of_entities: str
) -> None:
    assert said in champion_gate(holdout(), name, SLIGHTLY, GOOD, 0.01).detail
    assert said_of_entities in champion_gate(grouped(), name, SLIGHTLY, GOOD, 0.01).detail


def test_the_formulas_agree_with_the_bootstrap() -> None:
    """The bounds of the same gain, within the bootstrap's own noise."""
    many = replace(holdout(), resamples=1000)
    for name in ("roc_auc", "accuracy"):
        formula = champion_gate(many, name, WORSE, GOOD, 0.01)
        resampled = many.gain(METRICS[name], WORSE, GOOD)
        assert formula.estimate == pytest.approx(resampled.estimate)
        assert formula.lower == pytest.approx(resampled.lower, abs=0.003)
        assert formula.upper == pytest.approx(resampled.upper, abs=0.003)


def test_accuracy_is_of_each_models_own_threshold() -> None:
    gate = champion_gate(holdout(), "accuracy", SLIGHTLY, GOOD, 0.01, threshold=0.35)
    ours, theirs = ((scores >= at) == (LABELS == 1) for scores, at in ((SLIGHTLY, 0.4), (GOOD, 0.35)))
    assert gate.estimate == pytest.approx(ours.mean() - theirs.mean())
    assert f"{(ours & ~theirs).sum():,} rows only it answers rightly" in gate.detail
    assert f"{(theirs & ~ours).sum():,} only the champion" in gate.detail


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_the_champions_own_scores_pass_by_every_metric(name: str, margin: float) -> None:
    gate = champion_gate(holdout(60), name, GOOD[:60], GOOD[:60], margin)
    assert (gate.status, gate.estimate, gate.lower, gate.upper) == ("pass", 0, 0, 0)


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_the_same_answers_from_other_scores_are_no_certainty_in_few_rows(name: str) -> None:
    other = np.where(GOOD >= 0.4, GOOD + 0.001, GOOD - 0.001)
    assert champion_gate(holdout(60), name, other[:60], GOOD[:60], 0.01).status == "unknown"
    assert champion_gate(holdout(), name, other, GOOD, 0.01).status == "pass"


def test_an_uncertain_comparison_says_which_margin_the_rows_resolve() -> None:
    few = champion_gate(holdout(200), "roc_auc", NOISE[:200], NOISE[::-1][:200], 0.01)
    assert (few.status, few.n) == ("unknown", 200)
    assert few.lower is not None
    assert few.upper is not None
    resolved = (few.upper - few.lower) / 2
    said = re.search(r"these rows resolve a margin of (\S+) at best, 0\.01 needs about (\S+) rows", few.detail)
    assert said is not None
    assert float(said[1]) == pytest.approx(resolved, rel=0.05)
    assert int(said[2].replace(",", "")) == pytest.approx(200 * (resolved / 0.01) ** 2, abs=1)
    none = champion_gate(holdout(200), "roc_auc", NOISE[:200], NOISE[::-1][:200], 0.0)
    assert none.detail.endswith(" at best")


def test_a_difference_near_the_margin_is_uncertain_whatever_the_rows() -> None:
    found = champion_gate(holdout(), "roc_auc", WORSE, GOOD, 0.01)
    assert found.estimate is not None
    near = champion_gate(holdout(), "roc_auc", WORSE, GOOD, -found.estimate)
    assert near.status == "unknown"
    assert "the difference itself is close to the margin" in near.detail


def test_a_single_entity_or_few_are_never_a_pass() -> None:
    for groups in (np.zeros(ROWS, int), np.arange(ROWS) % 9):
        for name in ("roc_auc", "accuracy", "brier"):
            gate = champion_gate(grouped(groups), name, GOOD, WORSE, 0.01)
            assert gate.status == "unknown"
            assert "entities where rows share them" in gate.detail
        assert floor_gate(grouped(groups), "roc_auc", 0.1, GOOD).status == "fail"
        assert baseline_gate(grouped(groups), "roc_auc", GOOD, WORSE, -1).status == "unknown"


@pytest.mark.parametrize("name", METRICS)
def test_saying_each_row_three_times_adds_no_evidence_once_it_is_known(name: str) -> None:
    once = Holdout(LABELS[:500], 0.4, 0.95, 200, 1)
    three = Holdout(np.repeat(LABELS[:500], 3), 0.4, 0.95, 200, 1, np.repeat(np.arange(500), 3))
    short = once.interval(METRICS[name], GOOD[:500])
    told = three.interval(METRICS[name], np.repeat(GOOD[:500], 3))
    untold = replace(three, groups=None).interval(METRICS[name], np.repeat(GOOD[:500], 3))
    exact = name == "roc_auc" or METRICS[name].counted is not None  # of independent rows; else both are the bootstrap's
    close = 0.02 if exact else 1e-9
    assert (told.lower, told.upper) == pytest.approx((short.lower, short.upper), abs=close)
    assert width(untold) < 0.75 * width(short)
    gains = [h.gain(METRICS[name], *(np.repeat(s[:500], k) for s in (GOOD, WORSE))) for h, k in ((once, 1), (three, 3))]
    assert (gains[0].lower, gains[0].upper) == pytest.approx((gains[1].lower, gains[1].upper))


def width(found: Interval) -> float:
    assert found.lower is not None
    assert found.upper is not None
    return found.upper - found.lower


def test_few_draws_reach_as_far_as_students_t() -> None:
    """Of 10 entities the plain 5% percentile would be missed by 7.7%: Hesterberg's is the one at 2.7%."""
    labels, scores = np.arange(10) % 2.0, np.linspace(0, 1, 10) ** 2
    found = Holdout(labels, 0.5, 0.95, 200, 7, np.arange(10)).interval(METRICS["brier"], scores)
    random, losses = np.random.default_rng(7), (scores - labels) ** 2
    means = [losses[random.integers(0, 10, 10)].mean() for _ in range(200)]
    tail = norm.cdf(-np.sqrt(10 / 9) * student.ppf(0.95, 9))
    assert 0.026 < tail < 0.027
    assert (found.lower, found.upper) == pytest.approx(np.quantile(means, [tail, 1 - tail]))


def test_a_lower_loss_counts_as_better_than_the_champion() -> None:
    assert champion_gate(holdout(), "brier", GOOD, WORSE, 0.0).status == "pass"
    assert champion_gate(holdout(), "brier", WORSE, GOOD, 0.0).status == "fail"


def test_a_champion_without_scores_is_unknown_never_a_pass() -> None:
    assert champion_gate(holdout(), "roc_auc", GOOD, np.full(ROWS, np.nan), 0.01).status == "fail"


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


def test_without_onnx_there_is_nothing_to_compare_and_params_say_whether_that_will_do() -> None:
    told = no_onnx_gate("no ONNX, so no fast path: it is a Thing", required=False, rows=90)
    assert (told.name, told.status, told.n) == ("onnx_parity", "pass", 90)
    assert told.detail.startswith("no ONNX, so no fast path: it is a Thing; scikit-learn itself answers, slower")
    strict = no_onnx_gate("", required=True, rows=90)
    assert (strict.status, strict.detail) == ("fail", "no ONNX, so no fast path; gates.require_onnx asks for it")
