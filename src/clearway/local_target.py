"""An environment's server as a process of this machine: started detached, asked what it serves, stopped by identity.

A process is ours only if ``server.json`` names its id *and* the moment it was created: process ids are reused, and
what merely has a similar name is somebody else's.
"""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.errors import ClearwayError
from clearway.params import EnvironmentParams, Params, describe
from clearway.project import definitions_sha256
from clearway.project_folder import HOME
from clearway.workspace import Workspace

START_SECONDS = 60.0
STOP_SECONDS = 15.0
REFUSAL_SECONDS = 5.0
"""How long a server may report the same error before it counts as its answer, and not as a leftover of the last one."""
ORPHANS_SECONDS = 1.0
"""How long the port may still be taken by workers whose server was killed: they notice it and leave."""
POLL_SECONDS = 0.05
SAME_MOMENT_SECONDS = 2.0
"""The kernel's idea of when it booted, and with it a process's creation time, moves with the clock's corrections."""


class ServerRefusedError(ClearwayError):
    """The server runs, and says why it does not serve what it should."""


class Server(BaseModel):
    """``server.json``, written by the server once it listens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int = Field(ge=0)
    created: float
    host: str
    port: int
    code: str | None = None
    """Hash of the project's code that it runs."""
    path: str = ""
    """Where this project's model is found on it, if it is the server of another project that hosts this one's model."""

    @property
    def url(self) -> str:
        host = _reachable(self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.path}"


def find_server(workspace: Workspace, environment: str) -> Server | None:
    """The running server of an environment; None if there is none (a record of a dead one counts as none).

    Raises
    ------
    ClearwayError
        ``server.json`` is damaged.
    """
    record = _read_record(workspace.environment(environment) / "server.json")
    return record if record is not None and _process(record) is not None else None


def describe_server(server: Server) -> dict[str, Any] | None:
    """What the server says it serves (``GET /``); None if it does not answer."""
    connection = http.client.HTTPConnection(_reachable(server.host), server.port, timeout=5)
    try:
        connection.request("GET", server.path or "/")
        content = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return content if isinstance(content, dict) else None


def check_startable(params: Params, workspace: Workspace, environment: str) -> None:
    """Find out, before anything is recorded, that the environment's server could not start.

    Raises
    ------
    ClearwayError
        It does not run, and its port is somebody else's.
    """
    if find_server(workspace, environment) is None:
        _check_port(environment, params.environment(environment))


def ensure_serving(
    params: Params, workspace: Workspace, environment: str, revision: int, timeout: float = START_SECONDS
) -> Server:
    """Have the environment's server run and serve ledger revision ``revision`` or a later one.

    Raises
    ------
    ClearwayError
        The port is somebody else's, the server ends, refuses the revision (also when started anew, if the project's
        code has changed since it began), or does not reach it within ``timeout`` seconds.
    """
    folder = workspace.environment(environment)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "server.lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise ClearwayError(
            f"{folder / 'server.lock'} is held by another command for {timeout:.0f} s: wait for it"
        ) from None
    try:
        settings = params.environment(environment)
        server = find_server(workspace, environment)
        if server is not None and server.path:  # it is not ours to start or stop
            return _await_revision(workspace, environment, revision, None, timeout)
        if server is not None and (server.host, server.port) != (settings.host, settings.port or server.port):
            stop(workspace, environment)  # params.yaml gave it another address
            server = None
        started = None if server else _start(workspace, environment, settings)
        try:
            return _await_revision(workspace, environment, revision, started, timeout)
        except ServerRefusedError:
            if server is None or server.code == definitions_sha256(params):
                raise
        # It runs the project's code of another day, and may not know the features of this one.
        stop(workspace, environment)
        return _await_revision(workspace, environment, revision, _start(workspace, environment, settings), timeout)
    finally:
        lock.release()


def stop(workspace: Workspace, environment: str) -> Server | None:
    """Stop the environment's server and wait for its end; None if it was not running.

    Raises
    ------
    ClearwayError
        It cannot be stopped, is the server of another project, or ``server.json`` is damaged.
    """
    path = workspace.environment(environment) / "server.json"
    record = _read_record(path)
    process = _process(record) if record is not None else None
    if process is not None and record is not None and record.path:
        raise ClearwayError(
            f"{environment} is hosted at {record.url} by the server of another project (pid {record.pid}): stop that "
            "one from its own project's folder"
        )
    if process is not None:
        try:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
        except psutil.NoSuchProcess:
            pass
        except (psutil.AccessDenied, psutil.TimeoutExpired) as error:
            raise ClearwayError(f"the server of {environment} (pid {process.pid}) cannot be stopped: {error}") from None
    if record is not None and _read_record(path) == record:
        path.unlink(missing_ok=True)
    return record if process is not None else None


