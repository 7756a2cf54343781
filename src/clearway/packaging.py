"""From a verdict to a bundle: what passed becomes deployable, and nothing else does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clearway.bundle import BASELINE, CHALLENGER, OUTCOME, Bundle, keep, pack
from clearway.calibration import read_calibration
from clearway.cli import markdown_cell
from clearway.columns import LABEL, PREDICTION_TIME
from clearway.drift_reference import CALIBRATION, REFERENCE, SCORE_MAP
from clearway.files import atomic_directory, canonical_json, read_json, write_json
from clearway.labelled_rows import read_rows
from clearway.lineage import Lineage, lineage_of
from clearway.model import Model, estimated, load_estimator, load_payload
from clearway.params import Params
from clearway.performance_estimate import fit_score_map
from clearway.profile import read_reference, write_reference
from clearway.target import judged, top_label
from clearway.workspace import Workspace

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
                _pack(params, workspace, validation, role, folder)
        write_json(
            folder / OUTCOME,
            {"verdict": outcome.verdict, "digest": outcome.digest, "baseline_digest": outcome.baseline_digest},
        )
    if outcome.digest and outcome.baseline_digest:
        keep(workspace.bundle / CHALLENGER, workspace.bundles, outcome.digest)
        keep(workspace.bundle / BASELINE, workspace.bundles, outcome.baseline_digest)
    return outcome


def _pack(params: Params, workspace: Workspace, validation: dict[str, Any], role: str, folder: Path) -> Bundle:
    payload = workspace.model if role == CHALLENGER else workspace.baseline
    judged = validation["digest" if role == CHALLENGER else "baseline_digest"]
    model = load_payload(payload, judged)
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
            "golden.json": canonical_json(_golden(params, workspace, payload, model)),
            "model_validation.json": workspace.reports / "model_validation.json",
            "training.json": workspace.reports / "training.json",
            "params.yaml": workspace.params_file,
            "snapshot.json": workspace.snapshot,
            **({"dvc.lock": lock} if lock.is_file() else {}),
            "model_card.md": _card(params, validation, lineage, judged).encode(),
        },
        folder / role,
    )
    if role == BASELINE:
        reference.unlink()
    return made


def _score_map(workspace: Workspace, model: Model) -> dict[str, bytes]:
    """What the model's scores mean, on rows it has not learnt from; of a number that is predicted, nothing is known."""
    if model.target.kind == "regression":
        return {}
    frame, told = read_rows(workspace, "holdout", model.target.kind)
    made = judged(model.target, told, (model.target, model.output(model.schema.encode(frame))))
    labels, scores = top_label(made.labels, made.outputs[0])
    return {SCORE_MAP: canonical_json(fit_score_map(scores, labels).model_dump(mode="json"))}


def _golden(params: Params, workspace: Workspace, payload: Path, model: Model) -> dict[str, Any]:
    """A seeded sample of holdout rows as a client would send them, and scikit-learn's outputs for them."""
    frame, _ = read_rows(workspace, "holdout", model.target.kind)
    chosen = np.random.default_rng(params.seed).choice(len(frame), size=min(GOLDEN_ROWS, len(frame)), replace=False)
    rows = frame.iloc[np.sort(chosen)][list(model.schema.names)]
    outputs = estimated(load_estimator(payload), model.target, model.schema.encode(rows))
    plain = rows.astype("object").where(rows.notna(), None)
    return {"rows": plain.to_dict(orient="records"), "scores": outputs.tolist()}


def _answers(params: Params) -> str:
    kinds = {"multiclass": "one of several classes", "regression": "a number"}
    return kinds.get(params.target.kind, f"yes from a score of {params.train.threshold:g}")


def _card(params: Params, validation: dict[str, Any], lineage: Lineage, digest: str) -> str:
    """A model card for people: what it is, what it was made from, how good it was, what it was held to."""
    when = f"{lineage.as_of:%Y-%m-%d %H:%M} UTC" if lineage.as_of else "no time in the data"
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in lineage.metrics.items())
    gates = "\n".join(
        f"| {markdown_cell(gate['name'])} | {gate['status']} | {markdown_cell(gate['detail'])} |"
        for gate in validation["gates"]
    )
    arguments = params.train.arguments if lineage.role == CHALLENGER else params.train.baseline_arguments
    estimator = params.train.estimator if lineage.role == CHALLENGER else params.train.baseline
    judged = f"## Gates\n\n{validation['reason']}.\n\n| gate | status | detail |\n| --- | --- | --- |\n{gates}\n"
    return f"""# {params.project.name}: {lineage.role} `{digest[:12]}`

- digest: `{digest}`
- estimator: `{estimator}`, arguments: {yaml.safe_dump(arguments, default_flow_style=True, width=10_000).strip()}
- answers {_answers(params)}
- data as of: {when}, {lineage.training_rows:,} training rows, snapshot `{lineage.snapshot_sha256}`
- code: commit `{lineage.git_commit or "no git"}`, recipe `{lineage.recipe_sha256}`
- trained because: {lineage.trigger} ({", ".join(lineage.reasons) or "no reason recorded"})

## Holdout metrics

| metric | value |
| --- | --- |
{metrics}

{judged if lineage.role == CHALLENGER else "The simple model that the gates compare with: a control, held to no gate."}
"""
