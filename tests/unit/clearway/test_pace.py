"""What is quick, and from when on it no longer is."""

from clearway.pace import QUICK_SECONDS, QUICK_TIMES, Pace


def test_pace_counts_rows_in_a_row_and_one_slow_batch_ends_them() -> None:
    pace = Pace()
    for _ in range(QUICK_TIMES):
        assert not pace.quick
        pace.add(QUICK_SECONDS, 1)
    assert pace.quick
    pace.add(QUICK_SECONDS * 50, 100)
    assert pace.quick
    pace.add(QUICK_SECONDS * 101, 100)
    assert not pace.quick
