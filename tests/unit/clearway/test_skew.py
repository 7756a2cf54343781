"""Served against recomputed values: what counts as equal, which difference is the first, what the values prove."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.skew import Required, Served, SkewReport, StoredView, compare, differing, named, shown

START = datetime(2024, 3, 1, tzinfo=UTC)
NUMERIC, CATEGORICAL = ("temp", "age"), ("colour",)


def predictions(features: Sequence[dict[str, Any]], *, hours: Sequence[float] | None = None) -> Served:
    """One question an hour, of stations a and b in turn."""
    count = len(features)
    times = [START + timedelta(hours=h) for h in (hours or range(count))]
    inputs = [{"station": "ab"[number % 2], "distance": 1.5} for number in range(count)]
    return Served([f"q{number}" for number in range(count)], times, ["d" * 64] * count, inputs, features)


def row(temp: Any = 1.5, age: Any = 2.0, colour: Any = "red") -> dict[str, Any]:
    return {"temp": temp, "age": age, "colour": colour}


def judge(served: Sequence[dict[str, Any]], recomputed: Sequence[dict[str, Any]], **other: Any) -> SkewReport:
    frame = pd.DataFrame(recomputed, columns=[*NUMERIC, *CATEGORICAL])
    return compare(predictions(served), frame, NUMERIC, CATEGORICAL, environment="live", **other)


def hint_of(report: SkewReport, name: str) -> str:
    (feature,) = (feature for feature in report.features if feature.name == name)
    return feature.hint


def test_equal_values_are_no_skew_and_all_are_counted() -> None:
    rows = [row(), row(temp=None), row(colour=None), row(age=0.1 + 0.2)]
    report = judge(rows, rows)
    assert (report.verdict, report.predictions, report.values, report.different) == ("no_skew", 4, 12, 0)
    assert (report.asked_from, report.asked_until) == (START, START + timedelta(hours=3))
    assert report.first is None
    assert report.sentence == "None of 12 values of 4 predictions differs from what is recomputed as of its time."


@pytest.mark.parametrize(
    ("served", "recomputed"),
    [
        (row(temp=3), row(temp=3.0)),
        (row(temp=2**53 + 1), row(temp=float(2**53))),  # as float64 they are one number
        (row(temp=None), row(temp=float("nan"))),
        (row(temp=-0.0), row(temp=0.0)),
        (row(colour=True), row(colour="True")),
        (row(age=True), row(age=1.0)),
        (row(colour=None), row(colour=pd.NA)),
        (row(temp=1.5), row(temp=np.float32(1.5))),
    ],
)
def test_the_same_value_in_another_notation_is_equal(served: dict[str, Any], recomputed: dict[str, Any]) -> None:
    assert judge([served], [recomputed]).verdict == "no_skew"


@pytest.mark.parametrize(
    ("served", "recomputed", "largest"),
    [
        (row(temp=0.1), row(temp=float(np.float32(0.1))), 1.4901161138336505e-09),
        (row(temp=np.nextafter(1.5, 2)), row(temp=1.5), 2.220446049250313e-16),
        (row(temp=None), row(temp=0.0), None),
        (row(temp=0.0), row(temp=None), None),
        (row(colour=None), row(colour=""), None),
        (row(colour="Red"), row(colour="red"), None),
        (row(colour="3"), row(colour=3), None),
        (row(temp="3"), row(temp=3), None),
    ],
)
def test_any_other_value_differs(served: dict[str, Any], recomputed: dict[str, Any], largest: float | None) -> None:
    report = judge([served], [recomputed])
    (different,) = (feature for feature in report.features if feature.different)
    assert report.verdict == "skew"
    assert (different.different, different.share, different.largest) == (1, 1.0, largest)


def test_integers_of_arrow_and_pandas_are_numbers() -> None:
    recomputed = pd.DataFrame({"temp": pd.array([3, pd.NA], "Int64"), "age": [1, 2], "colour": ["x", "y"]})
    served = predictions([row(3.0, 1, "x"), row(None, 2.0, "y")])
    assert compare(served, recomputed, NUMERIC, CATEGORICAL, environment="live").verdict == "no_skew"


def test_the_first_difference_is_of_the_earliest_question_and_the_first_in_model_order() -> None:
    served = [row(), row(age=9.0, colour="blue"), row(temp=7.0), row(temp=8.5)]
    report = judge(served, [row()] * 4, view_of={"temp": "weather", "age": "planes", "colour": None})
    assert report.first is not None
    assert (report.first.feature, report.first.id, report.first.served, report.first.recomputed) == (
        "age",
        "q1",
        9.0,
        2.0,
    )
    assert report.first.inputs == {"station": "b", "distance": 1.5}
    assert report.first.asked_at == START + timedelta(hours=1)
    temp, age, colour = report.features
    assert (temp.different, temp.share, temp.largest, temp.view) == (2, 0.5, 7.0, "weather")
    assert temp.first is not None
    assert temp.first.id == "q2"
    assert (age.different, colour.different, colour.largest) == (1, 1, None)
    assert (report.different, report.predictions_different) == (4, 3)
    assert report.sentence.startswith("age is the first feature that differs")
    assert "4 of 12 values of 4 predictions differ in 3 features" in report.sentence


def test_nothing_compared_is_unknown_and_says_why() -> None:
    report = judge([], [], not_compared={"no inputs": 4})
    assert (report.verdict, report.predictions) == ("unknown", 0)
    assert report.sentence == "Nothing was compared, so nothing is proven: 4 predictions not compared: no inputs."
    assert judge([], []).sentence.endswith("no prediction was served by key.")


def test_what_was_left_out_is_said_beside_what_was_compared() -> None:
    report = judge([row()], [row()], not_compared={"no inputs": 4, "nobody": 0})
    assert report.verdict == "no_skew"
    assert report.sentence.endswith("(4 predictions not compared: no inputs).")


def test_a_feature_that_only_one_side_names_is_counted_and_never_equal_to_null() -> None:
    renamed = {"temperature": None, "age": 2.0, "colour": "red"}
    report = judge([renamed, row()], [row(temp=None), row()])
    assert report.verdict == "no_skew"
    assert (report.predictions, report.values) == (2, 5)
    assert {(one.reason, one.predictions) for one in report.not_compared} == {
        ("feature temp is not in the record", 1),
        ("feature temperature is not defined here", 1),
    }


def test_records_without_any_of_the_features_are_not_compared() -> None:
    report = judge([{}], [row()])
    assert (report.verdict, report.predictions, report.values) == ("unknown", 0, 0)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 predictions, but 2 recomputed rows"):
        judge([row()], [row(), row()])
    with pytest.raises(ValueError, match="not recomputed: age, colour"):
        compare(predictions([row()]), pd.DataFrame({"temp": [1.0]}), NUMERIC, CATEGORICAL, environment="live")


class TestCauses:
    """Each is planted alone, and must be named; where the values prove nothing, nothing is said."""

    def test_rounding_to_float32(self) -> None:
        values = [0.1 * number for number in range(20)]
        report = judge([row(temp=float(np.float32(v))) for v in values], [row(temp=v) for v in values])
        assert "rounded to float32" in hint_of(report, "temp")
        assert "rounded to float32" in report.sentence
        mixed = judge([row(temp=float(np.float32(0.1))), row(temp=7.0)], [row(temp=0.1), row(temp=1.0)])
        assert hint_of(mixed, "temp") == ""

    def test_another_constant(self) -> None:
        days = [400.0 * number + 17 for number in range(20)]
        report = judge([row(age=d / 360) for d in days], [row(age=d / 365) for d in days])
        assert hint_of(report, "age") == "served values are 1.01389 times the recomputed: another constant"
        moved = judge([row(age=d - 60) for d in days], [row(age=d) for d in days])
        assert "recomputed -60: another constant" in hint_of(moved, "age")

    def test_a_last_bit_is_no_constant(self) -> None:
        values = [1.0 + number / 64 for number in range(20)]  # of one binade: the last bit is worth the same in all
        report = judge([row(temp=np.nextafter(v, 9.0)) for v in values], [row(temp=v) for v in values])
        assert (report.verdict, hint_of(report, "temp")) == ("skew", "")

    def test_a_minute_is_a_constant_of_times(self) -> None:
        values = [1.7e9 + 1_000 * number for number in range(20)]
        report = judge([row(age=v + 60) for v in values], [row(age=v) for v in values])
        assert hint_of(report, "age") == "served values are the recomputed +60: another constant"

    def test_exchanged_columns(self) -> None:
        rows = [row(temp=float(number), age=float(number * number % 7)) for number in range(20)]
        report = judge([row(r["age"], r["temp"]) for r in rows], rows)
        assert "those of age" in hint_of(report, "temp")
        assert "those of temp" in hint_of(report, "age")

    def test_a_column_that_the_store_lacks(self) -> None:
        report = judge([row(temp=None) for _ in range(5)], [row(temp=float(number)) for number in range(5)])
        assert "nothing was served where a value is known" in hint_of(report, "temp")

    def test_unrelated_values_prove_nothing(self) -> None:
        random = np.random.default_rng(1)
        report = judge([row(temp=v) for v in random.random(50)], [row(temp=v) for v in random.random(50)])
        assert report.verdict == "skew"
        assert hint_of(report, "temp") == ""


class TestCausesInARow:
    """A view of two stations whose rows become known irregularly; values are as Feast would look them up."""

    TTL = timedelta(hours=3)

    def rows(self, seed: int = 2) -> pd.DataFrame:
        random = np.random.default_rng(seed)
        parts = []
        for station in ("a", "b"):
            times = pd.Timestamp(START) + pd.to_timedelta(np.sort(random.integers(-600, 6000, 60)), unit="min")
            parts.append(pd.DataFrame({"station": station, "known_at": times, "temp": random.random(60).round(3)}))
        return pd.concat(parts, ignore_index=True).sample(frac=1.0, random_state=3).assign(age=1.0)

    def view(self) -> StoredView:
        return StoredView("weather", ("station",), "known_at", ("temp",), self.TTL, self.rows())

    def looked_up(self, rows: pd.DataFrame, ttl: timedelta | None) -> pd.DataFrame:
        """100 questions, one an hour, answered from ``rows``."""
        served = predictions([row()] * 100)
        asked = pd.DataFrame({"station": [i["station"] for i in served.inputs], "at": pd.to_datetime(served.asked_at)})
        asked["at"] = asked["at"].astype("datetime64[us, UTC]")
        rows = rows.sort_values("known_at").assign(known_at=rows["known_at"].astype("datetime64[us, UTC]"))
        joined = pd.merge_asof(
            asked,
            rows[["station", "known_at", "temp"]],
            left_on="at",
            right_on="known_at",
            by="station",
            tolerance=None if ttl is None else pd.Timedelta(ttl),
        )
        return joined.assign(age=2.0, colour="red")

    def judge(self, online: pd.DataFrame, ttl: timedelta | None = TTL) -> SkewReport:
        served = self.looked_up(online, ttl)["temp"]
        features = [row(temp=None if pd.isna(value) else value) for value in served]
        recomputed = self.looked_up(self.rows(), self.TTL)
        return compare(predictions(features), recomputed, NUMERIC, CATEGORICAL, environment="live", views=[self.view()])

    def test_the_same_rows_are_no_skew(self) -> None:
        report = self.judge(self.rows())
        assert (report.verdict, report.values) == ("no_skew", 300)

    def test_a_late_event_is_the_row_before(self) -> None:
        rows = self.rows().sort_values(["station", "known_at"], ignore_index=True)
        gap = rows.groupby("station")["known_at"].diff()
        until_next = gap.shift(-1).between(pd.Timedelta(hours=2), self.TTL)
        late = rows.index[(gap < pd.Timedelta(minutes=40)) & until_next][0]
        rows.loc[late, "known_at"] += pd.Timedelta(hours=2)
        report = self.judge(rows)
        assert 0 < report.different < 5
        assert (
            hint_of(report, "temp") == "served values are of the row before in weather: a late event, or a stale store"
        )

    @pytest.mark.parametrize("hours", [1, 5, -4, 5.5, -3.5, 5.75])
    def test_times_of_another_zone(self, hours: float) -> None:
        rows = self.rows()
        report = self.judge(rows.assign(known_at=rows["known_at"] + pd.Timedelta(hours=hours)))
        how = f"{hours:g} h later: times of another time zone, or rows that arrive {hours:g} h late"
        expected = f"count from {how if hours > 0 else f'{-hours:g} h earlier: times of another time zone'}"
        assert report.verdict == "skew"
        assert expected in hint_of(report, "temp")

    def test_a_ttl_that_is_not_applied(self) -> None:
        report = self.judge(self.rows(), ttl=None)
        assert report.verdict == "skew"
        assert hint_of(report, "temp").endswith("older than the TTL of weather (3:00:00): it was not applied")

    def test_another_ttl(self) -> None:
        report = self.judge(self.rows(), ttl=timedelta(hours=4))
        assert hint_of(report, "temp").endswith("older than the TTL of weather (3:00:00): another TTL was applied")

    def test_values_from_the_future_are_of_the_next_row(self) -> None:
        rows = self.rows().sort_values("known_at")
        rows["temp"] = rows.groupby("station")["temp"].shift(-1)
        report = self.judge(rows[rows["temp"].notna()])
        assert "of the next row in weather" in hint_of(report, "temp")

    def test_many_late_events_are_no_time_zone(self) -> None:
        """An hour less explains each value that differs; but then others would differ too."""
        rows = self.rows().sort_values(["station", "known_at"], ignore_index=True)
        gap = rows.groupby("station")["known_at"].diff()
        short = pd.Timedelta(minutes=20), pd.Timedelta(hours=2)
        late = rows.index[gap.between(*short) & gap.shift(-1).between(pd.Timedelta(hours=1), self.TTL)]
        rows.loc[late[::2], "known_at"] += pd.Timedelta(hours=1)
        report = self.judge(rows)
        assert report.different > 2
        assert "time zone" not in hint_of(report, "temp")

    def test_of_rows_of_one_instant_the_last_is_the_one_before(self) -> None:
        served = predictions([row(temp=2.0)], hours=[2.5])
        times = [START, START, START + timedelta(hours=2)]
        rows = pd.DataFrame({"station": "a", "known_at": times, "temp": [1.0, 2.0, 3.0]})
        view = StoredView("weather", ("station",), "known_at", ("temp",), None, rows)
        recomputed = pd.DataFrame([row(temp=3.0)])
        report = compare(served, recomputed, NUMERIC, CATEGORICAL, environment="live", views=[view])
        assert "of the row before in weather" in hint_of(report, "temp")

    def test_an_emptied_store_is_told_from_a_stale_one(self) -> None:
        report = self.judge(self.rows().iloc[:0])
        assert "nothing was served where a value is known" in hint_of(report, "temp")

    def test_an_emptied_store_of_short_lived_rows_is_not_taken_for_a_stale_one(self) -> None:
        times = [START + timedelta(hours=number) for number in range(5)]
        rows = pd.DataFrame({"station": "a", "known_at": times, "temp": 1.0})
        view = StoredView("weather", ("station",), "known_at", ("temp",), timedelta(minutes=10), rows)
        served = predictions([row(temp=None)] * 4)
        report = compare(
            served, pd.DataFrame([row(temp=1.0)] * 4), NUMERIC, CATEGORICAL, environment="live", views=[view]
        )
        assert "nothing was served where a value is known" in hint_of(report, "temp")


class TestOneVersion:
    """``no_skew`` is said of a version only where each of its own features was compared."""

    def judged(self, versions: str, features: Sequence[str] = ("temp", "age", "colour"), **other: Any) -> SkewReport:
        served = predictions([row()] * len(versions))
        served = Served(served.id, served.asked_at, [v * 64 for v in versions], served.inputs, served.features)
        frame = pd.DataFrame([row()] * len(versions))
        required = Required("b" * 64, features)
        return compare(served, frame, NUMERIC, CATEGORICAL, environment="live", required=required, **other)

    def test_other_versions_do_not_clear_it(self) -> None:
        report = self.judged("aaa")
        assert (report.verdict, report.lacking) == ("unknown", ("temp", "age", "colour"))
        assert report.sentence.startswith("No value of temp and 2 others was compared of version bbbbbbbbbbbb, so")
        assert self.judged("aab").verdict == "no_skew"

    def test_a_feature_that_nobody_recomputes_is_named(self) -> None:
        report = self.judged("b", ["temp", "wind"], rollout=7)
        assert (report.verdict, report.lacking) == ("unknown", ("wind",))
        assert "No value of wind was compared of version bbbbbbbbbbbb since the rollout began (revision 7)" in (
            report.sentence
        )

    def test_a_feature_that_its_records_lack_is_named(self) -> None:
        rest = {"age": 2.0, "colour": "red"}
        served = predictions([row(), rest])
        served = Served(served.id, served.asked_at, ["a" * 64, "b" * 64], served.inputs, served.features)
        frame = pd.DataFrame([row()] * 2)
        required = Required("b" * 64, ["temp", "age"])
        report = compare(served, frame, NUMERIC, CATEGORICAL, environment="live", required=required)
        assert (report.verdict, report.lacking) == ("unknown", ("temp",))

    def test_a_difference_is_skew_whatever_is_lacking(self) -> None:
        served = predictions([row(temp=9.0)])
        required = Required("b" * 64, ["temp"])
        frame = pd.DataFrame([row()])
        report = compare(served, frame, NUMERIC, CATEGORICAL, environment="live", required=required)
        assert report.verdict == "skew"


def test_what_became_known_within_the_tolerance_is_listed_and_no_skew() -> None:
    served = [row(), row(temp=7.0), row(temp=8.0, colour="blue")]
    later = pd.DataFrame([row(temp=7.0), row(temp=8.0)], index=[1, 2])
    frame = pd.DataFrame([row()] * 3)
    assert differing(predictions(served), frame, NUMERIC, CATEGORICAL) == [1, 2]
    report = compare(predictions(served), frame, NUMERIC, CATEGORICAL, environment="live", tolerated=later)
    assert (report.verdict, report.within_tolerance, report.different) == ("skew", 2, 1)
    assert report.first is not None
    assert (report.first.feature, report.first.id) == ("colour", "q2")
    clean = compare(predictions(served[:2]), frame[:2], NUMERIC, CATEGORICAL, environment="live", tolerated=later[:1])
    assert (clean.verdict, clean.within_tolerance, clean.predictions_different) == ("no_skew", 1, 0)
    assert "(1 values became known within the clock tolerance after the question)" in clean.sentence


def test_what_callers_wrote_is_one_short_line() -> None:
    served = predictions([{**row(temp=9.0), "x\n::error::y": 1.0}])
    served = Served(["q\n::error title=z::hi\x1b[31m"], *list(vars(served).values())[1:])
    report = compare(served, pd.DataFrame([row()]), NUMERIC, CATEGORICAL, environment="live")
    assert report.sentence.isprintable()
    assert r"Question 'q\n::error title=z::hi\x1b[31m' of" in report.sentence
    assert named("q" * 200) == "'" + "q" * 78 + "…"
    assert len(shown("x" * 200)) == 80
    assert [named(name) for name in ("s12~1", None, "", "é")] == ["s12~1", "without id", "''", "'é'"]