def announce_hosted(workspace: Workspace, environment: str, server: Server) -> None:
    """Leave a record in the folder of a hosted project, so that its own commands find the server that hosts it.

    A server of its own that lives is left in its place.
    """
    present = find_server(workspace, environment)
    if present is not None and present.pid != server.pid:
        return
    path = workspace.environment(environment) / "server.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # not forced to the disk, whose hundred waits would keep the server from starting: a record of a dead server is none
    written = path.with_name(f"server.json.{server.pid}")
    written.write_text(server.model_dump_json(), encoding="utf-8")
    written.replace(path)


def withdraw_hosted(workspace: Workspace, environment: str, pid: int) -> None:
    """Remove the record that :func:`announce_hosted` left for the server ``pid``."""
    path = workspace.environment(environment) / "server.json"
    record = _read_record(path)
    if record is not None and record.pid == pid and record.path:
        path.unlink(missing_ok=True)


class _Started:
    """A server process just started, and where its words in the log begin."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, offset: int) -> None:
        self.process = process
        self._log = log
        self._offset = offset

    def last_words(self) -> str:
        lines = self._log.read_bytes()[self._offset :].decode("utf-8", "replace").split("\n")
        spoken = [line.strip() for line in lines if line.strip()]
        errors = [line.removeprefix("error: ") for line in spoken if line.startswith("error: ")]
        return (errors or spoken or ["it said nothing"])[-1]


def _start(workspace: Workspace, environment: str, settings: EnvironmentParams) -> _Started:
    _check_port(environment, settings)
    folder = workspace.environment(environment)
    (folder / "server.json").unlink(missing_ok=True)  # a dead server's
    log = folder / "server.log"
    script = HOME / "scripts" / "serve.py"
    command = [sys.executable, str(script), "--env", environment, "--project", str(workspace.root.resolve())]
    with log.open("ab") as stream:
        offset = stream.tell()
        process = subprocess.Popen(
            command,
            cwd=workspace.root,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Started(process, log, offset)


def _check_port(environment: str, settings: EnvironmentParams) -> None:
    """A stranger on the port is told apart before anything is started; workers of a dead server leave by themselves."""
    if settings.port == 0:
        return
    squatter = Server(pid=0, created=0.0, host=settings.host, port=settings.port)
    deadline = time.monotonic() + ORPHANS_SECONDS
    while _listens(squatter):
        answer = describe_server(squatter) or {}
        known = isinstance(answer.get("environment"), str) and isinstance(answer.get("pid"), int)
        if (known and psutil.pid_exists(answer["pid"])) or time.monotonic() >= deadline:
            who = (
                f"the server of environment {answer['environment']} of another project, pid {answer['pid']}"
                if known
                else "another program"
            )
            raise ClearwayError(
                f"port {settings.port} is in use by {who} (environments.{environment}.port in params.yaml): "
                "stop what listens there, or choose another port"
            )
        time.sleep(POLL_SECONDS)


def _listens(server: Server) -> bool:
    connection = http.client.HTTPConnection(_reachable(server.host), server.port, timeout=2)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def _await_revision(
    workspace: Workspace, environment: str, revision: int, started: _Started | None, timeout: float
) -> Server:
    log = workspace.environment(environment) / "server.log"
    deadline = time.monotonic() + timeout
    refusal, refused_at, answer = None, 0.0, None
    while time.monotonic() < deadline:
        if started is not None and started.process.poll() is not None:
            raise ClearwayError(f"the server of {environment} did not start: {started.last_words()} ({log})")
        server = find_server(workspace, environment)
        if server is None and started is None:
            raise ClearwayError(f"the server of {environment} ended while it was asked to follow: see {log}")
        answer = describe_server(server) if server is not None else None
        if server is not None and answer is not None:
            error = answer.get("error")
            if error is None and (answer.get("revision") or 0) >= revision:
                return server
            if error != refusal:
                refusal, refused_at = error, time.monotonic()
            if refusal is not None and time.monotonic() - refused_at >= REFUSAL_SECONDS:
                break
        time.sleep(POLL_SECONDS)
    serving = "nothing" if not answer or answer.get("revision") is None else f"revision {answer['revision']}"
    why = refusal or f"no answer to the new revision within {timeout:.0f} s"
    raise (ServerRefusedError if refusal else ClearwayError)(
        f"the server of {environment} does not serve revision {revision}, it serves {serving}: {why}; "
        f"see {log}, or go back with scripts/rollback.py --env {environment}"
    )


def _read_record(path: Path) -> Server | None:
    try:
        return Server.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): stop that server by hand and delete it") from None


def _process(record: Server) -> psutil.Process | None:
    """The process that wrote the record, if it lives."""
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) <= SAME_MOMENT_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _reachable(host: str) -> str:
    """An address to ask a server that listens on all of them."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
