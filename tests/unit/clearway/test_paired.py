"""Paired gains: against the definitions by brute force, published numbers, and the truth of simulations."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtri, stdtrit, xlogy
from scipy.stats import binom

from clearway.paired import (
    Discordant,
    Interval,
    accuracy_gain,
    delong_gain,
    discordant,
    groups_of,
    placements,
    resolution,
    widened,
)

RANDOM = np.random.default_rng(11)
LABELS = (RANDOM.random(300) < 0.3).astype(float)
SHARED = RANDOM.normal(size=300)
OURS = np.round(LABELS + SHARED + 0.4 * RANDOM.normal(size=300), 1)  # rounded, so that some tie
THEIRS = np.round(0.8 * LABELS + SHARED + 0.4 * RANDOM.normal(size=300), 1)
Z = float(ndtri(0.95))


def bounds(found: Interval) -> tuple[float, float]:
    assert found.lower is not None
    assert found.upper is not None
    return found.lower, found.upper


def kernel(scores: np.ndarray) -> np.ndarray:
    """Of each positive with each negative: 1 where it is above, a half where they tie, by the definition."""
    up, down = scores[LABELS == 1][:, None], scores[LABELS == 0][None, :]
    return (up > down) + 0.5 * (up == down)


def test_placements_are_the_means_of_all_pairs() -> None:
    above, below = placements(LABELS, OURS)
    np.testing.assert_allclose(above, kernel(OURS).mean(axis=1))
    np.testing.assert_allclose(below, kernel(OURS).mean(axis=0))


def test_delong_is_the_published_variance_of_all_pairs() -> None:
    """Formula (4) and onwards of DeLong et al.: sample covariances of the two models' placement values."""
    by_positive = np.cov([kernel(s).mean(axis=1) for s in (OURS, THEIRS)])
    by_negative = np.cov([kernel(s).mean(axis=0) for s in (OURS, THEIRS)])
    positives, negatives = kernel(OURS).shape
    covariance = by_positive / positives + by_negative / negatives
    contrast = np.array([1, -1])
    deviation = math.sqrt(contrast @ covariance @ contrast)
    estimate = kernel(OURS).mean() - kernel(THEIRS).mean()
    reach = stdtrit(positives - 1, 0.95) * deviation
    found = delong_gain(LABELS, OURS, THEIRS, 0.95)
    assert (found.estimate, *bounds(found)) == pytest.approx((estimate, estimate - reach, estimate + reach))


def test_a_gain_is_the_others_loss() -> None:
    found, other = delong_gain(LABELS, OURS, THEIRS, 0.95), delong_gain(LABELS, THEIRS, OURS, 0.95)
    lower, upper = bounds(other)
    assert (found.estimate, *bounds(found)) == pytest.approx((-other.estimate, -upper, -lower))


def test_groups_of_one_row_change_nothing() -> None:
    alone = np.random.default_rng(1).permutation(300) * 7
    ungrouped = delong_gain(LABELS, OURS, THEIRS, 0.95)
    grouped = delong_gain(LABELS, OURS, THEIRS, 0.95, alone)
    assert (grouped.estimate, *bounds(grouped)) == pytest.approx((ungrouped.estimate, *bounds(ungrouped)))


def test_saying_each_row_three_times_adds_no_evidence_once_it_is_known() -> None:
    three = [np.repeat(values, 3) for values in (LABELS, OURS, THEIRS)]
    once = bounds(delong_gain(LABELS, OURS, THEIRS, 0.95))
    told = bounds(delong_gain(*three, 0.95, np.repeat(np.arange(300), 3)))
    untold = bounds(delong_gain(*three, 0.95))
    assert told == pytest.approx(once)
    assert untold[1] - untold[0] < 0.6 * (once[1] - once[0])


def test_the_clustered_variance_is_obuchowskis() -> None:
    """Her three sums, spelled out."""
    groups = np.arange(300) % 40
    changes = [kernel(OURS).mean(axis=axis) - kernel(THEIRS).mean(axis=axis) for axis in (1, 0)]
    gain = changes[0].mean()
    sides = groups[LABELS == 1], groups[LABELS == 0]
    sums = [[(c[side == g] - gain).sum() for g in range(40)] for c, side in zip(changes, sides, strict=True)]
    m, n = len(changes[0]), len(changes[1])
    with_positive, with_negative = (len(set(side)) for side in sides)
    s10 = with_positive / ((with_positive - 1) * m) * sum(x * x for x in sums[0])
    s01 = with_negative / ((with_negative - 1) * n) * sum(x * x for x in sums[1])
    s11 = 40 / 39 * sum(x * y for x, y in zip(*sums, strict=True))
    reach = stdtrit(min(with_positive, with_negative) - 1, 0.95) * math.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))
    assert bounds(delong_gain(LABELS, OURS, THEIRS, 0.95, groups)) == pytest.approx((gain - reach, gain + reach))


