"""A real server process with real bundles: what it answers, what it refuses, and what it survives."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from live_server import REPOSITORY, Server, deploy, keep, running, start, until
from onnx import TensorProto, helper, numpy_helper

from clearway.bundle import pack, payload_digest
from clearway.columns import LABEL
from clearway.encoding import InputSchema, NumericFeature
from clearway.files import write_json
from clearway.model import INPUT, OUTPUT, load_estimator
from clearway.params import load_params
from clearway.prediction_log import read_log
from clearway.routing import read_routing, write_routing
from clearway.training import train
from clearway.workspace import Workspace

PARAMS: dict[str, Any] = {
    "project": {"name": "apples"},
    "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
    "data": {"table": "apples", "label": "ripe"},
    "train": {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "arguments": {"max_iter": 5, "min_samples_leaf": 5},
    },
    "environments": {"staging": {"port": 0}},
    "serving": {"max_rows": 50, "max_body_bytes": 65536},
}
ROW: dict[str, Any] = {"weight": 180.5, "sugar": 11, "colour": "red"}


@dataclass
class Bundles:
    """Two trained bundles, one whose model fails on request, and one whose model takes its time on request."""

    folder: Path
    first: str
    second: str
    fragile: str
    slow: str


def write_project(root: Path, log: dict[str, Any] | None = None) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    params = PARAMS if log is None else {**PARAMS, "serving": {**PARAMS["serving"], "log": log}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return Workspace(root)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Trained by the line itself on a synthetic table: the challenger and the simple model."""
    workspace = write_project(tmp_path_factory.mktemp("trained"))
    random = np.random.default_rng(7)
    rows = 400
    frame = pd.DataFrame(
        {
            "weight": random.normal(170, 30, rows).round(1),
            "sugar": random.integers(5, 20, rows).astype("float64"),
            "colour": random.choice(["green", "red", "yellow"], rows),
        }
    )
    frame.loc[::9, "weight"] = np.nan
    frame[LABEL] = ((frame["sugar"] > 11) ^ (random.random(rows) < 0.1)).astype("float64")
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["weight", "sugar"],
        "categorical": ["colour"],
        "declared": {
            "sugar": {"kind": "float", "max": 1e6},
            "weight": {"kind": "float", "nullable": True, "max": 1e6, "severity": "warn"},
        },
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    train(load_params(workspace.params_file), workspace)
    golden = frame.drop(columns=LABEL).head(16)
    digests = []
    for payload in (workspace.model, workspace.baseline):
        schema = InputSchema.model_validate_json((payload / "schema.json").read_bytes())
        scores = load_estimator(payload, payload_digest(payload)).predict_proba(schema.encode(golden))[:, 1]
        digests.append(keep(payload, json.loads(golden.to_json(orient="records")), scores.tolist(), workspace))
    fragile = workspace.build / "fragile"
    write_fragile_payload(fragile, like=workspace.model)
    rows_it_knows = [{"weight": 0.0}, {"weight": 1.0}]
    slow = workspace.build / "slow"
    write_slow_payload(slow, like=workspace.model)
    return Bundles(
        workspace.bundles,
        *digests,
        keep(fragile, rows_it_knows, [0.25, 0.75], workspace),
        keep(slow, rows_it_knows, [0.25, 0.25], workspace),
    )


def write_fragile_payload(folder: Path, like: Path) -> None:
    """A model that looks its score up in a table of two rows: any other weight is a runtime error."""
    shutil.copytree(like, folder)
    table = numpy_helper.from_array(np.array([[0.75, 0.25], [0.25, 0.75]], dtype=np.float32), "table")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [INPUT], ["integers"], to=TensorProto.INT64),
            helper.make_node("Squeeze", ["integers", "axis"], ["positions"]),
            helper.make_node("Gather", ["table", "positions"], [OUTPUT]),
        ],
        "fragile",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [table, numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")],
    )
    save_network(folder, graph)


