"""Copies of what the stable version answers, for a shadow version that answers them in a process of its own.

A shadow is on trial and may be anything: slow, endless, greedy, or the death of its process. So the server loads
nothing of it. A request only puts its row into a bounded queue; a thread hands batches of rows to a child process
(:mod:`clearway.serving.shadow_process`), which scores and logs them, one batch at a time. What does not fit into the
queue is dropped and counted; a child that ends or says nothing for too long is replaced. When the server dies, the
child reads the end of its input and follows.
"""

import contextlib
import logging
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from clearway.params import ShadowParams
from clearway.workspace import Workspace

BATCH = 16
"""Copies under way at once: what is lost with a child that dies."""
LOAD_SECONDS = 60.0
IDLE_SECONDS = 0.02
PEEK_SECONDS = 0.1
"""How often the thread looks whether it is to end, while it waits for the child."""
CLOSE_SECONDS = 2.0
"""How long what is queued may take to be answered when the server ends."""
RETRY_SECONDS = (1.0, 5.0, 30.0)
"""Pauses before a child is started again; the last one repeats."""

logger = logging.getLogger("clearway.serving")

Copy = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any] | None]
"""The record of an answer in the prediction log, the row's features, and what a row by key carried."""


def shadow_command(workspace: Workspace, environment: str, digest: str, stable: str) -> list[str]:
    """How the child process of a shadow beside ``stable`` is started."""
    named = {"--env": environment, "--digest": digest, "--stable": stable, "--project": str(workspace.root.resolve())}
    return [sys.executable, "-m", "clearway.serving.shadow_process", *(word for pair in named.items() for word in pair)]


class ChildLostError(Exception):
    """The child ended, or said nothing for too long."""


class ShadowCopies:
    """The queue in front of one shadow, and the child that answers from it.

    :meth:`offer` never blocks and never raises.

    Parameters
    ----------
    digest
        The shadow.
    command
        Starts the child: it says one JSON line when it is ready, reads a line of copies, and says one line for each
        that it read.
    settings
        ``serving.shadow``.
    names
        The shadow's features: a caller may send them, although nobody else uses them.
    """

    def __init__(
        self, digest: str, command: Sequence[str], settings: ShadowParams, names: Collection[str] = ()
    ) -> None:
        self.digest = digest
        self.names = frozenset(names)
        self.dropped = 0
        """Copies that found the queue full, or that were under way when the child was lost."""
        self.answered = 0
        self.failed = 0
        """Of those answered, such as the shadow refused or failed at."""
        self.command = tuple(command)
        self._settings = settings
        self._always = settings.share >= 1.0
        self._pending: deque[Copy] = deque()
        self._closing = threading.Event()
        self._state = "starting"
        self._error: str | None = None
        self._starts = 0
        self._child: _Child | None = None
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Start the child, unless it was started; nothing runs before, so that a table may still be refused."""
        if self._thread.ident is None:
            self._thread.start()

    def offer(self, record: Mapping[str, Any], row: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> None:
        """Queue a copy of an answered row, or drop and count it; the arguments may not be changed afterwards."""
        if not self._always and random.random() >= self._settings.share:  # noqa: S311  # a sample
            return
        if len(self._pending) >= self._settings.queue or self._state == "down":
            self.dropped += 1
            return
        self._pending.append((record, row, inputs))

    def close(self, *, wait: bool = False) -> None:
        """Let the shadow answer what is queued, for a moment, and end it; ``wait`` for that."""
        self._closing.set()
        if wait and self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS + 2 * _Child.END_SECONDS)

    def describe(self) -> dict[str, Any]:
        """What became of the copies, and what the child uses: ``cpu_seconds`` since it started, ``rss_mb`` now."""
        child = self._child
        return {
            "digest": self.digest,
            "state": self._state,
            "error": self._error,
            "answered": self.answered,
            "failed": self.failed,
            "dropped": self.dropped,
            "queued": len(self._pending),
            "restarts": max(0, self._starts - 1),
            "pid": None if child is None else child.pid,
            **({} if child is None else child.usage()),
        }

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            before = self.answered
            try:
                self._serve()
            except ChildLostError as lost:
                failures = 1 if self.answered > before else failures + 1
                self._lose(str(lost))
            except Exception as error:  # whatever a broken machine raises, requests go on without the shadow
                failures += 1
                self._lose(f"{type(error).__name__}: {error}")
            if failures:
                self._closing.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
        self._state = "closed"

    def _lose(self, why: str) -> None:
        self._state, self._error = "down", why
        self.dropped += len(self._pending)
        self._pending.clear()
        logger.error("shadow %s: %s", self.digest[:12], why)

    def _serve(self) -> None:
        """Start a child and give it copies until the end."""
        self._starts += 1
        child = self._child = _Child(self.command, self._closing)
        try:
            ready = child.read(LOAD_SECONDS)
            if "error" in ready:
                raise ChildLostError(str(ready["error"]))
            self._state, self._error = "up", None
            deadline: float | None = None
            while True:
                if self._closing.is_set():
                    deadline = deadline or time.monotonic() + CLOSE_SECONDS
                    if not self._pending or time.monotonic() > deadline:
                        return
                self._hand_over(child)
        finally:
            self._child = None
            child.end()

    def _hand_over(self, child: "_Child") -> None:
        batch: list[dict[str, Any]] = []
        while len(batch) < BATCH:
            try:
                record, row, inputs = self._pending.popleft()
            except IndexError:
                break
            batch.append(_message(record, row, inputs))
        if not batch:
            child.check()
            self._closing.wait(IDLE_SECONDS)
            return
        try:
            child.write(orjson.dumps(batch, option=orjson.OPT_APPEND_NEWLINE), self._settings.timeout_seconds)
            said = child.read(self._settings.timeout_seconds)
        except (ChildLostError, TypeError):  # TypeError is orjson's: a row that is no JSON was never sent
            self.dropped += len(batch)
            raise
        self.answered += len(batch)
        self.failed += int(said.get("failed", 0))


def _message(record: Mapping[str, Any], row: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the child is told: which answer this copies, and what was asked."""
    return {name: record[name] for name in COPIED} | {"row": row, "inputs": inputs}


