import numpy as np
import pytest
from numpy.typing import NDArray

from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.robustness import Matrix, noise_gate, noisy
from clearway.schema import Column

ROWS = 4000
SCHEMA = InputSchema(
    features=(
        NumericFeature(name="weight"),
        NumericFeature(name="rooms", declared=Column(kind="int", nullable=True)),
        NumericFeature(name="share", declared=Column(kind="float", min=0.0, max=1.0)),
        NumericFeature(name="code", declared=Column(kind="float", values=(1.0, 2.0))),
        NumericFeature(name="same"),
        NumericFeature(name="empty"),
        CategoricalFeature(name="colour", categories=("green", "red")),
    )
)
WEIGHT, ROOMS, SHARE, CODE, SAME, EMPTY, COLOUR = range(7)


@pytest.fixture
def matrix() -> Matrix:
    random = np.random.default_rng(3)
    made = np.column_stack(
        [
            random.normal(70, 10, ROWS),
            random.integers(0, 40, ROWS),
            random.choice([0.0, 1.0], ROWS),
            random.choice([1.0, 2.0], ROWS),
            np.full(ROWS, 7.0),
            np.full(ROWS, np.nan),
            random.integers(0, 2, ROWS),
        ]
    ).astype(np.float32)
    made[::10, WEIGHT] = np.nan
    made[5, WEIGHT] = np.inf
    made[::7, ROOMS] = np.nan
    return made


def smooth(matrix: Matrix) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-(np.nan_to_num(matrix[:, WEIGHT].astype(float), nan=70.0, posinf=70.0) - 70) / 10))


def jagged(matrix: Matrix) -> NDArray[np.float64]:
    """Turns over with the fourth digit of the weight."""
    return np.sin(np.nan_to_num(matrix[:, WEIGHT].astype(float), posinf=0.0) * 1000) / 2 + 0.5


def test_noise_is_a_share_of_each_columns_own_spread(matrix: Matrix) -> None:
    known = np.isfinite(matrix[:, WEIGHT])
    change = noisy(SCHEMA, matrix, 0.01, seed=1)[known, WEIGHT] - matrix[known, WEIGHT]
    spread = matrix[known, WEIGHT].astype(np.float64).std()
    assert change.std() == pytest.approx(0.01 * spread, rel=0.05)
    assert abs(change.mean()) < 0.001 * spread


def test_what_is_missing_infinite_constant_or_a_category_stays(matrix: Matrix) -> None:
    shaken = noisy(SCHEMA, matrix, 0.01, seed=1)
    np.testing.assert_array_equal(np.isnan(shaken), np.isnan(matrix))
    assert shaken[5, WEIGHT] == np.inf
    for position in (CODE, SAME, COLOUR):
        np.testing.assert_array_equal(shaken[:, position], matrix[:, position])


def test_whole_numbers_stay_whole_and_move_as_far_on_average_as_others(matrix: Matrix) -> None:
    shaken = noisy(SCHEMA, matrix, 0.01, seed=1)
    known = ~np.isnan(matrix[:, ROOMS])
    change = (shaken[known, ROOMS] - matrix[known, ROOMS]).astype(np.float64)
    assert set(change) == {-1.0, 0.0, 1.0}
    expected = 0.01 * matrix[known, ROOMS].astype(np.float64).std() * np.sqrt(2 / np.pi)  # of Gaussian noise
    assert np.abs(change).mean() == pytest.approx(expected, rel=0.2)


def test_nothing_leaves_what_is_declared(matrix: Matrix) -> None:
    shaken = noisy(SCHEMA, matrix, 0.01, seed=1)[:, SHARE]
    assert (shaken.min(), shaken.max()) == (0.0, 1.0)
    assert len(np.unique(shaken)) > ROWS / 4


def test_the_same_seed_shakes_alike_and_leaves_the_rows_alone(matrix: Matrix) -> None:
    before = matrix.copy()
    first, again, other = (noisy(SCHEMA, matrix, 0.01, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)
    np.testing.assert_array_equal(matrix, before)


def test_a_smooth_model_keeps_its_answers_and_a_jagged_one_does_not(matrix: Matrix) -> None:
    steady = noise_gate(smooth, SCHEMA, matrix, 0.5, seed=1)
    assert (steady.name, steady.status, steady.threshold, steady.n) == ("noise_robustness", "pass", 0.95, ROWS)
    assert "in 3 of 7 features" in steady.detail
    assert noise_gate(jagged, SCHEMA, matrix, 0.5, seed=1).status == "fail"
    assert noise_gate(smooth, SCHEMA, matrix, 0.5, share=2.0, seed=1).status == "fail"


def test_what_is_kept_is_the_answer_at_the_models_own_threshold(matrix: Matrix) -> None:
    at_the_middle, at_the_edge = (noise_gate(smooth, SCHEMA, matrix, t, share=0.3, seed=1) for t in (0.5, 0.999))
    assert at_the_middle.estimate is not None
    assert at_the_edge.estimate is not None
    assert at_the_middle.estimate < 0.95 < at_the_edge.estimate


def test_a_score_that_is_no_number_fails(matrix: Matrix) -> None:
    def broken(rows: Matrix) -> NDArray[np.float64]:
        scores = smooth(rows)
        scores[rows[:, WEIGHT] > 95] = np.nan
        return scores

    gate = noise_gate(broken, SCHEMA, matrix, 0.5, seed=1)
    assert gate.status == "fail"
    assert "have no finite score with noise or without" in gate.detail


def test_a_model_that_fails_on_noisy_rows_is_a_failed_gate(matrix: Matrix) -> None:
    def picky(rows: Matrix) -> NDArray[np.float64]:
        if not np.isin(rows[:, SHARE], (0.0, 1.0)).all():
            raise RuntimeError("not a truth value")
        return smooth(rows)

    gate = noise_gate(picky, SCHEMA, matrix, 0.5, seed=1)
    assert (gate.status, gate.detail) == ("fail", "the model fails on noisy rows: RuntimeError: not a truth value")


def test_without_rows_nothing_was_shown(matrix: Matrix) -> None:
    assert noise_gate(smooth, SCHEMA, matrix[:0], 0.5, seed=1).status == "fail"
