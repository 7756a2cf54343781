"""What of the log is compared, and how the skew report reads."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clearway.errors import UsageError
from clearway.prediction_log import PredictionLog, read_log
from clearway.skew import Served, SkewReport, compare
from clearway.skew_report import (
    NO_FEATURES,
    NO_INPUTS,
    NO_LOOKUP,
    NO_TIME,
    READ,
    comparable,
    parse_time,
    remarks,
    terminal_table,
    write_report,
)

START = datetime(2024, 3, 1, tzinfo=UTC)
GOOD = {"features": {"temp": 1.0}, "inputs": {"station": "a"}}


def log_of(tmp_path: Path, *records: dict[str, Any]) -> pd.DataFrame:
    log = PredictionLog(tmp_path)
    for number, other in enumerate(records):
        log.append(
            {
                "id": f"q{number}",
                "revision": 1,
                "version": "a" * 64,
                "status": 200,
                "asked_at": START - timedelta(hours=number),
                "served_at": START + timedelta(seconds=number),
                **other,
            }
        )
    log.close()
    return read_log(tmp_path, columns=READ)


def test_only_predictions_by_key_are_compared_and_the_others_are_counted(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        GOOD,
        GOOD,
        {"features": {"temp": 1.0}, "inputs": None},
        {"features": {"temp": 1.0}},
        {"inputs": {"station": "a"}},
        {"inputs": {"station": "a"}, "status": 503},
        {},
        {**GOOD, "asked_at": None},
        {**GOOD, "version": "b" * 64},
        {**GOOD, "status": 500},  # the model failed, but it had been given features
    )
    kept, left_out = comparable(log, {"b" * 64: "served under other definitions"})
    assert kept["id"].tolist() == ["q9", "q1", "q0"]  # the earliest question first
    assert left_out == {
        NO_INPUTS: 2,
        NO_FEATURES: 2,
        NO_LOOKUP: 1,
        NO_TIME: 1,
        "served under other definitions": 1,
    }


def test_an_empty_log_leaves_nothing_out(tmp_path: Path) -> None:
    kept, left_out = comparable(read_log(tmp_path, columns=READ), {})
    assert (len(kept), left_out) == (0, {})


@pytest.mark.parametrize(
    ("text", "hour"),
    [("2024-03-01", 0), ("2024-03-01T05:00", 5), ("2024-03-01T05:00:00Z", 5), ("2024-03-01T05:00+01:00", 4)],
)
def test_a_time_without_zone_is_utc(text: str, hour: int) -> None:
    assert parse_time(text) == datetime(2024, 3, 1, hour, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "auto", "yesterday", "2024-13-01"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"--since .* is no time"):
        parse_time(text)


def report(served: list[dict[str, Any]], recomputed: list[dict[str, Any]]) -> SkewReport:
    count = len(served)
    predictions = Served(
        [f"q{number}" for number in range(count)],
        [START + timedelta(hours=number) for number in range(count)],
        ["d" * 64] * count,
        [{"station": "<a>"}] * count,
        served,
    )
    return compare(
        predictions,
        pd.DataFrame(recomputed, columns=["temp", "age"]),
        ["temp", "age"],
        [],
        environment="live",
        view_of={"temp": "weather", "age": None},
        not_compared={"they slept": 3},
    )


def test_table_and_remarks_name_features_in_the_order_they_first_differed() -> None:
    own = [{"temp": 0.1 * number, "age": float(number)} for number in range(1, 6)]
    served = [{"temp": row["temp"] + (number > 2), "age": 2 * row["age"]} for number, row in enumerate(own)]
    found = report(served, own)
    table = terminal_table(found)
    assert list(table.columns[0].cells) == ["age", "temp"]
    assert remarks(found) == (
        "age: served values are 2 times the recomputed: another constant.",
        "3 predictions not compared: they slept.",
    )


def test_page_escapes_what_callers_sent_and_stands_alone(tmp_path: Path) -> None:
    write_report(report([{"temp": 1.0, "age": None}], [{"temp": 1.5, "age": None}]), {}, tmp_path)
    page = (tmp_path / "skew.html").read_text()
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "temp is the first feature that differs" in page
    assert "they slept" in page
    assert "<script" not in page
    read = SkewReport.model_validate_json((tmp_path / "skew.json").read_bytes())
    assert read.first is not None
    assert (read.verdict, read.first.feature, read.first.inputs) == ("skew", "temp", {"station": "<a>"})


def test_page_of_an_unknown_verdict_claims_nothing(tmp_path: Path) -> None:
    write_report(report([], []), {}, tmp_path)
    page = (tmp_path / "skew.html").read_text()
    assert "Nothing was compared" in page
    assert "All features" not in page
