"""A kept model is rebuilt from its commit, its params and its data, to the same digest; and refused where it cannot."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from clearway.bundle import pack
from clearway.files import canonical_json, read_json, sha256_file
from clearway.lineage import package_versions

pytestmark = pytest.mark.lines

IGNORED = "/cells.csv\n/data/\n/build/\n/reports/\n/var/\n/drift_result.txt\n"
UP_TO_PACKAGE = """
import runpy, sys
for name in ("ingest", "validate_data", "build_features", "fetch_champion", "train", "count_holdout_uses",
             "validate_model", "package_model"):
    sys.argv = [name]
    try:
        runpy.run_path(f"{sys.path[0]}/../scripts/{name}.py", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""
KINDS = "from clearway.lineage import package_versions; print(package_versions()['blas'])"


@dataclass(frozen=True)
class Line:
    """A line of its own, under git, and where its temporary files go."""

    home: Path
    temporary: Path

    def start(self, project: Path, script: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(self.home / "scripts" / f"{script}.py"), "--project", str(project), *arguments]
        return subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, project: Path, script: str, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Output and errors of a script that ends with ``code``; nothing temporary is left."""
        process = self.start(project, script, *arguments)
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()  # one that has ended is not asked
        assert process.returncode == code, output + errors
        assert list(self.temporary.glob("clearway-*")) == []
        return output, " ".join(errors.split())

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.home / "src"), "TMPDIR": str(self.temporary), "COLUMNS": "200"}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "change")
    return git(folder, "rev-parse", "HEAD")


def worktrees(folder: Path) -> int:
    return len(git(folder, "worktree", "list").splitlines())


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """This repository's line in a repository of its own, with the project ``models/cells`` in it."""
    here, home = Path(__file__).parents[2], tmp_path_factory.mktemp("line")
    for folder in ("src/clearway", "scripts"):
        shutil.copytree(here / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here / "dvc.yaml", home / "dvc.yaml")
    (home / ".gitignore").write_text("__pycache__/\n")
    write_flat_project = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["write_flat_project"]
    project = write_flat_project(home / "models" / "cells")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["gates"]["latency_ms"] = 10_000  # this test may run beside others
    params["gates"]["resamples"] = 100
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    (project / ".gitignore").write_text(IGNORED)
    git(home, "init", "-q")
    commit(home)
    return Line(home, tmp_path_factory.mktemp("temporary"))


@dataclass(frozen=True)
class Built:
    """A project in a repository of its own, whose model was packaged."""

    project: Path
    digest: str
    baseline: str


def package(line: Line, project: Path) -> dict[str, Any]:
    """Run every stage up to the bundle; its outcome."""
    subprocess.run(
        [sys.executable, "-c", UP_TO_PACKAGE.replace("sys.path[0]", repr(str(line.home / "src")))],
        cwd=project,
        env=line.environment(),
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    outcome = read_json(project / "build" / "bundle" / "outcome.json")
    assert outcome["verdict"] == "passed"
    return dict(outcome)


@pytest.fixture(scope="module")
def built(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Built:
    project = tmp_path_factory.mktemp("own") / "cells"
    shutil.copytree(line.home / "models" / "cells", project)
    git(project, "init", "-q")
    commit(project)
    outcome = package(line, project)
    return Built(project, outcome["digest"], outcome["baseline_digest"])


def repack(built: Built, project: Path, payload: str, **lineage: Any) -> str:
    """Keep a bundle in ``project`` with the payload of ``payload`` and changed statements of where it comes from."""
    recorded = built.project / "var" / "bundles" / built.digest / "evidence"
    files = [path for path in recorded.rglob("*") if path.is_file()]
    evidence: dict[str, Path | bytes] = {path.relative_to(recorded).as_posix(): path for path in files}
    said = json.loads((recorded / "lineage.json").read_text())
    evidence["lineage.json"] = canonical_json({**said, **lineage})
    evidence["dvc.lock"] = b"schema: '2.0'\nstages:\n  features:\n    outs:\n    - {path: data/features, md5: a0.dir}\n"
    made = pack(built.project / "var" / "bundles" / payload / "payload", evidence, project / "var" / "bundles" / "new")
    made.path.rename(made.path.with_name(made.digest))
    return made.digest


def commands(processes: list[psutil.Process]) -> list[list[str]]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found.append(process.cmdline())
    return found


def project_files(project: Path) -> dict[str, str]:
    files = (path for path in project.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(project)): sha256_file(path) for path in files}


def test_the_old_digest_is_rebuilt_from_its_commits_after_params_and_code_have_moved_on(
    line: Line, built: Built, tmp_path: Path
) -> None:
    project = shutil.copytree(built.project, tmp_path / "cells")
    home = shutil.copytree(line.home, tmp_path / "line")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["arguments"]["max_iter"] = 7
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    commit(project)
    training = home / "src" / "clearway" / "training.py"
    training.write_text(training.read_text().replace("def train(", "def retired("))
    commit(home)
    before = project_files(project)
    output, _ = Line(home, line.temporary).run(project, "reproduce", built.digest[:8])
    assert f"reproduced: {built.digest}" in output
    assert output.count("equal") == 5
    assert project_files(project) == before
    assert worktrees(project) == worktrees(home) == 1
    assert git(project, "status", "--porcelain") == git(home, "status", "--porcelain") == ""


def test_another_kind_of_processor_makes_other_bytes_and_the_same_answers(
    line: Line, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenBLAS arranges its sums as told; the baseline is a logistic regression."""
    project = shutil.copytree(built.project, tmp_path / "cells")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    told = subprocess.run([sys.executable, "-c", KINDS], capture_output=True, text=True, check=True, timeout=60).stdout
    if told.strip() == package_versions()["blas"]:
        pytest.skip("this linear algebra knows one kind of processor")
    output, _ = line.run(project, "reproduce", built.baseline, "--json")
    made = json.loads(output)
    assert (made["digest"], made["same"], made["accepted"]) == (built.baseline, False, True)
    assert 0 < made["predictions"]["largest_difference"] <= made["predictions"]["tolerance"] == 1e-5
    assert made["predictions"]["rows"] == 135
    assert " then, " in made["processors"]


def test_a_project_in_no_repository_brings_its_own_modules(line: Line, tmp_path: Path) -> None:
    project = shutil.copytree(line.home / "models" / "cells", tmp_path / "loose")
    module = "from sklearn.linear_model import LogisticRegression\n\n\nclass Simple(LogisticRegression): ...\n"
    (project / "estimators_of_a_test.py").write_text(module)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["baseline"] = "estimators_of_a_test.Simple"
    params["trust"] = {"types": ["estimators_of_a_test.Simple"]}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    digest = package(line, project)["digest"]
    output, _ = line.run(project, "reproduce", digest)
    assert f"reproduced: {digest}" in output
    assert "the project folder was in no git repository" in output


def test_changed_data_is_refused_before_training_and_named_with_both_hashes(line: Line, built: Built) -> None:
    project = line.home / "models" / "cells"  # here in the line's own repository
    head = git(line.home, "rev-parse", "HEAD")
    digest = repack(built, project, built.digest, git_commit=head, code_commit=head)
    recorded = read_json(built.project / "data" / "raw" / "snapshot.json")["tables"]["cells"]["sha256"]
    table = project / "cells.csv"
    whole = table.read_text()
    table.write_text(whole.replace("malignant,17.99", "malignant,18.99", 1))
    try:
        _, errors = line.run(project, "reproduce", digest, code=1)
    finally:
        table.write_text(whole)
    assert f"table cells: recorded sha256 {recorded} (569 rows), found " in errors
    assert recorded not in errors.split("found ")[1]
    assert "train" not in errors.split("error:")[0]
    assert worktrees(line.home) == 1


def test_a_dirty_commit_is_refused_and_tried_when_asked_and_the_difference_is_measured(
    line: Line, built: Built, tmp_path: Path
) -> None:
    project = shutil.copytree(built.project, tmp_path / "loose", ignore=shutil.ignore_patterns(".git", "var"))
    dirty = git(line.home, "rev-parse", "HEAD") + "-dirty"
    digest = repack(built, project, built.baseline, git_commit=None, code_commit=dirty)
    _, errors = line.run(project, "reproduce", digest, code=1)
    assert f"lineage.json: code_commit = {dirty}: files were used that the commit does not hold" in errors
    output, errors = line.run(project, "reproduce", digest, "--allow-dirty", "--json", code=1)
    assert "error: built twice, and different, first in model.onnx (" in errors
    made = json.loads(output)
    assert (made["digest"], made["rebuilt_digest"]) == (digest, built.digest)
    differing = {file["name"] for file in made["files"] if not file["equal"]}
    assert differing == {"model.onnx", "model.skops", "params.json"}
    assert made["predictions"]["largest_difference"] > 1e-3
    assert not made["predictions"]["within"]
    assert any("no git repository" in note for note in made["notes"])
    assert any("-dirty" in note for note in made["notes"])
    assert any("after the stage features (data/features)" in note for note in made["notes"])


def test_a_recipe_that_is_not_the_recorded_one_is_refused(line: Line, built: Built, tmp_path: Path) -> None:
    project = shutil.copytree(built.project, tmp_path / "loose", ignore=shutil.ignore_patterns(".git", "var"))
    head = git(line.home, "rev-parse", "HEAD")
    digest = repack(built, project, built.digest, git_commit=None, code_commit=head)
    schema = project / "schema.yaml"
    schema.write_text(schema.read_text().replace("min: 300", "min: 301"))
    _, errors = line.run(project, "reproduce", digest, code=1)
    assert "recorded recipe sha256" in errors
    assert "schema" in errors


def test_a_commit_that_is_nowhere_is_one_clear_error(line: Line, built: Built, tmp_path: Path) -> None:
    project = shutil.copytree(built.project, tmp_path / "cells", ignore=shutil.ignore_patterns("var"))
    digest = repack(built, project, built.digest, git_commit="c" * 40)
    _, errors = line.run(project, "reproduce", digest, code=1)
    assert errors.startswith(f"error: commit {'c' * 40} is not in {project}: fetch it")


@pytest.mark.parametrize("step", ["init", "repro"])
def test_asked_to_end_it_takes_its_worktrees_and_its_stages_with_it(line: Line, built: Built, step: str) -> None:
    process = line.start(built.project, "reproduce", built.digest)
    deadline = time.monotonic() + 120
    family: list[psutil.Process] = []
    while not any(command[2:4] == ["dvc", step] for command in commands(family)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
    assert worktrees(line.home) == worktrees(built.project) == 2
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in errors
    psutil.wait_procs(family, timeout=20)
    assert not [member for member in family if member.is_running()]
    assert list(line.temporary.glob("clearway-*")) == []
    assert worktrees(line.home) == worktrees(built.project) == 1


def test_lineage_and_comparison_of_the_kept_bundles(line: Line, built: Built) -> None:
    output, _ = line.run(built.project, "lineage", built.digest[:8])
    head, rest = output.split("\n", 1)
    assert head == f"breast-cancer: challenger {built.digest}"
    order = [rest.index(f"\n{title}") for title in ("data", "code", "params", "metrics", "gates", "deployments")]
    assert order == sorted(order)
    made = json.loads(line.run(built.project, "lineage", built.digest, "--json")[0])
    table = made["data"]["tables"]["cells"]["sha256"]
    assert made["code"]["code_commit"] == git(line.home, "rev-parse", "HEAD")
    assert made["code"]["git_commit"] == git(built.project, "rev-parse", "HEAD")
    for arguments in (("--data", table[:12]), ("--commit", made["code"]["git_commit"])):
        found = json.loads(line.run(built.project, "lineage", *arguments, "--json")[0])
        assert {model["digest"] for model in found["models"]} == {built.digest, built.baseline}
    compared = json.loads(line.run(built.project, "compare", "build", built.baseline[:9], "--json")[0])
    assert {row["key"] for row in compared["model"]} >= {"train.estimator"}
    assert compared["packages"] == compared["data"] == []
    assert all(row["difference"] is not None for row in compared["metrics"])


def test_a_bundle_that_does_not_verify_is_not_told_as_if_it_were_true(line: Line, built: Built, tmp_path: Path) -> None:
    project = shutil.copytree(built.project, tmp_path / "cells")
    model = project / "var" / "bundles" / built.digest / "payload" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    for script in ("lineage", "reproduce"):
        output, errors = line.run(project, script, built.digest, code=1)
        assert output == ""
        assert "payload/model.onnx" in errors
    output, errors = line.run(project, "lineage", "--data", "ed8d877eab", code=1)
    assert built.digest[:12] not in output
    assert "payload/model.onnx" in errors
