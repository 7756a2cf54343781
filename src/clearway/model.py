"""A model as the line runs it: verified bytes, then ONNX Runtime; and the scikit-learn estimator behind it.

An estimator that ONNX cannot say is a payload without ``model.onnx``, and answers through scikit-learn itself: slower,
and only after its own file was read, under the rules of :mod:`clearway.trust`. With ``model.onnx`` nothing but the
gates ever opens the estimator.
"""

import io
import json
import stat
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.bundle import NETWORK as NETWORK  # of a payload, so it is this module's to give
from clearway.bundle import Bundle, BundleError, verify
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes
from clearway.params import describe
from clearway.target import BINARY, Target
from clearway.trust import NOTHING_MORE, Trust

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from threadpoolctl import ThreadpoolController

ESTIMATOR, PICKLE = "model.skops", "model.joblib"
SCHEMA, FEATURES, PARAMS = "schema.json", "features.json", "params.json"
ALWAYS = (FEATURES, PARAMS, SCHEMA)
"""Files of every payload. Beside them: one of ``ESTIMATOR`` and ``PICKLE``, ``NETWORK`` if there is one, no other."""

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


MOST_INNER_BYTES = 2**28
"""What the sparse matrices in a skops file may unpack to."""


class Tuned(BaseModel):
    """That a search has chosen arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    trials: int
    """How many it had finished: the same number chooses the same arguments again."""


class Estimator(BaseModel):
    """The class that was fitted, and its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    estimator: str
    arguments: dict[str, Any]
    """Those that it was fitted with, found by a search or not."""
    threads: int
    """Of linear algebra: 1. Other threads change no bit of a model."""
    tune: Tuned | None = None
    class_weights: Any = None
    calibration: dict[str, Any] | None = None
    types: tuple[str, ...] = ()
    """Types that its skops file holds and a reader must have in ``trust.types``: a request, which allows nothing."""


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
    session: "InferenceSession | None" = field(repr=False)
    """None where the payload has no ONNX: then ``estimator`` answers."""
    definitions: Mapping[str, dict[str, Any]] | None = field(default=None, repr=False)
    """How each feature was defined where the model was trained, by name; None where they are of a flat table."""
    target: Target = BINARY
    """What it answers."""
    estimator: Any = field(default=None, repr=False)
    """Set only without ``session``."""

    @property
    def runtime(self) -> str:
        """What answers: ``onnx``, or ``scikit-learn``, which is slower."""
        return "onnx" if self.session is not None else "scikit-learn"

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
        if self.session is None:
            if not len(matrix):  # scikit-learn refuses what ONNX answers with nothing
                return np.empty((0, len(self.target.classes)) if self.target.classes else 0, dtype=np.float64)
            with _numeric_libraries().limit(limits=1):  # as ONNX Runtime: see _session
                return estimated(self.estimator, self.target, matrix)
        if self.target.kind == "regression":
            numbers: NDArray[Any] = self.session.run([NUMBERS], {INPUT: matrix})[0]
            return numbers[:, 0].astype(np.float64)
        probabilities: NDArray[Any] = self.session.run([OUTPUT], {INPUT: matrix})[0]
        return (probabilities[:, 1] if self.target.binary else probabilities).astype(np.float64)


class SingleRows:
    """One row after the other through the session of a model, in memory that was handed to it once.

    To hand over an array and take another costs a single row as much as to be scored. Of one thread at a time.
    """

    def __init__(self, model: Model) -> None:
        """Of a model with a session."""
        import onnxruntime

        assert model.session is not None
        self.matrix: NDArray[np.float32] = np.zeros((1, len(model.schema.features)), dtype=np.float32)
        """Where the row is to be written, shape (1, features)."""
        self._session, self._target = model.session, model.target
        number = self._target.kind == "regression"
        width = 1 if number else 2 if self._target.binary else len(self._target.classes)
        self._outputs = np.zeros((1, width), dtype=np.float32)
        self._bound = self._session.io_binding()
        # on the processor both are views of the arrays, which this keeps
        self._bound.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(self.matrix))
        output = onnxruntime.OrtValue.ortvalue_from_numpy(self._outputs)
        self._bound.bind_ortvalue_output(NUMBERS if number else OUTPUT, output)

    def output(self) -> NDArray[np.float64]:
        """What :meth:`Model.output` says of :attr:`matrix`."""
        self._session.run_with_iobinding(self._bound)
        outputs = self._outputs
        if self._target.kind == "regression":
            return outputs[:, 0].astype(np.float64)
        return (outputs[:, 1] if self._target.binary else outputs).astype(np.float64)


def load_model(bundle_folder: Path, digest: str, trust: Trust = NOTHING_MORE) -> Model:
    """Verify that ``bundle_folder`` is the bundle ``digest``, then load its model.

    Parameters
    ----------
    bundle_folder : Path
    digest : str
        From a trusted place.
    trust : Trust
        What may be read of a model without ONNX, beyond scikit-learn's own types.

    Raises
    ------
    BundleError
        The bundle does not verify; nothing of it was deserialised.
    ClearwayError
        It has no ONNX, and ``trust`` does not allow its estimator.
    """
    return load_verified(verify(bundle_folder, digest), trust)


def load_verified(bundle: Bundle, trust: Trust = NOTHING_MORE) -> Model:
    """The model of a bundle that was verified, as :func:`load_model`; each file is hashed again as it is read."""
    wanted = _wanted(bundle.manifest.payload, bundle.payload)
    return _build({name: bundle.read(name) for name in wanted}, bundle.digest, bundle.payload, trust)


def recorded_definitions(bundle: Bundle) -> dict[str, dict[str, Any]] | None:
    """How each feature was defined where the model of ``bundle`` was trained, by name; None without stored features.

    Raises
    ------
    ClearwayError
        What the bundle records cannot be read.
    """
    return _definitions(bundle.read(FEATURES), bundle.payload / FEATURES)


def recorded_features(bundle: Bundle) -> tuple[str, ...]:
    """Names of the features of the model of ``bundle``, in its order.

    Raises
    ------
    ClearwayError
        Its schema cannot be read.
    """
    try:
        return InputSchema.model_validate_json(bundle.read(SCHEMA)).names
    except ValidationError as error:
        raise ClearwayError(f"{bundle.payload / SCHEMA} is no input schema ({describe(error)[:300]})") from None


def recorded_threshold(bundle: Bundle) -> float:
    """Score from which the model of a verified bundle answers yes; it is not loaded.

    Raises
    ------
    ClearwayError
        The bundle's params are not of this version.
    """
    return _params(bundle.read(PARAMS), bundle.payload).threshold


def load_payload(folder: Path, digest: str, trust: Trust = NOTHING_MORE) -> Model:
    """Load the model of a payload folder that is in no bundle yet, if its digest is ``digest``.

    Raises
    ------
    BundleError
        A file of the payload is missing or its bytes are not those of ``digest``; nothing was deserialised.
    ClearwayError
        It has no ONNX, and ``trust`` does not allow its estimator.
    """
    return _build(_read(folder, digest), digest, folder, trust)


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
    return _params(bundle.read(PARAMS), bundle.payload).target


def load_estimator(payload: Path, digest: str, trust: Trust = NOTHING_MORE) -> Any:
    """The fitted scikit-learn estimator of the payload folder ``digest``.

    Raises
    ------
    BundleError
        The bytes are not those of ``digest``; nothing was deserialised.
    ClearwayError
        The file is damaged, or ``trust`` does not allow it; names the types it holds.
    """
    return _estimator(_read(payload, digest), digest, payload, trust)


def check_readable(bundle: Bundle, trust: Trust) -> None:
    """Whether a server that trusts so much could load the model; reads what the bundle asks for, and opens nothing.

    Raises
    ------
    ClearwayError
        It has no ONNX, and needs types or a pickle that ``trust`` does not allow.
    """
    files = bundle.manifest.payload
    if NETWORK in files or PARAMS not in files:  # the server itself refuses what is no payload
        return
    if PICKLE in files:
        trust.check_joblib(bundle.digest, bundle.payload / PICKLE)
        return
    asked = _params(bundle.read(PARAMS), bundle.payload).train.types
    if missing := sorted(set(asked) - trust.types):
        raise ClearwayError(f"{bundle.payload / ESTIMATOR}: {_refused(missing)}")


def read_pickle(content: bytes) -> Any:
    """The estimator in the bytes of a joblib file. To call this is to run what the file holds.

    Raises
    ------
    ClearwayError
        The bytes are no joblib file, or need code that is not there.
    """
    import joblib

    try:
        return joblib.load(io.BytesIO(content))
    except Exception as error:  # a pickle raises whatever the code in it raises
        raise ClearwayError(f"not a readable joblib file ({type(error).__name__}: {error})") from None


def needed_types(content: bytes) -> list[str]:
    """Types in the bytes of a skops file that a reader must allow in ``trust.types``; nothing is run."""
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_TYPES))


