"""The compaction of an environment's log: how long its ledger, and who waits for labels, need what is there."""

import os
from datetime import date, datetime, timedelta
from pathlib import Path

import psutil

from clearway.ledger import Entry, read_ledger
from clearway.log_compaction import CompactionReport, compact
from clearway.params import Params
from clearway.workspace import Workspace


def compact_environment(params: Params, workspace: Workspace, environment: str, now: datetime) -> CompactionReport:
    """Compact the environment's prediction log; with ``serving.log.retention_days`` remove what is older.

    Predictions since an open rollout began are kept. A label that comes after its prediction was removed is unknown,
    so that the retention has to be longer than labels take. Labels go with the predictions that they are of.

    Raises
    ------
    UsageError
        There is no such environment.
    ClearwayError
        The ledger is damaged: nothing is then removed; or as :func:`clearway.log_compaction.compact`.
    """
    params.environment(environment)
    folder, days = workspace.environment(environment), params.serving.log.retention_days
    since = open_rollout_began(read_ledger(folder, environment)) if days is not None else None
    report = compact(folder / "predictions", now, retention_days=days, needed_from=since)
    if days is not None:
        cutoff = now.date() - timedelta(days=days)
        remove_labels(folder / "labels", cutoff if since is None else min(cutoff, since.date()))
    return report


def open_rollout_began(entries: list[Entry]) -> datetime | None:
    """When the canary that is on trial was first put there; None if none is."""
    began = None
    for entry in reversed(entries):
        if entry.canary is None or entry.canary != entries[-1].canary:
            break
        began = entry.at
    return began


def remove_labels(folder: Path, cutoff: date) -> None:
    """Remove the labels that came in before ``cutoff``: they are of predictions served before it."""
    for path in folder.glob("day=*/part-*.parquet"):
        if path.parent.name < f"day={cutoff:%Y-%m-%d}":
            path.unlink(missing_ok=True)


def give_way() -> None:
    """Let every other process of this machine have processor and disk first."""
    os.nice(19)
    process = psutil.Process()
    if hasattr(psutil, "IOPRIO_CLASS_IDLE"):
        process.ionice(psutil.IOPRIO_CLASS_IDLE)
