"""Every way in which the tables of 2013 were broken on purpose is caught, by a check that names table and column.

One corruption at a time, in the real tables as of July: at error, or with the broken rows set aside.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clearway.checks import load_checks
from clearway.errors import ClearwayError
from clearway.params import CsvSource, load_params
from clearway.schema import Column, DataSchema, TableSchema, load_schema
from clearway.sources import read_source
from clearway.validation import ValidationReport, validate_tables
from flights.project import PROJECT

ROOT = Path(__file__).parents[3]
AS_OF = datetime(2013, 7, 1, tzinfo=UTC)
SCHEMA = load_schema(ROOT / "schema.yaml")
CHECKS = load_checks("flights", SCHEMA)

Corruption = Callable[[pl.DataFrame], pl.DataFrame]
Tables = Mapping[str, pl.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    params = load_params(ROOT / "params.yaml")
    sources = {name: read_source(entry, ROOT, key=f"sources.{name}") for name, entry in params.sources.items()}
    return {name: pl.from_pandas(PROJECT.known_at(name, frame, AS_OF)) for name, frame in sources.items()}


@pytest.fixture(scope="module")
def clean(tables: Tables) -> dict[str, ValidationReport]:
    return {name: judge(tables, name, frame) for name, frame in tables.items()}


def judge(tables: Tables, name: str, frame: pl.DataFrame) -> ValidationReport:
    """One table, with the columns that its foreign keys refer to."""
    keys = {key.table: key.key for key in SCHEMA.tables[name].foreign_keys}
    referred = {
        table: TableSchema(columns={key: Column(kind=SCHEMA.tables[table].columns[key].kind)})
        for table, key in keys.items()
    }
    part = {name: frame, **{table: tables[table].select(key) for table, key in keys.items()}}
    schema = DataSchema(tables={name: SCHEMA.tables[name], **referred})
    return validate_tables(part, schema, as_of=AS_OF, checks=CHECKS)


def caught(found: ValidationReport, before: ValidationReport) -> set[str]:
    """The checks that fail, or set aside more rows than before. Warnings do not count."""
    usual = {check.name: check.failures for check in before.having("quarantine")}
    aside = {check.name for check in found.having("quarantine") if check.failures > usual.get(check.name, 0)}
    if aside:
        assert sum(found.quarantined.values()) > sum(before.quarantined.values())
    return aside | {check.name for check in found.having("fail")}


def test_the_clean_tables_pass(clean: Mapping[str, ValidationReport]) -> None:
    for name, report in clean.items():
        assert report.verdict == "passed", [check.name for check in report.having("fail")]
        assert not report.having("unknown"), name


def column(name: str, change: Callable[[pl.Expr], pl.Expr]) -> Corruption:
    return lambda frame: frame.with_columns(change(pl.col(name)).alias(name))


def some(name: str, share: float, value: object) -> Corruption:
    """That share of rows, spread over the table, gets the value."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        chosen = pl.Series(np.random.default_rng(1).random(len(frame)) < share)
        return frame.with_columns(
            pl.when(chosen).then(pl.lit(value, dtype=frame.schema[name])).otherwise(pl.col(name)).alias(name)
        )

    return change


def shuffled(name: str) -> Corruption:
    return lambda frame: frame.with_columns(pl.col(name).shuffle(seed=1))


def constant(name: str) -> Corruption:
    """Each row gets the column's most frequent value."""
    return lambda frame: frame.with_columns(pl.lit(frame[name].drop_nulls().mode().sort()[0]).alias(name))


def shifted(by: timedelta) -> Corruption:
    return column("time_hour", lambda time: time + by)


def without(*where: pl.Expr) -> Corruption:
    """The rows that fulfil all conditions are missing."""
    return lambda frame: frame.filter(~pl.all_horizontal(where))


def a_day_twice(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame.filter((pl.col("month") == 5) & (pl.col("day") == 14))])


def tomorrow(frame: pl.DataFrame) -> pl.DataFrame:
    """The last day's rows come again as those of the next day."""
    last = frame.filter(pl.col("time_hour") >= AS_OF - timedelta(days=1))
    return pl.concat([frame, last.with_columns(pl.col("time_hour").dt.offset_by("1d"))])


def suffix(text: str) -> Callable[[pl.Expr], pl.Expr]:
    return lambda values: values.cast(pl.Int64).cast(pl.String) + text


def celsius(values: pl.Expr) -> pl.Expr:
    return (values - 32) / 1.8


def times(factor: float) -> Callable[[pl.Expr], pl.Expr]:
    return lambda values: values * factor


def comma(values: pl.Expr) -> pl.Expr:
    return values.cast(pl.String).str.replace(".", ",", literal=True)


