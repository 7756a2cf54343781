"""Coverage at every look, measured by simulation; and the test that one must not peek at, for comparison."""

import numpy as np
import pytest
from scipy import stats

from clearway.sequences import bounded_mean, difference

RUNS, LOOKS = 300, 2000
ALPHA = 0.1


def most_misses(alpha: float) -> float:
    """A miss rate that a true rate of ``alpha`` exceeds once in 10,000 simulations of ``RUNS`` runs."""
    return float(stats.binom.ppf(1 - 1e-4, RUNS, alpha)) / RUNS


@pytest.mark.parametrize("planned", [None, 50, 500, 5000])
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_the_mean_of_coin_flips_is_ever_missed_at_most_alpha_of_the_time(rate: float, planned: int | None) -> None:
    values = (np.random.default_rng(1).random((RUNS, LOOKS)) < rate).astype(float)
    both = bounded_mean(values, ALPHA, "two", planned)
    assert np.any((both.lower > rate) | (both.upper < rate), axis=1).mean() <= most_misses(ALPHA)
    one = bounded_mean(values, ALPHA, "one", planned)
    assert np.any(one.lower > rate, axis=1).mean() <= most_misses(ALPHA)
    assert np.any(one.upper < rate, axis=1).mean() <= most_misses(ALPHA)


def test_the_mean_of_a_continuous_variable_is_covered_and_the_interval_is_useful() -> None:
    values = np.random.default_rng(2).beta(2, 5, (RUNS, LOOKS))
    found = bounded_mean(values, ALPHA, "two")
    assert np.any((found.lower > 2 / 7) | (found.upper < 2 / 7), axis=1).mean() <= most_misses(ALPHA)
    width = (found.upper - found.lower)[:, -1].mean()
    assert width < 0.03
    assert width < np.sqrt(2 * np.log(2 / ALPHA) / LOOKS)  # narrower than Hoeffding's, which holds at one look only


def test_bounds_are_tighter_where_the_decision_was_planned() -> None:
    values = (np.random.default_rng(6).random((100, LOOKS)) < 0.4).astype(float)

    def width(planned: int | None, look: int) -> float:
        found = bounded_mean(values, ALPHA, "two", planned)
        return float((found.upper - found.lower)[:, look].mean())

    assert width(300, 300) < 0.8 * width(None, 300)
    assert width(300, 300) < min(width(60, 300), width(2000, 300))


def test_equal_arms_are_told_apart_at_most_alpha_of_the_time_while_a_peeked_z_test_errs_far_more() -> None:
    random = np.random.default_rng(3)
    looks = np.arange(100, LOOKS + 1, 20)
    false_alarms = peeked = 0
    for _ in range(RUNS):
        values = (random.random(LOOKS) < 0.05).astype(float)
        treated = random.random(LOOKS) < 0.5
        false_alarms += bool((difference(values, treated, ALPHA, "one").lower > 0).any())
        n, m = np.cumsum(treated)[looks - 1], np.cumsum(~treated)[looks - 1]
        a, b = np.cumsum(values * treated)[looks - 1], np.cumsum(values * ~treated)[looks - 1]
        pooled = (a + b) / (n + m)
        error = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n + 1 / m), 1e-12))
        peeked += bool(((a / n - b / m) / error > stats.norm.ppf(1 - ALPHA)).any())
    assert false_alarms / RUNS <= most_misses(ALPHA)
    assert peeked / RUNS > 2 * ALPHA


def test_a_real_difference_is_found_and_the_bounds_enclose_it() -> None:
    random = np.random.default_rng(4)
    treated = random.random(6000) < 0.5
    values = (random.random(6000) < np.where(treated, 0.10, 0.01)).astype(float)
    found = difference(values, treated, 0.01, "two")
    assert 0 < found.lower[-1] < 0.09 < found.upper[-1]
    assert found.estimate[-1] == pytest.approx(values[treated].mean() - values[~treated].mean())


def by_the_book(values: list[float], alpha: float) -> tuple[float, float]:
    """Theorem 2 of Waudby-Smith and Ramdas (2024), one observation after the other."""
    mean, variance, squares = 0.5, 0.25, 0.0
    bets = bet_values = penalties = total = 0.0
    for t, value in enumerate(values, start=1):
        bet = min(np.sqrt(2 * np.log(2 / alpha) / (variance * t * np.log(1 + t))), 0.75)
        bets += bet
        bet_values += bet * value
        penalties += 4 * (value - mean) ** 2 * (-np.log(1 - bet) - bet) / 4
        total += value
        mean = (0.5 + total) / (t + 1)
        squares += (value - mean) ** 2
        variance = (0.25 + squares) / (t + 1)
    radius = (np.log(2 / alpha) + penalties) / bets
    return max(bet_values / bets - radius, 0.0), min(bet_values / bets + radius, 1.0)


@pytest.mark.parametrize("n", [1, 2, 40, 300])
def test_the_bounds_are_those_of_the_paper(n: int) -> None:
    values = np.random.default_rng(8).beta(2, 3, n)
    found = bounded_mean(values, 0.05, "two")
    assert (found.lower[-1], found.upper[-1]) == pytest.approx(by_the_book(values.tolist(), 0.05))


def test_a_difference_gives_half_of_alpha_to_each_arm() -> None:
    random = np.random.default_rng(9)
    values, treated = random.random(900), random.random(900) < 0.3
    found = difference(values, treated, 0.05, "one", planned=(300, 600))
    canary = bounded_mean(values[treated], 0.025, "one", 300)
    control = bounded_mean(values[~treated], 0.025, "one", 600)
    assert found.lower[-1] == pytest.approx(canary.lower[-1] - control.upper[-1])
    assert found.upper[-1] == pytest.approx(canary.upper[-1] - control.lower[-1])


def test_a_longer_record_never_changes_an_earlier_look() -> None:
    """What makes the bounds anytime-valid: each look depends on the past alone."""
    values = np.random.default_rng(5).random(200)
    whole, part = bounded_mean(values, 0.05, "two"), bounded_mean(values[:80], 0.05, "two")
    np.testing.assert_array_equal(whole.lower[:81], part.lower)
    np.testing.assert_array_equal(whole.upper[:81], part.upper)


def test_without_observations_nothing_is_known() -> None:
    nothing = bounded_mean(np.empty(0), 0.05, "two")
    assert (nothing.lower[-1], nothing.upper[-1]) == (0.0, 1.0)
    one_arm = difference(np.zeros(50), np.ones(50, dtype=bool), 0.05, "one")
    assert np.isnan(one_arm.estimate[-1])
    assert (one_arm.lower[-1], one_arm.upper[-1]) == (-1.0, pytest.approx(one_arm.upper[-1]))


@pytest.mark.parametrize(("values", "alpha"), [([0.5, 1.5], 0.05), ([0.5, np.nan], 0.05), ([0.5], 0.0), ([0.5], 1.0)])
def test_values_outside_the_unit_interval_and_impossible_levels_are_refused(values: list[float], alpha: float) -> None:
    with pytest.raises(ValueError, match="must"):
        bounded_mean(np.array(values), alpha, "two")
