"""MLflow as the line's memory for people: one run and one model version per bundle.

A run holds the bundle as an MLflow model, the gates' report with its plots, every parameter, every metric by split,
slice and role, and the snapshot it was made from. A version is made only of a run that has finished: an attempt that
was killed leaves a run that says so, and the next attempt begins anew.

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
from typing import TYPE_CHECKING

from clearway.bundle import CHALLENGER, EVIDENCE, Bundle, BundleError, read_built, verify
from clearway.comparison import effective
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.files import held, read_json
from clearway.lineage import Lineage
from clearway.mlflow_model import BUNDLE, MLMODEL, MODEL, input_columns, mlmodel
from clearway.model import PARAMS, SCHEMA
from clearway.model_record import params_of, snapshot_of
from clearway.params import Params
from clearway.registry_content import (
    DIGEST_TAG,
    METRICS_PER_BATCH,
    PARAMS_PER_BATCH,
    Content,
    chunks,
    content_of,
)
from clearway.secretless import addresses
from clearway.workspace import MODEL_PAGE, MODEL_REPORT, PLOTS, Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER_ALIAS, CHAMPION_ALIAS = "challenger", "champion"
CARD = "model_card.md"
_LONGEST_SCHEMA = 1_000_000
"""Characters of a data set's schema: MLflow takes a little more."""
_LOCK_SECONDS = 300.0
"""How long one registration waits for another of the same project, on the same machine."""


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
    return _register(params, workspace, verify(workspace.bundle / CHALLENGER, built.digest), CHALLENGER_ALIAS)


def set_champion(params: Params, workspace: Workspace, digest: str) -> Registered:
    """Point the alias ``champion`` at the version of ``digest``, registering the kept bundle first if need be.

    Raises
    ------
    ClearwayError
        The digest is neither registered nor kept, or MLflow cannot be reached; names its address.
    """
    return _register(params, workspace, verify(workspace.bundles / digest, digest), CHAMPION_ALIAS)


def champion_digest(params: Params, workspace: Workspace) -> str | None:
    """The digest that the alias ``champion`` names; None where the model or the alias does not exist.

    Raises
    ------
    ClearwayError
        MLflow cannot be reached; names its address.
    """
    uri = tracking_uri(params, workspace)
    with _reaching(uri):
        client = _client(uri, workspace)
        if not client.search_registered_models(f"name = '{params.model_name}'"):
            return None
        aliases = client.get_registered_model(params.model_name).aliases
        if CHAMPION_ALIAS not in aliases:
            return None
        found = client.get_model_version_by_alias(params.model_name, CHAMPION_ALIAS).tags.get(DIGEST_TAG)
        return None if found is None else str(found)


def _register(params: Params, workspace: Workspace, bundle: Bundle, alias: str) -> Registered:
    uri = tracking_uri(params, workspace)
    name = params.model_name
    with held(workspace.var / "mlflow.lock", _LOCK_SECONDS), _reaching(uri):
        client = _client(uri, workspace)
        version = _find_version(client, name, bundle.digest)
        created = version is None
        if version is None:
            lineage = bundle.lineage()
            content = _content(bundle, lineage)
            run = _find_run(client, name, bundle.digest)
            run = run or _log_run(client, workspace, name, uri, bundle, lineage, content)
            version = _create_version(client, name, params.model_card.intended_use, content, run)
        client.set_registered_model_alias(name, alias, version)
    return Registered(name, version, bundle.digest, addresses(uri), created)


def _content(bundle: Bundle, lineage: Lineage) -> Content:
    """What the evidence says, which the digest does not cover.

    Raises
    ------
    BundleError
        It is not what the line writes.
    """
    try:
        return _told(bundle, lineage)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / EVIDENCE} is not what the line writes ({type(error).__name__}: {error}): run "
            "scripts/package_model.py again"
        ) from None


