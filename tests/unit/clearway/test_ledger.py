"""The ledger finds every way of damaging it, and survives a kill at every moment of an append."""

import json
import os
import re
import resource
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes
from clearway.ledger import (
    CLOCK,
    GENESIS,
    Change,
    Entry,
    append,
    canary_digest,
    head,
    head_hash,
    kept_warm,
    ledger_file,
    quarantined,
    read_ledger,
    stable_digest,
    stable_history,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
ENV = "production"


def deploy(digest: str, reason: str = "a test") -> Change:
    return Change(action="deploy", stable=digest, actor="tester", reason=reason)


def write(folder: Path, *changes: Change) -> list[Entry]:
    for change in changes:
        append(folder, ENV, change, expected_head=head_hash(read_ledger(folder, ENV)))
    return read_ledger(folder, ENV)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, deploy(A), deploy(B), deploy(C))
    return tmp_path


def lines(folder: Path) -> list[bytes]:
    return ledger_file(folder).read_bytes().splitlines(keepends=True)


def test_a_shadow_is_written_only_where_there_is_one_so_that_old_lines_stay_what_they_were(folder: Path) -> None:
    assert all(b"shadow" not in line for line in lines(folder))
    shadowed = Change(action="shadow", stable=C, shadow=B, actor="tester", reason="a test")
    entries = write(folder, shadowed, deploy(C))
    assert [entry.shadow for entry in entries] == [None, None, None, B, None]
    assert [b"shadow" in line for line in lines(folder)] == [False, False, False, True, False]


@pytest.mark.parametrize("shadow", [A, B])
def test_a_version_that_answers_is_no_shadow(shadow: str) -> None:
    with pytest.raises(ValueError, match="the shadow is a version that answers"):
        Change(action="shadow", stable=A, canary=B, canary_weight=10, shadow=shadow, actor="tester", reason="a test")


def test_an_empty_history_is_no_error(tmp_path: Path) -> None:
    entries = read_ledger(tmp_path / "nowhere", ENV)
    assert (entries, head(entries), head_hash(entries), stable_digest(entries)) == ([], None, GENESIS, None)


def test_entries_are_read_back_as_they_were_written(folder: Path) -> None:
    entries = read_ledger(folder, ENV)
    assert [entry.sequence for entry in entries] == [1, 2, 3]
    assert [entry.stable for entry in entries] == [A, B, C]
    assert [entry.previous_stable for entry in entries] == [None, A, B]
    assert [entry.previous_hash for entry in entries] == [GENESIS, entries[0].hash, entries[1].hash]
    content = json.loads(lines(folder)[1])
    claimed = content.pop("hash")
    assert claimed == sha256_bytes(canonical_json(content))
    anchor = json.loads((folder / "head.json").read_text())
    assert anchor == {"environment": ENV, "sequence": 3, "hash": entries[2].hash}


