"""Error rates at every look, measured by simulation: independent requests, shared keys, strata that differ."""

import numpy as np
import pytest
from scipy import stats

from clearway.sequences import (
    LEAST_KEYS,
    Arm,
    Contrast,
    Kind,
    design_effect,
    evidence,
    evidence_anew,
    process,
    root,
    sample_ratio,
    summarise,
)

RUNS, LOOKS = 400, 60
ALPHA = 0.05
LOG = np.log(1 / ALPHA)
SCALES = (0.25, 0.05, 0.01)


def most_misses(alpha: float) -> float:
    """A miss rate that a true rate of ``alpha`` exceeds once in 10,000 simulations of ``RUNS`` runs."""
    return float(stats.binom.ppf(1 - 1e-4, RUNS, alpha)) / RUNS


def rates(counts: np.ndarray, events: np.ndarray, kind: Kind = "rate") -> Contrast:
    """Of arrays of shape (2, ..., strata), the canary first; every request has a key of its own."""
    arms = [Arm(n, x, x, np.ones(n.shape[:-1]), n.sum(axis=-1)) for n, x in zip(counts, events, strict=True)]
    return Contrast(kind, *arms)


def ever(canary: float, stable: float, delta: float, *, smaller: bool = False, share: float = 0.5) -> float:
    """How often a difference beyond ``delta`` is ever claimed, of two rates looked at after every 100 requests."""
    random = np.random.default_rng(1)
    n = np.zeros((2, RUNS, 1))
    x = np.zeros((2, RUNS, 1))
    claimed = np.zeros(RUNS, dtype=bool)
    for _ in range(LOOKS):
        given = random.binomial(100, share, RUNS)
        for arm, (count, rate) in enumerate(((given, canary), (100 - given, stable))):
            n[arm, :, 0] += count
            x[arm, :, 0] += random.binomial(count, rate)
        found = process(rates(n, x), delta)
        claimed |= evidence_anew(found.opposite if smaller else found, SCALES) > LOG
    return float(claimed.mean())


@pytest.mark.parametrize(("rate", "share"), [(0.002, 0.1), (0.02, 0.5), (0.3, 0.1)])
def test_equal_rates_are_told_apart_at_most_alpha_of_the_time_however_often_one_looks(
    rate: float, share: float
) -> None:
    assert ever(rate, rate, 0.0, share=share) <= most_misses(ALPHA)


def test_harm_of_just_the_margin_is_called_less_at_most_alpha_of_the_time() -> None:
    assert ever(0.06, 0.01, 0.05, smaller=True) <= most_misses(ALPHA)
    assert ever(0.01, 0.01, 0.05, smaller=True) > 0.99, "and no harm at all is found to be less"


def test_a_rate_from_one_to_six_percent_is_found() -> None:
    assert ever(0.06, 0.01, 0.0) > 0.99


def test_a_peeked_z_test_errs_far_more() -> None:
    random = np.random.default_rng(3)
    z, x = np.zeros(RUNS), np.zeros((2, RUNS))
    for seen in range(1, LOOKS + 1):
        x = x + random.binomial(50, 0.05, (2, RUNS))
        p = x.sum(axis=0) / (100 * seen)
        z = np.maximum(z, np.abs(x[0] - x[1]) / np.sqrt(np.maximum(p * (1 - p) * 100 * seen, 1e-9)))
    assert (z > 1.96).mean() > 0.2


