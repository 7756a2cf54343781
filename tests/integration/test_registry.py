"""MLflow, for real, on SQLite in a temporary folder: one run and one version per bundle, and its aliases."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression

from clearway.bundle import keep, pack
from clearway.deployment import BOOTSTRAP_REASON
from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.errors import ClearwayError
from clearway.export import to_onnx, to_skops
from clearway.files import write_json, write_text
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.lineage import Lineage
from clearway.model import load_model
from clearway.params import Params, load_params
from clearway.reconciliation import examine, repair
from clearway.registry import champion_digest, register, set_champion, tracking_uri
from clearway.workspace import Workspace

SCHEMA = InputSchema(
    features=(NumericFeature(name="size"), CategoricalFeature(name="colour", categories=("green", "red")))
)
ODD = ("UA", "ua", "UA/é %", "", "..", "[2,4)", "x" * 400)
VALIDATION: dict[str, Any] = {
    "verdict": "passed",
    "reason": "all gates passed",
    "rows": 50,
    "metrics": {"challenger": {"roc_auc": 0.8}, "champion": {"roc_auc": 0.7}, "baseline": None},
    "gates": [],
    "measured": {
        "metric": "roc_auc",
        "intervals": {},
        "importances": [],
        "parts": [
            {"column": "carrier", "value": value, "rows": 5, "metrics": {"challenger": {"f1": place}}, "interval": None}
            for place, value in enumerate(ODD)
        ],
    },
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making its tables takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def seeded(tmp_path: Path, database: Path) -> tuple[Params, Workspace]:
    """A project whose MLflow database is there, and empty."""
    params, workspace = project(tmp_path)
    workspace.var.mkdir()
    shutil.copy(database, workspace.var / "mlflow.db")
    return params, workspace


def project(root: Path, tracking: str | None = None) -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "registry": {"tracking_uri": tracking},
        "environments": {"production": {"port": 0}},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(root)
    return load_params(workspace.params_file), workspace


def challenger(
    workspace: Workspace, seed: int = 1, target: Path | None = None, validation: dict[str, Any] | None = None
) -> str:
    """A bundle as the package stage leaves it; the registry reads its evidence and never its model."""
    payload = workspace.build / "model"
    train = {"estimator": "package.Class", "arguments": {"depth": 3}, "threads": 1}
    write_json(payload / "params.json", {"project": "toy", "seed": seed, "threshold": 0.5, "train": train})
    write_text(payload / "model.onnx", f"network {seed}")
    write_json(payload / "schema.json", SCHEMA.model_dump(mode="json"))
    lineage = Lineage(
        project="toy",
        role="challenger",
        as_of="2013-07-01T00:00:00Z",  # type: ignore[arg-type]
        snapshot_sha256="d" * 64,
        recipe_sha256="e" * 64,
        training_rows=100,
        labelled_rows=150,
        metrics={"roc_auc": 0.8},
        git_commit="c" * 40,
        lock_sha256="f" * 64,
        trigger="schedule",
        reasons=("drift", "schedule"),
        packages={},
    )
    training = {"peak_memory_mb": 90.0, "challenger": {"training_metrics": {"roc_auc": 0.9}, "seconds": 1.5}}
    evidence = {
        "lineage.json": lineage.model_dump_json().encode(),
        "training.json": json.dumps(training).encode(),
        "params.yaml": workspace.params_file,
        "model_card.md": b"---\nlicense: x\n---\n\n# toy\n\n## Gates\n\npassed\n",
        "model_validation.json": json.dumps(VALIDATION if validation is None else validation).encode(),
        "model_validation.html": b"<p>report</p>",
        "plots/roc.csv": b"fpr,tpr\n0,0\n",
        "plots/roc.svg": b"<svg/>",
    }
    bundle = pack(payload, evidence, target or workspace.bundle / "challenger")
    write_json(
        workspace.bundle / "outcome.json", {"verdict": "passed", "digest": bundle.digest, "baseline_digest": None}
    )
    return bundle.digest


def test_a_bundle_becomes_one_run_and_one_version_with_its_tags(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    digest = challenger(workspace)
    made = register(params, workspace)
    assert made is not None
    assert (made.model, made.version, made.digest, made.created) == ("toy", "1", digest, True)
    assert (workspace.var / "mlflow.db").is_file()

    client = MlflowClient(tracking_uri(params, workspace))
    version = client.get_model_version_by_alias("toy", "challenger")
    assert (int(version.version), version.tags["digest"]) == (1, digest)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["arguments.depth"] == "3"
    assert run.data.params["estimator"] == "package.Class"
    assert run.data.metrics["holdout_roc_auc"] == 0.8
    assert run.data.metrics["training_seconds"] == 1.5
    expected = {
        "git_commit": "c" * 40,
        "data_sha256": "d" * 64,
        "lock_sha256": "f" * 64,
        "digest": digest,
        "trigger": "schedule",
        "reasons": "drift, schedule",
        "as_of": "2013-07-01T00:00:00+00:00",
    }
    assert expected.items() <= run.data.tags.items()
    downloaded = Path(client.download_artifacts(run.info.run_id, "model/bundle", str(tmp_path)))
    assert (downloaded / "payload" / "model.onnx").read_text() == "network 1"
    reports = [item.path for item in client.list_artifacts(run.info.run_id, "reports")]
    assert reports == ["reports/model_card.md", "reports/model_validation.html", "reports/plots"]
    plots = [item.path for item in client.list_artifacts(run.info.run_id, "reports/plots")]
    assert plots == ["reports/plots/roc.csv", "reports/plots/roc.svg"]
    assert run.data.metrics["holdout_champion_roc_auc"] == 0.7
    slices = {key: value for key, value in run.data.metrics.items() if key.startswith("slice/carrier/")}
    assert sorted(value for key, value in slices.items() if "/f1" in key) == list(range(len(ODD)))
    assert run.data.params["gates.champion.margin"] == "0.01"
    assert version.description == run.data.tags["mlflow.note.content"] == "# toy\n\n## Gates\n\npassed\n"
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == "d" * 36
    assert json.loads(used.dataset.source)["snapshot_sha256"] == "d" * 64
    assert (workspace.var / "mlartifacts" / "toy").is_dir()


def test_the_same_digest_is_registered_once_and_aliases_move(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    first = challenger(workspace)
    register(params, workspace)
    again = register(params, workspace)
    assert again is not None
    assert (again.version, again.created) == ("1", False)

    challenger(workspace, target=workspace.bundles / first)
    second = challenger(workspace, seed=2)
    register(params, workspace)
    promoted = set_champion(params, workspace, first)
    assert (promoted.version, promoted.created) == ("1", False)
    client = MlflowClient(tracking_uri(params, workspace))
    assert client.get_model_version_by_alias("toy", "challenger").tags["digest"] == second
    assert client.get_model_version_by_alias("toy", "champion").tags["digest"] == first
    assert len(client.search_model_versions("name = 'toy'")) == 2
    experiment = client.get_experiment_by_name("toy")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_the_alias_is_compared_with_the_ledger_and_repaired_towards_it(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    folder = workspace.environment("production")
    first, second = (challenger(workspace, seed, workspace.build / f"{seed}") for seed in (1, 2))
    for digest, seed in ((first, 1), (second, 2)):
        keep(workspace.build / f"{seed}", workspace.bundles, digest)

    def enter(stable: str, reason: str) -> None:
        change = Change(action="deploy", stable=stable, actor="ann", reason=reason)
        append(folder, "production", change, expected_head=head_hash(read_ledger(folder, "production")))

    def said() -> tuple[bool, str]:
        (found,) = examine(params, workspace, "production", ("alias",))
        return found.agrees, found.sentence

    enter(first, BOOTSTRAP_REASON)
    assert said() == (True, "there is no champion yet")
    enter(second, "better")
    assert said() == (False, f"champion is nobody, but the ledger says {second[:12]}")
    set_champion(params, workspace, first)
    assert said() == (False, f"champion is {first[:12]}, but the ledger says {second[:12]}")
    repair(params, workspace, "production", ("alias",))
    assert said() == (True, f"champion is {second[:12]}, as the ledger says")
    assert champion_digest(params, workspace) == second
    away = params.model_copy(update={"registry": params.registry.model_copy(update={"tracking_uri": "nowhere://x"})})
    assert not examine(away, workspace, "production", ("alias",))[0].agrees, "what cannot be asked does not agree"


def test_a_run_without_a_version_is_taken_up_again(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    challenger(workspace)
    register(params, workspace)
    client = MlflowClient(tracking_uri(params, workspace))
    run = client.get_model_version("toy", "1").run_id
    client.delete_model_version("toy", "1")
    made = register(params, workspace)
    assert made is not None
    assert made.created
    assert client.get_model_version("toy", made.version).run_id == run


def test_a_killed_attempt_counts_for_nothing_and_the_next_one_completes(seeded: tuple[Params, Workspace]) -> None:
    """As a kill -9 leaves it: a run with its digest, some of its metrics and artifacts, that never ended."""
    params, workspace = seeded
    digest = challenger(workspace)
    client = MlflowClient(tracking_uri(params, workspace))
    experiment = client.create_experiment("toy", artifact_location=(workspace.var / "mlartifacts").as_uri())
    half = client.create_run(experiment, tags={"digest": digest}).info.run_id
    client.log_text(half, "half", "model/MLmodel")
    made = register(params, workspace)
    assert made is not None
    assert made.created
    version = client.get_model_version("toy", made.version)
    assert version.run_id != half
    assert client.get_run(half).info.status == "KILLED"
    assert len(client.search_model_versions("name = 'toy'")) == 1
    again = register(params, workspace)
    assert again is not None
    assert (again.version, again.created) == (made.version, False)


def test_more_metrics_and_params_than_one_batch_takes(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    parts = [
        {"column": "c", "value": str(i), "rows": 9, "metrics": {"challenger": {"f1": i}}, "interval": None}
        for i in range(700)
    ]
    challenger(workspace, validation={**VALIDATION, "measured": {**VALIDATION["measured"], "parts": parts}})
    made = register(params, workspace)
    assert made is not None
    client = MlflowClient(tracking_uri(params, workspace))
    run = client.get_run(client.get_model_version("toy", made.version).run_id)
    assert len(run.data.metrics) > 1400
    assert len(run.data.params) > 100
    assert run.data.metrics["slice/c/699/f1"] == 699


def test_mlflow_loads_a_registered_bundle_once_it_is_verified(
    seeded: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = seeded
    random = np.random.default_rng(1)
    matrix = np.column_stack([random.normal(size=200), random.integers(0, 2, 200)]).astype(np.float32)
    estimator = LogisticRegression().fit(matrix, (matrix[:, 0] + matrix[:, 1] > 0.5).astype(int))
    payload = workspace.build / "model"
    payload.mkdir(parents=True)
    (payload / "model.skops").write_bytes(to_skops(estimator))
    write_json(payload / "features.json", {"definitions_sha256": "0" * 64})
    digest = challenger(workspace)
    (payload / "model.onnx").write_bytes(to_onnx(estimator, 2))
    evidence = workspace.bundle / "challenger" / "evidence"
    kept = {str(path.relative_to(evidence)): path.read_bytes() for path in evidence.rglob("*") if path.is_file()}
    digest = pack(payload, kept, workspace.bundle / "challenger").digest
    write_json(workspace.bundle / "outcome.json", {"verdict": "passed", "digest": digest, "baseline_digest": None})
    made = register(params, workspace)
    assert made is not None

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(params, workspace))
    rows = pd.DataFrame({"size": [0.5, np.nan, 3.0], "colour": ["red", "green", None]})
    loaded = mlflow.pyfunc.load_model("models:/toy@challenger")
    answers = loaded.predict(rows)
    expected = load_model(workspace.bundle / "challenger", digest).score(SCHEMA.encode(rows))
    np.testing.assert_array_equal(answers["score"], expected)
    np.testing.assert_array_equal(answers["answer"], expected >= 0.5)
    with pytest.raises(ClearwayError, match="expected digest 0000"):
        mlflow.pyfunc.load_model("models:/toy@challenger", model_config={"digest": "0" * 64})
    (network,) = (workspace.var / "mlartifacts").rglob("model.onnx")
    network.write_bytes(network.read_bytes()[:-1] + b"\0")
    with pytest.raises(ClearwayError, match=r"payload/model\.onnx has changed"):
        mlflow.pyfunc.load_model("models:/toy@challenger")


def test_a_kept_bundle_that_was_never_registered_can_become_champion(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    digest = challenger(workspace)
    workspace.bundles.mkdir()
    (workspace.bundle / "challenger").rename(workspace.bundles / digest)
    assert set_champion(params, workspace, digest).created
    client = MlflowClient(tracking_uri(params, workspace))
    assert client.get_model_version_by_alias("toy", "champion").tags["digest"] == digest


def test_a_damaged_bundle_is_not_registered(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    challenger(workspace)
    (workspace.bundle / "challenger" / "payload" / "model.onnx").write_text("other")
    with pytest.raises(ClearwayError, match=r"model\.onnx has changed"):
        register(params, workspace)
    assert not (workspace.var / "mlflow.db").exists()


def test_evidence_that_is_none_is_not_blamed_on_mlflow(seeded: tuple[Params, Workspace]) -> None:
    params, workspace = seeded
    challenger(workspace, validation={"gates": [1], "metrics": {"champion": 3}})
    with pytest.raises(ClearwayError, match=r"evidence is not what the line writes \(.*package_model\.py again"):
        register(params, workspace)
    assert MlflowClient(tracking_uri(params, workspace)).get_experiment_by_name("toy") is None


def test_nothing_that_was_rejected_is_registered(tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    write_json(workspace.bundle / "outcome.json", {"verdict": "rejected", "digest": None, "baseline_digest": None})
    assert register(params, workspace) is None
    assert not workspace.var.exists()


def test_the_environment_wins_over_params_and_params_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = project(tmp_path, tracking="http://from-params")
    assert tracking_uri(params, workspace) == "http://from-params"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert tracking_uri(params, workspace) == "http://from-environment"


def test_a_server_that_is_away_is_one_line_naming_it_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:sec@ret@127.0.0.1:{port}/?token=secret")
    params, workspace = project(tmp_path)
    challenger(workspace)
    started = time.monotonic()
    with pytest.raises(ClearwayError, match=rf"MLflow at http://127.0.0.1:{port}/\?token=\*\*\* failed") as caught:
        register(params, workspace)
    assert time.monotonic() - started < 60
    assert "secret" not in str(caught.value)
    assert "ret@" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[bad")
    params, workspace = project(tmp_path)
    challenger(workspace)
    with pytest.raises(ClearwayError, match=r"MLflow at http://\[bad failed"):
        register(params, workspace)
