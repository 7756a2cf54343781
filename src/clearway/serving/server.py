"""The server of one environment: binds, starts workers that answer, writes ``server.json``, drains when told to."""

import contextlib
import errno
import gc
import importlib
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from clearway.errors import ClearwayError, UsageError
from clearway.log_hiding import hiding_of
from clearway.params import EnvironmentParams, Params
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.serving.supervisor import Place

BACKLOG = 2048
"""Callers that may wait to be taken by a worker."""
ALSO_NEEDED = ("uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.on", "uvloop", "prometheus_client")
"""What workers import late. ONNX Runtime is not here: to import it starts a thread, and what has two is not copied."""


def serve(params: Params, workspace: Workspace, environment: str, host: str | None = None) -> None:
    """Serve ``environment`` until SIGTERM or SIGINT; then finish what was accepted, write out the log, and return.

    Nothing needs to be deployed yet: the server then answers 503 until a routing table appears.

    Raises
    ------
    UsageError
        The environment is unknown, its host is no address of this machine, or the key of the prediction log is missing.
    ClearwayError
        Its port is in use or needs privileges, or its workers end at their start.
    """
    settings = params.environment(environment)
    if host is not None:
        settings = settings.model_copy(update={"host": host})
    hiding_of(params.serving.log)  # a key that is missing is found out now
    listener = _bind(settings, environment)
    # A request is one small row: threads of the numeric libraries would only fight each other for the cores. They
    # read this when first imported, hence the imports below it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Arrow's allocator, which Feast brings along, would start a thread of its own: see ALSO_NEEDED.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

    import psutil

    from clearway.files import write_json
    from clearway.local_target import Server
    from clearway.project import definitions_sha256
    from clearway.serving.logs import set_up
    from clearway.serving.models import announce, hosting, withdraw
    from clearway.serving.supervisor import Supervisor, fork, way_to_start
    from clearway.serving.worker import run_worker

    set_up(params.serving.log_format, at_once=True)  # copies of this process need it to have one thread
    code = definitions_sha256(params)
    hosted = hosting(params, workspace, environment)
    _import_what_workers_need(params, workspace, environment)
    record = workspace.environment(environment) / "server.json"

    def launch(place: "Place", held: int) -> int:
        if way_to_start() == "fork":
            return fork(lambda: run_worker(params, workspace, environment, place), held)
        command = [sys.executable, "-m", "clearway.serving.worker", environment, str(workspace.root.resolve())]
        return os.posix_spawn(sys.executable, [*command, json.dumps(asdict(place))], os.environ)

    def tell() -> None:
        host, port = listener.getsockname()[:2]
        created = psutil.Process().create_time()
        announce(hosted, environment, Server(pid=os.getpid(), created=created, host=host, port=port))
        write_json(record, {"pid": os.getpid(), "created": created, "host": host, "port": port, "code": code})

    gc.collect()
    gc.freeze()  # what copies of this process share stays shared as long as no collector writes to it
    try:
        Supervisor(settings.worker_count, listener, launch, tell).run()
    finally:
        listener.close()
        _remove_own(record)
        withdraw(hosted, environment, os.getpid())


def _import_what_workers_need(params: Params, workspace: Workspace, environment: str) -> None:
    """Import once, before they are copied, what all workers import: Feast only where a served version reads from it."""
    from clearway.serving.loading import own_features, reads_features

    for name in ALSO_NEEDED:
        importlib.import_module(name)
    if reads_features(workspace, environment):
        with contextlib.suppress(Exception):  # a worker says what is wrong with the project's code
            own_features(params)
            importlib.import_module("clearway.feature_store.online")
            importlib.import_module("clearway.feature_store.store")


def _bind(settings: EnvironmentParams, environment: str) -> socket.socket:
    key = f"environments.{environment}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)  # of two processes that bound the port, only one may listen: find out now
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
    listener.setblocking(False)
    return listener


def _remove_own(record: Path) -> None:
    """Remove ``server.json`` unless another server has written its own since."""
    from clearway.files import read_json

    with contextlib.suppress(ClearwayError):
        if read_json(record).get("pid") == os.getpid():
            record.unlink(missing_ok=True)
