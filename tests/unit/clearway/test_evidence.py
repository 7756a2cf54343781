"""What a decision is made from is read from files, and whatever is missing, damaged or of another champion stops it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from clearway.bundle import keep, pack
from clearway.champion import fetch_champion
from clearway.columns import LABEL
from clearway.decision import PastWindow, decide
from clearway.decision_history import record_decision, write_past
from clearway.encoding import InputSchema, NumericFeature
from clearway.errors import ClearwayError, UsageError
from clearway.evidence import gather_evidence, parse_force, write_decision
from clearway.export import to_onnx, to_skops
from clearway.files import read_json, write_json
from clearway.ledger import GENESIS, Change, append
from clearway.lineage import Lineage, recipe_sha256
from clearway.params import Params
from clearway.workspace import Workspace

CONTENT: dict[str, Any] = {
    "project": {"name": "toy"},
    "as_of": "2020-03-01",
    "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
    "data": {"table": "rows", "label": "y"},
    "decision": {"drift": {"windows": {"required": 2, "of": 3}}, "performance": {"min_rows": 100}},
    "environments": {"staging": {"port": 1}, "live": {"port": 2, "requires": "staging"}},
}
PARAMS = Params.model_validate(CONTENT)
QUIET = {"verdict": "no_drift", "sentence": "Nothing drifted.", "feature_share": 0.3, "share": 0.0}


def holdout(flipped: float = 0.1) -> pd.DataFrame:
    """Rows whose label follows their size but for a share of them."""
    random = np.random.default_rng(5)
    size = random.normal(size=400)
    return pd.DataFrame({"size": size, LABEL: ((size > 0) ^ (random.random(400) < flipped)).astype("float64")})


def write_drift(workspace: Workspace, **changes: Any) -> None:
    write_json(workspace.reports / "drift.json", {**QUIET, **changes})


def remember(workspace: Workspace, params: Params = PARAMS) -> None:
    """What scripts/fetch_champion.py does."""
    fetch_champion(params, workspace)
    write_past(params, workspace)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project up to its drift report, with no champion."""
    made = Workspace(tmp_path)
    made.features.mkdir(parents=True)
    holdout().to_parquet(made.features / "holdout.parquet")
    until = {"training": "2020-01-30T00:00:00+00:00", "holdout": "2020-02-28T12:00:00+00:00"}
    described = {"rows": {"training": 70, "holdout": 30}, "answers_until": until}
    write_json(made.features / "features.json", described)
    write_json(made.snapshot, {"tables": {}})
    write_json(made.reports / "data_validation.json", {"verdict": "passed", "sentence": "all 5 checks passed"})
    (tmp_path / "schema.yaml").write_text("tables: {}\n")
    write_drift(made, verdict="bootstrap", share=None)
    remember(made)
    return made


@pytest.fixture
def crown(workspace: Workspace) -> Callable[..., str]:
    """Deploys a model that answers yes where size is above 0, with a lineage of your choice."""

    def crowned(**lineage: Any) -> str:
        payload = workspace.root / "payload"
        payload.mkdir()
        estimator = LogisticRegression().fit(holdout()[["size"]].to_numpy(dtype="float32"), holdout()[LABEL])
        (payload / "model.skops").write_bytes(to_skops(estimator))
        (payload / "model.onnx").write_bytes(to_onnx(estimator, 1))
        schema = InputSchema(features=(NumericFeature(name="size"),))
        write_json(payload / "schema.json", schema.model_dump(mode="json"))
        write_json(payload / "features.json", {"definitions_sha256": "0" * 64})
        train = {"estimator": "sklearn.linear_model.LogisticRegression", "arguments": {}, "threads": 1}
        write_json(payload / "params.json", {"project": "toy", "seed": 1, "threshold": 0.5, "train": train})
        known: dict[str, Any] = dict.fromkeys(("project", "snapshot_sha256", "trigger"), "x")
        known |= {
            "role": "challenger",
            "recipe_sha256": recipe_sha256(PARAMS, workspace),
            "as_of": "2020-02-23T00:00:00Z",
        }
        known |= {"training_rows": 50, "labelled_rows": 80, "metrics": {"roc_auc": 0.9}, "reasons": [], "packages": {}}
        known |= {"git_commit": None, "lock_sha256": None, "trained_until": "2020-01-20T00:00:00Z", **lineage}
        evidence: dict[str, Path | bytes] = {"lineage.json": Lineage.model_validate(known).model_dump_json().encode()}
        digest = keep(pack(payload, evidence, workspace.root / "packed").path, workspace.bundles)
        change = Change(action="deploy", stable=digest, actor="test", reason="test")
        append(workspace.environment("live"), "live", change, expected_head=GENESIS)
        write_drift(workspace, champion=digest)
        remember(workspace)
        return digest

    return crowned


