"""A server of several workers: one address, one description, one count; and what it survives."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_server import REPOSITORY, Server, running, until
from live_server import deploy as deploy_in
from prometheus_client.parser import text_string_to_metric_families
from small_bundle import ROW, small_bundle, write_small_project

from clearway.admin_api import TOKEN_VARIABLE
from clearway.prediction_log import read_log
from clearway.workspace import Workspace

TOKEN = "t" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that serve a model which answers 0.25; beside it lies one that answers 0.75."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        with serving(tmp_path_factory.mktemp("workers")) as made:
            yield made


def serving(root: Path) -> Any:
    workspace = write_small_project(root, workers=2)
    deploy_in(workspace.environment("staging"), small_bundle(workspace, 0.25))
    small_bundle(workspace, 0.75)
    return running(workspace)


def digests(workspace: Workspace) -> tuple[str, str]:
    """Those of the models that answer 0.25 and 0.75."""
    made = {
        json.loads((folder / "evidence/golden.json").read_text())["scores"][0]: folder.name
        for folder in bundles(workspace)
    }
    return made[0.25], made[0.75]


def bundles(workspace: Workspace) -> list[Path]:
    return list(workspace.bundles.iterdir())


def get(server: Server, path: str, **headers: str) -> str:
    """Over a connection of its own: a kept one ends with its worker."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def state_of(server: Server) -> dict[str, Any]:
    return dict(json.loads(get(server, "/")))


def workers(server: Server) -> list[dict[str, Any]]:
    return list(state_of(server)["workers"])


def both_work(server: Server) -> bool:
    return len(found := workers(server)) == 2 and all(one["accepting"] for one in found)


def ask_anew(server: Server, row: Any = ROW) -> tuple[int, dict[str, Any]]:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/predict", json.dumps(row), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def counts(server: Server) -> dict[str, float]:
    """The samples of ``/metrics`` that are counted, by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(get(server, "/metrics"))
        for sample in family.samples
    }


def asked(server: Server) -> float:
    return counts(server).get("clearway_requests_total[('status', '200')]", 0.0)


def asked_at_last(server: Server) -> float:
    """What all workers have counted, when they count no more: each tells the others now and then."""
    found, before = asked(server), -1.0
    while found != before:
        time.sleep(1.0)
        before, found = found, asked(server)
    return found


def kill_one(server: Server) -> int:
    pid = int(workers(server)[0]["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def replaced(server: Server, killed: int) -> None:
    """Wait for a worker in place of the one that was killed."""
    until(lambda: both_work(server) and killed not in {one["pid"] for one in workers(server)}, "restart")


def test_two_processes_answer_one_address_and_describe_one_server(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    state = state_of(server)
    assert state["pid"] == server.process.pid
    pids = {one["pid"] for one in state["workers"]}
    assert pids == {child.pid for child in psutil.Process(server.process.pid).children()}
    assert {(one["revision"], one["error"]) for one in state["workers"]} == {(1, None)}


def test_workers_are_copies_of_their_supervisor_in_which_all_is_imported(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    own = psutil.Process(server.process.pid).cmdline()
    assert {tuple(psutil.Process(one["pid"]).cmdline()) for one in workers(server)} == {tuple(own)}


def test_callers_are_spread_over_the_workers(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    before = processor_seconds(server)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: [server.predict(ROW)[0] for _ in range(150)], range(8)))
    assert {status for one in done for status in one} == {200}
    spent = [after - was for after, was in zip(processor_seconds(server), before, strict=True)]
    assert min(spent) > 0.05 * max(spent), spent


def processor_seconds(server: Server) -> list[float]:
    return [sum(psutil.Process(one["pid"]).cpu_times()[:2]) for one in workers(server)]


def test_counts_of_all_workers_are_added_and_outlive_them(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    stable, _ = digests(server.workspace)
    before = asked_at_last(server)
    assert {ask_anew(server)[0] for _ in range(40)} == {200}
    until(lambda: asked(server) == before + 40, "all counted")
    restarts = state_of(server)["restarts"]
    replaced(server, kill_one(server))
    assert state_of(server)["restarts"] == restarts + 1
    found = counts(server)
    assert found["clearway_requests_total[('status', '200')]"] == before + 40
    assert found["clearway_worker_restarts_total[]"] == restarts + 1
    assert found["clearway_workers[]"] == 2
    who = f"('role', 'stable'), ('status', '200'), ('version', '{stable}')"
    assert found[f"clearway_predictions_total[{who}]"] == before + 40
    who = f"('role', 'stable'), ('version', '{stable}')"
    assert found[f"clearway_prediction_score_count[{who}]"] == before + 40
    assert found[f"clearway_prediction_score_sum[{who}]"] == pytest.approx(0.25 * (before + 40))
    assert found[f"clearway_prediction_seconds_count[{who}]"] == before + 40


def test_the_admins_state_tells_of_all_workers_whichever_is_asked(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    for _ in range(20):  # each over a connection of its own, so that both workers refuse some
        assert "the token is not the one" in get(server, "/admin/state", authorization="Bearer wrong")

    def told() -> list[dict[str, Any]]:
        return [json.loads(get(server, "/admin/state", authorization=f"Bearer {TOKEN}")) for _ in range(8)]

    until(lambda: {state["refused"] for state in told()} == {20}, "the refusals of both")
    assert counts(server)["clearway_admin_refused_total[]"] == 20
    for state in told():
        assert {one["pid"] for one in state["served"]["workers"]} == {one["pid"] for one in workers(server)}
        assert (state["served"]["pid"], state["served"]["revision"]) == (server.process.pid, state["head"]["sequence"])


def test_a_killed_worker_loses_its_own_connections_and_no_other_request(server: Server) -> None:
    """Callers with a connection for each request: only those that the killed worker had taken may fail."""
    until(lambda: both_work(server), "two workers")
    stop, failed, answered = threading.Event(), [], []

    def ask_on() -> None:
        while not stop.is_set():
            try:
                status, answer = ask_anew(server)
                answered.append((status, answer.get("score")))
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            for _ in range(2):
                replaced(server, kill_one(server))
                time.sleep(0.2)
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert set(answered) == {(200, 0.25)}
    assert len(failed) <= 8, failed  # each caller has one request under way when a worker is killed


def test_a_deployment_is_told_when_all_workers_serve_it_and_its_refusal_when_one_does(server: Server) -> None:
    until(lambda: both_work(server), "two workers")
    first, second = digests(server.workspace)
    table = server.deploy(second, wait=False)
    until(lambda: state_of(server)["revision"] == table.revision, "the second model")
    assert {ask_anew(server)[1]["score"] for _ in range(20)} == {0.75}
    assert {one["revision"] for one in workers(server)} == {table.revision}

    model = server.workspace.bundles / first / "payload" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    refused = server.deploy(first, wait=False)
    until(lambda: sum(one["error"] is not None for one in workers(server)) == 2, "two refusals")
    state = state_of(server)
    assert (state["revision"], state["stable"]) == (table.revision, second)
    assert "model.onnx has changed" in state["error"]
    health = json.loads(get(server, "/v2/health/ready"))
    assert (health["ready"], "model.onnx has changed" in health["refused"]) == (True, True)

    # a worker that is started now can load nothing: it leaves the requests to the one that can answer
    killed = kill_one(server)
    until(lambda: any(not one["accepting"] for one in workers(server)), "a worker that waits")
    assert killed not in {one["pid"] for one in workers(server)}
    answers = [ask_anew(server) for _ in range(30)]
    assert {(status, answer.get("score")) for status, answer in answers} == {(200, 0.75)}

    model.write_bytes(whole)
    until(lambda: both_work(server) and state_of(server)["revision"] == refused.revision, "recovery")
    assert {ask_anew(server)[1]["score"] for _ in range(20)} == {0.25}
    assert "refused" not in json.loads(get(server, "/v2/health/ready"))


def test_workers_end_with_a_supervisor_that_is_killed_and_the_log_is_complete(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        until(lambda: both_work(server), "two workers")
        family = psutil.Process(server.process.pid).children()
        assert {ask_anew(server)[0] for _ in range(20)} == {200}
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        assert len(read_log(server.folder / "predictions")) == 20


def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        until(lambda: both_work(server), "two workers")
        family = psutil.Process(server.process.pid).children()
        assert {ask_anew(server)[0] for _ in range(20)} == {200}
        assert server.stop() == 0
        assert not any(child.is_running() for child in family)
        assert len(read_log(server.folder / "predictions")) == 20
        assert not (server.folder / "server.json").exists()


SERVE_BESIDE_A_THREAD = """
import os, sys, threading
from pathlib import Path
from clearway.params import load_params
from clearway.serving.server import serve
from clearway.workspace import Workspace
threading.Thread(target=threading.Event().wait, daemon=True).start()
workspace = Workspace(Path(sys.argv[1]))
serve(load_params(workspace.params_file), workspace, "staging")
"""


def test_a_server_whose_process_has_threads_starts_workers_of_their_own(tmp_path: Path) -> None:
    """They cannot be copies: what another thread holds would be held in the copy for ever."""
    workspace = write_small_project(tmp_path, workers=2)
    deploy_in(workspace.environment("staging"), small_bundle(workspace, 0.25))
    command = [sys.executable, "-c", SERVE_BESIDE_A_THREAD, str(tmp_path)]
    with (tmp_path / "server.log").open("w") as stream:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT, text=True)
    try:
        record = workspace.environment("staging") / "server.json"
        until(lambda: process.poll() is not None or record.exists(), "server.json", 40)
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        server = Server(workspace, "staging", process, json.loads(record.read_text())["port"])
        until(lambda: both_work(server), "two workers", 40)
        commands = [psutil.Process(one["pid"]).cmdline() for one in workers(server)]
        assert all("clearway.serving.worker" in command for command in commands), commands
        assert {ask_anew(server)[0] for _ in range(10)} == {200}
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait(10)


ENDS_AT_ONCE = """
import clearway.serving.worker as worker
from clearway.cli import run
from clearway.params import load_params
from clearway.workspace import Workspace
from pathlib import Path
import sys

def fail(*_):
    raise RuntimeError("no way")

def main():
    from clearway.serving.server import serve
    worker.run_worker = fail
    workspace = Workspace(Path(sys.argv[1]))
    serve(load_params(workspace.params_file), workspace, "staging")

run(main)
"""


def test_workers_that_cannot_start_end_the_server_with_one_line_that_says_so(tmp_path: Path) -> None:
    workspace = write_small_project(tmp_path, workers=2)
    command = [sys.executable, "-c", ENDS_AT_ONCE, str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # so that a worker is a copy, with what fails
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, env=one_thread)
    assert done.returncode == 1
    assert "RuntimeError: no way" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: workers ended at their start, 3 in a row")
    assert not (workspace.environment("staging") / "server.json").exists()
