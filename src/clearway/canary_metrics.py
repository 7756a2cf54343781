"""Metrics of a canary that the prediction log does not hold: the project's own numbers, and labels that come late.

Each becomes an :class:`clearway.canary.Extra`: one value in [0, 1] for each request of which it is known, more being
worse, so that the judge treats it as it treats errors.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from clearway.canary import REACH, Extra
from clearway.errors import UsageError
from clearway.params import BusinessMetric, CanaryLabels
from clearway.target import Target

if TYPE_CHECKING:
    import pandas as pd

Measure = Callable[["pd.DataFrame"], "pd.Series[float]"]


def label_metric(labelled: "pd.DataFrame", rules: CanaryLabels, target: Target, threshold: float = 0.5) -> Extra:
    """What answers were worth, of those whose label is known.

    Parameters
    ----------
    labelled : DataFrame
        Columns ``id``, ``version``, ``score`` and ``label``, and of several classes ``probabilities``. Binary labels
        are 0 and 1, those of classes their names, as text.
    rules : CanaryLabels
    target : Target
    threshold : float
        Binary accuracy: yes from this score on.

    Returns
    -------
    Extra
        ``accuracy``: 1 where the answer was wrong. ``loss``: the squared error: of the probability; of the
        probabilities of all classes, halved; of a number in spreads of the labels, cut off at :data:`REACH`.
    """
    import pandas as pd

    known = labelled[labelled["label"].notna()].drop_duplicates(["id", "version"], keep="last")
    score = known["score"].to_numpy(dtype=np.float64)
    scale = 1.0
    if target.kind == "multiclass":
        truth = known["label"].astype(str)
        said = [row if isinstance(row, dict) else {} for row in known["probabilities"]]
        if rules.metric == "accuracy":
            wrong = [
                not row or max(row, key=lambda name: row[name]) != true for row, true in zip(said, truth, strict=True)
            ]
            values = np.array(wrong, dtype=np.float64)
        else:
            values = np.array(
                [
                    (sum(p * p for p in row.values()) + 1 - 2 * row.get(true, 0.0)) / 2 if row else 1.0
                    for row, true in zip(said, truth, strict=True)
                ],
                dtype=np.float64,
            )
    elif target.kind == "regression":
        assert target.spread is not None  # checked when it was made
        apart = np.abs(score - known["label"].to_numpy(dtype=np.float64)) / target.spread
        scale = REACH**2
        values = np.minimum(np.nan_to_num(apart, nan=REACH), REACH) ** 2 / scale
    else:
        label = known["label"].to_numpy(dtype=np.float64)
        score = np.where(np.isfinite(score), score, 1 - label)  # an answer that is no probability is the worst there is
        values = ((score >= threshold) != (label > 0.5)).astype(np.float64)
        if rules.metric == "loss":
            values = np.clip((score - label) ** 2, 0, 1)
    values = np.clip(values, 0, 1)
    kind = "rate" if rules.metric == "accuracy" else "mean"
    series = pd.Series(values, index=pd.MultiIndex.from_frame(known[["id", "version"]]))
    return Extra(rules.metric, series, rules.margin, kind, scale, late=True)  # type: ignore[arg-type]


def business_metric(observations: "pd.DataFrame", rules: BusinessMetric) -> Extra:
    """What the project's own function says of the requests of a rollout.

    Raises
    ------
    UsageError
        The function cannot be imported, or returns something else than numbers by request.
    """
    import pandas as pd

    where = f"canary.business.{rules.name}.function"
    module, name = rules.function.split(":")
    try:
        function: Measure = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"params.yaml: {where}: {rules.function} cannot be imported ({error})") from None
    found = function(observations)
    if not isinstance(found, pd.Series) or not pd.api.types.is_numeric_dtype(found):
        raise UsageError(
            f"params.yaml: {where}: {rules.function} must return a Series of numbers, indexed by request id"
        )
    if not found.index.is_unique:
        raise UsageError(f"params.yaml: {where}: {rules.function} returned more than one number for a request")
    width = rules.high - rules.low
    share = ((found.astype("float64") - rules.low) / width).clip(0, 1)
    worse = 1 - share if rules.better == "higher" else share
    return Extra(rules.name, worse, rules.margin, "mean", width)