def rehashed(line: bytes, **changes: object) -> bytes:
    content = {**json.loads(line), **changes}
    content.pop("hash")
    return canonical_json({**content, "hash": sha256_bytes(canonical_json(content))}) + b"\n"


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (lambda k: [k[0], k[1].replace(b"a test", b"a tesT"), k[2]], r"line 2: hash is "),
        (lambda k: [k[0], rehashed(k[1], reason="forged"), k[2]], r"line 3: previous_hash is "),
        (lambda k: [k[0], k[2]], r"line 2: sequence is 3, expected 2"),
        (lambda k: [k[0], k[2], k[1]], r"line 2: sequence is 3, expected 2"),
        (lambda k: [k[0], k[1], k[1], k[2]], r"line 3: sequence is 2, expected 3"),
        (lambda k: k[:2], r"ends at entry 2, but .*head.json says 3: its tail was cut"),
        (lambda k: [], r"ends at entry 0, but .*head.json says 3: its tail was cut"),
        (lambda k: [*k[:2], k[2][:-20]], r"ends at entry 2, but .*head.json says 3: its tail was cut"),
        (lambda k: [k[0], k[1], rehashed(k[2], reason="forged")], r"line 3: hash is .* the history was rewritten"),
        (lambda k: [k[0], b"rubbish\n", k[2]], r"line 2 is not valid JSON"),
        (lambda k: [k[0], b"\n", k[1], k[2]], r"line 2 is not valid JSON"),
        (lambda k: [k[0], b"[]\n", k[2]], r"line 2 is no ledger entry"),
        (lambda k: [k[0], b" " + k[1], k[2]], r"line 2 is not written in canonical JSON"),
        (lambda k: [k[0], b'{"actor":"x",' + k[1][1:], k[2]], r"line 2 is not written in canonical JSON"),
        (lambda k: [rehashed(k[0], environment="staging"), *k[1:]], r"line 1: environment is 'staging'"),
        (lambda k: [k[0], rehashed(k[1], previous_stable=C), k[2]], r"line 2: previous_stable is "),
        (lambda k: [k[0], rehashed(k[1], extra="x"), k[2]], r"line 2 is no ledger entry \(unknown key extra"),
    ],
)  # fmt: skip
def test_every_way_of_tampering_is_found_and_named(
    folder: Path, tamper: Callable[[list[bytes]], list[bytes]], complaint: str
) -> None:
    ledger_file(folder).write_bytes(b"".join(tamper(lines(folder))))
    with pytest.raises(ClearwayError, match=complaint):
        read_ledger(folder, ENV)
    before = ledger_file(folder).read_bytes()
    with pytest.raises(ClearwayError, match=complaint):
        append(folder, ENV, deploy(A), expected_head=GENESIS)
    assert ledger_file(folder).read_bytes() == before  # a broken ledger is never built upon


def test_a_lost_ledger_and_a_lost_or_foreign_anchor_are_found(folder: Path) -> None:
    anchor = (folder / "head.json").read_text()
    (folder / "head.json").write_text(anchor.replace(ENV, "staging"))
    with pytest.raises(ClearwayError, match="environment is 'staging', expected 'production'"):
        read_ledger(folder, ENV)
    (folder / "head.json").write_text("{")
    with pytest.raises(ClearwayError, match=r"head\.json is damaged"):
        read_ledger(folder, ENV)
    (folder / "head.json").unlink()
    with pytest.raises(ClearwayError, match=r"has 3 entries, but .*head\.json says 0"):
        read_ledger(folder, ENV)
    (folder / "head.json").write_text(anchor)
    ledger_file(folder).unlink()
    with pytest.raises(ClearwayError, match="its tail was cut"):
        read_ledger(folder, ENV)