def test_a_first_run(workspace: Workspace) -> None:
    gathered = gather_evidence(PARAMS, workspace, trigger="push")
    assert (gathered.labelled_rows, gathered.data, gathered.champion, gathered.trigger) == (100, "passed", None, "push")
    assert (gathered.performance, gathered.windows, gathered.last_retrain) == (None, (), None)
    assert gathered.known_until == datetime(2020, 2, 28, 12, tzinfo=UTC)
    assert decide(gathered, PARAMS.decision).reasons == ("bootstrap",)


def test_broken_data_is_evidence_with_what_was_found(workspace: Workspace) -> None:
    found = {"verdict": "failed", "sentence": "1 of 5 checks failed"}
    write_json(workspace.reports / "data_validation.json", found)
    decision = decide(gather_evidence(PARAMS, workspace, force_retrain=True), PARAMS.decision)
    assert decision.outcome == "vetoed"
    assert "1 of 5 checks failed" in decision.sentence


def test_a_healthy_champion(workspace: Workspace, crown: Callable[..., str]) -> None:
    digest = crown()
    gathered = gather_evidence(PARAMS, workspace)
    assert gathered.champion is not None
    assert (gathered.champion.digest, gathered.champion.labelled_rows) == (digest, 80)
    assert gathered.champion.trained_until == datetime(2020, 1, 20, tzinfo=UTC)
    seen = gathered.performance
    assert seen is not None
    assert (seen.before, seen.rows) == (0.9, 400)
    assert seen.lower is not None
    assert seen.now is not None
    assert seen.upper is not None
    assert 0.8 < seen.lower < seen.now < seen.upper < 0.97
    assert decide(gathered, PARAMS.decision).outcome == "skip"


def test_a_champion_that_fell_is_surely_worse(workspace: Workspace, crown: Callable[..., str]) -> None:
    crown()
    holdout(flipped=0.45).to_parquet(workspace.features / "holdout.parquet")
    assert decide(gather_evidence(PARAMS, workspace), PARAMS.decision).reasons == ("performance",)


@pytest.mark.parametrize("broken", ["one answer", "no labels", "no feature", "text"])
def test_a_metric_that_is_undefined_is_unknown(workspace: Workspace, crown: Callable[..., str], broken: str) -> None:
    crown()
    rows = holdout()
    changes = {"one answer": {LABEL: 1.0}, "no labels": {LABEL: np.nan}, "no feature": {}, "text": {"size": "big"}}[
        broken
    ]
    rows = rows.assign(**changes).drop(columns=["size"] if broken == "no feature" else [])
    rows.to_parquet(workspace.features / "holdout.parquet")
    gathered = gather_evidence(PARAMS, workspace)
    assert gathered.performance is not None
    assert gathered.performance.now is None
    performance = next(t for t in decide(gathered, PARAMS.decision).triggers if t.name == "performance")
    assert performance.fired is None


def test_the_drift_report_is_carried_with_what_it_rests_on(workspace: Workspace, crown: Callable[..., str]) -> None:
    digest = crown()
    domain = {"status": "drift", "sentence": "Told apart.", "auc": 0.8, "lower": 0.7, "limit": 0.65, "confidence": 0.99}
    found = {"verdict": "drift", "drifted": ["size"], "unknown": ["x"], "feature_count": 1, "calibrated": True}
    write_drift(workspace, champion=digest, domain=domain, **found)
    drift = gather_evidence(PARAMS, workspace).drift
    assert (drift.verdict, drift.drifted, drift.unknown, drift.feature_count) == ("drift", ("size",), ("x",), 1)
    assert (drift.domain, drift.domain_auc, drift.domain_lower, drift.domain_limit) == ("drift", 0.8, 0.7, 0.65)
    assert drift.calibrated is True


