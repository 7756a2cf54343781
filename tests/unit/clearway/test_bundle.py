"""A bundle is what its digest says, or it is refused with the name of the file."""

import json
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from clearway.bundle import Bundle, BundleError, keep, pack, payload_digest, verify, verify_arrival
from clearway.files import canonical_json, sha256_bytes, write_json


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    (folder / "parts").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"network")
    (folder / "parts" / "schema.json").write_text("{}")
    return folder


@pytest.fixture
def bundle(payload: Path, tmp_path: Path) -> Bundle:
    card = tmp_path / "card.md"
    card.write_text("# model")
    return pack(payload, {"model_card.md": card, "lineage.json": b"{}"}, tmp_path / "bundle")


def test_the_digest_is_the_hash_of_the_canonical_map_of_hashes(payload: Path) -> None:
    hashes = {"model.onnx": sha256_bytes(b"network"), "parts/schema.json": sha256_bytes(b"{}")}
    assert payload_digest(payload) == sha256_bytes(canonical_json(hashes))


def test_the_digest_does_not_depend_on_evidence(payload: Path, bundle: Bundle, tmp_path: Path) -> None:
    other = pack(payload, {"training.json": b'{"seconds": 3}'}, tmp_path / "other")
    assert other.digest == bundle.digest == payload_digest(payload)


def test_a_packed_bundle_verifies_and_reads(bundle: Bundle) -> None:
    verified = verify(bundle.path, bundle.digest)
    assert verified == bundle
    assert verified.read("model.onnx") == b"network"
    assert verified.evidence("model_card.md").read_text() == "# model"
    assert json.loads((bundle.path / "evidence.json").read_text())["digest"] == bundle.digest


def change(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_bytes(b"other")


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def link(path: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        original = folder.parent / "outside"
        (folder / path).rename(original)
        (folder / path).symlink_to(original)

    return make


def special(path: str, kind: int) -> Callable[[Path], None]:
    """A pipe, which to open is to wait for its writer, or a socket."""

    def make(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        os.mknod(folder / path, kind | 0o600)

    return make


def large(path: str) -> Callable[[Path], None]:
    """As large as no such file is, without taking the room."""

    def make(folder: Path) -> None:
        with (folder / path).open("wb") as stream:
            stream.truncate(2**26 + 1)

    return make


def deep(folder: Path) -> None:
    below = folder / "payload"
    for _ in range(40):
        below /= "x"
        below.mkdir()


def link_folder(folder: Path) -> None:
    (folder / "payload" / "parts").rename(folder.parent / "parts")
    (folder / "payload" / "parts").symlink_to(folder.parent / "parts")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            change("payload/model.onnx"),
            r"payload/model\.onnx has changed: expected sha256 [0-9a-f]{64}, found [0-9a-f]",
        ),
        (change("payload/parts/schema.json"), r"payload/parts/schema\.json has changed: expected sha256"),
        (change("evidence/lineage.json"), r"evidence/lineage\.json has changed: expected sha256"),
        (remove("payload/model.onnx"), r"payload/model\.onnx is missing: expected sha256"),
        (remove("evidence/model_card.md"), r"evidence/model_card\.md is missing: expected sha256"),
        (remove("manifest.json"), r"manifest\.json is missing"),
        (remove("evidence.json"), r"evidence\.json is missing"),
        (change("payload/extra.pkl"), r"payload/extra\.pkl was added: expected no such file, found sha256"),
        (change("evidence/extra.json"), r"evidence/extra\.json was added"),
        (change("extra.json"), r"extra\.json is no part of a bundle"),
        (link("payload/model.onnx"), r"payload/model\.onnx: expected a file, found a symbolic link"),
        (link("evidence/lineage.json"), r"evidence/lineage\.json: expected a file, found a symbolic link"),
        (link("manifest.json"), r"manifest\.json: expected a file, found a symbolic link"),
        (link_folder, r"payload/parts: expected a file, found a symbolic link"),
        (lambda folder: (folder / "payload" / "empty").mkdir(), r"payload/empty: expected no such folder"),
        (lambda folder: os.mkfifo(folder / "payload" / "pipe"), r"payload/pipe: expected a file, found a special file"),
        (special("evidence/socket", stat.S_IFSOCK), r"evidence/socket: expected a file, found a special file"),
        (special("manifest.json", stat.S_IFIFO), r"manifest\.json: expected a file, found a special file"),
        (special("model.sig", stat.S_IFIFO), r"model\.sig: expected a file, found a special file"),
        (large("payload/parts/schema.json"), r"parts/schema\.json has 67,108,865 bytes: expected at most 67,108,864"),
        (large("evidence/lineage.json"), r"lineage\.json has 67,108,865 bytes: expected at most 67,108,864"),
        (large("manifest.json"), r"manifest\.json has 67,108,865 bytes: expected at most 1,048,576"),
        (deep, r"/x/x/x: more than 32 folders deep, which no bundle is"),
        (change("payload/a\nb.json"), r"payload: expected plain names, found 'a\\nb\.json'"),
        (change("e\x1b[2Jvil"), r"'e\\x1b\[2Jvil' is no part of a bundle"),
        (change("payload/MODEL.onnx"), r"payload/MODEL\.onnx was added"),
        (change("manifest.json"), r"manifest\.json is not a valid manifest"),
        (change("evidence.json"), r"evidence\.json is not a valid manifest"),
    ],
)
def test_damage_is_refused_by_name(bundle: Bundle, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle.path)
    with pytest.raises(BundleError, match=message):
        verify(bundle.path, bundle.digest)


