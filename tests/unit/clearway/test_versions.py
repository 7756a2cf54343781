"""What may be released, and what is told about it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.versions import check_next

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("version", "tags", "before"),
    [
        ("v0.1.0", [], None),
        ("v0.1.0", ["nightly", "1.0.0", "v1.0.0-rc1", "v01.0.0"], None),
        ("v1.10.0", ["v1.9.9", "v1.2.0", "nightly"], "v1.9.9"),
        ("v2.0.0", ["v1.999999.0"], "v1.999999.0"),
    ],
)
def test_a_version_above_every_one_before_is_taken(version: str, tags: list[str], before: str | None) -> None:
    assert check_next(version, tags) == before


@pytest.mark.parametrize("version", ["v1.9.9", "v1.9.8", "v0.99.99"])
def test_a_version_that_is_not_above_is_refused_and_told_which_is(version: str) -> None:
    with pytest.raises(ClearwayError, match=r"is not above v1\.9\.9"):
        check_next(version, ["v1.2.0", "v1.9.9"])


@pytest.mark.parametrize("version", ["1.2.3", "v1.2", "v1.2.3.4", "v01.2.3", "v1.2.3-rc1", "v1.2.3\n", "", "$(id)"])
def test_what_is_no_version_is_wrong_usage(version: str) -> None:
    with pytest.raises(UsageError, match=r"is not three numbers such as v1\.4\.0"):
        check_next(version, [])


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Person", "-c", "user.email=person@localhost", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_changelog_lists_what_came_since_the_version_before(tmp_path: Path) -> None:
    git(tmp_path, "init")
    for number, message in enumerate(["Begin", "Add a gate\n\nBecause none bound.", "Merge what was found", "Mend it"]):
        git(tmp_path, "commit", "--allow-empty", "-m", message)
        if number == 0:
            git(tmp_path, "tag", "v0.1.0")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)  # it has the changelog's form
    command = [str(Path(sys.executable).parent / "git-cliff"), "--unreleased", "--tag", "v0.2.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("## v0.2.0 (20")
    assert [line.split(" (")[0] for line in lines if line.startswith("- ")] == ["- Mend it", "- Add a gate"]


def test_the_script_asks_the_tags_of_the_repository(tmp_path: Path) -> None:
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "Begin")
    git(tmp_path, "tag", "v0.3.0")
    command = [sys.executable, str(REPOSITORY / "scripts" / "check_version.py"), "--project", str(tmp_path)]
    taken = subprocess.run([*command, "v0.4.0"], capture_output=True, text=True, check=False)
    refused = subprocess.run([*command, "v0.3.0"], capture_output=True, text=True, check=False)
    assert (taken.returncode, taken.stdout) == (0, "version: v0.4.0 after v0.3.0\n")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
