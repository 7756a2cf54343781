"""The edges of drift and decision: what is read, what is written, and what stops them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.bundle import keep, pack
from clearway.champion import fetch_champion
from clearway.decision import decide
from clearway.drift_report import check_drift, terminal_table
from clearway.errors import ClearwayError, UsageError
from clearway.evidence import gather_evidence
from clearway.files import write_json
from clearway.ledger import GENESIS, Change, append
from clearway.lineage import Lineage
from clearway.params import Params
from clearway.profile import write_reference
from clearway.workspace import Workspace

PARAMS = Params.model_validate(
    {
        "project": {"name": "toy"},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "y"},
        "environments": {"staging": {"port": 1}, "live": {"port": 2, "requires": "staging"}},
    }
)


def rows(count: int, shift: float = 0.0) -> pd.DataFrame:
    generator = np.random.default_rng(count)
    size = generator.normal(size=count) + shift
    return pd.DataFrame(
        {"row_id": np.arange(count).astype(str), "size": size, "kind": generator.choice(["x", "y"], count)}
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project up to its features, with no champion."""
    made = Workspace(tmp_path)
    made.features.mkdir(parents=True)
    rows(500, shift=1.0).to_parquet(made.features / "current.parquet")
    features = {"numeric": ["size"], "categorical": ["kind"], "rows": {"training": 70, "holdout": 30}}
    write_json(made.features / "features.json", features)
    write_json(made.snapshot, {"as_of": None, "tables": {}})
    write_json(made.reports / "data_validation.json", {"verdict": "passed", "checks": []})
    (tmp_path / "schema.yaml").write_text("tables: {}\n")
    return made


def crown(workspace: Workspace) -> str:
    """Make a bundle whose reference lies a deviation below the current rows, and deploy it."""
    known: dict[str, Any] = dict.fromkeys(("project", "role", "snapshot_sha256", "recipe_sha256", "trigger"), "x")
    known |= dict.fromkeys(("as_of", "git_commit", "lock_sha256"))
    known |= {"training_rows": 1, "labelled_rows": 1, "metrics": {}, "reasons": [], "packages": {}}
    reference = workspace.root / "reference.parquet"
    write_reference(rows(2_000), np.random.default_rng(0).random(2_000), reference)
    payload = workspace.root / "payload"
    payload.mkdir()
    (payload / "model.txt").write_text("a model")
    lineage = Lineage.model_validate(known).model_dump_json().encode()
    evidence: dict[str, Path | bytes] = {"lineage.json": lineage, "reference.parquet": reference}
    digest = keep(pack(payload, evidence, workspace.root / "packed").path, workspace.bundles)
    change = Change(action="deploy", stable=digest, actor="test", reason="test")
    append(workspace.environment("live"), "live", change, expected_head=GENESIS)
    return digest


def test_without_a_champion_the_report_says_bootstrap_and_the_result_is_false(workspace: Workspace) -> None:
    fetch_champion(PARAMS, workspace)
    report = check_drift(PARAMS, workspace)
    assert report.verdict == "bootstrap"
    assert workspace.drift_result.read_text() == "false\n"
    assert json.loads((workspace.reports / "drift.json").read_text())["verdict"] == "bootstrap"
    assert "nothing was ever deployed" in (workspace.reports / "drift.html").read_text()


def test_drift_is_measured_against_the_champions_own_reference_with_the_same_bytes_each_time(
    workspace: Workspace,
) -> None:
    digest = crown(workspace)
    fetch_champion(PARAMS, workspace)
    written = []
    for _ in range(2):
        report = check_drift(PARAMS, workspace)
        written.append([(workspace.reports / name).read_bytes() for name in ("drift.json", "drift.html")])
    assert (report.verdict, report.drifted, report.champion) == ("drift", ("size",), digest)
    assert workspace.drift_result.read_text() == "true\n"
    assert written[0] == written[1]
    assert written[0][1].count(b"data:image/png") == 2
    assert terminal_table(report).row_count == 2


def test_a_champion_without_a_reference_stops(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    (workspace.champion / "bundle" / "evidence" / "reference.parquet").unlink()
    with pytest.raises(ClearwayError, match=r"reference\.parquet is missing"):
        check_drift(PARAMS, workspace)
    assert not workspace.drift_result.exists()


def test_the_evidence_of_a_first_run(workspace: Workspace) -> None:
    fetch_champion(PARAMS, workspace)
    check_drift(PARAMS, workspace)
    gathered = gather_evidence(PARAMS, workspace, trigger="push")
    assert (gathered.labelled_rows, gathered.data, gathered.champion, gathered.trigger) == (100, "passed", None, "push")
    assert decide(gathered, PARAMS.decision).reasons == ("bootstrap",)
    write_json(workspace.reports / "data_validation.json", {"verdict": "failed", "checks": []})
    forced = gather_evidence(PARAMS, workspace, force_retrain=True)
    assert decide(forced, PARAMS.decision).outcome == "vetoed"


@pytest.mark.parametrize(
    ("missing", "script"),
    [
        ("reports/drift.json", "check_drift.py"),
        ("reports/data_validation.json", "validate_data.py"),
        ("data/features/features.json", "build_features.py"),
        ("data/raw/snapshot.json", "ingest.py"),
        ("build/champion/champion.json", "fetch_champion.py"),
    ],
)
def test_missing_evidence_stops_and_names_the_step(workspace: Workspace, missing: str, script: str) -> None:
    fetch_champion(PARAMS, workspace)
    check_drift(PARAMS, workspace)
    (workspace.root / missing).unlink()
    with pytest.raises(ClearwayError, match=f"{missing.split('/')[-1]} is missing: run scripts/{script}"):
        gather_evidence(PARAMS, workspace)


def test_an_odd_trigger_is_wrong_usage(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="CLEARWAY_TRIGGER"):
        gather_evidence(PARAMS, workspace, trigger="push\nretrain=true")
