"""What is known of one model, from its verified bundle or from the build folder, and how a person names a model."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clearway.bundle import CHALLENGER, PAYLOAD, Bundle, BundleError, payload_digest, verify
from clearway.errors import ClearwayError, UsageError
from clearway.files import read_json, sha256_file
from clearway.ledger import read_ledger, stable_digest
from clearway.lineage import Lineage, lineage_of
from clearway.model import FEATURES, PARAMS, SCHEMA
from clearway.params import Params, describe
from clearway.secretless import bared
from clearway.snapshot import Snapshot
from clearway.workspace import Workspace

SHORTEST = 8
"""Fewest characters of a digest that name a model."""
SHOWN = 12
BUILD, CHAMPION = "build", "champion"
SNAPSHOT_EVIDENCE = "snapshot.json"

_PREFIX = re.compile(f"[0-9a-f]{{{SHORTEST},64}}")
_OBSERVED = ("name", "minimum", "maximum")
"""What a feature's entry in ``schema.json`` says beside its definition."""


@dataclass(frozen=True)
class ModelRecord:
    """What is known of one model."""

    digest: str
    lineage: Lineage
    params: Mapping[str, Any]
    """The content of the ``params.yaml`` it was made with, without passwords."""
    model: Mapping[str, Any]
    """The payload's ``params.json``: estimator, arguments, seed and threshold of this model."""
    features: Mapping[str, Mapping[str, Any]]
    """By name, what defines each feature: kind, declared values, categories, hash of its stored definition."""
    definitions_sha256: str | None
    snapshot: Snapshot | None
    """The tables it was made from; None in a bundle of before they were recorded."""
    verdict: str
    """Of its gates: ``passed``, ``rejected``, ``unchanged``, ``not judged`` or ``baseline``, which none judges."""
    reason: str
    gates: tuple[Mapping[str, Any], ...]


def read_bundle(workspace: Workspace, digest: str) -> ModelRecord:
    """The record of a kept bundle, verified first.

    Raises
    ------
    BundleError
        The bundle is not what its digest says, or lacks evidence that every bundle has.
    """
    return record(verify(workspace.bundles / digest, digest))


def record(bundle: Bundle) -> ModelRecord:
    """The record of a verified bundle.

    Raises
    ------
    BundleError
        Evidence is missing, has changed, or contradicts the rest.
    """
    lineage = bundle.lineage()
    validation = _json(bundle.evidence("model_validation.json").read_bytes(), "model_validation.json", bundle)
    challenger = lineage.role == CHALLENGER
    described = _json(bundle.read(FEATURES), FEATURES, bundle)
    return ModelRecord(
        digest=bundle.digest,
        lineage=lineage,
        params=bared(params_of(bundle)),
        model=_json(bundle.read(PARAMS), PARAMS, bundle),
        features=_features(_json(bundle.read(SCHEMA), SCHEMA, bundle), described),
        definitions_sha256=described.get("definitions_sha256"),
        snapshot=snapshot_of(bundle, lineage),
        verdict=str(validation.get("verdict", "not judged")) if challenger else lineage.role,
        reason=str(validation.get("reason", "")) if challenger else "the simple model, held to no gate",
        gates=_gates(validation, bundle) if challenger else (),
    )


def params_of(bundle: Bundle) -> dict[str, Any]:
    """The ``params.yaml`` that a bundle was made with, as it was written.

    Raises
    ------
    BundleError
        It is missing or no mapping.
    """
    path = bundle.evidence("params.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path} must be a mapping, found {type(content).__name__}")
    return content


def snapshot_of(bundle: Bundle, lineage: Lineage) -> Snapshot | None:
    """The tables a bundle was made from; None where it does not keep them.

    Raises
    ------
    BundleError
        What it keeps is not the snapshot that its lineage names.
    """
    if SNAPSHOT_EVIDENCE not in bundle.evidence_manifest.files:
        return None
    path = bundle.evidence(SNAPSHOT_EVIDENCE)
    found = sha256_file(path)
    if found != lineage.snapshot_sha256:
        raise BundleError(
            f"{path} is not the snapshot that lineage.json names: expected sha256 {lineage.snapshot_sha256}, "
            f"found {found}"
        )
    try:
        return Snapshot.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path} is no snapshot ({describe(error)})") from None