def write_slow_payload(folder: Path, like: Path) -> None:
    """A model that answers 0.25 after as many turns of a loop as the weight says."""
    shutil.copytree(like, folder)
    turn = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Cos", ["before"], ["after"])],
        "turn",
        [
            helper.make_tensor_value_info("turns", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", [INPUT], ["heaviest"], keepdims=0),
            helper.make_node("Cast", ["heaviest"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "on", "zero"], ["end"], body=turn),
            helper.make_node("Mul", ["end", "zero"], ["nothing"]),
            helper.make_node("Mul", [INPUT, "nothings"], ["rows"]),
            helper.make_node("Add", ["rows", "answer"], ["answers"]),
            helper.make_node("Add", ["answers", "nothing"], [OUTPUT]),
        ],
        "slow",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [
            numpy_helper.from_array(np.array(True), "on"),
            numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"),
            numpy_helper.from_array(np.zeros((1, 2), dtype=np.float32), "nothings"),
            numpy_helper.from_array(np.array([[0.75, 0.25]], dtype=np.float32), "answer"),
        ],
    )
    save_network(folder, graph)


def save_network(folder: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    schema = InputSchema(features=(NumericFeature(name="weight"),))
    (folder / "schema.json").write_text(schema.model_dump_json())


@pytest.fixture
def server(tmp_path: Path, bundles: Bundles) -> Iterator[Server]:
    """A server that serves ``bundles.first`` alone."""
    workspace = write_project(tmp_path)
    shutil.copytree(bundles.folder, workspace.bundles)
    deploy(workspace.environment("staging"), bundles.first)
    with running(workspace) as made:
        yield made


def test_golden_rows_get_their_scores_alone_and_together(server: Server, bundles: Bundles) -> None:
    golden = json.loads((server.workspace.bundles / bundles.first / "evidence/golden.json").read_text())
    status, together, headers = server.predict({"rows": golden["rows"]})
    assert status == 200
    assert headers["x-clearway-version"] == bundles.first
    for row, score, beside in zip(golden["rows"], golden["scores"], together["predictions"], strict=True):
        status, alone, headers = server.predict({**row, "id": "q", "entity": "e", "asked_at": "2013-07-01T10:00:00Z"})
        assert status == 200
        assert headers["x-clearway-version"] == alone["version"] == bundles.first
        assert (alone["id"], alone["role"], alone["label"]) == ("q", "stable", int(score >= 0.5))
        assert alone["score"] == pytest.approx(score, abs=1e-5)
        assert beside["score"] == pytest.approx(alone["score"], abs=1e-7)


def test_state_health_and_record_say_what_is_served(server: Server, bundles: Bundles) -> None:
    state = server.state()
    assert state["environment"] == "staging"
    assert (state["revision"], state["stable"], state["canary"], state["canary_weight"], state["error"]) == (
        *(1, bundles.first, None, 0, None),
    )
    record = json.loads((server.folder / "server.json").read_text())
    assert state["pid"] == record["pid"] == server.process.pid
    assert server.ask("GET", "/v2/health/live")[0] == 200


def test_entities_are_split_by_the_table_and_logged(server: Server, bundles: Bundles) -> None:
    table = server.deploy(bundles.first, bundles.second, 25)
    expected = {}
    for number in range(300):
        entity = f"tree-{number}"
        status, answer, _ = server.predict({**ROW, "id": f"row-{number}", "entity": entity})
        assert status == 200
        assert answer["role"] == table.route(entity)
        assert answer["version"] == (table.canary if answer["role"] == "canary" else table.stable)
        expected[f"row-{number}"] = (answer["role"], answer["version"], answer["score"])
    rows = [{**ROW, "entity": f"tree-{number}", "id": f"batch-{number}"} for number in range(40)]
    _, answer, headers = server.predict({"rows": rows})
    assert [one["id"] for one in answer["predictions"]] == [row["id"] for row in rows]
    assert [one["role"] for one in answer["predictions"]] == [table.route(str(row["entity"])) for row in rows]
    assert set(headers["x-clearway-version"].split(",")) == {table.stable, table.canary}
    assert server.stop() == 0
    log = read_log(server.folder / "predictions", revisions=[table.revision]).set_index("id")
    assert len(log) == 340
    for identity, (role, version, score) in expected.items():
        logged = log.loc[identity]
        assert (logged["role"], logged["version"], logged["score"], logged["status"]) == (role, version, score, 200)
        assert logged["features"] == ROW
        assert 0 < logged["latency_ms"] < 1000


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (json.dumps({**ROW, "shape": 1}), "application/json", 422, "shape"),
        (json.dumps({"weight": 1, "sugar": 2}), "application/json", 422, "feature colour is missing"),
        (json.dumps({**ROW, "sugar": "11"}), "application/json", 422, "feature sugar must be a number"),
        (json.dumps({**ROW, "sugar": 2e6}), "application/json", 422, "feature sugar = 2000000 is above 1000000"),
        (json.dumps({"rows": [ROW, {**ROW, "sugar": 2e6}]}), "application/json", 422, "rows[1]: feature sugar = "),
        (json.dumps({**ROW, "weight": float("nan")}), "application/json", 400, "not valid JSON"),
        (json.dumps({"rows": [ROW, {**ROW, "colour": 3}]}), "application/json", 422, "rows[1]: feature colour"),
        (json.dumps({"rows": []}), "application/json", 422, "rows"),
        (json.dumps({"rows": {}}), "application/json", 422, "rows"),
        (json.dumps({"rows": [ROW], "extra": 1}), "application/json", 422, "extra"),
        (json.dumps({"rows": [ROW] * 51}), "application/json", 413, "serving.max_rows = 50"),
        (json.dumps([ROW]), "application/json", 422, "an array"),
        ('{"weight": 1,', "application/json", 400, "not valid JSON"),
        ("", "application/json", 400, "not valid JSON"),
        ("\xff\xfe", "application/json", 400, "not valid JSON"),
        ("[" * 20_000 + "]" * 20_000, "application/json", 400, "not valid JSON"),
        (json.dumps(ROW), "text/plain", 415, "content-type"),
        (json.dumps({**ROW, "note": "x" * 70_000}), "application/json", 413, "serving.max_body_bytes = 65536"),
    ],
)
def test_bad_request_is_refused_by_name_and_leaves_the_server_well(
    bad_requests: Server, body: str, kind: str, status: int, said: str, bundles: Bundles
) -> None:
    found, answer, headers = bad_requests.ask("POST", "/predict", body.encode("latin-1"), content_type=kind)
    assert (found, said in answer["error"]) == (status, True), answer
    assert headers["x-clearway-version"] == bundles.first
    assert bad_requests.predict(ROW)[0] == 200


