"""A reference of the season: past rows with the mix of hours, weekdays and months that the current window has.

Pure functions, no file. A Sunday is compared with Sundays and a night with nights, so that the calendar alone is no
drift. Rows are chosen and never repeated: a row counted twice would make chance look like evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clearway.columns import PREDICTION_TIME

TOLERATED = 0.01
"""Share of current rows, at most, that may be left out because the reference has none or too few of their season."""


@dataclass(frozen=True)
class Season:
    """Which rows to compare; positions in ascending order."""

    reference: NDArray[np.int64]
    current: NDArray[np.int64]
    problem: str = ""
    """Why there is no such reference; both positions are empty then."""

    @property
    def sentence(self) -> str:
        """For a person."""
        return self.problem or f"compared with {len(self.reference):,} reference rows of the same season"


def match_season(reference: pd.DataFrame, current: pd.DataFrame, parts: Sequence[str], seed: int) -> Season:
    """Draw reference rows so that their mix of ``parts`` of the time (UTC) is that of the current rows.

    As many rows are drawn as the scarcest season allows. Seasons so scarce that they would hold the others down are
    left out on both sides while they hold no more than ``TOLERATED`` of the current rows.

    Parameters
    ----------
    reference, current : DataFrame
        With the column ``prediction_time``.
    parts : sequence of str
        Of ``hour``, ``weekday`` and ``month``.
    seed : int
        Chooses the rows.
    """
    none = np.empty(0, dtype=np.int64)
    wanted = f"a reference of the same {', '.join(parts)}"
    for side, frame in (("reference", reference), ("current window", current)):
        if PREDICTION_TIME not in frame or frame[PREDICTION_TIME].isna().any() or frame.empty:
            return Season(none, none, f"{wanted} needs the time of every row, which the {side} does not hold")
    theirs, ours = _strata(reference[PREDICTION_TIME], parts), _strata(current[PREDICTION_TIME], parts)
    names, counts = np.unique(ours, return_counts=True)
    held = np.array([np.count_nonzero(theirs == name) for name in names])
    # A season allows held / share rows in all; the scarcest decides, and goes first where something may be left out.
    order = np.argsort(held / counts, kind="stable")
    left_out = order[np.cumsum(counts[order]) <= TOLERATED * len(ours)]
    keep = np.setdiff1d(np.arange(len(names)), left_out)
    lacking = keep[held[keep] == 0]
    if len(lacking):
        share = counts[lacking].sum() / len(ours)
        return Season(none, none, f"{wanted} is not to be had: {share:.0%} of the current rows are of one it lacks")
    times = (held[keep] / counts[keep]).min()
    random = np.random.default_rng(seed)
    # Rounded up or down by chance and together (systematic sampling): always down, rare seasons would lose most.
    until = np.floor(np.cumsum(times * counts[keep]) + random.uniform(1e-9, 1 - 1e-9))
    sizes = np.minimum(np.diff(until.astype(np.int64), prepend=0), held[keep])
    chosen = [
        random.choice(np.flatnonzero(theirs == names[i]), size=size, replace=False)
        for i, size in zip(keep, sizes, strict=True)
    ]
    return Season(np.sort(np.concatenate(chosen)), np.flatnonzero(np.isin(ours, names[keep])))


def _strata(times: pd.Series, parts: Sequence[str]) -> NDArray[np.int64]:
    """One number per row for its season."""
    numbers = {"hour": times.dt.hour, "weekday": times.dt.weekday, "month": times.dt.month}
    found = np.zeros(len(times), dtype=np.int64)
    for part in parts:
        found = found * 100 + numbers[part].to_numpy(dtype=np.int64)
    return found
