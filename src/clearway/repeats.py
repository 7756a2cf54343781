"""Rows that repeat each other, found with 8 bytes a row: 64-bit hashes are sorted, and equal ones looked at exactly."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clearway.frames import ROW, Frame

EXACT_ROWS = 2_000_000
"""More rows of equal hashes than this are believed: among 30 million different rows, two share a hash with a chance of
1 in 40,000."""
_ODD = pl.lit(0x9E3779B97F4A7C15, dtype=pl.UInt64)


def repeated_rows(
    frame: Frame, columns: Sequence[str], comparable: pl.Expr, which: Literal["all", "later"]
) -> NDArray[np.uint32]:
    """Positions of the rows that share their values of ``columns`` with another row.

    Parameters
    ----------
    frame : Frame
    columns : sequence of str
        Missing values equal each other.
    comparable : Expr
        Which rows are compared at all.
    which : {"all", "later"}
        All of them, or all but the first of each set.

    Returns
    -------
    array of uint32, ascending
    """
    hashed = pl.col(columns[0]).hash(seed=1)
    for seed, name in enumerate(columns[1:], start=2):  # in half the time of a struct's hash
        hashed = hashed * _ODD + pl.col(name).hash(seed=seed)
    hashes: NDArray[Any] = (
        frame.collect(frame.lazy.filter(comparable).select(hashed.alias("hash"))).to_series().to_numpy(writable=True)
    )
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    del hashes
    if not len(twice):
        return np.empty(0, dtype=np.uint32)
    known = pl.Series(twice).implode()
    equal = comparable & hashed.is_in(known)
    candidates = frame.numbered().filter(equal)
    if int(frame.collect(frame.lazy.select(equal.sum())).item()) > EXACT_ROWS:
        # their hashes stand for their values
        rows = frame.collect(candidates.select(ROW, hashed.alias("hash"))).sort(ROW)
        compared = pl.col("hash")
    else:
        rows = frame.collect(candidates.select(ROW, *columns)).sort(ROW)
        compared = pl.struct(columns)
    repeated = compared.is_duplicated() if which == "all" else ~compared.is_first_distinct()
    return rows.filter(repeated)[ROW].to_numpy()