def latest_part(name: str, change: Callable[[pl.Expr], pl.Expr]) -> Corruption:
    """The change begins in June."""
    later = pl.col("time_hour") >= datetime(2013, 6, 1, tzinfo=UTC)
    return lambda frame: frame.with_columns(pl.when(later).then(change(pl.col(name))).otherwise(pl.col(name)))


NOON = datetime(2013, 5, 14, 16, tzinfo=UTC)
HUGE = 999_999_999
FEW = 0.0005
MOST = 0.8
FIVE_PERCENT = 0.05

CORRUPTIONS: dict[str, tuple[str, Corruption, str]] = {
    # what was done: (table, how, the check that says so)
    "renamed label": ("flights", lambda f: f.rename({"arr_delay": "delay"}), "flights.arr_delay present"),
    "renamed key": ("weather", lambda f: f.rename({"origin": "station"}), "weather.origin present"),
    "renamed, as seen from its new name": ("planes", lambda f: f.rename({"seats": "places"}), "planes.places extra"),
    "years with a unit": ("planes", column("year", suffix(" years")), "planes.year kind"),
    "flight numbers with a unit": ("flights", column("flight", suffix(" flights")), "flights.flight kind"),
    "hours with a unit": ("weather", column("hour", suffix(" h")), "weather.hour kind"),
    "80% nulls in the label": ("flights", some("arr_delay", MOST, None), "flights.arr_delay nulls"),
    "80% nulls in a key": ("flights", some("carrier", MOST, None), "flights.carrier nulls"),
    "80% nulls where most have a value": ("weather", some("temp", MOST, None), "weather.temp nulls"),
    "80% nulls where most have none": ("weather", some("wind_gust", MOST, None), "weather.wind_gust nulls"),
    "80% nulls in planes": ("planes", some("year", MOST, None), "planes.year nulls"),
    "80% nulls where nearly all have none": ("planes", some("speed", MOST, None), "planes.speed nulls"),
    "80% nulls in airports": ("airports", some("tzone", MOST, None), "airports.tzone nulls"),
    "outliers of the label": ("flights", some("arr_delay", FEW, HUGE), "flights.arr_delay range"),
    "outliers of the distance": ("flights", some("distance", FEW, HUGE), "flights.distance range"),
    "outliers of a clock": ("flights", some("dep_time", FEW, HUGE), "flights.dep_time range"),
    "outliers of pressure": ("weather", some("pressure", FEW, HUGE), "weather.pressure range"),
    "outliers below": ("weather", some("temp", FEW, -HUGE), "weather.temp range"),
    "outliers in planes": ("planes", some("seats", 0.002, HUGE), "planes.seats range"),
    "outliers in airports": ("airports", some("alt", 0.002, HUGE), "airports.alt range"),
    "infinite air time": ("flights", some("air_time", FEW, float("inf")), "flights.air_time range"),
    "°F → °C": ("weather", column("temp", celsius), "weather.temp mean"),
    "°F → °C from June on": ("weather", latest_part("temp", celsius), "weather humidity"),
    "°F → °C of both temperatures": (
        "weather",
        lambda f: column("dewp", celsius)(column("temp", celsius)(f)),
        "weather.dewp mean",
    ),
    "mph → km/h": ("weather", column("wind_speed", times(1.609)), "weather.wind_speed mean"),
    "mph → m/s": ("weather", column("wind_speed", times(0.447)), "weather.wind_speed mean"),
    "mph → knots": ("weather", column("wind_speed", times(0.869)), "weather wind-in-knots"),
    "mbar → inHg": ("weather", column("pressure", times(0.02953)), "weather.pressure range"),
    "inches → mm": ("weather", column("precip", times(25.4)), "weather precip-in-hundredths"),
    "miles of visibility → km": ("weather", column("visib", times(1.609)), "weather.visib range"),
    "miles → km": ("flights", column("distance", times(1.609)), "flights.distance mean"),
    "miles → nautical miles": ("flights", column("distance", times(0.869)), "flights.distance mean"),
    "minutes → hours": ("flights", column("air_time", times(1 / 60)), "flights.air_time range"),
    "minutes → seconds": ("flights", column("dep_delay", times(60)), "flights.dep_delay range"),
    "feet → metres": ("airports", column("alt", times(0.3048)), "airports.alt mean"),
    "latitude ↔ longitude": ("airports", lambda f: f.rename({"lat": "lon", "lon": "lat"}), "airports.lat range"),
    "a day of flights twice": ("flights", a_day_twice, "flights unique (time_hour, carrier, flight)"),
    "a day of weather twice": ("weather", a_day_twice, "weather unique (origin, time_hour)"),
    "an aircraft twice": ("planes", lambda f: pl.concat([f, f.head(1)]), "planes.tailnum unique"),
    "an hour of flights dropped": ("flights", without(pl.col("time_hour") == NOON), "flights cadence (time_hour)"),
    "an hour of one airport dropped": (
        "flights",
        without(pl.col("time_hour") == NOON, pl.col("origin") == "LGA"),
        "flights cadence (time_hour by origin)",
    ),
    "an hour of weather dropped": ("weather", without(pl.col("time_hour") == NOON), "weather hours_follow"),
    "each day's 13th hour dropped": (
        "weather",
        without(pl.col("hour") == 13),
        "weather cadence (time_hour by origin)",
    ),
    "the last day dropped": (
        "flights",
        without(pl.col("time_hour") > AS_OF - timedelta(days=1)),
        "flights freshness (time_hour)",
    ),
    "the last day of one airport dropped": (
        "weather",
        without(pl.col("time_hour") > AS_OF - timedelta(days=1), pl.col("origin") == "LGA"),
        "weather every-origin-fresh",
    ),
    "a day from the future": ("weather", tomorrow, "weather observed"),
    "shuffled label": ("flights", shuffled("arr_delay"), "flights arrival"),
    "shuffled departure delays": ("flights", shuffled("dep_delay"), "flights departure"),
    "shuffled destinations": ("flights", shuffled("dest"), "flights block_time"),
    "shuffled temperature": ("weather", shuffled("temp"), "weather humidity"),
    "constant label": ("flights", constant("arr_delay"), "flights.arr_delay std"),
    "constant carrier": ("flights", constant("carrier"), "flights.carrier min_distinct"),
    "constant origin": ("flights", constant("origin"), "flights.origin min_distinct"),
    "constant tail number": ("flights", constant("tailnum"), "flights.tailnum min_distinct"),
    "constant visibility": ("weather", constant("visib"), "weather.visib std"),
    "constant rain": ("weather", constant("precip"), "weather.precip min_distinct"),
    "constant manufacturer": ("planes", constant("manufacturer"), "planes.manufacturer min_distinct"),
    "constant zone": ("airports", constant("tz"), "airports.tz min_distinct"),
    "5% of a new carrier": ("flights", some("carrier", FIVE_PERCENT, "ZZ"), "flights.carrier values"),
    "5% of a new origin": ("flights", some("origin", FIVE_PERCENT, "PHL"), "flights.origin values"),
    "5% of a new destination": ("flights", some("dest", FIVE_PERCENT, "XYZ"), "flights destination_zone"),
    "5% of a new tail number": ("flights", some("tailnum", FIVE_PERCENT, "X12345"), "flights registration"),
    "5% of a new manufacturer": ("planes", some("manufacturer", FIVE_PERCENT, "TUPOLEV"), "planes.manufacturer values"),
    "5% of a new model": ("planes", some("model", FIVE_PERCENT, "TU-204"), "planes.model values"),
    "5% of a new engine": ("planes", some("engine", FIVE_PERCENT, "Electric"), "planes.engine values"),
    "5% of a new zone": ("airports", some("tzone", FIVE_PERCENT, "Europe/Paris"), "airports.tzone values"),
    "time_hour of flights 5 hours late": ("flights", shifted(timedelta(hours=5)), "flights new_york_clock"),
    "time_hour of weather 5 hours early": ("weather", shifted(timedelta(hours=-5)), "weather new_york_clock"),
    "time_hour without summer time": ("weather", shifted(timedelta(hours=1)), "weather new_york_clock"),
    "time_hour as text": ("weather", column("time_hour", lambda t: t.cast(pl.String)), "weather.time_hour kind"),
    "planes of another land": ("planes", column("tailnum", lambda v: "G" + v), "planes.tailnum pattern"),
    "decimal commas": ("weather", column("temp", comma), "weather.temp kind"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_is_caught_by_name(tables: Tables, clean: Mapping[str, ValidationReport], name: str) -> None:
    table, corrupt, check = CORRUPTIONS[name]
    report = judge(tables, table, corrupt(tables[table]))
    assert check in caught(report, clean[table])


def test_broken_rows_beyond_the_most_that_is_tolerated_stop_the_line(tables: Tables) -> None:
    """A few impossible delays are set aside, and the line goes on; many of them are a broken table."""
    few = judge(tables, "flights", some("dep_delay", FEW, HUGE)(tables["flights"]))
    assert few.verdict == "passed"
    assert few.quarantined["flights"] == pytest.approx(FEW * len(tables["flights"]), rel=0.3)
    many = judge(tables, "flights", some("dep_delay", FIVE_PERCENT, HUGE)(tables["flights"]))
    assert "flights quarantine" in {check.name for check in many.having("fail")}


def test_one_new_carrier_is_no_alarm(tables: Tables) -> None:
    report = judge(tables, "flights", some("carrier", FEW, "ZZ")(tables["flights"]))
    assert report.verdict == "passed"
    assert report.quarantined.get("flights", 0) == 0


# What is broken in the file itself: through the reader of the sources, as it arrives.


def csv_of(frame: pl.DataFrame) -> bytes:
    return frame.write_csv(datetime_format="%Y-%m-%dT%H:%M:%SZ").encode()


def arrived(folder: Path, name: str, content: bytes) -> pl.DataFrame:
    """What ingest makes of a CSV file."""
    (folder / f"{name}.csv").write_bytes(content)
    timestamps = tuple(column for column, kind in SCHEMA.kinds(name).items() if kind == "timestamp")
    source = CsvSource(kind="csv", path=f"{name}.csv", timestamps=timestamps)
    frame = read_source(source, folder, key=f"sources.{name}")
    return pl.from_pandas(PROJECT.known_at(name, frame, AS_OF))


@pytest.mark.parametrize("name", ["weather", "planes", "airports"])
def test_a_whole_file_passes(tables: Tables, tmp_path: Path, name: str) -> None:
    assert judge(tables, name, arrived(tmp_path, name, csv_of(tables[name]))).verdict == "passed"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["weather", "planes", "airports"])
def test_a_file_cut_off_within_a_row_is_no_file(tables: Tables, tmp_path: Path, name: str, share: float) -> None:
    content = csv_of(tables[name])
    cut = content[: content.index(b",", int(share * len(content)))]
    with pytest.raises(ClearwayError, match=rf"^{name}\.csv \(sources\.{name}\.path\) is truncated"):
        arrived(tmp_path, name, cut)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("name", ["flights", "weather", "planes", "airports"])
def test_a_file_cut_off_after_a_row_lacks_rows(tables: Tables, tmp_path: Path, name: str, share: float) -> None:
    """Its last rows are missing: of flights and weather the latest, of planes and airports those of the last names."""
    if name == "flights":  # a parsed file would be the same table, after a second of reading
        cut = tables[name].sort("time_hour").head(int(share * len(tables[name])))
    else:
        content = csv_of(tables[name])
        cut = arrived(tmp_path, name, content[: content.index(b"\n", int(share * len(content))) + 1])
    failed = {check.name for check in judge(tables, name, cut).having("fail")}
    assert failed & {f"{name} rows", f"{name} freshness (time_hour)", f"{name} every-origin-fresh"}


@pytest.mark.parametrize(("encoding", "cause"), [("utf-16", "is not utf-8 text"), ("latin-1", "is not utf-8 text")])
def test_a_file_in_another_encoding_is_refused(tables: Tables, tmp_path: Path, encoding: str, cause: str) -> None:
    named = some("name", 0.01, "Montréal Trudeau")(tables["airports"])
    content = csv_of(named).decode().encode(encoding)
    with pytest.raises(ClearwayError, match=cause):
        arrived(tmp_path, "airports", content)


def test_a_file_read_in_the_wrong_encoding_is_caught(tables: Tables, tmp_path: Path) -> None:
    named = some("name", 0.01, "Montréal Trudeau")(tables["airports"])
    content = csv_of(named).decode("latin-1").encode()  # é has become Ã©
    report = judge(tables, "airports", arrived(tmp_path, "airports", content))
    assert "airports.name pattern" in {check.name for check in report.having("fail")}


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ClearwayError, match=r"^weather\.csv \(sources\.weather\.path\) is empty"):
        arrived(tmp_path, "weather", content)


