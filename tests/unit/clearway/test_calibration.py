"""The calibration: it leaves independent rows alone, and keeps dependent ones from crying wolf."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clearway.calibration import Calibration, calibrate, read_calibration, window_sizes, window_starts
from clearway.drift import Kind, measure_drift
from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.params import DriftParams

KINDS: dict[str, Kind] = {"level": "numeric", "noise": "numeric", "place": "categorical"}
STRICT = DriftParams(numeric_effect=0, mean_effect=0, spread_effect=0, categorical_effect=0, unseen_effect=0)


def series(rows: int, seed: int, block: int = 100) -> pd.DataFrame:
    """Blocks of rows with a level, a mix of places and gaps of their own, as the days of a year have."""
    random = np.random.default_rng(seed)
    days = -(-rows // block)
    level = np.repeat(random.normal(size=days), block)[:rows]
    often = np.repeat(random.beta(2, 2, days), block)[:rows]
    frame = pd.DataFrame(
        {
            "level": level + random.normal(size=rows),
            "noise": random.normal(size=rows),
            "place": np.where(random.random(rows) < often, "north", "south"),
        }
    )
    frame.loc[np.repeat(random.random(days) < 0.2, block)[:rows], "level"] = np.nan
    return frame


FRAME = series(40_000, 1)
MADE = calibrate(
    FRAME, KINDS, outputs={"score": ("numeric", FRAME["level"]), "baseline_score": ("numeric", FRAME["noise"])}
)


def test_independent_rows_are_left_nearly_alone_and_dependent_ones_are_not() -> None:
    noise, level = MADE.features["noise"], MADE.features["level"]
    assert max(noise.inflation["mean"]) < 2.5
    assert np.mean(noise.inflation["distribution"]) < 1.6
    assert set(noise.inflation["missing"]) == {1.0}
    at_once = level.at("mean", 100).factor
    assert at_once > 20  # half of the variance is shared by 100 rows: 1 + 99 / 2 at least for whole blocks
    assert level.at("mean", 50).factor < at_once < 80
    assert level.at("missing", 100).factor > 20
    assert MADE.features["place"].at("distribution", 100).factor > 10


def test_the_inflation_follows_the_size_of_the_window() -> None:
    level = MADE.features["level"]
    place = level.sizes.index(500)
    assert level.at("mean", 500).factor == pytest.approx(level.inflation["mean"][place])
    between = sorted([level.inflation["mean"][place], level.inflation["mean"][place + 1]])
    assert between[0] <= level.at("mean", 700).factor <= between[1]
    assert level.at("mean", 5).factor == pytest.approx(level.inflation["mean"][0])
    last, largest = level.sizes[-1], level.inflation["mean"][-1]
    assert level.at("mean", 10 * last).factor == pytest.approx(1 + 10 * (largest - 1))
    assert level.at("mean", 10 * last).windows == level.windows[-1]
    assert level.at("unseen", 100).factor == 1.0


@pytest.mark.parametrize("rows", [100, 1_000])
def test_windows_of_the_same_process_do_not_alarm(rows: int) -> None:
    alarms = uncalibrated = 0
    for seed in range(40):
        current = series(rows + 100, 100 + seed).iloc[7 * seed % 100 :].head(rows)  # begins anywhere within a block
        for calibration in (MADE, None):
            report = measure_drift(FRAME, current, ["level", "noise"], ["place"], STRICT, calibration=calibration)
            alarms += bool(report.drifted) and report.calibrated
            uncalibrated += bool(report.drifted) and not report.calibrated
    assert alarms <= 6  # 2 expected at most
    assert uncalibrated > 30  # the reason for all this


def test_a_real_shift_is_still_found() -> None:
    current = series(1_000, 7)
    current["noise"] += 0.5
    report = measure_drift(FRAME, current, ["level", "noise"], ["place"], DriftParams(), calibration=MADE)
    assert report.drifted == ("noise",)


def test_unseen_mass_that_windows_usually_have_is_no_drift() -> None:
    days = np.repeat(np.arange(400), 50)
    frame = pd.DataFrame({"ticket": [f"day{day}" if row % 10 == 0 else "any" for row, day in enumerate(days)]})
    current = pd.DataFrame({"ticket": ["new"] * 10 + ["any"] * 90})
    made = calibrate(frame, {"ticket": "categorical"})
    usual = made.features["ticket"].unseen_at(100)
    assert usual is not None
    assert usual.mean == pytest.approx(0.06, abs=0.03)
    by_itself = measure_drift(frame, current, [], ["ticket"], DriftParams())
    assert by_itself.features[0].aspect("unseen").drifted  # type: ignore[union-attr]
    calibrated = measure_drift(frame, current, [], ["ticket"], DriftParams(), calibration=made)
    assert not calibrated.features[0].aspect("unseen").drifted  # type: ignore[union-attr]


def test_a_window_is_held_against_the_sampled_rows_outside_it() -> None:
    frame = pd.DataFrame({"place": ["a", "b"] * 1_000 + ["rare"] * 10 + ["a"] * 1_190})
    everything = calibrate(frame, {"place": "categorical"})
    sampled = calibrate(frame, {"place": "categorical"}, sampled=np.arange(0, 1_000))
    assert max(everything.features["place"].unseen_mean or ()) > 0  # the window that holds all of the rare
    assert sampled.rows == everything.rows == 3_200
    assert MADE.rows == len(FRAME)


def test_sizes_and_starts() -> None:
    assert window_sizes(10_000) == (50, 100, 200, 500, 625)
    assert window_sizes(130_000)[-1] == 8_125
    assert window_sizes(300) == (50,)
    assert window_sizes(199) == ()
    starts = window_starts(10_000, 500)
    assert starts[0] == 0
    assert starts[-1] == 9_500
    assert np.diff(starts).min() >= 500
    assert len(window_starts(10_000, 50)) == 24


def test_too_few_rows_calibrate_nothing_and_the_report_says_so() -> None:
    made = calibrate(FRAME.head(150), KINDS)
    assert not made.measured
    report = measure_drift(FRAME, FRAME.head(400), ["noise"], [], DriftParams(), calibration=made)
    assert not report.calibrated
    empty = calibrate(pd.DataFrame({"gone": np.full(1_000, np.nan)}), {"gone": "numeric"})
    assert not empty.measured


def test_the_baseline_has_its_own_scores() -> None:
    theirs = MADE.for_baseline()
    assert theirs.of("score", output=True) == MADE.of("baseline_score", output=True)
    assert theirs.of("baseline_score", output=True) is None
    assert theirs.of("level") == MADE.of("level")
    assert MADE.of("score") is None  # a feature of that name would be another column


def test_it_is_kept_as_json(tmp_path: Path) -> None:
    path = tmp_path / "drift_calibration.json"
    write_json(path, MADE.model_dump(mode="json"))
    assert read_calibration(path) == MADE
    assert all(math.isfinite(value) for value in MADE.features["place"].degrees or ())
    write_json(path, {"rows": "many"})
    with pytest.raises(ClearwayError, match=r"drift_calibration\.json is no drift calibration \(rows"):
        read_calibration(path)
    with pytest.raises(ClearwayError, match="missing"):
        read_calibration(tmp_path / "none.json")


def test_the_same_rows_give_the_same_calibration() -> None:
    assert calibrate(FRAME, KINDS) == Calibration(rows=MADE.rows, features=MADE.features)


def test_a_column_that_became_constant_is_drift_though_weeks_differ() -> None:
    """Ranks alone cannot see it: most values are the same on any day."""
    random = np.random.default_rng(5)
    share = np.repeat(random.uniform(0.7, 0.98, 80), 500)
    frame = pd.DataFrame({"sight": np.where(random.random(40_000) < share, 10.0, random.uniform(0, 10, 40_000))})
    made = calibrate(frame, {"sight": "numeric"})
    stuck = pd.DataFrame({"sight": np.full(2000, 10.0)})
    report = measure_drift(frame, stuck, ["sight"], [], DriftParams(), calibration=made)
    spread = report.features[0].aspect("spread")
    assert spread is not None
    assert spread.p_adjusted < 1e-6
    usual = frame.iloc[12_000:14_000]
    assert measure_drift(frame, usual, ["sight"], [], DriftParams(), calibration=made).verdict == "no_drift"
