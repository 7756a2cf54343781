"""A signature says who stood behind a bundle, in a format that the public tool knows; each refusal says what to do."""

import asyncio
import base64
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clearway.bundle import SIGNATURE, Bundle, BundleError, keep, pack, verify
from clearway.deployment import deploy, reconcile, rollback
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import Change, append, head_hash, read_ledger
from clearway.params import Params, SignaturePolicy, SigningParams, load_params
from clearway.serving.state import Follower
from clearway.signing import SignatureError, check_signature, sign, sign_kept, signed_digest
from clearway.workspace import Workspace

KEY = SigningParams(method="key", key="private.pem")
SECRET = "a password of nobody"


def write_keys(folder: Path, name: str = "", password: str | None = None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}private.pem").write_bytes(key.private_bytes(pem, pkcs8, locked))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / f"{name}public.pem").write_bytes(key.public_key().public_bytes(pem, spki))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_keys(tmp_path)
    return make(tmp_path, b"network")


def make(root: Path, network: bytes) -> Bundle:
    payload = root / "payload"
    payload.mkdir(exist_ok=True)
    (payload / "model.onnx").write_bytes(network)
    (payload / "schema.json").write_text("{}")
    return pack(payload, {"lineage.json": b"{}"}, root / "bundle")


def policy(how: str = "required", *keys: str) -> SignaturePolicy:
    return SignaturePolicy(policy=how, keys=keys or ("public.pem",))  # type: ignore[arg-type]


def check(bundle: Bundle, how: str = "required", *keys: str) -> str:
    return check_signature(bundle, policy(how, *keys), "production", bundle.path.parent)


def test_a_signed_bundle_is_accepted_and_still_is_what_its_digest_says(bundle: Bundle, tmp_path: Path) -> None:
    before = verify(bundle.path, bundle.digest)
    assert sign(bundle, KEY, tmp_path)
    assert verify(bundle.path, bundle.digest) == before, "neither digest nor evidence knows of the signature"
    assert signed_digest((bundle.path / SIGNATURE).read_bytes()) == bundle.digest
    assert check(bundle) == ""


def test_the_public_tool_verifies_it(bundle: Bundle, tmp_path: Path) -> None:
    from model_signing import verifying

    sign(bundle, KEY, tmp_path)
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "public.pem")
    config.verify(bundle.payload, bundle.path / SIGNATURE)
    (bundle.payload / "extra").write_bytes(b"")
    with pytest.raises(ValueError, match="extra"):
        config.verify(bundle.payload, bundle.path / SIGNATURE)


def test_nothing_is_signed_unless_asked(bundle: Bundle, tmp_path: Path) -> None:
    assert not sign(bundle, SigningParams(), tmp_path)
    assert not (bundle.path / SIGNATURE).exists()
    assert check_signature(bundle, SignaturePolicy(), "production", tmp_path) == ""


def refused(bundle: Bundle, why: str, *keys: str) -> None:
    """By ``required`` with the file, the environment and the way out; by ``warn`` in words."""
    with pytest.raises(SignatureError, match=why) as caught:
        check(bundle, "required", *keys)
    said = str(caught.value)
    assert str(bundle.path / SIGNATURE) in said
    assert "environments.production.signature.policy is required: sign bundle" in said
    assert "scripts/sign.py" in said
    assert "\n" not in said
    assert "policy is warn" in check(bundle, "warn", *keys)


def test_no_signature_is_refused(bundle: Bundle) -> None:
    refused(bundle, "there is no signature")


def test_a_signature_by_another_key_is_refused_unless_one_of_the_keys_fits(bundle: Bundle, tmp_path: Path) -> None:
    write_keys(tmp_path, "other-")
    sign(bundle, KEY, tmp_path)
    refused(bundle, r"is of nobody who is trusted \(other-public\.pem: another key made it\)", "other-public.pem")
    refused(bundle, r"\(missing\.pem: there is no such file\)", "missing.pem")
    assert check(bundle, "required", "other-public.pem", "public.pem") == ""


def test_a_signature_of_another_digest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    sign(bundle, KEY, tmp_path)
    content = (bundle.path / SIGNATURE).read_bytes()
    other = make(tmp_path, b"another network")
    (other.path / SIGNATURE).write_bytes(content)
    refused(other, f"is a signature of digest {bundle.digest}, expected {other.digest}")


