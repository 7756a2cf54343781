"""Bundles: a model as a folder named by the digest of its content, and never read before it is verified.

A bundle holds ``manifest.json`` (the SHA-256 of each payload file), ``payload/``, ``evidence.json`` (the digest it
speaks of and the SHA-256 of each evidence file) and ``evidence/``. The digest is the SHA-256 of the canonical JSON of
the payload's hashes, so the digest alone, held somewhere trusted, vouches for every byte that will be deserialised::

    bundle = verify(workspace.bundles / digest, digest)  # raises unless every file is what it was
    model = bundle.read("model.onnx")

A bundle may also hold ``model.sig``, a signature over the payload (:mod:`clearway.signing`). It proves itself and may
be added later, so neither manifest speaks of it.

The digest covers the payload only: two runs that make the same model agree on it, whatever their latencies and
reports say. Evidence is bound to the digest by ``evidence.json``, which the digest does not cover.
"""

import json
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clearway.errors import ClearwayError
from clearway.files import (
    atomic_directory,
    atomic_path,
    canonical_json,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)
from clearway.params import describe

if TYPE_CHECKING:
    from clearway.lineage import Lineage

PAYLOAD, EVIDENCE, MANIFEST, EVIDENCE_MANIFEST = "payload", "evidence", "manifest.json", "evidence.json"
SIGNATURE = "model.sig"
NETWORK = "model.onnx"
"""The payload file that makes a model fast, and that a payload may lack."""

MOST_MANIFEST_BYTES, MOST_JSON_BYTES = 2**20, 2**26
"""A manifest or signature, and any other JSON file of a bundle, may be no larger: they are parsed whole."""
MOST_FILES, DEEPEST = 10_000, 32
"""Files in a payload or its evidence, and folders around one of them."""

OUTCOME, CHALLENGER, BASELINE = "outcome.json", "challenger", "baseline"
"""What ``build/bundle`` holds: what became of the challenger, and, if it passed, two bundles."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

_Made = TypeVar("_Made", bound=BaseModel)


class BundleError(ClearwayError):
    """A bundle is not what its digest says; the message names each file, what was expected and what was found."""


def plain_path(path: str) -> str:
    """A path that stays below its folder, has one spelling, and can be shown on one line."""
    pure = PurePosixPath(path)
    if not pure.parts or "\\" in path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise ValueError("is not a plain path inside the bundle")
    if not path.isprintable():
        raise ValueError("is no plain name: it holds what cannot be printed")
    return path


def _one_of_a_name(files: dict[str, str]) -> dict[str, str]:
    """No two names that some file system, or the eye, takes for one: ``A`` and ``a``, ``é`` as one sign and as two."""
    seen: dict[str, str] = {}
    for name in files:
        twin = seen.setdefault(unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold()), name)
        if twin != name:
            raise ValueError(f"{name!a} and {twin!a} are one name to some file systems")
    return files


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
InsidePath = Annotated[str, AfterValidator(plain_path)]
Files = Annotated[dict[InsidePath, Sha256], AfterValidator(_one_of_a_name)]


class Manifest(BaseModel):
    """``manifest.json``: the SHA-256 of each file under ``payload/``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    payload: Files = Field(min_length=1)

    @property
    def digest(self) -> str:
        return sha256_bytes(canonical_json(self.payload))


