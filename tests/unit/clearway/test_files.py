import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from clearway.errors import ClearwayError
from clearway.files import atomic_directory, atomic_path, canonical_json, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "raw"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "raw"
    target.mkdir()
    (target / "gone").write_text("old")
    with atomic_directory(target) as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path) -> None:
    target, yesterday = tmp_path / "raw", time.time() - 90_000
    kept = [tmp_path / name for name in (".raw.abcd1234", ".raw.note", ".raws.abcd1234", "raw.abcd1234")]
    left = [tmp_path / name for name in (".raw.efgh5678", ".raw.old.ijkl_012")]
    for folder in (target, *kept, *left):
        folder.mkdir()
        (folder / "a").write_text("half")
        for path in (folder / "a", folder):
            os.utime(path, (yesterday, yesterday))
    os.utime(kept[0] / "a")  # a writer is at it
    target.rename(tmp_path / "aside")
    with atomic_directory(target):
        assert all(path.exists() for path in left), "while there is no other, the old one may be among them"
    with atomic_directory(target):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([target, tmp_path / "aside", *kept])


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ClearwayError, match=r"run scripts/decide\.py first"):
        read_json(tmp_path / "decision.json", made_by="scripts/decide.py")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a":')
    with pytest.raises(ClearwayError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("writer", [atomic_path, atomic_directory])
def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(writer: Any, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError, match=str(target)), writer(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []
