"""Deployments on this machine, with real servers and real bundles: promoted, rolled back, killed, and kept out."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import psutil
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from clearway.bundle import keep, pack, payload_digest
from clearway.canary_state import read_state
from clearway.columns import LABEL
from clearway.deployment import deploy, rollback, serve_again
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.files import read_json, write_json
from clearway.ledger import quarantined, read_ledger
from clearway.lineage import Lineage
from clearway.local_target import Server, describe_server, find_server, stop
from clearway.model import INPUT, OUTPUT, load_estimator
from clearway.params import Params, load_params
from clearway.prediction_log import read_log
from clearway.rollout import judge_step, tick, watch, write_report
from clearway.routing import read_routing
from clearway.training import train
from clearway.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
ENV = "production"
ALONE = {"production": {"port": 0}, "next": {"port": 0, "requires": "production"}}
"""Environments of which ``next`` has the champion, so that deploying to production asks no registry."""
WHO = {"actor": "tester", "reason": "a test"}


@dataclass
class Shop:
    """A project with three bundles: a challenger and a baseline, just built, and one that fails on some requests."""

    workspace: Workspace
    challenger: str
    baseline: str
    fragile: str

    @property
    def params(self) -> Params:
        return load_params(self.workspace.params_file)

    @property
    def folder(self) -> Path:
        return self.workspace.environment(ENV)

    def script(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "MLFLOW_"))}
        command = [sys.executable, str(ROOT / "scripts" / name), "--project", str(self.workspace.root), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    def history(self) -> list[tuple[str, str, str | None, int]]:
        entries = read_ledger(self.folder, ENV)
        return [(entry.action, entry.stable, entry.canary, entry.canary_weight) for entry in entries]

    def served(self) -> dict[str, Any]:
        server = find_server(self.workspace, ENV)
        assert server is not None
        found = describe_server(server)
        assert found is not None
        return found


def write_params(root: Path, **environments: Any) -> None:
    steps = [{"weight": weight, "margin": 0.05, "min_requests": 150} for weight in (10, 25, 50)]
    params = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe"},
        "train": {"arguments": {"max_iter": 5, "min_samples_leaf": 5}},
        "environments": environments,
        "canary": {"steps": steps, "latency_ms": 5000, "score_margin": 0.2},
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Trained and packed by the line's own functions, once."""
    workspace = Workspace(tmp_path_factory.mktemp("built"))
    write_params(workspace.root, production={"port": 0})
    random = np.random.default_rng(7)
    rows = 400
    sugar = random.integers(5, 20, rows).astype("float64")
    frame = pd.DataFrame({"weight": random.normal(170, 30, rows).round(1), "sugar": sugar})
    frame[LABEL] = ((sugar > 11) ^ (random.random(rows) < 0.1)).astype("float64")
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {"numeric": ["weight", "sugar"], "categorical": [], "declared": {}, "definitions_sha256": "0" * 64}
    write_json(workspace.features / "features.json", described)
    train(load_params(workspace.params_file), workspace)

    golden = frame.drop(columns=LABEL)
    digests = {}
    for role, payload in (("challenger", workspace.model), ("baseline", workspace.baseline)):
        schema = InputSchema.model_validate_json((payload / "schema.json").read_bytes())
        scores = load_estimator(payload, payload_digest(payload)).predict_proba(schema.encode(golden.head(16)))[:, 1]
        evidence = evidence_of(role, workspace, golden.head(16), scores.tolist())
        digests[role] = pack(payload, evidence, workspace.bundle / role).digest
    write_json(
        workspace.bundle / "outcome.json",
        {"verdict": "passed", "digest": digests["challenger"], "baseline_digest": digests["baseline"]},
    )
    fragile = workspace.build / "fragile"
    write_fragile_payload(fragile, like=workspace.model)
    calm = golden[golden["sugar"] < 16].head(16)
    packed = pack(fragile, evidence_of("challenger", workspace, calm, [0.5] * 16), workspace.build / "packed")
    keep(packed.path, workspace.bundles)
    return Shop(workspace, digests["challenger"], digests["baseline"], packed.digest)