def test_a_file_of_a_header_is_refused(tables: Tables, tmp_path: Path) -> None:
    with pytest.raises(ClearwayError, match="has no rows"):
        arrived(tmp_path, "weather", csv_of(tables["weather"].head(0)))


@pytest.mark.parametrize("name", ["temp", "wind_speed", "pressure"])
@pytest.mark.parametrize("every", [1, 100])
def test_decimal_commas_in_a_file_are_no_numbers(
    tables: Tables, clean: Mapping[str, ValidationReport], tmp_path: Path, name: str, every: int
) -> None:
    """All of them, or mixed with decimal points."""
    mixed = (
        pl.when(pl.int_range(pl.len()) % every == 0).then(comma(pl.col(name))).otherwise(pl.col(name).cast(pl.String))
    )
    content = csv_of(tables["weather"].with_columns(mixed.alias(name)))
    report = judge(tables, "weather", arrived(tmp_path, "weather", content))
    assert f"weather.{name} kind" in caught(report, clean["weather"])


def test_unquoted_decimal_commas_are_too_many_fields(tables: Tables, tmp_path: Path) -> None:
    content = re.sub(rb"(\d)\.(\d)", rb"\1,\2", csv_of(tables["weather"]))
    with pytest.raises(ClearwayError, match="is truncated or has unreadable rows"):
        arrived(tmp_path, "weather", content)
