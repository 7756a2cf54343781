"""Bodies and request ids: read within the limits, or refused."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from clearway.serving.bodies import CSV, JSON, parse_json, read_body, read_kind, read_request_id
from clearway.serving.requests import RequestError


def body_of(*messages: Any, length: bytes | None = None, limit: int = 10) -> bytes:
    left = [m if isinstance(m, dict) else {"type": "http.request", "body": m, "more_body": True} for m in messages]
    if left[-1]["type"] == "http.request":
        left[-1]["more_body"] = False

    async def receive() -> Any:
        return left.pop(0)

    return asyncio.run(read_body({} if length is None else {b"content-length": length}, receive, limit))


def test_a_body_is_joined_up_to_the_limit() -> None:
    assert body_of(b"0123456789") == b"0123456789"
    assert body_of(b"01234", b"", b"56789", length=b"10") == b"0123456789"


@pytest.mark.parametrize("messages", [(b"0123456789x",), (b"01234", b"56789x"), (b"01234", b"56789x", b"y")])
def test_a_body_beyond_the_limit_is_refused(messages: tuple[bytes, ...]) -> None:
    with pytest.raises(RequestError, match=r"serving\.max_body_bytes = 10") as caught:
        body_of(*messages)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("length", "status"), [(b"11", 413), (b"9" * 30, 413), (b"-1", 400), (b"ten", 400), (b"", 400), (b"+1", 400)]
)
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(length: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        body_of(b"x", length=length)
    assert caught.value.status == status


@pytest.mark.parametrize("messages", [({"type": "http.disconnect"},), (b"0", {"type": "http.disconnect"})])
def test_a_caller_who_leaves_is_noticed(messages: tuple[Any, ...]) -> None:
    with pytest.raises(ClientDisconnect):
        body_of(*messages)


@pytest.mark.parametrize("said", ["application/json", "Application/JSON ; charset=UTF-8", 'text/csv; charset="utf-8"'])
def test_media_types_are_told_apart(said: str) -> None:
    assert read_kind({b"content-type": said.encode()}, (JSON, CSV)) in said.lower()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b"text/plain"},
        {b"content-type": b"text/csv"},
        {b"content-type": b"\xff"},
        {b"content-type": b"application/json; charset=latin-1"},
        {b"content-type": b"application/json", b"content-encoding": b"gzip"},
    ],
)
def test_other_media_types_and_encodings_are_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(RequestError) as caught:
        read_kind(headers)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", '{"a": Infinity}', '"\\ud800"', "1e400", "1" * 400, "[" * 100_000, "\xff", "[1,]", "{'a': 1}"],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        parse_json(text.encode("latin-1"))
    assert caught.value.status == 400


def test_of_two_members_of_one_name_the_last_counts() -> None:
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}


def test_a_request_keeps_its_id_or_gets_a_new_one() -> None:
    assert read_request_id({b"x-request-id": b"4bf92f-77"}) == "4bf92f-77"
    made = {read_request_id({}), read_request_id({b"x-request-id": b""})}
    assert len(made) == 2
    assert all(len(one) == 32 for one in made)


@pytest.mark.parametrize("given", [b"a" * 201, b"a b", b"\xe4", b"a\x00"])
def test_an_id_that_would_spoil_logs_is_refused(given: bytes) -> None:
    with pytest.raises(RequestError, match="x-request-id") as caught:
        read_request_id({b"x-request-id": given})
    assert caught.value.status == 400