def test_what_the_schema_only_warns_of_is_answered_and_counted(bad_requests: Server) -> None:
    assert bad_requests.predict({**ROW, "weight": 2e6})[0] == 200
    assert bad_requests.predict({"rows": [ROW, {**ROW, "weight": 3e6}]})[0] == 200
    assert bad_requests.state()["schema_warnings"] == {"weight": 2}


@pytest.fixture(scope="module")
def bad_requests(tmp_path_factory: pytest.TempPathFactory, bundles: Bundles) -> Iterator[Server]:
    """One server for all requests that must not change it."""
    workspace = write_project(tmp_path_factory.mktemp("bad"))
    shutil.copytree(bundles.folder, workspace.bundles)
    deploy(workspace.environment("staging"), bundles.first)
    with running(workspace) as made:
        yield made


def test_body_without_a_length_is_cut_off_at_the_limit(bad_requests: Server) -> None:
    """A chunked body announces no size: the server must stop reading by itself."""

    async def send() -> tuple[int, str]:
        async def chunks() -> Any:
            for _ in range(100):
                yield b" " * 10_000

        url = f"http://127.0.0.1:{bad_requests.port}/predict"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=chunks(), headers={"content-type": "application/json"}) as answer,
        ):
            return answer.status, (await answer.json())["error"]

    status, error = asyncio.run(send())
    assert status == 413
    assert "serving.max_body_bytes" in error


