"""Outcomes and the predictions they are of: what is taken, what is not, and what is said of it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from clearway.columns import LABEL, LABEL_TIME, ROW_ID
from clearway.errors import ClearwayError, UsageError
from clearway.labels import LABELLED, LabelReport, import_outcomes, read_labels, read_outcomes, stored_labels
from clearway.log_hiding import Hiding
from clearway.params import Params
from clearway.prediction_log import PredictionLog
from clearway.workspace import Workspace

ASKED = datetime(2024, 3, 1, tzinfo=UTC)
KNOWN = ASKED + timedelta(hours=5)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STABLE, CANARY = "a" * 64, "b" * 64


def params(**changes: Any) -> Params:
    content = {
        "project": {"name": "apples"},
        "sources": {"apples": {"kind": "csv", "path": "apples.csv"}},
        "data": {"table": "apples", "label": "ripe", "positive": "yes"},
        "environments": {"staging": {"port": 0}},
    }
    return Params.model_validate(content | changes)


def prediction(name: str | None, number: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "id": name,
        "revision": 1,
        "version": STABLE,
        "role": "stable",
        "entity": f"e{number}",
        "asked_at": ASKED + timedelta(hours=number),
        "served_at": NOW + timedelta(seconds=number),
        "status": 200,
        "latency_ms": 1.0,
        "score": number / 10,
        **other,
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def write_log(workspace: Workspace, *records: dict[str, Any], hiding: Hiding | None = None) -> None:
    log = PredictionLog(workspace.environment("staging") / "predictions", hiding=hiding or Hiding())
    log.extend(records)
    log.close()


def outcome(name: str | None, label: Any, known: datetime | None = KNOWN, **other: Any) -> dict[str, Any]:
    return {"id": name, "label": label, "labelled_at": known, **other}


def take(workspace: Workspace, *outcomes: dict[str, Any], settings: Params | None = None) -> LabelReport:
    path = workspace.root / "outcomes.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(one) for one in outcomes))
    settings = settings or params()
    return import_outcomes(settings, workspace, "staging", read_outcomes(path, settings), NOW)


def counts(report: LabelReport) -> dict[str, int]:
    kinds = ("duplicate", "conflicting", "unknown", "early", "late", "without_label")
    return {"taken": report.taken} | {kind: n for kind in kinds if (n := getattr(report, kind).count)}


def test_outcomes_join_predictions_by_id(workspace: Workspace) -> None:
    write_log(workspace, *(prediction(f"q{number}", number) for number in range(4)))
    report = take(workspace, outcome("q1", 1), outcome("q3", 0), outcome("q0", None), outcome("gone", 1))
    assert counts(report) == {"taken": 2, "unknown": 1, "without_label": 1}
    assert report.sentence == "2 of 4 outcomes taken; 1 unknown (gone); 1 without label (q0)"
    found = read_labels(workspace, "staging")
    assert list(found.columns) == list(LABELLED)
    assert found[["id", "entity", "score", "label"]].values.tolist() == [["q1", "e1", 0.1, 1.0], ["q3", "e3", 0.3, 0.0]]
    assert found["labelled_at"].tolist() == [pd.Timestamp(KNOWN)] * 2
    assert str(found["served_at"].dtype) == str(found["labelled_at"].dtype) == "datetime64[ns, UTC]"


def test_doing_it_again_changes_nothing(workspace: Workspace) -> None:
    write_log(workspace, prediction("q1"), prediction("q2"))
    take(workspace, outcome("q1", 1), outcome("q2", 0))
    files = sorted(workspace.environment("staging").rglob("part-*"))
    before = read_labels(workspace, "staging")
    assert counts(take(workspace, outcome("q1", 1), outcome("q2", 0))) == {"taken": 0, "duplicate": 2}
    assert sorted(workspace.environment("staging").rglob("part-*")) == files
    pd.testing.assert_frame_equal(read_labels(workspace, "staging"), before)


def test_of_two_labels_the_first_stands_and_two_at_once_are_none(workspace: Workspace) -> None:
    write_log(workspace, *(prediction(f"q{number}") for number in range(4)))
    take(workspace, outcome("q1", 1))
    later = KNOWN + timedelta(hours=1)
    report = take(
        workspace,
        outcome("q1", 0),
        outcome("q2", 0),
        outcome("q2", 1),
        outcome("q3", 1, later),
        outcome("q3", 1, KNOWN),
    )
    assert counts(report) == {"taken": 1, "conflicting": 3, "duplicate": 1}
    assert set(report.conflicting.first) == {"q1", "q2"}
    found = read_labels(workspace, "staging").set_index("id")
    assert found["label"].to_dict() == {"q1": 1.0, "q3": 1.0}
    assert found.loc["q3", "labelled_at"] == KNOWN, "the earlier of two that agree"


def test_an_outcome_before_its_question_is_none_and_a_late_one_is_said(workspace: Workspace) -> None:
    write_log(workspace, prediction("q1"), prediction("q2"), prediction("wall", asked_at=None))
    report = take(
        workspace,
        outcome("q1", 1, ASKED - timedelta(seconds=1)),
        outcome("q2", 1, ASKED + timedelta(days=31)),
        outcome("wall", 1, KNOWN),  # by the wall clock it was asked years later
    )
    assert counts(report) == {"taken": 1, "early": 2, "late": 1}
    assert report.late.first == ("q2",)
    assert read_labels(workspace, "staging")["id"].tolist() == ["q2"]


@pytest.mark.parametrize("hashed", [False, True])
def test_outcomes_join_by_entity_and_time(workspace: Workspace, hashed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_LOG_KEY", "k" * 16)
    settings = params(serving={"log": {"hash": ["entity"] if hashed else []}})
    from clearway.log_hiding import hiding_of

    write_log(
        workspace,
        prediction("x1", 1),
        prediction("x2", 1, version=CANARY, role="canary"),
        prediction("x3", 2),
        prediction("x4", 3, entity=None),
        hiding=hiding_of(settings.serving.log),
    )
    asked = {number: (ASKED + timedelta(hours=number)).isoformat() for number in range(4)}
    report = take(
        workspace,
        outcome(None, 1, entity="e1", asked_at=asked[1]),
        outcome(None, 1, entity="e2", asked_at=asked[1]),
        outcome("x3", 0),
        settings=settings,
    )
    assert counts(report) == {"taken": 3, "unknown": 1}
    assert report.unknown.first == ("e2 at 2024-03-01 01:00:00+00:00",)
    found = read_labels(workspace, "staging")
    assert found[["id", "version", "label"]].values.tolist() == [
        ["x1", STABLE, 1.0],
        ["x2", CANARY, 1.0],
        ["x3", STABLE, 0.0],
    ]


def test_each_version_has_its_last_answer_and_testers_and_failures_have_none(workspace: Workspace) -> None:
    write_log(
        workspace,
        prediction("q1", score=0.1),
        prediction("q1", 1, score=0.2),
        prediction("q1~2", 2, score=0.3),  # a replay asks again
        prediction("q1", 3, version=CANARY, role="canary", revision=2),
        prediction("q1", 4, role="tester"),
        prediction("q2", 5, status=500, score=None),
    )
    take(workspace, outcome("q1", 1), outcome("q2", 1))
    found = read_labels(workspace, "staging")
    assert found[["version", "role", "score"]].values.tolist() == [[STABLE, "stable", 0.3], [CANARY, "canary", 0.3]]
    assert read_labels(workspace, "staging", since_revision=2)["version"].tolist() == [CANARY]


def test_labels_of_classes_are_names_and_stay_so(workspace: Workspace) -> None:
    settings = params(target={"kind": "multiclass"}, data={"table": "apples", "label": "ripe"})
    write_log(workspace, prediction("q1"), prediction("q2"))
    take(workspace, outcome("q1", "red"), outcome("q2", 3), settings=settings)
    assert read_labels(workspace, "staging")["label"].tolist() == ["red", "3"]
    assert counts(take(workspace, outcome("q1", "green"), settings=settings)) == {"taken": 0, "conflicting": 1}


def test_a_flat_table_speaks_its_own_words(workspace: Workspace) -> None:
    write_log(workspace, prediction("q1"), prediction("q2"))
    take(workspace, outcome("q1", "yes"), outcome("q2", "no"))
    assert read_labels(workspace, "staging")["label"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("positive", "labels", "found"),
    [
        ("yes", ["yes", "maybe", None], [1.0, 0.0, None]),
        ("yes", [1, 0, None], [1.0, 0.0, None]),
        (0, [0, 1, None], [1.0, 0.0, None]),
        (2, [2, 1, 3], [1.0, 0.0, 0.0]),
        (False, [False, True, None], [1.0, 0.0, None]),
        (1, [True, False, 1], [1.0, 0.0, 1.0]),
    ],
)
def test_a_label_counts_as_it_did_in_training(
    tmp_path: Path, positive: Any, labels: list[Any], found: list[Any]
) -> None:
    settings = params(data={"table": "apples", "label": "ripe", "positive": positive})
    path = write_lines(tmp_path, labels)
    read = read_outcomes(path, settings)["label"]
    assert [None if pd.isna(one) else one for one in read] == found


@pytest.mark.parametrize(
    ("positive", "labels", "said"),
    [
        ("yes", ["Yes", "no"], "label 'Yes': data.positive is 'yes'"),
        ("yes", ["yes ", "no"], "label 'yes ': data.positive is 'yes'"),
        ("yes", ["yes", 1], "label 1: data.positive is 'yes'"),
        ("yes", ["yess"], "label 'yess': .* schema.yaml allows 'yes', 'no': write it as the table does"),
        (1, ["maybe", 1], "label 'maybe' is a text, but data.positive is 1"),
        (1, ["1", "0"], "label '1' is a text, but data.positive is 1"),
        (1, [2], "label must be 0 or 1, found 2"),
        (1, [[1]], r"label \[1\] is no single value"),
    ],
)
def test_a_label_that_is_nearly_one_is_refused(tmp_path: Path, positive: Any, labels: list[Any], said: str) -> None:
    settings = params(data={"table": "apples", "label": "ripe", "positive": positive})
    with pytest.raises(ClearwayError, match=said):
        read_outcomes(write_lines(tmp_path, labels), settings, declared=("yes", "no") if "yess" in labels else ())


def write_lines(folder: Path, labels: list[Any]) -> Path:
    """A file of outcomes with these labels."""
    lines = [
        orjson.dumps({"id": str(n), "label": one, "labelled_at": f"{KNOWN}"}).decode() for n, one in enumerate(labels)
    ]
    path = folder / "outcomes.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_without_any_label_there_is_an_empty_table(workspace: Workspace) -> None:
    assert list(read_labels(workspace, "staging").columns) == list(LABELLED)
    write_log(workspace, prediction("q1"))
    assert read_labels(workspace, "staging").empty
    assert list(stored_labels(workspace, "staging").columns) == [ROW_ID, LABEL, LABEL_TIME]


def test_labels_are_those_known_by_then(workspace: Workspace) -> None:
    write_log(workspace, prediction("q1"), prediction("q2"))
    take(workspace, outcome("q1", 1), outcome("q2", 0, KNOWN + timedelta(days=1)))
    assert stored_labels(workspace, "staging", as_of=KNOWN)[ROW_ID].tolist() == ["q1"]
    assert len(stored_labels(workspace, "staging")) == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_file_of_each_kind_says_the_same(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {"id": ["007", "8"], "label": [1, 0], "labelled_at": ["2024-03-01", "2024-03-01T05:00:00+05:00"]}
    )
    path = tmp_path / f"outcomes.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    found = read_outcomes(path, params())
    assert found["id"].tolist() == ["007", "8"]
    assert found["label"].tolist() == [1.0, 0.0]
    assert found["labelled_at"].tolist() == [pd.Timestamp("2024-03-01", tz="UTC")] * 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "1", "labelled_at": "2024-03-01"}], "needs the columns label and id"),
        ([{"entity": "1", "label": 1, "labelled_at": "2024-03-01"}], "label, entity and asked_at"),
        ([{"id": "1", "label": 1}], "no column labelled_at: add it, or say --known-at"),
        ([{"id": "1", "label": 1, "labelled_at": None}], "labelled_at is missing in row 1"),
        ([{"id": "1", "label": 1, "labelled_at": "soon"}], "labelled_at 'soon' is no time"),
        ([{"id": "1", "label": 1, "labelled_at": 5}], "labelled_at 5 is no time"),
        ([{"id": 1.5, "label": 1, "labelled_at": "2024-03-01"}], r"id 1\.5 is no text"),
        ([{"id": "1", "label": 2, "labelled_at": "2024-03-01"}], "label must be 0 or 1, found 2"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    with pytest.raises(ClearwayError, match=said):
        read_outcomes(path, params())


def test_an_unknown_environment_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        import_outcomes(params(), workspace, "nowhere", pd.DataFrame(), NOW)
