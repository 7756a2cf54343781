"""The line on a year of real flights, as `make run` runs it: a first model, nothing to do, then time moves."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from clearway.ledger import read_ledger, stable_digest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the repository's files under git, serving on free ports."""
    folder = tmp_path / "clearway"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    text = (folder / "params.yaml").read_text()
    for environment in yaml.safe_load(text)["environments"].values():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            text = text.replace(f"port: {environment['port']}", f"port: {probe.getsockname()[1]}")
    one_step = "  steps: [{ weight: 50, margin: 0.05, min_requests: 250 }]\n"  # a tenth of the traffic
    text, changed = re.subn(r"  steps:\n(    - .*\n)+", one_step, text)
    assert changed == 1
    (folder / "params.yaml").write_text(text)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.invalid"]
    subprocess.run(["git", "-C", str(folder), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(folder), *identity, "commit", "-qm", "start"], check=True)
    yield folder
    run(folder, "stop.py")


def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "200"}
    command = [sys.executable, str(folder / "scripts" / name), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


def report(folder: Path, name: str) -> dict:
    return json.loads((folder / "reports" / name).read_text())


def production(folder: Path) -> str:
    return stable_digest(read_ledger(folder / "var" / "environments" / "production", "production"))


@pytest.mark.lines
def test_a_first_model_then_nothing_to_do_then_autumn(checkout: Path) -> None:
    first = run(checkout, "run_line.py", "--no-ui")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"outcome\s+promoted", first.stdout), first.stdout
    july = report(checkout, "model_validation.json")
    assert july["metrics"]["challenger"]["roc_auc"] >= 0.75
    assert july["champion_digest"] is None
    assert report(checkout, "decision.json")["reasons"] == ["bootstrap"]
    assert production(checkout) == july["digest"]

    second = run(checkout, "run_line.py", "--no-ui")
    assert second.returncode == 0, second.stdout + second.stderr
    assert re.search(r"outcome\s+nothing to do", second.stdout), second.stdout
    assert production(checkout) == july["digest"]

    assert run(checkout, "resolve_as_of.py", "--as-of", "2013-10-01", "--write").returncode == 0
    assert 'as_of: "2013-10-01T00:00:00Z"' in (checkout / "params.yaml").read_text()
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
    dvc = [sys.executable, "-m", "dvc", "repro"]
    third = subprocess.run(dvc, cwd=checkout, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert third.returncode == 0, third.stdout + third.stderr
    autumn = report(checkout, "model_validation.json")
    drift = report(checkout, "drift.json")
    assert drift["calibrated"]
    assert drift["verdict"] == "no_drift", "a September is no stranger to January to May than their weeks to each other"
    assert drift["champion"] == july["digest"]
    assert {"performance", "schedule", "data_volume"} <= set(report(checkout, "decision.json")["reasons"])
    assert autumn["champion_digest"] == july["digest"]
    assert autumn["metrics"]["champion"]["roc_auc"] > 0.6, "the champion is scored on the same September"
    gates = {gate["name"]: gate["status"] for gate in autumn["gates"]}
    assert gates["champion"] == "pass"