def read_build(params: Params, workspace: Workspace) -> ModelRecord:
    """The record of the challenger in ``build/model``, whether or not it was judged.

    Where it was packaged its bundle speaks for it; else params, commit and data are those of the project folder now.

    Raises
    ------
    ClearwayError
        Nothing was trained yet, or the model is not the one that ``reports/training.json`` speaks of.
    """
    digest = payload_digest(workspace.model)
    trained = read_json(workspace.reports / "training.json", made_by="scripts/train.py")["challenger"]["digest"]
    if digest != trained:
        raise ClearwayError(f"{workspace.model} has changed since it was trained: expected {trained}, found {digest}")
    packaged = workspace.bundle / CHALLENGER
    if packaged.is_dir() and payload_digest(packaged / PAYLOAD) == digest:
        return record(verify(packaged, digest))
    report = workspace.reports / "model_validation.json"
    validation = read_json(report) if report.is_file() else {}
    if validation.get("digest") != digest:
        validation = {"verdict": "not judged", "reason": "run scripts/validate_model.py"}
    lineage = lineage_of(params, workspace, CHALLENGER, validation.get("metrics", {}).get(CHALLENGER, {}))
    payload = read_json(workspace.model / FEATURES)
    return ModelRecord(
        digest=digest,
        lineage=lineage,
        params=bared(yaml.safe_load(workspace.params_file.read_text(encoding="utf-8"))),
        model=read_json(workspace.model / PARAMS),
        features=_features(read_json(workspace.model / SCHEMA), payload),
        definitions_sha256=payload.get("definitions_sha256"),
        snapshot=Snapshot.model_validate(read_json(workspace.snapshot)),
        verdict=validation["verdict"],
        reason=validation["reason"],
        gates=tuple(validation.get("gates", ())),
    )


def read_named(name: str, params: Params, workspace: Workspace) -> ModelRecord:
    """The record of a model as a person names it.

    Parameters
    ----------
    name : str
        ``build`` for the challenger in ``build/model``; an environment for what its ledger calls stable; ``champion``
        for that of production; else a digest, or its first characters.

    Raises
    ------
    UsageError
        Nothing is called that, or more than one bundle begins with it.
    ClearwayError
        The bundle does not verify, or the ledger is damaged.
    """
    if name == BUILD:
        return read_build(params, workspace)
    environment = params.production if name == CHAMPION else name
    if environment not in params.environments:
        return read_bundle(workspace, find_digest(name, workspace.bundles))
    digest = stable_digest(read_ledger(workspace.environment(environment), environment))
    if digest is None:
        raise UsageError(f"{name}: nothing was ever deployed to {environment}: name a digest")
    return read_bundle(workspace, digest)


def kept_digests(bundles: Path) -> list[str]:
    """Digests of all kept bundles, by the names of their folders: none of them verified yet."""
    found = bundles.iterdir() if bundles.is_dir() else ()
    return sorted(path.name for path in found if re.fullmatch(r"[0-9a-f]{64}", path.name))


def find_digest(prefix: str, bundles: Path) -> str:
    """The one kept digest that begins with ``prefix``.

    Raises
    ------
    UsageError
        As :func:`match_prefix`.
    """
    return match_prefix(prefix, kept_digests(bundles), where=str(bundles))


def match_prefix(prefix: str, digests: Iterable[str], *, where: str) -> str:
    """The one of ``digests`` that begins with ``prefix``.

    Raises
    ------
    UsageError
        The prefix is too short or not hexadecimal, or none or several begin with it.
    """
    check_prefix(prefix)
    found = [digest for digest in digests if digest.startswith(prefix)]
    if not found:
        raise UsageError(f"no bundle in {where} begins with {prefix}: list them with scripts/lineage.py")
    if len(found) > 1:
        listed = ", ".join(digest[: len(prefix) + 6] + "…" for digest in found)
        raise UsageError(f"{prefix} is the beginning of {len(found)} bundles in {where}: give more of it: {listed}")
    return found[0]


def check_prefix(prefix: str) -> None:
    """Refuse what cannot be the beginning of a SHA-256 or of a commit.

    Raises
    ------
    UsageError
        Too short, too long, or not hexadecimal.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"{prefix!r} is no digest: give {SHORTEST} to 64 hexadecimal characters (0-9, a-f)")


def _features(schema: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What defines each feature, from the payload's ``schema.json`` and ``features.json``."""
    stored = described.get("definitions") or {}
    found: dict[str, dict[str, Any]] = {}
    for feature in schema["features"]:
        name = str(feature["name"])
        found[name] = {key: value for key, value in feature.items() if key not in _OBSERVED}
        if name in stored:
            found[name]["definition_sha256"] = stored[name]["sha256"]
    return found


class _Gate(BaseModel):
    """What is told of a gate."""

    model_config = ConfigDict(extra="ignore")
    name: str
    status: str
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None


_GATES = TypeAdapter(list[_Gate])


def _gates(validation: Mapping[str, Any], bundle: Bundle) -> tuple[Mapping[str, Any], ...]:
    found = validation.get("gates", [])
    try:
        _GATES.validate_python(found)
    except ValidationError as error:
        raise BundleError(
            f"model_validation.json of bundle {bundle.digest[:SHOWN]} holds no gates ({describe(error)[:300]})"
        ) from None
    return tuple(found)


def _json(content: bytes, name: str, bundle: Bundle) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{name} of bundle {bundle.digest[:SHOWN]} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{name} of bundle {bundle.digest[:SHOWN]} must be an object")
    return found
