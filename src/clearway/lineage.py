"""What a model was made from, as evidence beside its bundle, and the hash of the recipe that made it."""

import importlib.metadata
import subprocess
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from clearway.files import canonical_json, sha256_bytes, sha256_file
from clearway.params import Params
from clearway.project import definitions_sha256
from clearway.workspace import Workspace

PACKAGES = ("scikit-learn", "numpy", "pandas", "scipy", "skl2onnx", "onnxruntime", "skops")
RECIPE_MODULES = (
    "acceptance.py",
    "checks.py",
    "encoding.py",
    "export.py",
    "feature_store/definitions.py",
    "feature_store/offline.py",
    "features.py",
    "frames.py",
    "instants.py",
    "point_in_time.py",
    "project.py",
    "repeats.py",
    "stored_features.py",
    "training.py",
)


class Lineage(BaseModel):
    """``evidence/lineage.json`` of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str
    role: str
    """``challenger`` or ``baseline``."""
    as_of: datetime | None
    snapshot_sha256: str
    """Hash of ``data/raw/snapshot.json``: names every table's bytes."""
    recipe_sha256: str
    training_rows: int
    labelled_rows: int
    """Rows with a label in training and holdout together, for the data-volume trigger."""
    trained_until: datetime | None = None
    """When the last answer among the training rows became known, for the freshness trigger; None without time."""
    metrics: dict[str, float]
    """Metrics of this model on its holdout."""
    git_commit: str | None
    lock_sha256: str | None
    """Hash of ``dvc.lock`` when the bundle was made; its package stage is not in it yet."""
    trigger: str
    reasons: tuple[str, ...]
    packages: dict[str, str]


def recipe_sha256(params: Params, workspace: Workspace) -> str:
    """Hash of all that turns data into a model: feature definitions, schema, parameters and training code.

    Data and ``as_of`` are not in it: they have a hash of their own.
    """
    here = Path(__file__).parent
    recipe = {
        "definitions": definitions_sha256(params),
        "schema": sha256_file(workspace.root / params.data_schema),
        "parameters": params.model_dump(mode="json", include={"sources", "data", "split", "seed", "train"}),
        "code": {name: sha256_file(here / name) for name in RECIPE_MODULES},
    }
    return sha256_bytes(canonical_json(recipe))


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, with ``-dirty`` if tracked files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Versions of the libraries whose arithmetic or file formats a model depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
