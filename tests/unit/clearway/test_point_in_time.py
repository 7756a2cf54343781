"""Joins that cannot see the future, compared with the plainest loop that could be written."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError
from clearway.point_in_time import (
    AGE,
    KNOWN_AT,
    changes,
    last_known,
    refuse_future,
    trailing_count,
    trailing_mean,
)

START = pd.Timestamp("2024-01-01T00:00:00Z")
HOUR = pd.Timedelta(hours=1)

keys = st.sampled_from(["a", "b", None])
hours = st.integers(0, 12)
asked_rows = st.lists(st.tuples(hours, keys, keys), max_size=12)
event_rows = st.lists(st.tuples(hours, keys, keys, st.one_of(st.none(), st.integers(-50, 50))), max_size=15)


def questions_of(rows):
    frame = pd.DataFrame(rows, columns=["hour", "key", "other"])
    times = (START + pd.to_timedelta(frame["hour"].astype("int64"), "h")).astype("datetime64[ns, UTC]")
    index = [f"q{i}" for i in range(len(frame))][::-1]
    return frame.assign(**{PREDICTION_TIME: times}).astype({"key": "object", "other": "object"}).set_axis(index)


def events_of(rows):
    frame = pd.DataFrame(rows, columns=["hour", "key", "other", "value"])
    times = (START + pd.to_timedelta(frame["hour"].astype("int64"), "h")).astype("datetime64[ns, UTC]")
    return frame.assign(**{KNOWN_AT: times, "value": frame["value"].astype("float64")})


def matching(question, events, by):
    """The rows of events known by then, of the question's key, in order of known time then table order."""
    found = [
        event
        for event in events
        if event["hour"] <= question["hour"] and all(question[k] is not None and question[k] == event[k] for k in by)
    ]
    return sorted(found, key=lambda event: event["hour"])


def records(rows, names):
    return [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=40, deadline=None)
@given(asked_rows, event_rows, st.sampled_from([(), ("key",), ("key", "other")]), st.sampled_from([None, 0, 3]))
def test_last_known_equals_a_loop(asked, happened, by, ttl):
    joined = last_known(
        questions_of(asked), events_of(happened), by, ["value"], ttl=None if ttl is None else ttl * HOUR
    )
    events = records(happened, ["hour", "key", "other", "value"])
    for question, (_, row) in zip(records(asked, ["hour", "key", "other"]), joined.iterrows(), strict=True):
        known = matching(question, events, by)
        last = known[-1] if known and (ttl is None or question["hour"] - known[-1]["hour"] <= ttl) else None
        if last is None:
            assert pd.isna(row["value"])
            assert pd.isna(row[AGE])
        else:
            assert row["value"] == last["value"] if last["value"] is not None else pd.isna(row["value"])
            assert row[AGE] == (question["hour"] - last["hour"]) * HOUR


@settings(max_examples=40, deadline=None)
@given(asked_rows, event_rows, st.sampled_from([(), ("key",), ("key", "other")]), st.sampled_from([None, 1, 4]))
def test_trailing_statistics_equal_a_loop(asked, happened, by, window):
    questions, events = questions_of(asked), events_of(happened)
    length = None if window is None else window * HOUR
    counts = trailing_count(questions, events, by, window=length)
    means = trailing_mean(questions, events, by, "value", window=length)
    assert counts.index.equals(questions.index)
    assert means.index.equals(questions.index)
    rows = records(happened, ["hour", "key", "other", "value"])
    for position, question in enumerate(records(asked, ["hour", "key", "other"])):
        inside = [
            event
            for event in matching(question, rows, by)
            if window is None or event["hour"] > question["hour"] - window
        ]
        values = [event["value"] for event in inside if event["value"] is not None]
        if any(question[key] is None for key in by):
            assert np.isnan(counts.iloc[position])
            assert np.isnan(means.iloc[position])
            continue
        assert counts.iloc[position] == len(inside)
        assert means.iloc[position] == np.mean(values) if values else np.isnan(means.iloc[position])


def test_rows_order_index_and_types_survive():
    questions = questions_of([(5, "b", None), (1, "a", None), (9, "a", None), (9, "a", None)])
    questions.index = [7, 7, 3, 1]  # repeated labels must not multiply rows
    events = events_of([(2, "a", None, 1), (4, "b", None, 2)]).assign(
        name=["first", "second"], count=[1, 2], when=[START, START + HOUR]
    )
    joined = last_known(questions, events, "key", ["name", "count", "when"])
    assert joined.index.tolist() == [7, 7, 3, 1]
    assert joined["name"].fillna("none").tolist() == ["second", "none", "first", "first"]
    assert joined["count"].fillna(0).tolist() == [2, 0, 1, 1]
    assert joined["when"].isna().tolist() == [False, True, False, False]
    assert isinstance(joined["when"].dtype, pd.DatetimeTZDtype)


