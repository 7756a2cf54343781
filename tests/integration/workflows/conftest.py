"""A fork of this repository on disk, whose project is the flat breast-cancer table, pushed to a bare origin."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from act_runner import WorkflowRun
from filelock import FileLock
from forked_repository import Fork

from clearway.project_folder import render_dvc

LEFT_OUT = ("src/flights/", "tests/", "docs/", "benchmarks/", "dvc.lock", "params.yaml", "schema.yaml")
TESTS = ("tests/conftest.py", "tests/integration/conftest.py", "tests/integration/endpoint/")
UNIT_TESTS = ("tests/unit/clearway/test_as_of.py",)
"""A fast one: that `make test-unit` is called is what matters here."""
COLUMNS = ["diagnosis", "mean_radius", "mean_texture", "mean_smoothness", "worst_concavity", "repeated"]
"""What the table keeps: each column costs time in every stage."""

EASY: dict[str, dict[str, Any]] = {
    "train": {"arguments": {"max_iter": 20}},
    "gates": {
        "floors": {"roc_auc": 0.8},
        "baseline_gain": -0.2,
        "champion": {"margin": 0.9},
        "noise": {"keep": 0.5},
        "resamples": 100,
        "latency_ms": 500,
        "through_server": False,
    },
    "canary": {"steps": [{"weight": 10, "margin": 0.3, "min_requests": 30}], "score_margin": 1.0, "latency_ms": 1000.0},
    "environments": {"staging": {"port": 0}, "production": {"port": 0, "requires": "staging"}},
}
"""Gates and a rollout that a small model passes in seconds: how strict they are is tested elsewhere."""


def keep_columns(project: Path, names: list[str]) -> None:
    """Leave only these columns in the table and in its schema."""
    pd.read_csv(project / "cells.csv")[names].to_csv(project / "cells.csv", index=False)
    schema = yaml.safe_load((project / "schema.yaml").read_text())
    columns = schema["tables"]["cells"]["columns"]
    schema["tables"]["cells"]["columns"] = {name: columns[name] for name in names}
    (project / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a parallel test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def make_fork(repository: Path, flat_project: Callable[[Path], Path]) -> Callable[..., Fork]:
    """Makes a fresh fork in a folder: this repository as it is, with a small project in place of the example."""

    def write_narrow(folder: Path) -> None:
        flat_project(folder)
        keep_columns(folder, COLUMNS)

    def make(folder: Path, write_project: Callable[[Path], None] = write_narrow) -> Fork:
        fork = Fork(folder)
        command = ["git", "-C", str(repository), "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, listed):
            if name.startswith(LEFT_OUT) and not name.startswith((*TESTS, *UNIT_TESTS)):
                continue
            if (repository / name).is_file():
                (fork.work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, fork.work / name)
        write_project(fork.work)
        shutil.copy(Path(__file__).with_name("faulty_model.py"), fork.work)
        fork.change_params(**EASY)
        (fork.work / "dvc.yaml").write_text(render_dvc(fork.work, fork.work))
        fork.origin.parent.mkdir(parents=True)
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(fork.origin)], check=True)
        fork.git("init", "--quiet")
        fork.git("remote", "add", "origin", str(fork.origin))
        fork.commit_and_push("Fork, with a table of our own")
        fork.git("repack", "-adq")  # as a clone is: each checkout of each job copies one pack
        return fork

    return make


@pytest.fixture
def delivered(shared_folder: Path, make_fork: Callable[..., Fork], tmp_path: Path) -> tuple[Fork, WorkflowRun]:
    """A fork after its first push, and that run. Made once if it succeeds, and copied for each test."""
    folder = shared_folder / "first-push"
    answer = folder / "run.json"
    with FileLock(shared_folder / "first-push.lock"):
        if not answer.exists():
            shutil.rmtree(folder, ignore_errors=True)
            run = make_fork(folder).push()
            assert run.code == 0, run.explain()
            answer.write_text(json.dumps(asdict(run)))
    fork = Fork(folder, runs=1).copy(tmp_path / "fork")
    return fork, WorkflowRun(**json.loads(answer.read_text()))
