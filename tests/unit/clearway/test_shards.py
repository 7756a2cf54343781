"""The parts in which the integration tests run on a pull request are all of them, each once."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def conftest(pytestconfig: pytest.Config) -> Any:
    """The module that deals the files out, as this run has loaded it."""
    return pytestconfig.pluginmanager.get_plugin(str(REPOSITORY / "tests" / "conftest.py"))


def pull_request() -> dict[str, Any]:
    content = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "pull_request.yml").read_text())
    assert isinstance(content, dict)
    return content


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "tests"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [1, 2, 5, 200])
def test_every_file_belongs_to_one_part(number: int, conftest: Any) -> None:
    files = list((REPOSITORY / "tests" / "integration").rglob("test_*.py"))
    parts = conftest.shards(files, number)
    assert len(parts) == number
    assert Counter(path for part in parts for path in part) == Counter(files)


def test_no_part_has_much_more_to_do_than_another(conftest: Any) -> None:
    files = list((REPOSITORY / "tests" / "integration").rglob("test_*.py"))
    work = [sum(conftest._seconds(path) for path in part) for part in conftest.shards(files, 4)]
    assert max(work) - min(work) <= max(conftest._seconds(path) for path in files)


def test_a_pull_request_runs_every_part_of_as_many_as_it_says() -> None:
    job = pull_request()["jobs"]["integration"]
    parts = job["strategy"]["matrix"]["part"]
    number = len(parts)
    assert parts == [f"{place}/{number}" for place in range(1, number + 1)]
    (step,) = [step for step in job["steps"] if step.get("env", {}).get("SHARD")]
    assert step["env"]["SHARD"] == "${{ matrix.part }}"
    target = re.search(r"^test-shard:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert step["run"] == "make test-shard"
    assert target is not None
    assert "--shard $(SHARD)" in target[1]
    assert " -m " not in target[1].replace("python -m pytest", ""), "no mark is left out"
    assert target[1].rstrip().endswith("tests/integration")


def test_the_parts_that_pytest_runs_are_all_tests_once(tmp_path: Path) -> None:
    for place in range(5):
        folder = tmp_path / "tests" / "integration" / ("deep" if place % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"test_{place}.py").write_text(f"def test_a(): print('ran {place}')\ndef test_b(): pass\n")
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path / "tests")
    said = [pytest_in(tmp_path, "-s", "--shard", f"{place}/2") for place in (1, 2)]
    assert [one.returncode for one in said] == [0, 0], said[0].stdout
    assert Counter(re.findall(r"ran (\d)", "".join(one.stdout for one in said))) == Counter("01234")
    assert sorted(re.findall(r"(\d+) passed", "".join(one.stdout for one in said))) == ["4", "6"]


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_runs_nothing(part: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_a(): pass\n")
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path / "tests")
    done = pytest_in(tmp_path, "--shard", part)
    assert done.returncode == 4
    assert f"--shard '{part}': expected K/N" in done.stderr + done.stdout
