"""Callers that send a request too slowly are cut off: each would hold a connection for as long as it likes.

uvicorn has no limit on how long a request may take to arrive. What follows looks at its connections from time to time,
so that a request pays nothing for it.
"""

import asyncio
import time
from collections.abc import Collection
from typing import Any

LOOKS = 4
"""How often within the limit the connections are looked at: a caller is cut off up to a quarter of it too late."""
OWN_PATIENCE = "clearway.own_patience"
"""Set in the scope of a request whose reader itself says how long it may take: a large upload of somebody let in."""
_BODY = b'{"error":"the request took longer to arrive than serving.read_timeout_seconds"}'
ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


async def cut_off_slow_callers(connections: Collection[Any], seconds: float) -> None:
    """Close each connection whose request has not arrived whole after so many seconds, answering 408; until cancelled.

    Parameters
    ----------
    connections
        Live, each a ``DirectProtocol``.
    seconds
        From the first byte of a request, or from the connection if it sends none, to the last byte of its body.
    """
    arriving: dict[Any, tuple[Any, float]] = {}
    while True:
        await asyncio.sleep(seconds / LOOKS)
        now, still = time.monotonic(), {}
        for connection in list(connections):
            request = unfinished(connection)
            if request is None:
                continue
            before, since = arriving.get(connection, (None, now))
            if before is not request:
                since = now
            if now - since >= seconds:
                _close(connection)
            else:
                still[connection] = request, since
        arriving = still


def unfinished(connection: Any) -> Any:
    """What stands for the request that is arriving: the same object while it is the same one; None if there is none."""
    cycle, scope = connection.cycle, connection.scope
    if scope is None:
        return connection  # connected, and silent
    if scope is connection.answered:  # what still comes and is no request stops uvicorn's own timer
        return scope if connection.timeout_keep_alive_task is None else None
    if cycle is None or cycle.scope is not scope:
        return scope  # its headers are not complete
    if cycle.response_complete:  # answered before it was there: whatever still comes stops uvicorn's own timer
        return cycle if connection.timeout_keep_alive_task is None else None
    return cycle if cycle.more_body and OWN_PATIENCE not in cycle.scope else None


def _close(connection: Any) -> None:
    cycle, scope, transport = connection.cycle, connection.scope, connection.transport
    if scope is not None and scope is not connection.answered:
        own = cycle is not None and cycle.scope is scope  # else the cycle is of the request before
        if not cycle.response_started if own else cycle is None or cycle.response_complete:
            transport.write(ANSWER)
    transport.close()