class EvidenceManifest(BaseModel):
    """``evidence.json``: the digest that the evidence speaks of, and the SHA-256 of each file under ``evidence/``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    digest: Sha256
    files: Files


class Built(BaseModel):
    """``outcome.json``: what the last run of the line has to deploy."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    verdict: str
    digest: Sha256 | None
    baseline_digest: Sha256 | None

    @model_validator(mode="after")
    def _passed_has_a_digest(self) -> Self:
        if self.verdict == "passed" and self.digest is None:
            raise ValueError("verdict is passed, and no digest is named")
        return self


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Only :func:`verify` and :func:`pack` make one."""

    path: Path
    digest: str
    manifest: Manifest
    evidence_manifest: EvidenceManifest

    @property
    def payload(self) -> Path:
        """The folder whose files the digest covers."""
        return self.path / PAYLOAD

    def read(self, name: str) -> bytes:
        """The bytes of payload file ``name``, hashed again as read: nothing can change between check and use.

        Raises
        ------
        BundleError
            The file is no part of the payload, or has changed since it was verified.
        """
        return self._checked(self.payload / name, self.manifest.payload.get(name))

    def evidence(self, name: str) -> Path:
        """The path of evidence file ``name``, hashed again.

        Raises
        ------
        BundleError
            The bundle has no such evidence, or the file has changed since it was verified.
        """
        path = self.path / EVIDENCE / name
        self._checked(path, self.evidence_manifest.files.get(name))
        return path

    def lineage(self) -> "Lineage":
        """What the model was made from.

        Raises
        ------
        BundleError
            ``evidence/lineage.json`` is missing or cannot be read.
        """
        from clearway.lineage import Lineage  # imports pandas, which a server that only verifies does not need

        path = self.evidence("lineage.json")
        try:
            return Lineage.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BundleError(f"{path} is not a lineage ({describe(error)}): build the bundle again") from None

    def _checked(self, path: Path, expected: str | None) -> bytes:
        if expected is None:
            raise BundleError(f"{path} is no part of bundle {self.digest[:12]}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from None
        found = sha256_bytes(content)
        if found != expected:
            raise BundleError(f"{path} has changed: expected sha256 {expected}, found {found}")
        return content


def payload_digest(folder: Path) -> str:
    """The digest of a payload folder: SHA-256 of the canonical JSON of ``{relative path: sha256}``.

    Raises
    ------
    BundleError
        The folder is missing or empty, or holds something that is not a regular file.
    """
    return _manifest_of(folder).digest


def pack(payload: Path, evidence: Mapping[str, Path | bytes], target: Path) -> Bundle:
    """Write ``target``, a bundle of the files of ``payload`` and the given evidence, whole or not at all.

    Parameters
    ----------
    payload : Path
        Folder of the files that the digest covers.
    evidence : mapping of str to Path or bytes
        Relative name under ``evidence/`` → a file to copy, or its content.
    target : Path
        The bundle's folder; replaced if it exists.

    Raises
    ------
    BundleError
        The payload is empty or holds links, or an evidence name would leave the folder.
    """
    manifest = _manifest_of(payload)
    with atomic_directory(target) as folder:
        shutil.copytree(payload, folder / PAYLOAD)
        (folder / EVIDENCE).mkdir()
        for name, content in evidence.items():
            try:
                path = folder / EVIDENCE / plain_path(name)
            except ValueError as error:
                raise BundleError(f"evidence {name!r} {error}") from None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        files = _hashes(folder / EVIDENCE)
        write_json(folder / MANIFEST, {"payload": manifest.payload})
        write_json(folder / EVIDENCE_MANIFEST, {"digest": manifest.digest, "files": files})
        verify(folder, manifest.digest)
    return Bundle(target, manifest.digest, manifest, EvidenceManifest(digest=manifest.digest, files=files))


def verify(folder: Path, digest: str) -> Bundle:
    """Check that ``folder`` is the bundle ``digest``, reading nothing but bytes and two manifests.

    Parameters
    ----------
    folder : Path
        The bundle.
    digest : str
        64 hexadecimal characters from a trusted place: a ledger, or the output of the job that made the bundle.

    Raises
    ------
    BundleError
        A file is missing, added, changed, too large or a link, a path leaves the folder, a manifest is wrong, or the
        bundle or its evidence is of another digest. Names every such file with what was expected and what was found.
    """
    if not _DIGEST.fullmatch(digest):
        raise BundleError(f"digest {digest!r} is not 64 hexadecimal characters")
    if not folder.is_dir():
        raise BundleError(f"{folder} is missing: expected the folder of bundle {digest}")
    _check_layout(folder)
    manifest = _read_manifest(folder / MANIFEST, Manifest)
    if manifest.digest != digest:
        raise BundleError(
            f"{folder / MANIFEST} is of another bundle: expected digest {digest}, found {manifest.digest}"
        )
    evidence = _read_manifest(folder / EVIDENCE_MANIFEST, EvidenceManifest)
    if evidence.digest != digest:
        raise BundleError(
            f"{folder / EVIDENCE_MANIFEST} names another bundle: expected digest {digest}, found {evidence.digest}"
        )
    _compare(folder / PAYLOAD, manifest.payload)
    _compare(folder / EVIDENCE, evidence.files)
    return Bundle(folder, digest, manifest, evidence)


def keep(bundle_folder: Path, bundles: Path, digest: str | None = None) -> str:
    """Copy a bundle to ``bundles/<digest>/``, whole or not at all, and return its digest.

    Idempotent: a kept bundle that verifies stays as it is, but for a signature that it lacks; a damaged one is
    replaced, by a verified copy only.

    Parameters
    ----------
    bundle_folder : Path
        The bundle to keep.
    bundles : Path
        The folder of all kept bundles.
    digest : str, optional
        The digest from a trusted place. Without it the bundle need only agree with its own manifest.

    Raises
    ------
    BundleError
        The bundle does not verify.
    """
    if digest is None:
        if not bundle_folder.is_dir():
            raise BundleError(f"{bundle_folder} is missing: expected the folder of a bundle")
        _check_layout(bundle_folder)
        digest = _read_manifest(bundle_folder / MANIFEST, Manifest).digest
    verify(bundle_folder, digest)
    target = bundles / digest
    if _verifies(target, digest):
        if (bundle_folder / SIGNATURE).exists() and not (target / SIGNATURE).exists():
            add_signature(target, (bundle_folder / SIGNATURE).read_bytes())
        return digest
    try:
        with atomic_directory(target) as copy:
            shutil.copytree(bundle_folder, copy, dirs_exist_ok=True, symlinks=True)
            verify(copy, digest)
    except OSError as error:
        if not _verifies(target, digest):  # else another process has just kept the same bundle
            raise BundleError(f"bundle {digest} cannot be kept in {bundles}: {error}") from None
    return digest


def add_signature(folder: Path, content: bytes) -> None:
    """Lay a signature into a bundle, whole or not at all; one that is there is replaced.

    Raises
    ------
    BundleError
        It is larger than any signature.
    """
    if len(content) > MOST_MANIFEST_BYTES:
        raise BundleError(f"{folder / SIGNATURE}: {len(content):,} bytes are no signature")
    with atomic_path(folder.parent / f"{folder.name}.{SIGNATURE}") as made:  # beside: a bundle is never seen half done
        made.write_bytes(content)
    (folder.parent / f"{folder.name}.{SIGNATURE}").replace(folder / SIGNATURE)


def read_built(folder: Path) -> Built:
    """What the last run of the line left in ``folder``, the workspace's ``build/bundle``.

    Raises
    ------
    ClearwayError
        Nothing was packaged yet, or the file is damaged.
    """
    path = folder / OUTCOME
    try:
        return Built.model_validate(read_json(path, made_by="scripts/package_model.py"))
    except ValidationError as error:
        raise ClearwayError(f"{path} is damaged ({describe(error)}): run scripts/package_model.py again") from None


def verify_arrival(built: Path, bundles: Path, digest: str, baseline: str) -> None:
    """Check what another job built, and what its state brought, by the digests that this job was told of.

    Parameters
    ----------
    built : Path
        Folder of ``challenger/``, ``baseline/`` and ``outcome.json``.
    bundles : Path
        Where bundles are kept, and deployed from. The same two must lie there; their evidence may be an earlier run's.
    digest, baseline : str
        What they must be.

    Raises
    ------
    BundleError
        One is missing, changed, or another than was named.
    """
    said = read_built(built)
    if (said.digest, said.baseline_digest) != (digest, baseline):
        raise BundleError(
            f"{built / OUTCOME} names {said.digest} and {said.baseline_digest}, expected {digest} and {baseline}: "
            "the artifact was changed on its way; run the job that built it again"
        )
    for role, expected in ((CHALLENGER, digest), (BASELINE, baseline)):
        verify(built / role, expected)
        verify(bundles / expected, expected)


def _verifies(folder: Path, digest: str) -> bool:
    try:
        verify(folder, digest)
    except BundleError:
        return False
    return True


def _check_layout(folder: Path) -> None:
    """The top of a bundle holds two files and two folders, and perhaps a signature, none of them a link."""
    expected = {MANIFEST: stat.S_IFREG, EVIDENCE_MANIFEST: stat.S_IFREG, PAYLOAD: stat.S_IFDIR, EVIDENCE: stat.S_IFDIR}
    status = {path.name: path.lstat() for path in folder.iterdir()}
    found = {name: stat.S_IFMT(each.st_mode) for name, each in status.items()}
    if SIGNATURE in found:
        expected[SIGNATURE] = stat.S_IFREG
    problems = [f"{folder / name} is missing" for name in expected if name not in found]
    unknown = sorted(found.keys() - expected.keys())
    problems += [
        f"{folder / name if name.isprintable() else f'{folder}/{name!a}'} is no part of a bundle" for name in unknown
    ]
    problems += [
        f"{folder / name} has {status[name].st_size:,} bytes: expected at most {MOST_MANIFEST_BYTES:,}"
        for name in (MANIFEST, EVIDENCE_MANIFEST, SIGNATURE)
        if name in status and status[name].st_size > MOST_MANIFEST_BYTES
    ]
    problems += [
        f"{folder / name}: expected a {_KINDS[kind]}, found a {_KINDS.get(found[name], 'special file')}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    if problems:
        raise BundleError("; ".join(problems))


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}


def _read_manifest(path: Path, kind: type[_Made]) -> _Made:
    try:
        return kind.model_validate(json.loads(path.read_bytes(), object_pairs_hook=once))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise BundleError(f"{path} is not a valid manifest: {describe(error)}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a key twice, or nested without end
        raise BundleError(f"{path} is not a valid manifest: {error}") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values of one key, parsers disagree which counts."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"key {key!a} stands twice")
        made[key] = value
    return made


def _manifest_of(payload: Path) -> Manifest:
    if not payload.is_dir() or payload.is_symlink():
        raise BundleError(f"{payload} is missing: expected a folder with a model (run scripts/train.py)")
    try:
        return Manifest(payload=_hashes(payload))
    except ValidationError as error:
        raise BundleError(f"{payload} is no payload: {describe(error)}") from None


def _hashes(folder: Path) -> dict[str, str]:
    try:
        files = list(islice(_files(folder), MOST_FILES + 1))
        if len(files) > MOST_FILES:
            raise BundleError(f"{folder} has more than {MOST_FILES:,} files: it is no part of a bundle")
        return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _compare(folder: Path, expected: Mapping[str, str]) -> None:
    found = _hashes(folder)
    problems = [
        f"{folder / name} is missing: expected sha256 {sha}" for name, sha in expected.items() if name not in found
    ]
    problems += [
        f"{folder / name} was added: expected no such file, found sha256 {sha}"
        for name, sha in found.items()
        if name not in expected
    ]
    problems += [
        f"{folder / name} has changed: expected sha256 {sha}, found {found[name]}"
        for name, sha in expected.items()
        if name in found and found[name] != sha
    ]
    if problems:
        raise BundleError("; ".join(sorted(problems)))


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Every file below ``folder``, sorted; what no bundle holds is refused, never followed and never opened.

    That is a link, a special file, an empty folder, a name that cannot be shown, a JSON file too large to be parsed.
    Hard links are let through: bytes are hashed again as they are read, and a bundle is kept as a copy.
    """
    if depth > DEEPEST:
        raise BundleError(f"{folder}: more than {DEEPEST} folders deep, which no bundle is")
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.name.isprintable():
            raise BundleError(f"{folder}: expected plain names, found {entry.name!a}")
        path = Path(entry.path)
        if entry.is_symlink():
            raise BundleError(f"{path}: expected a file, found a symbolic link to {str(path.readlink())!a}")
        if entry.is_dir():
            below = list(_files(path, depth + 1))
            if not below:
                raise BundleError(f"{path}: expected no such folder, found an empty folder")
            yield from below
        elif entry.is_file():
            if path.suffix == ".json" and (size := entry.stat().st_size) > MOST_JSON_BYTES:
                raise BundleError(f"{path} has {size:,} bytes: expected at most {MOST_JSON_BYTES:,}")
            yield path
        else:
            raise BundleError(f"{path}: expected a file, found a special file")
