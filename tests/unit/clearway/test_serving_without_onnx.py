"""Versions without ONNX: each caller gets its own row's answer, a slow one leaves the loop free, a full one says so."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from clearway.encoding import InputSchema, NumericFeature
from clearway.model import Model
from clearway.params import Params, ServingParams
from clearway.prediction_log import PredictionLog, read_log
from clearway.routing import RoutingTable
from clearway.serving.answering import Answerer
from clearway.serving.app import Endpoint
from clearway.serving.loading import Version
from clearway.serving.state import Active, Follower
from clearway.serving.whole import Desk
from clearway.workspace import Workspace

STABLE, CANARY = "a" * 64, "b" * 64
SCHEMA = InputSchema(features=(NumericFeature(name="x"),))


class Gated:
    """An estimator that waits for ``go``, fails on 13, and answers a hundredth of its feature."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[int] = []

    def predict_proba(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        assert self.go.wait(20)
        self.batches.append(len(matrix))
        if (matrix == 13).any():
            raise ValueError("thirteen")
        yes = matrix[:, 0].astype(np.float64) / 100
        return np.column_stack([1 - yes, yes])


def version(digest: str, estimator: Any) -> Version:
    return Version(digest, Model(digest, SCHEMA, 0.5, None, estimator=estimator))


def table(**canary: Any) -> RoutingTable:
    return RoutingTable(environment="staging", revision=1, ledger_hash="h", salt="s", stable=STABLE, **canary)


def endpoint(tmp_path: Path, active: Active, **serving: Any) -> tuple[Endpoint, PredictionLog]:
    content = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe"},
        "environments": {"staging": {"port": 0}},
        "serving": serving,
    }
    params = Params.model_validate(content)
    follower = Follower(params, Workspace(tmp_path), "staging")
    follower.active = active
    log = PredictionLog(tmp_path / "predictions")
    answerer = Answerer(params.serving, log)
    return Endpoint(params.serving, "staging", follower, log, answerer, Desk.alone(), "apples"), log


async def post(endpoint: Endpoint, row: dict[str, Any]) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    """One request, as the server of HTTP hands it over."""
    sent: list[Any] = []
    body = orjson.dumps(row)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }
    await endpoint.predict(scope, receive, send)
    return sent[0]["status"], orjson.loads(sent[1]["body"]), dict(sent[0]["headers"])


def test_requests_that_are_scored_together_each_get_their_own_answer(tmp_path: Path) -> None:
    model = Gated()
    served, log = endpoint(tmp_path, Active(table(), {STABLE: version(STABLE, model)}))

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(post(served, {"x": n, "id": f"r{n}"})) for n in range(20)]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)  # and the loop runs meanwhile
        model.go.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    answers = asyncio.run(main())
    served.close()
    log.close()
    assert model.batches[:2] == [1, 19]
    for number, (status, answer, _) in enumerate(answers):
        if number == 13:
            assert (status, answer["error"]) == (500, f"version {STABLE} failed: ValueError: thirteen")
        else:
            assert (status, answer["id"], answer["score"]) == (200, f"r{number}", number / 100)
    logged = read_log(tmp_path / "predictions").set_index("id")
    assert {int(n[1:]): s for n, s in logged["status"].items()} == {n: 500 if n == 13 else 200 for n in range(20)}
    assert logged["features"].map(lambda features: features["x"]).to_dict() == {f"r{n}": n for n in range(20)}


def test_a_version_that_has_too_many_waiting_says_when_to_come_back(tmp_path: Path) -> None:
    model = Gated()
    active = Active(table(), {STABLE: version(STABLE, model)})
    served, log = endpoint(tmp_path, active, batching={"max_waiting": 2})

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(post(served, {"x": n})) for n in range(5)]
        await asyncio.sleep(0.02)
        model.go.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    answers = asyncio.run(main())
    served.close()
    log.close()
    assert [status for status, _, _ in answers] == [200, 200, 200, 503, 503]
    assert answers[4][2][b"retry-after"] == b"1"
    assert "2 rows wait to be scored (serving.batching.max_waiting = 2)" in answers[4][1]["error"]
    assert sorted(read_log(tmp_path / "predictions")["status"]) == [200, 200, 200, 503, 503]


