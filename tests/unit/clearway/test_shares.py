import math

import pytest

from clearway.shares import share_gate, wilson


def test_all_kept_is_not_certain() -> None:
    """By hand: with k = n the bound is n / (n + z²), z the quantile of 0.95."""
    found = wilson(200, 200, 0.95)
    assert found.estimate == 1.0
    assert found.lower == pytest.approx(200 / (200 + 1.6448536269514722**2))
    assert found.upper == pytest.approx(1.0)


def test_without_rows_there_is_no_share_and_no_pass() -> None:
    assert math.isnan(wilson(0, 0, 0.95).estimate)
    gate = share_gate("shares", 0, 0, 0.0, 0.95, "rows are good")
    assert (gate.status, gate.n) == ("fail", 0)


@pytest.mark.parametrize(("kept", "rows", "status"), [(990, 1000, "pass"), (19, 20, "unknown"), (800, 1000, "fail")])
def test_a_share_passes_surely_fails_surely_or_is_unknown(kept: int, rows: int, status: str) -> None:
    gate = share_gate("shares", kept, rows, 0.95, 0.95, "rows are good")
    assert (gate.name, gate.status, gate.threshold, gate.n) == ("shares", status, 0.95, rows)
    assert f"{kept:,} of {rows:,} rows are good; lower bound" in gate.detail


def test_more_confidence_asks_for_more() -> None:
    assert share_gate("shares", 970, 1000, 0.96, 0.9, "rows are good").status == "pass"
    assert share_gate("shares", 970, 1000, 0.96, 0.99, "rows are good").status == "unknown"