def test_unknown_path_and_method_are_refused_as_json(bad_requests: Server) -> None:
    status, answer, _ = bad_requests.ask("GET", "/nowhere")
    assert (status, "/nowhere" in answer["error"]) == (404, True)
    status, answer, _ = bad_requests.ask("GET", "/predict")
    assert (status, "/predict" in answer["error"]) == (405, True)


def test_tester_chooses_the_version_and_is_no_sample(server: Server, bundles: Bundles) -> None:
    server.deploy(bundles.first, bundles.second, 10)
    for digest, role in ((bundles.first, "stable"), (bundles.second, "canary")):
        for number in range(20):
            status, answer, _ = server.predict({**ROW, "entity": str(number)}, x_clearway_version=digest)
            assert (status, answer["version"], answer["role"]) == (200, digest, role)
    status, answer, _ = server.predict(ROW, x_clearway_version="f" * 64)
    assert (status, "not loaded" in answer["error"]) == (422, True)
    assert server.stop() == 0
    assert set(read_log(server.folder / "predictions")["role"]) == {"tester"}


def test_swaps_under_load_fail_no_request_and_unload_the_old_version(server: Server, bundles: Bundles) -> None:
    first, second = bundles.first, bundles.second
    stop, statuses, versions = threading.Event(), [], set()

    def ask_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, answer, _ = server.predict({**ROW, "entity": f"{threading.get_ident()}-{number}"})
            statuses.append(status)
            versions.add(answer["version"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            for weight in (10, 25, 50):
                server.deploy(first, second, weight)
                time.sleep(0.1)
            server.deploy(second)
            server.deploy(first)
            server.deploy(second)
        finally:
            stop.set()
        for worker in asking:
            worker.result()
    assert len(statuses) > 100
    assert set(statuses) == {200}
    assert versions == {first, second}
    assert server.predict(ROW, x_clearway_version=first)[0] == 422


def test_damaged_bundle_is_refused_until_it_is_whole_again(server: Server, bundles: Bundles) -> None:
    first, second = bundles.first, bundles.second
    model = server.workspace.bundles / second / "payload" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    table = server.deploy(first, second, 50, wait=False)
    until(lambda: server.state()["error"] is not None, "error")
    state = server.state()
    assert "model.onnx has changed" in state["error"]
    assert (state["revision"], state["stable"], state["canary"]) == (1, first, None)
    answers = [server.predict({**ROW, "entity": str(number)}) for number in range(50)]
    assert {(status, answer["version"]) for status, answer, _ in answers} == {(200, first)}
    model.write_bytes(whole)
    until(lambda: server.state()["revision"] == table.revision, "recovery")
    assert server.state()["error"] is None


def test_bundle_whose_scores_are_not_its_golden_ones_is_refused(server: Server, bundles: Bundles) -> None:
    second = bundles.second
    folder = server.workspace.bundles / second
    golden = json.loads((folder / "evidence" / "golden.json").read_text())
    golden["scores"][3] += 0.001
    pack(folder / "payload", {"golden.json": json.dumps(golden).encode()}, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    server.deploy(bundles.first, second, 50, wait=False)
    until(lambda: server.state()["error"] is not None, "error")
    assert "fails its warm-up" in server.state()["error"]
    assert server.state()["revision"] == 1


def test_missing_bundle_is_refused(server: Server, bundles: Bundles) -> None:
    shutil.rmtree(server.workspace.bundles / bundles.second)
    server.deploy(bundles.second, wait=False)
    until(lambda: server.state()["error"] is not None, "error")
    assert bundles.second[:12] in server.state()["error"]
    assert server.predict(ROW)[1]["version"] == bundles.first


@pytest.mark.parametrize("change", ["weight", "digest", "hash", "revision", "torn", "old"])
def test_tampered_routing_is_refused(server: Server, change: str, bundles: Bundles) -> None:
    first, second = bundles.first, bundles.second
    before = read_routing(server.folder / "routing.json")
    table = server.deploy(first, second, 10)
    path = server.folder / "routing.json"
    changed = {
        "weight": table.model_copy(update={"canary_weight": 90}),
        "digest": table.model_copy(update={"stable": second, "canary": first}),
        "hash": table.model_copy(update={"ledger_hash": "0" * 64}),
        "revision": table.model_copy(update={"revision": 7}),
        "torn": None,
        "old": before,
    }[change]
    if changed is None:
        path.write_text(path.read_text()[:-30])
    else:
        write_routing(path, changed)
    until(lambda: server.state()["error"] is not None, "error")
    state = server.state()
    assert (state["revision"], state["stable"], state["canary_weight"]) == (table.revision, first, 10)
    assert "routing.json" in state["error"]
    assert server.predict(ROW)[0] == 200
    write_routing(path, table)
    until(lambda: server.state()["error"] is None, "recovery")


def test_failing_model_is_named_and_logged_and_the_other_keeps_answering(server: Server, bundles: Bundles) -> None:
    fragile = bundles.fragile
    table = server.deploy(bundles.first, fragile, 50)
    entities = [f"tree-{number}" for number in range(40)]
    for number, entity in enumerate(entities):
        status, answer, headers = server.predict({**ROW, "entity": entity, "id": f"row-{number}"})
        if table.route(entity) == "stable":
            assert (status, answer["version"]) == (200, bundles.first)
        else:
            assert (status, answer["version"], headers["x-clearway-version"]) == (500, fragile, fragile)
            assert fragile in answer["error"]
    assert server.predict({"rows": [{**ROW, "entity": entity} for entity in entities]})[0] == 500
    assert server.predict({**ROW, "weight": 1}, x_clearway_version=fragile)[1]["score"] == 0.75
    assert server.stop() == 0
    log = read_log(server.folder / "predictions")
    log = log[log["role"] != "tester"]
    assert log.groupby("role")["status"].agg(lambda column: sorted(set(column))).to_dict() == {
        "canary": [500],
        "stable": [200],
    }
    assert len(log) == 80
    assert log.loc[log["role"] == "canary", "score"].isna().all()


def test_slow_canary_keeps_only_its_own_callers_waiting(server: Server, bundles: Bundles) -> None:
    server.deploy(bundles.first, bundles.slow, 50)
    row = {**ROW, "weight": 600_000}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.predict, row, x_clearway_version=bundles.slow)
        time.sleep(0.2)
        answers = [server.predict(row, x_clearway_version=bundles.first)[0] for _ in range(10)]
        assert not waiting.done(), "the canary took its time"
        assert answers == [200] * 10
        assert waiting.result(60)[1]["score"] == 0.25


def test_sigterm_drains_and_the_log_is_complete(server: Server) -> None:
    answered: list[str] = []
    other: list[int] = []

    def ask_on(worker: int) -> None:
        for number in range(100_000):
            identity = f"{worker}-{number}"
            try:
                status, _, _ = server.predict({**ROW, "id": identity})
            except (OSError, http.client.HTTPException):
                return  # it no longer listens
            if status == 200:
                answered.append(identity)
            else:
                other.append(status)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on, worker) for worker in range(4)]
        until(lambda: len(answered) > 200, "traffic")
        assert server.stop() == 0
        for worker in asking:
            worker.result()
    assert other == []
    assert not (server.folder / "server.json").exists()
    log = read_log(server.folder / "predictions")
    assert set(answered) <= set(log["id"])
    assert len(log) - len(answered) <= 4  # answers that were written but whose connection closed first
    assert log.attrs["torn_lines"] == 0


