"""From a model to every ledger entry that names it, and from data and code to models."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clearway.ledger import Entry
from clearway.lineage import Lineage
from clearway.lineage_report import Deployment, deployments, document, live, made_from, search, show
from clearway.model_record import ModelRecord
from clearway.snapshot import Snapshot
from clearway.workspace import Workspace

OURS, THEIRS = "a" * 64, "b" * 64
SNAPSHOT = Snapshot.model_validate(
    {"as_of": None, "tables": {"rows": {"rows": 3, "bytes": 9, "sha256": "d" * 64, "source": "rows.csv"}}}
)


def lineage(**changed: Any) -> Lineage:
    said: dict[str, Any] = {
        **{"project": "toy", "role": "challenger", "as_of": "2020-01-01T00:00:00Z", "snapshot_sha256": "1" * 64},
        **{"recipe_sha256": "e" * 64, "training_rows": 3, "labelled_rows": 4, "metrics": {"roc_auc": 0.8}},
        **{"git_commit": "2" * 40, "code_commit": "3" * 40, "lock_sha256": None, "trigger": "local"},
        **{"reasons": ["drift"], "packages": {"numpy": "2.0"}},
    }
    return Lineage.model_validate({**said, **changed})


def entries(environment: str, *changes: dict[str, Any]) -> list[Entry]:
    """Ledger entries, one a day. Their hashes are of no matter here: ledgers are verified when they are read."""
    made: list[Entry] = []
    for number, change in enumerate(changes, 1):
        before = made[-1].stable if made else None
        known = {"actor": "ann", "reason": "a reason", "sequence": number, "environment": environment}
        chain = {"previous_stable": before, "previous_hash": "0" * 64, "hash": "0" * 64}
        at = datetime(2020, 1, number, tzinfo=UTC)
        made.append(Entry.model_validate({**known, **chain, "at": at, **change}))
    return made


ROLLOUT = entries(
    "production",
    {"action": "deploy", "stable": THEIRS},
    {"action": "canary", "stable": THEIRS, "canary": OURS, "canary_weight": 10},
    {"action": "promote", "stable": OURS, "evidence": {"canary_verdict": "promote", "canary_requests": "512"}},
    {"action": "rollback", "stable": THEIRS, "quarantines": [OURS]},
    {"action": "hold", "stable": THEIRS},
    {"action": "release", "stable": THEIRS, "releases": [OURS]},
)


def named() -> list[Deployment]:
    staging = entries("staging", {"action": "deploy", "stable": OURS})
    return deployments(OURS, {"production": ROLLOUT, "staging": staging})


def test_every_entry_that_names_the_model_is_told_in_order_of_time() -> None:
    assert [(d.environment, d.action, d.part, d.weight) for d in named()] == [
        ("staging", "deploy", "stable", 100),
        ("production", "canary", "canary", 10),
        ("production", "promote", "stable", 100),
        ("production", "rollback", "quarantined", 0),
        ("production", "release", "released", 0),
    ]


def test_a_replaced_model_is_told_of_the_entry_that_replaced_it() -> None:
    told = deployments(THEIRS, {"production": ROLLOUT[:3]})
    assert [(d.part, d.weight) for d in told] == [("stable", 100), ("stable", 90), ("replaced", 0)]


def test_the_verdict_that_a_promotion_rests_on_is_kept() -> None:
    assert named()[2].evidence == {"canary_verdict": "promote", "canary_requests": "512"}


def test_live_is_what_the_last_entry_gives_traffic_to() -> None:
    assert live(OURS, {"production": ROLLOUT[:2]}) == ("production 10%",)
    assert live(THEIRS, {"production": ROLLOUT[:2], "staging": ROLLOUT[:1]}) == ("production 90%", "staging")
    assert live(OURS, {"production": ROLLOUT, "empty": []}) == ()


@pytest.mark.parametrize(
    ("data", "commit", "expected"),
    [
        ("", "", True),
        ("1" * 8, "", True),
        ("d" * 64, "", True),
        ("4" * 8, "", False),
        ("", "2" * 8, True),
        ("", "3" * 40, True),
        ("", "4" * 8, False),
        ("1" * 8, "4" * 8, False),
    ],
)
def test_models_are_found_by_snapshot_or_table_and_by_commit(data: str, commit: str, expected: bool) -> None:
    assert made_from(lineage(), SNAPSHOT, data=data, commit=commit) is expected


def test_a_model_of_which_no_commit_is_known_is_of_none() -> None:
    assert not made_from(lineage(git_commit=None, code_commit=None), None, commit="2" * 8)


def test_a_bundle_that_does_not_verify_is_reported_and_not_listed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (workspace.bundles / OURS).mkdir(parents=True)
    (workspace.bundles / "notes").mkdir()
    found = search(workspace)
    assert found.models == ()
    assert len(found.broken) == 1
    assert "manifest.json is missing" in found.broken[0]


def model(**changed: Any) -> ModelRecord:
    known: dict[str, Any] = {
        **{"digest": OURS, "lineage": lineage(), "params": {"seed": 7, "train": {"threshold": 0.5}}},
        **{"model": {"seed": 7}, "features": {"size": {"kind": "numeric"}}, "definitions_sha256": None},
        **{"snapshot": SNAPSHOT, "verdict": "passed", "reason": "all [1] passed"},
        **{"gates": ({"name": "rows", "status": "pass", "detail": "3 rows"},)},
    }
    return ModelRecord(**{**known, **changed})


def printed(record: ModelRecord, told: list[Deployment]) -> str:
    stream = io.StringIO()
    show(record, told, Console(file=stream, width=120))
    return stream.getvalue()


def test_the_text_goes_from_data_to_deployments() -> None:
    text = printed(model(), named())
    words = ("table rows", "project's commit", "train.threshold", "roc_auc", "all [1] passed", "canary_verdict promote")
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_what_was_not_recorded_is_said_and_not_left_out() -> None:
    text = printed(model(snapshot=None, lineage=lineage(code_commit=None)), [])
    assert "not recorded in this bundle" in text
    assert "line's commit       not recorded" in text
    assert "none, no ledger names it" in text


def test_the_json_holds_all_of_it() -> None:
    made = document(model(), named())
    assert made["data"]["tables"]["rows"]["sha256"] == "d" * 64
    assert made["code"]["code_commit"] == "3" * 40
    assert made["deployments"][0]["at"] == "2020-01-01T00:00:00+00:00"
    assert made["gates"]["gates"][0]["name"] == "rows"
