"""One comment per pull request, against a real HTTP server that keeps comments as GitHub does."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.sticky_comment import AUTHOR, LONGEST, MARKER, Comments, comment

REPOSITORY = Path(__file__).parents[3]


class GitHub(ThreadingHTTPServer):
    """Comments of pull request 7 of team/model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.comments: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.refusals: list[tuple[str, int]] = []
        """Methods and statuses of the next answers, in place of what was asked for."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def write(self, body: str, login: str = AUTHOR) -> None:
        number = len(self.comments) + 1
        url = f"https://github.test/comments/{number}"
        self.comments.append({"id": number, "body": body, "user": {"login": login}, "html_url": url})


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        found = re.fullmatch(r"/repos/team/model/issues/7/comments\?per_page=(\d+)&page=(\d+)", self.path)
        size, page = (int(group) for group in found.groups()) if found else (0, 0)
        self.answer(lambda _: self.server.comments[size * (page - 1) : size * page] if found else None)

    def do_POST(self) -> None:
        def write(body: str) -> Any:
            self.server.write(body)
            return self.server.comments[-1]

        self.answer(write if self.path == "/repos/team/model/issues/7/comments" else lambda _: None)

    def do_PATCH(self) -> None:
        def change(body: str) -> Any:
            (one,) = [one for one in self.server.comments if self.path.endswith(f"/issues/comments/{one['id']}")]
            one["body"] = body
            return one

        self.answer(change)

    def answer(self, act: Any) -> None:
        self.server.asked.append(self.command)
        self.server.tokens.add(self.headers["Authorization"])
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        due = self.server.refusals and self.server.refusals[0][0] == self.command
        refused = self.server.refusals.pop(0)[1] if due else None
        content = None if refused else act(sent.get("body"))
        status = refused or (404 if content is None else 200)
        body = json.dumps(content).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{self.server.address}/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def put(github: GitHub, text: str) -> str:
    return Comments("team/model", 7, "a-token", github.address, wait_seconds=0).put(text)


def test_the_first_report_is_written_and_the_next_one_replaces_it(github: GitHub) -> None:
    github.write("Looks good to me", login="ann")
    first = put(github, "passed")
    assert put(github, "rejected") == first
    assert [one["body"] for one in github.comments] == ["Looks good to me", f"{MARKER}\nrejected\n"]
    assert github.asked == ["GET", "POST", "GET", "PATCH"]
    assert github.tokens == {"Bearer a-token"}


def test_the_comment_is_found_behind_a_hundred_others(github: GitHub) -> None:
    for _ in range(100):
        github.write("talk", login="ann")
    put(github, "old")
    put(github, "new")
    assert [one["body"] for one in github.comments[100:]] == [f"{MARKER}\nnew\n"]


def test_a_persons_comment_that_carries_the_marker_is_never_changed(github: GitHub) -> None:
    github.write(f"{MARKER}\nmine", login="mallory")
    github.write(f"> {MARKER}\nquoted")
    put(github, "passed")
    assert [one["body"] for one in github.comments[:2]] == [f"{MARKER}\nmine", f"> {MARKER}\nquoted"]
    assert len(github.comments) == 3


def test_it_is_asked_again_where_github_is_busy(github: GitHub) -> None:
    github.write(comment("old"))
    github.refusals = [("GET", 502), ("GET", 429), ("PATCH", 503)]
    put(github, "new")
    assert github.asked == ["GET", "GET", "GET", "PATCH", "PATCH"]


def test_a_comment_that_may_have_been_written_is_not_written_again(github: GitHub) -> None:
    github.refusals = [("POST", 502)]
    with pytest.raises(ClearwayError, match="GitHub answers 502"):
        put(github, "passed")
    assert github.asked == ["GET", "POST"]


def test_a_refused_token_is_one_line_that_names_the_right_and_not_the_token(github: GitHub) -> None:
    github.refusals = [("GET", 403)]
    with pytest.raises(ClearwayError, match=r"answers 403: the job needs permissions: pull-requests: write") as raised:
        put(github, "passed")
    assert "a-token" not in str(raised.value)
    assert github.asked == ["GET"]


def test_a_redirection_is_not_followed_with_the_token(github: GitHub) -> None:
    github.refusals = [("GET", 302)]
    with pytest.raises(ClearwayError, match="GitHub answers 302"):
        put(github, "passed")
    assert github.asked == ["GET"]


def test_a_server_that_is_not_there_is_one_line() -> None:
    with GitHub() as server:
        address = server.address
    with pytest.raises(ClearwayError, match="no answer from GitHub"):
        Comments("team/model", 7, "a-token", address, wait_seconds=0).put("passed")


def test_only_http_is_spoken() -> None:
    with pytest.raises(UsageError, match="GITHUB_API_URL"):
        Comments("team/model", 7, "a-token", "file:///etc")


def test_a_report_calls_nobody_by_name() -> None:
    assert "@everyone" not in comment("Thanks @everyone, a@b and @team/all; 5 @ 3")
    assert "5 @ 3" in comment("5 @ 3")


def test_a_long_report_is_cut_between_lines_with_all_that_was_open_closed() -> None:
    text = comment("<details><summary>Plots</summary>\n\n```mermaid\n" + "1234567\n" * LONGEST)
    assert len(text) < 65_536
    assert text.count("```") == 2
    assert text.count("</details>") == 1
    assert "1234567\n```\n" in text
    assert text.rstrip().endswith("the whole report is in the summary of the run.")


def test_the_script_needs_no_installed_package(github: GitHub, tmp_path: Path) -> None:
    report = tmp_path / "change.md"
    report.write_text("passed")
    environment = {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "GITHUB_API_URL": github.address,
        "GITHUB_TOKEN": "a-token",
        "GITHUB_REPOSITORY": "team/model",
    }
    script = str(REPOSITORY / "scripts" / "comment.py")
    for name, code in ((str(report), 0), (str(tmp_path / "none.md"), 2)):
        command = [sys.executable, "-S", script, name, "--number", "7"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "none.md is no file" in done.stderr
    assert [one["body"] for one in github.comments] == [comment("passed")]
