"""How well the champion does on rows whose answers are not known yet, from its scores alone. Pure functions, no file.

Confidence-based: a score is turned into the share of yes it meant on the holdout, and each row then counts as a yes
with that weight and as a no with the rest. What the metrics of such a table are is what they are expected to be, if
:data:`ASSUMPTIONS` hold. Nothing is decided by it.

References
----------
NannyML, "Confidence-based Performance Estimation (CBPE)",
https://nannyml.readthedocs.io/en/stable/how_it_works/performance_estimation.html
Garg, S., Balakrishnan, S., Lipton, Z., Neyshabur, B. & Sedghi, H. (2022). Leveraging unlabeled data to predict
out-of-distribution performance. ICLR.
Zadrozny, B. & Elkan, C. (2002). Transforming classifier scores into accurate multiclass probability estimates. KDD.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from clearway.target import BINARY, Target

Floats = NDArray[np.float64]

ESTIMATED = ("roc_auc", "log_loss", "brier", "accuracy", "precision", "recall", "f1")
"""Metrics of :mod:`clearway.metrics` that are estimated of a binary model. Of several classes the accuracy is: the
score map then says how often an answer of such a score is right. Of a number nothing is."""
ASSUMPTIONS = (
    "scores mean what they meant on the holdout: the score map still holds",
    "only the rows have changed, not how the answer follows from them (covariate shift, no concept drift)",
    "the rows lie where the holdout has rows too",
)
"""What must hold for an estimate to mean anything. None of it can be checked without answers."""
MIN_ROWS = 200
"""Holdout rows below which a score map says too little to estimate from."""
MAX_GROUPS = 100
MIN_GROUP = 25
"""Rows that are averaged before the map is made to rise; less would fit the noise of single answers."""


class ScoreMap(BaseModel):
    """What a score means: the share of yes among holdout rows with such a score; rising, linear between the knots."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...]
    """Knots, ascending."""
    probabilities: tuple[float, ...]
    """Share of yes at each knot, never falling."""
    rows: int
    """Holdout rows it was fitted on."""
    positives: int

    @model_validator(mode="after")
    def _one_to_one(self) -> Self:
        if not self.scores or len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"{len(self.scores)} scores and {len(self.probabilities)} probabilities: as many are needed"
            )
        return self

    def probability(self, scores: Floats) -> Floats:
        """The share of yes at each score; beyond the outer knots, theirs."""
        found: Floats = np.interp(scores, self.scores, self.probabilities)
        return found


class PerformanceEstimate(BaseModel):
    """Expected metrics of rows without answers. It is reported and decides nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    metrics: dict[str, float] = {}
    """Expected value by metric; empty where none can be estimated."""
    holdout: dict[str, float] = {}
    """What the champion had on its own holdout, for comparison."""
    assumptions: tuple[str, ...] = ()
    """What must hold for the estimate to mean anything, for a person."""
    sentence: str
    """For a person; says why where nothing is estimated."""


def fit_score_map(scores: Floats, labels: Floats) -> ScoreMap:
    """Fit the share of yes to the score, never falling (isotonic regression on means of neighbouring rows).

    Parameters
    ----------
    scores : float64 array of shape (rows,)
        Of rows the model has not learnt from.
    labels : float64 array of shape (rows,)
        0.0 or 1.0.

    Raises
    ------
    ValueError
        There are no rows, or not one finite score per label.
    """
    from sklearn.isotonic import isotonic_regression

    if not len(scores) or len(scores) != len(labels) or not np.isfinite(scores).all():
        raise ValueError(f"a score map needs one finite score per label, got {len(scores)} and {len(labels)}")
    order = np.argsort(scores, kind="stable")
    ranked, answers = scores[order], labels[order]
    size = max(MIN_GROUP, -(-len(ranked) // MAX_GROUPS))
    # Rows of one score stay in one group: a group begins where the score first differs from the row before.
    starts = np.unique(np.searchsorted(ranked, ranked[::size], "left"))
    rows = np.diff(np.append(starts, len(ranked)))
    knots = np.add.reduceat(ranked, starts) / rows
    shares = np.add.reduceat(answers, starts) / rows
    rising = np.clip(isotonic_regression(shares, sample_weight=rows), 0, 1)
    return ScoreMap(
        scores=tuple(knots.tolist()),
        probabilities=tuple(rising.tolist()),
        rows=len(scores),
        positives=int(labels.sum()),
    )


def no_estimate(rows: int, reason: str) -> PerformanceEstimate:
    """What is said where nothing can be estimated."""
    return PerformanceEstimate(rows=rows, sentence=f"Performance without answers is not estimated: {reason}.")


def estimate(
    scores: Floats,
    score_map: ScoreMap,
    threshold: float,
    names: Sequence[str] = ESTIMATED,
    *,
    holdout: Mapping[str, float] | None = None,
    target: Target = BINARY,
) -> PerformanceEstimate:
    """The expected metrics of rows with these scores.

    Parameters
    ----------
    scores : float64 array of shape (rows,)
        The model's scores of rows without answers.
    score_map : ScoreMap
        What its scores meant on its holdout.
    threshold : float
        Score from which the answer is yes.
    names : sequence of str
        Of :mod:`clearway.metrics`.
    holdout : mapping of str to float, optional
        The model's metrics on its holdout, to stand beside the estimate.
    target : Target
        What the model answers.

    Returns
    -------
    PerformanceEstimate
        Without metrics where the map rests on fewer than ``MIN_ROWS`` rows or on answers all alike, or there is no
        row, or a score is not finite.
    """
    from clearway.metrics import METRICS

    count = len(scores)
    problem = ""
    if not count:
        problem = "there is no row to score"
    elif not np.isfinite(scores).all():
        problem = "a score is not a number"
    elif score_map.rows < MIN_ROWS:
        problem = f"the score map rests on {score_map.rows:,} holdout rows, {MIN_ROWS} needed"
    elif not 0 < score_map.positives < score_map.rows:
        problem = "the holdout's answers are all alike"
    if problem:
        return no_estimate(count, problem)
    yes = score_map.probability(scores)
    if target.binary:
        # Each row stands twice, once for either answer, weighted with how likely that answer is.
        labels, twice, weights = np.repeat([1.0, 0.0], count), np.tile(scores, 2), np.concatenate([yes, 1 - yes])
        found = {name: METRICS[name].weighted(labels, twice, threshold)(weights) for name in names}
    else:
        found = {"accuracy": float(yes.mean())}
    metrics = {name: value for name, value in found.items() if np.isfinite(value)}
    before = {name: holdout[name] for name in metrics if holdout and name in holdout}
    said = ", ".join(
        f"{name} {metrics[name]:.3f}" + (f" ({before[name]:.3f} on the holdout)" if name in before else "")
        for name in metrics
    )
    return PerformanceEstimate(
        rows=count,
        metrics=metrics,
        holdout=before,
        assumptions=ASSUMPTIONS,
        sentence=f"Expected on {count:,} rows without waiting for answers: {said}.",
    )
