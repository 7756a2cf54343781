"""A real server that reads features by key, from SQLite and from a real Redis: what it answers, and without a store."""

import http.client
import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import psutil
import pytest
from live_server import REPOSITORY, Server, deploy, running, until
from prometheus_client.parser import text_string_to_metric_families
from redis_server import RedisServer, redis_server
from slow_proxy import slow_proxy
from stored_project import (
    ASKED_AT,
    BY_KEY,
    ROW,
    SOIL,
    embedded,
    fill,
    import_package,
    redis,
    score,
    with_path,
    write_bundle,
    write_flat_bundle,
    write_package,
    write_project,
)

from clearway import local_target
from clearway.local_target import ServerRefusedError, describe_server, ensure_serving, find_server, stop
from clearway.params import load_params
from clearway.prediction_log import read_log
from clearway.serving.shadow_process import load_shadow
from clearway.workspace import Workspace


@dataclass
class Orchards:
    """The project's package, and its bundles: of these definitions, of others, and of a flat table."""

    package: ModuleType
    bundles: Path
    stored: str
    other: str
    flat: str


@pytest.fixture(scope="module")
def orchards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchards]:
    folder = tmp_path_factory.mktemp("orchards")
    write_package(folder)
    package = import_package(folder)
    workspace = Workspace(folder)
    changed = {"ttl_seconds": 60.0, "sha256": "0" * 64}
    made = Orchards(
        package,
        workspace.bundles,
        write_bundle(workspace, package),
        write_bundle(workspace, package, acidity=changed, wetness=changed),
        write_flat_bundle(workspace),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", with_path(folder))
        yield made


def copy_bundles(orchards: Orchards, workspace: Workspace) -> None:
    shutil.copytree(orchards.bundles, workspace.bundles)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, orchards: Orchards) -> Iterator[Server]:
    """Reads from SQLite; what it serves is not changed."""
    workspace = write_project(tmp_path_factory.mktemp("embedded"), embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    deploy(workspace.environment("staging"), orchards.stored)
    with running(workspace) as made:
        yield made


def logged(server: Server, prefix: str) -> pd.DataFrame:
    """The records whose ids begin so, once there are some."""

    def found() -> pd.DataFrame:
        log = read_log(server.folder / "predictions")
        return log[log["id"].str.startswith(prefix)]

    until(lambda: len(found()) > 0, "log")
    return found()


def metrics(server: Server) -> dict[tuple[str, ...], float]:
    """Values by name of the sample and its labels' values, sorted."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_row_by_key_is_answered_as_the_row_of_its_features(server: Server) -> None:
    status, full, _ = server.predict({**ROW, "entity": "tree"})
    assert (status, "features" in full) == (200, False)
    status, answer, _ = server.predict({**BY_KEY, "entity": "tree"})
    assert (status, answer["score"], answer["features"]) == (200, full["score"], {})
    assert answer["score"] == pytest.approx(score(ROW))


def test_rows_mix_both_kinds_and_missing_entities_are_null_and_named(server: Server) -> None:
    rows = [ROW, BY_KEY, {**BY_KEY, "station": "nowhere"}, {**BY_KEY, "station": None}, {**ROW, "rain": None}]
    status, answer, _ = server.predict({"rows": rows})
    assert status == 200, answer
    scores = [each["score"] for each in answer["predictions"]]
    assert (scores[0], scores[2], scores[3]) == (scores[1], scores[4], scores[4])
    outcomes = [each.get("features") for each in answer["predictions"]]
    assert outcomes == [None, {}, {"weather": "missing"}, {"weather": "missing"}, None]


def test_log_holds_what_was_sent_what_the_model_saw_and_when_it_was_asked(orchards: Orchards, tmp_path: Path) -> None:
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    deploy(workspace.environment("staging"), orchards.stored)
    with running(workspace) as server:
        assert server.predict({**BY_KEY, "id": "keyed"})[0] == 200
        assert server.predict({**ROW, "id": "full"})[0] == 200
        without_time = {name: value for name, value in BY_KEY.items() if name != "asked_at"}
        status, answer, _ = server.predict({**without_time, "planted": None, "id": "now"})
        assert (status, "acidity may not be null" in answer["error"]) == (422, True), "its soil is of 2024"
        assert (
            server.predict({**BY_KEY, "planted": None, "id": "unplanted", "asked_at": "2024-06-01T14:00:00+02:00"})[0]
            == 200
        )
        assert server.stop() == 0
    log = read_log(server.folder / "predictions").set_index("id")
    inputs = {name: BY_KEY[name] for name in ("orchard", "station", "variety", "planted")}
    assert log.loc["keyed", "inputs"] == inputs
    assert log.loc["keyed", "features"] == ROW
    assert log.loc["full", "inputs"] is None
    assert log.loc["full", "features"] == ROW
    assert log.loc["unplanted", "features"] == ROW | {"age_hours": None}
    assert log.loc["unplanted", "asked_at"] == datetime.fromisoformat(BY_KEY["asked_at"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"orchard": 7}, "join key orchard must be a string or null, not a number: 7"),
        ({"orchard": "x" * 300}, "join key orchard must have at most 256"),
        ({"planted": "yesterday"}, "request field planted must be a number or null, not a string: 'yesterday'"),
        ({"planted": True}, "request field planted must be a number or null, not a boolean: True"),
        ({"variety": 1}, "request field variety must be a string or null"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"prediction_time": 1.0}, "unknown field 'prediction_time'"),
        ({"station": ...}, "join key station is missing"),
        ({"planted": ...}, "request field planted is missing"),
        (
            {"rain": 3.0, "acidity": 6.5},
            "leave out acidity, rain (the feature store has them), or leave out orchard, planted, station and add "
            "age_hours, wetness",
        ),
        ({"asked_at": "noon"}, "asked_at must be an ISO 8601 time"),
    ],
)
def test_wrong_row_by_key_is_refused_naming_the_field(server: Server, change: dict[str, Any], said: str) -> None:
    row = {name: value for name, value in {**BY_KEY, **change}.items() if value is not ...}
    status, answer, _ = server.predict(row)
    assert (status, said in answer["error"]) == (422, True), answer
    status, answer, _ = server.predict({"rows": [BY_KEY, row]})
    assert (status, answer["error"].startswith("rows[1]: "), said in answer["error"]) == (422, True, True), answer


def test_value_that_the_model_cannot_do_without_is_refused_with_view_and_outcome(server: Server) -> None:
    for change, outcome in (({"orchard": "nowhere"}, "missing"), ({"asked_at": "2024-06-02T12:00:00Z"}, "stale")):
        status, answer, _ = server.predict({**BY_KEY, **change})
        assert status == 422
        assert answer["error"] == f"feature acidity may not be null: view soil had null for it (outcome: {outcome})"
    status, answer, _ = server.predict({**BY_KEY, "planted": BY_KEY["planted"] - 1e6})
    assert (status, "age_hours" in answer["error"], "view growth" in answer["error"]) == (422, True, True), answer


def test_function_that_fails_is_named_and_logged(server: Server) -> None:
    status, answer, _ = server.predict({**BY_KEY, "planted": BY_KEY["planted"] + 1e6})
    assert status == 500
    assert answer["error"] == "on-demand view growth failed: ValueError: planted in the future"


def test_metrics_count_lookups_nulls_ages_and_requests(server: Server) -> None:
    before = metrics(server)
    for row in (BY_KEY, {**BY_KEY, "station": "nowhere"}, {**BY_KEY, "orchard": "nowhere"}, ROW):
        server.predict(row)
    after = metrics(server)

    def rise(*sample: str) -> float:
        return after.get(sample, 0) - before.get(sample, 0)

    assert rise("clearway_feature_lookups_total", "present", "soil") == 2
    assert rise("clearway_feature_lookups_total", "missing", "soil") == 1
    assert rise("clearway_feature_lookups_total", "missing", "weather") == 1
    assert (rise("clearway_feature_fields_total", "soil"), rise("clearway_feature_null_fields_total", "soil")) == (6, 2)
    assert rise("clearway_feature_age_seconds_count", "soil") == 2
    assert rise("clearway_feature_age_seconds_sum", "soil") == 120
    assert rise("clearway_feature_age_seconds_bucket", "10.0", "soil") == 0
    assert rise("clearway_feature_age_seconds_bucket", "60.0", "soil") == 2
    assert (rise("clearway_requests_total", "200"), rise("clearway_requests_total", "422")) == (3, 1)
    assert rise("clearway_request_seconds_count") == 4
    assert rise("clearway_feature_store_seconds_count") == 3
    assert (after["clearway_feature_store_up",], after["clearway_feature_store_failures_total",]) == (1, 0)
    described = server.state()["features"]
    assert (described["status"], described["last_error"]) == ("up", None)
    assert described["outcomes"]["soil"]["present"] == after["clearway_feature_lookups_total", "present", "soil"]


def test_canary_that_cannot_find_its_features_fails_its_own_callers_only(orchards: Orchards, tmp_path: Path) -> None:
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    modest = write_bundle(workspace, orchards.package, ("acidity", "wetness", "variety"))
    fill(workspace, orchards.package)
    with sqlite3.connect(tmp_path / "var" / "feature_store" / "online.db") as store:
        store.execute("DROP TABLE orchards_weather")  # as if it was never filled
    deploy(workspace.environment("staging"), modest)
    with running(workspace) as server:
        server.deploy(modest, orchards.stored, 50)
        until(lambda: server.state()["features"]["status"] == "degraded", "degraded")
        for number in range(40):
            status, answer, headers = server.predict({**BY_KEY, "entity": str(number)})
            if headers["x-clearway-version"] == modest and status == 200:
                assert answer["score"] == pytest.approx(score({**SOIL, "variety": "gala"}))
            else:
                assert (status, "no table" in answer["error"]) == (503, True)
        batch = [{**BY_KEY, "entity": str(number), "id": f"batch-{number}"} for number in range(40)]
        assert server.predict({"rows": batch})[0] == 503
        log = logged(server, "batch-")
        assert set(log["version"]) == {orchards.stored}, "rows of the stable version did not fail"
        assert set(log["status"]) == {503}
        assert server.predict(BY_KEY, x_clearway_version=modest)[0] == 200
        assert server.predict(BY_KEY, x_clearway_version=orchards.stored)[0] == 503
        assert server.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True, "features": "degraded"})
        fill(workspace, orchards.package)
        until(lambda: server.state()["features"]["status"] == "up", "up")
        future = {**BY_KEY, "planted": ASKED_AT.timestamp() + 1}  # the canary's function does not like it
        assert server.predict(future, x_clearway_version=modest)[0] == 200
        status, answer, _ = server.predict(future, x_clearway_version=orchards.stored)
        assert (status, "on-demand view growth failed" in answer["error"]) == (500, True)


def test_shadow_takes_what_was_looked_up_for_the_answer_and_reads_only_what_that_did_not_need(
    orchards: Orchards, tmp_path: Path
) -> None:
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    modest = write_bundle(workspace, orchards.package, ("acidity", "wetness", "variety"))
    params = load_params(workspace.params_file)
    inputs = {name: value for name, value in BY_KEY.items() if name != "asked_at"}
    about = {"id": "q", "revision": 1, "entity": None, "asked_at": BY_KEY["asked_at"], "served_at": BY_KEY["asked_at"]}
    beside_itself = load_shadow(params, workspace, "staging", orchards.stored, orchards.stored)
    answer = beside_itself.answer({**about, "row": ROW, "inputs": inputs})  # there is no store yet
    assert (answer["status"], answer["score"]) == (200, pytest.approx(score(ROW)))
    fill(workspace, orchards.package)
    beside_modest = load_shadow(params, workspace, "staging", orchards.stored, modest)
    row = {**SOIL, "variety": "gala"}
    answer = beside_modest.answer({**about, "row": row, "inputs": inputs})
    assert (answer["status"], answer["role"], answer["score"]) == (200, "shadow", pytest.approx(score(ROW)))
    assert beside_modest.answer({**about, "row": row, "inputs": None})["status"] == 422  # a caller's own, without rain


def test_row_whose_looked_up_features_the_model_refuses_is_logged_with_them(orchards: Orchards, tmp_path: Path) -> None:
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    deploy(workspace.environment("staging"), orchards.stored)
    with running(workspace) as server:
        nowhere = {**BY_KEY, "orchard": "nowhere", "id": "one", "asked_at": "2024-06-01T14:00:00+02:00"}
        assert server.predict(nowhere)[0] == 422
        assert server.predict({"rows": [{**BY_KEY, "id": "fine"}, {**nowhere, "id": "two"}]})[0] == 422
        assert server.predict({**ROW, "acidity": None, "id": "sent"})[0] == 422, "that is the caller's own"
        assert server.stop() == 0
    log = read_log(server.folder / "predictions").set_index("id")
    assert set(log.index) == {"one", "two"}
    assert set(log["status"]) == {422}
    assert log["score"].isna().all()
    for found in log.itertuples():
        assert found.features == {**ROW, "acidity": None, "wetness": None}
        assert found.inputs["orchard"] == "nowhere"
        assert found.asked_at == ASKED_AT


def test_bundle_of_other_definitions_is_refused_and_the_old_one_goes_on(orchards: Orchards, tmp_path: Path) -> None:
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    deploy(workspace.environment("staging"), orchards.stored)
    with running(workspace) as server:
        server.deploy(orchards.other, wait=False)
        until(lambda: server.state()["error"] is not None, "error")
        error = server.state()["error"]
        assert f"bundle {orchards.other[:12]} was trained from other feature definitions" in error
        assert "acidity: ttl 21600 s, the bundle has 60 s; wetness: ttl 21600 s, the bundle has 60 s" in error
        assert server.predict(BY_KEY)[1]["version"] == orchards.stored
        server.deploy(orchards.flat, orchards.stored, 50)
        assert server.predict(BY_KEY, x_clearway_version=orchards.stored)[0] == 200
        status, answer, _ = server.predict(BY_KEY, x_clearway_version=orchards.flat)
        assert (status, "was not trained from the feature store" in answer["error"]) == (422, True)
        assert server.predict(ROW, x_clearway_version=orchards.flat)[0] == 200
        server.deploy(orchards.flat)
        status, answer, _ = server.predict(BY_KEY)
        assert (status, server.state()["features"]) == (422, None)


def import_changed(folder: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The project as it was another day, when soil was known for an hour only, under a name of its own."""
    write_package(folder)
    source = folder / "orchards" / "__init__.py"
    source.write_text(source.read_text().replace("ttl=timedelta(hours=6)", "ttl=timedelta(hours=1)"))
    spec = importlib.util.spec_from_file_location("orchards_of_another_day", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_server_that_runs_other_code_is_started_anew_and_one_that_runs_this_code_is_not(
    orchards: Orchards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_target, "REFUSAL_SECONDS", 0.5)
    workspace = write_project(tmp_path / "project", embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    old = write_bundle(workspace, import_changed(tmp_path / "another_day", monkeypatch))
    params = load_params(workspace.params_file)
    folder = workspace.environment("staging")
    with monkeypatch.context() as of_another_day:
        of_another_day.setenv("PYTHONPATH", with_path(tmp_path / "another_day"))
        first = ensure_serving(params, workspace, "staging", deploy(folder, old).revision)
    try:
        second = ensure_serving(params, workspace, "staging", deploy(folder, orchards.stored).revision)
        assert second.pid != first.pid
        assert second.code != first.code
        assert describe_server(second)["error"] is None  # type: ignore[index]
        with pytest.raises(ServerRefusedError, match=r"acidity: ttl 21600 s, the bundle has 60 s"):
            ensure_serving(params, workspace, "staging", deploy(folder, orchards.other).revision)
        left = find_server(workspace, "staging")
        assert left is not None
        assert left.pid == second.pid
    finally:
        stop(workspace, "staging")


@pytest.mark.parametrize("stored", [False, True])
def test_feast_is_imported_only_for_features_that_are_read_by_key(
    orchards: Orchards, tmp_path: Path, stored: bool
) -> None:
    """By the process that its workers are copies of, so that one that is started in place of another has it at once."""
    workspace = write_project(tmp_path, embedded())
    copy_bundles(orchards, workspace)
    fill(workspace, orchards.package)
    deploy(workspace.environment("staging"), orchards.stored if stored else orchards.flat)
    command = [sys.executable, "-X", "importtime", "scripts/serve.py", "--env", "staging", "--project", str(tmp_path)]
    said = tmp_path / "imported.txt"
    with said.open("w") as stream:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=stream, text=True)
    try:
        record = workspace.environment("staging") / "server.json"
        until(lambda: process.poll() is not None or record.exists(), "server.json", 60)
        server = Server(workspace, "staging", process, json.loads(record.read_text())["port"])
        assert server.predict(ROW)[0] == 200
        assert [child.cmdline()[1:] for child in psutil.Process(process.pid).children()] == [command[1:]]
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait(10)
    imported = {line.rpartition("|")[2].strip() for line in said.read_text().splitlines() if "import time:" in line}
    assert ("feast" in imported) is stored
    assert "sklearn" not in imported
    if not stored:
        assert imported.isdisjoint({"pandas", "pyarrow", "polars", "mlflow", "scipy"})


# With a real Redis


@dataclass
class Stage:
    """A server that reads from Redis, and the hands that break it."""

    server: Server
    redis: RedisServer
    refill: Callable[[], None]

    def row(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        status, answer, _ = self.server.predict({**BY_KEY, **changes})
        return status, answer

    def ready(self) -> tuple[int, dict[str, Any]]:
        return self.server.ask("GET", "/v2/health/ready")[:2]

    def down(self) -> bool:
        return bool(self.server.state()["features"]["status"] == "down")


@pytest.fixture
def on_redis(orchards: Orchards, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """With the settings of ``serving.features`` that a test asks for."""
    with redis_server(tmp_path) as store:
        workspace = write_project(tmp_path / "project", redis(store.connection_string), request.param)
        copy_bundles(orchards, workspace)
        fill(workspace, orchards.package)
        deploy(workspace.environment("staging"), orchards.stored)
        with running(workspace) as server:
            yield Stage(server, store, lambda: fill(workspace, orchards.package))


@pytest.mark.parametrize("on_redis", [{"on_failure": "fail"}], indirect=True)
def test_redis_down_fails_aloud_and_restarted_empty_recovers_by_itself(on_redis: Stage) -> None:
    stage = on_redis
    status, answer = stage.row()
    assert (status, answer["score"], answer["features"]) == (200, pytest.approx(score(ROW)), {})
    stage.redis.stop()
    for number in range(20):
        status, answer = stage.row(id=f"refused-{number}")
        assert status == 503
        assert "the feature store does not answer: view soil: ConnectionError" in answer["error"]
        assert "\n" not in answer["error"]
    status, answer = stage.ready()
    assert (status, answer["ready"], "ConnectionError" in answer["error"]) == (503, False, True)
    assert stage.server.ask("GET", "/v2/health/live")[0] == 200
    assert stage.server.predict(ROW)[0] == 200, "a row with its features needs no store"
    assert stage.server.predict({"rows": [ROW, BY_KEY]})[0] == 503
    counted = metrics(stage.server)
    assert counted["clearway_feature_store_up",] == 0
    assert counted["clearway_feature_store_failures_total",] >= 1
    assert counted["clearway_requests_total", "503"] == 21

    stage.redis.start()
    until(lambda: stage.ready()[0] == 200, "ready again")
    status, answer = stage.row()
    assert (status, "outcome: missing" in answer["error"]) == (422, True), "it is empty, which is no failure"
    assert metrics(stage.server)["clearway_feature_lookups_total", "missing", "soil"] == 1
    stage.refill()
    assert stage.row()[0] == 200
    state = stage.server.state()["features"]
    assert (state["status"], "ConnectionError" in state["last_error"]) == ("up", True)

    assert stage.server.stop() == 0
    log = read_log(stage.server.folder / "predictions").set_index("id")
    refused = log.loc[[f"refused-{number}" for number in range(20)]]
    assert set(refused["status"]) == {503}
    assert refused["score"].isna().all()
    assert refused["features"].isna().all()
    assert refused["inputs"].notna().all()


@pytest.mark.parametrize("on_redis", [{"on_failure": "last_known"}], indirect=True)
def test_redis_down_is_bridged_with_last_known_values(on_redis: Stage) -> None:
    stage = on_redis
    known = stage.row()[1]["score"]
    stage.redis.stop()
    for _ in range(20):
        status, answer = stage.row()
        assert (status, answer["score"]) == (200, known)
        assert answer["features"] == {"soil": "last_known", "weather": "last_known"}
    status, answer = stage.row(orchard="never asked")
    assert (status, "view soil has no value of this key read in the last 300 s" in answer["error"]) == (503, True)
    status, answer = stage.row(asked_at="2024-06-01T23:00:00Z")
    assert (status, "outcome: stale" in answer["error"]) == (422, True), "its TTL holds all the same"
    assert stage.ready() == (200, {"ready": True, "features": "degraded"})
    counted = metrics(stage.server)
    assert counted["clearway_feature_lookups_total", "last_known", "soil"] == 20
    assert counted["clearway_feature_store_up",] == 0
    stage.redis.start()
    stage.refill()
    until(lambda: not stage.down(), "up")
    assert stage.row()[1]["features"] == {}
    assert stage.ready() == (200, {"ready": True})


@pytest.mark.parametrize("mode", ["fail", "last_known"])
def test_slow_redis_degrades_as_configured_and_blocks_nobody_else(
    orchards: Orchards, tmp_path: Path, mode: str
) -> None:
    with redis_server(tmp_path) as store, slow_proxy(store.port) as proxy:
        settings = {"on_failure": mode, "timeout_ms": 400.0}
        workspace = write_project(tmp_path / "project", redis(f"127.0.0.1:{proxy.port},db=0"), settings)
        copy_bundles(orchards, workspace)
        fill(workspace, orchards.package)
        deploy(workspace.environment("staging"), orchards.stored)
        with running(workspace) as server:
            stage = Stage(server, store, lambda: None)
            assert stage.row()[0] == 200
            proxy.delay = 2.0
            with ThreadPoolExecutor(1) as pool:
                began = threading.Event()

                def wait_for_it() -> tuple[int, dict[str, Any]]:
                    began.set()
                    return stage.row()

                waiting = pool.submit(wait_for_it)
                began.wait()
                assert server.ask("GET", "/v2/health/live")[0] == 200
                assert server.predict(ROW)[0] == 200
                status, answer = waiting.result(20)
            if mode == "fail":
                assert status == 503
                assert "view soil: " in answer["error"]
                assert "imeout" in answer["error"]
            else:
                assert (status, answer["features"]) == (200, {"soil": "last_known", "weather": "last_known"})
            assert stage.down()
            proxy.delay = 0.0
            until(lambda: not stage.down(), "up")
            assert stage.row()[1]["features"] == {}


def test_answer_that_trickles_in_is_given_up_and_the_store_recovers(orchards: Orchards, tmp_path: Path) -> None:
    with redis_server(tmp_path) as store, slow_proxy(store.port) as proxy:
        connection = f"127.0.0.1:{proxy.port},db=0"
        workspace = write_project(tmp_path / "project", redis(connection), {"timeout_ms": 1000.0})
        copy_bundles(orchards, workspace)
        fill(workspace, orchards.package)
        deploy(workspace.environment("staging"), orchards.stored)
        with running(workspace) as server:
            stage = Stage(server, store, lambda: None)
            proxy.drip = 0.9  # every byte comes within the timeout, the last one after a minute
            assert stage.row()[0] == 503
            proxy.drip = 0.0
            until(lambda: not stage.down(), "up")
            assert stage.row()[0] == 200


def test_wrong_password_is_said_without_the_password_and_heals_when_it_is_right(
    orchards: Orchards, tmp_path: Path
) -> None:
    with redis_server(tmp_path, password="correct-horse") as store:
        wrong = f"127.0.0.1:{store.port},db=0,password=battery-staple"
        workspace = write_project(tmp_path / "project", redis(wrong))
        copy_bundles(orchards, workspace)
        with running(workspace) as server:
            server.deploy(orchards.stored)
            until(lambda: server.state()["features"]["status"] == "down", "down")
            status, answer, _ = server.predict(BY_KEY)
            assert status == 503
            said = [answer["error"], server.state()["features"]["last_error"]]
            said.append(server.ask("GET", "/v2/health/ready")[1]["error"])
            assert all("WRONGPASS" in each or "invalid username-password" in each for each in said), said
            store.client().config_set("requirepass", "battery-staple")
            until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200, "ready")
            fill(workspace, orchards.package)
            assert server.predict(BY_KEY)[0] == 200
            assert server.stop() == 0
        for spoken in (*said, (workspace.root / "server.log").read_text()):
            assert "battery-staple" not in spoken
            assert "correct-horse" not in spoken
