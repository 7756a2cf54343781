"""How far long work is: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Show = Callable[[str, int, int, str], None]
"""Takes what is done (``search``), how many parts of it are done, how many there are, and a word on it."""

LINE_SECONDS = 10.0
"""Between two plain lines: a log is read later."""


def silent(what: str, done: int, total: int, said: str = "") -> None:
    """Show nothing."""


def time_left(seconds: float) -> str:
    """A time as a person says it.

    >>> time_left(42), time_left(130), time_left(9000)
    ('42 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Pace:
    """Time left of each work, from its first report on: what an earlier process has done took no time in this one."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def left(self, what: str, done: int, total: int) -> str:
        now = time.monotonic()
        began, before = self._first.setdefault(what, (now, done))
        if done <= before or done >= total:
            return ""
        return f"{time_left((now - began) / (done - before) * (total - done))} left"


@contextmanager
def progress(title: str, console: Console, every: float = LINE_SECONDS) -> Iterator[Show]:
    """Yield what shows progress on ``console``: a bar if it is a terminal, else a line at most ``every`` seconds."""
    pace = _Pace()
    if not console.is_terminal:
        last = time.monotonic()

        def line(what: str, done: int, total: int, said: str = "") -> None:
            nonlocal last
            left = pace.left(what, done, total)
            if time.monotonic() - last >= every:
                last = time.monotonic()
                words = ", ".join(filter(None, (f"{done} of {total}", said, left)))
                console.print(f"{title}: {what}: {words}", highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def bar(what: str, done: int, total: int, said: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{title}: {what}", total=total, said="")
            words = ", ".join(filter(None, (said, pace.left(what, done, total))))
            bars.update(tasks[what], completed=done, total=total, said=words)

        yield bar
