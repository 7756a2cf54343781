"""The ledger as people read it at night, and as other programs do."""

import csv
import io
import json
from pathlib import Path

import pytest

from clearway.errors import UsageError
from clearway.ledger import CLOCK, Change, Entry, append, head_hash, read_ledger
from clearway.ledger_view import export, show

A, B, C = "a" * 64, "b" * 64, "c" * 64
ENV = "production"


def history(folder: Path) -> list[Entry]:
    changes = [
        {"action": "deploy", "stable": A, "reason": "first"},
        {"action": "deploy", "stable": B, "reason": "retrained\non Monday", "evidence": {"commit": "0123"}},
        {"action": "canary", "stable": B, "canary": C, "canary_weight": 10, "reason": "a trial"},
        {"action": "rollback", "stable": B, "quarantines": (C,), "reason": "errors rose", "actor": "a long name"},
    ]
    for change in changes:
        made = Change.model_validate({"actor": "ann", **change})
        append(folder, ENV, made, expected_head=head_hash(read_ledger(folder, ENV)))
    return read_ledger(folder, ENV)


def test_each_entry_is_one_line_in_aligned_columns_and_then_what_matters_now(tmp_path: Path) -> None:
    lines = show(history(tmp_path), ENV).splitlines()
    names = ("who", "ann", "ann", "ann", "a long name")
    assert len({line.find(name) for line, name in zip(lines, names, strict=False)}) == 1
    assert lines[2].endswith("ann          retrained on Monday")
    assert "bbbbbbbbbbbb 90% + cccccccccccc 10%" in lines[3]
    assert lines[4].endswith("errors rose [quarantined cccccccccccc]")
    assert lines[-3:] == [
        "production now   bbbbbbbbbbbb 100%",
        "quarantined   cccccccccccc",
        "rollback to   aaaaaaaaaaaa",
    ]


def test_the_last_entries_alone_and_none_at_all(tmp_path: Path) -> None:
    entries = history(tmp_path)
    assert show(entries, ENV, last=1).splitlines()[1].startswith("4 ")
    with pytest.raises(UsageError, match="--last 0"):
        show(entries, ENV, last=0)
    assert show([], ENV) == "production: nothing was ever deployed"
    assert "there is no earlier good version" in show(entries[:1], ENV)
    assert "rollback to   bbbbbbbbbbbb" in show(entries[:3], ENV)


def test_a_clock_that_was_wrong_is_shown(tmp_path: Path) -> None:
    entry = history(tmp_path)[0].model_copy(update={"evidence": {CLOCK: "2001-01-01"}})
    assert "[the clock said 2001-01-01]" in show([entry], ENV)


def test_json_holds_every_field_and_csv_a_column_for_each_piece_of_evidence(tmp_path: Path) -> None:
    entries = history(tmp_path)
    assert [Entry.model_validate(record) for record in json.loads(export(entries, "json"))] == entries
    rows = list(csv.DictReader(io.StringIO(export(entries, "csv"))))
    assert [row["evidence.commit"] for row in rows] == ["", "0123", "", ""]
    assert rows[3]["quarantines"] == C
    assert [row["hash"] for row in rows] == [entry.hash for entry in entries]
