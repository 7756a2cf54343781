"""Whom an alert is about, what it says, and that an address is never shown."""

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clearway.alerts import MOST, message, tell, untold
from clearway.deployment import BOOTSTRAP_REASON
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import Change, Entry, append, head_hash, read_ledger
from clearway.params import Params
from clearway.workspace import Workspace

A, B = "a" * 64, "b" * 64
ENV = "production"
ALL = ("deploy", "canary", "promote", "hold", "rollback", "quarantine", "release")


def write(folder: Path, *changes: dict[str, object]) -> list[Entry]:
    for change in changes:
        made = Change.model_validate({"stable": A, "actor": "ann", "reason": "a test", **change})
        append(folder, ENV, made, expected_head=head_hash(read_ledger(folder, ENV)))
    return read_ledger(folder, ENV)


def test_what_is_new_and_wanted_and_no_older_than_a_day_is_told(tmp_path: Path) -> None:
    entries = write(tmp_path, {"action": "deploy"}, {"action": "hold"}, {"action": "deploy", "stable": B})
    now = datetime.now(UTC)
    assert untold(entries, 1, ALL, now) == entries[1:]
    assert untold(entries, 0, ("deploy",), now) == [entries[0], entries[2]]
    assert untold(entries, 3, ALL, now) == []
    assert untold(entries, 0, ALL, now + timedelta(days=2)) == []
    assert len(untold(entries * 20, 0, ALL, now)) == MOST


def test_a_message_says_what_answers_now_why_and_who_did_it(tmp_path: Path) -> None:
    entries = write(
        tmp_path,
        {"action": "deploy"},
        {"action": "canary", "canary": B, "canary_weight": 10, "evidence": {"run": "https://example.org/7"}},
        {"action": "rollback", "quarantines": (B,), "reason": "errors rose"},
        {"action": "deploy", "stable": B},
    )
    title, body = message(entries[1], "apples")
    assert title == "apples: canary in production"
    assert "canary bbbbbbbbbbbb answers 10%, aaaaaaaaaaaa the rest" in body
    assert "run: https://example.org/7" in body
    assert "before:" not in body
    title, body = message(entries[2], "apples")
    assert body.splitlines()[:3] == ["aaaaaaaaaaaa answers everything", "quarantined: bbbbbbbbbbbb", "why: errors rose"]
    assert "who: ann, 20" in body
    assert "before: aaaaaaaaaaaa" in message(entries[3], "apples")[1]


@pytest.fixture
def params() -> Params:
    return Params.model_validate(
        {
            "project": {"name": "toy"},
            "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
            "data": {"table": "rows", "label": "y"},
            "environments": {ENV: {"port": 0}},
        }
    )


@pytest.mark.parametrize("urls", ["", "   ", "json://127.0.0.1:9/secret nonsense://secret"])
def test_an_address_that_is_none_is_refused_and_not_shown(params: Params, tmp_path: Path, urls: str) -> None:
    workspace = Workspace(tmp_path)
    write(workspace.environment(ENV), {"action": "deploy"})
    with pytest.raises(UsageError, match="CLEARWAY_ALERT_URLS") as raised:
        tell(params, workspace, ENV, urls, datetime.now(UTC))
    assert "secret" not in str(raised.value)


def test_a_receiver_that_is_away_is_named_by_its_kind_and_told_again_later(params: Params, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.environment(ENV)
    write(
        folder, {"action": "deploy", "reason": BOOTSTRAP_REASON}, {"action": "canary", "canary": B, "canary_weight": 5}
    )
    with pytest.raises(ClearwayError, match=r"receiver 1 \(JSON\) did not take the alert of entry 1") as raised:
        tell(params, workspace, ENV, "json://127.0.0.1:9/secret", datetime.now(UTC), after=1)
    assert "secret" not in str(raised.value)
    assert not (folder / "alerted.json").exists()


def test_one_dead_receiver_is_named_and_does_not_have_the_others_told_again(params: Params, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.environment(ENV)
    write(folder, {"action": "deploy"})
    with HTTPServer(("127.0.0.1", 0), Accepts) as receiver:
        thread = threading.Thread(target=receiver.handle_request)
        thread.start()
        urls = f"json://127.0.0.1:{receiver.server_port} json://127.0.0.1:9"
        with pytest.raises(
            ClearwayError, match=r"^receiver 2 \(JSON\) did not take the alert of entry 1 .* still hold$"
        ):
            tell(params, workspace, ENV, urls, datetime.now(UTC))
        thread.join()
    assert tell(params, workspace, ENV, "json://127.0.0.1:9", datetime.now(UTC)) == []


class Accepts(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_damaged_record_is_named(params: Params, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write(workspace.environment(ENV), {"action": "deploy"})
    (workspace.environment(ENV) / "alerted.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"alerted\.json is damaged .*delete it"):
        tell(params, workspace, ENV, "json://127.0.0.1:9", datetime.now(UTC))
