"""MLflow's own pages, started beside the line so that its runs and models can be looked at."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from clearway.files import read_json, write_json
from clearway.params import Params
from clearway.workspace import Workspace

FIRST_PORT = 5000


def ensure_ui(params: Params, workspace: Workspace) -> str | None:
    """The address of MLflow's pages, started in the background if need be; the server's own for a remote one.

    Returns None where nothing was registered yet. The pages need some seconds to come up; this does not wait.
    """
    from clearway.registry import tracking_uri

    uri: str = tracking_uri(params, workspace)
    if uri.startswith(("http://", "https://")):
        return uri
    if not (workspace.var / "mlflow.db").exists():
        return None
    record = _record(workspace)
    if running := _process(record):
        return str(read_json(record)["url"]) if running else None
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    with (workspace.var / "mlflow-ui.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=workspace.var,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    write_json(record, {"pid": process.pid, "created": psutil.Process(process.pid).create_time(), "url": url})
    return url


def stop_ui(workspace: Workspace) -> bool:
    """Stop the pages that :func:`ensure_ui` started; whether there were any."""
    record = _record(workspace)
    process = _process(record)
    record.unlink(missing_ok=True)
    if process is None:
        return False
    family = [*process.children(recursive=True), process]
    for member in family:
        member.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for member in alive:
        member.kill()
    return True


def wait_until_up(url: str, seconds: float = 60) -> bool:
    """Whether the pages accept connections within ``seconds``."""
    host, port = url.removeprefix("http://").split(":")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return True
        time.sleep(0.2)
    return False


def _record(workspace: Workspace) -> Path:
    return workspace.var / "mlflow-ui.json"


def _process(record: Path) -> psutil.Process | None:
    """The recorded process, if it is still the same one: a pid alone may have been given to a stranger."""
    if not record.exists():
        return None
    known = read_json(record)
    try:
        process = psutil.Process(known["pid"])
        return process if abs(process.create_time() - known["created"]) < 1 else None
    except psutil.NoSuchProcess:
        return None


def _free_port() -> int:
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
