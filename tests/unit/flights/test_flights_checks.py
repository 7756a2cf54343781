"""The named checks of the flights: clocks, zones and times in the air, and the hours of weather."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from flights.checks import CHECKS
from flights.zones import NEW_YORK, ZONES


def verdicts(check: str, rows: dict[str, list]) -> list[bool | None]:
    return pl.DataFrame(rows).select(CHECKS[check]).to_series().to_list()


def clocks(hours: list[datetime], shown: list[datetime] | None = None) -> dict[str, list]:
    """``time_hour``, and the date and hour that New York's clock shows at ``shown``."""
    local = [hour.astimezone(ZoneInfo(NEW_YORK)) for hour in shown or hours]
    parts = {part: [getattr(time, part) for time in local] for part in ("year", "month", "day", "hour")}
    return {"time_hour": hours, **parts}


YEAR = [datetime(2013, 1, 1, 5, tzinfo=UTC) + timedelta(hours=number) for number in range(365 * 24)]


def test_every_hour_of_2013_is_what_new_yorks_clock_shows() -> None:
    assert all(verdicts("new_york_clock", clocks(YEAR)))


@pytest.mark.parametrize("hours", [-5, -1, 1, 5, 24])
def test_a_shift_is_seen_in_every_hour_of_the_year(hours: int) -> None:
    shifted = [hour + timedelta(hours=hours) for hour in YEAR]
    wrong = [not good for good in verdicts("new_york_clock", clocks(shifted, shown=YEAR))]
    twice = 1 if abs(hours) == 1 else 0  # in the night of 3 November the clock shows one hour twice
    assert sum(wrong) == len(YEAR) - twice


def test_a_date_that_does_not_exist_is_wrong_and_no_error() -> None:
    rows = clocks([datetime(2013, 3, 3, 12, tzinfo=UTC)] * 4)
    rows |= {"month": [3, 2, 13, 3], "day": [3, 31, 3, 0]}
    assert verdicts("new_york_clock", rows) == [True, True, False, False]  # the 31st of February is 3 March


def test_a_missing_part_of_the_clock_is_not_judged() -> None:
    assert verdicts("new_york_clock", {**clocks(YEAR[:1]), "day": [None]}) == [None]


def test_the_zone_of_a_destination_is_known_or_not() -> None:
    assert verdicts("destination_zone", {"dest": ["ORD", "HNL", "XYZ", None]}) == [True, True, False, True]
    assert all(verdicts("destination_zone", {"dest": list(ZONES)}))


def flight(dest: str, leaves: int, arrives: int, miles: int) -> dict[str, list]:
    return {"dest": [dest], "sched_dep_time": [leaves], "sched_arr_time": [arrives], "distance": [miles]}


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        (flight("ORD", 800, 940, 733), True),  # 2 hours 40 on the way, an hour behind
        (flight("LAX", 2200, 107, 2475), True),  # over midnight
        (flight("HNL", 1000, 1430, 4983), True),
        (flight("SJU", 600, 950, 1598), True),
        (flight("LAX", 800, 940, 733), False),  # Chicago's times and distance
        (flight("ORD", 800, 1440, 733), False),  # arrival written in UTC
        (flight("ORD", 800, 300, 733), False),
        (flight("XYZ", 800, 940, 733), None),
    ],
)
def test_the_schedule_suits_distance_and_zones(rows: dict[str, list], good: bool | None) -> None:
    assert verdicts("block_time", rows) == [good]


def hourly(first: datetime, hours: int) -> list[datetime]:
    """Each hour three times, once per airport."""
    return [first + timedelta(hours=number) for number in range(hours) for _ in range(3)]


def test_a_gap_in_the_weather_is_seen_by_the_row_after_it() -> None:
    hours = [hour for hour in hourly(datetime(2013, 5, 1, tzinfo=UTC), 6) if hour.hour != 3]
    shuffled = [hours[(7 * number) % len(hours)] for number in range(len(hours))]
    for rows in (hours, shuffled):
        found = verdicts("hours_follow", {"time_hour": rows})
        assert [hour.hour for hour, good in zip(rows, found, strict=True) if good is False] == [4]


def test_the_gaps_that_the_source_has_are_known() -> None:
    gap = [datetime(2013, 10, 25, 23, tzinfo=UTC), datetime(2013, 10, 26, 5, tzinfo=UTC)]
    assert False not in verdicts("hours_follow", {"time_hour": gap})
    assert False in verdicts("hours_follow", {"time_hour": [gap[0], gap[1] + timedelta(hours=1)]})
