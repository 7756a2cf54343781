"""DVC runs the line: what is unchanged is not run again, mistakes in the graph are refused, experiments work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clearway.project_folder import prepare

FlatProject = Callable[[Path], Path]


def dvc(folder: Path, *arguments: str, ok: bool = True) -> str:
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, flat_project: FlatProject) -> Path:
    folder = flat_project(tmp_path / "cells")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "config", "user.name", "tester")  # `dvc exp run` commits by itself
    git(folder, "config", "user.email", "tester@example.invalid")
    prepare(folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


@pytest.mark.lines
def test_the_line_under_dvc(project: Path) -> None:
    first = dvc(project, "repro")
    assert "Running stage 'package'" in first
    outcome = json.loads((project / "build" / "bundle" / "outcome.json").read_text())
    assert outcome["verdict"] == "passed"
    second = dvc(project, "repro")
    ran = {line.split("'")[1] for line in second.splitlines() if line.startswith("Running stage")}
    assert ran == {"champion"}, "only the stage that looks at production runs again"

    git(project, "add", "-A")
    git(project, "commit", "-qm", "first model")
    assert json.loads(dvc(project, "metrics", "diff", "--json", "HEAD").splitlines()[-1]) == {}
    third = dvc(project, "exp", "run", "-S", "train.arguments.max_iter=3", "--name", "shorter", "gates")
    ran = {line.split("'")[1] for line in third.splitlines() if line.startswith("Running stage")}
    assert "train" in ran
    assert not ran & {"ingest", "validate_data", "features"}
    assert yaml.safe_load((project / "params.yaml").read_text())["train"]["arguments"]["max_iter"] == 3
    changes = json.loads(dvc(project, "metrics", "diff", "--json", "HEAD").splitlines()[-1])
    assert changes["reports/metrics.json"]["roc_auc"]["diff"] != 0
    dvc(project, "plots", "diff", "HEAD", "--out", str(project.parent / "plots"))
    assert "roc" in (project.parent / "plots" / "index.html").read_text()
    assert "shorter" in dvc(project, "exp", "show", "--csv")


def _stages(project: Path) -> dict:
    return yaml.safe_load((project / "dvc.yaml").read_text())


def test_a_cycle_is_refused(project: Path) -> None:
    pipeline = _stages(project)
    pipeline["stages"]["ingest"]["deps"].append("build/bundle")
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    said = dvc(project, "repro", "--dry", ok=False)
    assert "both a dependency and an output" in said or "cycle" in said.lower()
    assert "ingest" in said


def test_an_output_made_twice_is_refused(project: Path) -> None:
    pipeline = _stages(project)
    pipeline["stages"]["train"]["outs"].append("data/features")
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    said = dvc(project, "repro", "--dry", ok=False)
    assert "data/features" in said
    assert "train" in said


def test_an_unknown_dependency_is_refused(project: Path) -> None:
    pipeline = _stages(project)
    pipeline["stages"]["ingest"]["deps"].append("data/nowhere.csv")
    (project / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert "nowhere.csv" in dvc(project, "repro", "ingest", ok=False)
