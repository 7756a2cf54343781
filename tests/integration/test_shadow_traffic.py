"""A shadow beside a real server: its answers are logged and compared, and nothing it does reaches a caller."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from live_server import REPOSITORY, until
from small_models import write_model, write_project

from clearway.deployment import deploy, deploy_built, end_shadow, serve_again
from clearway.errors import ClearwayError
from clearway.local_target import describe_server, find_server, stop
from clearway.log_hiding import KEY_BYTES, KEY_VARIABLE
from clearway.params import Params, load_params
from clearway.prediction_log import read_log
from clearway.serving.shadow import BATCH
from clearway.shadow import compare_shadow
from clearway.workspace import Workspace

WHO = {"actor": "test", "reason": "a test"}
QUEUE = 64
OUTCOMES = ("answered", "failed", "dropped")
RULES = {"min_pairs": 50, "confidence": 0.9, "max_flip_rate": 0.2, "max_error_rate": 0.1, "max_difference": 0.2}


@dataclass
class Orchard:
    """A served environment, and two versions beside the stable one."""

    workspace: Workspace
    params: Params
    near: str
    """Answers 0.02 more than stable."""
    broken: str
    """Answers NaN below the weight 8."""

    def state(self) -> dict[str, Any]:
        server = find_server(self.workspace, "staging")
        assert server is not None
        return describe_server(server) or {}

    def shadow(self) -> dict[str, Any]:
        return self.state()["shadow"] or {}

    def metrics(self) -> dict[str, float]:
        server = find_server(self.workspace, "staging")
        assert server is not None
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def ask(self, name: str, count: int) -> list[dict[str, Any]]:
        """Rows of the weights 0 to 10, one entity each, over one connection; all must be answered by stable."""
        server = find_server(self.workspace, "staging")
        assert server is not None
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        answers = []
        for number in range(count):
            row = {"id": f"{name}-{number}", "entity": f"{name}-{number}", "weight": number % 11, "tree": "north"}
            connection.request("POST", "/predict", json.dumps(row), {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert (response.status, answer["role"]) == (200, "stable"), answer
            answers.append(answer)
        connection.close()
        return answers

    def ask_for(self, digest: str) -> int:
        """The status of a request for this version's answer."""
        server = find_server(self.workspace, "staging")
        assert server is not None
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        headers = {"content-type": "application/json", "x-clearway-version": digest}
        connection.request("POST", "/predict", json.dumps({"weight": 9, "tree": "north"}), headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def open(self, digest: str, *, anew: bool = False) -> dict[str, Any]:
        """Have ``digest`` be the shadow, and no other."""
        if anew or (self.shadow() or {}).get("digest") != digest:
            end_shadow(self.params, self.workspace, "staging", **WHO)
        deploy_built(self.params, self.workspace, "staging", digest, strategy="shadow", **WHO)
        return self.shadow()

    def logged(self, name: str, count: int) -> None:
        """Wait until so many copies of the rows of this name are in the log."""
        log = self.workspace.environment("staging") / "predictions"

        def arrived() -> bool:
            time.sleep(0.2)
            found = read_log(log, columns=("id", "role"))
            return bool((found.loc[found["role"] == "shadow", "id"].str.startswith(name)).sum() >= count)

        until(arrived, f"{count} copies in the log: {self.shadow()}")


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchard]:
    serving = {"shadow": {"queue": QUEUE, "timeout_seconds": 1.0}, "log": {"hash": ["entity"]}}
    workspace = write_project(tmp_path_factory.mktemp("orchard"), serving=serving, canary={"shadow": RULES})
    stable, near = write_model(workspace, 0.05, 0.1), write_model(workspace, 0.05, 0.12)
    broken = write_model(workspace, 0.05, 0.1, least=8.0)
    params = load_params(workspace.params_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, "k" * KEY_BYTES)
        deploy(params, workspace, "staging", stable, **WHO)
        try:
            yield Orchard(workspace, params, near, broken)
        finally:
            stop(workspace, "staging")


def test_shadow_answers_copies_that_only_the_log_sees(orchard: Orchard) -> None:
    assert orchard.open(orchard.near, anew=True)["state"] == "up"
    answers = orchard.ask("near", 110)
    assert {answer["version"] for answer in answers} == {orchard.state()["stable"]}
    orchard.logged("near", 110)
    log = read_log(orchard.workspace.environment("staging") / "predictions", columns=("id", "role", "entity", "hidden"))
    entities = log[log["id"] == "near-7"].set_index("role")
    assert entities.loc["shadow", "entity"] == entities.loc["stable", "entity"] != "near-7", "a shadow hashes too"
    assert set(entities["hidden"]) == {"entity"}
    assert orchard.ask_for(orchard.near) == 422  # not even a tester sees it
    report = compare_shadow(orchard.params, orchard.workspace, "staging")
    counts = (report.copies, report.pairs, report.units, report.uncopied)
    assert (report.digest, counts) == (orchard.near, (110, 110, 110, 0))
    assert report.verdict == "pass", report.sentence
    assert report.difference.mean == pytest.approx(0.02, abs=1e-6)
    # at the weight 8 stable answers 0.5, and both say yes; at 7 it answers 0.45, and both say no
    assert report.flips is not None
    assert report.flips.count == 0
    assert report.latency.p95 is not None
    until(lambda: orchard.shadow()["answered"] == 110, "its count")
    used = orchard.shadow()
    assert used["cpu_seconds"] > 0
    assert used["rss_mb"] > 10