def keyed(failing: np.ndarray, asks: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values and keys of requests, of which those of a failing key all fail."""
    keys = np.repeat(np.arange(failing.size), asks)
    return failing[keys].astype(float), keys


def test_requests_of_one_key_count_as_one() -> None:
    random = np.random.default_rng(5)
    told = untold = 0
    for _ in range(200):
        arms = []
        for _ in range(2):
            values, keys = keyed(random.random(150) < 0.05, 20, random)
            arms.append(summarise(values, keys, np.zeros(values.size, dtype=np.int64), 1))
        told += bool(evidence(process(Contrast("rate", *arms), 0.0), SCALES) > LOG)
        loose = [Arm(arm.count, arm.total, arm.squares, np.ones(()), arm.count.sum()) for arm in arms]
        untold += bool(evidence(process(Contrast("rate", *loose), 0.0), SCALES) > LOG)
    assert told <= 200 * ALPHA + 10
    assert untold > 40


def test_the_design_effect_is_one_of_single_requests_and_the_requests_of_a_key_where_they_are_all_alike() -> None:
    random = np.random.default_rng(6)
    single = random.random(2000) < 0.1
    values, keys = keyed(single, 1, random)
    assert summarise(values, keys, np.zeros(2000, dtype=np.int64), 1).design == pytest.approx(1.0, abs=0.01)
    values, keys = keyed(single, 8, random)
    assert summarise(values, keys, np.zeros(16_000, dtype=np.int64), 1).design == pytest.approx(8.0, rel=0.05)


def test_without_events_keys_are_taken_to_share_them() -> None:
    values, keys = keyed(np.zeros(100, dtype=bool), 10, np.random.default_rng(0))
    arm = summarise(values, keys, np.zeros(values.size, dtype=np.int64), 1)
    assert (float(arm.design), float(arm.keys)) == (10.0, 100.0)


def test_one_key_alone_says_nothing() -> None:
    one = (np.asarray(float(each)) for each in (4, 9, 30, 900))
    assert np.isinf(design_effect(*one, keys=np.asarray(1.0)))  # type: ignore[call-arg]


def test_a_key_that_fails_in_two_strata_is_one_key() -> None:
    """Its failures are added up before they are squared: cutting the time in two makes no more keys."""
    random = np.random.default_rng(7)
    values, keys = keyed(random.random(400) < 0.1, 10, random)
    half = np.tile(np.repeat([0, 1], 5), 400)
    split = summarise(values, keys, half, 2)
    whole = summarise(values, keys, np.zeros(values.size, dtype=np.int64), 1)
    assert float(split.design) == pytest.approx(float(whole.design), rel=0.01)


def test_fewer_keys_than_the_least_are_no_evidence() -> None:
    def seen(keys: int) -> float:
        n = np.array([[float(keys)], [1000.0]])
        return float(evidence(process(rates(n, np.array([[float(keys)], [0.0]])), 0.0), SCALES))

    assert seen(LEAST_KEYS - 1) == -np.inf
    assert seen(LEAST_KEYS) > 20


def test_strata_with_different_shares_and_rates_are_compared_within_and_not_across() -> None:
    """At night one request in ten fails, and by day, when the canary gets most, one in a hundred: no difference."""
    n = np.array([[100.0, 9000.0], [900.0, 1000.0]])
    x = n * np.array([0.1, 0.01])
    together = rates(n, x)
    assert abs(float(root(process(together, 0.0)))) < 0.01
    pooled = rates(n.sum(axis=-1, keepdims=True), x.sum(axis=-1, keepdims=True))
    assert float(root(process(pooled, 0.0))) < -10, "Simpson's paradox"


def test_harm_that_begins_with_a_late_stratum_is_not_diluted_by_the_ones_before() -> None:
    n = np.array([[20_000.0, 1000.0], [20_000.0, 1000.0]])
    x = np.array([[200.0, 40.0], [230.0, 10.0]])
    found = process(rates(n, x), 0.0)
    assert float(evidence(found, SCALES)) < LOG
    assert float(evidence_anew(found, SCALES)) > LOG


def test_means_of_a_continuous_variable_are_covered_and_a_shift_is_found() -> None:
    random = np.random.default_rng(8)
    sums = np.zeros((3, 2, RUNS, 1))
    false, found = np.zeros(RUNS, dtype=bool), np.zeros(RUNS, dtype=bool)
    for _ in range(LOOKS):
        drawn = random.beta(2, 5, (2, RUNS, 10))
        for row, each in enumerate((np.ones_like(drawn), drawn, drawn**2)):
            sums[row, ..., 0] += each.sum(axis=-1)
        arms = [Arm(*sums[:, side], np.ones(RUNS), sums[0, side, :, 0]) for side in (0, 1)]
        false |= evidence(process(Contrast("mean", *arms), 0.0), (0.1,)) > LOG
        found |= evidence(process(Contrast("mean", *arms), -0.1), (0.1,)) > LOG
    assert false.mean() <= most_misses(ALPHA)
    assert found.mean() > 0.99


def test_a_handful_of_equal_values_is_no_certainty() -> None:
    arms = [
        Arm(np.array([25.0]), np.array([25 * mean]), np.array([25 * mean**2]), np.ones(()), np.asarray(25.0))
        for mean in (0.52, 0.5)
    ]
    assert float(evidence(process(Contrast("mean", *arms), 0.0), (0.1,))) < LOG


def test_the_split_of_keys_is_found_broken_and_rarely_taken_to_be() -> None:
    random = np.random.default_rng(9)
    total, broken = np.zeros((RUNS, 1)), np.zeros((RUNS, 1))
    false = np.zeros(RUNS, dtype=bool)
    for look in range(1, LOOKS + 1):
        total[:, 0] += random.binomial(100, 0.1, RUNS)
        broken[:, 0] += random.binomial(100, 0.13, RUNS)
        false |= sample_ratio(total, 100 * look - total, np.array([0.1])) > LOG
    assert false.mean() <= most_misses(ALPHA)
    assert (sample_ratio(broken, 100 * LOOKS - broken, np.array([0.1])) > LOG).mean() > 0.95


def test_values_outside_their_range_are_refused() -> None:
    for wrong in (np.array([1.5]), np.array([np.nan]), np.array([-0.1])):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            summarise(wrong, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), 1)
