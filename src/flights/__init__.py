"""The example model: will a flight out of New York arrive more than 15 minutes late, asked two hours before departure?

Delete this folder and its tests, and put your own package in its place: the line reaches it only through ``PROJECT``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flights.project import PROJECT

__all__ = ["PROJECT"]


def __getattr__(name: str) -> Any:
    """``PROJECT`` when it is asked for: the gate imports :mod:`flights.checks` alone, and has no use for pandas."""
    if name != "PROJECT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flights.project import PROJECT

    return PROJECT
