"""Progress: plain lines in a log, a bar on a terminal, and the time left from what this process has done."""

import io
from typing import Any

import pytest
from rich.console import Console

from clearway import progress as module
from clearway.progress import progress, time_left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock: list[float]) -> None:
    written = io.StringIO()
    with progress("train", Console(file=written, width=40)) as show:
        for done in range(20, 26):  # an earlier process has done 20
            show("search", done, 40, "best 0.75 of trial 3")
            clock[0] += 6
    assert written.getvalue().splitlines() == [
        "train: search: 22 of 40, best 0.75 of trial 3, 108 s left".replace("108 s", "2 min"),
        "train: search: 24 of 40, best 0.75 of trial 3, 2 min left",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    written = io.StringIO()
    with progress("train", Console(file=written, width=100, force_terminal=True)) as show:
        show("fit challenger", 1, 2, "Forest")
        show("fit challenger", 2, 2, "Forest")
    assert "train: fit challenger" in written.getvalue()
    assert "2/2" in written.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_a_time_is_said_as_a_person_would(seconds: Any, said: str) -> None:
    assert time_left(seconds) == said
