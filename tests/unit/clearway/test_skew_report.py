"""What of the log is compared, and how the skew report reads."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from clearway.errors import UsageError
from clearway.prediction_log import PredictionLog, read_log
from clearway.skew import Required, Served, SkewReport, compare
from clearway.skew_report import (
    CELL,
    FUTURE,
    HIDDEN_INPUTS,
    NO_FEATURES,
    NO_INPUTS,
    NO_LOOKUP,
    NO_TIME,
    NOT_A_TIME,
    READ,
    REFUSED,
    comparable,
    parse_time,
    remarks,
    terminal_table,
    way_on,
    write_report,
)

START = datetime(2024, 3, 1, tzinfo=UTC)
INPUTS = {"station": "String"}
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
        {**GOOD, "status": 422},  # the model's schema refused what the store had
        {"inputs": {"station": "a"}, "status": 422},
        {**GOOD, "asked_at": START + timedelta(days=8)},
        {**GOOD, "asked_at": "9999-12-31T00:00:00Z"},
    )
    kept, left_out = comparable(log, {"b" * 64: "served under other definitions"}, INPUTS)
    assert kept["id"].tolist() == ["q10", "q9", "q1", "q0"]  # the earliest question first
    assert left_out == {
        NO_INPUTS: 2,
        NO_FEATURES: 2,
        NO_LOOKUP: 1,
        NO_TIME: 1,
        REFUSED: 1,
        FUTURE: 1,
        NOT_A_TIME: 1,
        "served under other definitions": 1,
    }


def test_what_the_log_hides_is_said_not_to_be_compared(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        {**GOOD, "features": {"temp": "hashed:00", "wind": 2.0}, "hidden": "entity,features.temp"},
        {"features": {"wind": 2.0}, "inputs": GOOD["inputs"], "hidden": "features.temp"},
        {**GOOD, "inputs": {"station": "hashed:00"}, "hidden": "inputs.station"},
        {"features": {"temp": 1.0}, "hidden": "inputs"},  # by key or not: nobody can say any more
        {"features": {"temp": 1.0}, "hidden": "inputs.station"},  # it carried its features itself
        {"hidden": "features,inputs"},
    )
    kept, left_out = comparable(log, {}, INPUTS)
    assert kept["features"].tolist() == [{"wind": 2.0}, {"wind": 2.0}]
    assert left_out == {
        HIDDEN_INPUTS: 2,
        NO_INPUTS: 1,
        NO_FEATURES: 1,
        "feature temp is left out of the log or hashed (params.yaml: serving.log)": 2,
    }
    served = Served(*(kept[name].tolist() for name in ("id", "asked_at", "version", "inputs", "features")))
    recomputed = pd.DataFrame({"temp": [1.0, 1.0], "wind": [2.0, 2.0]})
    required = Required("a" * 64, ("temp", "wind"))
    report = compare(
        served, recomputed, ["temp", "wind"], [], environment="staging", not_compared=left_out, required=required
    )
    assert (report.verdict, report.lacking, report.different) == ("unknown", ("temp",), 0)
    assert "left out of the log or hashed" in report.sentence


def test_an_empty_log_leaves_nothing_out(tmp_path: Path) -> None:
    kept, left_out = comparable(read_log(tmp_path, columns=READ), {}, INPUTS)
    assert (len(kept), left_out) == (0, {})


@pytest.mark.parametrize(
    ("text", "hour"),
    [("2024-03-01", 0), ("2024-03-01T05:00", 5), ("2024-03-01T05:00:00Z", 5), ("2024-03-01T05:00+01:00", 4)],
)
def test_a_time_without_zone_is_utc(text: str, hour: int) -> None:
    assert parse_time(text) == datetime(2024, 3, 1, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [({}, "inputs lack station"), ({"station": 5}, "inputs.station is 5, not String")],
)
def test_inputs_that_cannot_be_looked_up_are_counted_and_located(
    tmp_path: Path, inputs: dict[str, Any], fault: str
) -> None:
    log = log_of(tmp_path, GOOD, {**GOOD, "inputs": inputs}, {**GOOD, "inputs": inputs})
    (file,) = tmp_path.iterdir()
    kept, left_out = comparable(log, {}, INPUTS, damage=(3, "x.jsonl:7: is no JSON record"))
    assert kept["id"].tolist() == ["q0"]
    assert left_out == {
        f"their inputs are not what the definitions ask for, the first is {file.name}:2: {fault}": 2,
        "their records are damaged, the first is x.jsonl:7: is no JSON record": 3,
    }


@pytest.mark.parametrize(
    "text", ["", "auto", "yesterday", "2024-13-01", "2013", "0", "-1", "1e20", "nan", "9999-12-31", "0001-01-01"]
)
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


def test_long_values_leave_room_for_the_names_of_features() -> None:
    found = report([{"temp": "x" * 300, "age": 1.0}], [{"temp": 1.0, "age": 1.0}])
    table = terminal_table(found)
    assert list(table.columns[0].cells) == ["temp"]
    assert max(len(cell) for column in table.columns for cell in column.cells) <= CELL
    console = Console(width=140, file=io.StringIO(), force_terminal=False)
    console.print(table)
    assert "temp     weather" in console.file.getvalue()  # type: ignore[attr-defined]


def test_who_is_told_of_skew_is_told_how_to_go_on() -> None:
    skew = report([{"temp": 2.0, "age": 1.0}], [{"temp": 1.0, "age": 1.0}])
    assert "--rollout looks at the current rollout only" in way_on(skew)
    assert "rollback.py --env live" in way_on(skew.model_copy(update={"rollout": 3}))
    assert "replay_traffic.py --env live" in way_on(report([], []))


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
