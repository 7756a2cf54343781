from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from clearway.as_of import format_as_of, parse_as_of, resolve_as_of, set_as_of
from clearway.errors import UsageError
from clearway.params import Params

NOW = datetime(2026, 5, 4, 13, 14, 15, tzinfo=UTC)
CLOCK = {"start": "2020-01-06", "step_days": 7}


def params(**changes: Any) -> Params:
    return Params.model_validate(
        {
            "project": {"name": "toy"},
            "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
            "data": {"table": "rows", "label": "y"},
            "environments": {"production": {"port": 0}},
            **changes,
        }
    )


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "asked", "scheduled", "last", "expected"),
    [
        pytest.param({"as_of": "2020-03-01"}, "2020-06-01", False, None, "2020-06-01", id="asked wins over params"),
        pytest.param({"as_of": "auto"}, "2020-06-01", True, "2020-05-01", "2020-06-01", id="asked wins over schedule"),
        pytest.param({"as_of": "2020-03-01"}, None, False, "2020-05-01", "2020-03-01", id="explicit"),
        pytest.param({"as_of": "2020-03-01"}, "", False, None, "2020-03-01", id="empty is not asked"),
        pytest.param({"as_of": "auto", "clock": CLOCK}, None, False, None, "2020-01-06", id="clock starts"),
        pytest.param({"as_of": "auto", "clock": CLOCK}, None, True, None, "2020-01-06", id="schedule starts the clock"),
        pytest.param({"as_of": "auto", "clock": CLOCK}, None, False, "2020-02-03", "2020-02-03", id="clock stands"),
        pytest.param({"as_of": "auto", "clock": CLOCK}, None, True, "2020-02-03", "2020-02-10", id="clock steps"),
        pytest.param(
            {"as_of": "2020-01-06", "clock": CLOCK},
            None,
            True,
            "2020-02-03",
            "2020-02-10",
            id="schedule moves explicit",
        ),
        pytest.param(
            {"as_of": "2020-01-06", "clock": CLOCK}, None, False, "2020-02-03", "2020-02-03", id="a push keeps the time"
        ),
        pytest.param(
            {"as_of": "2020-03-02", "clock": CLOCK}, None, False, "2020-02-03", "2020-03-02", id="params may run ahead"
        ),
        pytest.param({"as_of": "2020-03-01"}, None, True, "2020-05-01", "2020-03-01", id="no clock, nothing moves"),
        pytest.param({"as_of": "auto"}, None, True, "2020-05-01", "2026-05-04", id="auto without clock is today"),
        pytest.param({}, None, True, None, None, id="data without time"),
    ],
)
def test_resolve(
    changes: dict[str, Any], asked: str | None, scheduled: bool, last: str | None, expected: str | None
) -> None:
    found = resolve_as_of(
        params(**changes), asked=asked, scheduled=scheduled, last=day(last) if last else None, now=NOW
    )
    assert found == (day(expected) if expected else None)


@pytest.mark.parametrize("text", ["tomorrow", "2013-13-01", "auto", "$(date)"])
def test_a_value_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"as_of = .* write it as"):
        parse_as_of(text)


def test_zones_become_utc() -> None:
    assert format_as_of(parse_as_of("2013-10-01T02:00:00+02:00")) == "2013-10-01T00:00:00Z"


COMMENTED = """\
# settings of the line
as_of: 2013-07-01T00:00:00Z # the only clock
clock: { start: 2013-07-01,   step_days: 7 } # odd layout on purpose

seed:   1
"""


def test_set_as_of_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(COMMENTED)
    set_as_of(path, "2013-10-01")
    assert path.read_text() == COMMENTED.replace("2013-07-01T00:00:00Z", '"2013-10-01T00:00:00Z"')


def test_set_as_of_leaves_the_file_alone_when_it_says_so_already(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("as_of: '2013-07-01'\n")
    set_as_of(path, day("2013-07-01"))
    assert path.read_text() == "as_of: '2013-07-01'\n"


@pytest.mark.parametrize(
    "text", ["as_of:\nseed: 1\n", "as_of: auto # now\nseed: 1\n", "# top\nseed: 1\n", "as_of: '2013-07-01'\nseed: 1"]
)
def test_set_as_of_on_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    set_as_of(path, day("2013-10-01"))
    assert yaml.safe_load(path.read_text()) == {"as_of": "2013-10-01T00:00:00Z", "seed": 1}, "text, as DVC wants it"
    assert [line for line in path.read_text().splitlines() if "#" in line] or "#" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [("as_of: [1, 2", "is not valid YAML"), ("- as_of", "must be a mapping"), (None, "is missing")],
)
def test_set_as_of_refuses_a_broken_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        set_as_of(path, "2013-10-01")