def test_a_canary_that_never_ends_keeps_no_caller_of_the_stable_version_waiting(tmp_path: Path) -> None:
    stuck, well = Gated(), Gated()
    well.go.set()
    versions = {STABLE: version(STABLE, well), CANARY: version(CANARY, stuck)}
    active = Active(table(canary=CANARY, canary_weight=10), versions)
    log = PredictionLog(tmp_path / "predictions")
    answerer = Answerer(ServingParams(), log)

    async def main() -> None:
        waiting = [
            asyncio.create_task(answerer.answer_one({"x": n}, CANARY, active, perf_counter(), str(n))) for n in range(3)
        ]
        await asyncio.sleep(0.02)
        for n in range(10):
            answer, digest = await asyncio.wait_for(
                answerer.answer_one({"x": n}, STABLE, active, perf_counter(), str(n)), 20
            )
            assert (answer["score"], digest) == (n / 100, STABLE)
        assert not any(task.done() for task in waiting)
        stuck.go.set()
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert [answer["score"] for answer, _ in answers] == [0.0, 0.01, 0.02]

    asyncio.run(main())
    answerer.close()
    log.close()
    assert stuck.batches == [1, 2]


def test_a_canary_that_never_ends_keeps_nobody_waiting_for_the_next_one(tmp_path: Path) -> None:
    stuck, next_one, later = Gated(), Gated(), "c" * 64
    next_one.go.set()
    served, log = endpoint(
        tmp_path,
        Active(
            table(canary=CANARY, canary_weight=100), {STABLE: version(STABLE, next_one), CANARY: version(CANARY, stuck)}
        ),
    )

    async def main() -> None:
        waiting = asyncio.create_task(post(served, {"x": 1}))
        await asyncio.sleep(0.02)
        versions = {STABLE: version(STABLE, next_one), later: version(later, next_one)}
        served._follower.active = Active(table(canary=later, canary_weight=100), versions)
        status, answer, _ = await asyncio.wait_for(post(served, {"x": 2}), 15)
        assert (status, answer["version"], waiting.done()) == (200, later, False)
        stuck.go.set()
        assert (await asyncio.wait_for(waiting, 20))[1]["version"] == CANARY

    try:
        asyncio.run(main())
    finally:
        stuck.go.set()
        served.close()
        log.close()


@pytest.mark.parametrize("rows", [1, 3])
def test_many_rows_of_one_request_are_answered_in_their_order(tmp_path: Path, rows: int) -> None:
    model = Gated()
    model.go.set()
    served, log = endpoint(tmp_path, Active(table(), {STABLE: version(STABLE, model)}), max_rows=3)

    async def main() -> tuple[int, dict[str, Any], Any]:
        return await post(served, {"rows": [{"x": n} for n in range(rows)]})

    status, answer, _ = asyncio.run(main())
    served.close()
    log.close()
    assert (status, [one["score"] for one in answer["predictions"]]) == (200, [n / 100 for n in range(rows)])


def test_a_version_that_was_replaced_is_freed_without_the_collector(tmp_path: Path) -> None:
    """What a server holds is frozen out of the collector's sight: nothing it drops may hang in a circle."""
    log = PredictionLog(tmp_path / "predictions")
    answerer = Answerer(ServingParams.model_validate({"log": {"leave_out": ["features", "inputs"]}}), log)

    async def main() -> None:
        model = Gated()
        model.go.set()
        versions = {digest: version(digest, model) for digest in (STABLE, CANARY)}
        active = Active(table(canary=CANARY, canary_weight=10), versions)
        del versions
        asked = [
            answerer.answer_one({"x": n}, (STABLE, CANARY)[n % 2], active, perf_counter(), str(n)) for n in range(12)
        ]
        await asyncio.wait_for(asyncio.gather(*asked), 20)
        left = [weakref.ref(each) for each in (model, active, active.stable.batcher)]
        gc.collect()
        gc.disable()
        del model, active, asked
        async with asyncio.timeout(20):  # the threads let go of their last batches in their own time
            while any(ref() is not None for ref in left):
                await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
    finally:
        gc.enable()
        answerer.close()
        log.close()
