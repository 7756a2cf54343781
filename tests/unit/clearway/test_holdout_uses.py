"""A holdout wears out: who used it before is remembered once, and each further challenger must be surer."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from clearway.errors import ClearwayError
from clearway.holdout_uses import (
    HoldoutUses,
    Use,
    corrected_confidence,
    count_uses,
    earlier_challengers,
    holdout_identity,
    read_log,
    read_uses,
    uses_gate,
)
from clearway.paired import delong_gain
from clearway.workspace import Workspace

NOW = datetime(2020, 1, 1, tzinfo=UTC)
HOLDOUT, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.features.mkdir(parents=True)
    hold(made, ["r1", "r2", "r3"], [0.0, 1.0, 0.0])
    champion(made, None)
    return made


def hold(workspace: Workspace, rows: list[str], labels: list[float]) -> None:
    pd.DataFrame({"row_id": rows, "label": labels}).to_parquet(workspace.features / "holdout.parquet")


def champion(workspace: Workspace, digest: str | None) -> None:
    workspace.champion.mkdir(parents=True, exist_ok=True)
    record = {"environment": "live", "bootstrap": digest is None, "reason": "test", "digest": digest}
    (workspace.champion / "champion.json").write_text(json.dumps(record))


def train(workspace: Workspace, digest: str) -> None:
    workspace.reports.mkdir(exist_ok=True)
    (workspace.reports / "training.json").write_text(json.dumps({"challenger": {"digest": digest}}))


def count(workspace: Workspace, digest: str) -> HoldoutUses:
    train(workspace, digest)
    return count_uses(workspace, at=NOW)


def found(workspace: Workspace) -> bytes:
    return (workspace.build / "holdout_uses.json").read_bytes()


def log(workspace: Workspace) -> bytes:
    return (workspace.var / "holdout_uses.jsonl").read_bytes()


def test_a_holdout_is_its_rows_and_answers_in_any_order() -> None:
    rows, labels = pd.Series(["x", "y", "z"]), np.array([0.0, 1.0, 1.0])
    first = holdout_identity(rows, labels)
    assert first == holdout_identity(rows[::-1], labels[::-1])
    assert first != holdout_identity(rows, 1 - labels)
    assert first != holdout_identity(rows[:2], labels[:2])
    assert holdout_identity(pd.Series(['a 1\n"b']), np.ones(1)) != holdout_identity(pd.Series(["a", "b"]), np.ones(2))


def test_earlier_are_the_others_before_its_own_first_use() -> None:
    made = [Use(at=NOW, challenger=c, holdout=h) for c, h in zip("abacd", [HOLDOUT] * 4 + [OTHER], strict=True)]
    assert earlier_challengers(made, HOLDOUT, "a") == ()
    assert earlier_challengers(made, HOLDOUT, "b") == ("a",)
    assert earlier_challengers(made, HOLDOUT, "c") == ("a", "b")
    assert earlier_challengers(made, HOLDOUT, "new") == ("a", "b", "c")
    assert earlier_challengers(made, OTHER, "new") == ("d",)
    assert earlier_challengers([], HOLDOUT, "new") == ()


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_all_the_levels_together_are_the_level_asked_for(confidence: float) -> None:
    spent = [1 - corrected_confidence(confidence, place) for place in range(1, 20_001)]
    assert sum(spent) < 1 - confidence
    assert sum(spent) == pytest.approx(1 - confidence, rel=1e-4)
    assert spent == sorted(spent, reverse=True)
    assert spent[0] / spent[9] == pytest.approx(100)


def test_a_place_below_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="place = 0"):
        corrected_confidence(0.95, 0)


def test_each_further_challenger_comes_one_place_later(workspace: Workspace) -> None:
    assert [count(workspace, digest).place for digest in ("m1", "m2", "m3")] == [1, 2, 3]
    hold(workspace, ["r4"], [1.0])
    assert count(workspace, "m3").place == 1


def test_the_same_question_again_changes_no_byte(workspace: Workspace) -> None:
    """What makes a second ``dvc repro`` find everything as it was: the file says what was before, not what is."""
    count(workspace, "m1")
    count(workspace, "m2")
    before, lines = found(workspace), log(workspace)
    assert count(workspace, "m2").earlier == ("m1",)
    assert (found(workspace), log(workspace)) == (before, lines)
    count(workspace, "m3")
    assert count(workspace, "m2").earlier == ("m1",)
    assert found(workspace) == before
    assert len(read_log(workspace)) == 3


def test_what_is_written_is_what_is_read(workspace: Workspace) -> None:
    count(workspace, "m1")
    uses = count(workspace, "m2")
    assert read_uses(workspace, uses.holdout, "m2") == uses
    (use, _) = read_log(workspace)
    assert (use.at, use.challenger, use.holdout) == (NOW, "m1", uses.holdout)
    assert log(workspace).decode().splitlines()[0] == json.dumps(
        {"at": "2020-01-01T00:00:00Z", "challenger": "m1", "holdout": uses.holdout}
    )


def test_the_champion_itself_uses_nothing(workspace: Workspace) -> None:
    champion(workspace, "m1")
    assert count(workspace, "m1").place == 1
    assert read_log(workspace) == []
    assert count(workspace, "m2").place == 1


def test_two_at_once_do_not_share_a_place(workspace: Workspace) -> None:
    """Separate folders, one log: as two runs on one machine."""
    digests, places, folders = [f"m{n}" for n in range(8)], [], []
    for digest in digests:
        folder = Workspace(workspace.root / digest)
        folder.features.mkdir(parents=True)
        hold(folder, ["r1"], [1.0])
        champion(folder, None)
        train(folder, digest)
        (folder.root / "var").symlink_to(workspace.var, target_is_directory=True)
        folders.append(folder)
    workspace.var.mkdir()
    threads = [threading.Thread(target=lambda f=f: places.append(count_uses(f, at=NOW).place)) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(places) == list(range(1, 9))
    assert len(read_log(workspace)) == 8


def test_lines_that_are_there_stay_byte_for_byte(workspace: Workspace) -> None:
    path = workspace.var / "holdout_uses.jsonl"
    path.parent.mkdir()
    line = f'{{"holdout":"{HOLDOUT}",  "challenger":"m0","at":"2019-01-01T00:00:00Z"}}'
    path.write_text(line)  # no newline at its end, other spaces
    count(workspace, "m1")
    assert path.read_text().startswith(line + "\n")
    assert len(read_log(workspace)) == 2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"at": "2020-01-01T00:00:00Z"}', '{"at":"x","challenger":"m","holdout":"h"}']
)
def test_a_damaged_log_is_no_empty_one(workspace: Workspace, line: str) -> None:
    count(workspace, "m1")
    path = workspace.var / "holdout_uses.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ClearwayError, match=r"holdout_uses\.jsonl line 2 is no use of a holdout: restore the file"):
        count(workspace, "m2")


def test_no_count_is_no_count_of_none(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=r"holdout_uses\.json is missing: run scripts/count_holdout_uses\.py first"):
        read_uses(workspace, HOLDOUT, "m1")
    uses = count(workspace, "m1")
    with pytest.raises(ClearwayError, match="challenger is m1, but m2 is judged: run scripts/count_holdout_uses"):
        read_uses(workspace, uses.holdout, "m2")
    with pytest.raises(ClearwayError, match=f"holdout is {uses.holdout[:12]}, but {HOLDOUT[:12]} is judged"):
        read_uses(workspace, HOLDOUT, "m1")
    (workspace.build / "holdout_uses.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"holdout_uses\.json is damaged .*: run scripts/count_holdout_uses"):
        read_uses(workspace, uses.holdout, "m1")


def test_without_training_there_is_nothing_to_count(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=r"training\.json is missing: run scripts/train\.py first"):
        count_uses(workspace, at=NOW)
    workspace.reports.mkdir()
    (workspace.reports / "training.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"names no challenger\.digest"):
        count_uses(workspace, at=NOW)


def test_the_gate_says_the_place_and_what_it_costs() -> None:
    uses = HoldoutUses(holdout=HOLDOUT, challenger="m3", earlier=("m1", "m2"))
    gate = uses_gate(uses, 0.95, None)
    assert (gate.name, gate.status, gate.estimate) == ("holdout_uses", "pass", 3)
    assert "challenger number 3 of this holdout, so each bound has confidence 0.99662 in place of 0.95" in gate.detail
    assert uses_gate(uses, 0.95, 3).status == "pass"
    worn = uses_gate(uses, 0.95, 2)
    assert worn.status == "fail"
    assert "at most 2 are allowed: take a newer holdout" in worn.detail


def test_of_twenty_tries_on_one_holdout_hardly_ever_one_passes_by_luck() -> None:
    """Every try is worse than the champion by exactly the margin. AUC of normal scores: Φ(distance / √2)."""
    rows, tries, lines, margin = 300, 20, 100, 0.02
    champion_distance = 1.0
    distance = np.sqrt(2) * norm.ppf(norm.cdf(champion_distance / np.sqrt(2)) - margin)
    labels = (np.arange(rows) < rows // 2).astype(float)
    corrected = uncorrected = 0
    for line in range(lines):
        random = np.random.default_rng(line)
        shared = random.normal(size=rows)
        theirs = champion_distance * labels + shared
        passed = [False, False]
        for place in range(1, tries + 1):
            noise = 0.8 * shared + 0.6 * random.normal(size=rows)
            for side, level in enumerate((corrected_confidence(0.95, place), 0.95)):
                gain = delong_gain(labels, distance * labels + noise, theirs, level)
                passed[side] |= gain.lower is not None and gain.lower > -margin
        corrected += passed[0]
        uncorrected += passed[1]
    assert corrected <= 0.05 * lines
    assert uncorrected >= 0.4 * lines
