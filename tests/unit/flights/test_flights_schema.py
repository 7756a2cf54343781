"""schema.yaml accepts the real flights of any as_of, reports their real defects, and catches planted ones."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from clearway.params import load_params
from clearway.schema import DataSchema, load_schema
from clearway.sources import read_source
from clearway.validation import ValidationReport, validate_table, validate_tables
from flights.project import PROJECT

ROOT = Path(__file__).parents[3]
SAMPLE = 5_000

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def schema() -> DataSchema:
    return load_schema(ROOT / "schema.yaml")


@pytest.fixture(scope="module")
def source() -> Tables:
    params = load_params(ROOT / "params.yaml")
    return {name: read_source(entry, ROOT, key=f"sources.{name}") for name, entry in params.sources.items()}


@pytest.fixture(scope="module")
def sample(source: Tables) -> Tables:
    """A part of the year's flights and weather and all of the other tables, for planting defects."""
    parts = {
        name: source[name].sample(SAMPLE, random_state=1).reset_index(drop=True) for name in ("flights", "weather")
    }
    return {**source, **parts}


def known(source: Tables, as_of: datetime) -> Tables:
    return {name: PROJECT.known_at(name, frame, as_of) for name, frame in source.items()}


def names(report: ValidationReport, status: str) -> set[str]:
    return {check.name for check in report.checks if check.status == status}


REAL_DEFECTS = {
    "flights.tailnum in planes.tailnum",
    "flights.dest in airports.faa",
    "flights.tailnum pattern",
    "weather.wind_speed range",
}


@pytest.mark.parametrize("day", ["2013-07-01", "2013-10-01", "2013-12-20"])
def test_the_real_tables_pass_and_their_defects_are_reported(source: Tables, schema: DataSchema, day: str) -> None:
    report = validate_tables(known(source, datetime.fromisoformat(day).replace(tzinfo=UTC)), schema)
    assert report.verdict == "passed", names(report, "fail")
    assert names(report, "warn") == REAL_DEFECTS
    assert names(report, "unknown") == set()
    (storm,) = [check for check in report.checks if check.name == "weather.wind_speed range"]
    assert storm.examples[0]["wind_speed"] == pytest.approx(1048.36, abs=0.01)
    (tails,) = [check for check in report.checks if check.name == "flights.tailnum in planes.tailnum"]
    assert 0.14 < tails.failures / tails.rows < 0.17


@pytest.mark.parametrize("day", ["2013-01-08", "2013-02-10"])
def test_the_first_weeks_pass_too(source: Tables, schema: DataSchema, day: str) -> None:
    report = validate_tables(known(source, datetime.fromisoformat(day).replace(tzinfo=UTC)), schema)
    assert report.verdict == "passed", names(report, "fail")


def change(table: str, column: str, how: Callable[[pd.Series], pd.Series]) -> Callable[[Tables], Tables]:
    return lambda tables: {**tables, table: tables[table].assign(**{column: how(tables[table][column])})}


def rename(table: str, old: str, new: str) -> Callable[[Tables], Tables]:
    return lambda tables: {**tables, table: tables[table].rename(columns={old: new})}


def first(values: pd.Series, count: int, value: object) -> pd.Series:
    """``values`` with its first ``count`` set to ``value``."""
    return values.where(values.index >= count, value)


