"""What may be deployed, promoted and rolled back: the plans, the projection, and where a rollout stands."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clearway.bundle import pack, payload_digest
from clearway.canary import CanaryVerdict, MetricVerdict
from clearway.canary_state import CanaryState, as_evidence, follow, provisional, read_state, stretches, write_state
from clearway.deployment import (
    Situation,
    check_same_features,
    deploy,
    deploy_built,
    find_bundle,
    plan_canary,
    plan_deploy,
    plan_rollback,
    plan_shadow,
    quarantine,
    reconcile,
    release,
    rollback,
    way_back,
    with_shadow,
)
from clearway.errors import ClearwayError, UsageError
from clearway.files import canonical_json, sha256_bytes, write_json
from clearway.ledger import Change, Entry, append, head_hash, quarantined, read_ledger
from clearway.local_target import find_server
from clearway.params import CanaryParams, CanaryStep, Params
from clearway.reconciliation import examine
from clearway.registry import register
from clearway.rollout import settled, step_at
from clearway.routing import Split, project_routing, read_routing
from clearway.skew_state import SkewState
from clearway.workspace import Workspace

A, B, C, D = "a" * 64, "b" * 64, "c" * 64, "d" * 64
ENV = "production"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHO = {"actor": "tester", "reason": "a test"}


def change(action: str, stable: str, canary: str | None = None, weight: int = 0, **more: object) -> Change:
    content = {"action": action, "stable": stable, "canary": canary, "canary_weight": weight, **WHO, **more}
    return Change.model_validate(content)


def write(folder: Path, *changes: Change) -> list[Entry]:
    for one in changes:
        append(folder, ENV, one, expected_head=head_hash(read_ledger(folder, ENV)))
    return read_ledger(folder, ENV)


def verdict(word: str, weight: int) -> CanaryVerdict:
    return CanaryVerdict.model_validate(
        {"verdict": word, "sentence": f"a {word}", "weight": weight, "n_canary": 9, "n_stable": 9, "metrics": []}
    )


def situation(
    entries: Sequence[Entry], said: CanaryVerdict | None = None, age: timedelta = timedelta(minutes=1), **more: object
) -> Situation:
    return Situation(ENV, entries, verdict=said, verdict_age=age, **more)  # type: ignore[arg-type]


@pytest.fixture
def serving_a(tmp_path: Path) -> list[Entry]:
    return write(tmp_path, change("deploy", A))


@pytest.fixture
def trying_b(tmp_path: Path) -> list[Entry]:
    return write(tmp_path, change("deploy", A), change("canary", A, B, 10))


# --- shadows ---


def test_a_shadow_is_opened_beside_what_answers_and_ended_and_a_second_time_there_is_nothing_to_do(
    trying_b: list[Entry], tmp_path: Path
) -> None:
    opened = plan_shadow(situation(trying_b), C, **WHO)
    assert opened == change("shadow", A, B, 10, shadow=C)
    entries = write(tmp_path, opened)
    assert plan_shadow(situation(entries), C, **WHO) is None
    ended = plan_shadow(situation(entries), None, **WHO)
    assert ended == change("shadow", A, B, 10)
    assert plan_shadow(situation(write(tmp_path, ended)), None, **WHO) is None


def test_what_answers_is_quarantined_or_not_yet_admitted_is_no_shadow(tmp_path: Path) -> None:
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10, quarantines=[D]))
    with pytest.raises(ClearwayError, match="no stable version"):
        plan_shadow(situation([]), C, **WHO)
    with pytest.raises(ClearwayError, match="is the stable version of production"):
        plan_shadow(situation(entries), A, **WHO)
    with pytest.raises(ClearwayError, match="is the canary of production"):
        plan_shadow(situation(entries), B, **WHO)
    with pytest.raises(ClearwayError, match="quarantined"):
        plan_shadow(situation(entries), D, **WHO)
    with pytest.raises(ClearwayError, match="must be stable in staging"):
        plan_shadow(situation(entries, required=("staging", A)), C, **WHO)
    with pytest.raises(ClearwayError, match="has a shadow cccccccccccc: end it"):
        plan_shadow(situation(write(tmp_path, change("shadow", A, B, 10, shadow=C))), "e" * 64, **WHO)


@pytest.mark.parametrize(
    ("following", "goes_on"),
    [
        (change("hold", A, B, 10), True),
        (change("canary", A, B, 50), True),
        (change("canary", A), True),
        (change("release", A, B, 10, releases=[D]), True),
        (change("quarantine", A, B, 10, quarantines=[C]), False),
        (change("rollback", A, quarantines=[B]), False),
        (change("promote", B), False),
        (change("canary", A, C, 10), False),
        (change("shadow", A, B, 10), False),
    ],
)
def test_a_shadow_goes_on_until_it_or_what_it_is_compared_with_moves(
    tmp_path: Path, following: Change, goes_on: bool
) -> None:
    entries = write(tmp_path, change("deploy", A), change("shadow", A, B, 10, shadow=C))
    assert with_shadow(entries, following).shadow == (C if goes_on else None)


def test_entries_written_by_other_commands_carry_the_shadow_on(params: Params, workspace: Workspace) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A), change("shadow", A, shadow=C))
    quarantine(params, workspace, ENV, D, **WHO)
    assert read_routing(folder / "routing.json").shadow == C
    quarantine(params, workspace, ENV, C, **WHO)
    assert read_routing(folder / "routing.json").shadow is None


# --- how entities are split ---


def test_a_changed_routing_key_waits_for_the_next_rollout(tmp_path: Path) -> None:
    began = Split("tailnum", "salt").as_evidence()
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10, evidence=began))
    table = project_routing(entries, "another salt", "carrier")
    assert table is not None
    assert (table.key, table.salt) == ("tailnum", f"{B[:16]}:salt")
    table = project_routing(write(tmp_path, change("canary", A), change("canary", A, B, 10)), "another salt", "carrier")
    assert table is not None
    assert (table.key, table.salt) == ("carrier", f"{B[:16]}:another salt")


# --- deploying whole ---


def test_a_new_version_replaces_the_stable_one_and_a_second_time_there_is_nothing_to_do(
    serving_a: list[Entry],
) -> None:
    planned = plan_deploy(situation(serving_a), B, **WHO)
    assert planned == change("deploy", B)
    assert plan_deploy(situation(serving_a), A, **WHO) is None


def test_nothing_is_deployed_over_an_open_canary(trying_b: list[Entry]) -> None:
    with pytest.raises(ClearwayError, match=r"open canary bbbbbbbbbbbb at 10%: .*before cccccccccccc is deployed"):
        plan_deploy(situation(trying_b), C, **WHO)
    with pytest.raises(ClearwayError, match=r"is the canary of production at 10%: .*--canary 100"):
        plan_deploy(situation(trying_b), B, **WHO)


def test_a_digest_must_be_stable_where_it_is_required_first(serving_a: list[Entry]) -> None:
    for live, said in ((C, "but cccccccccccc is"), (None, "but nothing is")):
        where = situation(serving_a, required=("staging", live))
        with pytest.raises(ClearwayError, match=f"bbbbbbbbbbbb must be stable in staging before .*{said}"):
            plan_deploy(where, B, **WHO)
        with pytest.raises(ClearwayError, match="must be stable in staging"):
            plan_canary(where, B, 10, **WHO)
    assert plan_canary(situation(serving_a, required=("staging", B)), B, 10, **WHO) is not None


def test_a_quarantined_digest_stays_out_until_it_is_released(tmp_path: Path) -> None:
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10), change("rollback", A, quarantines=(B,)))
    for plan in (lambda s: plan_deploy(s, B, **WHO), lambda s: plan_canary(s, B, 10, **WHO)):
        with pytest.raises(ClearwayError, match=r"quarantined in production since entry 3 \(a test\)"):
            plan(situation(entries))
    entries = write(tmp_path, change("release", A, releases=(B,)))
    assert plan_canary(situation(entries), B, 10, **WHO) is not None


# --- canaries ---


@pytest.mark.parametrize("weight", [-1, 101])
def test_a_weight_is_a_percentage(serving_a: list[Entry], weight: int) -> None:
    with pytest.raises(UsageError, match=f"--canary {weight}: .*0 to 100"):
        plan_canary(situation(serving_a), B, weight, **WHO)


def test_a_canary_opens_beside_the_stable_version(serving_a: list[Entry]) -> None:
    assert plan_canary(situation(serving_a), B, 10, **WHO) == change("canary", A, B, 10)


def test_the_stable_version_is_not_its_own_canary_and_without_one_there_is_none(serving_a: list[Entry]) -> None:
    with pytest.raises(ClearwayError, match="cannot be its own canary"):
        plan_canary(situation(serving_a), A, 10, **WHO)
    with pytest.raises(ClearwayError, match="no stable version"):
        plan_canary(situation([]), A, 10, **WHO)


def test_another_canary_is_refused_while_one_is_open(trying_b: list[Entry]) -> None:
    for weight in (0, 10, 25, 100):
        with pytest.raises(ClearwayError, match="open canary bbbbbbbbbbbb at 10%, not cccccccccccc"):
            plan_canary(situation(trying_b, verdict("promote", 10)), C, weight, **WHO)


@pytest.mark.parametrize("weight", [25, 100])
@pytest.mark.parametrize("said", [None, "hold", "rollback"])
def test_a_canary_rises_only_on_the_verdict_promote(trying_b: list[Entry], weight: int, said: str | None) -> None:
    judged = verdict(said, 10) if said else None
    with pytest.raises(ClearwayError, match=f"may not rise from 10% to {weight}%: its verdict at 10%"):
        plan_canary(situation(trying_b, judged), B, weight, **WHO)


def test_a_passed_canary_rises_and_is_promoted_with_the_verdict_as_evidence(trying_b: list[Entry]) -> None:
    passed = situation(trying_b, verdict("promote", 10))
    higher = plan_canary(passed, B, 25, **WHO)
    assert higher is not None
    assert (higher.action, higher.canary_weight) == ("canary", 25)
    promoted = plan_canary(passed, B, 100, **WHO)
    assert promoted is not None
    assert (promoted.action, promoted.stable, promoted.canary) == ("promote", B, None)
    assert promoted.evidence["canary_verdict"] == higher.evidence["canary_verdict"] == "promote"


@pytest.mark.parametrize(
    ("age", "said"), [(timedelta(hours=25), "25.0 hours ago"), (-timedelta(hours=1), "1.0 hours from now")]
)
def test_a_verdict_that_is_old_or_from_the_future_lets_no_canary_rise(
    trying_b: list[Entry], age: timedelta, said: str
) -> None:
    for weight in (25, 100):
        with pytest.raises(ClearwayError, match=rf"given {said}.*holds for 24 .*canary.verdict_hours.*check_canary"):
            plan_canary(situation(trying_b, verdict("promote", 10), age, last=10), B, weight, **WHO)
    for age_of_use in (timedelta(hours=24), -timedelta(minutes=4)):  # clocks of two machines may differ
        plan_canary(situation(trying_b, verdict("promote", 10), age_of_use), B, 25, **WHO)


@pytest.mark.parametrize(
    ("skew", "said"),
    [
        (None, "has not been given"),
        ({"verdict": "skew"}, r"is 'skew' \(temp differs\)"),
        ({"verdict": "unknown"}, "is 'unknown'"),
        ({"digest": A}, "has not been given"),
        ({"rollout": 1}, "has not been given"),
        ({"environment": "staging"}, "has not been given"),
    ],
)
def test_stored_features_are_promoted_only_without_skew_in_this_rollout(
    trying_b: list[Entry], skew: dict[str, object] | None, said: str
) -> None:
    clear: dict[str, object] = {"environment": ENV, "digest": B, "rollout": 2, "verdict": "no_skew"}

    def where(skew: dict[str, object] | None) -> Situation:
        found = None if skew is None else SkewState.model_validate({**clear, "sentence": "temp differs", **skew})
        return situation(trying_b, verdict("promote", 10), stored=True, skew=found, rollout=2)

    with pytest.raises(
        ClearwayError, match=f"may not be promoted: its skew verdict since entry 2, .*{said}.*--rollout"
    ):
        plan_canary(where(skew), B, 100, **WHO)
    higher, promoted = (plan_canary(where({}), B, weight, **WHO) for weight in (25, 100))
    assert higher is not None
    assert promoted is not None
    assert (promoted.action, promoted.evidence["skew_verdict"]) == ("promote", "no_skew")
    assert plan_canary(where(None), B, 25, **WHO) == higher, "rising needs no skew verdict"


def test_a_canary_may_be_lowered_or_withdrawn_without_a_verdict_and_without_blame(trying_b: list[Entry]) -> None:
    lowered = plan_canary(situation(trying_b), B, 5, **WHO)
    assert lowered == change("canary", A, B, 5)
    assert plan_canary(situation(trying_b), B, 0, **WHO) == change("canary", A)
    assert plan_canary(situation(trying_b), B, 10, **WHO) is None


def test_promoting_needs_a_canary_and_promoting_twice_is_nothing_to_do(serving_a: list[Entry]) -> None:
    with pytest.raises(ClearwayError, match="no open canary: --canary 100 needs bbbbbbbbbbbb in place"):
        plan_canary(situation(serving_a), B, 100, **WHO)
    assert plan_canary(situation(serving_a), A, 100, **WHO) is None


# --- rolling back ---


def undo(entries: Sequence[Entry], to: str | None = None) -> Change | None:
    return plan_rollback(situation(entries), to, **WHO, evidence={})


def test_rolling_back_a_canary_keeps_stable_and_bars_the_canary(trying_b: list[Entry]) -> None:
    assert undo(trying_b) == undo(trying_b, A) == change("rollback", A, quarantines=(B,))


def test_rolling_back_stable_goes_to_the_last_good_version_and_bars_what_it_leaves(tmp_path: Path) -> None:
    entries = write(tmp_path, *(change("deploy", digest) for digest in (A, B, C)))
    assert undo(entries) == change("rollback", B, quarantines=(C,))
    entries = write(tmp_path, change("rollback", B, quarantines=(C,)))
    assert undo(entries) == change("rollback", A, quarantines=(B,))  # C is newer, but bad
    entries = write(tmp_path, change("rollback", A, quarantines=(B,)))
    with pytest.raises(ClearwayError, match="no earlier good version"):
        undo(entries)


def test_rolling_back_to_a_named_version_bars_the_canary_and_the_stable_version(tmp_path: Path) -> None:
    entries = write(tmp_path, change("deploy", A), change("deploy", B), change("canary", B, C, 10))
    assert undo(entries, A) == change("rollback", A, quarantines=(C, B))
    with pytest.raises(ClearwayError, match=r"never stable in production \(its history: aaaaaaaaaaaa, bbbbbbbbbbbb\)"):
        undo(entries, D)
    with pytest.raises(ClearwayError, match="never stable"):
        undo(entries, C)


def test_rolling_back_to_a_quarantined_version_or_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClearwayError, match="nothing was ever deployed"):
        undo([])
    entries = write(tmp_path, change("deploy", A), change("deploy", B), change("rollback", A, quarantines=(B,)))
    with pytest.raises(ClearwayError, match="is quarantined"):
        undo(entries, B)
    assert undo(entries, A) is None


# --- the projection ---


def test_routing_follows_the_head_and_an_entity_keeps_its_side_while_the_canary_grows(tmp_path: Path) -> None:
    assert project_routing([], "salt") is None
    ten = project_routing(write(tmp_path, change("deploy", A), change("canary", A, B, 10)), "salt")
    half = project_routing(write(tmp_path, change("canary", A, B, 50)), "salt")
    assert ten is not None
    assert half is not None
    assert (ten.revision, ten.stable, ten.canary, ten.canary_weight) == (2, A, B, 10)
    keys = [f"N{number}" for number in range(2000)]
    first, later = ({key for key in keys if table.route(key) == "canary"} for table in (ten, half))
    assert 140 < len(first) < 260
    assert first < later


def test_the_next_rollout_tries_its_luck_on_other_entities(tmp_path: Path) -> None:
    one = project_routing(write(tmp_path / "1", change("deploy", A), change("canary", A, B, 10)), "salt")
    two = project_routing(write(tmp_path / "2", change("deploy", A), change("canary", A, C, 10)), "salt")
    assert one is not None
    assert two is not None
    chosen = [{key for key in map(str, range(2000)) if table.route(key) == "canary"} for table in (one, two)]
    assert len(chosen[0] & chosen[1]) < 60


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def params() -> Params:
    return Params.model_validate(
        {
            "project": {"name": "toy"},
            "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
            "data": {"table": "rows", "label": "y"},
            "environments": {ENV: {"port": 0}},
        }
    )


@pytest.mark.parametrize("content", [None, "", "{}", "half a ta"])
def test_a_missing_or_damaged_routing_table_is_projected_again(
    params: Params, workspace: Workspace, content: str | None
) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A), change("canary", A, B, 10))
    if content is not None:
        (folder / "routing.json").write_text(content)
    reconcile(params, workspace, ENV)
    assert read_routing(folder / "routing.json").canary == B


def test_a_late_routing_table_catches_up_and_a_right_one_is_not_touched(params: Params, workspace: Workspace) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A))
    reconcile(params, workspace, ENV)
    write(folder, change("deploy", B))
    assert read_routing(folder / "routing.json").stable == A
    reconcile(params, workspace, ENV)
    assert read_routing(folder / "routing.json").stable == B
    before = (folder / "routing.json").stat().st_ino
    reconcile(params, workspace, ENV)
    assert (folder / "routing.json").stat().st_ino == before


def test_a_routing_table_without_its_ledger_is_a_lost_ledger(params: Params, workspace: Workspace) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A))
    reconcile(params, workspace, ENV)
    (folder / "ledger.jsonl").unlink()
    (folder / "head.json").unlink()
    with pytest.raises(ClearwayError, match="the ledger of production was lost"):
        reconcile(params, workspace, ENV)


def test_an_unknown_environment_leaves_nothing_behind(params: Params, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"environment 'prod' is not in params\.yaml"):
        reconcile(params, workspace, "prod")
    assert not workspace.var.exists()


def test_a_rejected_model_is_a_clean_nothing_to_do(params: Params, workspace: Workspace) -> None:
    content = {"verdict": "rejected", "digest": None, "baseline_digest": None}
    write_json(workspace.bundle / "outcome.json", content)
    outcome = deploy_built(params, workspace, ENV, None, 10, **WHO)
    assert not outcome.changed
    assert "the last model was rejected" in outcome.sentence


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "dictionary"),
        ({"verdict": "passed"}, "digest"),
        ({"verdict": "passed", "digest": 5, "baseline_digest": None}, "digest"),
        ({"verdict": "passed", "digest": "../x", "baseline_digest": None}, "digest"),
        ({"verdict": "passed", "digest": None, "baseline_digest": None}, "no digest is named"),
    ],
)
def test_a_damaged_outcome_is_named(params: Params, workspace: Workspace, content: object, named: str) -> None:
    write_json(workspace.bundle / "outcome.json", content)
    with pytest.raises(ClearwayError, match=rf"outcome\.json is damaged .*{named}"):
        deploy_built(params, workspace, ENV, None, **WHO)
    with pytest.raises(ClearwayError, match=rf"outcome\.json is damaged .*{named}"):
        register(params, workspace)


@pytest.mark.parametrize("content", ["[]", "{}", '{"pid": -1, "created": 1, "host": "127.0.0.1", "port": 1}', "\x00"])
def test_a_damaged_server_record_is_named(workspace: Workspace, content: str) -> None:
    folder = workspace.environment(ENV)
    folder.mkdir(parents=True)
    (folder / "server.json").write_text(content)
    with pytest.raises(ClearwayError, match=r"server\.json is damaged"):
        find_server(workspace, ENV)


def test_an_unknown_digest_and_a_digest_that_is_none_are_refused(params: Params, workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=f"digest {A} is unknown"):
        deploy_built(params, workspace, ENV, A, **WHO)
    with pytest.raises(ClearwayError, match=r"\.\./\.\."):
        deploy_built(params, workspace, ENV, "../..", **WHO)
    assert read_ledger(workspace.environment(ENV), ENV) == []


def build(workspace: Workspace, **features: str) -> str:
    """A bundle that holds no model: it only records its features, and what their definitions hash to."""
    payload = workspace.root / "payload"
    payload.mkdir()
    definitions = {name: {"name": name, "sha256": sha256_bytes(code.encode())} for name, code in features.items()}
    write_json(payload / "features.json", {"definitions": definitions})
    digest = payload_digest(payload)
    pack(payload, {}, workspace.bundles / digest)
    shutil.rmtree(payload)
    return digest


def test_a_canary_that_defines_a_feature_otherwise_than_the_stable_version_is_refused(
    params: Params, workspace: Workspace
) -> None:
    stable = build(workspace, temp="last hour", wind="knots")
    write(workspace.environment(ENV), change("deploy", stable))
    other = build(workspace, temp="last hour", wind="miles per hour", rain="mm")
    with pytest.raises(ClearwayError, match=f"{other[:12]} defines wind otherwise than the stable version"):
        deploy_built(params, workspace, ENV, other, 10, **WHO)
    assert [entry.stable for entry in read_ledger(workspace.environment(ENV), ENV)] == [stable]
    assert find_server(workspace, ENV) is None


def test_a_canary_may_have_features_of_its_own_and_do_without_some(workspace: Workspace) -> None:
    stable = find_bundle(workspace, build(workspace, temp="last hour", wind="knots"))
    check_same_features(stable, find_bundle(workspace, build(workspace, temp="last hour", rain="mm")))
    with pytest.raises(ClearwayError, match="defines temp otherwise"):  # what both have is compared all the same
        check_same_features(stable, find_bundle(workspace, build(workspace, temp="last day", rain="mm")))


def test_quarantine_and_release_are_entries_that_move_nothing(params: Params, workspace: Workspace) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A), change("canary", A, B, 10))
    assert quarantine(params, workspace, ENV, C, **WHO).canary == B
    assert quarantined(read_ledger(folder, ENV)) == {C}
    with pytest.raises(ClearwayError, match="is live in production"):
        quarantine(params, workspace, ENV, B, **WHO)
    release(params, workspace, ENV, C, **WHO)
    assert quarantined(read_ledger(folder, ENV)) == frozenset()
    with pytest.raises(ClearwayError, match="is not quarantined"):
        release(params, workspace, ENV, C, **WHO)
    assert read_routing(folder / "routing.json").revision == 4


# --- where a rollout stands ---


def test_a_verdict_without_a_time_is_read_and_is_of_no_use(trying_b: list[Entry], tmp_path: Path) -> None:
    state = read_state(tmp_path, trying_b)
    assert state is not None
    write_state(tmp_path, state.judged(verdict("promote", 10), 2, NOON))
    written = json.loads((tmp_path / "canary.json").read_text())
    del written["verdicts"][0]["at"]  # as before verdicts had one
    (tmp_path / "canary.json").write_text(json.dumps(written))
    state = read_state(tmp_path, trying_b)
    assert state is not None
    assert state.current is not None
    age = datetime.now(UTC) - state.current.at
    with pytest.raises(ClearwayError, match="hours ago, and holds for 24"):
        plan_canary(situation(trying_b, state.current.verdict, age), B, 25, **WHO)


def test_a_verdict_whose_time_has_no_zone_is_damage(trying_b: list[Entry], tmp_path: Path) -> None:
    state = read_state(tmp_path, trying_b)
    assert state is not None
    write_state(tmp_path, state.judged(verdict("promote", 10), 2, NOON))
    path = tmp_path / "canary.json"
    path.write_text(path.read_text().replace("2026-03-01T12:00:00Z", "2026-03-01T12:00:00"))
    with pytest.raises(ClearwayError, match=r"canary\.json is damaged .*at.*timezone"):
        read_state(tmp_path, trying_b)


@pytest.mark.parametrize("hours", [0, -1, float("inf"), float("nan")])
def test_a_verdict_holds_for_a_time_that_can_be_counted(hours: float) -> None:
    with pytest.raises(ValueError, match="verdict_hours"):
        CanaryParams(verdict_hours=hours)


def test_the_state_is_derived_from_the_ledger_and_survives_its_own_loss(tmp_path: Path) -> None:
    assert read_state(tmp_path, []) is None
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10))
    state = read_state(tmp_path, entries)
    assert state == CanaryState(digest=B, weight=10, since_revision=2, opened=entries[1].hash)
    write_state(tmp_path, state.judged(verdict("promote", 10), 2, NOON))
    state = read_state(tmp_path, entries)
    assert state is not None
    assert state.current is not None
    assert (state.current.verdict, state.current.at) == (verdict("promote", 10), NOON)

    entries = write(tmp_path, change("canary", A, B, 25))  # killed before canary.json was written
    state = read_state(tmp_path, entries)
    assert state is not None
    assert (state.weight, state.since_revision, state.current) == (25, 3, None)
    assert [step.verdict.weight for step in state.verdicts] == [10]


def test_holding_does_not_begin_a_step_anew_and_a_second_trial_forgets_the_first(tmp_path: Path) -> None:
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10), change("hold", A, B, 10))
    opened = {"digest": B, "weight": 10, "since_revision": 2, "opened": entries[1].hash}
    saved = CanaryState.model_validate(opened).judged(verdict("promote", 10), 3, NOON)
    assert follow(saved, entries) == saved
    entries = write(tmp_path, change("canary", A), change("canary", A, B, 10))
    again = follow(saved, entries)
    assert again == CanaryState(digest=B, weight=10, since_revision=5, opened=entries[4].hash)


def test_a_verdict_of_another_environment_or_history_is_nothing_to_this_one(tmp_path: Path) -> None:
    for name in ("here", "there"):
        entries = write(tmp_path / name, change("deploy", A), change("canary", A, B, 10))
        state = read_state(tmp_path / name, entries)
        assert state is not None
        write_state(tmp_path / name, state.judged(verdict("promote", 10), 2, NOON))
    shutil.copy(tmp_path / "here" / "canary.json", tmp_path / "there")
    state = read_state(tmp_path / "there", entries)
    assert state is not None
    assert (state.digest, state.weight, state.verdicts) == (B, 10, ())


def test_a_tail_that_was_cut_together_with_its_anchor_is_found_by_the_routing_table(
    params: Params, workspace: Workspace
) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A), change("deploy", B), change("rollback", A, quarantines=(B,)))
    reconcile(params, workspace, ENV)
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:2]))
    last = json.loads(lines[1])
    write_json(folder / "head.json", {name: last[name] for name in ("environment", "sequence", "hash")})
    for looks in (lambda: reconcile(params, workspace, ENV), lambda: examine(params, workspace, ENV, ("ledger",))):
        with pytest.raises(ClearwayError, match=r"follows from entry 3 .* ends at entry 2: it was cut or replaced"):
            looks()
    assert read_routing(folder / "routing.json").stable == A, "what was barred does not come back"
    (folder / "routing.json").unlink()
    assert len(reconcile(params, workspace, ENV)) == 2


def test_judging_a_step_again_replaces_its_verdict() -> None:
    state = CanaryState(digest=B, weight=10, since_revision=2)
    state = state.judged(verdict("hold", 10), 2, NOON).judged(verdict("promote", 10), 3, NOON)
    assert [(step.verdict.verdict, step.last_revision) for step in state.verdicts] == [("promote", 3)]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "canary.json").write_text("{")
    with pytest.raises(ClearwayError, match=r"canary\.json is damaged .*delete it"):
        read_state(tmp_path, [])


@pytest.mark.parametrize(("weight", "margin"), [(10, 0.05), (7, 0.05), (11, 0.03), (50, 0.02), (80, 0.01), (95, 0.01)])
def test_a_weight_between_steps_is_judged_by_the_stricter_one(weight: int, margin: float) -> None:
    assert step_at(CanaryParams(), weight) == CanaryStep(weight=weight, margin=margin)


# --- bad input, wrong clocks, versions kept warm ---


def test_whoever_says_neither_who_nor_why_changes_nothing(params: Params, workspace: Workspace) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A), change("deploy", B))
    for who in ({"actor": " ", "reason": "y"}, {"actor": "x", "reason": ""}):
        for act in (
            lambda who: deploy_built(params, workspace, ENV, A, **who),
            lambda who: rollback(params, workspace, ENV, **who),
            lambda who: quarantine(params, workspace, ENV, C, **who),
            lambda who: release(params, workspace, ENV, C, **who),
        ):
            with pytest.raises(UsageError, match="is empty: the ledger keeps who"):
                act(who)
    assert len(read_ledger(folder, ENV)) == 2


@pytest.mark.parametrize("digest", ["", "latest", "../..", "A" * 64, "a" * 65])
def test_a_digest_that_is_none_cannot_be_quarantined(params: Params, workspace: Workspace, digest: str) -> None:
    write(workspace.environment(ENV), change("deploy", A))
    with pytest.raises(UsageError, match="a digest has 64 of the characters"):
        quarantine(params, workspace, ENV, digest, **WHO)


@pytest.mark.parametrize("weight", [-1, 101, 1000])
def test_a_weight_that_is_no_percentage_is_refused_before_anything_is_looked_at(
    params: Params, workspace: Workspace, weight: int
) -> None:
    with pytest.raises(UsageError, match=f"--canary {weight}: the weight must be a percentage"):
        deploy_built(params, workspace, ENV, A, weight, **WHO)
    assert not workspace.var.exists()


def test_a_ledger_of_another_environment_is_nobodys_to_change(params: Params, workspace: Workspace) -> None:
    write(workspace.environment(ENV), change("deploy", A), change("deploy", B))
    other = params.model_copy(update={"environments": {"staging": params.environments[ENV]}})
    shutil.copytree(workspace.environment(ENV), workspace.environment("staging"))
    before = (workspace.environment("staging") / "ledger.jsonl").read_bytes()
    with pytest.raises(ClearwayError, match="environment is 'production', expected 'staging'"):
        rollback(other, workspace, "staging", **WHO)
    assert (workspace.environment("staging") / "ledger.jsonl").read_bytes() == before


def test_a_clock_that_went_backwards_is_said_and_stops_nobody(
    params: Params, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    folder = workspace.environment(ENV)
    write(folder, change("deploy", A))
    content = json.loads((folder / "ledger.jsonl").read_bytes())
    del content["hash"]
    content["at"] = "2999-01-01T00:00:00.000000Z"
    line = canonical_json({**content, "hash": sha256_bytes(canonical_json(content))})
    (folder / "ledger.jsonl").write_bytes(line + b"\n")
    (folder / "head.json").unlink()
    entry = quarantine(params, workspace, ENV, C, **WHO)
    assert entry.at.year == 2999
    assert "which is before the last entry of production" in caplog.text


def test_only_a_switch_that_says_so_keeps_the_version_before_warm(tmp_path: Path, serving_a: list[Entry]) -> None:
    planned = plan_deploy(situation(serving_a), B, warm_minutes=5, **WHO)
    assert planned is not None
    table = project_routing(write(tmp_path, planned), "salt")
    assert table is not None
    assert (table.stable, table.warm) == (B, A)
    first = plan_deploy(situation([]), B, warm_minutes=5, **WHO)
    assert first is not None
    assert first.warm_minutes is None, "there is nothing before the first"
    back = plan_rollback(situation(read_ledger(tmp_path, ENV)), None, evidence={}, **WHO)
    assert back is not None
    table = project_routing(write(tmp_path, back), "salt")
    assert table is not None
    assert (table.stable, table.warm, table.warm_until) == (A, None, None)


def test_where_a_rollback_leads(trying_b: list[Entry], tmp_path: Path) -> None:
    assert way_back(situation([])) is None
    assert way_back(situation(trying_b)) == A
    entries = write(tmp_path, change("promote", B))
    assert way_back(situation(entries)) == A
    assert way_back(situation(write(tmp_path, change("quarantine", B, quarantines=(A,))))) is None


def test_a_command_that_has_to_be_fast_starts_without_heavy_libraries() -> None:
    heavy = "('numpy', 'pandas', 'sklearn', 'onnxruntime', 'mlflow', 'feast', 'apprise', 'jinja2')"
    code = f"import sys, clearway.cli, clearway.deployment; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


# --- the rollout in the ledger: its stretches, and a promotion that waits for labels ---


def test_a_rollout_is_cut_where_its_weight_changes_and_not_where_it_is_held(tmp_path: Path) -> None:
    trial = (("canary", 10), ("hold", 10), ("canary", 25), ("canary", 10))
    before = (change("deploy", A), change("canary", A, C, 10), change("canary", A))
    entries = write(tmp_path, *before, *(change(action, A, B, weight) for action, weight in trial))
    assert [(one.since_revision, one.last_revision, one.weight) for one in stretches(entries)] == [
        (4, 5, 10),
        (6, 6, 25),
        (7, 7, 10),
    ]
    assert stretches(entries[:3]) == ()
    assert stretches([]) == ()


def test_a_promotion_waits_for_labels_until_it_is_confirmed_or_another_version_is_stable(tmp_path: Path) -> None:
    waits = change("promote", B).model_copy(update={"evidence": {"labels": "provisional"}})
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 10), change("canary", A, B, 95), waits)
    waiting = provisional(entries)
    assert waiting is not None
    assert (waiting.digest, waiting.stable_before) == (B, A)
    assert [one.weight for one in waiting.stretches] == [10, 95]
    assert provisional(entries[:3]) is None, "a canary is open"
    confirmed = change("promote", B).model_copy(update={"evidence": {"labels": "confirmed"}})
    assert provisional(write(tmp_path, confirmed)) is None
    assert provisional(write(tmp_path, change("deploy", C))) is None
    assert provisional([]) is None


def labelled(status: str, lower: float = -0.1) -> CanaryVerdict:
    late = MetricVerdict(
        name="accuracy",
        status=status,  # type: ignore[arg-type]
        canary=0.2,
        stable=0.1,
        estimate=0.1,
        lower=lower,
        upper=0.3,
        margin=0.02,
        n_canary=900,
        n_stable=100,
        late=True,
    )
    errors = late.model_copy(update={"name": "errors", "status": "fail", "late": False})
    return verdict("rollback", 95).model_copy(update={"metrics": (errors, late)})


@pytest.mark.parametrize(("status", "judged"), [("fail", "rollback"), ("pass", "promote"), ("open", "hold")])
def test_only_labels_decide_about_a_provisional_promotion(status: str, judged: str) -> None:
    found = settled(labelled(status))
    assert (found.verdict, found.provisional) == (judged, judged == "hold")
    assert "accuracy: differs by" in found.sentence
    assert "900 and 100 labels" in found.sentence


def test_without_a_metric_of_labels_a_provisional_promotion_is_never_confirmed() -> None:
    found = settled(verdict("promote", 95))
    assert found.verdict == "hold"
    assert "canary.labels in params.yaml" in found.sentence


def test_a_promotion_that_waits_for_labels_says_so_in_the_ledger() -> None:
    assert as_evidence(verdict("promote", 95).model_copy(update={"provisional": True}))["labels"] == "provisional"
    assert "labels" not in as_evidence(verdict("promote", 95))


def test_a_canary_is_promoted_from_its_last_step_only_and_leaves_a_control(tmp_path: Path) -> None:
    entries = write(tmp_path, change("deploy", A), change("canary", A, B, 50))
    now = situation(entries, verdict("promote", 50), most=95, last=95)
    with pytest.raises(ClearwayError, match="may not be promoted from 50%: its last step is at 95%"):
        plan_canary(now, B, 100, **WHO)
    with pytest.raises(UsageError, match="5% of the traffic stay with the stable version"):
        plan_canary(now, B, 96, **WHO)
    raised = plan_canary(now, B, 95, **WHO)
    assert raised is not None
    assert raised.canary_weight == 95


@pytest.mark.parametrize(
    ("own", "strategy", "weight", "said"),
    [
        ("canary", "canary", None, "say with --canary N"),
        ("blue-green", "canary", None, "say with --canary N"),
        ("ab", "canary", 10, "deployment.strategy is 'ab'"),
        ("canary", "ab", None, "deployment.strategy is 'canary'"),
        ("canary", "blue-green", 10, "it has no weight"),
    ],
)
def test_a_strategy_that_would_do_something_else_than_it_says_is_wrong_usage(
    params: Params, workspace: Workspace, own: str, strategy: str, weight: int | None, said: str
) -> None:
    settings = params.deployment.model_copy(update={"strategy": own})
    mixed = params.model_copy(update={"deployment": settings})
    with pytest.raises(UsageError, match=said):
        deploy(mixed, workspace, ENV, A, weight, strategy=strategy, **WHO)
    assert not (workspace.environment(ENV) / "ledger.jsonl").exists()


def test_a_shadow_is_a_strategy_without_a_weight(params: Params, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="a shadow, it has no weight"):
        deploy_built(params, workspace, ENV, A, 10, strategy="shadow", **WHO)
    settings = params.deployment.model_copy(update={"strategy": "shadow"})
    with pytest.raises(ClearwayError, match="shadow"):  # there is no traffic yet that it could copy
        deploy_built(params.model_copy(update={"deployment": settings}), workspace, ENV, A, **WHO)
    assert not (workspace.environment(ENV) / "ledger.jsonl").exists()
