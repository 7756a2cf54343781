"""One model's way from data to deployments, and the other way: from data or code to the models made from it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clearway.bundle import BundleError, verify
from clearway.comparison import flatten
from clearway.ledger import Entry, ledger_file, read_ledger
from clearway.lineage import Lineage
from clearway.model_record import SHOWN, ModelRecord, kept_digests, snapshot_of
from clearway.snapshot import Snapshot
from clearway.workspace import Workspace

SHOWN_PARAMS = ("seed", "schema", "data", "split", "train", "gates")
"""The sections that shape a model and its verdict; the others are in the JSON."""


@dataclass(frozen=True)
class Deployment:
    """A ledger entry that names a model."""

    environment: str
    sequence: int
    at: datetime
    action: str
    part: str
    """What the entry made of it: ``stable``, ``canary``, ``replaced``, ``quarantined``, ``released``."""
    weight: int
    """Percent of traffic it got from here on."""
    actor: str
    reason: str
    evidence: Mapping[str, str]
    """What the entry was decided from, such as the verdict on a canary."""


@dataclass(frozen=True)
class Made:
    """One model made from some data or code."""

    digest: str
    lineage: Lineage
    live: tuple[str, ...]
    """Where it answers now: ``production``, ``production 10%``."""


@dataclass(frozen=True)
class Found:
    """What was found among the kept bundles."""

    models: tuple[Made, ...]
    broken: tuple[str, ...]
    """Why a bundle could not be asked; it may be one of those looked for."""


def deployments(digest: str, ledgers: Mapping[str, Sequence[Entry]]) -> list[Deployment]:
    """Every entry of the (verified) ledgers that names ``digest``, oldest first."""
    named = [
        Deployment(
            environment=environment,
            sequence=entry.sequence,
            at=entry.at,
            action=entry.action,
            part=part,
            weight=_weight(entry, digest),
            actor=entry.actor,
            reason=entry.reason,
            evidence=entry.evidence,
        )
        for environment, entries in ledgers.items()
        for entry in entries
        for part in _parts(entry, digest)[:1]
    ]
    return sorted(named, key=lambda found: (found.at, found.environment, found.sequence))


def live(digest: str, ledgers: Mapping[str, Sequence[Entry]]) -> tuple[str, ...]:
    """Where ``digest`` answers now, according to the ledgers."""
    places = []
    for environment, entries in ledgers.items():
        weight = _weight(entries[-1], digest) if entries else 0
        if weight:
            places.append(environment if weight == 100 else f"{environment} {weight}%")
    return tuple(places)


def read_ledgers(workspace: Workspace) -> dict[str, list[Entry]]:
    """The verified ledger of every environment that was ever deployed to, also of those no longer in ``params.yaml``.

    Raises
    ------
    ClearwayError
        A ledger is damaged.
    """
    folders = sorted(workspace.environment("x").parent.glob("*/"))
    return {folder.name: read_ledger(folder, folder.name) for folder in folders if ledger_file(folder).exists()}


def search(workspace: Workspace, *, data: str = "", commit: str = "") -> Found:
    """All kept models made from that data and code, oldest data first; all models where neither is given.

    Parameters
    ----------
    workspace : Workspace
    data : str
        The beginning of the SHA-256 of a snapshot, or of one table in it.
    commit : str
        The beginning of a commit, of the project or of the line.

    Raises
    ------
    ClearwayError
        A ledger is damaged.
    """
    ledgers = read_ledgers(workspace)
    models, broken = [], []
    for digest in kept_digests(workspace.bundles):
        try:
            bundle = verify(workspace.bundles / digest, digest)
            lineage = bundle.lineage()
            snapshot = snapshot_of(bundle, lineage)
        except BundleError as error:
            broken.append(str(error))
            continue
        if made_from(lineage, snapshot, data=data, commit=commit):
            models.append(Made(digest, lineage, live(digest, ledgers)))
    models.sort(key=lambda made: (made.lineage.as_of.isoformat() if made.lineage.as_of else "", made.digest))
    return Found(tuple(models), tuple(broken))


def made_from(lineage: Lineage, snapshot: Snapshot | None, *, data: str = "", commit: str = "") -> bool:
    """Whether a model was made from that data (a snapshot, or a table of it) and that commit; an empty one is any."""
    tables = snapshot.tables.values() if snapshot else ()
    hashes = [lineage.snapshot_sha256, *(table.sha256 for table in tables)]
    commits = [lineage.git_commit or "", lineage.code_commit or ""]
    of_data = any(found.startswith(data) for found in hashes)
    return of_data and (not commit or any(found.startswith(commit) for found in commits))


def document(model: ModelRecord, named: Sequence[Deployment]) -> dict[str, Any]:
    """The way of one model as plain values, for ``--json``."""
    lineage = model.lineage.model_dump(mode="json")
    tables = (
        {name: table.model_dump(mode="json") for name, table in model.snapshot.tables.items()}
        if model.snapshot
        else None
    )
    data = {
        key: lineage[key] for key in ("snapshot_sha256", "as_of", "training_rows", "labelled_rows", "trained_until")
    }
    code = {key: lineage[key] for key in ("git_commit", "code_commit", "recipe_sha256", "lock_sha256", "packages")}
    return {
        "digest": model.digest,
        "project": lineage["project"],
        "role": lineage["role"],
        "trained_because": {"trigger": lineage["trigger"], "reasons": lineage["reasons"]},
        "data": {**data, "tables": tables},
        "code": code,
        "model": model.model,
        "params": model.params,
        "features": {"definitions_sha256": model.definitions_sha256, "features": model.features},
        "metrics": lineage["metrics"],
        "gates": {"verdict": model.verdict, "reason": model.reason, "gates": list(model.gates)},
        "deployments": [{**asdict(entry), "at": entry.at.isoformat()} for entry in named],
    }


def found_document(found: Found) -> dict[str, Any]:
    """What :func:`search` found, as plain values."""
    models = [
        {"digest": made.digest, "live": list(made.live), **made.lineage.model_dump(mode="json")}
        for made in found.models
    ]
    return {"models": models, "broken": list(found.broken)}


def show(model: ModelRecord, named: Sequence[Deployment], console: Console) -> None:
    """Print the way of one model: data → code → params → metrics → gates → deployments."""
    lineage = model.lineage
    why = ", ".join(lineage.reasons) or "no reason recorded"
    _say(console, f"[bold]{lineage.project}[/]: {lineage.role} [bold]{model.digest}[/]")
    _say(console, f"trained because: {escape(lineage.trigger)} ({escape(why)})")
    _pairs(console, "data", _data(model))
    _pairs(console, "code", _code(lineage))
    _pairs(console, "model", [(key, _plain(value)) for key, value in flatten(model.model).items()])
    wanted = {key: model.params[key] for key in SHOWN_PARAMS if key in model.params}
    params = [(key, _plain(value)) for key, value in flatten(wanted).items()]
    _pairs(console, "params (as written, of what shapes the model; all of them with --json)", params)
    _pairs(console, "metrics on the holdout", [(key, f"{value:.4f}") for key, value in lineage.metrics.items()])
    _say(console, f"\n[bold]gates[/]: {escape(model.verdict)}: {escape(model.reason)}")
    rows = [(gate.get("name"), gate.get("status"), gate.get("detail")) for gate in model.gates]
    _grid(console, ("gate", "status", "detail"), rows)
    _say(console, "\n[bold]deployments[/]" + ("" if named else ": none, no ledger names it"))
    _grid(console, ("when (UTC)", "environment", "action", "as", "by", "why"), [_deployment(entry) for entry in named])


def show_found(found: Found, console: Console) -> None:
    """Print the models that :func:`search` found, one a line."""
    rows = [
        (
            made.digest[:SHOWN],
            made.lineage.role,
            _day(made.lineage.as_of),
            made.lineage.snapshot_sha256[:SHOWN],
            _commit(made.lineage.git_commit, SHOWN),
            _commit(made.lineage.code_commit, SHOWN),
            ", ".join(made.live),
        )
        for made in found.models
    ]
    _grid(console, ("digest", "role", "as of", "snapshot", "commit", "line's commit", "live"), rows)
    _say(console, f"{len(rows)} {'model' if len(rows) == 1 else 'models'}")


def _parts(entry: Entry, digest: str) -> list[str]:
    said = {
        "stable": entry.stable == digest,
        "canary": entry.canary == digest,
        "quarantined": digest in entry.quarantines,
        "released": digest in entry.releases,
        "replaced": entry.previous_stable == digest,
    }
    return [part for part, holds in said.items() if holds]


def _weight(entry: Entry, digest: str) -> int:
    if entry.canary == digest:
        return entry.canary_weight
    return 100 - entry.canary_weight if entry.stable == digest else 0


def _data(model: ModelRecord) -> Iterator[tuple[str, str]]:
    lineage = model.lineage
    yield "snapshot", lineage.snapshot_sha256
    yield "as of", _day(lineage.as_of)
    if model.snapshot is None:
        yield "tables", "not recorded in this bundle"
    else:
        for name, table in model.snapshot.tables.items():
            yield f"table {name}", f"{table.rows:,} rows, sha256 {table.sha256[:SHOWN]}…, {table.source}"
    until = f", answers known until {_day(lineage.trained_until)}" if lineage.trained_until else ""
    yield "rows", f"{lineage.training_rows:,} in training, {lineage.labelled_rows:,} with the holdout{until}"


def _code(lineage: Lineage) -> Iterator[tuple[str, str]]:
    yield "project's commit", _commit(lineage.git_commit)
    yield "line's commit", _commit(lineage.code_commit)
    yield "recipe", lineage.recipe_sha256
    yield "dvc.lock", lineage.lock_sha256 or "none"
    yield "packages", ", ".join(f"{name} {version}" for name, version in lineage.packages.items())


def _deployment(entry: Deployment) -> tuple[str, ...]:
    part = f"{entry.part} {entry.weight}%" if entry.weight else entry.part
    evidence = "; ".join(f"{key} {value}" for key, value in entry.evidence.items())
    why = f"{entry.reason} ({evidence})" if evidence else entry.reason
    return f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.environment, entry.action, part, entry.actor, why


def _commit(commit: str | None, length: int = 40) -> str:
    if commit is None:
        return "not recorded"
    digits, dash, dirty = commit.partition("-")
    return digits[:length] + dash + dirty


def _day(moment: datetime | None) -> str:
    if moment is None:
        return "no time in the data"
    return (
        f"{moment:%Y-%m-%d}"
        if (moment.hour, moment.minute, moment.second) == (0, 0, 0)
        else f"{moment:%Y-%m-%d %H:%M:%S}"
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _pairs(console: Console, title: str, pairs: Any) -> None:
    _say(console, f"\n[bold]{escape(title)}[/]")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs:
        table.add_row(escape(key), escape(value))
    console.print(table, highlight=False)


def _grid(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        return
    table = Table(*columns, box=None, padding=(0, 2, 0, 2), header_style="dim")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table, highlight=False)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