def test_every_difference_is_named_at_once(bundle: Bundle) -> None:
    change("payload/model.onnx")(bundle.path)
    remove("payload/parts/schema.json")(bundle.path)
    (bundle.path / "payload" / "parts").rmdir()
    with pytest.raises(BundleError, match=r"model\.onnx has changed.*; .*schema\.json is missing"):
        verify(bundle.path, bundle.digest)


def test_a_manifest_rewritten_to_fit_a_changed_file_has_another_digest(bundle: Bundle) -> None:
    change("payload/model.onnx")(bundle.path)
    hashes = {**bundle.manifest.payload, "model.onnx": sha256_bytes(b"other")}
    write_json(bundle.path / "manifest.json", {"payload": hashes})
    with pytest.raises(
        BundleError, match=rf"manifest\.json is of another bundle: expected digest {bundle.digest}, found"
    ):
        verify(bundle.path, bundle.digest)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", ""])
def test_a_manifest_cannot_leave_the_folder(bundle: Bundle, path: str) -> None:
    write_json(bundle.path / "manifest.json", {"payload": {**bundle.manifest.payload, path: "0" * 64}})
    with pytest.raises(BundleError, match="is not a plain path inside the bundle"):
        verify(bundle.path, bundle.digest)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MODEL.onnx", "'model.onnx' and 'MODEL.onnx' are one name to some file systems"),
        ("parts/Schema.JSON", "'parts/schema.json' and 'parts/Schema.JSON' are one name to some file systems"),
        ("caf\u00e9", "'caf\\xe9' and 'cafe\\u0301' are one name to some file systems"),
        ("a\nb", "is no plain name: it holds what cannot be printed"),
        ("\u202egnp.exe", "is no plain name: it holds what cannot be printed"),
        ("a\0b", "is no plain name: it holds what cannot be printed"),
    ],
)
def test_names_that_can_be_taken_for_others_are_refused(bundle: Bundle, name: str, reason: str) -> None:
    twins = {name: "0" * 64, unicodedata.normalize("NFD", name): "0" * 64}
    write_json(bundle.path / "manifest.json", {"payload": {**bundle.manifest.payload, **twins}})
    with pytest.raises(BundleError, match=re.escape(reason)) as caught:
        verify(bundle.path, bundle.digest)
    assert str(caught.value).isprintable()


def test_names_that_can_be_taken_for_others_are_not_packed(payload: Path, tmp_path: Path) -> None:
    (payload / "Model.ONNX").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is no payload: .* are one name to some file systems"):
        pack(payload, {}, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_manifest_that_names_a_file_twice_is_refused(bundle: Bundle) -> None:
    """Of two values of one key, this parser takes the last and another may take the first."""
    path = bundle.path / "manifest.json"
    for text in ('"model.onnx": "' + "0" * 64 + '", "model.onnx"', '"payload": {}, "payload"'):
        key = text.rpartition(", ")[2]
        original = path.read_text()
        path.write_text(original.replace(key, text, 1))
        with pytest.raises(BundleError, match=rf"manifest\.json is not a valid manifest: key {key!a}".replace('"', "")):
            verify(bundle.path, bundle.digest)
        path.write_text(original)
    path.write_text("[" * 200_000)
    with pytest.raises(BundleError, match=r"manifest\.json is not a valid manifest: "):
        verify(bundle.path, bundle.digest)


def test_more_files_than_a_bundle_has_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearway.bundle.MOST_FILES", 2)
    (bundle.payload / "third").write_bytes(b"")
    with pytest.raises(BundleError, match="payload has more than 2 files"):
        verify(bundle.path, bundle.digest)


def test_a_hard_link_can_change_nothing_that_is_read(bundle: Bundle, tmp_path: Path) -> None:
    """DVC may link its outputs to its cache, so a second name is no fault; what is kept is a file of its own."""
    other = tmp_path / "other name"
    other.hardlink_to(bundle.payload / "model.onnx")
    verified = verify(bundle.path, bundle.digest)
    kept = tmp_path / "bundles" / keep(bundle.path, tmp_path / "bundles")
    other.write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"model\.onnx has changed"):
        verified.read("model.onnx")
    assert verify(kept, bundle.digest).read("model.onnx") == b"network"