@pytest.mark.parametrize("told", [True, False])
def test_entities_are_covered_as_promised_only_if_they_are_told(told: bool) -> None:
    """60 entities of 12 rows, each more or less often positive, and models that differ by what they think of each.

    The true gain is 0, for the two models are alike.
    """
    groups = np.repeat(np.arange(60), 12)
    missed = 0
    for sample in range(400):
        random = np.random.default_rng(sample)
        labels = (random.random(720) < random.beta(0.6, 1.4, size=60)[groups]).astype(float)
        ours, theirs = (labels + random.normal(size=60)[groups] + random.normal(size=720) for _ in range(2))
        lower, _ = bounds(delong_gain(labels, ours, theirs, 0.95, groups if told else None))
        missed += lower > 0
    assert (missed <= 32) if told else (missed >= 45)  # 20 of 400 are promised


def test_independent_rows_are_covered_as_promised() -> None:
    missed = np.zeros(2)
    for sample in range(600):
        random = np.random.default_rng(sample)
        labels = (random.random(250) < 0.3).astype(float)
        shared = random.normal(size=250)
        ours, theirs = (labels + 0.9 * shared + 0.44 * random.normal(size=250) for _ in range(2))
        lower, upper = bounds(delong_gain(labels, ours, theirs, 0.95))
        missed += lower > 0, upper < 0
    assert (missed > 14).all()
    assert (missed < 48).all()  # 30 of 600 are promised on either side


@pytest.mark.parametrize("same", [THEIRS, 3 * THEIRS - 1, np.exp(THEIRS)])
def test_the_same_ranking_gains_exactly_nothing(same: np.ndarray) -> None:
    assert delong_gain(LABELS, same, THEIRS, 0.95) == Interval(0.0, 0.0, 0.0)


def test_two_perfect_models_are_not_known_to_be_equal() -> None:
    """DeLong's variance is 0 then; with no change among 90 positives, one in 33 of others might change."""
    labels = (np.arange(300) < 90).astype(float)
    perfect, other = (labels + 0.5 * np.random.default_rng(seed).random(300) for seed in (1, 2))
    found = delong_gain(labels, perfect, other, 0.95)
    bound = 1 - 0.05 ** (1 / 90)
    assert (found.estimate, *bounds(found)) == pytest.approx((0, -bound, bound))
    assert 0.032 < bound < 0.034


def test_few_changes_of_place_are_no_certainty() -> None:
    labels = (np.arange(300) < 90).astype(float)
    scores = labels + np.linspace(0, 0.5, 300)
    changed = scores.copy()
    changed[[0, 299]] = changed[[299, 0]]
    lower, upper = bounds(delong_gain(labels, changed, scores, 0.95))
    assert lower < -0.05
    assert upper > 0.05


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_without_both_answers_or_with_a_score_that_is_no_number_it_is_undefined(wrong: float) -> None:
    broken = np.where(np.arange(300) == 5, wrong, OURS)
    for found in (
        delong_gain(LABELS, broken, THEIRS, 0.95),
        delong_gain(LABELS, OURS, broken, 0.95),
        delong_gain(np.ones(300), OURS, THEIRS, 0.95),
        delong_gain(np.zeros(300), OURS, THEIRS, 0.95),
        delong_gain(np.zeros(0), np.zeros(0), np.zeros(0), 0.95),
    ):
        assert math.isnan(found.estimate)
        assert found.lower is found.upper is None


def test_a_single_entity_or_few_give_no_bounds() -> None:
    for groups in (np.zeros(300, int), np.arange(300) % 9):
        found = delong_gain(LABELS, OURS, THEIRS, 0.95, groups)
        assert found.estimate == pytest.approx(delong_gain(LABELS, OURS, THEIRS, 0.95).estimate)
        assert found.lower is found.upper is None
    few = np.flatnonzero((LABELS == 0) | (np.cumsum(LABELS) < 10))
    assert delong_gain(LABELS[few], OURS[few], THEIRS[few], 0.95).lower is None


@pytest.mark.parametrize(
    ("better", "worse", "rows", "confidence", "published"),
    [
        (6, 16, 161, 0.975, (-0.1240, -0.0054)),  # Cavo et al. 2012 in Fagerland, Lydersen & Laake, Table 8.13
        (28, 25, 618, 0.95, (-0.0148, 0.0247)),  # R: PropCIs::scoreci.mp(25, 28, 618, 0.9)
    ],
)
def test_tangos_interval_is_the_published_one(
    better: int, worse: int, rows: int, confidence: float, published: tuple[float, float]
) -> None:
    found = accuracy_gain(Discordant(better, worse, rows), confidence)
    assert found.estimate == pytest.approx((better - worse) / rows)
    assert bounds(found) == pytest.approx(published, abs=5.1e-5)


