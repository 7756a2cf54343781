"""Predictions that are answered as they are read: which are, and what is left of those that are not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import orjson
import pytest

from clearway.encoding import InputSchema, NumericFeature
from clearway.model import NUMBERS, OUTPUT, Model, SingleRows, _session
from clearway.pace import QUICK_SECONDS, QUICK_TIMES
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog, read_log
from clearway.routing import RoutingTable
from clearway.serving.answering import Answerer
from clearway.serving.app import MOST_AT_ONCE, Endpoint, Reply
from clearway.serving.loading import Version
from clearway.serving.requests import RequestError
from clearway.serving.state import Active
from clearway.serving.whole import Desk
from clearway.target import BINARY, Target

STABLE, CANARY = "a" * 64, "b" * 64
SCHEMA = InputSchema(features=(NumericFeature(name="x"), NumericFeature(name="y")))
JSON = (b"content-type", b"application/json")
KINDS = {
    "binary": BINARY,
    "multiclass": Target(kind="multiclass", classes=("a", "b", "c")),
    "regression": Target(kind="regression", centre=0.0, spread=1.0),
}


def model(digest: str, target: Target = BINARY) -> Model:
    """Of linear functions of both features; that of a yes is (x + y) / 100."""
    width = {"binary": 2, "multiclass": 3, "regression": 1}[target.kind]
    output = NUMBERS if target.kind == "regression" else OUTPUT
    weights = np.linspace(-0.01, 0.01, width, dtype=np.float32) if width > 1 else np.array([0.01], dtype=np.float32)
    start = np.array([1.0] + [0.0] * (width - 1), dtype=np.float32) if width > 1 else np.zeros(1, dtype=np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["features", "weights", "start"], [output])],
        "linear",
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [None, 2])],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [None, width])],
        [
            onnx.numpy_helper.from_array(np.vstack([weights, weights]), "weights"),
            onnx.numpy_helper.from_array(start, "start"),
        ],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return Model(digest, SCHEMA, 0.5, _session(made.SerializeToString(), Path("linear.onnx")), target=target)


@pytest.mark.parametrize("kind", KINDS)
def test_single_rows_score_as_a_matrix_does_and_no_answer_changes_later(kind: str) -> None:
    scored = model(STABLE, KINDS[kind])
    rows = np.random.default_rng(3).normal(20, 5, (20, 2)).astype(np.float32)
    single, found = SingleRows(scored), []
    for row in rows:
        single.matrix[:] = row
        found.append(single.output())
    np.testing.assert_array_equal(np.concatenate(found), scored.output(rows))
    assert found[0].dtype == np.float64


class Stage:
    """An endpoint of a stable version and, by its weight, a canary."""

    def __init__(self, folder: Path, weight: int) -> None:
        canary = {"canary": CANARY, "canary_weight": weight} if weight else {}
        routing = RoutingTable(environment="e", revision=1, ledger_hash="h", salt="s", stable=STABLE, **canary)
        digests = [STABLE, CANARY] if weight else [STABLE]
        self.active: Active | None = Active(routing, {digest: Version(digest, model(digest)) for digest in digests})
        self.error: str | None = None
        self.folder = folder
        self.log = PredictionLog(folder)
        settings = ServingParams(max_body_bytes=100_000)
        self.answerer = Answerer(settings, self.log)
        follower: Any = self
        self.endpoint = Endpoint(settings, "e", follower, self.log, self.answerer, Desk.alone(), "m")

    def ask(self, body: Any, *headers: tuple[bytes, bytes]) -> tuple[int, Any] | None:
        """Status and content of the answer at once; None without one."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        reply = self.endpoint.predict_at_once([JSON, *headers], content)
        if not isinstance(reply, Reply):
            return None
        head, _, said = reply.as_http([(b"date", b"today")]).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert b"date: today" in lines
        assert b"content-length: %d" % len(said) in lines
        return int(lines[0].split()[1]), orjson.loads(said)

    def ask_later(self, body: Any, *headers: tuple[bytes, bytes]) -> tuple[int, dict[str, str], Any]:
        """Status, headers and content of an answer that had to wait."""
        asked, sent = [JSON, *headers], []
        later = self.endpoint.predict_at_once(asked, orjson.dumps(body))
        assert later is not None
        assert not isinstance(later, Reply)

        async def receive() -> Any:
            raise AssertionError("the request is read twice")

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(later({"type": "http", "path": "/predict", "headers": asked}, receive, send))
        start, content = sent
        told = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], told, orjson.loads(content["body"])

    def logged(self) -> int:
        self.log.close()
        return len(read_log(self.folder)) if any(self.folder.glob("*.jsonl")) else 0


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Any]:
    made: list[Stage] = []

    def make(weight: int = 0) -> Stage:
        made.append(Stage(tmp_path / str(len(made)), weight))
        return made[-1]

    yield make
    for stage in made:
        stage.log.close()
        stage.endpoint.close()


