"""Compaction: the same records before and after, whatever is written, read or killed meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow.parquet as pq
import pytest

from clearway import log_compaction, log_files
from clearway.errors import ClearwayError
from clearway.log_compaction import compact
from clearway.log_files import COMMIT, LOCK, PARQUET, segment_name
from clearway.prediction_log import ABOUT_RECORDS, LOG_COLUMNS, PredictionLog, read_log

NOW = datetime(2026, 1, 3, 12, tzinfo=UTC)


def record(number: int, **other: Any) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "revision": 1 + number // 10,
        "version": "a" * 64,
        "role": "stable",
        "entity": None if number % 5 == 0 else f"e{number % 3}",
        "asked_at": "2013-07-01T12:00:00.250Z",
        "served_at": NOW - timedelta(days=2) + timedelta(minutes=number),
        "status": 200,
        "latency_ms": 1.5,
        "score": number / 7,
        "features": {"x": number / 3, "n": number, "k": "a", "b": True, "none": None},
        "inputs": {"origin": "JFK"} if number % 2 else None,
        "probabilities": {"yes": 0.25, "no": 0.75} if number % 2 else None,
        **other,
    }


def write_segment(folder: Path, records: list[dict[str, Any]], number: int = 0, day: str = "20260101") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / segment_name(day, f"4242-{number:08x}", 0)
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in records))
    return path


def everything(folder: Path) -> pd.DataFrame:
    return read_log(folder, columns=[*LOG_COLUMNS, "asked_text"])


def test_what_is_read_is_the_same_before_and_after(tmp_path: Path) -> None:
    odd = [
        record(100, asked_at=None, score=None, status=500),
        record(101, asked_at="9999-12-31T23:59:59Z"),
        record(102, asked_at="20130701T120000,25", served_at=None),
        record(103, score=1, latency_ms=None, role=None, id=None),
        record(104, features={}, inputs={}),
        {"revision": 4, "version": "b", "status": 200},
    ]
    write_segment(tmp_path, [record(number) for number in range(50)], 1)
    write_segment(tmp_path, [record(number) for number in range(50, 90)] + odd, 2)
    choices: list[dict[str, Any]] = [
        {},
        {"since_revision": 3},
        {"revisions": [2, 5]},
        {"revisions": range(2, 4)},
        {"columns": ["score", "id"]},
        {"columns": ["asked_text", "asked_at"]},
        {"since": NOW - timedelta(days=2) + timedelta(minutes=30)},
    ]
    before = [read_log(tmp_path, **choice) for choice in choices]
    report = compact(tmp_path, NOW)
    assert (report.segments, report.records, report.damaged) == (2, 96, 0)
    assert not list(tmp_path.glob("*.jsonl"))
    for choice, expected in zip(choices, before, strict=True):
        found = read_log(tmp_path, **choice)
        pd.testing.assert_frame_equal(found, expected)
        assert found.attrs == expected.attrs
    kinds = {name: type(value) for name, value in everything(tmp_path)["features"].iloc[3].items()}
    assert kinds == {"x": float, "n": int, "k": str, "b": bool, "none": type(None)}


def test_parts_are_by_the_day_on_which_records_were_served(tmp_path: Path) -> None:
    late = datetime(2026, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    write_segment(tmp_path, [record(1, served_at=late), record(2, served_at=late + timedelta(microseconds=1))])
    compact(tmp_path, NOW)
    found = {path.parent.name: pq.read_table(path)["id"].to_pylist() for path in tmp_path.rglob("part-*.parquet")}
    assert found == {"day=2026-01-01": ["row-1"], "day=2026-01-02": ["row-2"]}


def test_a_second_compaction_has_nothing_to_do(tmp_path: Path) -> None:
    write_segment(tmp_path, [record(1)])
    compact(tmp_path, NOW)
    files = sorted(tmp_path.rglob("*"))
    report = compact(tmp_path, NOW)
    assert (report.segments, report.merged, report.losses) == (0, 0, [])
    assert sorted(tmp_path.rglob("*")) == files


def test_small_parts_of_a_past_day_become_one(tmp_path: Path) -> None:
    for number in range(3):
        write_segment(tmp_path, [record(number)], number)
        compact(tmp_path, NOW - timedelta(days=2))  # while the day lasts
    before = everything(tmp_path)
    assert len(list(tmp_path.rglob("part-*"))) == 3
    assert compact(tmp_path, NOW).merged == 3
    assert len(list(tmp_path.rglob("part-*"))) == 1
    pd.testing.assert_frame_equal(everything(tmp_path), before)


def test_a_part_of_another_release_is_read_and_merged(tmp_path: Path) -> None:
    write_segment(tmp_path, [record(1)])
    compact(tmp_path, NOW - timedelta(days=2))
    (part,) = tmp_path.rglob("part-*.parquet")
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["hidden", "probabilities"]), part)
    write_segment(tmp_path, [record(2, colour="red", shade=[1])], 2)
    compact(tmp_path, NOW)
    assert read_log(tmp_path)["id"].tolist() == ["row-1", "row-2"]
    (part,) = tmp_path.rglob("part-*.parquet")
    assert pq.read_table(part)["other"].to_pylist() == [None, '{"colour":"red","shade":[1]}']


def test_damaged_lines_are_set_aside_and_still_counted(tmp_path: Path) -> None:
    path = write_segment(tmp_path, [record(1), record(2, features=[1]), record(3)])
    path.write_bytes(b'{"torn": \n' + path.read_bytes() + b'{"id": "row-4", "revis')
    before = read_log(tmp_path)
    report = compact(tmp_path, NOW)
    after = read_log(tmp_path)
    pd.testing.assert_frame_equal(after, before)
    assert report.damaged == 3
    assert (after.attrs["torn_lines"], after.attrs["damaged_lines"]) == (2, 2)
    assert before.attrs["damaged_lines"] == 2
    assert after.attrs["damaged"] == f"{path.name}:2: features is [1]"
    assert len(read_log(tmp_path, columns=["id"])) == 3  # the damage is in a column that nobody asks for


def test_a_segment_that_is_being_written_is_left_alone_and_read(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1))
    deadline = time.monotonic() + 10
    while not len(read_log(tmp_path, columns=["id"])):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    write_segment(tmp_path, [record(2)])
    assert compact(tmp_path, NOW).segments == 1
    assert read_log(tmp_path)["id"].tolist() == ["row-1", "row-2"]
    log.close()
    assert compact(tmp_path, NOW).segments == 1
    assert read_log(tmp_path)["id"].tolist() == ["row-1", "row-2"]


def test_a_second_compaction_at_the_same_time_is_told(tmp_path: Path) -> None:
    write_segment(tmp_path, [record(1)])
    with log_files.changing(tmp_path):
        from clearway.files import held

        with held(tmp_path / "compacting.lock", 0), pytest.raises(ClearwayError, match=r"compacting\.lock is held"):
            compact(tmp_path, NOW)


def test_old_days_are_removed_with_what_was_set_aside_of_them(tmp_path: Path) -> None:
    for day in range(1, 6):
        at = datetime(2026, 1, day, 12, tzinfo=UTC)
        path = write_segment(tmp_path, [record(day, served_at=at)], day, f"2026010{day}")
        path.write_bytes(path.read_bytes() + b"{torn")
    today = datetime(2026, 1, 6, 12, tzinfo=UTC)
    report = compact(tmp_path, today, retention_days=3)
    assert report.removed_days == ["2026-01-01", "2026-01-02"]
    assert read_log(tmp_path)["id"].tolist() == ["row-3", "row-4", "row-5"]
    assert sorted(path.name[:8] for path in (tmp_path / "damaged").iterdir()) == ["20260103", "20260104", "20260105"]
    assert sorted(path.name for path in (tmp_path / PARQUET).iterdir())[0] == "day=2026-01-03"


def test_what_an_open_rollout_needs_outlives_retention(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        write_segment(tmp_path, [record(day, served_at=datetime(2026, 1, day, tzinfo=UTC))], day)
    needed_from = datetime(2026, 1, 2, 18, tzinfo=UTC)
    compact(tmp_path, datetime(2026, 3, 1, tzinfo=UTC), retention_days=1, needed_from=needed_from)
    assert read_log(tmp_path)["id"].tolist() == ["row-2", "row-3"]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write_segment(tmp_path, [record(1)])
    compact(tmp_path, NOW)
    (part,) = tmp_path.rglob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ClearwayError, match=part.name):
        read_log(tmp_path)


def test_readers_and_writers_at_work_see_every_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearway.prediction_log.SEGMENT_BYTES", 2_000)  # a segment every flush or two
    logs = [PredictionLog(tmp_path) for _ in range(3)]
    stop, wrong = threading.Event(), list[str]()

    def read_on() -> None:
        most = 0
        while not stop.is_set():
            found = read_log(tmp_path, columns=["id"])["id"]
            if found.duplicated().any():
                wrong.append("a record was there twice")
            if len(found) < most:
                wrong.append(f"{most - len(found)} records were gone")
            most = len(found)

    reader = threading.Thread(target=read_on)
    reader.start()
    compactions = 0
    for batch in range(12):
        for number, log in enumerate(logs):
            log.extend([record(0, id=f"{number}-{batch}-{each}") for each in range(20)])
        time.sleep(0.1)
        compactions += compact(tmp_path, NOW).segments > 0
    for log in logs:
        log.close()
    stop.set()
    reader.join()
    compact(tmp_path, NOW)
    found = read_log(tmp_path, columns=["id"])
    assert wrong == []
    assert compactions > 2
    assert found["id"].nunique() == len(found) == 3 * 12 * 20
    assert found.attrs["losses"] == ()


KILLER = """
import os, shutil, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from clearway.log_compaction import compact
from clearway.prediction_log import read_log

