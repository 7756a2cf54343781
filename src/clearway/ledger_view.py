"""The ledger for people and for other programs: an aligned table, JSON, CSV."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from clearway.deployment import SHOWN, Situation, way_back
from clearway.errors import UsageError
from clearway.ledger import CLOCK, Entry, quarantined

Format = Literal["json", "csv"]
COLUMNS = ("entry", "when (UTC)", "action", "answers", "who", "why")


def show(entries: Sequence[Entry], environment: str, last: int | None = None) -> str:
    """The last entries as an aligned table, what answers now, what is quarantined, and where a rollback leads.

    Raises
    ------
    UsageError
        ``last`` is below 1.
    """
    if last is not None and last < 1:
        raise UsageError(f"--last {last}: show at least one entry")
    if not entries:
        return f"{environment}: nothing was ever deployed"
    rows = [COLUMNS, *(_row(entry) for entry in entries[-last if last else 0 :])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    barred = sorted(quarantined(entries))
    back = way_back(Situation(environment, entries))
    return "\n".join(
        [
            *lines,
            "",
            f"{environment} now   {weights(entries[-1])}",
            f"quarantined   {', '.join(digest[:SHOWN] for digest in barred) or 'nothing'}",
            f"rollback to   {back[:SHOWN] if back else 'nothing: there is no earlier good version'}",
        ]
    )


def weights(entry: Entry) -> str:
    """Who answers how much: ``1f3c9a… 90% + 77ab01… 10%``."""
    if entry.canary is None:
        return f"{entry.stable[:SHOWN]} 100%"
    return f"{entry.stable[:SHOWN]} {100 - entry.canary_weight}% + {entry.canary[:SHOWN]} {entry.canary_weight}%"


def export(entries: Sequence[Entry], form: Format) -> str:
    """All entries with all their fields, as a JSON array, or as CSV with one column per piece of evidence."""
    records = [entry.model_dump(mode="json") for entry in entries]
    if form == "json":
        return json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    flat = [_flat(record) for record in records]
    columns = dict.fromkeys(name for record in flat for name in record)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _row(entry: Entry) -> tuple[str, ...]:
    notes = [
        " ".join(entry.reason.split()),
        *(f"[quarantined {digest[:SHOWN]}]" for digest in entry.quarantines),
        *(f"[released {digest[:SHOWN]}]" for digest in entry.releases),
        *([f"[the clock said {entry.evidence[CLOCK]}]"] if CLOCK in entry.evidence else []),
    ]
    when = entry.at.strftime("%Y-%m-%d %H:%M:%S")
    return str(entry.sequence), when, entry.action, weights(entry), entry.actor, " ".join(notes)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    evidence = {f"evidence.{name}": value for name, value in record.pop("evidence").items()}
    return {
        **{name: " ".join(value) if isinstance(value, list) else value for name, value in record.items()},
        **evidence,
    }