def evidence_of(role: str, workspace: Workspace, rows: pd.DataFrame, scores: list[float]) -> dict[str, Path | bytes]:
    lineage = Lineage.model_validate(
        {
            **{"project": "apples", "role": role, "as_of": None, "snapshot_sha256": "s", "recipe_sha256": "r"},
            **{"training_rows": 400, "labelled_rows": 400, "metrics": {"roc_auc": 0.9}, "git_commit": None},
            **{"lock_sha256": None, "trigger": "local", "reasons": ["bootstrap"], "packages": {}},
        }
    )
    golden = {"rows": json.loads(rows.to_json(orient="records")), "scores": scores}
    return {
        "lineage.json": lineage.model_dump_json().encode(),
        "golden.json": json.dumps(golden).encode(),
        "training.json": workspace.reports / "training.json",
    }


def write_fragile_payload(folder: Path, like: Path) -> None:
    """A model that answers 0.5 up to 15 units of sugar and fails at run time above, as a quarter of the rows are."""
    shutil.copytree(like, folder)
    schema = InputSchema.model_validate_json((folder / "schema.json").read_bytes())
    table = np.full((16, 2), 0.5, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [INPUT, "column"], ["sugar"], axis=1),
            helper.make_node("Cast", ["sugar"], ["positions"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "positions"], [OUTPUT]),
        ],
        "fragile",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, len(schema.names)])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array(schema.names.index("sugar"), dtype=np.int64), "column"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))


@pytest.fixture
def shop(tmp_path: Path, built: Shop) -> Iterator[Shop]:
    workspace = Workspace(tmp_path / "shop")
    write_params(workspace.root, **ALONE)
    shutil.copytree(built.workspace.bundle, workspace.bundle)
    shutil.copytree(built.workspace.bundles, workspace.bundles)
    yield Shop(workspace, built.challenger, built.baseline, built.fragile)
    for environment in ("staging", ENV):
        stop(workspace, environment)


def traffic(shop: Shop, limit: int = 100_000) -> Callable[[int], int]:
    """Asks one row at a time over one connection, each for another tree; stops after ``limit`` rows."""
    server = find_server(shop.workspace, ENV)
    assert server is not None
    random = np.random.default_rng(11)
    asked = 0

    def send(count: int) -> int:
        nonlocal asked
        count = min(count, limit - asked)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
        for number in range(asked, asked + count):
            row = {"weight": float(random.normal(170, 30)), "sugar": int(random.integers(5, 20))}
            body = json.dumps({**row, "id": f"q{number}", "entity": f"tree-{number}"})
            connection.request("POST", "/predict", body, {"content-type": "application/json"})
            connection.getresponse().read()
        connection.close()
        asked += count
        return count

    return send


@pytest.mark.lines
def test_from_nothing_to_a_promoted_canary_and_back(shop: Shop) -> None:
    write_params(shop.workspace.root, staging={"port": 0}, production={"port": 0, "requires": "staging"})
    refused = shop.script("deploy.py", "--env", ENV, "--canary", "10")
    assert refused.returncode == 1
    assert "must be stable in staging before it may come to production" in refused.stderr
    assert shop.history() == [], "a refused canary leaves no bootstrap behind"

    staged = shop.script("deploy.py", "--env", "staging")
    assert staged.returncode == 0, staged.stderr
    opened = shop.script("deploy.py", "--env", ENV, "--canary", "10", "--reason", "drill", "--actor", "ann")
    assert opened.returncode == 0, opened.stderr
    first, second = read_ledger(shop.folder, ENV)
    assert (first.action, first.stable) == ("deploy", shop.baseline)
    assert first.reason == "bootstrap: labelled baseline is the first control"
    assert (second.canary, second.canary_weight, second.actor, second.reason) == (shop.challenger, 10, "ann", "drill")
    assert shop.served()["canary_weight"] == 10

    early = shop.script("deploy.py", "--env", ENV, "--canary", "100")
    assert early.returncode == 1
    assert "may not rise from 10% to 100%: its verdict at 10% has not been given" in early.stderr
    waiting = shop.script("check_canary.py")
    assert waiting.returncode == 3, waiting.stdout + waiting.stderr
    assert "no traffic proves nothing" in waiting.stdout
    assert read_json(shop.workspace.reports / "canary.json")["verdict"] == "hold"

    said: list[str] = []
    found = watch(
        shop.params, shop.workspace, ENV, actor="ann", send_traffic=traffic(shop), progress=said.append, timeout=400
    )
    assert found.verdict.verdict == "promote", found.verdict.sentence
    assert [entry[0] for entry in shop.history()] == ["deploy", "canary", "canary", "canary"]
    assert [entry[3] for entry in shop.history()] == [0, 10, 25, 50]
    assert [step.verdict.weight for step in found.state.verdicts] == [10, 25, 50]
    assert read_ledger(shop.folder, ENV)[-1].evidence["canary_verdict"] == "promote"
    assert any(line.startswith("promote:") for line in said)

    judged = shop.script("check_canary.py")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    report = read_json(shop.workspace.reports / "canary.json")
    assert [(step["weight"], step["verdict"]) for step in report["steps"]] == [(w, "promote") for w in (10, 25, 50)]
    assert "data:image/png" in (shop.workspace.reports / "canary.html").read_text()
    assert (shop.workspace.reports / "canary.png").read_bytes().startswith(b"\x89PNG")

    promoted = shop.script("deploy.py", "--env", ENV, "--canary", "100")
    assert (promoted.returncode, promoted.stderr) == (0, "")
    assert shop.history()[-1] == ("promote", shop.challenger, None, 0)
    assert shop.served()["stable"] == shop.challenger
    assert champion_in_registry(shop) == shop.challenger
    for again in (("--canary", "100"), ()):
        done = shop.script("deploy.py", "--env", ENV, *again)
        assert done.returncode == 0
        assert "nothing to do" in done.stdout
    assert len(shop.history()) == 5
    closed = shop.script("check_canary.py")
    assert closed.returncode == 1
    assert closed.stderr.startswith("error: production has no open canary")

    back = shop.script("rollback.py", "--reason", "drill")
    assert back.returncode == 0, back.stderr
    assert shop.history()[-1] == ("rollback", shop.baseline, None, 0)
    assert shop.served()["stable"] == shop.baseline
    barred = shop.script("deploy.py", "--env", ENV, "--canary", "10")
    assert barred.returncode == 1
    assert "is quarantined in production since entry 6 (drill)" in barred.stderr
    stopped = shop.script("stop.py")
    assert stopped.returncode == 0
    assert stopped.stdout.count("stopped (pid") == 2
    assert find_server(shop.workspace, ENV) is None


