"""MLflow's pages: started beside the line, found again, and stopped with it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clearway.files import read_json
from clearway.params import load_params
from clearway.ui import ensure_ui, wait_until_up
from clearway.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.lines
def test_the_pages_come_up_once_and_stop_with_the_servers(tmp_path: Path, flat_project: Callable[[Path], Path]) -> None:
    workspace = Workspace(flat_project(tmp_path / "cells"))
    params = load_params(workspace.params_file)
    assert ensure_ui(params, workspace) is None, "nothing was registered yet"
    workspace.var.mkdir()
    (workspace.var / "mlflow.db").touch()
    url = ensure_ui(params, workspace)
    assert url is not None
    assert wait_until_up(url)
    assert ensure_ui(params, workspace) == url
    pid = read_json(workspace.var / "mlflow-ui.json")["pid"]
    command = [sys.executable, str(ROOT / "scripts" / "stop.py"), "--project", str(workspace.root)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert "MLflow's pages stopped" in done.stdout, done.stderr
    left = psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # a child of this test
    assert not left
