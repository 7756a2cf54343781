"""What follows an entry, and what repeats it: alerts, warm versions, reconciliation, and the commands around them."""

import http.client
import io
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_server import until
from small_site import ENV, REPORT, Site, make_site

from clearway.blue_green import watch_switch, write_report
from clearway.deployment import deploy, release, rollback, serve_again
from clearway.drill import SIZES, make_version
from clearway.files import sha256_bytes
from clearway.ledger import quarantined
from clearway.local_target import describe_server, find_server, stop
from clearway.reconciliation import examine, repair
from clearway.routing import read_routing, write_routing
from clearway.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One environment with one server, on which the tests carry on from whatever the last one left."""
    made = make_site(tmp_path_factory.mktemp("site"))
    yield made
    stop(made.workspace, ENV)


@pytest.fixture(autouse=True)
def _no_run_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("GITHUB_", "CLEARWAY_ALERT"))]:
        monkeypatch.delenv(name)


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def script(site: Site, name: str, *arguments: str) -> Ended:
    """Run a script as it is, in this process, which has imported already what costs seconds."""
    path = str(ROOT / "scripts" / name)
    said, complained = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [path, "--project", str(site.workspace.root), *arguments]
    try:
        with redirect_stdout(said), redirect_stderr(complained), pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    return Ended(int(end.value.code or 0), said.getvalue(), complained.getvalue())


def served(site: Site) -> dict[str, Any]:
    server = find_server(site.workspace, ENV)
    assert server is not None
    return describe_server(server) or {}


def other(site: Site) -> str:
    """A version that is not stable, whichever that is."""
    entries = site.entries()
    return site.a if not entries or entries[-1].stable != site.a else site.b


def settled(site: Site) -> None:
    """Leave nothing barred and a version that serves."""
    for digest in quarantined(site.entries()):
        site.do(release, digest)


class Inbox:
    """A receiver of Apprise's ``json://``."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/a-secret-path"


@contextmanager
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def test_each_transition_is_told_once_and_what_was_missed_is_told_with_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(site.folder, ignore_errors=True)
    first = site.do(deploy, site.a)
    assert first.warnings == ()
    with inbox() as received:
        monkeypatch.setenv("CLEARWAY_ALERT_URLS", received.url)
        opened = site.do(deploy, site.b, 10)
        assert opened.warnings == ()
        assert [message["title"] for message in received.messages] == ["sizes: canary in staging"]
        assert f"canary {site.b[:12]} answers 10%" in received.messages[0]["message"]
        monkeypatch.setenv("CLEARWAY_ALERT_URLS", "json://127.0.0.1:9/a-secret-path")
        back = site.do(rollback)
        (warning,) = back.warnings
        assert warning.startswith("nobody was told of entry 3: receiver 1 (JSON) did not take the alert")
        assert "a-secret-path" not in warning
        monkeypatch.setenv("CLEARWAY_ALERT_URLS", received.url)
        released = script(site, "release.py", "--env", ENV, "--digest", site.b, "--reason", "a test")
        assert (released.returncode, released.stderr) == (0, "")
        titles = [message["title"] for message in received.messages]
        assert titles == [f"sizes: {action} in staging" for action in ("canary", "rollback", "release")]
        assert received.messages[1]["type"] == "failure"
    assert read_json_number(site.folder / "alerted.json") == 4


def read_json_number(path: Path) -> int:
    return int(json.loads(path.read_text())["sequence"])


def test_a_receiver_that_never_answers_delays_nobody_beyond_its_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(site)
    site.do(deploy, other(site))
    params = yaml.safe_load(site.workspace.params_file.read_text())
    site.workspace.params_file.write_text(yaml.safe_dump({**params, "alerts": {"timeout_seconds": 0.5}}))
    served_at: list[float] = []
    try:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            monkeypatch.setenv("CLEARWAY_ALERT_URLS", f"json://127.0.0.1:{silent.getsockname()[1]}")
            before = site.entries()[-1].stable
            outcome = site.do(rollback, progress=lambda _: served_at.append(served(site)["revision"]))
    finally:
        site.workspace.params_file.write_text(yaml.safe_dump(params))
    assert outcome.entry is not None
    assert outcome.entry.quarantines == (before,)
    assert served_at == [outcome.entry.sequence], "it was served before anybody was told"
    assert outcome.warnings == (f"nobody was told of entry {outcome.entry.sequence}: it took too long",)