def champion_in_registry(shop: Shop) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{shop.workspace.var / 'mlflow.db'}")
    return str(client.get_model_version_by_alias("apples", "champion").tags["digest"])


def test_a_failing_canary_is_rolled_back_quarantined_and_leaves_production_whole(shop: Shop) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.challenger, None, **WHO)
    deploy(shop.params, shop.workspace, ENV, shop.fragile, 50, **WHO)
    send = traffic(shop)
    found = judge_step(shop.params, shop.workspace, ENV, actor="tester", send_traffic=send, timeout=240)
    assert found.verdict.verdict == "rollback"
    assert "errors: canary " in found.verdict.sentence
    last = read_ledger(shop.folder, ENV)[-1]
    assert (last.action, last.stable, last.canary, last.quarantines) == (
        *("rollback", shop.challenger, None, (shop.fragile,)),
    )
    assert last.evidence["errors"].startswith("fail")
    served = shop.served()
    assert (served["stable"], served["canary"], served["error"]) == (shop.challenger, None, None)
    with pytest.raises(ClearwayError, match="is quarantined in production"):
        deploy(shop.params, shop.workspace, ENV, shop.fragile, 10, **WHO)
    assert shop.script("release.py", "--digest", shop.fragile, "--reason", "drill").returncode == 0
    assert quarantined(read_ledger(shop.folder, ENV)) == frozenset()


def test_traffic_that_runs_out_is_hold_and_another_command_carries_on(shop: Shop) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.challenger, 50, **WHO)
    found = watch(shop.params, shop.workspace, ENV, actor="tester", send_traffic=traffic(shop, 200), timeout=240)
    assert found.verdict.verdict == "hold"
    assert shop.history()[-1] == ("hold", shop.baseline, shop.challenger, 50)
    early = tick(shop.params, shop.workspace, ENV, actor="tester")
    assert early.verdict.n_canary + early.verdict.n_stable == 200, "a hold does not begin the step anew"
    send = traffic(shop)
    later = watch(shop.params, shop.workspace, ENV, actor="tester", send_traffic=send, timeout=240)
    assert later.verdict.verdict == "promote"
    assert later.verdict.n_canary + later.verdict.n_stable > 200


