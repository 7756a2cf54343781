"""A fork of this repository on disk, whose project is the flat breast-cancer table, pushed to a bare origin."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from act_runner import WorkflowRun
from filelock import FileLock
from forked_repository import Fork

from clearway.project_folder import render_dvc

LEFT_OUT = ("src/flights/", "tests/", "docs/", "benchmarks/", "dvc.lock", "params.yaml", "schema.yaml")
TESTS = ("tests/conftest.py", "tests/integration/conftest.py", "tests/integration/endpoint/")
UNIT_TESTS = ("tests/unit/clearway/test_as_of.py", "tests/unit/clearway/test_routing.py")
"""A few fast ones: that `make test-unit` is called is what matters here."""

EASY: dict[str, dict[str, Any]] = {
    "gates": {"floors": {"roc_auc": 0.8}, "baseline_gain": -0.2, "resamples": 100},
    "canary": {"steps": [{"weight": 10, "margin": 0.2, "min_requests": 100}], "score_margin": 0.5},
}
"""Gates and a rollout that a small model passes in seconds: how strict they are is tested elsewhere."""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a parallel test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def one_at_a_time(request: pytest.FixtureRequest, shared_folder: Path) -> Iterator[None]:
    """Runs share ports and two cores: one after the other, whatever the number of test workers."""
    if not {"delivered", "make_fork"} & set(request.fixturenames):
        yield
        return
    with FileLock(shared_folder / "act.lock"):
        yield


@pytest.fixture
def make_fork(repository: Path, flat_project: Callable[[Path], Path]) -> Callable[[Path], Fork]:
    """Makes a fresh fork in a folder: this repository as it is, with the flat project in place of the example."""

    def make(folder: Path) -> Fork:
        fork = Fork(folder)
        command = ["git", "-C", str(repository), "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, listed):
            if name.startswith(LEFT_OUT) and not name.startswith((*TESTS, *UNIT_TESTS)):
                continue
            if (repository / name).is_file():
                (fork.work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, fork.work / name)
        flat_project(fork.work)
        fork.change_params(**EASY)
        (fork.work / "dvc.yaml").write_text(render_dvc(fork.work, fork.work))
        fork.origin.parent.mkdir(parents=True)
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(fork.origin)], check=True)
        fork.git("init", "--quiet")
        fork.git("remote", "add", "origin", str(fork.origin))
        fork.commit_and_push("Fork, with a table of our own")
        return fork

    return make


@pytest.fixture
def delivered(shared_folder: Path, make_fork: Callable[[Path], Fork], tmp_path: Path) -> tuple[Fork, WorkflowRun]:
    """A fork after its first push, and that run. Made once, copied for each test."""
    folder = shared_folder / "first-push"
    answer = folder / "run.json"
    if not answer.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run = make_fork(folder).push()
        answer.write_text(json.dumps(asdict(run)))
    fork = Fork(folder, runs=1).copy(tmp_path / "fork")
    return fork, WorkflowRun(**json.loads(answer.read_text()))
