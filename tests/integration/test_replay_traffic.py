"""The replay against a real server: each row once per rollout, all of them accepted, nothing asked of nobody."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from live_server import REPOSITORY, Server, deploy, keep, running, until

from clearway.bundle import payload_digest
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError, UsageError
from clearway.features import build_features
from clearway.model import load_estimator
from clearway.params import load_params
from clearway.prediction_log import read_log
from clearway.project import load_project
from clearway.replay import Replay
from clearway.schema import flat_columns
from clearway.snapshot import take_snapshot
from clearway.training import train
from clearway.workspace import Workspace

CYCLES = 3
PARAMS = {
    "project": {"name": "pears"},
    "sources": {"pears": {"kind": "csv", "path": "pears.csv"}},
    "data": {"table": "pears", "label": "ripe"},
    "train": {"arguments": {"max_iter": 5, "min_samples_leaf": 5}},
    "environments": {"staging": {"port": 0}},
    "replay": {"cycles": CYCLES, "connections": 8},
}
SCHEMA = {
    "tables": {
        "pears": {
            "columns": {
                "weight": {"kind": "float", "nullable": True},
                "spots": {"kind": "int"},
                "colour": {"kind": "str", "nullable": True},
                "ripe": {"kind": "int"},
            }
        }
    }
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, list[str]]]:
    """A flat project, from its CSV to a server with challenger (first digest) and baseline (second)."""
    random = np.random.default_rng(3)
    rows = 400
    frame = pd.DataFrame(
        {
            "weight": random.normal(160, 20, rows).round(2),
            "spots": random.integers(0, 9, rows),
            "colour": random.choice(["green", "yellow"], rows),
        }
    )
    frame.loc[::7, "weight"] = np.nan
    frame.loc[::11, "colour"] = None
    frame["ripe"] = ((frame["spots"] > 4) ^ (random.random(rows) < 0.1)).astype(int)
    frame.to_csv(tmp_path / "pears.csv", index=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    workspace = Workspace(tmp_path)
    params = load_params(workspace.params_file)
    project = load_project(params, flat_columns(params, tmp_path))
    take_snapshot(params, workspace, project)
    build_features(params, workspace, project)
    train(params, workspace)
    golden = pd.read_parquet(workspace.features / "holdout.parquet").head(8)
    digests = []
    for payload in (workspace.model, workspace.baseline):
        schema = InputSchema.model_validate_json((payload / "schema.json").read_bytes())
        scores = load_estimator(payload, payload_digest(payload)).predict_proba(schema.encode(golden))[:, 1].tolist()
        golden_rows = json.loads(golden[list(schema.names)].to_json(orient="records"))
        digests.append(keep(payload, golden_rows, scores, workspace))
    deploy(workspace.environment("staging"), digests[1])
    with running(workspace) as server:
        yield server, digests


def replay_of(server: Server) -> Replay:
    return Replay(load_params(server.workspace.params_file), server.workspace, "staging")


def test_each_row_is_asked_once_and_a_new_rollout_asks_again(served: tuple[Server, list[str]]) -> None:
    server, (challenger, baseline) = served
    replay = replay_of(server)
    total = replay.remaining()
    assert total % CYCLES == 0
    seen: list[int] = []
    first = replay.send(70, seen.append)
    assert (first.sent, first.ok, first.client_errors, first.server_errors, first.exhausted) == (70, 70, 0, 0, False)
    assert 0 < first.p50_ms <= first.p95_ms
    assert seen == sorted(seen)
    assert seen[-1] == 70
    rest = replay_of(server).send(total)  # another process would go on from the same cursor
    assert (rest.sent, rest.ok, rest.exhausted) == (total - 70, total - 70, True)
    assert replay.send(5).sent == 0
    server.deploy(baseline, challenger, 10)
    assert replay.send(50).sent == 50
    server.deploy(baseline, challenger, 50)
    assert replay.remaining() == total - 50
    assert server.stop() == 0
    log = read_log(server.folder / "predictions")
    before = log[log["revision"] == 1]
    assert len(before) == before["id"].nunique() == total
    assert len(log[log["revision"] == 2]) == 50
    assert set(log["status"]) == {200}
    # without entities the id routes, so that both sides of a canary see traffic
    assert set(log.loc[log["revision"] == 2, "role"]) == {"stable", "canary"}


def test_server_that_goes_away_is_one_error_and_no_row_is_asked_twice(served: tuple[Server, list[str]]) -> None:
    server, _ = served
    longer = {**PARAMS, "replay": {"cycles": 20 * CYCLES, "connections": 8}}  # no server answers them in 50 ms
    server.workspace.params_file.write_text(yaml.safe_dump(longer))
    replay = replay_of(server)
    total = replay.remaining()

    def kill_in_the_middle(answered: int) -> None:
        if answered > 0 and server.process.poll() is None:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)

    with pytest.raises(ClearwayError) as caught:
        replay.send(total, kill_in_the_middle)
    assert "went away" in str(caught.value)
    assert "\n" not in str(caught.value)
    left = replay.remaining()
    assert 0 < left < total
    with pytest.raises(ClearwayError, match="no server runs for staging"):
        replay.send(1)
    with pytest.raises(UsageError, match="requests = 0"):
        replay.send(0)
    with running(server.workspace):
        result = replay.send(total)
    assert result.sent == left
    asked = read_log(server.folder / "predictions")["id"]
    assert asked.is_unique


def test_two_replays_at_once_are_refused(served: tuple[Server, list[str]]) -> None:
    server, _ = served
    inside, release = threading.Event(), threading.Event()
    refused: list[str] = []

    def ask_too() -> None:
        inside.wait(20)
        try:
            replay_of(server).send(1)
        except ClearwayError as error:
            refused.append(str(error))
        release.set()

    other = threading.Thread(target=ask_too)
    other.start()

    def hold(answered: int) -> None:
        inside.set()
        assert release.wait(20)

    assert replay_of(server).send(40, hold).sent == 40
    other.join()
    assert refused == ["another replay is asking staging: wait for it to end"]


@pytest.mark.parametrize("content", ["[]", '{"rollout": 0}', '{"rollout": 0, "asked": -9}', "{"])
def test_a_damaged_cursor_is_named(served: tuple[Server, list[str]], content: str) -> None:
    server, _ = served
    (server.folder / "replay.json").write_text(content)
    with pytest.raises(ClearwayError, match=r"replay\.json"):
        replay_of(server).send(1)


def test_script_prints_one_line(served: tuple[Server, list[str]]) -> None:
    server, _ = served
    command = [sys.executable, "scripts/replay_traffic.py", "--env", "staging", "--requests", "60"]
    environment = {**os.environ, "CLEARWAY_PROJECT": str(server.workspace.root)}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("replay: 60 of 60 requests answered by staging")
    assert done.stdout.count("\n") == 1
    until(lambda: len(read_log(server.folder / "predictions")) == 60, "log")


def test_endpoint_tests_pass_on_this_server_and_fail_clearly_without_it(served: tuple[Server, list[str]]) -> None:
    """The generic tests of a deployed environment, run as the line runs them."""
    server, _ = served
    tests = "tests/integration/endpoint/"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "--env", "staging"]
    environment = {**os.environ, "CLEARWAY_PROJECT": str(server.workspace.root)}

    def ask() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, env=environment)

    good = ask()
    assert good.returncode == 0, good.stdout
    assert " passed" in good.stdout
    assert set(read_log(server.folder / "predictions")["role"]) == {"tester"}
    server.stop()
    down = ask()
    assert down.returncode == 1
    assert "no server runs for staging" in down.stdout
    assert "Traceback" not in down.stdout