@pytest.mark.parametrize(("better", "worse", "rows"), [(40, 20, 160), (0, 7, 50), (3, 0, 12), (1, 1, 400), (5, 0, 5)])
def test_tangos_bounds_are_where_the_score_test_turns(better: int, worse: int, rows: int) -> None:
    """The likelihood is maximised numerically, and not by the closed form: an independent way to the same bound."""
    for bound, side in zip(bounds(accuracy_gain(Discordant(better, worse, rows), 0.95)), (1, -1), strict=True):

        def unlikely(share: float, gain: float = bound) -> float:
            cells = (better, share + gain), (worse, share), (rows - better - worse, 1 - 2 * share - gain)
            return -float(sum(xlogy(count, max(p, 0)) for count, p in cells))

        if bound == -side:  # nothing lies beyond
            continue
        ends = max(0, -bound), (1 - bound) / 2
        share = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        deviation = math.sqrt(rows * (2 * share + bound - bound**2))
        assert (better - worse - rows * bound) / deviation == pytest.approx(side * Z, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 50, 500, 100_000])
def test_no_difference_in_few_rows_is_no_certainty(rows: int) -> None:
    width = Z**2 / (rows + Z**2)
    assert bounds(accuracy_gain(Discordant(0, 0, rows), 0.95)) == pytest.approx((-width, width))


def test_all_rows_one_way_end_at_the_edge() -> None:
    assert bounds(accuracy_gain(Discordant(0, 30, 30), 0.95))[0] == -1
    assert bounds(accuracy_gain(Discordant(30, 0, 30), 0.95))[1] == 1


def test_accuracy_without_rows_is_undefined() -> None:
    found = accuracy_gain(Discordant(0, 0, 0), 0.95)
    assert math.isnan(found.estimate)
    assert found.lower is found.upper is None


def test_tangos_interval_covers_as_promised() -> None:
    """Three of a hundred rows better, three worse: missed on either side as often as promised."""
    split = np.random.default_rng(4).multinomial(400, [0.03, 0.03, 0.94], size=1000)
    found = [bounds(accuracy_gain(Discordant(int(b), int(w), 400), 0.95)) for b, w, _ in split]
    for missed in (sum(lower > 0 for lower, _ in found), sum(upper < 0 for _, upper in found)):
        assert 30 <= missed <= 70


def test_discordant_rows_are_counted() -> None:
    labels = np.array([1.0, 1, 0, 0, 1, 0])
    ours = np.array([True, True, False, True, False, True])
    theirs = np.array([True, False, True, False, False, True])
    assert discordant(ours == (labels == 1), theirs == (labels == 1)) == Discordant(better=2, worse=1, rows=6)


def test_mcnemars_exact_p_value() -> None:
    """12 against 2: P = 0.0129 (Armitage & Berry 1994, page 127)."""
    assert Discordant(12, 2, 50).p_value == pytest.approx(0.0129, abs=5e-5)
    assert Discordant(12, 2, 50).p_value == pytest.approx(2 * binom.cdf(2, 14, 0.5))
    assert Discordant(0, 0, 50).p_value == 1
    assert Discordant(7, 7, 50).p_value == 1


def test_groups_are_entities_and_a_null_is_alone() -> None:
    groups = groups_of(pd.Series(["a", None, "b", "a", None], dtype="string"))
    assert groups is not None
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 4


@pytest.mark.parametrize("entities", [["a", "b", None, None], [None, None], []])
def test_rows_that_share_nothing_have_no_groups(entities: list[str | None]) -> None:
    assert groups_of(pd.Series(entities, dtype="string")) is None


def test_no_change_in_n_trials_is_about_three_in_n() -> None:
    lower, upper = bounds(widened(Interval(0.0, 0.0, 0.0), 0, 1000, 0.95))
    assert -lower == upper == pytest.approx(0.003, rel=0.01)
    assert widened(Interval(0.0, -0.5, 0.5), 0, 1000, 0.95) == Interval(0.0, -0.5, 0.5)
    assert bounds(widened(Interval(0.0, 0.0, 0.0), 5, 5, 0.95)) == (-1, 1)
    assert widened(Interval(0.1, None, None), 0, 1000, 0.95) == Interval(0.1, None, None)


def test_four_times_the_rows_resolve_half_the_margin() -> None:
    assert resolution(Interval(0.005, -0.015, 0.025), 500, 0.01) == pytest.approx((0.02, 2000))
    assert resolution(Interval(0.0, -0.02, 0.02), 500, 0.0) == (0.02, None)
    assert resolution(Interval(0.0, None, None), 500, 0.01) is None
