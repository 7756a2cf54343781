"""When a server has its prediction log compacted."""

import os
import time
from pathlib import Path

from clearway.log_files import create_locked, segment_name
from clearway.serving.housekeeping import LOOK_SECONDS, MANY_SEGMENTS, claim


def finished(folder: Path, number: int) -> None:
    (folder / segment_name("20260101", f"1-{number:08x}", 0)).touch()


def test_one_of_many_is_to_compact_and_not_again_for_a_while(tmp_path: Path) -> None:
    assert not claim(tmp_path / "missing", 900)
    finished(tmp_path, 1)
    assert [claim(tmp_path, 900) for _ in range(3)] == [True, False, False]
    ago = time.time() - 901
    os.utime(tmp_path / "compacted.lock", (ago, ago))
    assert [claim(tmp_path, 900) for _ in range(2)] == [True, False]


def test_many_segments_do_not_wait_for_their_time(tmp_path: Path) -> None:
    finished(tmp_path, 0)
    assert claim(tmp_path, 900)
    for number in range(1, MANY_SEGMENTS):
        finished(tmp_path, number)
    assert not claim(tmp_path, 900)
    ago = time.time() - LOOK_SECONDS - 1
    os.utime(tmp_path / "compacted.lock", (ago, ago))
    assert claim(tmp_path, 900)


def test_what_is_still_written_is_not_compacted(tmp_path: Path) -> None:
    writing = create_locked(tmp_path / segment_name("20260101", "1-00000001", 0))
    assert not claim(tmp_path, 900)
    os.close(writing)  # as the kernel does when its process ends
    assert claim(tmp_path, 900)


def test_what_is_compacted_is_looked_after_once_a_day_without_traffic(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    assert [claim(tmp_path, 900) for _ in range(2)] == [True, False]
    for seconds, due in ((3_600, False), (86_401, True)):
        ago = time.time() - seconds
        os.utime(tmp_path / "compacted.lock", (ago, ago))
        assert claim(tmp_path, 900) == due