def test_canary_needs_a_shadow_trial_that_passed_where_one_is_asked_for(orchard: Orchard) -> None:
    params, workspace = orchard.params, orchard.workspace
    unseen = write_model(workspace, 0.05, 0.11)
    with pytest.raises(ClearwayError, match="was never a shadow in staging"):
        deploy(params, workspace, "staging", unseen, 10, **WHO)
    orchard.open(orchard.near, anew=True)
    with pytest.raises(ClearwayError, match=r"its shadow verdict is 'hold' .the shadow has answered no copy yet"):
        deploy(params, workspace, "staging", orchard.near, 10, **WHO)
    orchard.ask("trial", 60)
    orchard.logged("trial", 60)
    opened = deploy(params, workspace, "staging", orchard.near, 10, **WHO).entry
    assert opened is not None
    assert (opened.canary, opened.shadow) == (orchard.near, None)
    assert {"shadow_verdict": "pass", "shadow_pairs": "60", "routing_key": "entity"}.items() <= opened.evidence.items()
    assert orchard.state()["shadow"] is None
    deploy(params, workspace, "staging", orchard.near, 0, **WHO)


def test_shadow_that_answers_nan_fails_alone_and_the_script_says_so(orchard: Orchard) -> None:
    orchard.open(orchard.broken, anew=True)
    orchard.ask("nan", 110)
    orchard.logged("nan", 110)
    until(lambda: orchard.shadow()["answered"] == 110, "its count")
    assert orchard.shadow()["failed"] == 80  # of the eleven weights the eight below 8
    counted = {
        name: f'clearway_shadow_copies_total{{outcome="{name}",version="{orchard.broken}"}}' for name in OUTCOMES
    }
    metrics = orchard.metrics()
    assert [metrics[counted[name]] for name in OUTCOMES] == [30, 80, 0]
    command = [sys.executable, "scripts/check_shadow.py", "--env", "staging", "--project", str(orchard.workspace.root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert f"error: the shadow {orchard.broken[:12]} fails: 30 paired entities, 110 copies: errors " in done.stderr
    written = json.loads((orchard.workspace.reports / "shadow.json").read_text())
    assert (written["verdict"], written["errors"]["count"], written["stable_errors"]["count"]) == ("fail", 80, 0)
    assert (orchard.workspace.reports / "shadow.html").exists()


def test_hanging_shadow_is_dropped_from_counted_and_replaced_while_callers_are_answered(orchard: Orchard) -> None:
    before = orchard.open(orchard.near)
    os.kill(before["pid"], signal.SIGSTOP)
    orchard.ask("hang", 200)
    assert orchard.shadow()["dropped"] >= before["dropped"] + 200 - QUEUE - BATCH
    until(lambda: orchard.shadow()["restarts"] > before["restarts"], "a new process")
    assert not psutil.pid_exists(before["pid"])
    until(lambda: orchard.shadow()["state"] == "up", "its model")
    orchard.ask("after", 20)
    orchard.logged("after", 20)


def test_shadow_that_dies_takes_no_request_with_it(orchard: Orchard) -> None:
    before = orchard.open(orchard.near)
    os.kill(before["pid"], signal.SIGKILL)
    orchard.ask("crash", 50)
    until(lambda: orchard.shadow()["restarts"] > before["restarts"], "a new process")
    assert "exit code -9" in (orchard.workspace.environment("staging") / "server.log").read_text()
    until(lambda: orchard.shadow()["state"] == "up", "its model")


def test_shadow_that_cannot_be_loaded_is_named_and_nobody_else_suffers(orchard: Orchard) -> None:
    other = write_model(orchard.workspace, 0.04, 0.1, golden=0.75)
    with pytest.raises(ClearwayError, match=r"shadow .* does not answer copies: .*fails its warm-up.*--end-shadow"):
        orchard.open(other, anew=True)
    assert orchard.state()["error"] is None
    assert orchard.shadow()["state"] == "down"
    orchard.ask("unloaded", 20)
    assert orchard.shadow()["dropped"] == 20


def test_shadow_follows_its_server_when_that_is_killed_and_comes_back_with_it(orchard: Orchard) -> None:
    child = orchard.open(orchard.near)["pid"]
    server = find_server(orchard.workspace, "staging")
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "its end")
    serve_again(orchard.params, orchard.workspace, "staging")
    until(lambda: orchard.shadow().get("state") == "up", "the shadow of the new server")


def test_ended_shadow_leaves_no_process_and_gets_no_copy(orchard: Orchard) -> None:
    child = orchard.open(orchard.near)["pid"]
    assert end_shadow(orchard.params, orchard.workspace, "staging", **WHO).changed
    until(lambda: not psutil.pid_exists(child), "its end")
    assert orchard.state()["shadow"] is None
    orchard.ask("ended", 10)
    assert not end_shadow(orchard.params, orchard.workspace, "staging", **WHO).changed
