"""Who takes a caller, where several workers wait at one listener."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from clearway.serving.board import Board
from clearway.serving.whole import Desk
from clearway.serving.worker import Acceptor

Worker = tuple[Acceptor, set[Any]]


class Held(asyncio.Protocol):
    """A connection that asks nothing."""

    def __init__(self, connections: set[Any]) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)


class Door:
    """A listener, its callers, and the workers at it."""

    def __init__(self, workers: int) -> None:
        self.board = Board.made(workers + 1)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.listeners = [self.listener]
        self.callers: list[socket.socket] = []
        self.workers: list[Worker] = []

    def begin(self, slot: int) -> Worker:
        held: set[Any] = set()
        own = self.listener.dup()  # as each process has its own: a loop knows one reader of a descriptor
        self.listeners.append(own)
        worker = Acceptor(own, lambda: Held(held), held, Desk(self.board, slot)), held
        self.workers.append(worker)
        return worker

    async def call(self, times: int) -> list[int]:
        """One caller after the other; how many each worker holds then."""
        async with asyncio.timeout(10):
            for _ in range(times):
                self.callers.append(socket.create_connection(self.listener.getsockname(), timeout=5))
                while sum(len(held) for _, held in self.workers) < len(self.callers):
                    await asyncio.sleep(0.001)
        return [len(held) for _, held in self.workers]

    def close(self) -> None:
        for acceptor, _ in self.workers:
            acceptor.close()
        for caller in self.callers:
            caller.close()
        for listener in self.listeners:
            listener.close()


def at_a_door(workers: int, check: Callable[[Door], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        door = Door(workers)
        try:
            await check(door)
        finally:
            door.close()

    asyncio.run(run())


def test_callers_are_shared_evenly() -> None:
    async def check(door: Door) -> None:
        door.begin(0)
        door.begin(1)
        assert await door.call(20) == [10, 10]

    at_a_door(2, check)


def test_who_holds_fewer_takes_the_next_ones() -> None:
    """As after a worker was started again, or the callers of one have left."""

    async def check(door: Door) -> None:
        door.begin(0)
        assert await door.call(6) == [6]
        door.begin(1)
        assert await door.call(6) == [6, 6]

    at_a_door(2, check)


@pytest.mark.parametrize("others", ["busy", "closed"])
def test_nobody_waits_for_long_for_a_worker_that_does_not_come(others: str) -> None:
    async def check(door: Door) -> None:
        absent = Desk(door.board, 1)
        absent.hold(0 if others == "busy" else None)
        door.begin(0)
        assert await door.call(8) == [8]

    at_a_door(2, check)


def test_who_closes_takes_none_and_nobody_lets_it_go_first() -> None:
    async def check(door: Door) -> None:
        first, _ = door.begin(0)
        door.begin(1)
        first.close()
        assert door.board.held() == [None, 0, None]
        assert await door.call(4) == [0, 4]
        assert door.board.held()[1] is not None

    at_a_door(2, check)


def test_a_worker_alone_lets_nobody_go_first() -> None:
    desk = Desk.alone()
    assert not desk.hold(5)
    assert not desk.hold(0)