def test_the_last_of_events_known_at_one_instant_wins():
    joined = last_known(
        questions_of([(3, "a", None)]), events_of([(3, "a", None, 1), (3, "a", None, 2)]), "key", ["value"]
    )
    assert joined["value"].tolist() == [2.0]


def test_times_of_any_resolution_and_zone_mean_the_same():
    questions = questions_of([(5, "a", None)])
    events = events_of([(5, "a", None, 1), (6, "a", None, 2)])
    events[KNOWN_AT] = events[KNOWN_AT].dt.tz_convert("Asia/Tokyo").astype("datetime64[s, Asia/Tokyo]")
    assert last_known(questions, events, "key", ["value"])["value"].tolist() == [1.0]


def test_no_events_and_no_questions_give_empty_answers():
    one, none = [(5, "a", None)], []
    joined = last_known(questions_of(one), events_of(none), "key", ["value"])
    assert joined["value"].isna().all()
    assert trailing_count(questions_of(one), events_of(none), "key", window=HOUR).tolist() == [0.0]
    assert trailing_mean(questions_of(one), events_of(none), "key", "value", window=HOUR).isna().all()
    assert len(last_known(questions_of(none), events_of([(1, "a", None, 1)]), "key", ["value"])) == 0


def test_an_event_without_known_time_is_refused():
    events = events_of([(1, "a", None, 1), (2, "a", None, 2)])
    events.loc[1, KNOWN_AT] = pd.NaT
    for join in (
        lambda: last_known(questions_of([(5, "a", None)]), events, "key", ["value"]),
        lambda: trailing_count(questions_of([(5, "a", None)]), events, "key", window=HOUR),
        lambda: trailing_mean(questions_of([(5, "a", None)]), events, "key", "value", window=HOUR),
    ):
        with pytest.raises(ClearwayError, match="1 of 2 events have no known_at"):
            join()


def test_a_time_without_zone_and_a_missing_column_are_refused():
    events = events_of([(1, "a", None, 1)])
    naive = events.assign(**{KNOWN_AT: events[KNOWN_AT].dt.tz_localize(None)})
    with pytest.raises(ClearwayError, match="must be a UTC time"):
        last_known(questions_of([(5, "a", None)]), naive, "key", ["value"])
    with pytest.raises(ClearwayError, match="the events have no column volume"):
        last_known(questions_of([(5, "a", None)]), events, "key", ["volume"])


def test_the_guard_names_the_first_event_from_the_future():
    asked = np.array([START.value, START.value], dtype=np.int64)
    refuse_future(asked, asked)
    with pytest.raises(ClearwayError, match=r"1 events were joined before they were known.*2024-01-01 01:00"):
        refuse_future(asked, asked + np.array([0, HOUR.value]))
    with pytest.raises(ClearwayError, match="no known time"):
        refuse_future(asked, np.array([asked[0], np.iinfo(np.int64).min]))


@settings(max_examples=60, deadline=None)
@given(asked_rows, event_rows, st.lists(st.integers(1, 4), max_size=2, unique=True))
def test_values_at_the_changes_are_the_values_at_any_time(asked, happened, windows):
    """A table of the values at each change, joined to a question, says what the window before the question says."""
    questions, events = questions_of(asked), events_of(happened)
    lengths = [hours * HOUR for hours in windows]
    moments = changes("key", (events, lengths))
    assert not moments.duplicated().any()
    assert moments[PREDICTION_TIME].is_monotonic_increasing
    for window in lengths or [None]:
        counts = trailing_count(moments, events, "key", window=window)
        means = trailing_mean(moments, events, "key", "value", window=window)
        table = moments.rename(columns={PREDICTION_TIME: KNOWN_AT}).assign(count=counts, mean=means)
        joined = last_known(questions, table, "key", ["count", "mean"])
        expected = trailing_count(questions, events, "key", window=window)
        assert joined["count"].fillna(0).tolist() == expected.fillna(0).tolist()
        pd.testing.assert_series_equal(
            joined["mean"].astype("float64"),
            trailing_mean(questions, events, "key", "value", window=window),
            check_names=False,
        )


def test_changes_of_several_tables_are_one_list():
    came, left = events_of([(1, "a", None, 1), (4, None, None, 1)]), events_of([(1, "a", None, 2), (2, "b", None, 3)])
    moments = changes("key", (came, [2 * HOUR]), (left, []))
    hours = ((moments[PREDICTION_TIME] - START) / HOUR).tolist()
    assert list(zip(hours, moments["key"], strict=True)) == [(1, "a"), (2, "b"), (3, "a")]


def test_changes_name_what_is_missing():
    events = events_of([(1, "a", None, 1)])
    with pytest.raises(ClearwayError, match="the events have no column tail"):
        changes("tail", (events, []))
    with pytest.raises(ClearwayError, match="1 of 1 events have no known_at"):
        changes("key", (events.assign(**{KNOWN_AT: pd.Series([pd.NaT], dtype="datetime64[ns, UTC]")}), []))
