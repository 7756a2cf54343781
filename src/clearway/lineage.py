"""What a model was made from, as evidence beside its bundle, and the hash of the recipe that made it."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from clearway.errors import ClearwayError
from clearway.files import canonical_json, read_json, sha256_bytes, sha256_file
from clearway.params import Params
from clearway.project import definitions_sha256, own_sources_sha256
from clearway.workspace import Workspace

PACKAGES = (
    "scikit-learn",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "optuna",
    "skl2onnx",
    "onnx",
    "onnxruntime",
    "skops",
)
DIRTY = "-dirty"
"""The end of a commit that does not hold all that was used."""
KEPT_FILES = ("params.yaml", "dvc.lock")
"""Files of a project that may differ from the commit: a bundle keeps the first, and a run of the line writes both."""
RECIPE_MODULES = (
    "acceptance.py",
    "checkpoints.py",
    "calibrated_onnx.py",
    "checks.py",
    "class_weights.py",
    "encoding.py",
    "export.py",
    "feature_store/definitions.py",
    "feature_store/offline.py",
    "features.py",
    "frames.py",
    "instants.py",
    "labelled_rows.py",
    "metrics.py",
    "parallel.py",
    "point_in_time.py",
    "project.py",
    "repeats.py",
    "score_calibration.py",
    "stored_features.py",
    "target.py",
    "training.py",
    "tuning.py",
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
    """Commit of the repository that holds the project folder; see :func:`git_commit`."""
    code_commit: str | None = None
    """Commit of the repository that holds the line's code; None in a bundle of before this was recorded."""
    lock_sha256: str | None
    """Hash of ``dvc.lock`` when the bundle was made; its package stage is not in it yet."""
    trigger: str
    reasons: tuple[str, ...]
    packages: dict[str, str]


def lineage_of(params: Params, workspace: Workspace, role: str, metrics: Mapping[str, float]) -> Lineage:
    """What the model in ``build/`` was made from, by the files that the stages have left.

    Parameters
    ----------
    role : str
        ``challenger`` or ``baseline``.
    metrics : mapping of str to float
        Of this model on its holdout.

    Raises
    ------
    ClearwayError
        A stage that must run first has not.
    """
    described = read_json(workspace.features / "features.json", made_by="scripts/build_features.py")
    decided = workspace.reports / "decision.json"
    decision: dict[str, Any] = {"reasons": [], "evidence": {"trigger": "manual"}}
    if decided.is_file():
        decision = read_json(decided)
    if not workspace.snapshot.is_file():
        raise ClearwayError(f"{workspace.snapshot} is missing: run scripts/ingest.py first")
    lock = workspace.root / "dvc.lock"
    return Lineage(
        project=params.project.name,
        role=role,
        as_of=params.time(),
        snapshot_sha256=sha256_file(workspace.snapshot),
        recipe_sha256=recipe_sha256(params, workspace),
        training_rows=described["rows"]["training"],
        labelled_rows=described["rows"]["training"] + described["rows"]["holdout"],
        trained_until=described.get("answers_until", {}).get("training"),
        metrics=dict(metrics),
        git_commit=git_commit(workspace.root),
        code_commit=code_commit(),
        lock_sha256=sha256_file(lock) if lock.is_file() else None,
        trigger=decision["evidence"]["trigger"],
        reasons=tuple(decision["reasons"]),
        packages=package_versions(),
    )


def recipe_sha256(params: Params, workspace: Workspace) -> str:
    """Hash of all that turns data into a model: feature definitions, schema, parameters, estimators and training code.

    Data and ``as_of`` are not in it: they have a hash of their own.
    """
    here = Path(__file__).parent
    recipe = {
        "definitions": definitions_sha256(params),
        "schema": sha256_file(workspace.root / params.data_schema),
        "parameters": params.model_dump(
            mode="json",
            include={"sources", "data", "target", "split", "seed", "train"},
            exclude={"train": {"resources", "joblib"}},  # where and on how much it is fitted changes no bit
        ),
        "estimators": own_sources_sha256((params.train.estimator, params.train.baseline)),
        "code": {name: sha256_file(here / name) for name in RECIPE_MODULES},
    }
    return sha256_bytes(canonical_json(recipe))


def git_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``, with ``-dirty`` if it does not hold what was used; None outside git.

    A tracked file that differs makes it dirty, except ``KEPT_FILES`` in ``folder``.
    """
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        return None
    kept = [f":(exclude){name}" for name in KEPT_FILES]
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", *kept)
    return head + (DIRTY if changed or changed is None else "")


def code_commit() -> str | None:
    """The commit of the line's own code, as :func:`git_commit` says it; None outside git."""
    return git_commit(Path(__file__).resolve().parents[2])


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Versions of what a model's bytes depend on: Python, the libraries, and NumPy's and SciPy's linear algebra.

    The last names the kind of processor too, for which its sums are arranged: on another their last bits may differ.
    """
    import scipy.linalg  # noqa: F401  loads the library that is asked for here
    from threadpoolctl import threadpool_info

    libraries = (found for found in threadpool_info() if found["user_api"] == "blas")
    blas = {f"{found['version']} {found.get('architecture', '')}".strip() for found in libraries}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "blas": ", ".join(sorted(blas)) or "unknown", **versions}


@cache
def installed_packages() -> str:
    """Every distribution that is installed, as ``name==version``, one a line, sorted."""
    described = (each.metadata for each in importlib.metadata.distributions())  # each is parsed again when asked again
    found = {(one["Name"].lower(), one["Version"]) for one in described if one["Name"]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found))
