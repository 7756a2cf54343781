import errno
import os
import sys
from pathlib import Path

import pytest

from clearway.cli import job_output, parser, run
from clearway.errors import ClearwayError, UsageError


@pytest.mark.parametrize(("error", "code"), [(ClearwayError("no data"), 1), (UsageError("no key"), 2)])
def test_an_expected_error_is_one_line_and_an_exit_code(
    error: ClearwayError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_package_in_the_projects_folder_can_be_imported_after_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    parser("x").parse_args(["--project", str(tmp_path)])
    assert sys.path[-1] == str(tmp_path.resolve())
    parser("x").parse_args(["--project", str(tmp_path)])
    assert sys.path.count(str(tmp_path.resolve())) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "nobody looked", "a")])
def test_an_unexpected_error_keeps_its_traceback(error: Exception) -> None:
    def main() -> int:
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_job_outputs_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "outputs"
    monkeypatch.setenv("GITHUB_OUTPUT", str(target))
    job_output(retrain="true", reasons="drift")
    assert target.read_text() == "retrain=true\nreasons=drift\n"


def test_data_cannot_forge_a_second_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    with pytest.raises(UsageError, match="line break"):
        job_output(reasons="drift\nretrain=true")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("named", "said"), [("model.skops", "model.skops: No space"), (None, "[Errno 28] No space")])
def test_a_full_disk_is_one_line(named: str | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), named)

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said} left on device: make room, or correct the file or its folder")
    assert told.count("\n") == 1
