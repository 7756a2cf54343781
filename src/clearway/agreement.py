"""Whether what repeats a ledger says what its last entry says."""

from collections.abc import Mapping
from typing import Any

from clearway.ledger import Entry


def wanted(head: Entry) -> dict[str, Any]:
    """What a server must say of itself after ``head``."""
    return {
        "revision": head.sequence,
        "stable": head.stable,
        "canary": head.canary,
        "canary_weight": head.canary_weight,
    }


def disagreement(who: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """A sentence that names every key of ``wanted`` that ``found`` says otherwise; None if there is none."""
    differing = [
        f"{key} is {_short(found.get(key))}, not {_short(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    return f"{who} disagrees with the ledger: {'; '.join(differing)}" if differing else None


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 else text
