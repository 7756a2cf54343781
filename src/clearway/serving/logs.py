"""The server's own log: lines of text or JSON on standard error, written off the event loop.

A line says what happened, to which request and version, and where in the code. It never says what an exception says of
itself: that may quote a row, or an address with its password.
"""

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearway.serving.bodies import MAX_REQUEST_ID

LogFormat = Literal["text", "json"]

CAPACITY = 10_000
"""Lines that may wait for a standard error that nobody reads."""
FLUSH_SECONDS = 0.05
CLOSE_SECONDS = 2.0
FRAMES = 5
ABOUT = ("request_id", "method", "path", "status", "ms", "version", "cause")
"""What a line may say beside its message."""

server = logging.getLogger("clearway.serving")
access = logging.getLogger("clearway.access")


class LineHandler(logging.Handler):
    """Writes records from a thread of its own; what finds the queue full is dropped and counted.

    Parameters
    ----------
    form
        ``json``: one object a line: ``time``, ``level``, ``logger``, ``message``, those of :data:`ABOUT` that are
        known, and of an exception ``error``, its type, and ``where``, the innermost frames.
    stream
        Where to.
    """

    def __init__(self, form: LogFormat, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._form = as_json if form == "json" else as_text
        self._stream = stream
        self._pending: deque[logging.LogRecord] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._pending) >= CAPACITY:
            self.dropped += 1
        else:
            self._pending.append(record)

    def close(self) -> None:
        """Write what waits, within ``CLOSE_SECONDS``; ``logging`` calls it when the process ends."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _run(self) -> None:
        told = 0
        while not self._closing.wait(FLUSH_SECONDS):
            told = self._flush(told)
        self._flush(told)

    def _flush(self, told: int) -> int:
        """Write all that waits, and how many lines were dropped since ``told`` of them were."""
        lines = []
        for _ in range(len(self._pending)):
            record = self._pending.popleft()
            try:
                lines.append(self._form(record))
            except Exception:  # a line that cannot be formed is no reason to lose the others
                lines.append(f"a record of {record.name} cannot be written")
        dropped = self.dropped
        if dropped > told:
            said = f"{dropped - told} lines of this log were dropped: standard error is slow"
            lines.append(self._form(logging.LogRecord(server.name, logging.WARNING, "", 0, said, None, None)))
        if lines:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # closed: there is nowhere to say so
                self.dropped += len(lines)
        return dropped


class _AtOnce(logging.Formatter):
    """The same lines, for a handler without a thread."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = as_json if form == "json" else as_text

    def format(self, record: logging.LogRecord) -> str:
        return self._form(record)


def set_up(form: LogFormat, *, at_once: bool = False) -> None:
    """Send the log of this process, that of uvicorn included, to standard error.

    ``at_once`` writes each line where it is said: for a process that answers nobody, and may have no second thread.
    """
    root = logging.getLogger()
    for before in list(root.handlers):
        root.removeHandler(before)
    handler: logging.Handler = LineHandler(form, sys.stderr) if not at_once else logging.StreamHandler(sys.stderr)
    if at_once:
        handler.setFormatter(_AtOnce(form))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    access.setLevel(logging.INFO)


def as_json(record: logging.LogRecord) -> str:
    """One line of JSON."""
    content = {
        "time": datetime.fromtimestamp(record.created, UTC),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **_about(record),
    }
    return orjson.dumps(content, default=str).decode()


def as_text(record: logging.LogRecord) -> str:
    """One line for people; what is said about it stands behind it."""
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    about = "".join(f" {name}={_plain(value)}" for name, value in _about(record).items())
    return f"{time} {record.levelname.lower()} {_one_line(record.getMessage())}{about}"


def request_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The id that a caller or a proxy gave its request (``x-request-id``), if it is a short printable one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable() else None


def failed(identity: str | None, status: int, cause: str, version: str | None = None) -> None:
    """Say that the request of that id was answered with a 5xx; ``cause`` is told as is: see :func:`without_words`."""
    about = {"request_id": identity, "status": status, "version": version, "cause": cause}
    server.error("a request failed", extra=about)


def without_words(message: str) -> str:
    """An error of the form ``who failed: type of error: its words`` without its words, which may quote a row."""
    return ": ".join(message.split(": ")[:2])


class AccessLog:
    """ASGI middleware: one line for each request, when it was answered. Neither its query nor its body is told."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answer: dict[bytes, bytes] = {}
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer.update(message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            version = answer.get(b"x-clearway-version")
            about = {
                "request_id": request_id(answer) or request_id(dict(scope["headers"])),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round((time.perf_counter() - started) * 1000.0, 3),
                "version": None if version is None else version.decode("latin-1"),
            }
            access.info("request", extra=about)


def _about(record: logging.LogRecord) -> dict[str, Any]:
    known = {name: getattr(record, name, None) for name in ABOUT}
    found = {name: value for name, value in known.items() if value is not None}
    if record.exc_info and record.exc_info[0] is not None:
        frames = traceback.extract_tb(record.exc_info[2])[-FRAMES:]
        found["error"] = record.exc_info[0].__name__
        found["where"] = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " < ".join(reversed(value))
    return _one_line(repr(value) if isinstance(value, str) and " " in value else str(value))


def _one_line(words: str) -> str:
    """What a stranger wrote cannot make a line of its own."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
