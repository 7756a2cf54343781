"""What an HTTP request carries before anyone knows what it asks: its id, and its body within the limits."""

import random
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from clearway.serving.requests import RequestError

JSON, CSV, UNSAID = "application/json", "text/csv", ""
REQUEST_ID = b"x-request-id"
MAX_REQUEST_ID = 200
"""Characters; leaves room for a row's number in what a log calls a name."""
_JSON_ONLY = (JSON,)
_PRINTABLE = frozenset(range(0x21, 0x7F))


def new_request_id() -> str:
    """32 hexadecimal characters; no secret.

    They are not of the system's randomness: for each call to the system the other threads get a turn first.
    """
    return f"{random.getrandbits(128):032x}"


def read_request_id(headers: Mapping[bytes, bytes]) -> str:
    """The id in the header ``x-request-id``, or a new one.

    Raises
    ------
    RequestError
        It is too long, or holds other than printable ASCII; 400.
    """
    given = headers.get(REQUEST_ID)
    if not given:
        return new_request_id()
    if len(given) > MAX_REQUEST_ID or not _PRINTABLE.issuperset(given):
        raise RequestError(400, f"x-request-id must have 1 to {MAX_REQUEST_ID} printable ASCII characters, no spaces")
    return given.decode("ascii")


def read_kind(headers: Mapping[bytes, bytes], kinds: Collection[str] = _JSON_ONLY) -> str:
    """The media type of the body, one of ``kinds``.

    Raises
    ------
    RequestError
        It is another or none, in another character set than UTF-8, or compressed; 415.
    """
    said = headers.get(b"content-type", b"").decode("latin-1")
    kind = said
    if said not in kinds:
        kind, *parameters = (part.strip().lower() for part in said.split(";"))
        if kind not in kinds:
            known = " or ".join(filter(None, kinds))
            raise RequestError(415, f"content-type must be {known}, not {said[:100]!r}")
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8", "us-ascii"):
                raise RequestError(415, f"content-type: charset must be utf-8, not {value.strip()[:100]!r}")
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        said = encoding.decode("latin-1")[:100]
        raise RequestError(415, f"content-encoding {said!r} is not supported: send the body as it is")
    return kind


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body, read no further than the limit.

    Raises
    ------
    RequestError
        It has more than ``limit`` bytes (413), or its length is no number (400).
    ClientDisconnect
        The caller left before it was complete.
    """
    check_announced(headers, limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    content: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts, size = [content], len(content)
        while message.get("more_body", False):
            if size > limit:
                break
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        content = b"".join(parts)
    check_length(content, limit)
    return content


def check_announced(headers: Mapping[bytes, bytes], limit: int) -> None:
    """Check the length that a request says of its body, before it is read.

    Raises
    ------
    RequestError
        It is more than ``limit`` bytes (413), or no number (400).
    """
    announced = headers.get(b"content-length")
    if announced is not None and (len(announced) > 18 or not announced.isdigit() or int(announced) > limit):
        said = announced[:20].decode("latin-1")
        if not announced.isdigit():
            raise RequestError(400, f"content-length must be a number of bytes, not {said!r}")
        raise RequestError(413, f"the body has {said} bytes, more than serving.max_body_bytes = {limit}")


def check_length(content: bytes, limit: int) -> None:
    """Check the length of a body that has arrived.

    Raises
    ------
    RequestError
        It is more than ``limit`` bytes; 413.
    """
    if len(content) > limit:
        raise RequestError(413, f"the body has more than serving.max_body_bytes = {limit} bytes")


def parse_json(content: bytes) -> Any:
    """The value that a body holds. Of two members of one name the last counts.

    Raises
    ------
    RequestError
        It is no JSON (RFC 8259): also NaN, Infinity, a number beyond float64, half of a surrogate pair, and nesting
        deeper than 1,024; 400.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from None
