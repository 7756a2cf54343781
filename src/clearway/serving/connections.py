"""Connections that uvicorn would not answer rightly: those that offer another protocol, and those beyond the limit.

A caller that offers to go on in another protocol (``Upgrade: h2c``, as Java's HTTP client and ``curl --http2`` do by
default) is answered in the one that it used: the parser would leave out the body of such a request. And a caller beyond
``serving.max_connections`` is turned away at the door: uvicorn would refuse the requests of all others as well.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER_SECONDS = 1.0
"""How long a caller that is turned away may take to read it: a connection cut at once takes its answer along."""
SAY_SECONDS = 60.0
"""Least time between two lines of the log about callers that were turned away."""
_BODY = b'{"error":"the server holds as many connections as serving.max_connections allows: try again later"}'
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
_OFFERS = (b"upgrade", b"http2-settings")
"""Headers by which another protocol is offered, and what names them in ``Connection``."""

logger = logging.getLogger("clearway.serving")


class Connection(HttpToolsProtocol):
    """uvicorn's, which answers requests that offer another protocol as if they did not."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offered:
                if self._connects():
                    self.send_400_response("Invalid HTTP request received.")
                    return
                data = self._without_offer() + data[offered.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            else:
                return

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade() or self._connects():  # else it is read again, without its offer
            super().on_headers_complete()
            if self.parser.get_method() != b"HEAD":  # whose answer has no body
                self.cycle.transport = cast(asyncio.Transport, HeadWithBody(self.transport, self.loop))

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _connects(self) -> bool:
        return bool(self.parser.get_method() == b"CONNECT")

    def _without_offer(self) -> bytes:
        """The head of the request that was just read, but for what offers another protocol."""
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(one for one in value.split(b",") if one.strip().lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])


class HeadWithBody:
    """Sends the head of an answer together with the start of its body, for uvicorn, which writes them one by one.

    Apart, each costs a system call and wakes the caller, which can do nothing with the first.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines([head, data])
        elif self._begun or data.startswith(b"HTTP/1.1 100 "):  # that one a caller waits for before it sends its body
            self._transport.write(data)
        else:
            self._begun, self._head = True, data
            self._loop.call_soon(self._send_head)  # unless its body follows before

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _send_head(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)


class TurnedAway(asyncio.Protocol):
    """Tells a caller that there is no room, and ends the connection when it has had time to read that."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        caller = cast(asyncio.Transport, transport)
        caller.write(NO_ROOM)
        caller.write_eof()
        self._end = asyncio.get_running_loop().call_later(LINGER_SECONDS, caller.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()


def at_the_door(
    connections: Collection[Any], most: int, answering: Callable[[], asyncio.Protocol]
) -> Callable[[], asyncio.Protocol]:
    """What takes the next caller: ``answering``, or :class:`TurnedAway` where there are ``most`` already."""
    said_at = -math.inf

    def taking() -> asyncio.Protocol:
        nonlocal said_at
        if len(connections) < most:
            return answering()
        if time.monotonic() - said_at >= SAY_SECONDS:
            said_at = time.monotonic()
            logger.warning("callers are turned away: %d connections are open (serving.max_connections)", most)
        return TurnedAway()

    return taking
