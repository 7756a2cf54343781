"""What a look at a rollout says beside its verdict."""

from pathlib import Path

import orjson

from clearway.log_files import Loss
from clearway.prediction_log import read_log
from clearway.rollout import missing_from


def test_what_the_judge_could_not_see_is_said(tmp_path: Path) -> None:
    sound = {"id": "1", "revision": 1, "version": "v", "role": "canary", "status": 200, "latency_ms": 1.0, "score": 0.5}
    lines = [{**sound, "served_at": "2026-01-01T00:00:00Z"}, {**sound, "score": "high"}]
    segment = tmp_path / "20260101-1.jsonl"
    segment.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines[:1]))
    assert missing_from(read_log(tmp_path)) == ""
    segment.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    log = read_log(tmp_path)
    assert len(log) == 1
    said = missing_from(log)
    assert said == (
        "the prediction log lacks 1 damaged line (20260101-1.jsonl:2: score is 'high'): the judge has not seen them"
    )
    log.attrs["losses"] = (Loss("w", 7, 40, 2), Loss("x", 8, None, None))
    assert missing_from(log).startswith(
        "the prediction log lacks 42 records, and an unknown number of 2 server processes"
    )