def test_a_ledger_that_is_no_file_or_nested_beyond_reason_is_one_line(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    with path.open("a") as stream:
        stream.write("[" * 200_000 + "\n")
    with pytest.raises(ClearwayError, match=r"line \d+ is not valid JSON"):
        read_ledger(folder, ENV)
    path.unlink()
    path.mkdir()
    with pytest.raises(ClearwayError, match=r"ledger\.jsonl cannot be read"):
        read_ledger(folder, ENV)


def test_a_whole_line_beyond_the_anchor_is_accepted_and_the_next_writer_moves_the_anchor(folder: Path) -> None:
    """A kill between the ledger's fsync and the anchor's rename."""
    anchor = (folder / "head.json").read_bytes()
    write(folder, deploy(A))
    (folder / "head.json").write_bytes(anchor)
    assert len(read_ledger(folder, ENV)) == 4
    write(folder, deploy(B))
    assert json.loads((folder / "head.json").read_text())["sequence"] == 5


def test_the_first_line_of_all_may_also_be_beyond_the_anchor(tmp_path: Path) -> None:
    write(tmp_path, deploy(A))
    (tmp_path / "head.json").unlink()
    assert stable_digest(read_ledger(tmp_path, ENV)) == A


def test_two_lines_beyond_the_anchor_come_from_no_kill(folder: Path) -> None:
    anchor = (folder / "head.json").read_bytes()
    write(folder, deploy(A), deploy(B))
    (folder / "head.json").write_bytes(anchor)
    with pytest.raises(ClearwayError, match=r"has 5 entries, but .* says 3: lines were added by something other"):
        read_ledger(folder, ENV)


@given(kept=st.integers(min_value=1, max_value=400))
@settings(max_examples=25, deadline=None)
def test_a_line_torn_anywhere_is_dropped_by_the_next_writer(
    kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    write(folder, deploy(A))
    anchor, before = (folder / "head.json").read_bytes(), ledger_file(folder).read_bytes()
    write(folder, deploy(B))
    added = ledger_file(folder).read_bytes()[len(before) :]
    ledger_file(folder).write_bytes(before + added[: min(kept, len(added) - 1)])
    (folder / "head.json").write_bytes(anchor)
    assert [entry.stable for entry in read_ledger(folder, ENV)] == [A]
    assert [entry.stable for entry in write(folder, deploy(C))] == [A, C]
    assert ledger_file(folder).read_bytes().startswith(before)


def test_a_torn_line_behind_an_unanchored_one_comes_from_no_kill(folder: Path) -> None:
    anchor = (folder / "head.json").read_bytes()
    write(folder, deploy(A))
    (folder / "head.json").write_bytes(anchor)
    with ledger_file(folder).open("ab") as stream:
        stream.write(b'{"act')
    with pytest.raises(ClearwayError, match="and a torn line"):
        read_ledger(folder, ENV)


def test_of_two_appends_on_the_same_head_one_wins_and_the_other_names_both_heads(folder: Path) -> None:
    expected = head_hash(read_ledger(folder, ENV))
    outcomes: list[Entry | ClearwayError] = []
    barrier = threading.Barrier(4)

    def attempt(digest: str) -> None:
        barrier.wait()
        try:
            outcomes.append(append(folder, ENV, deploy(digest), expected_head=expected))
        except ClearwayError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=attempt, args=(digest * 64,)) for digest in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, Entry)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, ClearwayError)]
    assert (len(winners), len(losers)) == (1, 3)
    assert read_ledger(folder, ENV)[-1] == winners[0]
    assert f"expected {expected[:12]}, found {winners[0].hash[:12]}" in str(losers[0])


