"""A model as the line runs it: verified bytes, then ONNX Runtime; and the scikit-learn estimator behind it."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.bundle import Bundle, BundleError, verify
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes
from clearway.params import describe
from clearway.target import BINARY, Target

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ESTIMATOR, NETWORK = "model.skops", "model.onnx"
SCHEMA, FEATURES, PARAMS = "schema.json", "features.json", "params.json"
PAYLOAD_FILES = (FEATURES, NETWORK, ESTIMATOR, PARAMS, SCHEMA)
"""Exactly the files of a payload."""

INPUT, OUTPUT, NUMBERS = "features", "probabilities", "numbers"
"""Names of the ONNX graph's input, float32 (rows, features), and of its output: (rows, 2) or (rows, classes), and that
of a regression, (rows, 1)."""

TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)
"""What a stored estimator may hold beyond skops's defaults: parts of scikit-learn's classifiers, read in its source.
A type from elsewhere is refused; what a file asks for is never what it gets."""


class Estimator(BaseModel):
    """The class that was fitted, and its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    estimator: str
    arguments: dict[str, Any]
    threads: int


class ModelParams(BaseModel):
    """``params.json`` of a payload: the parameters that made this model, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    project: str
    seed: int
    threshold: float
    train: Estimator
    target: Target = BINARY


@dataclass(frozen=True)
class Model:
    """A loaded model. Only verified bytes become one."""

    digest: str
    schema: InputSchema
    threshold: float
    """Score from which the answer is yes."""
    session: "InferenceSession" = field(repr=False)
    definitions: Mapping[str, dict[str, Any]] | None = field(default=None, repr=False)
    """How each feature was defined where the model was trained, by name; None where they are of a flat table."""
    target: Target = BINARY
    """What it answers."""

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """One number a row: the probability of 1 or of the class that is answered, or the number that is predicted.

        Parameters
        ----------
        matrix : float32 array of shape (rows, features)
            As of :meth:`output`.

        Returns
        -------
        float64 array of shape (rows,)

        Raises
        ------
        ClearwayError
            The matrix has another shape or type.
        """
        return self.target.score(self.output(matrix))

    def output(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """All that the model says of each row.

        Parameters
        ----------
        matrix : float32 array of shape (rows, features)
            Rows as encoded by ``schema``; missing values are NaN.

        Returns
        -------
        float64 array of shape (rows,), or (rows, classes)
            See :mod:`clearway.target`.

        Raises
        ------
        ClearwayError
            The matrix has another shape or type.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(self.schema.features) or matrix.dtype != np.float32:
            raise ClearwayError(
                f"model {self.digest[:12]} scores float32 rows of {len(self.schema.features)} features, "
                f"got {matrix.dtype} of shape {matrix.shape}"
            )
        if self.target.kind == "regression":
            numbers: NDArray[Any] = self.session.run([NUMBERS], {INPUT: matrix})[0]
            return numbers[:, 0].astype(np.float64)
        probabilities: NDArray[Any] = self.session.run([OUTPUT], {INPUT: matrix})[0]
        return (probabilities[:, 1] if self.target.binary else probabilities).astype(np.float64)


def load_model(bundle_folder: Path, digest: str) -> Model:
    """Verify that ``bundle_folder`` is the bundle ``digest``, then load its model.

    Raises
    ------
    BundleError
        The bundle does not verify; nothing of it was deserialised.
    """
    bundle = verify(bundle_folder, digest)
    return _build({name: bundle.read(name) for name in (SCHEMA, PARAMS, FEATURES, NETWORK)}, digest, bundle.payload)


def recorded_definitions(bundle: Bundle) -> dict[str, dict[str, Any]] | None:
    """How each feature was defined where the model of ``bundle`` was trained, by name; None without stored features.

    Raises
    ------
    ClearwayError
        What the bundle records cannot be read.
    """
    return _definitions(bundle.read(FEATURES), bundle.payload / FEATURES)


def load_payload(folder: Path, digest: str) -> Model:
    """Load the model of a payload folder that is in no bundle yet, if its digest is ``digest``.

    Raises
    ------
    BundleError
        A file of the payload is missing or its bytes are not those of ``digest``; nothing was deserialised.
    """
    files = _read(folder)
    found = sha256_bytes(canonical_json({name: sha256_bytes(content) for name, content in files.items()}))
    if found != digest:
        raise BundleError(f"{folder} has changed since it was trained: expected digest {digest}, found {found}")
    return _build(files, digest, folder)


