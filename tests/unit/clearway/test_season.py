"""A reference of the season has the current window's mix of hours, weekdays and months, and never repeats a row."""

import numpy as np
import pandas as pd
import pytest

from clearway.season import match_season


def hours(start: str, count: int, step: str = "h") -> pd.DataFrame:
    return pd.DataFrame({"prediction_time": pd.date_range(start, periods=count, freq=step, tz="UTC")})


def test_a_weekend_is_compared_with_weekends() -> None:
    reference, weekend = hours("2020-01-01", 24 * 70), hours("2020-06-06", 48)
    season = match_season(reference, weekend, ["weekday"], seed=1)
    chosen = reference["prediction_time"].iloc[season.reference].dt.weekday
    assert chosen.value_counts().to_dict() == {5: 240, 6: 240}
    assert len(season.current) == 48
    assert "480 reference rows of the same season" in season.sentence


def test_the_mix_is_that_of_the_current_window_and_no_row_comes_twice() -> None:
    reference = hours("2020-01-01", 24 * 100)
    times = pd.to_datetime(["2020-06-06 08:00"] * 30 + ["2020-06-06 20:30"] * 10, utc=True)
    season = match_season(reference, pd.DataFrame({"prediction_time": times}), ["hour"], seed=1)
    assert reference["prediction_time"].iloc[season.reference].dt.hour.value_counts().to_dict() == {8: 100, 20: 33}
    assert len(set(season.reference)) == len(season.reference)
    assert (np.diff(season.reference) > 0).all()


def test_rare_seasons_keep_their_part_of_the_reference() -> None:
    # Twelve hours of one current row each and one of 60; the reference allows 1.9 rows for each.
    reference = hours("2020-01-01", 24 * 114)
    rare = [f"2020-06-06 {hour:02}:00" for hour in range(12)]
    times = pd.to_datetime([*rare, *["2020-06-06 20:30"] * 60], utc=True)
    season = match_season(reference, pd.DataFrame({"prediction_time": times}), ["hour"], seed=1)
    chosen = reference["prediction_time"].iloc[season.reference].dt.hour
    assert len(chosen) == pytest.approx(1.9 * 72, abs=1)
    assert (chosen < 12).sum() == pytest.approx(1.9 * 12, abs=1)


def test_the_seed_chooses() -> None:
    reference, current = hours("2020-01-01", 2_000, "37min"), hours("2020-06-01", 90, "3h")
    drawn = [match_season(reference, current, ["hour", "weekday"], seed).reference.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_season_the_reference_lacks_is_said_and_nothing_is_compared() -> None:
    season = match_season(hours("2020-01-01", 24 * 60), hours("2020-06-01", 240), ["hour", "month"], seed=1)
    assert len(season.reference) == len(season.current) == 0
    assert "hour, month is not to be had: 100% of the current rows" in season.sentence


def test_a_trifle_of_rows_without_a_counterpart_is_left_out_and_more_is_not() -> None:
    reference = hours("2020-01-01 10:00", 500, "24h")
    common = pd.to_datetime(["2022-06-01 10:00"] * 199, utc=True)
    for odd, kept in ((1, 199), (20, 0)):
        times = common.append(pd.to_datetime(["2022-06-01 03:00"] * odd, utc=True))
        season = match_season(reference, pd.DataFrame({"prediction_time": times}), ["hour"], seed=1)
        assert len(season.current) == kept


@pytest.mark.parametrize("times", [None, [pd.NaT] * 5, []])
def test_rows_without_a_time_have_no_season(times: list[pd.Timestamp] | None) -> None:
    rows = pd.DataFrame({"x": range(5)}) if times is None else pd.DataFrame({"prediction_time": times})
    assert (
        "needs the time of every row, which the current window"
        in match_season(hours("2020", 9), rows, ["hour"], 1).problem
    )
    assert "which the reference" in match_season(rows, hours("2020", 9), ["hour"], 1).problem
