"""A model without ONNX, stored by joblib, goes all the way; a pickle bomb in its place goes off nowhere."""

import pickle
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live_server import running, until
from test_model_gates_bind import flat_project, judge

from clearway.bundle import BundleError, keep, pack, verify
from clearway.champion import fetch_champion
from clearway.deployment import deploy, find_bundle, reconcile
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.model import load_model
from clearway.monitor import monitor
from clearway.packaging import package
from clearway.params import Params, SignaturePolicy, SigningParams
from clearway.registry import register
from clearway.serving.loading import load_version
from clearway.signing import check_signature
from clearway.training import train
from clearway.trust import trust_of
from clearway.workspace import Workspace

OWN_CLASS = """
from sklearn.ensemble import HistGradientBoostingClassifier

class Careful(HistGradientBoostingClassifier):
    "A class of the project's own: neither ONNX nor the allow-list knows it."
"""
WHO = {"actor": "tester", "reason": "a test"}


class Bomb:
    """Pickled, it leaves a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.mark,)


def write_keys(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "private.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "public.pem").write_bytes(key.public_key().public_bytes(pem, spki))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Params, Workspace, str]]:
    """The project, trained, judged and packaged, and the digest."""
    root = tmp_path_factory.mktemp("careful")
    (root / "careful.py").write_text(OWN_CLASS)
    train_with = {"estimator": "careful.Careful", "format": "joblib", "arguments": {"max_iter": 15}}
    gates: dict[str, Any] = {"through_server": True, "latency_ms": 2000, "max_memory_mb": 2000, "resamples": 100}
    gates["slices"] = {"discover": False}
    sys.path.append(str(root))  # as every script does for the folder of its project
    try:
        params, workspace = flat_project(root, train=train_with, trust={"joblib": True}, gates=gates)
        train(params, workspace)
        validation = judge(params, workspace)
        assert validation.verdict.verdict == "passed", validation.verdict.reason
        digest = package(params, workspace).digest
        assert digest is not None
        yield params, workspace, digest
    finally:
        sys.path.remove(str(root))
        sys.modules.pop("careful", None)


@pytest.fixture
def project(made: tuple[Params, Workspace, str], tmp_path: Path) -> tuple[Params, Workspace, str]:
    """A copy, to be damaged."""
    params, workspace, digest = made
    shutil.copytree(workspace.root, tmp_path / "project")
    return params, Workspace(tmp_path / "project"), digest


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Where a bomb would leave its mark: nothing may be there in the end."""
    path = tmp_path / "went off"
    yield path
    assert not path.exists()


def plant(folder: Path, mark: Path) -> None:
    target = folder / "model.joblib"
    assert target.is_file()
    target.write_bytes(pickle.dumps(Bomb(mark)))


def go_live(workspace: Workspace, digest: str, params: Params) -> None:
    """What a deployment leaves in the ledger and the routing table, without a server."""
    folder = workspace.environment("production")
    change = Change(action="deploy", stable=digest, **WHO)
    append(folder, "production", change, expected_head=head_hash(read_ledger(folder, "production")))
    reconcile(params, workspace, "production")


def test_every_gate_binds_and_every_report_says_that_it_is_slow(made: tuple[Params, Workspace, str]) -> None:
    _, workspace, digest = made
    report = read_json(workspace.reports / "model_validation.json")
    gates = {gate["name"]: gate for gate in report["gates"]}
    parity = gates["onnx_parity"]
    assert parity["status"] == "pass"
    assert parity["detail"].startswith("no ONNX, so no fast path: careful.Careful cannot be exported to ONNX (")
    assert {"floor_roc_auc", "noise_robustness", "memory", "served_latency_p95_ms"} <= gates.keys()
    assert gates["memory"]["estimate"] > 0
    assert gates["served_latency_p95_ms"]["n"] > 100
    bundle = verify(workspace.bundles / digest, digest)
    assert sorted(bundle.manifest.payload) == ["features.json", "model.joblib", "params.json", "schema.json"]
    card = bundle.evidence("model_card.md").read_text()
    assert "served by: scikit-learn: it has no ONNX, so answers are slower" in card
    assert "scikit-learn, slower than ONNX" in (workspace.reports / "model_validation.html").read_text()


def test_what_is_packaged_is_signed_where_it_is_built_and_where_it_is_kept(
    project: tuple[Params, Workspace, str],
) -> None:
    params, workspace, digest = project
    write_keys(workspace.root)
    params = params.model_copy(update={"signing": SigningParams(method="key", key="private.pem")})
    assert package(params, workspace).digest == digest
    policy = SignaturePolicy(policy="required", keys=("public.pem",))
    for folder in (workspace.bundle / "challenger", workspace.bundles / digest):
        assert check_signature(verify(folder, digest), policy, "production", workspace.root) == ""
    baseline = read_json(workspace.bundle / "outcome.json")["baseline_digest"]
    assert (workspace.bundles / baseline / "model.sig").is_file()

    write_keys(workspace.root)  # the next key: what was kept with a signature of the last one is signed again
    assert package(params, workspace).digest == digest
    for each in (digest, baseline):
        assert check_signature(verify(workspace.bundles / each, each), policy, "production", workspace.root) == ""


