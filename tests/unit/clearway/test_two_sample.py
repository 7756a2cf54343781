"""The two-sample tests against SciPy's, against the truth by simulation, and at the edges where approximations fail."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clearway.params import DriftParams
from clearway.two_sample import (
    Found,
    Inflation,
    cells,
    compare,
    compare_categories,
    compare_numbers,
    count_categories,
    equivalent_z,
    jensen_shannon,
    ks_p,
    ordered,
    rank_squares,
    rank_tests,
    score_p,
    share_log_p,
    size_for_normal,
    t_p,
    table,
    table_p,
    unseen_p,
)

RANDOM = np.random.default_rng(20130701)


def numbers(reference: np.ndarray, current: np.ndarray) -> dict[str, Found]:
    return {found.aspect: found for found in compare_numbers(np.sort(reference), np.sort(current))}


@pytest.mark.parametrize("rows", [(400, 300), (30_000, 500), (120_000, 90_000)])
def test_continuous_samples_agree_with_scipy(rows: tuple[int, int]) -> None:
    reference, current = RANDOM.normal(size=rows[0]), RANDOM.normal(0.04, 1.03, size=rows[1])
    found = numbers(reference, current)
    exact = stats.ks_2samp(reference, current, method="asymp")
    assert found["distribution"].p_value == pytest.approx(stats.kstwobign.sf(exact.statistic * _root(rows)), rel=0.05)
    assert found["distribution"].effect == pytest.approx(
        stats.wasserstein_distance(reference, current) / reference.std(), rel=0.01
    )
    assert found["mean"].test == "welch"
    assert found["mean"].p_value == pytest.approx(stats.ttest_ind(reference, current, equal_var=False).pvalue)
    assert found["spread"].p_value == pytest.approx(stats.mood(reference, current).pvalue, rel=0.02)
    assert found["spread"].effect == pytest.approx(abs(math.log(current.std() / reference.std())))


def test_tied_samples_agree_with_scipy() -> None:
    reference, current = RANDOM.poisson(3.0, 5_000), RANDOM.poisson(3.3, 700)
    edges, counts = cells(*(np.sort(side.astype(float)) for side in (reference, current)))
    assert edges.tolist() == sorted({*reference.tolist(), *current.tolist()})
    tests = rank_tests(counts)
    by_ranks = stats.mannwhitneyu(current, reference, use_continuity=False, method="asymptotic")
    assert score_p(tests.location) == pytest.approx(by_ranks.pvalue, rel=1e-9)
    assert tests.location.z > 0
    assert tests.lam == pytest.approx(stats.ks_2samp(reference, current).statistic * _root((5_000, 700)))


def test_many_pairs_at_once_give_what_each_pair_gives() -> None:
    pairs = RANDOM.poisson(20, size=(2, 5, 40)).astype(float)
    pairs[1, 0, :] = np.eye(1, 40)[0] * 9  # all values of one sample tied
    lam, location, spread = rank_squares(*pairs)
    for index in range(5):
        alone = rank_tests(pairs[:, index])
        assert (lam[index], location[index], spread[index]) == pytest.approx(
            (alone.lam, alone.location.z**2, alone.spread.z**2)
        )


@pytest.mark.parametrize(
    ("hits", "total_hits", "size", "total"),
    [(3, 9, 100, 5_000), (0, 12, 40, 90), (7, 7, 60, 100), (880, 900, 950, 1000)],
)
def test_a_share_is_tested_as_fisher_does(hits: int, total_hits: int, size: int, total: int) -> None:
    others = total_hits - hits
    expected = stats.fisher_exact([[hits, size - hits], [others, total - size - others]]).pvalue
    log_p, exact = share_log_p(hits, total_hits, size, total)
    assert exact
    assert math.exp(log_p) == pytest.approx(expected, rel=1e-6)


def test_a_share_of_many_is_normal_and_never_underflows() -> None:
    log_p, exact = share_log_p(30_000, 40_000, 100_000, 200_000)
    assert not exact
    assert math.isfinite(log_p)
    assert log_p < -1_000
    assert equivalent_z(log_p) > 90


def test_large_counts_agree_with_chi_squared() -> None:
    shares = RANDOM.dirichlet(np.full(12, 5.0))
    counts = np.array([RANDOM.multinomial(90_000, shares), RANDOM.multinomial(70_000, shares)], dtype=float)
    expected = stats.chi2_contingency(counts, correction=False)
    found = table(counts)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-3)
    assert found.degrees == expected.dof
    assert table_p(found) == pytest.approx(expected.pvalue, rel=0.02)


def test_rare_categories_keep_the_level_that_chi_squared_loses() -> None:
    shares = 1 / np.arange(1, 401) ** 1.3
    shares /= shares.sum()
    ours, theirs = [], []
    for _ in range(1_500):
        counts = np.array([RANDOM.multinomial(5_000, shares), RANDOM.multinomial(60, shares)], dtype=float)
        ours.append(table_p(table(counts)))
        if len(theirs) < 300:
            theirs.append(stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0], correction=False).pvalue)
    assert np.mean(np.array(ours) <= 0.01) <= 0.02
    assert np.mean(np.array(theirs) <= 0.01) > 0.03  # the reason for all this


def test_a_rare_category_that_rose_is_found_though_it_was_seen_before() -> None:
    counts = np.array([[150_000, 149_999, 1], [980, 980, 40]], dtype=float)
    assert table_p(table(counts)) < 1e-30
    assert unseen_p(counts) == 1.0
    many = np.concatenate([np.full((1, 300), 1_000.0), RANDOM.poisson(6.0, size=(1, 300))])
    many = np.column_stack([many, [1.0, 40.0]])
    assert table_p(table(many)) < 1e-6


def test_unseen_mass_is_held_against_what_a_random_split_gives() -> None:
    # One row of a new kind in 100 of 5,000: it falls on that side one time in 51.
    assert unseen_p(np.array([[5_000.0, 0.0], [99.0, 1.0]])) == pytest.approx(100 / 5_100, rel=0.05)
    # Where every row is its own category all of them are new, and nothing has changed.
    everything = np.concatenate([np.repeat([[1.0], [0.0]], 5_000, 1), np.repeat([[0.0], [1.0]], 100, 1)], axis=1)
    assert unseen_p(everything) == 1.0
    # Two per cent of one new category are no chance.
    assert unseen_p(np.array([[300_000.0, 0.0], [1_960.0, 40.0]])) < 1e-50
    assert unseen_p(np.array([[10.0, 0.0], [0.0, 3_000_000.0]])) < 1e-50


def test_unseen_mass_is_never_called_rarer_than_it_is() -> None:
    totals = np.concatenate([np.ones(120), np.full(20, 2), [900]]).astype(np.int64)
    splits = RANDOM.multivariate_hypergeometric(totals, 150, size=4_000)
    p = np.array([unseen_p(np.array([totals - ours, ours], dtype=float)) for ours in splits[:400]])
    unseen = (splits * (splits == totals)).sum(axis=1)
    for value, bound in zip(unseen[:400], p, strict=True):
        assert bound >= np.mean(unseen >= value) * 0.9


def test_a_rare_value_among_zeros_does_not_cry_wolf() -> None:
    reference = np.zeros(300_000)
    reference[:300] = 1.0
    current = np.zeros(50)
    current[0] = 1.0  # happens one time in twenty, while its normal deviate is above 4
    assert min(found.p_value for found in numbers(reference, current).values()) > 0.01
    current[:5] = 1.0
    assert numbers(reference, current)["mean"].p_value < 1e-5


def test_heavy_tails_are_compared_by_rank() -> None:
    reference, current = RANDOM.standard_cauchy(5_000), RANDOM.standard_cauchy(50)
    assert numbers(reference, current)["mean"].test == "mann_whitney"
    assert size_for_normal(np.sort(reference), np.ones(5_000)) > 5_000
    assert size_for_normal(np.array([1.0, 1.0]), np.ones(2)) == math.inf


@pytest.mark.parametrize("scale", [1e-200, 1e-90, 1.0, 1e200])
def test_effects_are_free_of_the_unit(scale: float) -> None:
    reference = np.linspace(-1, 1, 500)
    found = numbers(reference * scale, (reference + 0.5) * scale)
    assert found["mean"].effect == pytest.approx(0.5 / reference.std(), rel=1e-6)
    assert found["distribution"].effect == pytest.approx(0.5 / reference.std(), rel=1e-6)
    assert found["spread"].effect == pytest.approx(0.0, abs=1e-9)


def test_single_and_double_precision_are_the_same_numbers() -> None:
    then, now = RANDOM.normal(size=4_000).round(1), RANDOM.normal(size=2_000).round(1)
    same = numbers(then, now)
    for left, right in (("float32", "float64"), ("float64", "float32"), ("Float32", "float64")):
        sides = pd.DataFrame({"x": then}).astype(left), pd.DataFrame({"x": now}).astype(right)
        for found in compare("x", "numeric", *sides, DriftParams()).found:
            assert found.p_value == pytest.approx(same[found.aspect].p_value, rel=1e-4), (left, right, found)


def test_a_constant_that_moved_has_an_effect_and_one_that_did_not_has_none() -> None:
    constant = np.full(200, 0.1)
    still, moved = numbers(constant, constant), numbers(constant, np.full(80, 0.2))
    assert {found.effect for found in still.values()} == {0.0}
    assert moved["mean"].effect == pytest.approx(2.0)
    assert moved["mean"].p_value < 1e-10
    opened = numbers(constant, RANDOM.normal(0.1, 0.05, 80))
    assert math.isfinite(opened["spread"].effect)
    assert opened["spread"].effect > 10


def test_numbers_are_read_from_any_column() -> None:
    assert ordered(pd.Series([3.0, np.nan, -np.inf, 1.0, np.inf, 2.0])).tolist() == [1, 2, 3]
    assert ordered(pd.Series([3, 1, 2], dtype="float32")).dtype == np.float32
    assert ordered(pd.Series(["2", "x", None, "1"])).tolist() == [1, 2]
    assert ordered(pd.Series([2, None, 1], dtype="Int64")).tolist() == [1, 2]
    assert ordered(pd.Series([np.nan, np.inf])).size == 0
    column = pd.Series([2.0, 1.0])
    ordered(column)
    assert column.tolist() == [2.0, 1.0]


def test_categories_are_the_same_whatever_type_holds_them() -> None:
    whole = pd.Series([1, 2, 2])
    with_null = pd.Series([1.0, 2.0, None, 2.0])
    assert count_categories(whole, with_null).tolist() == [[1, 2], [1, 2]]
    unused = pd.Series(["a"], dtype=pd.CategoricalDtype(["a", "b"]))
    assert count_categories(unused, pd.Series(["a", None], dtype="string")).tolist() == [[1], [1]]


def test_jensen_shannon_agrees_with_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    counts = np.array([[5.0, 0.0, 7.0], [2.0, 4.0, 1.0]])
    assert jensen_shannon(counts) == pytest.approx(jensenshannon(counts[0], counts[1], base=2))
    assert jensen_shannon(np.array([[3.0, 0.0], [0.0, 9.0]])) == pytest.approx(1.0)


def test_inflation_weakens_every_test_and_never_strengthens_one() -> None:
    reference, current = np.sort(RANDOM.normal(size=4_000)), np.sort(RANDOM.normal(0.2, 1.2, size=1_000))
    tests = rank_tests(cells(reference, current)[1])
    categories = table(np.array([[500.0, 400.0, 300.0], [300.0, 400.0, 500.0]]))
    for weaker in (
        lambda inflation: ks_p(tests.lam, inflation),
        lambda inflation: score_p(tests.location, inflation),
        lambda inflation: score_p(tests.spread, inflation),
        lambda inflation: table_p(categories, inflation),
    ):
        p = [weaker(Inflation(factor, 16.0, 2.0)) for factor in (1.0, 4.0, 25.0)]
        assert p[0] < 1e-3
        assert p[0] < p[1] < p[2]
    # A statistic as large as the windows' own is no news, at the level its few windows allow.
    lam = math.sqrt(9 * math.pi**2 / 12)
    assert ks_p(lam, Inflation(9.0, 16.0)) > 0.2
    assert ks_p(1e4, Inflation(9.0, 16.0)) < 1e-6  # far below what a float holds without the logarithm


def test_students_t() -> None:
    assert t_p(2.0, 9.0) == pytest.approx(2 * stats.t.sf(2.0, 9))
    assert t_p(-2.0, math.inf) == pytest.approx(2 * stats.norm.sf(2.0))


def test_the_level_holds_on_small_samples() -> None:
    draws = {
        "t2": lambda n: RANDOM.standard_t(2, n),
        "lognormal": lambda n: RANDOM.lognormal(0, 2, n),
        "ties": lambda n: RANDOM.integers(0, 3, n).astype(float),
    }
    alarms = 0
    for draw in draws.values():
        for _ in range(200):
            found = numbers(draw(2_000), draw(50))
            alarms += 3 * min(one.p_value for one in found.values()) <= 0.05
    assert alarms <= 45  # 30 expected at most
    shares = RANDOM.dirichlet(np.full(60, 0.3))
    alarms = 0
    for _ in range(400):
        counts = np.array([RANDOM.multinomial(2_000, shares), RANDOM.multinomial(50, shares)], dtype=float)
        alarms += 2 * min(one.p_value for one in compare_categories(counts)) <= 0.05
    assert alarms <= 32


def _root(rows: tuple[int, int]) -> float:
    return math.sqrt(rows[0] * rows[1] / sum(rows))
