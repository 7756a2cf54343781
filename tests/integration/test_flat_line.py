"""The whole line on a project without code, run as its user runs it: to a promoted canary, and into every wall."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock

from clearway.ledger import read_ledger, stable_digest

FlatProject = Callable[[Path], Path]
ROOT = Path(__file__).resolve().parents[2]


def script(name: str, project: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "scripts" / name), "--project", str(project), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def project(tmp_path: Path, flat_project: FlatProject) -> Iterator[Path]:
    folder = flat_project(tmp_path / "cells")
    yield folder
    script("stop.py", folder)


def production(project: Path) -> str:
    return stable_digest(read_ledger(project / "var" / "environments" / "production", "production"))


def ask(project: Path) -> dict:
    server = json.loads((project / "var" / "environments" / "production" / "server.json").read_text())
    row = pd.read_csv(project / "cells.csv").drop(columns="diagnosis").iloc[0].to_dict()
    request = urllib.request.Request(
        f"http://{server['host']}:{server['port']}/predict",
        data=json.dumps(row).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.lines
def test_from_a_csv_to_a_promoted_canary_and_back(project: Path) -> None:
    first = script("run_line.py", project, "--no-ui")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"outcome\s+promoted", first.stdout)
    challenger = json.loads((project / "reports" / "model_validation.json").read_text())
    assert production(project) == challenger["digest"]
    assert production(project)[:12] in first.stdout
    entries = read_ledger(project / "var" / "environments" / "production", "production")
    assert [entry.action for entry in entries] == ["deploy", "canary", "canary", "canary", "promote"]
    assert [entry.canary_weight for entry in entries] == [0, 10, 25, 50, 0]
    assert entries[0].stable == challenger["baseline_digest"], "the first control is the labelled baseline"
    assert "baseline" in entries[0].reason
    answer = ask(project)
    assert answer["version"] == challenger["digest"]
    assert answer["score"] > 0.9, "the first row is malignant"

    second = script("run_line.py", project, "--no-ui")
    assert second.returncode == 0, second.stdout + second.stderr
    assert re.search(r"outcome\s+nothing to do", second.stdout)
    assert len(read_ledger(project / "var" / "environments" / "production", "production")) == len(entries)
    assert ask(project)["version"] == challenger["digest"]

    table = pd.read_csv(project / "cells.csv")
    shuffled = table.assign(diagnosis=table["diagnosis"].sample(frac=1, random_state=1).to_numpy())
    shuffled.to_csv(project / "cells.csv", index=False)
    third = script("run_line.py", project, "--no-ui", "--force-retrain")
    assert third.returncode == 0, third.stdout + third.stderr
    assert re.search(r"outcome\s+rejected", third.stdout), "a model of shuffled answers"
    assert production(project) == challenger["digest"]
    assert ask(project)["version"] == challenger["digest"]

    back = script("rollback.py", project, "--env", "production", "--reason", "drill")
    assert back.returncode == 0, back.stdout + back.stderr
    assert ask(project)["version"] == challenger["baseline_digest"]
    again = script("deploy.py", project, "--env", "production", "--digest", challenger["digest"])
    assert again.returncode == 1
    assert "quarantined" in again.stderr

    record = json.loads((project / "var" / "environments" / "production" / "server.json").read_text())
    assert script("stop.py", project).returncode == 0
    assert not psutil.pid_exists(record["pid"])


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stdout + done.stderr
    return lines[0]


def edit(project: Path, change: Callable[[dict], None]) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    change(params)
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_second_run_beside_a_running_one_is_refused(project: Path) -> None:
    (project / "var").mkdir()
    with FileLock(project / "var" / "line.lock"):
        done = script("run_line.py", project, "--no-ui")
    assert done.returncode == 1
    assert "another run of the line" in error_line(done)


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda p: p["gates"].update(flors={}), 2, ["params.yaml", "gates.flors"]),
        (lambda p: p.update(seed="many"), 2, ["params.yaml", "seed", "many"]),
        (lambda p: p["sources"]["cells"].update(path="gone.csv"), 1, ["gone.csv", "sources.cells"]),
        (lambda p: p["data"].update(label="verdict"), 2, ["verdict"]),
        (lambda p: p["train"].update(estimator="sklearn.ensemble.Nothing"), 2, ["train.estimator", "Nothing"]),
    ],
)
def test_a_wrong_setting_stops_the_line_with_one_clear_line(
    project: Path, change: Callable[[dict], None], code: int, named: list[str]
) -> None:
    edit(project, change)
    done = script("run_line.py", project, "--no-ui")
    line = error_line(done)
    assert all(word in line for word in named), line
    assert done.returncode in (1, code)
    assert not (project / "build" / "model").exists()


def test_broken_data_stop_the_line_before_training(project: Path) -> None:
    table = pd.read_csv(project / "cells.csv").rename(columns={"mean_radius": "radius"})
    table.to_csv(project / "cells.csv", index=False)
    line = error_line(script("run_line.py", project, "--no-ui"))
    assert "mean_radius" in line
    assert "cells" in line
    assert not (project / "data" / "features").exists()


def test_a_truncated_file_is_named(project: Path) -> None:
    content = (project / "cells.csv").read_bytes()
    (project / "cells.csv").write_bytes(content[: len(content) // 2 - 7])
    assert "cells.csv" in error_line(script("run_line.py", project, "--no-ui"))
    assert not (project / "data" / "raw").exists()


def test_a_port_in_use_is_named_with_its_key(project: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        edit(project, lambda params: params["environments"]["staging"].update(port=port))
        line = error_line(script("run_line.py", project, "--no-ui"))
    assert str(port) in line
    assert "environments.staging.port" in line