def test_what_a_killed_server_lost_is_counted_and_the_next_one_compacts_the_rest(
    tmp_path: Path, bundles: Bundles
) -> None:
    workspace = write_project(tmp_path, log={"compact_minutes": 0.02})
    shutil.copytree(bundles.folder, workspace.bundles)
    answered: list[str] = []

    def ask_on(server: Server, worker: int) -> None:
        for number in range(100_000):
            try:
                status, _, _ = server.predict({**ROW, "id": f"{worker}-{number}"})
            except (OSError, http.client.HTTPException):
                return  # it is dead
            assert status == 200
            answered.append(f"{worker}-{number}")

    with running(workspace) as server, ThreadPoolExecutor(4) as pool:
        server.deploy(bundles.first)
        until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200, "ready")
        asking = [pool.submit(ask_on, server, worker) for worker in range(4)]
        until(lambda: len(answered) > 300, "traffic")
        (killed,) = (worker["pid"] for worker in server.state()["workers"])
        folder = server.folder / "predictions"

        def stopped_with_records_in_memory() -> bool:
            os.kill(killed, signal.SIGSTOP)
            if set(answered) - set(read_log(folder, columns=["id"])["id"]):
                return True
            os.kill(killed, signal.SIGCONT)  # just after it wrote them
            return False

        until(stopped_with_records_in_memory, "records that are not on disk yet")
        os.kill(killed, signal.SIGKILL)
        server.process.kill()
        for worker in asking:
            worker.result()
    logged = read_log(folder, columns=["id"])
    (loss,) = logged.attrs["losses"]
    missing = len(set(answered) - set(logged["id"]))
    assert loss.pid == killed
    # of each connection one more may have been counted, and answered to nobody
    assert 0 < missing <= loss.lost <= missing + 4
    with running(workspace) as server:
        until(lambda: any((folder / "parquet").rglob("part-*.parquet")), "compaction", seconds=60)
        assert server.predict({**ROW, "id": "after"})[0] == 200
        until(lambda: "after" in set(read_log(folder, columns=["id"])["id"]), "log")
    again = read_log(folder, columns=["id"])
    assert sorted(again["id"]) == sorted([*logged["id"], "after"])
    assert again.attrs["losses"][0] == loss