@pytest.mark.parametrize("right", [False, True])
def test_labels_that_come_after_a_promotion_revoke_or_confirm_it_also_beside_an_open_canary(
    shop: Shop, right: bool
) -> None:
    labels = pytest.importorskip("clearway.labels")
    written = yaml.safe_load(shop.workspace.params_file.read_text())
    written["canary"]["steps"] = [{"weight": 50, "margin": 0.05, "min_requests": 150}]
    written["canary"]["labels"] = {"metric": "loss", "margin": 0.1}
    shop.workspace.params_file.write_text(yaml.safe_dump(written))
    deploy(shop.params, shop.workspace, ENV, shop.challenger, 50, **WHO)
    send = traffic(shop)
    found = watch(shop.params, shop.workspace, ENV, actor="tester", send_traffic=send, timeout=240)
    assert (found.verdict.verdict, found.verdict.provisional) == ("promote", True)
    deploy(shop.params, shop.workspace, ENV, shop.challenger, 100, **WHO)
    waiting = tick(shop.params, shop.workspace, ENV, actor="tester")
    assert (waiting.verdict.verdict, waiting.verdict.provisional) == ("hold", True)
    assert shop.history()[-1] == ("promote", shop.challenger, None, 0), "waiting writes nothing"
    deploy(shop.params, shop.workspace, ENV, shop.fragile, 10, **WHO)
    own = tick(shop.params, shop.workspace, ENV, actor="tester")
    assert (own.verdict.verdict, own.state.digest) == ("hold", shop.fragile), "the canary is judged meanwhile"

    log = read_log(shop.folder / "predictions")
    agrees = (log["role"] == "canary") == right  # so that one version is always right and the other never
    outcomes = log[["id", "entity", "asked_at"]].assign(
        label=((log["score"] >= 0.5) == agrees).astype("float64"),
        labelled_at=log["served_at"] + pd.Timedelta(seconds=1),
    )
    labels.import_outcomes(shop.params, shop.workspace, ENV, outcomes, datetime.now(UTC))
    settled = tick(shop.params, shop.workspace, ENV, actor="tester")
    write_report(shop.params, shop.workspace, ENV, settled)
    last = read_ledger(shop.folder, ENV)[-1]
    if right:
        assert (last.action, last.stable, last.evidence["labels"]) == ("promote", shop.challenger, "confirmed")
        assert (last.canary, settled.verdict.verdict) == (shop.fragile, "hold"), "whose trial goes on"
        return
    assert settled.verdict.verdict == "rollback", settled.verdict.sentence
    assert (last.action, last.stable, last.quarantines) == ("rollback", shop.baseline, (shop.challenger,))
    assert last.reason.startswith("labels revoke the promotion: loss: differs by")
    assert shop.history()[-2] == ("canary", shop.challenger, None, 0), "its control was bad: ended, not barred"
    with pytest.raises(ClearwayError, match="has no open canary"):
        tick(shop.params, shop.workspace, ENV, actor="tester")


KILLED_BEFORE_ROUTING = """
import os, signal, sys
from pathlib import Path
import clearway.deployment as deployment
import clearway.targets.local as local
from clearway.params import load_params
from clearway.workspace import Workspace

def append_and_die(*arguments, **named):
    written(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

written, local.append = local.append, append_and_die
workspace = Workspace(Path(sys.argv[1]))
deployment.deploy(load_params(workspace.params_file), workspace, "production", sys.argv[2], actor="x", reason="y")
"""


def test_a_kill_between_ledger_and_routing_is_repaired_by_the_next_command(shop: Shop) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO)
    command = [sys.executable, "-c", KILLED_BEFORE_ROUTING, str(shop.workspace.root), shop.challenger]
    assert subprocess.run(command, timeout=240, check=False).returncode == -signal.SIGKILL
    assert read_ledger(shop.folder, ENV)[-1].stable == shop.challenger
    assert read_routing(shop.folder / "routing.json").stable == shop.baseline
    assert shop.served()["stable"] == shop.baseline

    done = shop.script("deploy.py", "--env", ENV, "--ensure-serving")
    assert done.returncode == 0, done.stderr
    assert read_routing(shop.folder / "routing.json").revision == 2
    assert shop.served()["stable"] == shop.challenger
    assert len(shop.history()) == 2


def test_a_killed_server_is_started_again_by_the_next_command(shop: Shop) -> None:
    server = deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO).server
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while find_server(shop.workspace, ENV) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = serve_again(shop.params, shop.workspace, ENV).server
    assert again is not None
    assert again.pid != server.pid
    assert shop.served()["revision"] == 1


