"""From a digest to a version that answers: verified, loaded, and tried on rows whose scores are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.bundle import Bundle, verify
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.model import FEATURES, Model, load_verified
from clearway.params import Params, describe
from clearway.project import StoredProject, load_project
from clearway.routing import read_routing
from clearway.serving.requests import RequestError, RowEncoder
from clearway.trust import NOTHING_MORE, Trust
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Collection

    from clearway.feature_store.definitions import Definitions, FeatureDefinition
    from clearway.feature_store.online import FeatureReader, ViewCounts


@dataclass(frozen=True)
class Version:
    """One loaded model."""

    digest: str
    model: Model


class GoldenRows(BaseModel):
    """``evidence/golden.json`` of a bundle."""

    model_config = ConfigDict(extra="ignore", strict=True)
    rows: list[dict[str, Any]] = Field(min_length=1)
    """As a client would send them."""
    scores: list[float] | list[list[float]]
    """What scikit-learn says of each."""


def load_version(bundles: Path, digest: str, tolerance: float, trust: Trust = NOTHING_MORE) -> Version:
    """Verify, load and warm up the bundle ``bundles/<digest>``.

    The warm-up sends the bundle's golden rows through the same encoder that requests take, so that a bundle whose
    runtime, schema or encoding disagrees with what was validated never answers anyone.

    Parameters
    ----------
    bundles
        Folder of the bundles.
    digest
        What routing names; the payload must hash to it.
    tolerance
        Largest difference from a golden score (``gates.onnx_tolerance``).
    trust
        What may be read of a model without ONNX: ``digest`` is vouched for by the environment's ledger, or not at all.

    Raises
    ------
    ClearwayError
        The bundle is missing, is not what its digest says, or fails its warm-up.
    """
    folder = bundles / digest
    if not folder.is_dir():
        raise ClearwayError(f"bundle {digest[:12]} is not in {bundles}: deploy it again from where it was built")
    bundle = verify(folder, digest)
    model = load_verified(bundle, trust)
    _warm_up(model, digest, _golden(bundle), tolerance)
    return Version(digest, model)


def _golden(bundle: Bundle) -> GoldenRows:
    """The rows that a bundle is tried on; evidence, which the digest does not cover."""
    path = bundle.evidence("golden.json")
    try:
        return GoldenRows.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ClearwayError(
            f"bundle {bundle.digest[:12]} fails its warm-up: {path} holds no golden rows ({describe(error)[:300]}): "
            "run scripts/package_model.py again"
        ) from None


def _warm_up(model: Model, digest: str, golden: GoldenRows, tolerance: float) -> None:
    rows, scores = golden.rows, golden.scores
    encoder = RowEncoder(model.schema)
    matrix = np.empty((len(rows), encoder.width), dtype=np.float32)
    for position, row in enumerate(rows):
        try:
            encoder.encode_into(row, matrix[position])
        except RequestError as error:
            raise ClearwayError(f"bundle {digest[:12]} fails its warm-up: golden row {position}: {error}") from None
    try:
        answers = np.asarray(model.output(matrix), dtype=np.float64)
    except Exception as error:  # the runtime raises types of its own; whatever it is, this bundle must not answer
        raise ClearwayError(f"bundle {digest[:12]} fails its warm-up: {type(error).__name__}: {error}") from error
    expected = np.asarray(scores, dtype=np.float64)
    if expected.shape != answers.shape:
        raise ClearwayError(
            f"bundle {digest[:12]} fails its warm-up: golden scores are of shape {expected.shape}, answers of "
            f"{answers.shape}"
        )
    difference = float(np.max(model.target.differences(answers, expected), initial=0.0))
    if not difference <= tolerance:
        raise ClearwayError(
            f"bundle {digest[:12]} fails its warm-up: a golden score differs by {difference:.2g} (limit {tolerance:g})"
        )


def reads_features(workspace: Workspace, environment: str) -> bool:
    """Whether a version that the environment's routing table names looks features up by key, as far as one can tell.

    Nothing is verified: this is a hint of what will have to be imported.
    """
    try:
        table = read_routing(workspace.environment(environment) / "routing.json")
        digests = [digest for digest in (table.stable, table.canary) if digest is not None]
        features = [read_json(workspace.bundles / digest / "payload" / FEATURES) for digest in digests]
        return any(one.get("definitions") for one in features)
    except (ClearwayError, AttributeError):
        return False


@dataclass(frozen=True)
class OwnFeatures:
    """How this server's own code defines features."""

    definitions: "Definitions"
    described: "Mapping[str, FeatureDefinition]"
    """By name of the feature."""


def own_features(params: Params) -> OwnFeatures:
    """What the project package that ``params`` names defines with Feast; imports Feast, which takes seconds.

    Raises
    ------
    ClearwayError
        It defines nothing with Feast, or cannot be imported.
    """
    project = load_project(params, {})
    if not isinstance(project, StoredProject):
        raise ClearwayError(
            f"package {params.project.package!r} defines no features with Feast, but the bundle was trained from such: "
            "serve it with the code that it was trained with"
        )
    from clearway.feature_store.definitions import describe_features

    definitions = project.definitions()
    return OwnFeatures(definitions, describe_features(definitions, project.numeric, project.categorical))


def check_definitions(version: Version, own: OwnFeatures) -> None:
    """Check that the features of a version are defined here as they were where it was trained.

    Raises
    ------
    ClearwayError
        They are not; names the bundle, each feature, and what differs.
    """
    from clearway.feature_store.definitions import differences, parse_definitions

    recorded = parse_definitions(version.model.definitions or {}, f"bundle {version.digest[:12]}")
    if lacking := [name for name in version.model.schema.names if name not in recorded]:
        raise ClearwayError(f"bundle {version.digest[:12]}: features.json records no definition of {lacking[0]!r}")
    if found := differences(recorded, own.described):
        raise ClearwayError(
            f"bundle {version.digest[:12]} was trained from other feature definitions than this server runs: "
            f"{'; '.join(found)}: start the server with the code that the bundle was trained with"
        )


def open_reader(
    params: Params,
    workspace: Workspace,
    own: OwnFeatures,
    names: "Collection[str]",
    counts: "dict[str, ViewCounts]",
) -> "FeatureReader":
    """A reader of the features ``names`` from the online store, which counts in ``counts``; to be closed.

    It was tried: it knows whether the store answers.

    Raises
    ------
    ClearwayError
        The store's configuration or a definition is wrong.
    """
    from clearway.feature_store.online import FeatureReader
    from clearway.feature_store.store import open_store

    ordered = [name for name in own.described if name in names]
    reader = FeatureReader(open_store(params, workspace), own.definitions, ordered, params.serving.features, counts)
    reader.store.wait()
    return reader
