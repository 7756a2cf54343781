"""What the doctor says of a repository's settings, asked of a real HTTP server that answers as GitHub does."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clearway.doctor import Facts, Finding, Unread, diagnose
from clearway.doctor_report import markdown
from clearway.errors import ClearwayError
from clearway.github_settings import GitHub, read_settings

REPOSITORY = Path(__file__).parents[3]
FILE = ".github/workflows/delivery.yml"
REVIEWED = {"protection_rules": [{"type": "required_reviewers"}], "deployment_branch_policy": {}}
GUARDED = {"rules": [{"type": kind} for kind in ("deletion", "non_fast_forward", "pull_request")]}
RIGHT = Facts(
    repository={"default_branch": "main"},
    actions={"enabled": True, "allowed_actions": "selected"},
    selected={"github_owned_allowed": True, "patterns_allowed": ["ossf/*"]},
    token={"default_workflow_permissions": "read", "can_approve_pull_request_reviews": False},
    workflows={"workflows": [{"path": FILE, "state": "active"}]},
    environments={"environments": [{"name": "staging", **REVIEWED}, {"name": "production", **REVIEWED}]},
    main_rules=GUARDED,
    state_rules=GUARDED,
    alerts={"enabled": True},
    files=[FILE],
    uses=["actions/checkout", "ossf/scorecard-action"],
)


def found(facts: Facts) -> dict[str, Finding]:
    """What is not right, by name."""
    made = diagnose(facts, ["staging", "production"], "production")
    return {finding.name: finding for finding in made if finding.status != "ok"}


def test_a_repository_as_it_should_be_has_nothing_to_change() -> None:
    assert found(RIGHT) == {}


@pytest.mark.parametrize(
    ("change", "name", "status", "said"),
    [
        ({"repository": {"archived": True}}, "repository", "change", "archived"),
        ({"actions": {"enabled": False, "allowed_actions": "all"}}, "Actions", "change", "off: no workflow runs"),
        ({"actions": {"enabled": True, "allowed_actions": "all"}}, "allowed actions", "advice", "all"),
        (
            {"actions": {"enabled": True, "allowed_actions": "local_only"}},
            "allowed actions",
            "change",
            "actions/checkout",
        ),
        ({"selected": {"github_owned_allowed": True}}, "allowed actions", "change", "ossf/scorecard-action"),
        ({"selected": {"patterns_allowed": ["ossf/*@v2"]}}, "allowed actions", "change", "actions/checkout"),
        (
            {"selected": {"github_owned_allowed": True, "patterns_allowed": ["ossf/*", "!ossf/scorecard-action@*"]}},
            "allowed actions",
            "change",
            "ossf/scorecard-action",
        ),
        ({"workflows": {"workflows": []}}, "workflow delivery.yml", "change", "does not know it"),
        (
            {"workflows": {"workflows": [{"path": FILE, "state": "disabled_inactivity"}]}},
            "workflow delivery.yml",
            "change",
            "60 days",
        ),
        (
            {"workflows": {"workflows": [{"path": FILE, "state": "disabled_fork"}]}},
            "workflow delivery.yml",
            "change",
            "new fork",
        ),
        ({"token": {"default_workflow_permissions": "write"}}, "default token rights", "advice", "write"),
        (
            {"token": {"default_workflow_permissions": "read", "can_approve_pull_request_reviews": True}},
            "default token rights",
            "advice",
            "approve",
        ),
        ({"environments": {}}, "environment production", "advice", "not there yet"),
        (
            {"environments": {"environments": [{"name": "production"}, {"name": "staging", **REVIEWED}]}},
            "environment production",
            "advice",
            "no required reviewers, open to every branch",
        ),
        ({"main_rules": {"rules": []}}, "default branch", "advice", "deletion, forced pushes, pushes without a pull"),
        ({"state_rules": {"rules": [{"type": "deletion"}]}}, "state branch", "advice", "forced pushes"),
        ({"alerts": {"enabled": False}}, "Dependabot alerts", "advice", "off"),
    ],
)
def test_each_setting_is_found_and_says_what_to_do(change: dict[str, Any], name: str, status: str, said: str) -> None:
    finding = found(replace(RIGHT, **change))[name]
    assert finding.status == status
    assert said in finding.found
    assert finding.remedy
    assert finding.page


@pytest.mark.parametrize("part", ["actions", "selected", "token", "workflows", "environments", "main_rules", "alerts"])
def test_what_may_not_be_read_is_unknown_and_never_right(part: str) -> None:
    findings = found(replace(RIGHT, **{part: Unread("the token may not read it")})).values()
    assert {finding.status for finding in findings} == {"unknown"}


def test_staging_needs_no_reviewer() -> None:
    environments = [{"name": "staging", "deployment_branch_policy": {}}, {"name": "production", **REVIEWED}]
    assert found(replace(RIGHT, environments={"environments": environments})) == {}


def test_the_plan_is_named_where_a_private_repository_may_lack_a_protection() -> None:
    facts = replace(RIGHT, repository={"private": True}, environments={}, main_rules={"rules": []})
    for name in ("environment production", "default branch"):
        assert "paid plan" in found(facts)[name].remedy


def test_the_summary_counts_what_is_right_and_lists_the_rest() -> None:
    text = markdown(diagnose(replace(RIGHT, alerts={"enabled": False}), ["staging"], "production"), "https://x/o/n")
    assert text.startswith("### Settings: 8 of 9 as they should be")
    assert "| Dependabot alerts | advice | off | [enable](https://x/o/n/settings/security_analysis) |" in text


ANSWERS: dict[str, tuple[int, Any]] = {
    "/repos/team/model": (200, {"default_branch": "main", "private": False}),
    "/repos/team/model/actions/permissions": (200, {"enabled": True, "allowed_actions": "selected"}),
    "/repos/team/model/actions/permissions/selected-actions": (200, {"github_owned_allowed": True}),
    "/repos/team/model/actions/permissions/workflow": (403, {"message": "Resource not accessible by integration"}),
    "/repos/team/model/actions/workflows?per_page=100": (200, {"workflows": [{"path": FILE, "state": "active"}]}),
    "/repos/team/model/environments?per_page=100": (404, {"message": "Not Found"}),
    "/repos/team/model/rules/branches/main": (200, [{"type": "pull_request"}]),
    "/repos/team/model/branches/main": (200, {"protected": True, "protection": {"enabled": True}}),
    "/repos/team/model/rules/branches/clearway-state": (200, []),
    "/repos/team/model/vulnerability-alerts": (204, None),
}


@contextmanager
def github(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as GitHub would; its address, and the tokens it was sent."""
    tokens: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization", ""))
            status, content = answers.get(self.path, (404, {"message": "Not Found"}))
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", tokens
        finally:
            server.shutdown()
            thread.join()


