"""From a digest to a version that answers: verified, loaded, and tried on rows whose scores are known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.model import Model, load_model
from clearway.serving.requests import RequestError, RowEncoder


@dataclass(frozen=True)
class Version:
    """One loaded model."""

    digest: str
    model: Model


def load_version(bundles: Path, digest: str, tolerance: float) -> Version:
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

    Raises
    ------
    ClearwayError
        The bundle is missing, is not what its digest says, or fails its warm-up.
    """
    folder = bundles / digest
    if not folder.is_dir():
        raise ClearwayError(f"bundle {digest[:12]} is not in {bundles}: deploy it again from where it was built")
    model = load_model(folder, digest)
    _warm_up(model, digest, folder / "evidence" / "golden.json", tolerance)
    return Version(digest, model)


def _warm_up(model: Model, digest: str, path: Path, tolerance: float) -> None:
    golden = read_json(path, made_by="scripts/package_model.py")
    rows, scores = golden["rows"], golden["scores"]
    encoder = RowEncoder(model.schema)
    matrix = np.empty((len(rows), encoder.width), dtype=np.float32)
    for position, row in enumerate(rows):
        try:
            encoder.encode_into(row, matrix[position])
        except RequestError as error:
            raise ClearwayError(f"bundle {digest[:12]} fails its warm-up: golden row {position}: {error}") from None
    try:
        answers = np.asarray(model.score(matrix), dtype=np.float64)
    except Exception as error:  # the runtime raises types of its own; whatever it is, this bundle must not answer
        raise ClearwayError(f"bundle {digest[:12]} fails its warm-up: {type(error).__name__}: {error}") from error
    difference = float(np.max(np.abs(answers - np.asarray(scores, dtype=np.float64)), initial=0.0))
    if not difference <= tolerance:
        raise ClearwayError(
            f"bundle {digest[:12]} fails its warm-up: a golden score differs by {difference:.2g} (limit {tolerance:g})"
        )
