"""A training that is killed at any moment, search or fit, goes on and ends at the digests of an undisturbed one."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from clearway.files import read_json, write_json
from clearway.params import load_params
from clearway.training import train
from clearway.workspace import Workspace

pytestmark = pytest.mark.lines

TRIALS, ITERATIONS = 13, 60


def project(root: Path) -> Workspace:
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"size": random.normal(size=300), "weight": random.normal(size=300)})
    frame["label"] = (frame["size"] + random.normal(size=300) > 0.3).astype("float64")
    space = {
        "learning_rate": {"kind": "float", "low": 0.01, "high": 0.5, "log": True},
        "max_leaf_nodes": {"kind": "int", "low": 2, "high": 8},
    }
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {
            "arguments": {"max_iter": ITERATIONS},
            "tune": {"space": space, "trials": TRIALS, "folds": 2},
            "checkpoint_seconds": 0,
        },
        "environments": {"production": {"port": 0}},
    }
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(root)
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    (workspace.features / "holdout.parquet").write_bytes(b"whoever reads this would fail")
    described = {"numeric": ["size", "weight"], "categorical": [], "declared": {}, "definitions_sha256": "0" * 64}
    write_json(workspace.features / "features.json", described)
    return workspace


def start(workspace: Workspace, repository: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(repository / "scripts" / "train.py"), "--project", str(workspace.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trials_kept(workspace: Workspace) -> int:
    for study in workspace.unfinished.glob("*.db"):
        try:
            with closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as connection:
                return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
        except sqlite3.OperationalError:  # it is being made
            return 0
    return 0


def kill_once(happened: Callable[[], bool], workspace: Workspace, repository: Path) -> None:
    """Kill a training with SIGKILL as soon as something has happened, and fail if it ends before."""
    process = start(workspace, repository)
    try:
        deadline = time.monotonic() + 120
        while not happened():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workspace.reports / "training.json").exists()


def finish(workspace: Workspace, repository: Path) -> dict:
    process = start(workspace, repository)
    try:
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return dict(read_json(workspace.reports / "training.json"))


def test_a_training_killed_while_it_searches_and_while_it_fits_ends_at_the_same_digests(
    tmp_path: Path, repository: Path
) -> None:
    undisturbed = train(
        load_params(project(tmp_path / "undisturbed").params_file), Workspace(tmp_path / "undisturbed")
    ).report
    workspace = project(tmp_path / "killed")
    kill_once(lambda: trials_kept(workspace) >= 5, workspace, repository)
    kept = trials_kept(workspace)
    kill_once(lambda: any(workspace.unfinished.glob("*.skops")), workspace, repository)
    assert kept >= 5
    assert trials_kept(workspace) == TRIALS
    made = finish(workspace, repository)
    assert made["tuning"]["resumed_at"] == TRIALS
    assert 0 < made["challenger"]["checkpoints"]["resumed_at"] < ITERATIONS
    for role in ("challenger", "baseline"):
        assert made[role]["digest"] == undisturbed[role]["digest"]
    assert not workspace.unfinished.exists()
