"""Batches that make themselves, for models whose single row costs nearly what a hundred rows together cost.

A scikit-learn estimator spends most of a single row on checks of the whole table. So rows that arrive while one batch
is scored are scored together in the next. Nobody waits for a timer: a row that finds nothing under way is scored at
once, so that a single connection waits for nothing, and batches grow with the load alone.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearway.params import BatchingParams

Matrix = NDArray[np.float32]
Outputs = NDArray[np.float64]


class TooManyWaitingError(Exception):
    """More rows wait to be scored than ``serving.batching.max_waiting`` allows."""


class _Waiting(NamedTuple):
    matrix: Matrix
    answer: "asyncio.Future[Outputs]"


class Batcher:
    """Scores the rows of one version in a thread, together where they wait together.

    The event loop goes on reading meanwhile. One batch is under way at a time. All methods belong to the event loop.

    Parameters
    ----------
    score
        From float32 rows to one output each, each row by itself, as :meth:`clearway.model.Model.output`. It is called
        in the thread.
    """

    def __init__(self, score: Callable[[Matrix], Outputs]) -> None:
        self._score = score
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._busy = False

    async def output(self, matrix: Matrix, lane: Executor, limits: BatchingParams) -> Outputs:
        """What the model says of these rows.

        Parameters
        ----------
        matrix
            Of shape (rows, features). It is not copied: leave it alone until the answer is there.
        lane
            Where the batch is scored that these rows begin, and those that follow from it.
        limits
            A request of more rows than ``max_rows`` is a batch of its own.

        Raises
        ------
        TooManyWaitingError
            The rows would make more wait than ``max_waiting``. A request that finds nobody waiting is always taken.
        Exception
            Whatever scoring these rows alone raises: rows that fail do not fail their neighbours.
        """
        if self._rows and self._rows + len(matrix) > limits.max_waiting:
            raise TooManyWaitingError(
                f"{self._rows} rows wait to be scored (serving.batching.max_waiting = {limits.max_waiting})"
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting(matrix, loop.create_future())
        self._waiting.append(waiting)
        self._rows += len(matrix)
        if not self._busy:
            self._begin(loop, lane, limits)
        return await waiting.answer

    def _begin(self, loop: asyncio.AbstractEventLoop, lane: Executor, limits: BatchingParams) -> None:
        """Start the next batch: those that have waited longest, as many as fit."""
        taken = [self._waiting.popleft()]
        rows = len(taken[0].matrix)
        while self._waiting and rows + len(self._waiting[0].matrix) <= limits.max_rows:
            taken.append(self._waiting.popleft())
            rows += len(taken[-1].matrix)
        self._rows -= rows
        self._busy = True

        def work() -> None:
            results = _scored(self._score, [one.matrix for one in taken])
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(self._end, loop, lane, limits, taken, results)

        try:
            lane.submit(work)
        except RuntimeError as error:  # the lane is closed
            self._end(loop, lane, limits, taken, [error] * len(taken))

    def _end(
        self,
        loop: asyncio.AbstractEventLoop,
        lane: Executor,
        limits: BatchingParams,
        taken: Sequence[_Waiting],
        results: Sequence[Outputs | Exception],
    ) -> None:
        """Start the next batch before the answers of this one are written: the thread is never idle meanwhile."""
        self._busy = False
        for one, result in zip(taken, results, strict=True):
            if one.answer.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)
        if self._waiting:
            self._begin(loop, lane, limits)


def _scored(score: Callable[[Matrix], Outputs], requests: Sequence[Matrix]) -> list[Outputs | Exception]:
    """The outputs of each request's rows, or why there are none.

    Where scoring them together fails, each half is scored by itself: one bad request among n costs 2 log n calls.
    """
    try:
        together: Any = score(requests[0] if len(requests) == 1 else np.concatenate(requests))
        ends = np.cumsum([len(request) for request in requests])
        if len(together) != ends[-1]:
            raise ArithmeticError(f"it gave {len(together)} outputs for {ends[-1]} rows")
    except Exception as error:
        if len(requests) == 1:
            return [error]
        half = len(requests) // 2
        return [*_scored(score, requests[:half]), *_scored(score, requests[half:])]
    return [together[end - len(request) : end] for request, end in zip(requests, ends, strict=True)]