def read_estimator(content: bytes, types: Collection[str] = ()) -> Any:
    """The estimator in the bytes of a skops file.

    Raises
    ------
    ClearwayError
        The bytes are no skops file, or one that would unpack to more than it is, or ask for a type that is neither in
        ``TRUSTED_TYPES`` nor in ``types``.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    _check_archive(content)
    try:
        return skops.io.loads(content, trusted=[*TRUSTED_TYPES, *types])
    except UntrustedTypesFoundException:
        raise ClearwayError(_refused([name for name in needed_types(content) if name not in types])) from None
    except Exception as error:  # a damaged archive fails anywhere in zipfile, json or numpy
        raise ClearwayError(f"not a readable skops file ({type(error).__name__}: {error})") from None


def _refused(types: Iterable[str]) -> str:
    return (
        f"refused, it holds types outside the allow-list of clearway.model: {', '.join(types)}; if you trust their "
        "code, name them in params.yaml: trust.types, or train with train.format: joblib and trust.joblib: true"
    )


def _check_archive(content: bytes) -> None:
    """Refuse an archive that unpacks to more than its bytes: :mod:`clearway.export` stores entries as they are.

    A sparse matrix is an archive of its own, compressed by SciPy, and so are arrays that call themselves one: those
    may unpack to ``MOST_INNER_BYTES`` together.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise ClearwayError(f"refused, {packed[0]!r} in it is compressed, which this line never writes")
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > len(content):
                raise ClearwayError(f"refused, its {len(content):,} bytes claim to hold {unpacked:,}")
            inner = sum(_held_bytes(archive.read(entry)) for entry in entries)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ClearwayError(f"not a readable skops file ({type(error).__name__}: {error})") from None
    if inner > MOST_INNER_BYTES:
        raise ClearwayError(f"refused, archives in it claim to hold {inner:,} bytes, at most {MOST_INNER_BYTES:,}")


def _held_bytes(content: bytes) -> int:
    """What an archive unpacks to; 0 of what is none."""
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return 0
    with zipfile.ZipFile(stream) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _wanted(files: Iterable[str], folder: Path) -> list[str]:
    """Files to read of a payload, whose files are these: of the estimator only where there is no ONNX.

    Raises
    ------
    BundleError
        They are not those of a payload.
    """
    found = sorted(files)
    estimators = [name for name in (ESTIMATOR, PICKLE) if name in found]
    networks = [name for name in (NETWORK,) if name in found]
    if len(estimators) != 1 or found != sorted((*ALWAYS, *estimators, *networks)):
        raise BundleError(
            f"{folder} is no payload: expected {', '.join(ALWAYS)}, either {ESTIMATOR} or {PICKLE}, and {NETWORK} "
            f"where there is one, found {', '.join(found) or 'nothing'}"
        )
    return [*ALWAYS, *(networks or estimators)]


def _read(folder: Path, digest: str) -> dict[str, bytes]:
    """All files of a payload folder, each read once; what is returned is what was hashed."""
    try:
        found = [path.name for path in folder.iterdir()]
        _wanted(found, folder)
        files = {name: _content(folder / name) for name in found}
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read ({error.strerror}): run scripts/train.py") from None
    have = sha256_bytes(canonical_json({name: sha256_bytes(content) for name, content in files.items()}))
    if have != digest:
        raise BundleError(f"{folder} has changed since it was trained: expected digest {digest}, found {have}")
    return files


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.lstat().st_mode):  # to open a pipe is to wait for its writer
        raise BundleError(f"{path}: expected a file, found a link or a special file")
    return path.read_bytes()


def _build(files: Mapping[str, bytes], digest: str, source: Path, trust: Trust) -> Model:
    """A model from bytes that have been verified."""
    try:
        schema = InputSchema.model_validate_json(files[SCHEMA])
    except ValidationError as error:
        raise ClearwayError(f"{source}: {SCHEMA} is not of this version ({describe(error)})") from None
    params = _params(files[PARAMS], source)
    definitions = _definitions(files[FEATURES], source / FEATURES)
    if NETWORK in files:
        session = _session(files[NETWORK], source / NETWORK)
        return Model(digest, schema, params.threshold, session, definitions, params.target)
    estimator = _estimator(files, digest, source, trust)
    return Model(digest, schema, params.threshold, None, definitions, params.target, estimator)


def _params(content: bytes, source: Path) -> ModelParams:
    try:
        return ModelParams.model_validate_json(content)
    except ValidationError as error:
        raise ClearwayError(f"{source}: {PARAMS} is not of this version ({describe(error)})") from None


def _estimator(files: Mapping[str, bytes], digest: str, source: Path, trust: Trust) -> Any:
    """The estimator from bytes that have been verified, as far as ``trust`` goes."""
    name = PICKLE if PICKLE in files else ESTIMATOR
    try:
        if name == ESTIMATOR:
            return read_estimator(files[ESTIMATOR], trust.types)
        trust.check_joblib(digest, source / PICKLE)
        return read_pickle(files[PICKLE])
    except ClearwayError as error:
        said = str(error)
        raise ClearwayError(said if said.startswith(f"{source / name}") else f"{source / name}: {said}") from None


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


@cache
def _numeric_libraries() -> "ThreadpoolController":
    """What is loaded by now; to look takes milliseconds, to limit it takes microseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


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