def tampered(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The signature with its statement changed."""
    document = json.loads(content)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(document).encode()


def test_a_statement_changed_to_fit_another_payload_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    sign(bundle, KEY, tmp_path)
    content = (bundle.path / SIGNATURE).read_bytes()
    other = make(tmp_path, b"another network")

    def fit(statement: dict[str, Any]) -> None:
        for resource in statement["predicate"]["resources"]:
            resource["digest"] = other.manifest.payload[resource["name"]]

    (other.path / SIGNATURE).write_bytes(tampered(content, fit))
    assert signed_digest((other.path / SIGNATURE).read_bytes()) == other.digest
    refused(other, r"public\.pem: what was signed has been changed since")


def test_bytes_that_are_no_signature_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    sign(bundle, KEY, tmp_path)
    content = (bundle.path / SIGNATURE).read_bytes()
    twice = content.replace(b'{"mediaType"', b'{"mediaType": "x", "mediaType"', 1)
    foreign = tampered(content, lambda statement: statement.update(predicateType="https://example.org/other"))
    for wrong in (b"", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000, twice, foreign, content[:-9]):
        (bundle.path / SIGNATURE).write_bytes(wrong)
        refused(bundle, "is no signature in the format of OpenSSF model signing")


def test_a_signature_is_a_plain_file_of_a_small_size(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.path / SIGNATURE
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(BundleError, match=r"model\.sig has 1,048,577 bytes: expected at most 1,048,576"):
        verify(bundle.path, bundle.digest)
    path.unlink()
    path.symlink_to(tmp_path / "public.pem")
    with pytest.raises(BundleError, match=r"model\.sig: expected a file, found a symbolic link"):
        verify(bundle.path, bundle.digest)


def test_a_signature_made_later_reaches_the_kept_bundle_and_stays(bundle: Bundle, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    keep(bundle.path, bundles)
    sign(bundle, KEY, tmp_path)
    keep(bundle.path, bundles)
    kept = verify(bundles / bundle.digest, bundle.digest)
    assert check_signature(kept, policy(), "production", tmp_path) == ""
    (bundle.path / SIGNATURE).unlink()
    keep(bundle.path, bundles)
    assert check_signature(kept, policy(), "production", tmp_path) == ""
    assert [path.name for path in bundles.iterdir()] == [bundle.digest]


def test_a_key_in_the_environment_leaves_no_copy_behind(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keys(tmp_path, password=SECRET)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("CLEARWAY_SIGNING_KEY", (tmp_path / "private.pem").read_text())
    monkeypatch.setenv("CLEARWAY_SIGNING_PASSWORD", SECRET)
    (tmp_path / "private.pem").unlink()
    assert sign(bundle, SigningParams(method="key"), tmp_path)
    assert check(bundle) == ""
    assert list((tmp_path / "tmp").iterdir()) == []
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in bundle.path.rglob("*") if path.is_file())
    assert stat.S_IMODE((bundle.path / SIGNATURE).stat().st_mode) == 0o644


def test_an_unusable_key_is_named_and_never_repeated(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLEARWAY_SIGNING_KEY", raising=False)
    monkeypatch.delenv("CLEARWAY_SIGNING_PASSWORD", raising=False)
    with pytest.raises(UsageError, match=r"signing\.method is key, but there is no key: .*\$CLEARWAY_SIGNING_KEY"):
        sign(bundle, SigningParams(method="key"), tmp_path)
    with pytest.raises(UsageError, match=r"signing\.key = 'none\.pem': there is no such file"):
        sign(bundle, SigningParams(method="key", key="none.pem"), tmp_path)
    write_keys(tmp_path, password=SECRET)
    with pytest.raises(UsageError, match=r"private\.pem' cannot sign \(TypeError\): .*\$CLEARWAY_SIGNING_PASSWORD"):
        sign(bundle, KEY, tmp_path)
    monkeypatch.setenv("CLEARWAY_SIGNING_KEY", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----")
    with pytest.raises(UsageError, match=r"the key in \$CLEARWAY_SIGNING_KEY cannot sign \(ValueError\)") as caught:
        sign(bundle, SigningParams(method="key"), tmp_path)
    assert "c2VjcmV0" not in str(caught.value)
    assert not (bundle.path / SIGNATURE).exists()


def project(root: Path, how: str = "required") -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "environments": {"production": {"port": 0, "signature": {"policy": how, "keys": ["public.pem"]}}},
        "signing": {"method": "key", "key": "private.pem"},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(root / "params.yaml"), Workspace(root)


WHO = {"actor": "tester", "reason": "a test"}


def test_what_is_not_signed_is_not_deployed_and_no_way_back(bundle: Bundle, tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    digest, newer = keep(bundle.path, workspace.bundles), keep(make(tmp_path, b"newer").path, workspace.bundles)
    folder = workspace.environment("production")
    with pytest.raises(SignatureError, match=r"model\.sig: there is no signature; environments\.production\.signature"):
        deploy(params, workspace, "production", digest, **WHO)
    assert not read_ledger(folder, "production")
    for each in (digest, newer):  # of a time before signatures were asked for
        change = Change(action="deploy", stable=each, **WHO)
        append(folder, "production", change, expected_head=head_hash(read_ledger(folder, "production")))
    with pytest.raises(SignatureError, match="there is no signature"):
        rollback(params, workspace, "production", **WHO)
    assert len(read_ledger(folder, "production")) == 2


def test_a_server_asks_for_the_signature_before_it_reads_the_model(bundle: Bundle, tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    keep(bundle.path, workspace.bundles)
    change = Change(action="deploy", stable=bundle.digest, **WHO)
    append(workspace.environment("production"), "production", change, expected_head=head_hash([]))
    reconcile(params, workspace, "production")

    async def refusal() -> str:
        follower = Follower(params, workspace, "production")
        following = asyncio.create_task(follower.follow())
        while follower.error is None:
            await asyncio.sleep(0.01)
        following.cancel()
        return follower.error

    assert "model.sig: there is no signature; environments.production.signature.policy" in asyncio.run(refusal())
    assert [path.name for path in sign_kept(params, workspace, [bundle.digest[:10]])] == [SIGNATURE]
    assert "payload is no payload" in asyncio.run(refusal()), "signed, and then read: it is a toy"


def test_signing_by_hand_needs_a_method_and_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    params, workspace = project(tmp_path)
    with pytest.raises(UsageError, match=r"no bundle in .* begins with 00000000"):
        sign_kept(params, workspace, ["00000000"])
    unsigned = params.model_copy(update={"signing": SigningParams()})
    with pytest.raises(UsageError, match=r"signing\.method is none: set it to key or sigstore"):
        sign_kept(unsigned, workspace, [bundle.digest])


def test_a_policy_that_trusts_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="policy = 'required' needs at least one of keys and identities"):
        SignaturePolicy(policy="required")


def test_without_the_library_nothing_passes_and_the_command_is_named(bundle: Bundle, tmp_path: Path) -> None:
    """In a process of its own, in which the library cannot be imported."""
    sign(bundle, KEY, tmp_path)
    program = f"""
import sys
sys.modules["model_signing"] = None
from pathlib import Path
from clearway.bundle import verify
from clearway.params import SignaturePolicy
from clearway.signing import check_signature
policy = SignaturePolicy(policy="required", keys=("public.pem",))
check_signature(verify(Path({str(bundle.path)!r}), {bundle.digest!r}), policy, "production", Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "cannot be verified: model_signing is not installed: pip install 'clearway[signing]'" in done.stderr


def test_sigstore_without_a_network_or_an_identity_is_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be tried without a network: it signs nothing, and nothing is accepted."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "GITHUB_ACTIONS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ClearwayError, match=r"signing\.method is sigstore, .* \(LookupError: .*id-token: wr") as caught:
        sign(bundle, SigningParams(method="sigstore"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (bundle.path / SIGNATURE).exists()
    sign(bundle, KEY, tmp_path)
    who = {"identity": "https://github.com/o/r/.github/workflows/delivery.yml@refs/heads/main"}
    trusting = SignaturePolicy.model_validate({"policy": "required", "identities": [who]})
    with pytest.raises(SignatureError, match=r"is of nobody who is trusted \(https://github\.com/o/r"):
        check_signature(bundle, trusting, "production", tmp_path)
