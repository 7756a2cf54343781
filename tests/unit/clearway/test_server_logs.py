"""The server's own log: one line each whatever strangers write, no words of exceptions, and never in the way."""

import io
import json
import logging
import threading
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from clearway.serving import logs
from clearway.serving.logs import AccessLog, LineHandler, as_json, as_text, failed, request_id, without_words


def record(message: str, *args: object, **about: Any) -> logging.LogRecord:
    made = logging.LogRecord("clearway.serving", logging.ERROR, "", 0, message, args, None)
    made.__dict__ |= about
    return made


def caught(secret: str) -> logging.LogRecord:
    try:
        raise ValueError(f"could not read {secret}")
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
        return logging.LogRecord("clearway.serving", logging.ERROR, "", 0, "it broke", None, exc_info)


def test_a_line_says_when_what_and_about_which_request() -> None:
    said = record("refused: %s", "a table", request_id="r1", status=503, features={"age": 41})
    content = json.loads(as_json(said))
    assert content.pop("time").endswith("+00:00")
    assert content == {
        "level": "error",
        "logger": "clearway.serving",
        "message": "refused: a table",
        "request_id": "r1",
        "status": 503,
    }
    assert as_text(said).endswith(" error refused: a table request_id=r1 status=503")


def test_of_an_exception_type_and_place_are_told_and_its_words_are_not() -> None:
    for form in (as_json, as_text):
        line = form(caught("correct-horse"))
        assert "ValueError" in line
        assert "test_server_logs.py:" in line
        assert "correct-horse" not in line


@pytest.mark.parametrize("form", [as_json, as_text])
def test_a_stranger_s_line_break_makes_no_line(form: Any) -> None:
    line = form(record("a\nb\r\x1b[2J", path="/x\n{'level': 'error'}"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (b"abc-1", "abc-1"),
        (b"", None),
        (b"x" * 200, "x" * 200),
        (b"x" * 201, None),
        (b"a\nb", None),
        ("ü".encode(), None),
        (b"\x00", None),
    ],
)
def test_only_short_printable_request_ids_are_told(given: bytes, read: str | None) -> None:
    assert request_id({b"x-request-id": given}) == read


def test_the_words_of_an_error_are_left_out() -> None:
    assert without_words("on-demand view growth failed: ValueError: 41 is too old") == (
        "on-demand view growth failed: ValueError"
    )


def test_a_failed_request_is_said_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    failed("r1", 500, "version a failed: KeyError", "a" * 64)
    (said,) = caplog.records
    assert json.loads(as_json(said)).items() >= {"request_id": "r1", "status": 500, "version": "a" * 64}.items()


def test_lines_are_written_in_order_and_all_of_them_at_the_end() -> None:
    stream = io.StringIO()
    handler = LineHandler("json", stream)
    for number in range(500):
        handler.handle(record(f"line {number}"))
    handler.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [f"line {n}" for n in range(500)]


def test_a_slow_standard_error_blocks_nobody_and_what_was_dropped_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CAPACITY", 10)
    slow, stuck = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            stuck.set()
            slow.wait(30)
            return super().write(text)

    stream = Stuck()
    handler = LineHandler("text", stream)
    handler.handle(record("the first"))
    assert stuck.wait(30)
    for number in range(25):
        handler.handle(record(f"line {number}"))
    assert handler.dropped == 15
    slow.set()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("the first")
    assert lines[-1].endswith("15 lines of this log were dropped: standard error is slow")
    assert len(lines) == 12


def test_a_record_that_cannot_be_formed_is_lost_alone() -> None:
    stream = io.StringIO()
    handler = LineHandler("text", stream)
    handler.handle(record("%d", "no number"))
    handler.handle(record("the next"))
    handler.close()
    assert [line.split(" error ")[-1] for line in stream.getvalue().splitlines()] == [
        "a record of clearway.serving cannot be written",
        "the next",
    ]


async def _noise(*_: Any) -> Message:
    return {"type": "http.request"}


async def _ignore(message: Message) -> None:
    pass


@pytest.mark.parametrize("breaks", [False, True])
def test_an_access_line_tells_neither_query_nor_body(breaks: bool, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if breaks:
            raise RuntimeError
        headers = [(b"x-clearway-version", b"abc"), (b"x-request-id", b"made-here")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"token=x", "headers": []}
    caplog.set_level(logging.INFO, "clearway.access")
    answering = AccessLog(app)(scope, _noise, _ignore)
    if breaks:
        with pytest.raises(RuntimeError):
            asyncio.run(answering)
    else:
        asyncio.run(answering)
    (said,) = [one for one in caplog.records if one.name == "clearway.access"]
    content = json.loads(as_json(said))
    assert content.pop("ms") >= 0
    expected = {"status": 500} if breaks else {"status": 200, "version": "abc", "request_id": "made-here"}
    about = {name: value for name, value in content.items() if name not in ("time", "level", "logger", "message")}
    assert about == {"method": "POST", "path": "/predict", **expected}
