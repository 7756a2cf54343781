"""Coverage of one mean at every look, measured by simulation."""

import numpy as np
import pytest
from scipy import stats

from clearway.bounded_mean import bounded_mean

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


def test_a_longer_record_never_changes_an_earlier_look() -> None:
    """What makes the bounds anytime-valid: each look depends on the past alone."""
    values = np.random.default_rng(5).random(200)
    whole, part = bounded_mean(values, 0.05, "two"), bounded_mean(values[:80], 0.05, "two")
    np.testing.assert_array_equal(whole.lower[:81], part.lower)
    np.testing.assert_array_equal(whole.upper[:81], part.upper)


@pytest.mark.parametrize(("values", "alpha"), [([0.5, 1.5], 0.05), ([0.5, np.nan], 0.05), ([0.5], 0.0), ([0.5], 1.0)])
def test_values_outside_the_unit_interval_and_impossible_levels_are_refused(values: list[float], alpha: float) -> None:
    with pytest.raises(ValueError, match="must"):
        bounded_mean(np.array(values), alpha, "two")
