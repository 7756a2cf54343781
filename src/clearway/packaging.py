"""From a verdict to a bundle: what passed becomes deployable, and nothing else does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearway.bundle import BASELINE, CHALLENGER, OUTCOME, SIGNATURE, Bundle, add_signature, keep, pack
from clearway.calibration import read_calibration
from clearway.columns import LABEL, PREDICTION_TIME
from clearway.drift_reference import CALIBRATION, REFERENCE, SCORE_MAP
from clearway.files import atomic_directory, canonical_json, read_json, write_json
from clearway.footprint import payload_bytes
from clearway.labelled_rows import read_rows
from clearway.lineage import installed_packages, lineage_of
from clearway.model import PARAMS, Model, estimated, load_estimator, load_payload
from clearway.model_card import CardContent, render
from clearway.params import Params
from clearway.performance_estimate import fit_score_map
from clearway.profile import read_reference, write_reference
from clearway.secretless import without_secrets
from clearway.signing import sign
from clearway.snapshot import Snapshot
from clearway.target import judged, top_label
from clearway.trust import Trust, trust_of
from clearway.workspace import DRAWINGS, MODEL_PAGE, PLOTS, Workspace

GOLDEN_ROWS = 64
"""Holdout rows that travel with a bundle, with scikit-learn's scores: what a server must answer before it is ready."""


@dataclass(frozen=True)
class Outcome:
    """``build/bundle/outcome.json``. Digests are set only if the verdict is ``passed``."""

    verdict: str
    reason: str
    digest: str | None
    baseline_digest: str | None


def package(params: Params, workspace: Workspace) -> Outcome:
    """Write ``build/bundle/``, and keep its bundles under ``var/bundles/<digest>/``.

    ``challenger/`` and ``baseline/`` exist in it only if the challenger passed its gates.

    Raises
    ------
    ClearwayError
        A stage that must run first has not, or the model changed after it was judged.
    """
    validation = read_json(workspace.reports / "model_validation.json", made_by="scripts/validate_model.py")
    passed = validation["verdict"] == "passed"
    outcome = Outcome(
        verdict=validation["verdict"],
        reason=validation["reason"],
        digest=validation["digest"] if passed else None,
        baseline_digest=validation["baseline_digest"] if passed else None,
    )
    with atomic_directory(workspace.bundle) as folder:
        if passed:
            for role in (CHALLENGER, BASELINE):
                sign(_pack(params, workspace, validation, role, folder), params.signing, workspace.root)
        write_json(
            folder / OUTCOME,
            {"verdict": outcome.verdict, "digest": outcome.digest, "baseline_digest": outcome.baseline_digest},
        )
    if outcome.digest and outcome.baseline_digest:
        for role, digest in ((CHALLENGER, outcome.digest), (BASELINE, outcome.baseline_digest)):
            keep(workspace.bundle / role, workspace.bundles, digest)
            if params.signing.method != "none":  # one that was kept before may have the signature of an older key
                add_signature(workspace.bundles / digest, (workspace.bundle / role / SIGNATURE).read_bytes())
    return outcome


def _pack(params: Params, workspace: Workspace, validation: dict[str, Any], role: str, folder: Path) -> Bundle:
    payload = workspace.model if role == CHALLENGER else workspace.baseline
    judged = validation["digest" if role == CHALLENGER else "baseline_digest"]
    trust = trust_of(params, workspace)
    model = load_payload(payload, judged, trust)
    reference = workspace.build / REFERENCE
    calibration = read_calibration(workspace.build / CALIBRATION)
    if role == BASELINE:  # the same rows, as the simple model scores them
        calibration = calibration.for_baseline()
        rows = read_reference(reference)
        reference = folder / REFERENCE
        outputs = model.output(model.schema.encode(rows))
        write_reference(
            rows[list(model.schema.names)],
            model.target.score(outputs),
            reference,
            labels=rows.get(LABEL),
            answers=np.array(model.target.named(outputs, model.threshold)) if model.target.classes else None,
            times=rows.get(PREDICTION_TIME),
            seed=params.seed,
        )
    lineage = lineage_of(params, workspace, role, validation["metrics"][role])
    lock = workspace.root / "dvc.lock"
    made = pack(
        payload,
        {
            "lineage.json": canonical_json(lineage.model_dump(mode="json")),
            REFERENCE: reference,
            CALIBRATION: canonical_json(calibration.model_dump(mode="json")),
            **_score_map(workspace, model),
            "golden.json": canonical_json(_golden(params, workspace, payload, model, trust)),
            "model_validation.json": workspace.reports / "model_validation.json",
            "training.json": workspace.reports / "training.json",
            "params.yaml": _shown(workspace.params_file),
            "snapshot.json": workspace.snapshot,
            **({"dvc.lock": _shown(lock)} if lock.is_file() else {}),
            "packages.txt": installed_packages().encode(),
            "model_card.md": render(
                CardContent(
                    params=params,
                    digest=judged,
                    lineage=lineage,
                    snapshot=Snapshot.model_validate(read_json(workspace.snapshot)),
                    validation=validation,
                    fitted=read_json(payload / PARAMS)["train"],
                    training=read_json(workspace.reports / "training.json"),
                    payload_bytes=payload_bytes(payload),
                    runtime=model.runtime,
                    numeric=len(model.schema.numeric_positions),
                    categorical=len(model.schema.categorical_positions),
                )
            ).encode(),
            **(_pictures(workspace) if role == CHALLENGER else {}),
        },
        folder / role,
    )
    if role == BASELINE:
        reference.unlink()
    return made


def _shown(path: Path) -> bytes:
    """What goes wherever the bundle goes, MLflow among others: without the passwords in URLs."""
    return without_secrets(path.read_text(encoding="utf-8")).encode()


def _pictures(workspace: Workspace) -> dict[str, Path | bytes]:
    """The gates' report for people, the plots in it, and the numbers behind them."""
    found = [*(workspace.reports / DRAWINGS).glob("*.svg"), *(workspace.reports / PLOTS).glob("*.csv")]
    return {MODEL_PAGE: workspace.reports / MODEL_PAGE, **{f"{PLOTS}/{path.name}": path for path in sorted(found)}}


def _score_map(workspace: Workspace, model: Model) -> dict[str, bytes]:
    """What the model's scores mean, on rows it has not learnt from; of a number that is predicted, nothing is known."""
    if model.target.kind == "regression":
        return {}
    frame, told = read_rows(workspace, "holdout", model.target.kind)
    made = judged(model.target, told, (model.target, model.output(model.schema.encode(frame))))
    labels, scores = top_label(made.labels, made.outputs[0])
    return {SCORE_MAP: canonical_json(fit_score_map(scores, labels).model_dump(mode="json"))}


def _golden(params: Params, workspace: Workspace, payload: Path, model: Model, trust: Trust) -> dict[str, Any]:
    """A seeded sample of holdout rows as a client would send them, and scikit-learn's outputs for them."""
    frame, _ = read_rows(workspace, "holdout", model.target.kind)
    chosen = np.random.default_rng(params.seed).choice(len(frame), size=min(GOLDEN_ROWS, len(frame)), replace=False)
    rows = frame.iloc[np.sort(chosen)][list(model.schema.names)]
    outputs = estimated(load_estimator(payload, model.digest, trust), model.target, model.schema.encode(rows))
    plain = rows.astype("object").where(rows.notna(), None)
    return {"rows": plain.to_dict(orient="records"), "scores": outputs.tolist()}
