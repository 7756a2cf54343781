"""Which commit a model is said to be of."""

import subprocess
from pathlib import Path

import pytest

from clearway.lineage import code_commit, git_commit, package_versions


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project two folders below the top of a repository."""
    folder = tmp_path / "models" / "pets"
    folder.mkdir(parents=True)
    for path in (folder / "params.yaml", folder / "dvc.lock", folder / "schema.yaml", tmp_path / "code.py"):
        path.write_text("a: 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    return folder


def test_a_clean_work_tree_is_its_commit(project: Path) -> None:
    assert git_commit(project) == git(project, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock"])
def test_what_the_bundle_keeps_and_the_run_writes_does_not_make_it_dirty(project: Path, name: str) -> None:
    (project / name).write_text("a: 2\n")
    assert git_commit(project) == git(project, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["schema.yaml", "../../code.py"])
def test_any_other_tracked_file_that_differs_does(project: Path, name: str) -> None:
    (project / name).write_text("a: 2\n")
    assert git_commit(project) == git(project, "rev-parse", "HEAD") + "-dirty"


def test_params_of_another_folder_are_not_kept(project: Path) -> None:
    other = project.parent / "params.yaml"
    other.write_text("a: 1\n")
    git(project, "add", "-A", ":/")
    assert (git_commit(project) or "").endswith("-dirty")


def test_outside_git_and_before_the_first_commit_there_is_none(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None


def test_the_lines_own_commit_is_that_of_its_repository() -> None:
    assert code_commit() == git_commit(Path(__file__).parents[3])


def test_versions_name_the_interpreter_and_the_processors_arithmetic() -> None:
    versions = package_versions()
    assert versions["python"].count(".") == 2
    assert versions["blas"]
    assert {"scikit-learn", "pyarrow", "polars", "onnx"} <= versions.keys()
