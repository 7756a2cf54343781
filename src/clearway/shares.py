"""A share of rows, and how sure it is: the gates that count rows judge by this."""

from clearway.gates import Gate, Status
from clearway.paired import UNDEFINED, Interval


def wilson(kept: int, rows: int, confidence: float) -> Interval:
    """A share and its score interval (Wilson, JASA 22, 1927).

    It holds where all or none were kept: 200 of 200 has a lower bound of 0.987 and not of 1. Rows must be independent.

    Parameters
    ----------
    kept, rows : int
    confidence : float
        One-sided level of each bound, above 0.5.

    Returns
    -------
    Interval
        Undefined (NaN, no bounds) without rows.
    """
    if not rows:
        return UNDEFINED
    from scipy.stats import binomtest

    found = binomtest(kept, rows).proportion_ci(2 * confidence - 1, method="wilson")
    return Interval(kept / rows, float(found.low), float(found.high))


def share_gate(name: str, kept: int, rows: int, least: float, confidence: float, said: str) -> Gate:
    """Whether the share of rows is at least ``least``: pass if surely, fail if surely not, else unknown.

    ``said`` is what the share is of, such as ``rows keep their answer``. Without rows nothing was shown: fail.
    """
    if not rows:
        return Gate(name, "fail", f"no row tells whether {said}", threshold=least, n=0)
    found = wilson(kept, rows, confidence)
    assert found.lower is not None  # there are rows
    assert found.upper is not None
    status: Status = "pass" if found.lower >= least else "fail" if found.upper < least else "unknown"
    detail = f"{kept:,} of {rows:,} {said}; lower bound {found.lower:.4f}, at least {least:g} is needed"
    return Gate(name, status, detail, found.estimate, found.lower, found.upper, least, rows)
