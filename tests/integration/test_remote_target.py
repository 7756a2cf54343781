"""A server somewhere else: changed through its ``/admin`` by the scripts' own functions, over real HTTP."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hand_made import ROW, make_bundle, write_params
from live_server import REPOSITORY, Server, running, until

from clearway.bundle import Bundle
from clearway.bundle_tar import packed
from clearway.deployment import deploy, quarantine, reconcile, release, rollback
from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.ledger import GENESIS, Change, append, head_hash, quarantined, read_ledger
from clearway.params import Params, load_params
from clearway.prediction_log import read_log
from clearway.rollout import watch
from clearway.targets import target_of
from clearway.workspace import Workspace

TOKEN = "t" * 40
ENV = "production"
WHO = {"actor": "ann", "reason": "a test"}
SERVED = {"staging": {"port": 0}, "production": {"port": 0, "requires": "staging"}}


@dataclass
class Far:
    """A running server, and the bundles that its callers have."""

    server: Server
    bundles: dict[str, Bundle]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def entries(self) -> list[Any]:
        return read_ledger(self.server.folder, ENV)

    def ask(self, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if isinstance(body, dict):
            body, sent["content-type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kind = answer.getheader("content-type", "")
        return answer.status, json.loads(content) if kind == "application/json" else content

    def head(self) -> dict[str, Any]:
        entries = self.entries()
        return {"sequence": len(entries), "hash": head_hash(entries)}


@dataclass
class Near:
    """Another machine, which has built the bundles and knows the server's address."""

    workspace: Workspace

    @property
    def params(self) -> Params:
        return load_params(self.workspace.params_file)

    @property
    def folder(self) -> Path:
        return self.workspace.environment(ENV)

    def script(self, name: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(REPOSITORY / "scripts" / name), "--project", str(self.workspace.root)]
        return subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "CLEARWAY_ADMIN_TOKEN": TOKEN, **environ},
        )


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    made = tmp_path_factory.mktemp("made")
    bundles = {name: make_bundle(made, score) for name, score in {"a": 0.25, "b": 0.26, "c": 0.27}.items()}
    workspace = write_params(tmp_path_factory.mktemp("far"), SERVED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
        with running(workspace, ENV) as server:
            yield Far(server, bundles)


@pytest.fixture
def near(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Near:
    environments = {"staging": {"port": 0}, "production": {"port": 0, "requires": "staging", "target": {
        "kind": "http", "url": far.url}}}  # fmt: skip
    workspace = write_params(tmp_path / "near", environments)
    workspace.bundles.mkdir(parents=True)
    for bundle in far.bundles.values():
        (workspace.bundles / bundle.digest).symlink_to(bundle.path)
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    return Near(workspace)


def stage(near: Near, digest: str) -> None:
    """What a deployment to staging would leave behind."""
    folder = near.workspace.environment("staging")
    change = Change(action="deploy", stable=digest, actor="x", reason="staged")
    append(folder, "staging", change, expected_head=head_hash(read_ledger(folder, "staging")))


def served(far: Far) -> dict[str, Any]:
    return far.server.state()


def test_the_whole_life_of_a_model_on_a_server_elsewhere(far: Far, near: Near) -> None:
    a, b = far.bundles["a"].digest, far.bundles["b"].digest
    write_json(near.workspace.bundle / "outcome.json", {"verdict": "passed", "digest": b, "baseline_digest": a})
    refused = near.script("deploy.py", "--env", ENV, "--canary", "25")
    assert refused.returncode == 1
    assert "must be stable in staging" in refused.stderr
    assert far.entries() == []

    stage(near, b)
    opened = near.script("deploy.py", "--env", ENV, "--canary", "25", "--actor", "ann", "--reason", "drill")
    assert opened.returncode == 0, opened.stderr
    first, second = far.entries()
    assert (first.action, first.stable, first.actor) == ("deploy", a, "ann (admin token)")
    assert (second.canary, second.canary_weight, second.reason) == (b, 25, "drill")
    assert second.evidence["required"] == "staging entry 1"
    assert (served(far)["canary"], served(far)["canary_weight"]) == (b, 25)
    assert read_ledger(near.folder, ENV) == [first, second]

    asked = 0

    def send(count: int) -> int:
        nonlocal asked
        for number in range(asked, asked + min(count, 120)):
            status, answer, _ = far.server.predict({**ROW, "id": f"q{number}", "entity": f"tree-{number}"})
            assert status == 200, answer
        asked += min(count, 120)
        return count

    found = watch(near.params, near.workspace, ENV, actor="ann", send_traffic=send, timeout=120)
    assert found.verdict.verdict == "promote", found.verdict.sentence
    assert [(entry.action, entry.canary_weight) for entry in far.entries()] == [
        ("deploy", 0), ("canary", 25), ("canary", 50),
    ]  # fmt: skip
    assert far.entries()[-1].evidence["canary_verdict"] == "promote"

    promoted = deploy(near.params, near.workspace, ENV, b, 100, **WHO)
    assert promoted.entry is not None
    assert (promoted.entry.action, promoted.entry.stable) == ("promote", b)
    assert served(far)["stable"] == b
    assert len(promoted.warnings) == 1, "the sender moves the alias of its registry, which has no such model"
    assert not deploy(near.params, near.workspace, ENV, b, **WHO).changed

    back = rollback(near.params, near.workspace, ENV, **WHO)
    assert back.entry is not None
    assert (back.entry.action, back.entry.stable, back.entry.quarantines) == ("rollback", a, (b,))
    assert served(far)["stable"] == a
    with pytest.raises(ClearwayError, match="is quarantined in production"):
        deploy(near.params, near.workspace, ENV, b, 25, **WHO)
    release(near.params, near.workspace, ENV, b, **WHO)
    assert quarantined(far.entries()) == frozenset()
    quarantine(near.params, near.workspace, ENV, b, **WHO)
    assert quarantined(far.entries()) == {b}
    release(near.params, near.workspace, ENV, b, **WHO)
