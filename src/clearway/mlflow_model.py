"""A registered bundle as an MLflow model: ``mlflow.pyfunc.load_model("models:/NAME@champion")`` verifies, then loads.

The file ``MLmodel`` beside a bundle names this module and the bundle's digest. MLflow calls :func:`_load_pyfunc` with
both, and nothing is deserialised before every file is what that digest says. The digest comes from the same place as
the bundle; where that place is not to be trusted, give the one from a ledger::

    mlflow.pyfunc.load_model("models:/NAME@champion", model_config={"digest": "…64 hexadecimal characters…"})

What this cannot help: MLflow itself runs the loader that ``MLmodel`` names, so whoever can write to the artifact store
can name another. The line's own servers read kept bundles by the ledger's digest, and never through MLflow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.model import Model, load_model

MODEL, BUNDLE, MLMODEL = "model", "bundle", "MLmodel"
"""The artifact folder of the model, and what is in it: the bundle and MLflow's file."""


class Scorer:
    """What MLflow calls: rows as a client would send them, answers with their scores."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Score rows.

        Parameters
        ----------
        rows : DataFrame
            A column for each feature; others are ignored.
        params : mapping, optional
            MLflow's; there are none.

        Returns
        -------
        DataFrame of shape (rows, 2) or (rows, 2 + classes)
            ``score``, and ``answer``: whether the score is at least the model's threshold, the name of a class, or a
            number. Of several classes also ``probability_`` and the name of each.

        Raises
        ------
        ClearwayError
            A feature is missing, or a value is not what the model can take.
        """
        model, target = self._model, self._model.target
        outputs = model.output(model.schema.encode(rows))
        answers = outputs >= model.threshold if target.binary else target.named(outputs, model.threshold)
        each = {f"probability_{name}": outputs[:, place] for place, name in enumerate(target.classes)}
        return pd.DataFrame({"score": target.score(outputs), "answer": answers, **each}, index=rows.index)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Scorer:
    """MLflow's entry: the verified model of the bundle in ``path``.

    Raises
    ------
    ClearwayError
        No digest is given, or the bundle is not what it says; nothing was deserialised.
    """
    digest = (model_config or {}).get("digest")
    if not isinstance(digest, str):
        raise ClearwayError(f"{path}: no digest to verify it by: the file {MLMODEL} must have config.digest")
    return Scorer(load_model(Path(path), digest))


def mlmodel(schema: InputSchema, digest: str, run: str, python: str) -> str:
    """The content of the file ``MLmodel`` beside the folder ``bundle``; ``python`` is the version it was made with."""
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature

    return str(
        Description(
            artifact_path=MODEL,
            run_id=run,
            flavors={
                "python_function": {
                    "loader_module": __name__,
                    "data": BUNDLE,
                    "config": {"digest": digest},
                    "python_version": python,
                    "env": {},
                }
            },
            signature=ModelSignature(inputs=input_columns(schema)),
            metadata={"digest": digest},
        ).to_yaml()
    )


def input_columns(schema: InputSchema) -> Any:
    """The features as MLflow's schema: none is required, because the model itself says which may be missing."""
    from mlflow.types import ColSpec, DataType, Schema

    kinds = {"bool": DataType.boolean, "numeric": DataType.double, "categorical": DataType.string}
    return Schema(
        [
            ColSpec(
                kinds["bool" if each.declared is not None and each.declared.kind == "bool" else each.kind],
                each.name,
                required=False,
            )
            for each in schema.features
        ]
    )
