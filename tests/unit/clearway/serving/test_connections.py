"""How answers leave through a connection of uvicorn's."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from clearway.serving.connections import Connection

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]}
CHUNKED = START | {"headers": []}
BODY = {"type": "http.response.body", "body": b"answer"}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"
NO_LENGTH = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Sending = Callable[[dict[str, Any]], Awaitable[None]]


class Caller(asyncio.Transport):
    """What a caller gets, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.pieces.append(bytes(data))

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    def pause_reading(self) -> None:
        """A caller that sends more than is read waits; this one has sent all."""

    def resume_reading(self) -> None:
        """As before."""

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def told(app: Callable[[Sending], Awaitable[None]], *pieces: bytes) -> Caller:
    """What a caller of an application gets that sends these pieces, each in one go."""

    async def asgi(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await app(send)

    async def ask() -> Caller:
        config = Config(asgi, server_header=False, date_header=False, log_config=None)
        config.load()
        caller = Caller()
        protocol = Connection(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(caller)
        for piece in pieces:
            protocol.data_received(piece)
            for _ in range(30):
                await asyncio.sleep(0)
        return caller

    return asyncio.run(ask())


def request(method: str = "GET", more: str = "") -> bytes:
    return f"{method} /x HTTP/1.1\r\nhost: h\r\n{more}\r\n".encode()


async def at_once(send: Sending) -> None:
    await send(START)
    await send(BODY)


def test_head_and_body_leave_in_one_piece() -> None:
    assert told(at_once, request()).pieces == [HEAD + b"answer"]


def test_answers_on_one_connection_keep_their_order() -> None:
    bodies = iter([b"first ", b"second", b"third "])

    async def answer(send: Sending) -> None:
        await send(START)
        await send(BODY | {"body": next(bodies)})

    asked = told(answer, request() * 3)
    assert asked.pieces == [HEAD + b"first ", HEAD + b"second", HEAD + b"third "]


def test_an_answer_without_a_body_leaves_at_once() -> None:
    assert told(at_once, request("HEAD") + request()).pieces == [HEAD, HEAD + b"answer"]


def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    async def slow(send: Sending) -> None:
        await send(CHUNKED)
        for _ in range(3):
            await asyncio.sleep(0)
        await send(BODY | {"more_body": True})
        await send(BODY)

    chunk = b"6\r\nanswer\r\n"
    assert told(slow, request()).pieces == [NO_LENGTH, chunk, chunk + b"0\r\n\r\n"]


def test_a_caller_that_waits_for_it_is_told_to_go_on() -> None:
    asked = told(at_once, request("POST", "expect: 100-continue\r\ncontent-length: 6\r\n"), b"please")
    assert asked.pieces == [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"answer"]


def test_what_was_begun_leaves_before_the_connection_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(send: Sending) -> None:
        await send(CHUNKED)
        raise ZeroDivisionError

    asked = told(broken, request())
    assert (asked.pieces, asked.closed) == ([NO_LENGTH], True)
