"""How a model is named, and what its bundle says of it; nothing of a bundle that contradicts itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from clearway.bundle import BundleError, keep, pack
from clearway.errors import ClearwayError, UsageError
from clearway.files import canonical_json, sha256_bytes
from clearway.ledger import GENESIS, Change, append
from clearway.model_record import find_digest, match_prefix, read_build, read_bundle, read_named
from clearway.params import Params
from clearway.workspace import Workspace

A, B = "a" * 64, "a" * 10 + "b" * 54
WRITTEN: dict[str, Any] = {
    "project": {"name": "toy"},
    "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
    "data": {"table": "rows", "label": "y"},
    "environments": {"staging": {"port": 1}, "live": {"port": 2, "requires": "staging"}},
}
PARAMS = Params.model_validate(WRITTEN)
SNAPSHOT = canonical_json(
    {"as_of": None, "tables": {"rows": {"rows": 3, "bytes": 9, "sha256": "d" * 64, "source": "rows.csv"}}}
)
LINEAGE: dict[str, Any] = {
    "project": "toy",
    "role": "challenger",
    "as_of": None,
    "snapshot_sha256": sha256_bytes(SNAPSHOT),
    "recipe_sha256": "e" * 64,
    "training_rows": 3,
    "labelled_rows": 4,
    "metrics": {"roc_auc": 0.8},
    "git_commit": "c" * 40,
    "lock_sha256": None,
    "trigger": "local",
    "reasons": ["bootstrap"],
    "packages": {"numpy": "2.0"},
}


def bundle(workspace: Workspace, *, role: str = "challenger", **changed: bytes) -> str:
    payload = workspace.root / "payload"
    payload.mkdir(parents=True, exist_ok=True)
    size = {"kind": "numeric", "name": "size", "nullable": True, "declared": None, "minimum": 0.0, "maximum": 1.0}
    stored = {"numeric": ["size"], "definitions_sha256": "f" * 64, "definitions": {"size": {"sha256": "9" * 64}}}
    (payload / "schema.json").write_text(json.dumps({"features": [size]}))
    (payload / "features.json").write_text(json.dumps(stored))
    (payload / "params.json").write_text(json.dumps({"seed": 1, "role": role}))
    gates = [{"name": "rows", "status": "pass", "detail": "3 rows"}]
    evidence: dict[str, Path | bytes] = {
        "lineage.json": canonical_json({**LINEAGE, "role": role}),
        "model_validation.json": canonical_json({"verdict": "passed", "reason": "all passed", "gates": gates}),
        "params.yaml": json.dumps(WRITTEN).encode(),
        "snapshot.json": SNAPSHOT,
    }
    evidence.update({name.replace("__", "."): content for name, content in changed.items()})
    packed = pack(payload, {name: content for name, content in evidence.items() if content}, workspace.root / "packed")
    return keep(packed.path, workspace.bundles)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_prefix_that_only_one_digest_begins_with_names_it() -> None:
    assert match_prefix("a" * 11, [A, B], where="here") == A
    assert match_prefix(B, [A, B], where="here") == B


def test_a_prefix_of_two_is_refused_with_both() -> None:
    with pytest.raises(UsageError, match=r"aaaaaaaa is the beginning of 2 bundles in here.*aaaaaaaabb"):
        match_prefix("a" * 8, [A, B], where="here")


def test_a_prefix_of_none_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no bundle in .*nowhere begins with 12345678"):
        find_digest("12345678", tmp_path / "nowhere")


@pytest.mark.parametrize("prefix", ["a" * 7, "A" * 8, "../../aa", "a" * 65, "", "latest"])
def test_what_cannot_begin_a_digest_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="is no digest: give 8 to 64 hexadecimal"):
        match_prefix(prefix, [A], where="here")


def test_the_record_of_a_bundle_is_what_it_keeps(workspace: Workspace) -> None:
    found = read_bundle(workspace, bundle(workspace))
    assert found.features == {
        "size": {"kind": "numeric", "nullable": True, "declared": None, "definition_sha256": "9" * 64}
    }
    assert found.snapshot is not None
    assert found.snapshot.tables["rows"].rows == 3
    assert (found.verdict, [gate["name"] for gate in found.gates]) == ("passed", ["rows"])


def test_a_baseline_is_not_given_the_challengers_gates(workspace: Workspace) -> None:
    found = read_bundle(workspace, bundle(workspace, role="baseline"))
    assert (found.verdict, found.gates) == ("baseline", ())


def test_a_bundle_of_before_snapshots_were_kept_is_read(workspace: Workspace) -> None:
    found = read_bundle(workspace, bundle(workspace, snapshot__json=b""))
    assert found.snapshot is None
    assert found.lineage.code_commit is None


def test_a_snapshot_that_lineage_does_not_name_is_refused(workspace: Workspace) -> None:
    digest = bundle(workspace, snapshot__json=SNAPSHOT.replace(b'"rows":3', b'"rows":4'))
    with pytest.raises(BundleError, match=r"snapshot\.json is not the snapshot that lineage\.json names"):
        read_bundle(workspace, digest)


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"params__yaml": b"- a"}, r"params\.yaml must be a mapping"),
        ({"params__yaml": b"a: ["}, r"params\.yaml is not valid YAML"),
        ({"model_validation__json": b"{"}, r"model_validation\.json of bundle .* is not JSON"),
        ({"model_validation__json": b""}, r"model_validation\.json is no part of bundle"),
    ],
)
def test_evidence_that_cannot_be_read_is_named(workspace: Workspace, changed: dict[str, bytes], refusal: str) -> None:
    digest = bundle(workspace, **changed)
    with pytest.raises(BundleError, match=refusal):
        read_bundle(workspace, digest)


@pytest.mark.parametrize("gates", [3, [1], [{"name": "rows"}], [{"name": "rows", "status": "pass", "estimate": "x"}]])
def test_gates_that_are_none_are_named(workspace: Workspace, gates: object) -> None:
    digest = bundle(workspace, model_validation__json=canonical_json({"verdict": "passed", "gates": gates}))
    with pytest.raises(BundleError, match=r"model_validation\.json of bundle [0-9a-f]{12} holds no gates"):
        read_bundle(workspace, digest)


def test_an_environment_names_what_is_stable_there_and_champion_that_of_production(workspace: Workspace) -> None:
    digest = bundle(workspace)
    change = Change(action="deploy", stable=digest, actor="test", reason="test")
    append(workspace.environment("live"), "live", change, expected_head=GENESIS)
    assert read_named("champion", PARAMS, workspace).digest == digest
    assert read_named("live", PARAMS, workspace).digest == digest
    assert read_named(digest[:8], PARAMS, workspace).digest == digest
    with pytest.raises(UsageError, match="staging: nothing was ever deployed to staging"):
        read_named("staging", PARAMS, workspace)


def test_a_ledger_that_was_edited_names_nothing(workspace: Workspace) -> None:
    change = Change(action="deploy", stable=A, actor="test", reason="test")
    append(workspace.environment("live"), "live", change, expected_head=GENESIS)
    ledger = workspace.environment("live") / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("a" * 64, "b" * 64))
    with pytest.raises(ClearwayError, match="hash is"):
        read_named("champion", PARAMS, workspace)


def test_build_before_anything_was_trained_says_so(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match="build/model"):
        read_build(PARAMS, workspace)
