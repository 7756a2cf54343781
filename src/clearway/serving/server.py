"""The server process of one environment: binds, listens, writes ``server.json``, drains when told to stop."""

import contextlib
import errno
import os
import signal
import socket
from pathlib import Path

from clearway.errors import ClearwayError, UsageError
from clearway.files import write_json
from clearway.params import EnvironmentParams, Params
from clearway.workspace import Workspace

DRAIN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Longer than callers and proxies keep an idle connection, so that it is they who close it, never mid-request."""


def serve(params: Params, workspace: Workspace, environment: str, host: str | None = None) -> None:
    """Serve ``environment`` until SIGTERM or SIGINT; then finish what was accepted, write out the log, and return.

    Nothing needs to be deployed yet: the server then answers 503 until a routing table appears.

    Raises
    ------
    UsageError
        The environment is unknown, or its host is no address of this machine.
    ClearwayError
        Its port is in use or needs privileges.
    """
    settings = params.environment(environment)
    if host is not None:
        settings = settings.model_copy(update={"host": host})
    listener = _bind(settings, environment)
    # A request is one small row: threads of the numeric libraries would only fight each other for the cores. They
    # read this when first imported, hence the imports below it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import psutil
    import uvicorn

    from clearway.prediction_log import PredictionLog
    from clearway.project import definitions_sha256
    from clearway.serving.admin import Admin
    from clearway.serving.app import build_app
    from clearway.serving.state import Follower

    folder = workspace.environment(environment)
    record = folder / "server.json"
    code = definitions_sha256(params)
    follower = Follower(params, workspace, environment)
    admin = Admin(params, workspace, environment, follower.served)
    app = build_app(params.serving, environment, follower, PredictionLog(folder / "predictions"), admin)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                host, port = listener.getsockname()[:2]
                created = psutil.Process().create_time()
                write_json(record, {"pid": os.getpid(), "created": created, "host": host, "port": port, "code": code})

    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # uvicorn raises the signal again after it has drained: to us that is the end of a good day, not a death
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        Server(config).run(sockets=[listener])
    finally:
        listener.close()
        _remove_own(record)


def _bind(settings: EnvironmentParams, environment: str) -> socket.socket:
    key = f"environments.{environment}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1)  # of two processes that bound the port, only one may listen: find out now
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ClearwayError(
                f"port {settings.port} is in use ({key}.port in params.yaml): "
                "stop what listens there, or choose another port"
            ) from None
        if error.errno == errno.EACCES:
            raise ClearwayError(
                f"port {settings.port} needs privileges ({key}.port in params.yaml): choose one above 1023"
            ) from None
        raise UsageError(
            f"host {settings.host!r} cannot be bound ({key}.host in params.yaml): {error.strerror or error}"
        ) from None
    listener.set_inheritable(True)
    return listener


def _remove_own(record: Path) -> None:
    """Remove ``server.json`` unless another server has written its own since."""
    from clearway.files import read_json

    with contextlib.suppress(ClearwayError):
        if read_json(record).get("pid") == os.getpid():
            record.unlink(missing_ok=True)
