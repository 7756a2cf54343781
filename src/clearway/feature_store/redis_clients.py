"""The clients through which Feast reads Redis: they wait no longer than those who ask, and retry once."""

import asyncio
from collections.abc import Callable
from typing import Any


def fail_fast(online_store: Any, settings: Any, timeout: float) -> Callable[[], object] | None:
    """Keep the client that blocks from waiting longer than ``timeout``, in seconds.

    Returns what closes its connections, so that a read in another thread fails; None if the store is no single Redis.
    """
    if not hasattr(online_store, "_get_client") or getattr(settings, "redis_type", None) != "redis":
        return None
    from redis.retry import Retry

    client = online_store._get_client(settings)
    arguments = client.connection_pool.connection_kwargs
    for name in ("socket_timeout", "socket_connect_timeout"):
        arguments[name] = min(timeout, arguments.get(name) or timeout)
    _retry_once(client, Retry)
    hang_up: Callable[[], object] = client.connection_pool.disconnect
    return hang_up


class LoopClient:
    """The client that Feast reads Redis with on an event loop, a new one for each loop; who reads ends late reads."""

    def __init__(self, online_store: Any, settings: Any) -> None:
        self._online_store = online_store
        self._settings = settings
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def prepare(self) -> None:
        """Have Feast's next read on the running loop use it."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        from redis.asyncio.retry import Retry

        self._online_store._client_async = None  # its connections belong to a loop that has ended
        self._client = await self._online_store._get_client_async(self._settings)
        _retry_once(self._client, Retry)
        self._loop = loop

    def close(self) -> None:
        """Close its connections soon, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop)


def _retry_once(client: Any, retry: Any) -> None:
    """Once more at once, on a new connection: the server, or something between, may have closed an idle one."""
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError

    client.set_retry(retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)))