def _told(bundle: Bundle, lineage: Lineage) -> Content:
    files = bundle.evidence_manifest.files
    written = params_of(bundle) if "params.yaml" in files else {}
    return content_of(
        lineage,
        bundle.digest,
        model=json.loads(bundle.read(PARAMS)),
        params=effective(written) or written,
        training=read_json(bundle.evidence("training.json")),
        validation=read_json(bundle.evidence(MODEL_REPORT)) if MODEL_REPORT in files else {},
        snapshot=snapshot_of(bundle, lineage),
        card=bundle.evidence(CARD).read_text(encoding="utf-8") if CARD in files else f"bundle `{bundle.digest}`",
    )


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
    """A finished run of this bundle: an earlier attempt may have stopped between run and version.

    One that was killed before its run ended left that run running for ever: it is ended here.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    finished = None
    for run in client.search_runs([experiment.experiment_id], f"tags.{DIGEST_TAG} = '{digest}'"):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
        elif run.info.status == "FINISHED" and client.list_artifacts(run.info.run_id, MODEL):
            finished = str(run.info.run_id)
    return finished


def _log_run(
    client: "MlflowClient",
    workspace: Workspace,
    name: str,
    uri: str,
    bundle: Bundle,
    lineage: Lineage,
    content: Content,
) -> str:
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(name)
    served = uri.startswith(("http://", "https://", "databricks"))  # such a server chooses where artifacts go
    place = None if served else (workspace.var / "mlartifacts" / name).resolve().as_uri()
    number = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=place)
    started = client.create_run(
        number, run_name=f"{lineage.role}-{bundle.digest[:12]}", tags={**content.tags, **content.run_tags}
    )
    run = str(started.info.run_id)
    at = started.info.start_time
    try:
        schema = InputSchema.model_validate_json(bundle.read(SCHEMA))
        metrics = [Metric(key, value, at, 0) for key, value in content.metrics.items()]
        params = [Param(key, value) for key, value in content.params.items()]
        for some in chunks(params, PARAMS_PER_BATCH):
            client.log_batch(run, params=some)
        for some in chunks(metrics, METRICS_PER_BATCH):
            client.log_batch(run, metrics=some)
        _log_dataset(client, run, content, schema)
        client.log_artifacts(run, str(bundle.path), f"{MODEL}/{BUNDLE}")
        text = mlmodel(schema, bundle.digest, run, lineage.packages.get("python", ""))
        client.log_text(run, text, f"{MODEL}/{MLMODEL}")
        for report in sorted(bundle.evidence_manifest.files):
            if report in (MODEL_PAGE, CARD) or report.startswith(f"{PLOTS}/"):
                folder = f"reports/{PLOTS}" if report.startswith(f"{PLOTS}/") else "reports"
                client.log_artifact(run, str(bundle.evidence(report)), folder)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")
    return run


def _log_dataset(client: "MlflowClient", run: str, content: Content, schema: InputSchema) -> None:
    """The snapshot as the run's input: its hash, and the tables in it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = json.dumps({"mlflow_colspec": input_columns(schema).to_dict()})
    if len(columns) > _LONGEST_SCHEMA:
        columns = json.dumps({"features": len(schema.features)})
    made = Dataset(source_type="clearway", schema=columns, **content.dataset)
    client.log_inputs(run, [DatasetInput(made, [InputTag("mlflow.data.context", "training and holdout")])])


def _create_version(client: "MlflowClient", name: str, use: str | None, content: Content, run: str) -> str:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=use)
    source = client.get_run(run).info.artifact_uri
    made = client.create_model_version(
        name, source=f"{source}/{MODEL}", run_id=run, tags=dict(content.tags), description=content.description
    )
    return str(made.version)


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turn whatever MLflow and its drivers raise into one line that names the address."""
    try:
        yield
    except ClearwayError:
        raise
    except Exception as error:  # MLflow lets its drivers' exceptions through: requests, SQLAlchemy, sqlite3, OSError
        reason = addresses(" ".join(str(error).split()))[:300]
        raise ClearwayError(
            f"MLflow at {addresses(uri)} failed ({type(error).__name__}: {reason}): start or correct it, "
            "or change MLFLOW_TRACKING_URI; with none, SQLite under var/ is used"
        ) from None
