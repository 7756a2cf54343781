"""Rows by key whose features the event loop reads itself: when it does, and that nothing else differs."""

from __future__ import annotations

from orchard_store import AT, QUESTION, Orchard, filled  # first: it makes importing Feast quick

# isort: split
import asyncio
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import current_thread
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import pytest

from clearway import pace
from clearway.encoding import InputSchema, NumericFeature
from clearway.feature_store.batching import FEW_KEYS
from clearway.feature_store.online import FeatureReader, Lookup
from clearway.model import OUTPUT, Model, _session
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog, read_log
from clearway.routing import RoutingTable
from clearway.serving.answering import Answerer, LookupFailed, Question
from clearway.serving.loading import Version
from clearway.serving.state import Active

NAMES = ("acidity", "rain", "age_hours")


@pytest.fixture
def orchard(tmp_path: Path) -> Orchard:
    return filled(tmp_path)


def make_quick(reader: FeatureReader) -> None:
    """As after quick answers; the machine of a test may be too busy for them."""
    for _ in range(pace.QUICK_TIMES):
        reader.store._pace.add(0.0)


def ask(reader: FeatureReader) -> Lookup:
    return asyncio.run(reader.read([QUESTION], [AT]))[0]


def test_quick_store_is_read_on_the_loop_from_then_on(orchard: Orchard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "QUICK_SECONDS", 10.0)
    with orchard.reader(NAMES) as reader:
        for _ in range(pace.QUICK_TIMES):
            assert reader.read_at_once([QUESTION], [AT]) is None
            waited = ask(reader)
        assert current_thread() not in orchard.readers
        assert reader.read_at_once([QUESTION], [AT]) == [waited]
        assert ask(reader) == waited
        assert orchard.readers[-4:] == [current_thread()] * 4, "two views each"
        assert sum(reader.store.latency.counts) == pace.QUICK_TIMES + 2


def test_one_slow_answer_sends_the_next_questions_to_the_thread(orchard: Orchard) -> None:
    with orchard.reader(NAMES) as reader:
        make_quick(reader)
        inner = orchard._read

        def slow(*given: Any) -> Any:
            time.sleep(2 * pace.QUICK_SECONDS)
            return inner(*given)

        orchard._read = slow
        assert reader.read_at_once([QUESTION], [AT]) is not None
        assert reader.read_at_once([QUESTION], [AT]) is None
        ask(reader)
        assert orchard.readers[-1] is not current_thread()


def test_what_fails_on_the_loop_is_asked_of_the_thread_and_said_by_it(orchard: Orchard) -> None:
    with orchard.reader(NAMES) as reader:
        make_quick(reader)
        inner, here = orchard._read, current_thread()

        def locked(*given: Any) -> Any:
            if current_thread() is here:
                raise sqlite3.OperationalError("database is locked")
            return inner(*given)

        orchard._read = locked
        assert ask(reader).features["acidity"] == 6.5
        assert reader.store.health.up
        assert reader.store.failures == 0
        assert reader.read_at_once([QUESTION], [AT]) is None, "it is not tried again at once"


def test_the_loop_waits_for_no_lock(orchard: Orchard) -> None:
    with orchard.reader(NAMES) as reader:
        make_quick(reader)

        def patience() -> tuple[int]:
            assert reader.read_at_once([QUESTION], [AT]) is not None
            waits: tuple[int] = orchard.provider.online_store._local.held[1].execute("PRAGMA busy_timeout").fetchone()
            return waits

        with ThreadPoolExecutor(1) as loop:  # this thread has written, and waited
            assert loop.submit(patience).result() == (0,)


def test_a_store_that_is_down_many_keys_and_other_stores_are_not_read_on_the_loop(
    orchard: Orchard, tmp_path: Path
) -> None:
    with orchard.reader(NAMES) as reader:
        make_quick(reader)
        many = [QUESTION | {"orchard": str(number)} for number in range(FEW_KEYS)]
        assert reader.read_at_once(many, [AT] * len(many)) is None, "and one of the weather"
        assert reader.read_at_once(many[1:], [AT] * (len(many) - 1)) is not None
        reader.store._mark_down("gone")
        assert reader.read_at_once([QUESTION], [AT]) is None
    other = Orchard(tmp_path / "other", {"type": "sqlite", "path": str(tmp_path / "other.db")})
    with other.reader(NAMES) as reader:
        make_quick(reader)
        assert reader.read_at_once([QUESTION], [AT]) is None


