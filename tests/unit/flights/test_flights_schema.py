"""schema.yaml accepts the real tables at any as_of of 2013, and says what is really wrong in them.

What it says of tables that were broken on purpose is in tests/integration/flights/test_corruptions.py.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from clearway.acceptance import accept
from clearway.checks import load_checks
from clearway.features import ask
from clearway.params import load_params
from clearway.schema import TableSchema, load_schema
from clearway.sources import read_source
from clearway.stored_features import event_tables, historical_features, inputs_of
from clearway.validation import CheckResult, ValidationReport, validate_table, validate_tables
from clearway.workspace import Workspace
from flights.project import PROJECT

ROOT = Path(__file__).parents[3]
SCHEMA = load_schema(ROOT / "schema.yaml")
CHECKS = load_checks("flights", SCHEMA)
WARNINGS = {
    "flights.dest in airports.faa",
    "flights.tailnum in planes.tailnum",
    "flights cancelled",
    "flights diverted",
    "flights registration",
}
SET_ASIDE = {"weather.wind_speed range", "airports.lat range", "airports zone-of-longitude"}
"""The wind of 1048 mph, and an airport of New Hampshire in the Arctic."""

Tables = Mapping[str, pd.DataFrame]


@pytest.fixture(scope="module")
def source() -> Tables:
    params = load_params(ROOT / "params.yaml")
    return {name: read_source(entry, ROOT, key=f"sources.{name}") for name, entry in params.sources.items()}


def known(source: Tables, as_of: datetime) -> dict[str, pd.DataFrame]:
    return {name: PROJECT.known_at(name, frame, as_of) for name, frame in source.items()}


def midnight(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def by_status(report: ValidationReport, status: str) -> dict[str, CheckResult]:
    return {check.name: check for check in report.checks if check.status == status}


@pytest.mark.parametrize("day", ["2013-02-15", "2013-07-01", "2013-12-31"])
def test_the_real_tables_pass_and_their_defects_are_reported(source: Tables, day: str) -> None:
    report = validate_tables(known(source, midnight(day)), SCHEMA, as_of=midnight(day), checks=CHECKS)
    assert report.verdict == "passed", by_status(report, "fail").keys()
    assert not by_status(report, "unknown")
    assert by_status(report, "warn").keys() == WARNINGS
    assert by_status(report, "quarantine").keys() == SET_ASIDE
    assert report.quarantined == {"weather": 1, "airports": 1}
    storm = by_status(report, "quarantine")["weather.wind_speed range"]
    assert storm.examples[0]["wind_speed"] == pytest.approx(1048.36, abs=0.01)
    tails = by_status(report, "warn")["flights.tailnum in planes.tailnum"]
    assert 0.14 < tails.failures / tails.rows < 0.17
    assert by_status(report, "warn")["flights cancelled"].failures > 1000


def test_the_first_weeks_pass_too(source: Tables) -> None:
    first = midnight("2013-02-01")
    report = validate_tables(known(source, first), SCHEMA, as_of=first, checks=CHECKS)
    assert report.verdict == "passed", by_status(report, "fail").keys()


def stored(questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    params, inputs = load_params(ROOT / "params.yaml"), inputs_of(PROJECT, questions, tables)
    return historical_features(params, Workspace(ROOT), PROJECT, questions, inputs, event_tables(PROJECT, tables))


def test_the_impossible_wind_reaches_no_feature_and_all_features_are_as_declared(source: Tables) -> None:
    """Around the storm of February, whose first days hold the wind of 1048 mph."""
    until = midnight("2013-02-20")
    tables = known(source, until)
    windy = ask(PROJECT, tables, known_until=until, since=midnight("2013-02-12"), features=stored)
    accepted = accept(tables, SCHEMA, CHECKS, as_of=until)
    calm = ask(PROJECT, accepted, known_until=until, since=midnight("2013-02-12"), features=stored)
    declared = TableSchema(columns=SCHEMA.features, extra_columns="allow")
    assert SCHEMA.features.keys() == {*PROJECT.numeric, *PROJECT.categorical}
    assert windy["wind_speed"].max() > 1000
    assert calm["wind_speed"].max() < 100
    assert by_status(validate_table("features", windy, declared), "fail").keys() == {"features.wind_speed range"}
    assert validate_table("features", calm, declared).verdict == "passed"