def test_a_reader_beside_a_writer_never_sees_damage(tmp_path: Path) -> None:
    done = threading.Event()
    problems: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                read_ledger(tmp_path, ENV)
            except Exception as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write(tmp_path, deploy(f"{number:064x}"))
    done.set()
    reader.join()
    assert problems == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"canary": B}, "a canary needs a weight"),
        ({"canary_weight": 10}, "a canary needs a weight"),
        ({"canary": A, "canary_weight": 10}, "the canary is the stable version"),
        ({"stable": "latest"}, "stable"),
        ({"canary": B, "canary_weight": 101}, "canary_weight"),
        ({"reason": ""}, "reason"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_changes_cannot_be_made(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Change.model_validate({"action": "deploy", "stable": A, "actor": "x", "reason": "y", **fields})


def test_quarantine_release_and_history(tmp_path: Path) -> None:
    entries = write(
        tmp_path,
        deploy(A),
        Change(action="canary", stable=A, canary=B, canary_weight=10, actor="x", reason="y"),
        Change(action="rollback", stable=A, quarantines=(B,), actor="x", reason="y"),
        deploy(C),
        Change(action="rollback", stable=A, quarantines=(C,), actor="x", reason="y"),
        Change(action="release", stable=A, releases=(B,), actor="x", reason="y"),
    )
    assert canary_digest(entries[:2]) == B
    assert quarantined(entries[:3]) == {B}
    assert quarantined(entries) == {C}
    assert stable_history(entries) == [A, C, A]


texts = st.text(min_size=1, max_size=30)


@given(
    reasons=st.lists(texts, min_size=1, max_size=4), evidence=st.dictionaries(texts, st.text(max_size=30), max_size=3)
)
@settings(max_examples=25, deadline=None)
def test_any_text_survives_and_one_changed_byte_never_does(
    reasons: list[str], evidence: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("text")
    changes = [Change(action="deploy", stable=A, actor="x", reason=reason, evidence=evidence) for reason in reasons]
    entries = write(folder, *changes)
    assert [(entry.reason, entry.evidence) for entry in entries] == [(reason, evidence) for reason in reasons]
    content = bytearray(ledger_file(folder).read_bytes())
    content[len(content) // 2] ^= 1
    ledger_file(folder).write_bytes(bytes(content))
    with pytest.raises(ClearwayError):
        read_ledger(folder, ENV)


# --- clocks, disks, and lines of earlier days ---


def test_fields_that_say_nothing_are_left_out_so_that_lines_of_earlier_days_still_hash_alike(tmp_path: Path) -> None:
    write(tmp_path, deploy(A), Change(action="deploy", stable=B, warm_minutes=5, actor="x", reason="y"))
    first, second = (json.loads(line) for line in lines(tmp_path))
    before_there_was_any = {
        "action", "actor", "at", "canary", "canary_weight", "environment", "evidence", "hash", "previous_hash",
        "previous_stable", "quarantines", "reason", "releases", "sequence", "stable",
    }  # fmt: skip
    assert set(first) == before_there_was_any
    assert set(second) == before_there_was_any | {"warm_minutes"}


def test_a_ledger_written_before_there_were_optional_fields_verifies(tmp_path: Path) -> None:
    content = {
        "action": "deploy", "actor": "ann", "at": "2025-01-02T03:04:05.000006Z", "canary": None, "canary_weight": 0,
        "environment": ENV, "evidence": {}, "previous_hash": GENESIS, "previous_stable": None, "quarantines": [],
        "reason": "first", "releases": [], "sequence": 1, "stable": A,
    }  # fmt: skip
    line = canonical_json({**content, "hash": sha256_bytes(canonical_json(content))}) + b"\n"
    ledger_file(tmp_path).write_bytes(line)
    assert write(tmp_path, deploy(B))[0].reason == "first"


def in_the_future(folder: Path) -> datetime:
    """A ledger whose last writer's clock was wrong."""
    write(folder, deploy(A))
    later = datetime.now(UTC) + timedelta(days=400)
    ledger_file(folder).write_bytes(rehashed(lines(folder)[0], at=later.isoformat().replace("+00:00", "Z")))
    (folder / "head.json").unlink()
    return later


def test_time_never_runs_backwards_and_what_the_clock_said_is_kept(tmp_path: Path) -> None:
    later = in_the_future(tmp_path)
    before = datetime.now(UTC)
    entry = write(tmp_path, deploy(B))[-1]
    assert entry.at == later
    assert before <= datetime.fromisoformat(entry.evidence[CLOCK]) < later
    assert CLOCK not in write(tmp_path / "other", deploy(A), deploy(B))[-1].evidence


def forked(action: Callable[[], object]) -> str:
    """What a process of its own raises, whose limits are its own too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os.write(writer, b"done")
        except ClearwayError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_takes_part_of_a_line_leaves_the_ledger_as_it_was(folder: Path, room: int) -> None:
    before = ledger_file(folder).read_bytes()

    def attempt() -> None:
        limit = len(before) + room
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        write(folder, deploy(A))

    said = forked(attempt)
    assert re.search(r"ledger\.jsonl cannot be written \(.*\): nothing was recorded; make room", said), said
    assert ledger_file(folder).read_bytes() == before
    assert [entry.stable for entry in write(folder, deploy(A))] == [A, B, C, A]


def test_a_version_is_kept_warm_from_a_switch_until_its_end_the_next_version_or_its_quarantine(tmp_path: Path) -> None:
    def switch(digest: str) -> Change:
        return Change(action="deploy", stable=digest, warm_minutes=30, actor="x", reason="y")

    assert kept_warm([]) is None
    assert kept_warm(write(tmp_path, deploy(A))) is None
    entries = write(tmp_path, switch(B))
    assert kept_warm(entries) == (A, entries[-1].at + timedelta(minutes=30))
    release = Change(action="release", stable=B, releases=(C,), actor="x", reason="y")
    assert kept_warm(write(tmp_path, release)) == (A, entries[-1].at + timedelta(minutes=30))
    bars = Change(action="quarantine", stable=B, quarantines=(A,), actor="x", reason="y")
    assert kept_warm(write(tmp_path, bars)) is None
    assert kept_warm(write(tmp_path, deploy(C))) is None