def test_the_cache_answers_at_once_whatever_the_store_does(orchard: Orchard) -> None:
    with orchard.reader(NAMES, max_staleness_ms=60_000) as reader:
        waited = ask(reader)
        reader.store._mark_down("gone")
        assert reader.read_at_once([QUESTION], [AT]) == [waited]
        assert reader.cache_hits == 2
        assert reader.read_at_once([QUESTION | {"orchard": "west"}], [AT]) is None
        assert reader.cache_hits == 2, "its other view is in memory, but it was not answered"


class Stage:
    """An answerer of one version, which reads its features by key."""

    def __init__(self, reader: FeatureReader, folder: Path) -> None:
        weights = np.array([[0.0, 0.1]] * len(NAMES), dtype=np.float32)
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node("IsNaN", ["features"], ["lost"]),
                onnx.helper.make_node("Where", ["lost", "nothing", "features"], ["known"]),
                onnx.helper.make_node("MatMul", ["known", "weights"], [OUTPUT]),
            ],
            "linear",
            [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [None, len(NAMES)])],
            [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [None, 2])],
            [
                onnx.numpy_helper.from_array(weights, "weights"),
                onnx.numpy_helper.from_array(np.zeros(1, dtype=np.float32), "nothing"),
            ],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        schema = InputSchema(features=tuple(NumericFeature(name=name) for name in NAMES))
        digest = "a" * 64
        version = Version(digest, Model(digest, schema, 0.5, _session(made.SerializeToString(), Path("linear.onnx"))))
        routing = RoutingTable(environment="e", revision=1, ledger_hash="h", salt="s", stable=digest)
        self.active = Active(routing, {digest: version}, {digest: reader})
        self.folder, self.log = folder, PredictionLog(folder)
        self.answerer = Answerer(ServingParams(), self.log)

    def at_once(self, row: dict[str, Any]) -> dict[str, Any] | Question:
        answered = self.answerer.answer_at_once(dict(row), None, self.active, perf_counter(), row["id"])
        return answered if isinstance(answered, Question) else answered[0]

    def later(self, row: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(self.answerer.answer_one(dict(row), None, self.active, perf_counter(), row["id"]))[0]

    def logged(self) -> dict[str, dict[str, Any]]:
        """What the log says of each row, without what differs by nature."""
        self.log.close()
        if not any(self.folder.glob("*.jsonl")):
            return {}
        records = read_log(self.folder).drop(columns=["served_at", "latency_ms"]).set_index("id")
        return {str(name): record for name, record in records.to_dict("index").items()}


@pytest.fixture
def stage(orchard: Orchard, tmp_path: Path) -> Iterator[Stage]:
    with orchard.reader(NAMES) as reader:
        made = Stage(reader, tmp_path / "log")
        yield made
        made.answerer.close()
        made.log.close()


ROW = QUESTION | {"asked_at": "2024-06-01T12:00:00Z"}


def test_row_answered_at_once_is_answered_and_logged_as_one_that_waited(stage: Stage) -> None:
    rows = {"known": ROW, "unknown": ROW | {"station": "nowhere"}}
    waited = {name: stage.later(row | {"id": f"{name} later"}) for name, row in rows.items()}
    make_quick(stage.active.readers["a" * 64])
    for name, row in rows.items():
        answer = stage.at_once(row | {"id": f"{name} at once"})
        assert answer == waited[name] | {"id": f"{name} at once"}
    assert "features" not in waited["known"] or not waited["known"]["features"]
    assert waited["unknown"]["features"] == {"weather": "missing"}
    logged = stage.logged()
    assert len(logged) == 4
    for name in rows:
        np.testing.assert_equal(logged[f"{name} at once"], logged[f"{name} later"])


def test_row_that_has_to_wait_is_answered_from_where_it_stopped(stage: Stage) -> None:
    question = stage.at_once(ROW | {"id": "i"})
    assert isinstance(question, Question)
    assert not list(stage.folder.glob("*.jsonl"))
    answer, _ = asyncio.run(stage.answerer.answer_question(question, stage.active, perf_counter(), tester=False))
    assert answer == stage.later(ROW | {"id": "j"}) | {"id": "i"}
    assert stage.answerer.without_key == 2, "each is counted once"
    assert stage.logged()["i"]["status"] == 200


def test_function_that_fails_at_once_is_told_and_logged(stage: Stage) -> None:
    make_quick(stage.active.readers["a" * 64])
    with pytest.raises(LookupFailed, match="on-demand view growth failed: ZeroDivisionError") as caught:
        stage.at_once(ROW | {"variety": "bitter", "id": "i"})
    assert caught.value.status == 500
    assert stage.logged()["i"]["status"] == 500
