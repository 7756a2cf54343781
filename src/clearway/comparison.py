"""Two models side by side: what differs in params, data, code, packages, features, metrics and gates."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clearway.model_record import SHOWN, ModelRecord
from clearway.params import Params

ABSENT = "(absent)"
"""Stands where one of the two does not have a key."""
SAME_HOLDOUT = ("sources", "data", "target", "split", "seed")
"""Params that choose the holdout's rows."""


@dataclass(frozen=True)
class Row:
    """One thing of two models."""

    key: str
    a: Any
    b: Any
    difference: float | None = None
    """``b`` minus ``a``, of metrics."""

    @property
    def differs(self) -> bool:
        return bool(self.a != self.b)


@dataclass(frozen=True)
class Comparison:
    """Two models side by side."""

    a: ModelRecord
    b: ModelRecord
    sections: Mapping[str, tuple[Row, ...]]
    notes: tuple[str, ...]
    """What a reader must know to read the rows rightly."""

    @property
    def same(self) -> bool:
        """Whether the two are one model."""
        return self.a.digest == self.b.digest


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists and empty mappings stay values.

    >>> flatten({"train": {"arguments": {"max_iter": 60}}})
    {'train.arguments.max_iter': 60}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def side_by_side(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Row, ...]:
    """One row for each key of either, in the order of ``a`` and then of ``b``; ``ABSENT`` where it is not."""
    return tuple(Row(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in dict.fromkeys((*a, *b)))


def measured(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[Row, ...]:
    """Metrics side by side, with ``b`` minus ``a`` where both have one."""
    return tuple(
        Row(row.key, row.a, row.b, row.b - row.a if row.key in a and row.key in b else None)
        for row in side_by_side(a, b)
    )


def effective(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Params with every default filled in; None where this version of the line no longer takes them."""
    try:
        return Params.model_validate(params).model_dump(mode="json", by_alias=True)
    except ValidationError:
        return None


def compare(a: ModelRecord, b: ModelRecord) -> Comparison:
    """Two models side by side."""
    notes = []
    ours, theirs = effective(a.params), effective(b.params)
    if ours is None or theirs is None:
        ours, theirs = dict(a.params), dict(b.params)
        notes.append(
            "params are compared as they were written, without defaults: this version of the line does not take all "
            "of their keys"
        )
    if a.lineage.snapshot_sha256 != b.lineage.snapshot_sha256 or any(
        ours.get(key) != theirs.get(key) for key in SAME_HOLDOUT
    ):
        notes.append("metrics and gates were measured on two different holdouts: a difference may come from the rows")
    time = ("as_of",)  # stands under data
    sections = {
        "model": side_by_side(flatten(a.model), flatten(b.model)),
        "params": side_by_side(*(flatten({k: v for k, v in p.items() if k not in time}) for p in (ours, theirs))),
        "data": side_by_side(_data(a), _data(b)),
        "code": side_by_side(_code(a), _code(b)),
        "packages": side_by_side(a.lineage.packages, b.lineage.packages),
        "features": _features(a, b),
        "metrics": measured(a.lineage.metrics, b.lineage.metrics),
        "gates": side_by_side(_gates(a), _gates(b)),
    }
    return Comparison(a, b, sections, tuple(notes))


def document(comparison: Comparison, *, everything: bool) -> dict[str, Any]:
    """The comparison as plain values, for ``--json``; without ``everything`` only rows that differ."""
    sections = {
        name: [asdict(row) for row in rows if everything or row.differs] for name, rows in comparison.sections.items()
    }
    for name, rows in sections.items():
        if name != "metrics":
            for row in rows:
                del row["difference"]
    heads = {
        side: {"digest": model.digest, "project": model.lineage.project, "role": model.lineage.role}
        for side, model in (("a", comparison.a), ("b", comparison.b))
    }
    return {**heads, "same": comparison.same, "notes": list(comparison.notes), **sections}


def show(comparison: Comparison, console: Console, *, everything: bool) -> None:
    """Print the comparison; without ``everything`` only rows that differ."""
    for side, model in (("A", comparison.a), ("B", comparison.b)):
        console.print(
            f"{side}  [bold]{model.digest}[/]  {model.lineage.project}: {model.lineage.role}",
            highlight=False,
            soft_wrap=True,
        )
    if comparison.same:
        console.print("one and the same model; what differs below is evidence beside it")
    for note in comparison.notes:
        console.print(f"[yellow]note[/]: {escape(note)}", highlight=False, soft_wrap=True)
    alike = [name for name, rows in comparison.sections.items() if not everything and not any(r.differs for r in rows)]
    for name, rows in comparison.sections.items():
        chosen = [row for row in rows if everything or row.differs]
        if name in alike or not chosen:
            continue
        table = Table(title=name, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 2))
        table.add_column("", overflow="fold")
        table.add_column(f"A {comparison.a.digest[:SHOWN]}", overflow="fold")
        table.add_column(f"B {comparison.b.digest[:SHOWN]}", overflow="fold")
        if name == "metrics":
            table.add_column("B - A", justify="right")
        for row in chosen:
            cells = [row.key, _said(row.a), _said(row.b)]
            if name == "metrics":
                cells.append("" if row.difference is None else f"{row.difference:+.4f}")
            table.add_row(*map(escape, cells), style="" if row.differs else "dim")
        console.print()
        console.print(table, highlight=False)
    if alike:
        console.print(f"\nno difference in {', '.join(alike)}", highlight=False)


def _data(model: ModelRecord) -> dict[str, Any]:
    lineage = model.lineage
    found: dict[str, Any] = {
        "as_of": lineage.as_of.isoformat() if lineage.as_of else None,
        "snapshot_sha256": lineage.snapshot_sha256,
        "training_rows": lineage.training_rows,
        "labelled_rows": lineage.labelled_rows,
        "trained_until": lineage.trained_until.isoformat() if lineage.trained_until else None,
    }
    for name, table in (model.snapshot.tables if model.snapshot else {}).items():
        found[f"{name}.rows"] = table.rows
        found[f"{name}.sha256"] = table.sha256
        found[f"{name}.source"] = table.source
    return found


def _code(model: ModelRecord) -> dict[str, Any]:
    lineage = model.lineage
    return {
        "git_commit": lineage.git_commit,
        "code_commit": lineage.code_commit,
        "recipe_sha256": lineage.recipe_sha256,
        "definitions_sha256": model.definitions_sha256,
    }


def _features(a: ModelRecord, b: ModelRecord) -> tuple[Row, ...]:
    """A row for each feature that only one has, and one for each part of a definition of those that both have."""
    rows: list[Row] = []
    for row in side_by_side(a.features, b.features):
        if ABSENT in (row.a, row.b):
            ours, theirs = (ABSENT if side == ABSENT else side["kind"] for side in (row.a, row.b))
            rows.append(Row(row.key, ours, theirs))
        else:
            parts = side_by_side(row.a, row.b)
            rows += [Row(f"{row.key}.{part.key}", part.a, part.b) for part in parts]
    return tuple(rows)


def _gates(model: ModelRecord) -> dict[str, str]:
    """Each gate's status and what it was judged by, in words that can be compared."""
    found = {"verdict": model.verdict}
    for gate in model.gates:
        numbers = [f"{gate[key]:.4g}" if gate.get(key) is not None else "–" for key in ("estimate", "lower", "upper")]
        bound = f", threshold {gate['threshold']:.4g}" if gate.get("threshold") is not None else ""
        estimate = f" {numbers[0]} [{numbers[1]}, {numbers[2]}]" if numbers != ["–"] * 3 else ""
        found[str(gate["name"])] = f"{gate['status']}{estimate}{bound}"
    return found


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
