"""MLflow as the line's memory for people: one run and one model version per bundle.

The ledger is the truth about what is served; MLflow's aliases follow it. ``challenger`` is the newest bundle that
passed its gates, ``champion`` the one production calls stable. Everything logged is read from the verified bundle,
and a digest is registered once, however often it is asked for.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from clearway.bundle import CHALLENGER, Bundle, read_built, verify
from clearway.errors import ClearwayError
from clearway.files import read_json
from clearway.lineage import Lineage
from clearway.model import PARAMS
from clearway.params import Params
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER_ALIAS, CHAMPION_ALIAS = "challenger", "champion"
DIGEST_TAG = "digest"


@dataclass(frozen=True)
class Registered:
    """A bundle as MLflow knows it."""

    model: str
    version: str
    digest: str
    uri: str
    """The MLflow server or database, without credentials."""
    created: bool
    """Whether this call made the version; False if the digest was registered before."""


def tracking_uri(params: Params, workspace: Workspace) -> str:
    """Where MLflow is: ``$MLFLOW_TRACKING_URI``, else ``registry.tracking_uri``, else SQLite under ``var/``."""
    local = f"sqlite:///{(workspace.var / 'mlflow.db').resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or params.registry.tracking_uri or local


def register(params: Params, workspace: Workspace) -> Registered | None:
    """Log the challenger of ``build/bundle`` and give it the alias ``challenger``; None if there is none.

    Raises
    ------
    ClearwayError
        The bundle does not verify, or MLflow cannot be reached; names its address.
    """
    built = read_built(workspace.bundle)
    if built.verdict != "passed" or built.digest is None:
        return None
    bundle = verify(workspace.bundle / CHALLENGER, built.digest)
    reports = [workspace.reports / "model_validation.html", *sorted((workspace.reports / "plots").glob("*.csv"))]
    return _register(params, workspace, bundle, CHALLENGER_ALIAS, [path for path in reports if path.is_file()])


def set_champion(params: Params, workspace: Workspace, digest: str) -> Registered:
    """Point the alias ``champion`` at the version of ``digest``, registering the kept bundle first if need be.

    Raises
    ------
    ClearwayError
        The digest is neither registered nor kept, or MLflow cannot be reached; names its address.
    """
    return _register(params, workspace, verify(workspace.bundles / digest, digest), CHAMPION_ALIAS, [])


def _register(params: Params, workspace: Workspace, bundle: Bundle, alias: str, reports: list[Path]) -> Registered:
    uri = tracking_uri(params, workspace)
    name = params.model_name
    lineage = bundle.lineage()
    with _reaching(uri):
        client = _client(uri, workspace)
        version = _find_version(client, name, bundle.digest)
        created = version is None
        if version is None:
            run = _find_run(client, name, bundle.digest) or _log_run(
                client, workspace, name, uri, bundle, lineage, reports
            )
            version = _create_version(client, name, bundle, lineage, run)
        client.set_registered_model_alias(name, alias, version)
    return Registered(name, version, bundle.digest, _without_password(uri), created)


def _client(uri: str, workspace: Workspace) -> "MlflowClient":
    """A client that waits seconds, not minutes, for a server that is away, and keeps its chatter to itself."""
    for variable, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(variable, value)
    workspace.var.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient  # costs seconds

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def _find_version(client: "MlflowClient", name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{DIGEST_TAG} = '{digest}'", max_results=1)
    return str(found[0].version) if found else None


def _find_run(client: "MlflowClient", name: str, digest: str) -> str | None:
    """A finished run of this bundle: an earlier attempt may have stopped between run and version."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    wanted = f"tags.{DIGEST_TAG} = '{digest}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def _log_run(
    client: "MlflowClient",
    workspace: Workspace,
    name: str,
    uri: str,
    bundle: Bundle,
    lineage: Lineage,
    reports: list[Path],
) -> str:
    from mlflow.entities import Metric, Param, RunTag

    experiment = client.get_experiment_by_name(name)
    served = uri.startswith(("http://", "https://", "databricks"))  # such a server chooses where artifacts go
    place = None if served else (workspace.var / "mlartifacts" / name).resolve().as_uri()
    number = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=place)
    started = client.create_run(number, run_name=f"{lineage.role}-{bundle.digest[:12]}")
    run = str(started.info.run_id)
    at = started.info.start_time
    try:
        client.log_batch(
            run,
            metrics=[Metric(key, value, at, 0) for key, value in _metrics(bundle, lineage).items()],
            params=[Param(key, str(value)) for key, value in _params(bundle).items()],
            tags=[RunTag(key, value) for key, value in _tags(bundle, lineage).items()],
        )
        client.log_artifacts(run, str(bundle.path), "bundle")
        for report in reports:
            client.log_artifact(run, str(report), "reports")
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")
    return run


def _create_version(client: "MlflowClient", name: str, bundle: Bundle, lineage: Lineage, run: str) -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = client.get_run(run).info.artifact_uri
    when = f" as of {lineage.as_of:%Y-%m-%d}" if lineage.as_of else ""
    made = client.create_model_version(
        name,
        source=f"{source}/bundle",
        run_id=run,
        tags=_tags(bundle, lineage),
        description=f"{lineage.role}{when}, bundle {bundle.digest}",
    )
    return str(made.version)


def _metrics(bundle: Bundle, lineage: Lineage) -> dict[str, float]:
    training = read_json(bundle.evidence("training.json"))
    mine = training[lineage.role]
    return {
        **{f"holdout_{key}": value for key, value in lineage.metrics.items()},
        **{f"training_{key}": value for key, value in mine["training_metrics"].items()},
        "training_seconds": mine["seconds"],
        "peak_memory_mb": training["peak_memory_mb"],
        "training_rows": lineage.training_rows,
    }


def _params(bundle: Bundle) -> dict[str, Any]:
    params = json.loads(bundle.read(PARAMS))
    train, target = params.pop("train"), params.pop("target", {})
    return {
        **params,
        **{f"target.{key}": value for key, value in target.items() if key != "classes"},
        "estimator": train["estimator"],
        "threads": train["threads"],
        **{f"arguments.{key}": value for key, value in train["arguments"].items()},
    }


def _tags(bundle: Bundle, lineage: Lineage) -> dict[str, str]:
    tags = {
        DIGEST_TAG: bundle.digest,
        "role": lineage.role,
        "as_of": lineage.as_of.isoformat() if lineage.as_of else "",
        "data_sha256": lineage.snapshot_sha256,
        "recipe_sha256": lineage.recipe_sha256,
        "lock_sha256": lineage.lock_sha256 or "",
        "git_commit": lineage.git_commit or "",
        "trigger": lineage.trigger,
        "reasons": ", ".join(lineage.reasons),
    }
    return {key: value for key, value in tags.items() if value}


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turn whatever MLflow and its drivers raise into one line that names the address."""
    try:
        yield
    except ClearwayError:
        raise
    except Exception as error:  # MLflow lets its drivers' exceptions through: requests, SQLAlchemy, sqlite3, OSError
        reason = " ".join(str(error).split()).replace(uri, _without_password(uri))[:300]
        raise ClearwayError(
            f"MLflow at {_without_password(uri)} failed ({type(error).__name__}: {reason}): start or correct it, "
            "or change MLFLOW_TRACKING_URI; with none, SQLite under var/ is used"
        ) from None


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