def test_a_version_is_kept_warm_for_a_rollback_and_let_go_when_its_time_is_over(
    site: Site,
) -> None:
    settled(site)
    blue, green = site.entries()[-1].stable, other(site)
    switched = site.do(deploy, green, strategy="blue-green")
    assert switched.entry is not None
    assert switched.entry.warm_minutes == 60
    assert served(site)["warm"] == blue
    assert list(served(site)["runtimes"]) == [green]
    again = script(site, "deploy.py", "--env", ENV, "--digest", green, "--strategy", "blue-green")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), "it is not watched twice"
    site.do(rollback)
    found = served(site)
    assert (found["stable"], found["warm"]) == (blue, None)

    settled(site)
    params = yaml.safe_load(site.workspace.params_file.read_text())
    short = {**params, "deployment": {"strategy": "blue-green", "blue_green": {"keep_warm_minutes": 0.02}}}
    site.workspace.params_file.write_text(yaml.safe_dump(short))
    try:
        site.do(deploy, green)
    finally:
        site.workspace.params_file.write_text(yaml.safe_dump(params))
    until(lambda: served(site)["warm"] is None, "the version before is let go")
    assert served(site)["error"] is None


def ask(site: Site, count: int) -> None:
    """Rows of every size, over one connection, whatever is answered."""
    server = find_server(site.workspace, ENV)
    assert server is not None
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    for number in range(count):
        body = json.dumps({"size": number % SIZES})
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        connection.getresponse().read()
    connection.close()


def test_a_switch_is_watched_and_undone_when_the_new_version_fails(site: Site) -> None:
    settled(site)
    bad = make_version(site.workspace, 99, fails=True)
    params = yaml.safe_load(site.workspace.params_file.read_text())
    watched = {"strategy": "blue-green", "blue_green": {"watch_minutes": 1, "min_requests": 20}}
    site.workspace.params_file.write_text(yaml.safe_dump({**params, "deployment": watched}))
    try:
        good = site.do(deploy, other(site))
        ask(site, 200)
        switched = site.do(deploy, bad)
        ask(site, 100)
        found = watch_switch(site.params, site.workspace, switched.switch, actor="tester")
        write_report(site.workspace, switched.switch, found)
        calm = {"strategy": "blue-green", "blue_green": {"watch_minutes": 0}}
        site.workspace.params_file.write_text(yaml.safe_dump({**params, "deployment": calm}))
        held = script(site, "deploy.py", "--env", ENV, "--digest", other(site), "--reason", "a test")
    finally:
        site.workspace.params_file.write_text(yaml.safe_dump(params))
    assert found.verdict == "rollback"
    assert found.sentence.startswith("errors rose from 0.00% to ")
    back = next(entry for entry in site.entries() if bad in entry.quarantines)
    assert (back.action, back.stable, back.reason) == ("rollback", good.entry.stable, found.sentence)
    report = json.loads((site.workspace.reports / "blue_green.json").read_text())
    assert (held.returncode, report["verdict"]) == (3, "hold"), held.stderr
    assert "prove nothing" in held.stdout
    assert "Switch in staging" in (site.workspace.reports / "blue_green.html").read_text()


