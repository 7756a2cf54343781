"""Starts the workers of a server, starts another for each that ends, and drains them all when told to stop."""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clearway.errors import ClearwayError
from clearway.serving.board import Board
from clearway.serving.whole import Past, Said

STOP_SECONDS = 13.0
"""How long workers may drain and write their logs before they are killed."""
STEADY_SECONDS = 10.0
"""A worker that took requests for so long did not fail at its start."""
LONGEST_WAIT_SECONDS = 10.0
MAX_FAILED_STARTS = 3
STARTING_SECONDS, WATCHING_SECONDS = 0.01, 0.5
"""How often the board is looked at: until somebody takes requests, and from then on."""

logger = logging.getLogger("clearway.serving")


def wait_before(short_lives: int, failed_starts: int, *, others: bool) -> float | None:
    """Seconds to wait before a worker is started again; None to give up the server.

    Parameters
    ----------
    short_lives
        How many workers in a row ended before they had taken requests for ``STEADY_SECONDS``.
    failed_starts
        How many workers in a row ended before they took any.
    others
        Whether other workers take requests now.
    """
    if failed_starts >= MAX_FAILED_STARTS and not others:
        return None
    return 0.0 if short_lives <= 1 else min(LONGEST_WAIT_SECONDS, 0.1 * 2.0 ** (short_lives - 2))


@dataclass(frozen=True)
class Place:
    """What a worker is given by its supervisor: descriptors that it inherits, and which worker it is."""

    listener: int
    board: int
    lifeline: int
    """The end of a pipe that is at its end when the supervisor is."""
    workers: int
    slot: int
    life: int


@dataclass
class _Worker:
    pid: int
    life: int
    began: float


class Supervisor:
    """Keeps so many workers running.

    Parameters
    ----------
    workers
        How many.
    listener
        That they share. It outlives each of them, so that callers who wait in its queue are not lost with a worker.
    launch
        Starts a worker at a place, and returns its process id. The new process must not keep the second argument, a
        descriptor, open: it is what the supervisor holds of the lifeline.
    ready
        Called once, when the first of them takes requests.
    """

    def __init__(
        self,
        workers: int,
        listener: socket.socket,
        launch: Callable[[Place, int], int],
        ready: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._listener = listener
        self._launch = launch
        self._ready = ready
        self._board = Board.made(workers + 1)
        self._past = Past(os.getpid())
        self._running: dict[int, _Worker] = {}
        self._start_at = dict.fromkeys(range(workers), 0.0)
        """When to start the worker of each slot that has none."""
        self._lives = 0
        self._short_lives = self._failed_starts = 0
        self._served = False
        self._stopping = False
        self._lifeline, self._held = os.pipe()
        for descriptor in (listener.fileno(), self._board.descriptor, self._lifeline):
            os.set_inheritable(descriptor, True)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then drain.

        Raises
        ------
        ClearwayError
            Workers end at their start, again and again.
        """
        awake, wake = os.pipe()
        for end in (awake, wake):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        woken_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            while not self._stopping:
                self._bury()
                self._start_due()
                self._notice()
                select.select([awake], [], [], self._patience())
                with contextlib.suppress(BlockingIOError):
                    os.read(awake, 4096)
        finally:
            self._drain()
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (awake, wake, self._lifeline, self._held):
                os.close(end)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _patience(self) -> float:
        """How long nothing needs to be done, unless a signal comes."""
        if not self._served:
            return STARTING_SECONDS
        due = min(self._start_at.values(), default=float("inf")) - time.monotonic()
        return max(0.0, min(WATCHING_SECONDS, due))

    def _start_due(self) -> None:
        for slot, due in list(self._start_at.items()):
            if due > time.monotonic():
                continue
            del self._start_at[slot]
            life, self._lives = self._lives, self._lives + 1
            if life >= self._workers:
                self._past.restarts += 1
            self._board.write(self._board.slots - 1, self._past.plain())
            place = Place(self._listener.fileno(), self._board.descriptor, self._lifeline, self._workers, slot, life)
            # what is sent to the new process before it can listen reaches it when it can
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
            try:
                pid = self._launch(place, self._held)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            self._running[slot] = _Worker(pid, life, time.monotonic())

    def _notice(self) -> None:
        if not self._served and self._accepting():
            self._served = True
            self._ready()

    def _accepting(self) -> list[int]:
        """Slots of the workers that take requests."""
        said = {slot: self._said(slot) for slot in self._running}
        return [slot for slot, one in said.items() if one is not None and one.accepting]

    def _said(self, slot: int) -> Said | None:
        """What the worker that runs in a slot has said."""
        plain = self._board.read(slot)
        said = None if plain is None else Said.of_plain(plain)
        return said if said is not None and said.life == self._running[slot].life else None

    def _bury(self) -> None:
        """Remember the workers that have ended, and when to start others in their place."""
        for slot, worker in list(self._running.items()):
            status = _ended(worker.pid)
            if status is None:
                continue
            said = self._said(slot)
            del self._running[slot]
            if said is not None:
                self._past.add(said, self._workers)
                self._board.write(self._board.slots - 1, self._past.plain())
            self._board.write(slot, None)
            if self._stopping:
                continue
            lived = time.monotonic() - worker.began
            accepted = said is not None and said.accepting
            self._failed_starts = 0 if accepted else self._failed_starts + 1
            self._short_lives = 0 if accepted and lived >= STEADY_SECONDS else self._short_lives + 1
            wait = wait_before(self._short_lives, self._failed_starts, others=bool(self._accepting()))
            logger.error("worker %d ended after %.1f s (%s)", worker.pid, lived, _how(status))
            if wait is None:
                raise ClearwayError(
                    f"workers ended at their start, {self._failed_starts} in a row (the last with {_how(status)}): "
                    "the lines above say why"
                )
            self._start_at[slot] = time.monotonic() + wait

    def _drain(self) -> None:
        """Have all workers finish what they began; kill those that do not."""
        self._stopping = True
        self._listener.close()
        deadline = time.monotonic() + STOP_SECONDS
        self._signal(signal.SIGTERM)
        while self._running and time.monotonic() < deadline:
            self._bury()
            time.sleep(0.01)
        if self._running:
            logger.error("killed, for they did not drain: %s", [worker.pid for worker in self._running.values()])
            self._signal(signal.SIGKILL)
            for worker in self._running.values():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(worker.pid, 0)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)


def _ended(pid: int) -> int | None:
    """The exit status of a child, if it has ended; below 0 the signal."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def _how(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"signal {-status}"


def way_to_start() -> Literal["fork", "spawn"]:
    """How workers are started: as copies of this process, in which all is imported, if it is safe.

    A copy has one thread only; what other threads hold, it waits for in vain.
    """
    try:
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208  # the system's count, of all threads
    except OSError:
        return "spawn"
    return "fork" if threads == 1 else "spawn"


def fork(work: Callable[[], None], held: int) -> int:
    """Start a copy of this process that does ``work`` and ends: exit code 1 if that fails, with the traceback.

    ``held`` is a descriptor that the copy must not keep open.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(held)
        work()
        code = 0
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
        else:
            logger.exception("the worker failed: %s: %s", type(error).__name__, error)
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
