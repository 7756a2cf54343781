"""A real HTTP server on loopback that answers as GitHub's REST API does, where the line asks it to change things."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPOSITORY = "team/model"
LONG_AGO = "2020-01-01T00:00:00Z"


@dataclass
class Repository:
    """What the server knows, and what it was asked to do."""

    address: str = ""
    issues: dict[int, dict[str, Any]] = field(default_factory=dict)
    comments: list[tuple[int, str]] = field(default_factory=list)
    dispatched: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    workflows: list[dict[str, Any]] = field(default_factory=list)
    enabled: list[int] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    """Methods that are answered 403."""
    failures: list[int] = field(default_factory=list)
    """Statuses of the next answers, whatever is asked."""

    def open_issues(self) -> list[dict[str, Any]]:
        return [issue for issue in self.issues.values() if issue["state"] == "open"]

    def answer(self, method: str, path: str, query: dict[str, list[str]], content: Any) -> tuple[int, Any]:
        if self.failures:
            return self.failures.pop(0), {"message": "try again"}
        if method in self.refuses:
            return 403, {"message": "Resource not accessible by integration"}
        matched = re.fullmatch(r"/repos/[\w-]+/[\w-]+(/.*)?", path)
        rest = (matched[1] or "") if matched else "/nothing"
        if (method, rest) == ("GET", ""):
            return 200, {"default_branch": "main", "private": False}
        if (method, rest) == ("GET", "/issues"):
            wanted = query["labels"][0]
            return 200, [issue for issue in self.open_issues() if wanted in issue["labels"]]
        if (method, rest) == ("POST", "/issues"):
            number = len(self.issues) + 1
            self.issues[number] = {"number": number, "state": "open", **content}
            return 201, self.issues[number]
        if issue := re.fullmatch(r"/issues/(\d+)", rest):
            self.issues[int(issue[1])] |= content
            return 200, self.issues[int(issue[1])]
        if issue := re.fullmatch(r"/issues/(\d+)/comments", rest):
            self.comments.append((int(issue[1]), content["body"]))
            return 201, {}
        if (method, rest) == ("GET", "/actions/workflows"):
            return 200, {"workflows": self.workflows}
        if flow := re.fullmatch(r"/actions/workflows/([\w.]+)/runs", rest):
            return 200, {"workflow_runs": self.runs}
        if flow := re.fullmatch(r"/actions/workflows/([\w.]+)/dispatches", rest):
            self.dispatched.append((flow[1], content))
            self.runs.append({"created_at": datetime.now(UTC).isoformat(), "status": "queued"})
            return 204, None
        if flow := re.fullmatch(r"/actions/workflows/(\d+)/enable", rest):
            self.enabled.append(int(flow[1]))
            return 204, None
        return 404, {"message": "Not Found"}


@contextmanager
def github() -> Iterator[Repository]:
    """The server, for as long as the block lasts."""
    repository, lock = Repository(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each body would wait 40 ms for the word that its head has arrived

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(length)) if length else {}
            address = urlsplit(self.path)
            with lock:
                repository.tokens.add(self.headers.get("Authorization", ""))
                status, answer = repository.answer(self.command, address.path, parse_qs(address.query), content)
            body = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        repository.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield repository
        finally:
            server.shutdown()
            thread.join()