def test_no_password_is_packaged(project: tuple[Params, Workspace, str]) -> None:
    params, workspace, _ = project
    text = workspace.params_file.read_text()
    workspace.params_file.write_text(text + "# sql://me:hunter2@host/x?sig=hunter2\n")
    (workspace.root / "dvc.lock").write_text("url: sql://me:hunter2@host/x\n")
    package(params, workspace)
    evidence = workspace.bundle / "challenger" / "evidence"
    assert (evidence / "params.yaml").read_text() == text + "# sql://***@host/x?sig=***\n"
    assert (evidence / "dvc.lock").read_text() == "url: sql://***@host/x\n"


@pytest.mark.parametrize(
    "golden",
    ["[]", "{}", '{"rows": [], "scores": []}', '{"rows": [1], "scores": [1.0]}', '{"rows": [{}], "scores": "1"}'],
)
def test_no_version_answers_that_was_not_tried(project: tuple[Params, Workspace, str], golden: str) -> None:
    """Evidence is what its own manifest says, and nothing more: the digest does not cover it."""
    params, workspace, digest = project
    made = workspace.bundles / digest
    evidence = {path.name: path.read_bytes() for path in (made / "evidence").glob("*.*")}
    pack(made / "payload", {**evidence, "golden.json": golden.encode()}, workspace.root / "forged" / digest)
    trust = trust_of(params, workspace)
    assert load_version(workspace.bundles, digest, 1e-5, trust).digest == digest
    with pytest.raises(ClearwayError, match=r"fails its warm-up: .*golden\.json holds no golden rows"):
        load_version(workspace.root / "forged", digest, 1e-5, trust)


def test_a_bomb_does_not_go_off_at_the_gates(project: tuple[Params, Workspace, str], mark: Path) -> None:
    params, workspace, _ = project
    plant(workspace.model, mark)
    with pytest.raises(BundleError, match="build/model has changed since it was trained"):
        judge(params, workspace)
    with pytest.raises(BundleError, match="build/model has changed since it was trained"):
        package(params, workspace)


def test_a_bomb_does_not_go_off_on_the_way_to_production(project: tuple[Params, Workspace, str], mark: Path) -> None:
    params, workspace, digest = project
    plant(workspace.bundle / "challenger" / "payload", mark)
    with pytest.raises(BundleError, match=r"challenger/payload/model\.joblib has changed"):
        register(params, workspace)
    plant(workspace.bundles / digest / "payload", mark)
    with pytest.raises(BundleError, match=rf"{digest}/payload/model\.joblib has changed"):
        deploy(params, workspace, "production", digest, **WHO)
    assert not read_ledger(workspace.environment("production"), "production")


def test_a_whole_bundle_around_a_bomb_is_known_to_nobody(project: tuple[Params, Workspace, str], mark: Path) -> None:
    """Its digest is right, as that of any bundle that its maker gives along: it opens nothing."""
    params, workspace, _ = project
    plant(workspace.model, mark)
    stranger = pack(workspace.model, {}, workspace.root / "stranger")
    keep(stranger.path, workspace.bundles)
    with pytest.raises(ClearwayError, match=rf"neither a ledger nor the last .* knows digest {stranger.digest}"):
        deploy(params, workspace, "production", stranger.digest, **WHO)
    with pytest.raises(ClearwayError, match="neither a ledger nor the last training"):
        load_model(workspace.bundles / stranger.digest, stranger.digest, trust_of(params, workspace))
    assert not read_ledger(workspace.environment("production"), "production")
    strict = params.model_copy(update={"trust": params.trust.model_copy(update={"joblib": False})})
    with pytest.raises(ClearwayError, match=r"model\.joblib is a pickle, refused: params\.yaml: trust\.joblib is"):
        deploy(strict, workspace, "production", find_bundle(workspace, project[2]).digest, **WHO)


def test_it_is_served_and_a_bomb_in_its_place_is_not(project: tuple[Params, Workspace, str], mark: Path) -> None:
    params, workspace, digest = project
    go_live(workspace, digest, params)
    with running(workspace, "production") as server:
        status, answer, _ = server.predict({"size": 0.1, "weight": 2.0, "noise": 0.0, "colour": "red"})
        assert (status, answer["version"]) == (200, digest)
        assert server.state()["runtimes"] == {digest: "scikit-learn"}
        assert server.ask("GET", "/v2/health/ready")[1] == {"ready": True, "runtime": "scikit-learn"}
        assert "it is served by scikit-learn, slower" in (workspace.root / "server.log").read_text()
    plant(workspace.bundles / digest / "payload", mark)
    (workspace.environment("production") / "routing.json").rename(workspace.root / "routing.json")
    with running(workspace, "production") as server:  # a restart, which finds the table once it listens
        (workspace.root / "routing.json").rename(workspace.environment("production") / "routing.json")
        until(lambda: "model.joblib has changed" in (server.state()["error"] or ""), "the refusal")
        assert server.ask("GET", "/v2/health/ready")[0] == 503
    with pytest.raises(ClearwayError, match=r"model\.joblib has changed.*the champion of production is damaged"):
        fetch_champion(params, workspace)
    with pytest.raises(BundleError, match=r"model\.joblib has changed"):
        monitor(params, workspace, "production", datetime(2026, 1, 1, tzinfo=UTC))