def test_a_row_of_the_stable_version_is_answered_counted_and_logged_at_once(stages: Any) -> None:
    stage = stages()
    status, said = stage.ask({"x": 30, "y": 40.0, "id": "one"})
    assert (status, said["id"], said["version"], said["role"], said["label"]) == (200, "one", STABLE, "stable", 1)
    assert said["score"] == pytest.approx(0.7)
    assert dict(stage.answerer.traffic.statuses) == {200: 1}
    assert stage.logged() == 1


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b"{", ()),
        (400, {"x": 1, "y": 2}, ((b"x-request-id", b"not printable\x07"),)),
        (413, {"x": 1, "y": 2}, ((b"content-length", b"100001"),)),
        (415, {"x": 1, "y": 2}, ((b"content-type", b"text/html"),)),
        (422, {"x": 1}, ()),
        (422, [1], ()),
        (422, {"x": 1, "y": 2}, ((b"x-clearway-version", CANARY.encode()),)),
    ],
)
def test_what_is_refused_is_refused_at_once(stages: Any, status: int, body: Any, headers: Any) -> None:
    stage = stages()
    found = stage.ask(body, *headers)
    assert found is not None
    assert found[0] == status
    assert "error" in found[1]
    assert dict(stage.answerer.traffic.statuses) == {status: 1}
    assert stage.logged() == 0


def test_nothing_deployed_and_a_fault_are_answers_too(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stages()
    active, stage.active, stage.error = stage.active, None, "nothing was deployed"
    assert stage.ask({"x": 1, "y": 2}) == (503, {"error": "nothing was deployed"})
    stage.active = active
    monkeypatch.setattr(stage.answerer, "answer_at_once", lambda *_: 1 / 0)
    assert stage.ask({"x": 1, "y": 2}) == (500, {"error": "the server failed: ZeroDivisionError"})


def test_of_what_is_not_answered_at_once_nothing_stays_but_its_id_and_where_it_goes(stages: Any) -> None:
    stage = stages(weight=100)  # a canary that nobody knows yet is scored in its thread
    headers = [JSON]
    assert not isinstance(stage.endpoint.predict_at_once(headers, orjson.dumps({"x": 1, "y": 2})), Reply)
    ((name, identity),) = headers[1:]
    assert (name, len(identity)) == (b"x-request-id", 32)
    assert not stage.answerer.traffic.statuses
    assert stage.answerer.without_key == 1
    assert stage.logged() == 0


def test_many_rows_are_not_answered_at_once(stages: Any) -> None:
    stage = stages()
    assert stage.ask({"rows": [{"x": 1, "y": 2}]}) is None
    assert stage.endpoint.predict_at_once([JSON], b" " * MOST_AT_ONCE + b'{"x": 1, "y": 2}') is None
    assert not stage.answerer.traffic.statuses


def test_what_has_to_wait_is_answered_from_what_was_read_already(stages: Any) -> None:
    stage = stages(weight=100)
    row = {"x": 30, "y": 40, "id": "one"}
    status, told, said = stage.ask_later(row, (b"x-request-id", b"mine"))
    assert (status, told["x-request-id"], told["x-clearway-version"]) == (200, "mine", CANARY)
    assert (said["id"], said["role"]) == ("one", "canary")
    status, _, said = stage.ask_later({"rows": [row, {"x": 1, "y": 2}]}, (b"x-request-id", b"mine"))
    assert (status, [one["id"] for one in said["predictions"]]) == (200, ["one", "mine/1"])
    status, _, said = stage.ask_later({"rows": [row, {"x": 1}]})
    assert status == 422
    assert said["error"].startswith("rows[1]")
    assert dict(stage.answerer.traffic.statuses) == {200: 2, 422: 1}
    assert stage.logged() == 3


def test_a_canary_that_is_quick_joins_the_loop_and_one_that_slows_down_leaves_it(stages: Any) -> None:
    stage = stages(weight=100)
    assert stage.active is not None
    row = {"x": 30, "y": 40, "entity": "e"}
    for _ in range(QUICK_TIMES):
        stage.active.chosen(CANARY)[1].pace.add(QUICK_SECONDS / 2, 1)
    status, said = stage.ask(row)
    assert (status, said["role"], said["version"]) == (200, "canary", CANARY)
    stage.active.chosen(CANARY)[1].pace.add(QUICK_SECONDS * 2, 1)
    assert stage.ask(row) is None
    answer, digest = asyncio.run(stage.answerer.answer_one(row, None, stage.active, perf_counter(), "i"))
    assert (digest, answer["score"]) == (CANARY, said["score"])


def test_a_refused_row_does_not_reach_the_next_one(stages: Any) -> None:
    """Both are encoded into the same memory."""
    stage = stages()
    assert stage.active is not None
    with pytest.raises(RequestError):
        stage.answerer.answer_at_once({"x": 90.0, "y": "?"}, None, stage.active, 0.0, "i")
    _, said = stage.ask({"x": 10, "y": 20})
    assert said["score"] == pytest.approx(0.3)
