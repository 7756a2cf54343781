"""Whether something is quick enough of late to be done on the event loop, where nobody waits for a thread."""

QUICK_SECONDS, QUICK_TIMES = 0.002, 16
"""What is called quick: so many in a row took no longer than this each. A thread of its own costs a request some tenths
of a millisecond, and the event loop's other callers some of it."""


class Pace:
    """How long single pieces of a work take: quick after ``QUICK_TIMES`` quick ones in a row, until one is slow."""

    __slots__ = ("_in_a_row",)

    def __init__(self) -> None:
        self._in_a_row = 0

    @property
    def quick(self) -> bool:
        """Whether the latest ``QUICK_TIMES`` took at most ``QUICK_SECONDS`` each."""
        return self._in_a_row >= QUICK_TIMES

    def add(self, seconds: float, pieces: int = 1) -> None:
        """Count what was done at once: of several pieces only that it was too slow for one."""
        if seconds > QUICK_SECONDS * pieces:
            self._in_a_row = 0
        elif pieces == 1:
            self._in_a_row += 1
