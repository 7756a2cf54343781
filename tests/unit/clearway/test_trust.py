"""Whose word opens a pickle: params.yaml's, and this project's own record of the digest."""

from pathlib import Path

import pytest
import yaml

from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.params import Params, load_params
from clearway.trust import NOTHING_MORE, Trust, trust_of
from clearway.workspace import Workspace

A, B, C, D, E = (letter * 64 for letter in "abcde")


def project(root: Path, **trust: object) -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "environments": {"staging": {"port": 0}, "production": {"port": 0, "requires": "staging"}},
        "trust": trust,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(root / "params.yaml"), Workspace(root)


def deploy(workspace: Workspace, environment: str, stable: str, canary: str | None = None) -> None:
    folder = workspace.environment(environment)
    change = Change(
        action="canary" if canary else "deploy", stable=stable, canary=canary, canary_weight=10 if canary else 0,
        actor="tester", reason="a test",
    )  # fmt: skip
    append(folder, environment, change, expected_head=head_hash(read_ledger(folder, environment)))


def test_by_default_nothing_is_trusted_and_no_record_is_read(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    deploy(workspace, "production", A)
    (workspace.environment("production") / "ledger.jsonl").write_text("damaged\n")
    assert trust_of(params, workspace) == NOTHING_MORE == Trust()
    params, workspace = project(tmp_path, types=["a.B"])
    assert trust_of(params, workspace) == Trust(types=frozenset({"a.B"}))


def test_ledgers_the_last_training_and_what_was_packaged_vouch_and_nobody_else(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, joblib=True)
    (workspace.bundles / E).mkdir(parents=True)  # that a folder is there says nothing
    assert trust_of(params, workspace).vouched == frozenset()
    deploy(workspace, "staging", A)
    deploy(workspace, "production", A, B)
    write_json(workspace.reports / "training.json", {"challenger": {"digest": C}, "baseline": {"digest": D}})
    trust = trust_of(params, workspace)
    assert trust.vouched == {A, B, C, D}
    with pytest.raises(ClearwayError, match=rf"x\.joblib is a pickle, refused: neither a ledger .* knows digest {E}"):
        trust.check_joblib(E, Path("x.joblib"))
    outcome = {"verdict": "passed", "digest": E, "baseline_digest": D}
    write_json(workspace.bundle / "outcome.json", outcome)
    trust_of(params, workspace).check_joblib(E, Path("x.joblib"))


def test_a_damaged_record_vouches_for_nobody(tmp_path: Path) -> None:
    params, workspace = project(tmp_path, joblib=True)
    for wrong in ({}, {"challenger": {"digest": "short"}, "baseline": {"digest": D}}, []):
        write_json(workspace.reports / "training.json", wrong)
        with pytest.raises(ClearwayError, match=r"training\.json is damaged .*: run scripts/train\.py again"):
            trust_of(params, workspace)
    (workspace.reports / "training.json").unlink()
    deploy(workspace, "production", A)
    (workspace.environment("production") / "ledger.jsonl").write_text("damaged\n")
    with pytest.raises(ClearwayError, match=r"ledger\.jsonl"):
        trust_of(params, workspace)