BREAKS: dict[str, tuple[Callable[[Tables], Tables], str]] = {
    "renamed column": (rename("flights", "dep_delay", "departure_delay"), "flights.dep_delay present"),
    "renamed column, seen from its new name": (rename("flights", "carrier", "airline"), "flights.airline extra"),
    "80% nulls": (
        change("flights", "arr_delay", lambda v: first(v, 4_000, None)),
        "flights.arr_delay nulls",
    ),
    "80% nulls of weather": (change("weather", "temp", lambda v: first(v, 4_000, None)), "weather.temp nulls"),
    "one null in a key": (change("flights", "carrier", lambda v: first(v, 9, None)), "flights.carrier nulls"),
    "negative distances": (change("flights", "distance", lambda v: -v), "flights.distance range"),
    "kilometres": (change("flights", "distance", lambda v: v * 1.609), "flights.distance mean"),
    "an unknown airport": (change("flights", "origin", lambda v: first(v, 1, "PHL")), "flights.origin values"),
    "many new carriers": (change("flights", "carrier", lambda v: first(v, 500, "ZZ")), "flights.carrier values"),
    "carriers in small letters": (change("flights", "carrier", lambda v: v.str.lower()), "flights.carrier pattern"),
    "hours of air time": (change("flights", "air_time", lambda v: v / 60), "flights.air_time range"),
    "seconds of delay": (change("flights", "dep_delay", lambda v: v * 60), "flights.dep_delay range"),
    "degrees Celsius": (change("weather", "temp", lambda v: (v - 32) / 1.8), "weather.temp mean"),
    "metres per second": (change("weather", "wind_speed", lambda v: v * 0.447), "weather.wind_speed mean"),
    "visibility in kilometres": (change("weather", "visib", lambda v: v * 1.609), "weather.visib range"),
    "decimal commas": (
        change("weather", "pressure", lambda v: v.map(lambda x: str(x).replace(".", ","), na_action="ignore")),
        "weather.pressure kind",
    ),
    "years with a unit": (
        change("planes", "year", lambda v: v.map(lambda x: f"{2013 - x:.0f} years", na_action="ignore")),
        "planes.year kind",
    ),
    "times as text": (
        change("flights", "time_hour", lambda v: v.dt.strftime("%Y-%m-%d %H:%M")),
        "flights.time_hour kind",
    ),
    "another year": (change("weather", "time_hour", lambda v: v + pd.Timedelta(days=365)), "weather.time_hour range"),
    "an aircraft twice": (
        lambda tables: {**tables, "planes": pd.concat([tables["planes"], tables["planes"].head(1)])},
        "planes.tailnum unique",
    ),
    "flights twice": (
        lambda tables: {**tables, "flights": pd.concat([tables["flights"], tables["flights"].head(3)])},
        "flights unique (time_hour, carrier, flight)",
    ),
    "planes of another land": (
        change("planes", "tailnum", lambda v: "G" + v),
        "flights.tailnum in planes.tailnum",
    ),
    "hardly any rows": (lambda tables: {**tables, "flights": tables["flights"].head(50)}, "flights rows"),
    "no planes": (lambda tables: {name: frame for name, frame in tables.items() if name != "planes"}, "planes table"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_planted_defects_are_caught_by_name(sample: Tables, schema: DataSchema, name: str) -> None:
    breaks, check = BREAKS[name]
    tables = breaks(sample)
    table = check.split()[0].split(".")[0]
    judged = {table, "flights", "airports", "planes"} if table == "planes" else {table, "airports", "planes"}
    part = DataSchema(tables={name: schema.tables[name] for name in schema.tables if name in judged})
    report = validate_tables({name: frame for name, frame in tables.items() if name in judged}, part)
    assert report.verdict == ("passed" if name == "metres per second" else "failed")
    assert check in names(report, "warn" if name == "metres per second" else "fail")
    assert len(report.having("fail")) <= 4, names(report, "fail")


def test_a_few_flights_of_a_new_carrier_are_a_warning(sample: Tables, schema: DataSchema) -> None:
    tables = change("flights", "carrier", lambda v: first(v, 5, "ZZ"))(sample)
    report = validate_tables(tables, schema)
    assert report.verdict == "passed"
    assert "flights.carrier values" in names(report, "warn")


def test_the_sample_itself_passes(sample: Tables, schema: DataSchema) -> None:
    assert validate_tables(sample, schema).verdict == "passed"
    assert validate_table("planes", sample["planes"], schema).verdict == "passed"