def test_earlier_windows_of_this_champion_count(workspace: Workspace, crown: Callable[..., str]) -> None:
    """Drift in two of three windows: the first only waits, the last fires."""
    digest = crown()
    outcomes = []
    for day, verdict in (("2020-02-23", "drift"), ("2020-03-01", "no_drift"), ("2020-03-08", "drift")):
        write_drift(workspace, champion=digest, verdict=verdict)
        params = Params.model_validate({**CONTENT, "as_of": day})
        remember(workspace, params)
        gathered = gather_evidence(params, workspace)
        decision = decide(gathered, params.decision)
        record_decision(decision, workspace, at=datetime.now(UTC))
        outcomes.append(decision.outcome)
    assert outcomes == ["skip", "skip", "retrain"]
    assert gathered.windows == tuple(
        PastWindow(
            as_of=datetime(2020, month, day, tzinfo=UTC),
            snapshot_sha256=gathered.snapshot_sha256,
            crossed={"performance": False, "drift": drifted},
        )
        for month, day, drifted in ((2, 23, True), (3, 1, False))
    )


def test_a_drift_report_of_another_champion_stops(workspace: Workspace, crown: Callable[..., str]) -> None:
    digest = crown()
    for stale in ({"champion": "f" * 64}, {"champion": None}, {"champion": digest, "verdict": "bootstrap"}):
        write_drift(workspace, **stale)
        with pytest.raises(ClearwayError, match=rf"the champion is {digest[:12]}: run scripts/check_drift\.py again"):
            gather_evidence(PARAMS, workspace)


def test_a_drift_report_from_before_a_bootstrap_stops(workspace: Workspace) -> None:
    write_drift(workspace, champion="f" * 64)
    with pytest.raises(ClearwayError, match="measured against champion ffffffffffff, but the champion is none"):
        gather_evidence(PARAMS, workspace)


@pytest.mark.parametrize(
    ("missing", "script"),
    [
        ("reports/drift.json", "check_drift.py"),
        ("reports/data_validation.json", "validate_data.py"),
        ("data/features/features.json", "build_features.py"),
        ("data/raw/snapshot.json", "ingest.py"),
        ("build/champion/champion.json", "fetch_champion.py"),
        ("build/past_decisions.json", "fetch_champion.py"),
    ],
)
def test_missing_evidence_stops_and_names_the_step(workspace: Workspace, missing: str, script: str) -> None:
    (workspace.root / missing).unlink()
    with pytest.raises(ClearwayError, match=f"{missing.split('/')[-1]} is missing: run scripts/{script}"):
        gather_evidence(PARAMS, workspace)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("reports/data_validation.json", {"verdict": "fine"}),
        ("reports/data_validation.json", []),
        ("reports/drift.json", {"verdict": "drift"}),
        ("data/features/features.json", {"rows": {"training": 3}}),
        ("data/features/features.json", {"rows": {"training": 3, "holdout": 1}, "answers_until": {"training": "soon"}}),
        ("data/features/features.json", []),
    ],
)
def test_damaged_evidence_stops_in_one_line(workspace: Workspace, path: str, content: Any) -> None:
    write_json(workspace.root / path, content)
    with pytest.raises(ClearwayError, match=f"{path.split('/')[-1]}.*again") as caught:
        gather_evidence(PARAMS, workspace)
    assert "\n" not in str(caught.value)


def test_an_odd_trigger_is_wrong_usage(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="CLEARWAY_TRIGGER"):
        gather_evidence(PARAMS, workspace, trigger="push\nretrain=true")


def test_the_report_is_the_same_bytes_for_the_same_evidence(workspace: Workspace) -> None:
    written = []
    for _ in range(2):
        decision = decide(gather_evidence(PARAMS, workspace), PARAMS.decision)
        write_decision(decision, workspace)
        written.append((workspace.reports / "decision.json").read_bytes())
    assert written[0] == written[1]
    report = read_json(workspace.reports / "decision.json")
    assert (report["retrain"], report["reasons"]) == (True, ["bootstrap"])
    assert type(decision).model_validate(json.loads(written[0])) == decision


@pytest.mark.parametrize(
    ("text", "forced"), [("true", True), ("True", True), ("false", False), ("", False), ("1", True)]
)
def test_the_force_flag_reads_what_github_sends(text: str, forced: bool) -> None:
    assert parse_force(text) is forced


def test_another_force_flag_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'yes please'"):
        parse_force("yes please")