def estimated(estimator: Any, target: Target, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a fitted scikit-learn estimator says of encoded rows: as :meth:`Model.output`."""
    if target.kind == "regression":
        return np.asarray(estimator.predict(matrix), dtype=np.float64).reshape(len(matrix))
    probabilities = np.asarray(estimator.predict_proba(matrix), dtype=np.float64)
    return probabilities[:, 1] if target.binary else probabilities


def recorded_target(bundle: Bundle) -> Target:
    """What the model of a verified bundle answers; it is not loaded.

    Raises
    ------
    ClearwayError
        The bundle's params are not of this version.
    """
    try:
        return ModelParams.model_validate_json(bundle.read(PARAMS)).target
    except ValidationError as error:
        raise ClearwayError(f"{bundle.payload / PARAMS} is not of this version ({describe(error)})") from None


def load_estimator(payload: Path) -> Any:
    """The fitted scikit-learn estimator of a verified payload folder, read by skops with an explicit allow-list.

    Raises
    ------
    ClearwayError
        The file is missing or damaged, or holds a type that is not in ``TRUSTED_TYPES``; names the types.
    """
    path = payload / ESTIMATOR
    try:
        return read_estimator(path.read_bytes())
    except OSError as error:
        raise ClearwayError(f"{path} cannot be read: {error.strerror}") from None
    except ClearwayError as error:
        raise ClearwayError(f"{path}: {error}") from None


def read_estimator(content: bytes) -> Any:
    """The estimator in the bytes of a skops file.

    Raises
    ------
    ClearwayError
        The bytes are no skops file, or one that would unpack to more than it is, or ask for a type that is not in
        ``TRUSTED_TYPES``.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    _check_archive(content)
    try:
        return skops.io.loads(content, trusted=list(TRUSTED_TYPES))
    except UntrustedTypesFoundException:
        wanted = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_TYPES))
        raise ClearwayError(
            f"refused, it holds types outside the allow-list of clearway.model: {', '.join(wanted)}"
        ) from None
    except Exception as error:  # a damaged archive fails anywhere in zipfile, json or numpy
        raise ClearwayError(f"not a readable skops file ({type(error).__name__}: {error})") from None


def _check_archive(content: bytes) -> None:
    """Refuse an archive that unpacks to more than its bytes: :mod:`clearway.export` stores entries as they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ClearwayError(f"not a readable skops file ({type(error).__name__}: {error})") from None
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ClearwayError(f"refused, {packed[0]!r} in it is compressed, which this line never writes")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > len(content):
        raise ClearwayError(f"refused, its {len(content):,} bytes claim to hold {unpacked:,}")


def _read(folder: Path) -> dict[str, bytes]:
    try:
        found = sorted(path.name for path in folder.iterdir())
        if found != sorted(PAYLOAD_FILES):
            raise BundleError(
                f"{folder} is no payload: expected {', '.join(sorted(PAYLOAD_FILES))}, found {', '.join(found)}"
            )
        return {name: (folder / name).read_bytes() for name in PAYLOAD_FILES}
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read ({error.strerror}): run scripts/train.py") from None


def _build(files: Mapping[str, bytes], digest: str, source: Path) -> Model:
    """A model from bytes that have been verified."""
    try:
        schema = InputSchema.model_validate_json(files[SCHEMA])
        params = ModelParams.model_validate_json(files[PARAMS])
    except ValidationError as error:
        raise ClearwayError(f"{source}: {SCHEMA} or {PARAMS} is not of this version ({describe(error)})") from None
    definitions = _definitions(files[FEATURES], source / FEATURES)
    session = _session(files[NETWORK], source / NETWORK)
    return Model(digest, schema, params.threshold, session, definitions, params.target)


def _definitions(content: bytes, source: Path) -> dict[str, dict[str, Any]] | None:
    """What ``features.json`` records of features defined with Feast."""
    try:
        recorded = json.loads(content)
        definitions = recorded.get("definitions")
    except (ValueError, AttributeError):
        raise ClearwayError(f"{source} is no JSON object: train again") from None
    if definitions is not None and not (
        isinstance(definitions, dict)
        and all(isinstance(each, dict) and isinstance(each.get("sha256"), str) for each in definitions.values())
    ):
        raise ClearwayError(f"{source}: definitions must be an object of objects with a sha256: train again")
    return definitions


def _session(content: bytes, source: Path) -> "InferenceSession":
    """One thread: beside a busy neighbour, a pool of threads waits for its slowest member on every single row."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise ClearwayError(f"{source} is not a model ONNX Runtime can load: {' '.join(str(error).split())}") from None