template, folder, now = Path(sys.argv[1]), Path(sys.argv[2]), datetime.fromisoformat(sys.argv[3])

def state():
    found = read_log(folder, columns=["id", "features"])
    return found["id"].tolist(), [repr(one) for one in found["features"]], len(found.attrs["losses"])

def copy():
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)

copy()
whole = state()
kills = 0
while True:
    copy()
    child = os.fork()
    if child == 0:
        left = [kills]
        def count(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod") and arguments:
                changes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
                if changes and str(folder) in str(arguments[0]):
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
        sys.addaudithook(count)
        compact(folder, now)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    assert state() == whole, f"after a kill at step {kills}: {state()}"
    compact(folder, now)
    if kills % 4 == 0:
        assert state() == whole, f"after a kill at step {kills} and a compaction: {state()}"
    assert not list(folder.rglob(".part-*")) and not (folder / "commit.json").exists()
    assert not list(folder.glob("*.jsonl"))
    assert len(list(folder.rglob("part-*"))) == 1
    if ended == 0:
        break
    kills += 1
print(kills)
"""


def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Of a compaction that compacts, sets lines aside, settles a dead writer's account and merges a past day."""
    template = tmp_path / "template"
    for number in range(2):
        write_segment(template, [record(number)], number)
        compact(template, NOW - timedelta(days=2))
    path = write_segment(template, [record(2), record(3)], 2)
    path.write_bytes(path.read_bytes() + b'{"torn')
    (template / "77-00000001.writer").write_text('{"pid": 77, "tally": null}')  # its count is gone
    arguments = [sys.executable, "-c", KILLER, str(template), str(tmp_path / "log"), NOW.isoformat()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25, "steps at which it was killed"


WRITER = """
import os, sys
from pathlib import Path
from clearway.prediction_log import PredictionLog
log = PredictionLog(Path(sys.argv[1]))
while True:
    log.append({"id": "x", "revision": 1, "version": "a", "status": 200})
    os.write(1, b".")
"""


def kill_a_writer(folder: Path) -> tuple[int, int]:
    """Its process, and how many records it had given to its log when it was killed, by its own account."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    given = len(os.read(writer.stdout.fileno(), 1))
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in folder.glob("*.jsonl")) and time.monotonic() < deadline:
        given += len(os.read(writer.stdout.fileno(), 65536))
    while time.monotonic() < deadline and given < 20_000:
        given += len(os.read(writer.stdout.fileno(), 65536))
    writer.send_signal(signal.SIGKILL)
    given += len(writer.stdout.read())
    writer.wait()
    writer.stdout.close()
    return writer.pid, given


def test_how_many_records_a_killed_process_lost_is_known(tmp_path: Path) -> None:
    pid, given = kill_a_writer(tmp_path)
    found = read_log(tmp_path, columns=["id"])
    (loss,) = found.attrs["losses"]
    assert (loss.pid, loss.dropped) == (pid, 0)
    assert loss.lost is not None
    # it may have been killed after a record was given and before it could say so
    assert given - len(found) <= loss.lost <= given - len(found) + 1
    assert len(found) > 0
    report = compact(tmp_path, NOW)
    assert [one.lost for one in report.losses] == [loss.lost]
    assert f"{loss.lost:,} records of process {pid} were lost" in report.sentence
    after = read_log(tmp_path, columns=["id"])
    assert (len(after), after.attrs["losses"]) == (len(found), (loss,))
    assert compact(tmp_path, NOW).losses == []
    assert not list(tmp_path.glob("*.writer"))


def test_a_process_that_was_killed_before_it_wrote_anything_is_counted_too(tmp_path: Path) -> None:
    code = WRITER.replace("while True:", "for _ in range(7):") + "\nos.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    found = read_log(tmp_path)  # empty, unless the machine is so slow that a flush came first
    assert sum(loss.lost for loss in found.attrs["losses"]) == 7 - len(found)
    assert sum(loss.lost or 0 for loss in compact(tmp_path, NOW).losses) == 7 - len(found)


def test_what_was_compacted_before_its_writer_was_killed_is_not_lost(tmp_path: Path) -> None:
    code = WRITER.replace("while True:", "import time, clearway.prediction_log as made\nmade.SEGMENT_BYTES = 1\n"
                          "for _ in range(5):") + "\ntime.sleep(60)"  # fmt: skip
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL)
    deadline, records = time.monotonic() + 30, 0
    while records < 5 and time.monotonic() < deadline:
        records += compact(tmp_path, NOW).records
        time.sleep(0.02)
    writer.kill()
    writer.wait()
    assert records == 5
    assert read_log(tmp_path).attrs["losses"] == ()
    assert compact(tmp_path, NOW).losses == []


def test_a_loss_that_nobody_can_count_is_said(tmp_path: Path) -> None:
    pid, _ = kill_a_writer(tmp_path)
    (mark,) = tmp_path.glob("*.writer")
    Path(json.loads(mark.read_text())["tally"]).unlink()  # as a restart of the machine does
    (loss,) = read_log(tmp_path).attrs["losses"]
    assert (loss.lost, loss.sentence) == (
        None,
        f"process {pid} was killed and its count is gone (a restart): it is not known how many it lost",
    )
    assert compact(tmp_path, NOW).losses == [loss]


def test_a_writer_that_ends_well_leaves_no_trace_but_its_segment(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "log")
    log.append(record(1))
    log.close()
    (path,) = (tmp_path / "log").iterdir()
    assert path.suffix == ".jsonl"
    assert log._tally.path is not None
    assert not log._tally.path.exists()


def test_counts_of_logs_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    kill_a_writer(tmp_path / "log")
    (mark,) = (tmp_path / "log").glob("*.writer")
    tally = Path(json.loads(mark.read_text())["tally"])
    (tmp_path / "log").rename(tmp_path / "moved")
    assert tally.exists()
    (tmp_path / "other").mkdir()
    compact(tmp_path / "other", NOW)
    assert not tally.exists()


def test_a_decided_change_is_read_as_done(tmp_path: Path) -> None:
    write_segment(tmp_path, [record(1)])
    before = everything(tmp_path)
    compact(tmp_path, NOW)
    (part,) = tmp_path.rglob("part-*.parquet")
    hidden = part.rename(part.with_name(f".{part.name}"))
    write_segment(tmp_path, [record(1)])
    names = [str(path.relative_to(tmp_path)) for path in (hidden, part, *tmp_path.glob("*.jsonl"))]
    (tmp_path / COMMIT).write_text(json.dumps({"add": {names[0]: names[1]}, "remove": [names[2]]}))
    pd.testing.assert_frame_equal(everything(tmp_path), before)
    assert (tmp_path / LOCK).exists()


def test_every_field_of_a_record_has_its_column() -> None:
    assert set(log_compaction.SCHEMA.names) == {*LOG_COLUMNS, "asked_text", "other"}
    assert set(ABOUT_RECORDS) == {"asked_text", "where"}
