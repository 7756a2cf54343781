"""A server somewhere else: changed through its ``/admin`` by the scripts' own functions, over real HTTP."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from far_server import GitHub, proxy, self_signed
from hand_made import ROW, make_bundle, write_params
from live_server import REPOSITORY, Server, running, until

from clearway.blue_green import watch_switch
from clearway.bundle import Bundle, verify
from clearway.bundle_tar import packed
from clearway.canary_state import read_state
from clearway.deployment import deploy, open_shadow, quarantine, reconcile, release, rollback, serve_again
from clearway.errors import ClearwayError, UsageError
from clearway.files import write_json
from clearway.ledger import GENESIS, Change, append, head_hash, quarantined, read_ledger
from clearway.params import Params, load_params
from clearway.prediction_log import read_log
from clearway.reconciliation import examine
from clearway.rollout import watch
from clearway.rounds import Round, look
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

    def upload(self, name: str) -> None:
        bundle = self.bundles[name]
        assert self.ask("PUT", f"/admin/bundles/{bundle.digest}", b"".join(packed(bundle)))[0] == 200

    def order(self, action: str, **content: Any) -> Any:
        return self.ask("POST", f"/admin/{action}", {"expected": self.head(), "reason": "a test", **content})

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
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    made = tmp_path_factory.mktemp("made")
    found = {name: make_bundle(made, score) for name, score in {"a": 0.25, "b": 0.26, "c": 0.27}.items()}
    return {**found, "broken": make_bundle(made, 0.28, golden=0.9)}


@pytest.fixture(scope="module")
def github() -> Iterator[tuple[GitHub, str]]:
    made = GitHub()
    with made.running() as address:
        yield made, address


@contextmanager
def serving(folder: Path, bundles: dict[str, Bundle], **admin: Any) -> Iterator[Far]:
    workspace = write_params(folder, SERVED, serving={"admin": {"max_bundle_bytes": 2**17, **admin}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
        with running(workspace, ENV) as server:
            yield Far(server, bundles)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle], github: tuple[GitHub, str]
) -> Iterator[Far]:
    oidc = {"repository": "ann/models", "jwks_url": f"{github[1]}/jwks", "audience": "apples"}
    with serving(tmp_path_factory.mktemp("far"), bundles, oidc=oidc, max_failures=10_000) as far:
        yield far


@pytest.fixture
def far(shared: Far) -> Far:
    """Serves ``a`` alone, whatever the test before has done."""
    a = shared.bundles["a"].digest
    shared.upload("a")
    entries = shared.entries()
    if entries and entries[-1].canary is not None:
        assert shared.order("rollback", reason="between tests")[0] == 200
    for digest in quarantined(shared.entries()):
        assert shared.order("release", digest=digest, reason="between tests")[0] == 200
    if not entries or shared.entries()[-1].stable != a:
        required = {"environment": "staging", "stable": a, "head": {"sequence": 1, "hash": "0" * 64}}
        assert shared.order("deploy", digest=a, required=required)[0] == 200
    until(lambda: shared.server.state()["revision"] == len(shared.entries()), "the stable version")
    return shared


def neighbour(folder: Path, url: str | None, bundles: dict[str, Bundle], **target: Any) -> Near:
    there = {"kind": "http", **({"url": url} if url else {}), "retries": 2, **target}
    environments = {
        "staging": {"port": 0},
        "production": {"port": 0, "requires": "staging", "target": there},
        "next": {"port": 0, "requires": "production"},  # it has the champion, so that no test asks a registry
    }
    workspace = write_params(folder, environments, serving={"admin": {"oidc": {
        "repository": "ann/models", "audience": "apples"}}})  # fmt: skip
    workspace.bundles.mkdir(parents=True, exist_ok=True)
    for bundle in bundles.values():
        if not (workspace.bundles / bundle.digest).exists():
            shutil.copytree(bundle.path, workspace.bundles / bundle.digest)
    return Near(workspace)


@pytest.fixture
def near(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Near:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    return neighbour(tmp_path / "near", far.url, far.bundles)


def stage(near: Near, digest: str) -> None:
    """What a deployment to staging would leave behind."""
    folder = near.workspace.environment("staging")
    change = Change(action="deploy", stable=digest, actor="x", reason="staged")
    append(folder, "staging", change, expected_head=head_hash(read_ledger(folder, "staging")))


def test_the_whole_life_of_a_model_on_a_server_elsewhere(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    with serving(tmp_path / "far", bundles) as far:
        live(far, neighbour(tmp_path / "near", far.url, bundles))


def live(far: Far, near: Near) -> None:
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
    assert (far.server.state()["canary"], far.server.state()["canary_weight"]) == (b, 25)
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
    assert far.server.state()["stable"] == b
    assert promoted.warnings == ()
    assert not deploy(near.params, near.workspace, ENV, b, **WHO).changed

    back = rollback(near.params, near.workspace, ENV, **WHO)
    assert back.entry is not None
    assert (back.entry.action, back.entry.stable, back.entry.quarantines) == ("rollback", a, (b,))
    assert far.server.state()["stable"] == a
    with pytest.raises(ClearwayError, match="is quarantined in production"):
        deploy(near.params, near.workspace, ENV, b, 25, **WHO)
    release(near.params, near.workspace, ENV, b, **WHO)
    assert quarantined(far.entries()) == frozenset()
    quarantine(near.params, near.workspace, ENV, b, **WHO)
    assert quarantined(far.entries()) == {b}
    release(near.params, near.workspace, ENV, b, **WHO)

    folder = far.server.workspace.environment("staging")
    append(folder, "staging", Change(action="deploy", stable=a, actor="x", reason="y"), expected_head=GENESIS)
    with pytest.raises(ClearwayError, match="must be stable in staging"):
        deploy(near.params, near.workspace, ENV, b, 25, **WHO)  # what it vouches for is better known there


def test_a_rollout_without_traffic_is_held_and_carried_on_from_another_machine(
    far: Far, near: Near, tmp_path: Path
) -> None:
    b = far.bundles["b"].digest
    stage(near, b)
    deploy(near.params, near.workspace, ENV, b, 25, **WHO)
    found = watch(near.params, near.workspace, ENV, actor="ann", send_traffic=lambda _: 0, timeout=60)
    assert found.verdict.verdict == "hold"
    last = far.entries()[-1]
    assert (last.action, last.canary, last.reason) == ("hold", b, found.verdict.sentence)
    assert last.evidence["canary_verdict"] == "hold"

    other = neighbour(tmp_path / "other", far.url, far.bundles)
    state = read_state(other.folder, reconcile(other.params, other.workspace, ENV))
    assert state is not None
    assert state.current is not None
    assert state.current.verdict == found.verdict
    stage(other, b)
    with pytest.raises(ClearwayError, match="may not rise from 25% to 50%: its verdict at 25% is 'hold'"):
        deploy(other.params, other.workspace, ENV, b, 50, **WHO)
    status, answer = far.order("canary", digest=b, weight=50)
    assert status == 422, "nor does the server let it rise, whoever asks"
    assert "may not rise" in answer["error"]
    withdrawn = deploy(other.params, other.workspace, ENV, b, 0, **WHO).entry
    assert withdrawn is not None
    assert (withdrawn.action, withdrawn.canary) == ("canary", None)


def test_a_switch_elsewhere_is_kept_warm_watched_by_its_own_log_and_undone(far: Far, near: Near) -> None:
    a, b = far.bundles["a"].digest, far.bundles["b"].digest
    stage(near, b)
    for number in range(60):
        assert far.server.predict({**ROW, "id": f"before-{number}"})[0] == 200
    switched = deploy(near.params, near.workspace, ENV, b, strategy="blue-green", **WHO).switch
    assert switched is not None
    assert switched.warm_minutes == 60
    assert far.server.state()["warm"] == a
    failed = {"version": b, "role": "stable", "revision": switched.sequence, "status": 500, "latency_ms": 1.0}
    until(lambda: len(read_log(far.server.folder / "predictions")) >= 60, "the log")
    with (far.server.folder / "predictions" / "19990101-failed.jsonl").open("w") as log:
        log.writelines(
            json.dumps({**failed, "served_at": "2026-01-01T00:00:00Z", "id": str(n)}) + "\n" for n in range(99)
        )
    found = watch_switch(near.params, near.workspace, switched, actor="ann")
    (far.server.folder / "predictions" / "19990101-failed.jsonl").unlink()
    assert (found.verdict, found.n_now) == ("rollback", 99), found.sentence
    assert found.n_before >= 60
    assert (far.entries()[-1].stable, far.entries()[-1].quarantines) == (a, (b,))


def test_what_a_server_elsewhere_serves_is_compared_there_and_one_that_is_gone_agrees_with_nothing(
    far: Far, near: Near, tmp_path: Path
) -> None:
    parts = ("ledger", "bundles", "routing", "server")
    found = examine(near.params, near.workspace, ENV, parts)
    assert [(one.part, one.agrees) for one in found] == [(part, True) for part in parts], found
    assert found[0].sentence == f"{len(far.entries())} entries verify"
    shown = near.script("ledger.py", "export", "--env", ENV)  # not what another command happened to copy
    assert [entry["hash"] for entry in json.loads(shown.stdout)] == [entry.hash for entry in far.entries()]
    gone = neighbour(tmp_path / "gone", "http://127.0.0.1:1", far.bundles, retries=0)
    for one in examine(gone.params, gone.workspace, ENV, parts):
        assert (one.agrees, "is out of reach" in one.sentence) == (False, True)
    with pytest.raises(UsageError, match="a shadow is opened and ended on its own machine"):
        open_shadow(near.params, near.workspace, ENV, far.bundles["b"].digest, **WHO)


def test_rounds_of_the_monitor_carry_a_held_rollout_to_its_promotion(far: Far, near: Near, tmp_path: Path) -> None:
    b = far.bundles["b"].digest
    stage(near, b)
    deploy(near.params, near.workspace, ENV, b, 25, **WHO)
    began = len(far.entries())
    watcher = neighbour(tmp_path / "watcher", far.url, {})  # a runner has neither bundles nor memory
    stage(watcher, b)
    columns = {"weight": {"kind": "float"}, "ripe": {"kind": "int"}}
    schema = {"tables": {"apples": {"columns": columns}}}
    (watcher.workspace.root / "schema.yaml").write_text(yaml.safe_dump(schema))

    def round_() -> Round:
        return look(watcher.params, watcher.workspace, ENV, datetime.now(UTC))

    first = round_()
    assert first.canary == "hold"
    assert len(far.entries()) == began, "an hourly look that finds nothing leaves no entry"
    found, asked = first, 0
    while found.canary == "hold" and asked < 3000:
        for _ in range(200):
            far.server.predict({**ROW, "id": f"r{asked}", "entity": f"bush-{asked}"})
            asked += 1
        time.sleep(0.3)  # as the log is written
        found = round_()
    assert found.canary == "promoted", found
    assert "canary" not in {alarm.kind for alarm in found.alarms}
    assert [entry.action for entry in far.entries()[began:]] == ["canary", "promote"]
    assert far.server.state()["stable"] == b


def test_a_round_at_a_server_that_is_away_is_one_alarm(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    lost = neighbour(tmp_path / "near", "http://127.0.0.1:9", far.bundles, retries=0)
    found = look(lost.params, lost.workspace, ENV, datetime.now(UTC))
    assert [alarm.kind for alarm in found.alarms] == ["monitor"]
    assert "out of reach" in found.alarms[0].sentence
    assert found.failed


def test_a_verdict_on_another_canary_is_not_kept(far: Far, near: Near) -> None:
    state = {"digest": far.bundles["b"].digest, "weight": 25, "since_revision": 1, "verdicts": []}
    status, answer = far.ask("PUT", "/admin/judgement", {"expected": far.head(), "rollout": state})
    assert (status, "does not speak of the open canary" in answer["error"]) == (422, True)
    skew = {"environment": "staging", "digest": "0" * 64, "rollout": 1, "verdict": "no_skew", "sentence": "fine"}
    assert far.ask("PUT", "/admin/judgement", {"expected": far.head(), "skew": skew})[0] == 422
    assert far.ask("PUT", "/admin/judgement", {"expected": far.head(), "skew": {"verdict": "fine"}})[0] == 400
    assert not (far.server.folder / "skew.json").exists()


def test_a_version_that_the_server_cannot_load_is_told_and_the_old_one_serves(
    far: Far, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearway.targets.http.REFUSAL_SECONDS", 0.5)
    broken, a = far.bundles["broken"].digest, far.bundles["a"].digest
    stage(near, broken)
    with pytest.raises(
        ClearwayError, match=r"deploy is recorded .* and not served yet: .* fails its warm-up"
    ) as caught:
        deploy(near.params, near.workspace, ENV, broken, **WHO)
    assert f"--env {ENV} --ensure-serving, not this command again" in str(caught.value)
    assert far.server.predict(ROW)[1]["version"] == a
    back = rollback(near.params, near.workspace, ENV, **WHO).entry
    assert back is not None
    assert (back.stable, back.quarantines) == (a, (broken,))
    until(lambda: far.server.state()["error"] is None, "the way back")


def test_a_supervised_server_is_waited_for_and_neither_started_nor_stopped(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised = {**SERVED, "production": {"port": 1, "target": {"kind": "local", "supervised": True}}}
    params = load_params(write_params(tmp_path / "supervised", supervised).params_file)
    served = serve_again(params, far.server.workspace, ENV).server
    assert served is not None
    assert served.url == far.url, "another port in params.yaml is the supervisor's affair"
    assert far.server.process.poll() is None
    monkeypatch.setattr("clearway.targets.local.FOLLOW_SECONDS", 0.2)
    alone = Workspace(tmp_path / "supervised")
    append(alone.environment(ENV), ENV, Change(action="deploy", stable="0" * 64, actor="x", reason="y"),
           expected_head=GENESIS)  # fmt: skip
    with pytest.raises(ClearwayError, match="no server answers; it is run by something else"):
        serve_again(params, alone, ENV)


# --- who is let in, and what is asked for ---

PATHS = [
    ("GET", "state"), ("GET", "ledger"), ("GET", "predictions"), ("GET", "predictions/x"), ("PUT", "judgement"),
    ("GET", "bundles/" + "0" * 64), ("PUT", "bundles/" + "0" * 64), ("POST", "bundles/" + "0" * 64),
    ("POST", "deploy"), ("POST", "canary"), ("POST", "rollback"), ("POST", "hold"), ("POST", "quarantine"),
    ("POST", "release"),
]  # fmt: skip


def test_every_path_is_closed_without_the_token(far: Far) -> None:
    before = far.entries()
    for method, path in PATHS:
        for token in (None, "x" * 40):
            status, answer = far.ask(method, f"/admin/{path}", {"expected": far.head()}, token=token)
            assert (status, list(answer)) == (401, ["error"]), (method, path)
    assert far.entries() == before
    routed = json.loads(json.dumps(far.ask("GET", "/admin/state")[1]))
    assert routed["refused"] >= 2 * len(PATHS)
    log = (far.server.workspace.root / "server.log").read_text()
    assert "refused 127.0.0.1: the token is not the one of this server" in log
    assert TOKEN not in log


def test_a_change_names_the_head_it_follows_on(far: Far) -> None:
    far.upload("b")
    old = {"sequence": len(far.entries()) - 1, "hash": far.entries()[-1].previous_hash}
    actual = far.head()
    status, answer = far.order("quarantine", digest=far.bundles["b"].digest, expected=old)
    assert (status, answer["head"]) == (409, actual)
    assert "moved" in answer["error"]
    assert far.head() == actual


def test_of_many_changes_at_once_on_one_head_one_wins(far: Far) -> None:
    head, digest = far.head(), far.bundles["c"].digest
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: far.order("quarantine", digest=digest, expected=head)[0], range(8)))
    assert sorted(said) == [200] + [409] * 7
    assert len(far.entries()) == head["sequence"] + 1


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "not valid JSON"), (b"[]", 400, ""), ({}, 400, "expected is missing"),
        ({"digest": "x", "weight": 10}, 400, "digest"), ({"digest": "0" * 64, "weight": 101}, 400, "weight"),
        ({"digest": "0" * 64, "weight": 10, "force": True}, 400, "unknown key force"),
        ({"digest": "0" * 64, "weight": 10, "reason": ""}, 400, "reason"),
        ({"digest": "0" * 64, "weight": 10}, 422, "is unknown"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_refused_by_name(far: Far, content: Any, status: int, said: str) -> None:
    before = far.entries()
    if isinstance(content, dict) and content:
        found, answer = far.order("canary", **content)
    else:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        found, answer = far.ask("POST", "/admin/canary", body, content_type="application/json")
    assert found == status
    assert said in answer["error"]
    assert far.entries() == before


def test_a_form_of_a_web_page_is_refused(far: Far) -> None:
    assert far.ask("POST", "/admin/rollback", b"{}", content_type="text/plain")[0] == 415


def test_what_must_be_live_elsewhere_first_is_asked_for(far: Far) -> None:
    far.upload("b")
    b = far.bundles["b"].digest
    head = {"sequence": 1, "hash": "0" * 64}
    for required in (None, {"environment": "staging", "stable": "0" * 64, "head": head},
                     {"environment": "other", "stable": b, "head": head}):  # fmt: skip
        status, answer = far.order("canary", digest=b, weight=10, **({"required": required} if required else {}))
        assert status == 422
        assert "must be stable in staging" in answer["error"]
    status, answer = far.order("deploy", digest=b, bootstrap=True)
    assert status == 422, "only the first control needs no other environment"


# --- bundles ---


def tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def test_a_bundle_is_sent_verified_kept_and_fetched(far: Far) -> None:
    bundle = far.bundles["c"]
    content = b"".join(packed(bundle))
    for _ in range(2):
        assert far.ask("PUT", f"/admin/bundles/{bundle.digest}", content)[0] == 200
    assert bundle.digest in far.ask("GET", "/admin/state")[1]["bundles"]
    assert far.ask("GET", f"/admin/bundles/{bundle.digest}") == (200, content)
    assert far.ask("GET", f"/admin/bundles/{'0' * 64}")[0] == 404
    assert far.ask("GET", "/admin/bundles/nonsense")[0] == 400


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (tar("../../escaped"), 422, "plain path"), (tar("/tmp/escaped"), 422, "plain path"),
        (tar("payload", tarfile.SYMTYPE), 422, "no plain file"), (b"", 422, "cut short"),
        (tar("payload", tarfile.CHRTYPE), 422, "no plain file"), (b"nonsense" * 200, 422, "damaged"),
        (tar("payload/model.onnx"), 422, "is missing"),
        (bytes(2**17 + 1), 413, "serving.admin.max_bundle_bytes"),
    ],
)  # fmt: skip
def test_no_other_archive_is_let_in(far: Far, content: bytes, status: int, said: str) -> None:
    digest = "d" * 64
    found, answer = far.ask("PUT", f"/admin/bundles/{digest}", content)
    assert (found, said in answer["error"]) == (status, True), answer
    assert not (far.server.workspace.bundles / digest).exists()
    left = [path.name for path in (far.server.workspace.var / "uploads").iterdir()]
    assert left in ([], ["lock"])


def test_what_a_killed_server_left_of_an_upload_is_removed(far: Far) -> None:
    left = far.server.workspace.var / "uploads" / "bundle-killed"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    far.upload("a")
    assert not left.exists()


def test_a_bundle_under_another_digest_is_refused(far: Far) -> None:
    status, answer = far.ask("PUT", f"/admin/bundles/{'e' * 64}", b"".join(packed(far.bundles["a"])))
    assert status == 422
    assert "is of another bundle" in answer["error"]
    assert str(far.server.workspace.root) not in answer["error"]


def test_an_endless_upload_ends(far: Far) -> None:
    with socket.create_connection(("127.0.0.1", far.server.port), timeout=20) as caller:
        head = f"PUT /admin/bundles/{'f' * 64} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
        caller.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            for _ in range(200):
                caller.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")
        assert b" 413 " in caller.recv(4096).splitlines()[0]


# --- the log ---


def logged(far: Far) -> list[str]:
    return [str(one) for one in read_log(far.server.folder / "predictions")["id"]]


def test_the_log_is_copied_and_then_only_what_is_new(far: Far, near: Near) -> None:
    target = target_of(near.params, near.workspace, ENV)
    target.pull()
    copy = near.folder / "predictions"
    for count in (3, 5):
        for number in range(count):
            assert far.server.predict({**ROW, "id": f"{count}-{number}"})[0] == 200
        until(lambda last=f"{count}-{count - 1}": logged(far)[-1:] == [last], "the log")  # type: ignore[misc]
        target.pull_log(len(far.entries()))
        assert read_log(copy)["id"].tolist()[-count:] == [f"{count}-{number}" for number in range(count)]
    assert read_log(copy).equals(read_log(far.server.folder / "predictions"))
    (copy / "20130101-1.jsonl").write_text("gone there\n")
    target.pull_log()
    assert not (copy / "20130101-1.jsonl").exists()


@pytest.mark.parametrize("path", ["..%2Fledger.jsonl", "../ledger.jsonl", "%2Fetc%2Fpasswd", "nothing.jsonl", ""])
def test_nothing_but_the_log_can_be_read(far: Far, path: str) -> None:
    status, answer = far.ask("GET", f"/admin/predictions/{path}")
    assert status == 404, answer
    assert far.ask("GET", "/admin/predictions?since_revision=9999")[0] == 400
    assert far.ask("GET", "/admin/predictions?since_revision=-1")[0] == 400


# --- what can go wrong on the way ---


def refusal(near: Near) -> str:
    with pytest.raises(ClearwayError) as caught:
        rollback(near.params, near.workspace, ENV, **WHO)
    said = str(caught.value)
    assert "\n" not in said
    assert TOKEN not in said
    return said


def test_an_answer_that_was_lost_is_not_a_second_change(far: Far, tmp_path: Path, near: Near) -> None:
    lost = ["POST", "GET"]
    with proxy(far.server.port, lose=lost) as port:
        there = neighbour(tmp_path / "there", f"http://127.0.0.1:{port}", far.bundles)
        before = len(far.entries())
        entry = quarantine(there.params, there.workspace, ENV, far.bundles["c"].digest, **WHO)
    assert lost == []
    assert len(far.entries()) == before + 1
    assert entry == far.entries()[-1]


def test_a_change_by_somebody_else_is_told_and_not_repeated(far: Far, near: Near) -> None:
    target = target_of(near.params, near.workspace, ENV)
    target.pull()
    seen = read_ledger(near.folder, ENV)
    assert far.order("quarantine", digest=far.bundles["b"].digest)[0] == 200
    change = Change(action="rollback", stable=seen[-1].stable, actor="ann", reason="a test")
    with pytest.raises(ClearwayError, match=r"the ledger of production moved: expected entry \d+"):
        target.record(change, head_hash(seen))


def test_a_server_that_is_away_is_named_in_one_line(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    away = neighbour(tmp_path / "away", "http://127.0.0.1:9", {}, retries=1)
    said = refusal(away)
    assert said.startswith("http://127.0.0.1:9 is out of reach (2 attempts): ")
    assert "Connection refused" in said
    done = away.script("rollback.py", "--env", ENV)
    assert (done.returncode, done.stderr) == (1, f"error: {said}\n")


def test_a_wrong_token_is_told_apart(far: Far, near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_PRODUCTION_TOKEN", "w" * 40)
    said = refusal(near)
    assert "(401: the token is not the one of this server): set CLEARWAY_PRODUCTION_TOKEN" in said
    monkeypatch.setenv("CLEARWAY_PRODUCTION_TOKEN", "short")
    assert "CLEARWAY_PRODUCTION_TOKEN is no token" in refusal(near)
    monkeypatch.delenv("CLEARWAY_PRODUCTION_TOKEN")
    monkeypatch.delenv("CLEARWAY_ADMIN_TOKEN")
    assert "no token for http://127.0.0.1" in refusal(near)


def test_another_environment_at_the_address_is_told_apart(far: Far, near: Near) -> None:
    there = neighbour(near.workspace.root, None, {})
    content = yaml.safe_load(there.workspace.params_file.read_text())
    content["environments"]["staging"]["target"] = {"kind": "http", "url": far.url}
    there.workspace.params_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ClearwayError, match="serves environment 'production', expected 'staging'"):
        reconcile(there.params, there.workspace, "staging")
    content["project"]["name"] = "pears"
    there.workspace.params_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ClearwayError, match="serves project 'apples', expected 'pears'"):
        reconcile(there.params, there.workspace, "staging")


def test_another_release_there_is_told_apart(far: Far, near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearway.targets.http.API", 3)
    assert "whose /admin speaks version 2, and this one 3: bring both to the same release" in refusal(near)


def test_a_history_that_was_cut_or_rewritten_there_is_noticed_here(far: Far, near: Near) -> None:
    entries = reconcile(near.params, near.workspace, ENV)
    anchor = near.folder / "head.json"
    seen = json.loads(anchor.read_text())
    write_json(anchor, {**seen, "sequence": len(entries) + 1, "hash": "e" * 64})
    assert f"the ledger ends at entry {len(entries)}, but entry {len(entries) + 1}" in refusal(near)
    write_json(anchor, {**seen, "hash": "e" * 64})
    assert "the history was rewritten" in refusal(near)
    write_json(anchor, seen)
    (near.folder / "ledger.jsonl").write_text("half a copy")
    assert reconcile(near.params, near.workspace, ENV) == entries


def test_a_server_behind_tls_is_trusted_by_its_authority_only(far: Far, tmp_path: Path, near: Near) -> None:
    certificate = self_signed(tmp_path / "tls.pem")
    with proxy(far.server.port, certificate=certificate) as port:
        url = f"https://127.0.0.1:{port}"
        stranger = neighbour(tmp_path / "stranger", url, {})
        assert "its certificate is not trusted" in refusal(stranger)
        friend = neighbour(tmp_path / "friend", url, far.bundles, ca_file=str(certificate))
        assert reconcile(friend.params, friend.workspace, ENV) == far.entries()
        barred = quarantine(friend.params, friend.workspace, ENV, far.bundles["b"].digest, **WHO)
        assert barred == far.entries()[-1]


def test_a_github_job_needs_no_token(
    far: Far, near: Near, github: tuple[GitHub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLEARWAY_ADMIN_TOKEN")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{github[1]}/token?api=1")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-this-job")
    entry = quarantine(near.params, near.workspace, ENV, far.bundles["b"].digest, actor="eve", reason="drill")
    assert entry.actor == "ann (GitHub ann/models run 4711)"
    true = github[0].claims
    for claim in ({"event_name": "pull_request"}, {"environment": "staging"}, {"repository": "eve/models"}):
        monkeypatch.setattr(github[0], "claims", {**true, **claim})
        assert f"(403: the token's {next(iter(claim))} is" in refusal(near)


def test_a_bundle_that_is_only_there_is_fetched(far: Far, near: Near) -> None:
    digest = far.bundles["a"].digest
    shutil.rmtree(near.workspace.bundles / digest)
    target_of(near.params, near.workspace, ENV).fetch(digest)
    assert verify(near.workspace.bundles / digest, digest).digest == digest


def test_the_environments_own_tests_ask_the_server_elsewhere(far: Far, near: Near, tmp_path: Path) -> None:
    fresh = neighbour(tmp_path / "fresh", far.url, {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/integration", "--env", ENV,
         "-k", "ready or ledger_says or golden"],
        cwd=REPOSITORY,
        env={**os.environ, "CLEARWAY_PROJECT": str(fresh.workspace.root)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
