"""The prediction log: complete, off the caller's path, and indifferent to what happens to the disk."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from clearway.log_hiding import Hiding
from clearway.prediction_log import LOG_COLUMNS, PredictionLog, read_log

START = datetime(2026, 1, 1, tzinfo=UTC)


def record(number: int, revision: int = 1, **other: object) -> dict[str, object]:
    return {
        "id": f"row-{number}",
        "revision": revision,
        "version": "a" * 64,
        "role": "stable",
        "entity": None,
        "asked_at": "2013-07-01T12:00:00+00:00",
        "served_at": START + timedelta(milliseconds=number),
        "status": 200,
        "latency_ms": 1.5,
        "score": 0.25,
        "features": {"x": 1.0, "k": "a"},
        **other,
    }


def wait_for(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_every_record_comes_back_with_its_types(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for number in range(1000):
        assert log.append(record(number))
    log.append(record(1000, score=None, status=500, asked_at=None))
    log.close()
    found = read_log(tmp_path)
    assert (log.written, log.dropped) == (1001, 0)
    assert list(found.columns) == list(LOG_COLUMNS)
    assert found["id"].tolist() == [f"row-{number}" for number in range(1001)]
    assert found["score"].isna().tolist() == [False] * 1000 + [True]
    assert str(found["served_at"].dtype) == str(found["asked_at"].dtype) == "datetime64[ns, UTC]"
    assert pd.isna(found["asked_at"].iloc[-1])
    assert found["status"].iloc[-1] == 500
    assert found["features"].iloc[0] == {"x": 1.0, "k": "a"}
    assert found.attrs["torn_lines"] == 0


def test_what_a_request_by_key_carried_comes_back_and_is_null_for_a_full_row(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1, inputs={"origin": "JFK", "distance": 187.0}))
    log.append(record(2, inputs=None))
    log.append(record(3))  # as logged before requests by key
    log.close()
    assert read_log(tmp_path)["inputs"].tolist() == [{"origin": "JFK", "distance": 187.0}, None, None]


def test_file_is_named_by_day_and_process(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1))
    log.close()
    (file,) = tmp_path.iterdir()
    day, process, _, before = file.stem.split("-")
    assert datetime.strptime(day, "%Y%m%d").date() - datetime.now(UTC).date() <= timedelta(days=1)
    assert (process, before) == (str(os.getpid()), "0")


def test_records_reach_the_file_within_a_fifth_of_a_second(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1))
    started = time.monotonic()
    wait_for(lambda: len(read_log(tmp_path)) == 1)
    assert time.monotonic() - started < 1.0  # 0.2 s, and room for a busy machine
    log.close()


def test_full_queue_drops_counts_and_never_blocks(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, capacity=10)
    kept = sum(log.append(record(number)) for number in range(100_000))
    log.close()
    assert log.dropped == 100_000 - kept > 0
    assert log.written == kept == len(read_log(tmp_path))


def test_failing_disk_drops_counts_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.write_text("a file where the folder should be")
    log = PredictionLog(folder)
    log.append(record(1))
    wait_for(lambda: log.dropped == 1)
    folder.unlink()
    log.append(record(2))
    log.close()
    assert read_log(folder)["id"].tolist() == ["row-2"]
    assert (log.written, log.dropped) == (1, 1)


def test_record_that_is_no_json_is_lost_alone(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1))
    log.append(record(2, features={"x": object()}))
    log.append(record(3))
    log.close()
    assert read_log(tmp_path)["id"].tolist() == ["row-1", "row-3"]
    assert log.dropped == 1


def test_closed_log_drops(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.close()
    assert not log.append(record(1))
    assert log.dropped == 1


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)

    def write(first: int) -> None:
        for number in range(first, first + 500):
            log.append(record(number))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(read_log(tmp_path, columns=["id"])["id"]) == sorted(f"row-{number}" for number in range(4000))


def test_torn_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for number in range(3):
        log.append(record(number))
    log.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"id": "row-3", "revis')
    found = read_log(tmp_path)
    assert found["id"].tolist() == ["row-0", "row-1", "row-2"]
    assert found.attrs["torn_lines"] == 1


def test_revisions_and_columns_are_chosen(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for number in range(9):
        log.append(record(number, revision=1 + number // 3))
    log.close()
    assert read_log(tmp_path, since_revision=2)["revision"].unique().tolist() == [2, 3]
    assert read_log(tmp_path, revisions=[1, 3])["revision"].unique().tolist() == [1, 3]
    assert list(read_log(tmp_path, columns=["score", "id"]).columns) == ["score", "id"]
    with pytest.raises(ValueError, match="no column colour"):
        read_log(tmp_path, columns=["colour"])


def test_several_files_come_in_the_order_served(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for number in (4, 5, 6):
        log.append(record(number))
    log.close()
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "20260101-99999.jsonl")
    log = PredictionLog(tmp_path)
    for number in (1, 2, 9):
        log.append(record(number))
    log.close()
    assert read_log(tmp_path)["id"].tolist() == [f"row-{number}" for number in (1, 2, 4, 5, 6, 9)]


def test_no_log_yet_is_an_empty_table(tmp_path: Path) -> None:
    found = read_log(tmp_path / "missing")
    assert found.empty
    assert list(found.columns) == list(LOG_COLUMNS)
    assert str(found["served_at"].dtype) == "datetime64[ns, UTC]"
    assert found["score"].dtype == "float64"


def test_hundred_thousand_lines_read_in_seconds(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, capacity=200_000)
    for number in range(100_000):
        log.append(record(number))
    log.close()
    started = time.perf_counter()
    assert len(read_log(tmp_path, columns=["revision", "role", "status", "latency_ms", "score"])) == 100_000
    assert time.perf_counter() - started < 30.0  # 0.4 s on an idle core


@pytest.mark.parametrize(
    "text",
    [
        "2013-07-01T12:00:00.250000+00:00",
        "2013-W27-1T12:00:00.25Z",
        "20130701T120000.25Z",
        "2013-07-01T12:00:00,250Z",
        "2013-07-01T12:00:30.25+00:00:30",
        "2013-07-01T17:30:00.250+05:30",
    ],
)
def test_any_time_that_python_reads_is_read(tmp_path: Path, text: str) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1, asked_at=text))
    log.append(record(2))
    log.close()
    found = read_log(tmp_path, columns=["asked_at"])["asked_at"]
    assert found.tolist()[0] == pd.Timestamp("2013-07-01T12:00:00.25Z")
    assert str(found.dtype) == "datetime64[ns, UTC]"


def test_a_time_that_pandas_cannot_hold_is_told_from_none(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for number, text in enumerate(["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon", None]):
        log.append(record(number, asked_at=text))
    log.close()
    found = read_log(tmp_path, columns=["asked_at", "asked_text"])
    assert found["asked_at"].isna().all()
    assert found["asked_text"].tolist() == ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon", None]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"version": None}, "version is None"),
        ({"version": 5}, "version is 5"),
        ({"status": "200"}, "status is '200'"),
        ({"status": None}, "status is None"),
        ({"features": [1]}, "features is [1]"),
        ({"features": {"x": [1]}}, "features is {'x': [1]}"),
        ({"inputs": ["JFK"]}, "inputs is ['JFK']"),
        ({"revision": "1"}, "revision is '1'"),
        ({"asked_at": 5}, "asked_at is 5"),
        ({"score": "high"}, "score is 'high'"),
    ],
)
def test_a_damaged_record_is_left_out_counted_and_located(tmp_path: Path, damage: dict[str, object], said: str) -> None:
    log = PredictionLog(tmp_path)
    for number, other in enumerate([{}, damage, damage, {}]):
        log.append(record(number, **other))
    log.close()
    (file,) = tmp_path.iterdir()
    found = read_log(tmp_path, columns=[*LOG_COLUMNS, "where"])
    assert found["id"].tolist() == ["row-0", "row-3"]
    assert found["where"].tolist() == [f"{file.name}:1", f"{file.name}:4"]
    assert (found.attrs["damaged_lines"], found.attrs["damaged"]) == (2, f"{file.name}:2: {said}")


def test_damage_in_a_column_that_nobody_asks_for_costs_no_record(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1, features=[1]))
    log.close()
    found = read_log(tmp_path, columns=["id", "status"])
    assert (len(found), found.attrs["damaged_lines"]) == (1, 0)


def test_torn_lines_beyond_one_in_a_file_are_damage(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log.append(record(1))
    log.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(b'{"id": \n' * 3 + file.read_bytes() + b'{"id":')
    found = read_log(tmp_path)
    assert (len(found), found.attrs["torn_lines"], found.attrs["damaged_lines"]) == (1, 4, 3)
    assert found.attrs["damaged"] == f"{file.name}:2: is no JSON record"


def many(first: int, count: int) -> list[dict[str, object]]:
    return [record(number) for number in range(first, first + count)]


def test_records_of_one_request_are_queued_together_up_to_the_room_there_is(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, capacity=10)
    kept = [log.extend(many(0, 8)), log.extend(many(8, 8)), log.extend(many(16, 0))]
    log.close()
    assert kept[0] == 8
    assert kept[1] in (2, 8)  # 8 where the first were written before
    assert log.extend(many(0, 3)) == 0
    assert (log.written, log.dropped) == (sum(kept), 16 - sum(kept) + 3)
    assert len(read_log(tmp_path)) == sum(kept)


def test_what_all_records_share_is_in_each_of_them(tmp_path: Path) -> None:
    shared = {name: value for name, value in record(0).items() if name in ("revision", "version", "served_at")}
    own = [{name: value for name, value in one.items() if name not in shared} for one in many(0, 3)]
    for folder, offer in (
        ("whole", lambda log: log.extend(many(0, 3))),
        ("shared", lambda log: log.extend(own, shared)),
    ):
        log = PredictionLog(tmp_path / folder)
        assert offer(log) == 3
        log.close()
    found, whole = read_log(tmp_path / "shared"), read_log(tmp_path / "whole")
    pd.testing.assert_frame_equal(found.drop(columns="served_at"), whole.drop(columns="served_at"))
    assert found["served_at"].nunique() == 1


def test_of_records_that_share_fields_one_that_is_no_json_is_lost_alone(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    assert log.extend([{"id": "1"}, {"id": object()}, {"id": "3"}], {"revision": 1}) == 2
    log.close()
    assert log.dropped == 1
    assert read_log(tmp_path, columns=["id"])["id"].tolist() == ["1", "3"]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As on a disk that is full from there on: the system takes what fits and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_drops_counts_and_recovers_without_a_torn_record(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    with file_size_limit(20_000):  # some sixty records and a part of one
        assert log.extend(many(0, 500)) == 500
        wait_for(lambda: log.written + log.dropped == 500)
        assert 10 < log.written < 100
        assert log.extend(many(500, 100)) == 100
        wait_for(lambda: log.written + log.dropped == 600)
    before = log.written
    log.extend(many(600, 50))
    log.close()
    found = read_log(tmp_path)
    assert (log.written, log.dropped) == (before + 50, 600 - before)
    assert found["id"].tolist() == [f"row-{number}" for number in (*range(before), *range(600, 650))]
    assert (found.attrs["torn_lines"], found.attrs["damaged_lines"]) == (0, 0)
    assert [(loss.lost, loss.dropped) for loss in found.attrs["losses"]] == [(0, 600 - before)]


def test_a_disk_that_hangs_never_blocks_and_what_it_did_not_take_is_counted(tmp_path: Path) -> None:
    """A full pipe that nobody reads stands in for the disk: writing to it waits in the kernel."""
    log = PredictionLog(tmp_path, capacity=1000)
    log.append(record(0))
    wait_for(lambda: log.written == 1)
    (segment,) = tmp_path.glob("*.jsonl")
    (file,) = (int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(segment))
    disk, (out, full) = os.dup(file), os.pipe()
    os.dup2(full, file)
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    os.set_blocking(full, True)
    log.append(record(1))
    time.sleep(0.3)  # the writer now waits for the disk
    started = time.monotonic()
    kept = sum(log.append(record(number)) for number in range(2, 50_002))
    assert time.monotonic() - started < 5.0  # 0.1 s: nobody waited
    assert (kept, log.dropped) == (1000, 49_000)
    assert log.written == 1
    os.dup2(disk, file)  # the disk is back
    os.close(full)
    os.read(out, 10**6)  # and so is whoever waited, whose line went into the pipe
    wait_for(lambda: log.written == 1002)
    log.append(record(60_000))
    log.close()
    for descriptor in (out, disk):
        os.close(descriptor)
    found = read_log(tmp_path)["id"].tolist()
    assert found == [f"row-{number}" for number in (0, *range(2, 1002), 60_000)]
    assert log.dropped == 49_000


def test_a_segment_ends_by_size_and_the_next_says_what_was_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearway.prediction_log.SEGMENT_BYTES", 1000)
    log = PredictionLog(tmp_path)
    for batch in range(3):
        log.extend(many(10 * batch, 10))
        wait_for(lambda: log.written == 10 * (batch + 1))  # noqa: B023
    log.close()
    assert sorted(int(path.stem.split("-")[-1]) for path in tmp_path.iterdir()) == [0, 10, 20]
    assert len(read_log(tmp_path)) == 30


def test_hidden_fields_are_not_in_the_file(tmp_path: Path) -> None:
    hiding = Hiding(("features.x", "inputs"), ("entity", "features.k"), b"k" * 16)
    log = PredictionLog(tmp_path, hiding=hiding)
    given = record(1, entity="N123", inputs={"aircraft": "N123"})
    log.append(given)
    log.close()
    (file,) = tmp_path.iterdir()
    assert b"N123" not in file.read_bytes()
    found = read_log(tmp_path).iloc[0]
    assert found["features"] == {"k": hiding.apply(given)["features"]["k"]}
    assert found["entity"] == hiding.entity("N123")
    assert (found["inputs"], found["hidden"]) == (None, "entity,features.k,features.x,inputs")
    assert given["features"] == {"x": 1.0, "k": "a"}, "an answer may still be using it"
