"""What the compaction of an environment removes, and what it must keep."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.ledger import Change, append, head_hash, ledger_file, read_ledger
from clearway.log_retention import compact_environment, open_rollout_began
from clearway.params import Params
from clearway.prediction_log import PredictionLog, read_log
from clearway.workspace import Workspace

A, B, C = "a" * 64, "b" * 64, "c" * 64
LATER = timedelta(days=100)


def params(days: int | None) -> Params:
    return Params.model_validate(
        {
            "project": {"name": "apples"},
            "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
            "data": {"table": "apples", "label": "ripe"},
            "environments": {"staging": {"port": 0}},
            "serving": {"log": {"retention_days": days}},
        }
    )


def put(folder: Path, stable: str, canary: str | None = None, weight: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    change = Change(action="deploy", stable=stable, canary=canary, canary_weight=weight, actor="test", reason="test")
    append(folder, "staging", change, expected_head=head_hash(read_ledger(folder, "staging")))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Predictions, and labels that came, yesterday and today."""
    made = Workspace(tmp_path)
    folder = made.environment("staging")
    log = PredictionLog(folder / "predictions")
    for number in (0, 1):
        at = datetime.now(UTC) - timedelta(days=1 - number)
        record: dict[str, Any] = {"id": f"q{number}", "revision": 1, "version": A, "status": 200, "served_at": at}
        log.append(record)
        part = folder / "labels" / f"day={at:%Y-%m-%d}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        pd.DataFrame({"id": [f"q{number}"], "label": [1.0], "labelled_at": [pd.Timestamp(at)]}).to_parquet(part)
    log.close()
    return made


def left(workspace: Workspace) -> tuple[list[str], int]:
    folder = workspace.environment("staging")
    return read_log(folder / "predictions")["id"].tolist(), len(list(folder.glob("labels/day=*/part-*")))


def test_without_a_retention_all_is_kept(workspace: Workspace) -> None:
    assert compact_environment(params(None), workspace, "staging", datetime.now(UTC) + LATER).records == 2
    assert left(workspace) == (["q0", "q1"], 2)


def test_old_predictions_go_with_their_labels(workspace: Workspace) -> None:
    report = compact_environment(params(1), workspace, "staging", datetime.now(UTC) + LATER)
    assert len(report.removed_days) == 2
    assert "2 days up to" in report.sentence
    assert left(workspace) == ([], 0)


def test_what_an_open_rollout_is_judged_by_stays(workspace: Workspace) -> None:
    put(workspace.environment("staging"), A, B, 10)
    put(workspace.environment("staging"), A, B, 25)
    compact_environment(params(1), workspace, "staging", datetime.now(UTC) + LATER)
    assert left(workspace) == (["q1"], 1)
    put(workspace.environment("staging"), B)
    compact_environment(params(1), workspace, "staging", datetime.now(UTC) + LATER)
    assert left(workspace) == ([], 0)


def test_a_rollout_begins_with_its_first_step(tmp_path: Path) -> None:
    began = []
    for stable, canary, weight in ((A, None, 0), (A, B, 10), (A, C, 10), (A, C, 50), (C, None, 0)):
        put(tmp_path, stable, canary, weight)
        began.append(open_rollout_began(read_ledger(tmp_path, "staging")))
    times = [entry.at for entry in read_ledger(tmp_path, "staging")]
    assert began == [None, times[1], times[2], times[2], None]
    assert open_rollout_began([]) is None


def test_with_a_damaged_ledger_nothing_is_removed(workspace: Workspace) -> None:
    folder = workspace.environment("staging")
    put(folder, A, B, 10)
    ledger_file(folder).write_text("{}\n")
    with pytest.raises(ClearwayError):
        compact_environment(params(1), workspace, "staging", datetime.now(UTC) + LATER)
    assert left(workspace) == (["q0", "q1"], 2)


def test_an_unknown_environment_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        compact_environment(params(1), workspace, "nowhere", datetime.now(UTC))
