"""docs/prediction-log.md: its examples run, and say what is there."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from clearway.labels import OUTCOME, import_outcomes
from clearway.log_compaction import SCHEMA, compact
from clearway.params import Params
from clearway.prediction_log import PredictionLog
from clearway.workspace import Workspace

PAGE = (Path(__file__).parents[3] / "docs" / "prediction-log.md").read_text()
START = datetime(2026, 1, 1, 23, tzinfo=UTC)


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three predictions of two days, compacted, of which two have a label; one is not compacted."""
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path())
    folder = workspace.environment("production")
    for numbers in ((0, 1, 2), (3,)):
        log = PredictionLog(folder / "predictions")
        for number in numbers:
            answered = {"version": "ab"[number % 2], "role": "stable", "status": 200, "score": 0.25 * number}
            at = START + timedelta(minutes=40 * number)
            record = {"id": f"q{number}", "revision": 1, "served_at": at, "latency_ms": 1.0 + number}
            log.append({**record, **answered, "features": {"distance": 100.0 * number}})
        log.close()
        if len(numbers) > 1:
            compact(folder / "predictions", START)
    params = Params.model_validate(
        {
            "project": {"name": "apples"},
            "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
            "data": {"table": "apples", "label": "ripe"},
            "environments": {"production": {"port": 0}},
        }
    )
    outcomes = pd.DataFrame({"id": ["q0", "q1"], "label": [0.0, 1.0], "labelled_at": START + timedelta(days=1)})
    outcomes["labelled_at"] = pd.to_datetime(outcomes["labelled_at"], utc=True)
    outcomes = outcomes.reindex(columns=list(OUTCOME)).astype({"entity": "string", "asked_at": "datetime64[ns, UTC]"})
    assert import_outcomes(params, workspace, "production", outcomes, START).taken == 2
    return folder


def test_the_queries_run(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(environment)
    found = [duckdb.sql(query).fetchall() for query in examples("sql")]
    assert [row[:3] for row in found[0]] == [("a", "stable", 2), ("b", "stable", 1)]
    assert [(str(day), distance) for day, distance in found[1]] == [("2026-01-01", 50.0), ("2026-01-02", 200.0)]
    assert sorted(found[2]) == [("a", 1, 0.0), ("b", 1, 0.5625)]


def test_the_code_runs(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in examples("python"):
        exec(code, {})
    said = capsys.readouterr().out
    assert "0.50" in said  # the record that is not compacted is among them
    assert "2026-01-02" in said


def test_the_page_names_every_column() -> None:
    table = PAGE.partition("## Files")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) >= set(SCHEMA.names)