def test_settings_are_read_from_the_api_and_from_the_checkout() -> None:
    with github(ANSWERS) as (address, tokens):
        facts = read_settings(GitHub("team/model", "a-token", address), REPOSITORY)
    assert set(tokens) == {"Bearer a-token"}
    assert facts.environments == {}
    assert isinstance(facts.token, Unread)
    assert facts.alerts == {"enabled": True}
    assert FILE in facts.files
    assert {"actions/checkout", "ossf/scorecard-action"} <= set(facts.uses)
    findings = found(replace(facts, files=[FILE]))
    assert set(findings) == {
        "allowed actions",
        "default token rights",
        "environment staging",
        "environment production",
        "state branch",
    }
    assert findings["allowed actions"].remedy == "add ossf/scorecard-action@*"


def test_a_repository_that_cannot_be_read_is_one_line() -> None:
    with github({}) as (address, _), pytest.raises(ClearwayError, match=r"^GitHub answers 404 .* GITHUB_TOKEN$"):
        read_settings(GitHub("team/model", None, address), REPOSITORY)


def test_a_server_that_is_not_there_is_one_line_without_the_token() -> None:
    with github({}) as (address, _):
        pass
    with pytest.raises(ClearwayError, match=r"does not answer \(ConnectionError\)") as raised:
        read_settings(GitHub("team/model", "a-token", address), REPOSITORY)
    assert "a-token" not in str(raised.value)


def test_the_script_fails_for_what_must_be_changed_unless_it_only_advises() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "doctor.py"), "--repository", "team/model"]
    with github(ANSWERS) as (address, _):
        environment = {"GITHUB_API_URL": address, "PATH": ""}
        runs = [
            subprocess.run(
                [*command, *more], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
            )
            for more in ([], ["--advise"])
        ]
    assert [run.returncode for run in runs] == [1, 0]
    assert "settings, " in runs[0].stdout.splitlines()[-1]
    assert "→ add ossf/scorecard-action@*" in runs[0].stdout
