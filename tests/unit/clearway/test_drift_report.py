"""The edges of drift: what is read, what is written, and what stops it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from clearway.bundle import EvidenceManifest, keep, pack, payload_digest, verify
from clearway.calibration import Calibration
from clearway.champion import fetch_champion
from clearway.drift import DriftReport
from clearway.drift_reference import DriftReference, compare_with, reference_of
from clearway.drift_report import check_drift, remarks, terminal_table
from clearway.encoding import learn_schema
from clearway.errors import ClearwayError
from clearway.export import to_onnx, to_skops
from clearway.files import write_json
from clearway.ledger import GENESIS, Change, append
from clearway.lineage import Lineage
from clearway.model import Model, load_payload
from clearway.params import DomainParams, DriftParams, Params
from clearway.performance_estimate import fit_score_map
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
    write_json(made.features / "features.json", {"numeric": ["size"], "categorical": ["kind"]})
    return made


def payload(folder: Path) -> Model:
    """A model of size and kind, as training would store it."""
    past = rows(2_000)
    schema = learn_schema(past, ("kind",), ("size",))
    matrix = np.nan_to_num(schema.encode(past))
    estimator = LogisticRegression().fit(matrix, past["size"] > 0.4)
    folder.mkdir()
    (folder / "model.skops").write_bytes(to_skops(estimator))
    (folder / "model.onnx").write_bytes(to_onnx(estimator, 2))
    write_json(folder / "schema.json", schema.model_dump(mode="json"))
    write_json(folder / "features.json", {"definitions_sha256": "0" * 64})
    train = {"estimator": "sklearn.linear_model.LogisticRegression", "arguments": {}, "threads": 1}
    write_json(folder / "params.json", {"project": "toy", "seed": 1, "threshold": 0.5, "train": train})
    return load_payload(folder, payload_digest(folder))


def crown(workspace: Workspace, **evidence: bytes) -> str:
    """Make a bundle whose reference lies a deviation below the current rows, and deploy it."""
    known: dict[str, Any] = dict.fromkeys(("project", "role", "snapshot_sha256", "recipe_sha256", "trigger"), "x")
    known |= dict.fromkeys(("as_of", "git_commit", "lock_sha256"))
    known |= {"training_rows": 1, "labelled_rows": 1, "metrics": {"roc_auc": 0.9}, "reasons": [], "packages": {}}
    past, model = rows(2_000), payload(workspace.root / "payload")
    scores, labels = model.score(model.schema.encode(past)), (past["size"] > 0.4).astype("float64").to_numpy()
    write_reference(past, scores, workspace.root / "reference.parquet", labels=labels)
    held: dict[str, Path | bytes] = {
        "lineage.json": Lineage.model_validate(known).model_dump_json().encode(),
        "reference.parquet": workspace.root / "reference.parquet",
        "drift_calibration.json": Calibration(rows=2_000, features={}).model_dump_json().encode(),
        "score_map.json": fit_score_map(scores, labels).model_dump_json().encode(),
    }
    digest = keep(
        pack(workspace.root / "payload", {**held, **evidence}, workspace.root / "packed").path, workspace.bundles
    )
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
    assert terminal_table(report).row_count == 3


def test_the_report_holds_the_answers_the_whole_and_the_expected_performance(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    current = rows(500, shift=1.0)
    half_known = current.assign(label=np.where(current.index < 250, current["size"] > 0.4, np.nan))
    half_known.to_parquet(workspace.features / "current.parquet")
    report = check_drift(PARAMS, workspace)
    score, label = report.outputs
    assert (score.name, score.status, score.n_current) == ("score", "drift", 500)
    assert (label.name, label.status, label.n_current, label.missing_current) == ("label", "drift", 250, 0.0)
    assert report.domain is not None
    assert (report.domain.status, report.domain.importance[0].name) == ("drift", "size")
    assert report.estimate is not None
    assert report.estimate.metrics["recall"] > 0.95
    assert report.estimate.metrics["accuracy"] == pytest.approx(1.0, abs=0.1)
    assert report.estimate.holdout == {"roc_auc": 0.9}
    assert DriftReport.model_validate_json((workspace.reports / "drift.json").read_text()) == report
    page = (workspace.reports / "drift.html").read_text()
    for said in ("<svg", "domain classifier", "covariate shift", report.domain.sentence, f"All {report.tests} tests"):
        assert said in page, said
    assert remarks(report) == (report.domain.sentence, report.estimate.sentence)


def test_the_domain_classifier_is_asked_only_where_it_is_enabled(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    silent = PARAMS.model_copy(update={"drift": DriftParams(domain=DomainParams(enabled=False))})
    assert check_drift(silent, workspace).domain is None


def test_rows_without_a_feature_of_the_champion_have_an_unknown_score(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    rows(500).drop(columns="size").to_parquet(workspace.features / "current.parquet")
    report = check_drift(PARAMS, workspace)
    assert [feature.status for feature in report.outputs] == ["unknown"]
    assert report.unknown == ("size",)
    assert report.estimate is not None
    assert "the current rows lack size" in report.estimate.sentence


def test_a_champion_that_cannot_read_a_row_of_now_is_compared_all_the_same(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    text = rows(500).assign(size=lambda now: np.where(now["size"] > 0, "big", "small"))
    text.to_parquet(workspace.features / "current.parquet")
    write_json(workspace.features / "features.json", {"numeric": [], "categorical": ["size", "kind"]})
    report = check_drift(PARAMS, workspace)
    assert (report.verdict, report.drifted) == ("drift", ("size",))
    assert [feature.status for feature in report.outputs] == ["unknown"]
    assert report.estimate is not None
    assert "the champion cannot read the current rows (feature size is not numeric" in report.estimate.sentence


def test_what_is_drawn_is_what_was_compared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    hours = pd.date_range("2020-01-01", periods=2_000, freq="h", tz="UTC")
    past = rows(2_000).assign(prediction_time=hours, score=0.5)
    monkeypatch.setattr("clearway.drift_reference.read_reference", lambda _: past)
    rows(500, shift=1.0).assign(prediction_time=hours[0]).to_parquet(workspace.features / "current.parquet")
    drawn: list[int] = []
    monkeypatch.setattr("clearway.drift_report._drawings", lambda _, *sides: drawn.extend(map(len, sides)) or [])
    report = check_drift(PARAMS.model_copy(update={"drift": DriftParams(season=("hour",))}), workspace)
    assert drawn == [report.rows_reference, report.rows_current] == [84, 500]


def test_a_bundle_of_before_is_compared_without_calibration(workspace: Workspace) -> None:
    digest = crown(workspace)
    bundle = verify(workspace.bundles / digest, digest)
    files = {n: h for n, h in bundle.evidence_manifest.files.items() if n in ("lineage.json", "reference.parquet")}
    old = replace(bundle, evidence_manifest=EvidenceManifest(digest=digest, files=files))
    past = reference_of(old)
    assert (past.calibration, past.score_map) == (None, None)
    assert past.rows.columns.tolist() == ["size", "kind", "score", "label"]


@pytest.mark.parametrize("name", ["drift_calibration.json", "score_map.json"])
def test_damaged_evidence_stops_and_is_named(workspace: Workspace, name: str) -> None:
    crown(workspace, **{name: b"{}"})
    fetch_champion(PARAMS, workspace)
    with pytest.raises(ClearwayError, match=rf"{name} is no .*: train again"):
        check_drift(PARAMS, workspace)
    assert not workspace.drift_result.exists()


def test_a_season_is_compared_with_its_like_or_not_at_all() -> None:
    hours = pd.date_range("2020-01-01", periods=24 * 60, freq="h", tz="UTC")
    past = pd.DataFrame({"size": np.sin(hours.hour.to_numpy() / 4), "prediction_time": hours, "score": 0.5})
    nights = past[past["prediction_time"].dt.hour < 6].drop(columns="score")
    seasonal = DriftParams(season=("hour",))
    reference = DriftReference(past, None, None)
    assert compare_with(reference, nights, ["size"], [], DriftParams(), 1).verdict == "drift"
    like = compare_with(reference, nights, ["size"], [], seasonal, 1)
    assert (like.verdict, like.rows_reference) == ("no_drift", 360)
    assert "360 reference rows of the same season" in like.season
    monthly = DriftParams(season=("month",))
    later = nights.assign(prediction_time=nights["prediction_time"] + pd.Timedelta(days=150))
    unlike = compare_with(reference, later, ["size"], [], monthly, 1)
    assert (unlike.verdict, unlike.features) == ("unknown", ())
    assert "not to be had" in unlike.sentence


def test_a_champion_without_a_reference_stops(workspace: Workspace) -> None:
    crown(workspace)
    fetch_champion(PARAMS, workspace)
    (workspace.champion / "bundle" / "evidence" / "reference.parquet").unlink()
    with pytest.raises(ClearwayError, match=r"reference\.parquet is missing"):
        check_drift(PARAMS, workspace)
    assert not workspace.drift_result.exists()
