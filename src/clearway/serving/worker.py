"""One worker process of a server: follows the routing table, answers, and drains when told to stop or left alone."""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import uvicorn

from clearway.cli import make_importable
from clearway.log_hiding import hiding_of
from clearway.params import Params, ServingParams, load_params
from clearway.prediction_log import PredictionLog
from clearway.serving.admin import Admin
from clearway.serving.app import Endpoint, build_app
from clearway.serving.board import Board
from clearway.serving.connections import at_the_door
from clearway.serving.direct import DirectProtocol
from clearway.serving.housekeeping import Housekeeper
from clearway.serving.logs import set_up
from clearway.serving.models import hosting
from clearway.serving.slow_callers import cut_off_slow_callers
from clearway.serving.state import Follower
from clearway.serving.supervisor import Place
from clearway.serving.whole import Desk
from clearway.workspace import Workspace

DRAIN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Longer than callers and proxies keep an idle connection, so that it is they who close it, never mid-request."""
FIRST_VERSION_SECONDS = 10.0
"""How long the first worker waits for a version to load before it takes requests that it can only refuse."""
ORPHAN_SECONDS = 15.0
"""How long a worker whose supervisor died may take to drain before it ends as it is."""
SWITCH_SECONDS = 0.0005
"""How long one thread may keep the interpreter while another wants it. At Python's own 5 ms a canary, which scores in a
thread, waits that long behind a busy event loop, and the event loop behind the log's writer."""
GARBAGE_OBJECTS = 10_000
"""How many more objects than before have the collector look for circles. At Python's own 700 it does so thrice in a
batch of 1,000 rows, whose objects are in none."""
POLITE_SECONDS = 0.002
"""How long a worker that holds more callers than another leaves the next one to it."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

logger = logging.getLogger("clearway.serving")


class Acceptor:
    """Takes callers from a listener that several processes share: one in each turn of the event loop.

    Whoever wakes first would get nearly all callers, and keep-alive leaves them there, while the other processes idle.
    So a worker that holds more than another lets that one go first, for ``POLITE_SECONDS``: it may be too busy.

    Parameters
    ----------
    listener
        Which callers wait at.
    answering
        Makes what answers one of them.
    connections
        Those that are open.
    desk
        Where the workers say how many callers they hold.
    """

    def __init__(
        self,
        listener: socket.socket,
        answering: Callable[[], asyncio.BaseProtocol],
        connections: Collection[object],
        desk: Desk,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._answering = answering
        self._connections = connections
        self._desk = desk
        self._taking: set[asyncio.Task[object]] = set()
        self._closed = False
        self._hold()
        self._resume()

    def close(self) -> None:
        """Take no more callers."""
        if not self._closed:
            self._closed = True
            self._desk.hold(None)
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Wait for callers that are being taken."""
        await asyncio.gather(*self._taking, return_exceptions=True)

    def _hold(self) -> bool:
        """Say how many callers are held here; whether another worker holds fewer."""
        return self._desk.hold(len(self._connections) + len(self._taking))

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._look)

    def _look(self) -> None:
        if self._hold():
            self._pause(POLITE_SECONDS)
        else:
            self._take()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(seconds, self._take_after_all)

    def _take_after_all(self) -> None:
        if not self._closed:
            self._resume()
            self._take()

    def _take(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the caller left
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            logger.error("no caller can be taken for a second: %s", error)
            self._pause(1.0)
            return
        caller.setblocking(False)
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._answering, caller))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        self._hold()


class _Server(uvicorn.Server):
    """uvicorn's, with a listener that it shares; it listens when it has a version, or nobody has."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint, desk: Desk, settings: ServingParams) -> None:
        super().__init__(config)
        self._settings = settings
        self._endpoint = endpoint
        self._desk = desk

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(3)
        self.servers = []
        self.started = True
        connections = self.server_state.connections
        slow = cut_off_slow_callers(connections, self._settings.read_timeout_seconds)
        self._watch = asyncio.create_task(slow)  # ends with the loop
        await self._until_of_use()
        if self.should_exit:
            return

        def answering() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )  # type: ignore[call-arg]
            return protocol

        assert sockets is not None
        (listener,) = sockets
        await self.on_tick(0)  # the date of the first answers
        door = at_the_door(connections, self._settings.max_connections, answering)
        self.servers.append(Acceptor(listener, door, connections, self._desk))  # type: ignore[arg-type]
        self._desk.accepting = True
        self._endpoint.publish()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.accepting = False
        self._endpoint.publish()
        await super().shutdown(sockets)

    async def _until_of_use(self) -> None:
        """Wait until there is a version to answer with, unless no worker has one for a while, or none can be had."""
        began = time.monotonic()
        while not (self.should_exit or self._endpoint.loaded):
            tried = self._endpoint.refused or time.monotonic() - began > FIRST_VERSION_SECONDS
            if tried and not self._desk.others_answer():
                return
            self._endpoint.publish()
            await asyncio.sleep(0.1 if tried else 0.01)


def run_worker(params: Params, workspace: Workspace, environment: str, place: Place) -> None:
    """Serve ``environment`` until told to stop; then finish what was accepted, write out the log, and return."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(GARBAGE_OBJECTS)
    set_up(params.serving.log_format)
    desk = Desk(Board(place.board, place.workers + 1), place.slot, place.life)
    settings = params.serving.log
    log = PredictionLog(workspace.environment(environment) / "predictions", hiding=hiding_of(settings))
    follower = Follower(params, workspace, environment)
    hosted = hosting(params, workspace, environment)
    admin = Admin(params, workspace, environment, lambda: app.endpoint.whole())
    app = build_app(params.serving, environment, follower, log, params.model_name, desk, hosted, admin)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(DirectProtocol, app.at_once),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, app.endpoint, desk, params.serving)
    # uvicorn raises the signal again after it has drained: to us that is the end of a good day, not a death
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    threading.Thread(target=_end_with_supervisor, args=(place.lifeline,), name="lifeline", daemon=True).start()
    minutes, others = (settings.compact_minutes, hosted.folders.values()) if place.slot == 0 else (None, ())
    housekeeper = Housekeeper(workspace, environment, minutes, others)
    try:
        server.run(sockets=[socket.socket(fileno=place.listener)])
    finally:
        housekeeper.stop()


def _end_with_supervisor(lifeline: int) -> None:
    """Drain when the supervisor has died, and end in any case."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def main() -> None:
    """A worker in a process that shares nothing with its supervisor but descriptors: environment, folder, place."""
    environment, project, place = sys.argv[1:]
    workspace = Workspace(Path(project))
    make_importable(workspace.root)
    run_worker(load_params(workspace.params_file), workspace, environment, Place(**json.loads(place)))


if __name__ == "__main__":
    main()