COPIED = ("id", "revision", "entity", "asked_at", "served_at")
"""Fields that the shadow's record has from that of the answer: by ``id`` and ``served_at`` the two are a pair."""


class _Child:
    """A child process that is spoken to in lines of JSON, and never waited for without a bound."""

    END_SECONDS = 2.0

    def __init__(self, command: Sequence[str], closing: threading.Event) -> None:
        self._closing = closing
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None  # both were asked for
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._said = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def usage(self) -> dict[str, float]:
        import psutil

        try:
            process = psutil.Process(self.pid)
            spent = process.cpu_times()
            return {"cpu_seconds": spent.user + spent.system, "rss_mb": process.memory_info().rss / 2**20}
        except psutil.Error:
            return {}

    def check(self) -> None:
        """Raise ChildLostError if it ended."""
        if self._process.poll() is not None:
            raise ChildLostError(f"its process ended with exit code {self._process.returncode}")

    def write(self, line: bytes, seconds: float) -> None:
        """Send a line; ChildLostError if it is not taken in time."""
        rest, deadline = memoryview(line), time.monotonic() + seconds
        while rest:
            self._wait(self._stdin.fileno(), deadline, seconds, to_write=True)
            try:
                rest = rest[os.write(self._stdin.fileno(), rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._process.wait(self.END_SECONDS)
                self.check()
                raise

    def read(self, seconds: float) -> dict[str, Any]:
        """The next line; ChildLostError if none comes in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._said:
            self._wait(self._stdout.fileno(), deadline, seconds, to_write=False)
            content = os.read(self._stdout.fileno(), 65536)
            if not content:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self.END_SECONDS)
                self.check()
                raise ChildLostError("its process closed its output")
            self._said += content
        line, _, self._said = self._said.partition(b"\n")
        said = orjson.loads(line)
        return said if type(said) is dict else {}

    def _wait(self, number: int, deadline: float, seconds: float, *, to_write: bool) -> None:
        """Until the pipe can be used; a server that ends waits no longer than for its queue."""
        poller = select.poll()  # select itself knows no descriptor beyond 1023, which a busy server has
        poller.register(number, select.POLLOUT if to_write else select.POLLIN)
        while True:
            if poller.poll(PEEK_SECONDS * 1000):
                return
            if self._closing.is_set():
                deadline = min(deadline, time.monotonic() + CLOSE_SECONDS)
            if time.monotonic() > deadline:
                raise ChildLostError(f"its process did not answer within {seconds:g} s: killed")

    def end(self) -> None:
        """End it: it leaves by itself at the end of its input, and is killed otherwise."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(0.0 if self._process.poll() is not None else self.END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