def test_evidence_of_another_digest_is_refused(bundle: Bundle) -> None:
    content = json.loads((bundle.path / "evidence.json").read_text())
    write_json(bundle.path / "evidence.json", {**content, "digest": "1" * 64})
    with pytest.raises(BundleError, match=rf"names another bundle: expected digest {bundle.digest}, found 1111"):
        verify(bundle.path, bundle.digest)


@pytest.mark.parametrize("digest", ["", "abc", "../../etc", "A" * 64, "0" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(bundle: Bundle, digest: str) -> None:
    with pytest.raises(BundleError, match="is not 64 hexadecimal characters"):
        verify(bundle.path, digest)


def test_another_digest_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=f"expected digest {'0' * 64}, found {bundle.digest}"):
        verify(bundle.path, "0" * 64)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is missing: expected the folder of bundle"):
        verify(tmp_path / "nowhere", "0" * 64)


def test_a_file_changed_after_verification_is_not_read(bundle: Bundle) -> None:
    verified = verify(bundle.path, bundle.digest)
    change("payload/model.onnx")(bundle.path)
    change("evidence/lineage.json")(bundle.path)
    with pytest.raises(BundleError, match=r"model\.onnx has changed"):
        verified.read("model.onnx")
    with pytest.raises(BundleError, match=r"lineage\.json has changed"):
        verified.lineage()
    with pytest.raises(BundleError, match="is no part of bundle"):
        verified.read("../manifest.json")


def test_pack_refuses_links_and_evidence_outside(payload: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"evidence '../x' is not a plain path"):
        pack(payload, {"../x": b""}, tmp_path / "bundle")
    (payload / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="found a symbolic link"):
        pack(payload, {}, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_empty_payload_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing"):
        payload_digest(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="empty is no payload"):
        payload_digest(tmp_path / "empty")


def test_keep_is_idempotent_and_leaves_the_kept_bundle_alone(bundle: Bundle, tmp_path: Path) -> None:
    kept = tmp_path / "bundles" / bundle.digest
    assert keep(bundle.path, tmp_path / "bundles") == bundle.digest
    before = kept.stat().st_ino
    assert keep(bundle.path, tmp_path / "bundles", bundle.digest) == bundle.digest
    assert kept.stat().st_ino == before
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [bundle.digest]
    verify(kept, bundle.digest)


def test_keep_replaces_a_damaged_bundle_by_a_verified_one_only(bundle: Bundle, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    keep(bundle.path, bundles)
    change(f"{bundle.digest}/payload/model.onnx")(bundles)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle.path, damaged)
    change("payload/model.onnx")(damaged)
    with pytest.raises(BundleError, match=r"model\.onnx has changed"):
        keep(damaged, bundles)
    assert (bundles / bundle.digest / "payload" / "model.onnx").read_bytes() == b"other"
    keep(bundle.path, bundles)
    verify(bundles / bundle.digest, bundle.digest)


def test_keep_refuses_a_bundle_of_another_digest(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is of another bundle"):
        keep(bundle.path, tmp_path / "bundles", "0" * 64)
    assert not (tmp_path / "bundles").exists()


def test_what_another_job_built_is_verified_in_the_artifact_and_where_it_is_kept(payload: Path, tmp_path: Path) -> None:
    built, kept = tmp_path / "built", tmp_path / "kept"
    digest = pack(payload, {"note.txt": b"of this run"}, built / "challenger").digest
    (payload / "model.onnx").write_bytes(b"a simpler model")
    baseline = pack(payload, {"note.txt": b"of this run"}, built / "baseline").digest
    keep(built / "challenger", kept, digest)
    shutil.copytree(built / "baseline", kept / baseline)
    write_json(built / "outcome.json", {"verdict": "passed", "digest": digest, "baseline_digest": baseline})
    verify_arrival(built, kept, digest, baseline)
    for named in ((baseline, digest), (digest, digest), ("0" * 64, baseline)):
        with pytest.raises(BundleError, match=r"outcome\.json names .*was changed on its way"):
            verify_arrival(built, kept, *named)
    for folder in (built / "challenger", built / "baseline", kept / digest, kept / baseline):
        model = folder / "payload" / "model.onnx"
        sound = model.read_bytes()
        model.write_bytes(sound + b" ")
        with pytest.raises(BundleError, match=rf"{folder.name}.*model\.onnx has changed"):
            verify_arrival(built, kept, digest, baseline)
        model.write_bytes(sound)
    verify_arrival(built, kept, digest, baseline)