def test_a_server_that_should_hash_and_has_no_key_does_not_start(tmp_path: Path) -> None:
    workspace = write_project(tmp_path, log={"hash": ["entity"]})
    process = start(workspace, "staging", tmp_path / "server.log")
    assert process.wait(30) == 2
    assert "serving.log.hash = ['entity'], but $CLEARWAY_LOG_KEY has 0 bytes" in (tmp_path / "server.log").read_text()


def test_server_waits_for_the_first_deployment(tmp_path: Path, bundles: Bundles) -> None:
    workspace = write_project(tmp_path)
    shutil.copytree(bundles.folder, workspace.bundles)
    with running(workspace) as server:
        assert server.ask("GET", "/v2/health/live")[0] == 200
        assert server.ask("GET", "/v2/health/ready")[0] == 503
        until(lambda: "nothing was deployed" in (server.state()["error"] or ""), "error")
        status, answer, _ = server.predict(ROW)
        assert (status, "nothing was deployed" in answer["error"]) == (503, True)
        server.deploy(bundles.first)
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert server.predict(ROW)[0] == 200


def test_port_in_use_is_one_line_that_names_port_and_key(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "environments": {"staging": {"port": port}}}))
        done = serve_once(tmp_path, "staging")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} is in use (environments.staging.port" in done.stderr


def test_unknown_environment_and_host_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({**PARAMS, "environments": {"staging": {"port": 0, "host": "203.0.113.7"}}})
    )
    for environment, said in (("moon", "'moon'"), ("staging", "environments.staging.host")):
        done = serve_once(tmp_path, environment)
        assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr


def serve_once(root: Path, environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/serve.py", "--env", environment, "--project", str(root)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, env={**os.environ})
