"""Load on a server at a steady rate while its model is swapped and its workers are killed: what failed, and why.

``benchmarks/soak.py`` runs it for minutes; a test for half a minute.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil


@dataclass
class Soaked:
    """What became of the requests."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    """Requests that got another answer than they should have, or none although no worker was killed under them."""
    lost: int = 0
    """Requests whose connection broke when a worker was killed."""
    kills: int = 0
    swaps: int = 0
    memory_mb: list[float] = field(default_factory=list)
    """Of the whole server, once a second while all its workers were there."""

    def growth(self) -> float:
        """Memory of the last fifth over that of the second fifth, less 1: the first warms up."""
        fifth = max(1, len(self.memory_mb) // 5)
        early = sorted(self.memory_mb[fifth : 2 * fifth] or self.memory_mb)
        late = sorted(self.memory_mb[-fifth:])
        return late[len(late) // 2] / early[len(early) // 2] - 1.0


@dataclass
class _Caller:
    """One keep-alive connection. Asks when a request is due; connects anew when its worker is killed."""

    port: int
    bodies: Sequence[bytes]
    right: Callable[[dict[str, Any]], bool]
    soaked: Soaked
    killed_at: list[float]

    async def ask_on(self, every: float, until: float, chance: random.Random) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        due = time.monotonic() + chance.random() * every
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + every, time.monotonic() - 1.0)
            began = time.monotonic()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self.port)
                status, answer = await asyncio.wait_for(_ask(*connection, chance.choice(self.bodies)), 20)
            except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
                if connection is not None:
                    connection[1].close()
                # idle connections of a killed worker break as well, and are found broken by the next request
                if any(began - every - 2.0 <= moment <= time.monotonic() for moment in self.killed_at):
                    self.soaked.lost += 1
                else:
                    self.soaked.failed.append(f"{type(error).__name__}: {error}")
                connection = None
                continue
            if status == 200 and self.right(answer):
                self.soaked.answered += 1
            else:
                self.soaked.failed.append(f"{status}: {answer}")
        if connection is not None:
            connection[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, dict[str, Any]]:
    head = b"POST /predict HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))


async def soak(
    port: int,
    supervisor: int,
    bodies: Sequence[bytes],
    right: Callable[[dict[str, Any]], bool],
    swap: Callable[[int], None],
    *,
    seconds: float,
    rate: float,
    callers: int,
    swap_every: float,
    kill_every: float,
) -> Soaked:
    """Ask ``rate`` requests a second for so long, over ``callers`` connections.

    Parameters
    ----------
    supervisor
        Id of the process whose children are the workers.
    right
        Whether an answer is one that the server should give.
    swap
        Deploys another model; it is given how often it was called before.
    """
    soaked, killed_at, process = Soaked(), [], psutil.Process(supervisor)
    until = time.monotonic() + seconds
    workers = len(process.children())

    async def swap_on() -> None:
        for number in itertools.count():
            await asyncio.sleep(swap_every)
            await asyncio.to_thread(swap, number)
            soaked.swaps += 1

    async def kill_on() -> None:
        while True:
            await asyncio.sleep(kill_every)
            family = process.children()
            if len(family) == workers:
                killed_at.append(time.monotonic())
                os.kill(random.choice(family).pid, signal.SIGKILL)
                soaked.kills += 1

    async def weigh_on() -> None:
        while True:
            await asyncio.sleep(1.0)
            family = process.children()
            if len(family) == workers:
                soaked.memory_mb.append(sum(_own_mb(one) for one in (process, *family)))

    around = [asyncio.create_task(task()) for task in (swap_on, kill_on, weigh_on)]
    chance = random.Random(5)
    asking = [_Caller(port, bodies, right, soaked, killed_at) for _ in range(callers)]
    try:
        await asyncio.gather(*(one.ask_on(callers / rate, until, chance) for one in asking))
    finally:
        for task in around:
            task.cancel()
        for done in await asyncio.gather(*around, return_exceptions=True):
            if isinstance(done, Exception):
                raise done
    return soaked


def _own_mb(process: psutil.Process) -> float:
    """Memory that the process shares with nobody: what copies share is not counted for each."""
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0