def test_what_a_deployment_came_from_stands_in_its_entry(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(site)
    for name, value in (("SERVER_URL", "https://example.org"), ("REPOSITORY", "ann/apples"), ("RUN_ID", "42")):
        monkeypatch.setenv(f"GITHUB_{name}", value)
    outcome = site.do(deploy, other(site))
    assert outcome.entry is not None
    assert outcome.entry.evidence == {
        "run": "https://example.org/ann/apples/actions/runs/42",
        "commit": "c0ffee",
        "data": "5" * 64,
        "gate_report": sha256_bytes(json.dumps(REPORT).encode()),
    }


@pytest.mark.parametrize("harm", ["routing edited", "routing lost", "server stopped"])
def test_every_difference_is_found_reported_and_repaired_towards_the_ledger(site: Site, harm: str) -> None:
    if not site.entries():
        site.do(deploy, site.a)
    serve_again(site.params, site.workspace, ENV)
    path = site.folder / "routing.json"
    if harm == "routing edited":
        write_routing(path, read_routing(path).model_copy(update={"salt": "another"}))
    elif harm == "routing lost":
        path.unlink()
    else:
        stop(site.workspace, ENV)
    parts = ("ledger", "bundles", "routing", "server")
    differing = [finding.part for finding in examine(site.params, site.workspace, ENV, parts) if not finding.agrees]
    assert "routing" in differing or "server" in differing
    repair(site.params, site.workspace, ENV, parts)
    assert all(finding.agrees for finding in examine(site.params, site.workspace, ENV, parts))


def test_reconcile_says_what_differs_and_ends_with_an_exit_code_of_its_own(site: Site) -> None:
    serve_again(site.params, site.workspace, ENV)
    (site.folder / "routing.json").unlink()
    found = script(site, "reconcile.py", "--env", ENV)
    assert found.returncode == 5, found.stderr
    assert "staging      routing  DIFFERS routing.json is missing or damaged" in found.stdout
    repaired = script(site, "reconcile.py", "--env", ENV, "--repair")
    assert (repaired.returncode, "DIFFERS" in repaired.stdout) == (0, False), repaired.stderr
    wrong = script(site, "reconcile.py", "--only", "everything")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_the_ledger_is_verified_shown_and_exported_and_a_cut_tail_is_named(site: Site, tmp_path: Path) -> None:
    verified = script(site, "ledger.py", "verify")
    assert verified.returncode == 0
    assert f"staging: {len(site.entries())} entries verify, head {site.entries()[-1].hash}" in verified.stdout
    assert "production: 0 entries verify" in verified.stdout
    assert "staging now" in script(site, "ledger.py", "show", "--env", ENV, "--last", "2").stdout
    exported = script(site, "ledger.py", "export", "--env", ENV, "--format", "csv").stdout
    assert len(exported.splitlines()) == len(site.entries()) + 1
    copy = Workspace(tmp_path)
    shutil.copy(site.workspace.params_file, copy.params_file)
    shutil.copytree(site.folder, copy.environment(ENV))
    ledger = copy.environment(ENV) / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    cut = script(Site(copy, site.a, site.b, site.c), "ledger.py", "verify")
    assert (cut.returncode, cut.stderr.count("\n")) == (1, 1)
    assert "its tail was cut" in cut.stderr


def test_a_ledger_of_another_environment_and_an_open_damage_stop_a_rollback(site: Site, tmp_path: Path) -> None:
    copy = Workspace(tmp_path)
    shutil.copy(site.workspace.params_file, copy.params_file)
    shutil.copytree(site.folder, copy.environment("production"))
    refused = script(Site(copy, site.a, site.b, site.c), "rollback.py", "--env", "production")
    assert refused.returncode == 1
    assert "environment is 'staging', expected 'production'" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_of_two_processes_that_decided_on_one_head_one_wins_and_the_other_is_told(site: Site) -> None:
    settled(site)
    site.do(deploy, other(site))
    before = len(site.entries())
    command = [sys.executable, str(ROOT / "scripts" / "quarantine.py"), "--project", str(site.workspace.root)]
    command += ["--env", ENV, "--digest", site.c, "--reason", "a race"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [(racer.communicate(timeout=240)[1].decode(), racer.returncode) for racer in racers]
    added = site.entries()[before:]
    assert len(added) == sum(code == 0 for _, code in ends) >= 1
    assert all(code == 0 or "the head moved while this command decided" in said for said, code in ends), ends
    settled(site)


def test_a_weight_with_blue_green_is_wrong_usage_and_records_nothing(site: Site) -> None:
    before = len(site.entries())
    found = script(site, "deploy.py", "--env", ENV, "--digest", site.c, "--strategy", "blue-green", "--canary", "10")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "switches at once: it has no weight" in found.stderr
    assert len(site.entries()) == before
