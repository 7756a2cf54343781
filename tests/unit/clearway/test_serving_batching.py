"""Batches that make themselves: who is scored with whom, who fails with whom, and that scores do not depend on it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clearway.params import BatchingParams
from clearway.serving.batching import Batcher, TooManyWaitingError

POISON = 13.0


def row(*values: float) -> NDArray[np.float32]:
    return np.array([values], dtype=np.float32).T


class Sums:
    """A model whose score of a row is its sum; it waits for ``go``, remembers its batches, and fails on poison."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def __call__(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        assert self.go.wait(20)
        self.batches.append(len(matrix))
        self.threads.add(threading.current_thread().name)
        if (matrix == POISON).any():
            raise ArithmeticError("poison")
        return matrix.sum(axis=1).astype(np.float64)


@pytest.fixture
def lane() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="lane") as made:
        yield made


def ask(
    model: Any, lane: ThreadPoolExecutor, asked: list[NDArray[np.float32]], go: Callable[[], None], **limits: int
) -> list[Any]:
    """All at once, the first before the others; ``go`` is called when the others wait."""

    async def main() -> list[Any]:
        batcher = Batcher(model)
        tasks = [asyncio.create_task(batcher.output(one, lane, BatchingParams(**limits))) for one in asked]
        await asyncio.sleep(0.01)
        go()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    return asyncio.run(main())


def test_what_arrives_during_a_batch_is_scored_together_in_the_next(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    answers = ask(model, lane, [row(float(n)) for n in range(6)], model.go.set)
    assert [answer.tolist() for answer in answers] == [[float(n)] for n in range(6)]
    assert model.batches == [1, 5]
    assert all(name.startswith("lane") for name in model.threads)


def test_a_row_that_finds_nothing_under_way_waits_for_nobody(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    model.go.set()
    for number in (1.0, 2.0):
        assert ask(model, lane, [row(number)], model.go.set)[0].tolist() == [number]
    assert model.batches == [1, 1]


def test_batches_are_cut_at_the_limit_and_a_larger_request_is_scored_by_itself(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    sizes = [1, 2, 2, 7, 1, 3, 1]
    answers = ask(model, lane, [row(*np.arange(size)) for size in sizes], model.go.set, max_rows=4)
    assert model.batches == [1, 4, 7, 4, 1]
    assert [len(answer) for answer in answers] == sizes


def test_a_bad_row_fails_alone_and_costs_few_calls(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    numbers = [float(n) for n in range(65)]
    answers = ask(model, lane, [row(n) for n in numbers], model.go.set)
    failed = [n for n, answer in zip(numbers, answers, strict=True) if isinstance(answer, ArithmeticError)]
    assert failed == [POISON]
    assert [answer.tolist() for n, answer in zip(numbers, answers, strict=True) if n != POISON] == [
        [n] for n in numbers if n != POISON
    ]
    assert len(model.batches) <= 1 + 2 * 6 + 1  # the first row, and two halves at each of six levels


def test_too_many_waiting_are_refused_and_those_before_them_are_answered(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    answers = ask(model, lane, [row(float(n)) for n in range(6)], model.go.set, max_waiting=3)
    assert [answer.tolist() for answer in answers[:4]] == [[0.0], [1.0], [2.0], [3.0]]
    assert all(isinstance(answer, TooManyWaitingError) for answer in answers[4:])
    assert "serving.batching.max_waiting = 3" in str(answers[4])


def test_a_large_request_is_taken_where_nobody_waits(lane: ThreadPoolExecutor) -> None:
    model = Sums()
    answers = ask(model, lane, [row(1.0), row(*range(9)), row(2.0)], model.go.set, max_waiting=3)
    assert len(answers[1]) == 9
    assert isinstance(answers[2], TooManyWaitingError)


def test_outputs_of_a_wrong_number_are_nobodys(lane: ThreadPoolExecutor) -> None:
    def short(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        time.sleep(0.02)
        return np.zeros(max(1, len(matrix) - 1))

    answers = ask(short, lane, [row(1.0), row(2.0), row(3.0)], lambda: None)
    assert [answer.tolist() for answer in answers] == [[0.0]] * 3  # alone, each has its own


def test_a_caller_that_leaves_is_left_out_and_the_others_are_answered(lane: ThreadPoolExecutor) -> None:
    model = Sums()

    async def main() -> list[float]:
        batcher, limits = Batcher(model), BatchingParams()
        tasks = [asyncio.create_task(batcher.output(row(n), lane, limits)) for n in (1.0, 2.0, 3.0)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        model.go.set()
        return (await asyncio.wait_for(tasks[2], 20)).tolist()

    assert asyncio.run(main()) == [3.0]


def test_a_closed_lane_fails_the_request_and_does_not_hang_it() -> None:
    lane = ThreadPoolExecutor(max_workers=1)
    lane.shutdown()
    answers = ask(Sums(), lane, [row(1.0), row(2.0)], lambda: None)
    assert all(isinstance(answer, RuntimeError) for answer in answers)


def _fitted() -> dict[str, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    random = np.random.default_rng(5)
    matrix = random.normal(size=(300, 4)).astype(np.float32)
    matrix[:, 3] = random.integers(0, 4, 300)
    matrix[::7, 0] = np.nan
    answer = (np.nan_to_num(matrix[:, 0]) + matrix[:, 1] > 0).astype(float)
    models = {
        "boosting": HistGradientBoostingClassifier(max_iter=10, categorical_features=[3], early_stopping=False),
        "forest": RandomForestClassifier(5, random_state=0),
        "linear": make_pipeline(SimpleImputer(), LogisticRegression()),
    }
    return {name: model.fit(matrix, answer) for name, model in models.items()}


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return _fitted()


@pytest.mark.parametrize(("kind", "tolerance"), [("boosting", 0.0), ("forest", 0.0), ("linear", 1e-6)])
def test_scores_do_not_depend_on_who_is_scored_together(
    fitted: dict[str, Any], kind: str, tolerance: float, lane: ThreadPoolExecutor
) -> None:
    """Bit for bit of trees; of sums to what float32 holds, since a matrix product adds in another order."""
    numbers = st.floats(-5, 5, width=32)
    rows = st.tuples(numbers | st.just(float("nan")), numbers, numbers, st.sampled_from([0.0, 1.0, 2.0, 3.0]))

    @settings(max_examples=15, deadline=None)
    @given(st.lists(rows, min_size=2, max_size=20))
    def check(asked: list[tuple[float, ...]]) -> None:
        batches = []

        def score(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
            batches.append(len(matrix))
            return np.asarray(fitted[kind].predict_proba(matrix)[:, 1])

        matrices = [np.array([each], dtype=np.float32) for each in asked]
        together = np.concatenate(ask(score, lane, matrices, lambda: None))
        alone = np.concatenate([score(each) for each in matrices])
        assert np.abs(together - alone).max() <= tolerance

    check()