def test_a_port_in_use_is_named_and_nothing_is_recorded(shop: Shop) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        write_params(shop.workspace.root, **{**ALONE, "production": {"port": port}})
        refused = shop.script("deploy.py", "--env", ENV)
        assert refused.returncode == 1
        assert refused.stderr.startswith(
            f"error: port {port} is in use by another program (environments.production.port"
        )
        assert len(refused.stderr.strip().splitlines()) == 1
        assert shop.history() == []
    assert shop.script("deploy.py", "--env", ENV).returncode == 0
    assert shop.served()["stable"] == shop.challenger


def test_a_rollback_whose_port_was_taken_says_that_it_is_recorded_and_how_to_serve_it(shop: Shop) -> None:
    for digest in (shop.baseline, shop.challenger):
        deploy(shop.params, shop.workspace, ENV, digest, None, **WHO)
    assert stop(shop.workspace, ENV) is not None
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        write_params(shop.workspace.root, **{**ALONE, "production": {"port": squatter.getsockname()[1]}})
        refused = shop.script("rollback.py", "--env", ENV)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: rollback is recorded (entry 3 of production) and not served yet: port ")
    assert "deploy.py --env production --ensure-serving" in refused.stderr
    assert shop.script("deploy.py", "--env", ENV, "--ensure-serving").returncode == 0
    assert shop.served()["stable"] == shop.baseline


def test_a_server_of_another_project_on_the_port_is_recognised(shop: Shop, tmp_path: Path) -> None:
    server = deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO).server
    assert server is not None
    other = Workspace(tmp_path / "other")
    write_params(other.root, production={"port": server.port})
    shutil.copytree(shop.workspace.bundle, other.bundle)
    with pytest.raises(ClearwayError, match=f"environment production of another project, pid {server.pid}"):
        deploy(load_params(other.params_file), other, ENV, shop.baseline, None, **WHO)
    assert describe_server(server) is not None


def test_only_our_own_process_is_ever_stopped(shop: Shop) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = Server(pid=stranger.pid, created=psutil.Process(stranger.pid).create_time() - 100, host="", port=1)
        shop.folder.mkdir(parents=True)
        write_json(shop.folder / "server.json", record.model_dump())
        assert find_server(shop.workspace, ENV) is None
        assert stop(shop.workspace, ENV) is None
        assert stranger.poll() is None
        assert not (shop.folder / "server.json").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_another_address_in_params_moves_the_server(shop: Shop) -> None:
    first = deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO).server
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_params(shop.workspace.root, **{**ALONE, "production": {"port": port}})
    second = serve_again(shop.params, shop.workspace, ENV).server
    assert first is not None
    assert second is not None
    assert second.port == port
    assert describe_server(first) is None


def test_a_bundle_changed_after_it_was_kept_is_refused_before_anything_is_recorded(shop: Shop) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.challenger, None, **WHO)
    model = shop.workspace.bundles / shop.fragile / "payload" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ClearwayError, match=r"model\.onnx has changed"):
        deploy(shop.params, shop.workspace, ENV, shop.fragile, 10, **WHO)
    assert len(shop.history()) == 1


def test_rolling_back_needs_neither_the_build_nor_the_registry(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO)
    deploy(shop.params, shop.workspace, ENV, shop.challenger, None, **WHO)
    shutil.rmtree(shop.workspace.build)
    write_params(shop.workspace.root, production={"port": 0})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = rollback(shop.params, shop.workspace, ENV, **WHO)
    assert outcome.entry is not None
    assert outcome.entry.stable == shop.baseline
    assert shop.served()["stable"] == shop.baseline
    assert len(outcome.warnings) == 1
    assert "alias champion was not moved" in outcome.warnings[0]


def test_two_commands_at_once_leave_a_routing_table_that_the_ledger_vouches_for(shop: Shop) -> None:
    deploy(shop.params, shop.workspace, ENV, shop.baseline, None, **WHO)
    script = [sys.executable, str(ROOT / "scripts" / "deploy.py"), "--project", str(shop.workspace.root), "--env", ENV]
    racers = [
        subprocess.Popen([*script, "--canary", weight], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for weight in ("10", "20")
    ]
    said = [racer.communicate(timeout=240) for racer in racers]
    assert any(racer.returncode == 0 for racer in racers), said
    for racer, (_, error) in zip(racers, said, strict=True):
        assert racer.returncode == 0 or "the head moved" in error or "may not rise" in error
    last = read_ledger(shop.folder, ENV)[-1]
    table = read_routing(shop.folder / "routing.json")
    assert (table.revision, table.ledger_hash) == (last.sequence, last.hash)
    state = read_state(shop.folder, read_ledger(shop.folder, ENV))
    assert state is not None
    assert state.weight == last.canary_weight
