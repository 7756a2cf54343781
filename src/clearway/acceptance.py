"""The rows that go on: the tables without what ``schema.yaml`` sets aside (severity ``quarantine``).

The features of training, the replay of traffic and the labels of the monitor all read their tables through
:func:`accept`, so that a question is answered from the same rows wherever it is asked. A row is set aside for what it
holds, never for how many others are: the shares that a check tolerates do not keep it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from clearway.checks import Checks, CompiledTable, Keys, RowCheck, compile_table, load_checks
from clearway.frames import ROW, Frame, canonical, frame_of
from clearway.params import Params
from clearway.repeats import repeated_rows
from clearway.schema import Column, DataSchema, ForeignKey, RowCount, TableSchema, load_schema
from clearway.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd


def accept_raw(
    tables: "Mapping[str, pd.DataFrame]", params: Params, workspace: Workspace, as_of: datetime | None
) -> "dict[str, pd.DataFrame]":
    """:func:`accept` by the project's own ``schema.yaml`` and checks: raw tables as they were known at ``as_of``.

    Raises
    ------
    UsageError
        ``schema.yaml`` is missing or wrong, or names a check that the project does not have.
    """
    schema = load_schema(workspace.root / params.data_schema)
    return accept(tables, schema, load_checks(params.project.package, schema), as_of=as_of)


def accept(
    tables: "Mapping[str, pd.DataFrame]",
    schema: DataSchema,
    checks: Checks,
    *,
    as_of: datetime | None = None,
) -> "dict[str, pd.DataFrame]":
    """The tables without quarantined rows.

    Parameters
    ----------
    tables : mapping of name to DataFrame
        Tables that the schema does not name, and those without a check that sets aside, come back as they are.
    schema : DataSchema
    checks : mapping of name to Expr
        From :func:`clearway.checks.load_checks`.
    as_of : datetime, optional
        What rules call ``as_of``.

    Returns
    -------
    dict of name to DataFrame
        Index and columns are kept.
    """
    accepted = dict(tables)
    for name, frame in tables.items():
        expected, used = _setting_aside(schema.tables.get(name), checks)
        if expected is None or frame.empty:
            continue
        keys = keys_of(schema, lambda other, key: frame_of(other, tables[other], [key]) if other in tables else None)
        rows = frame_of(name, frame, used & set(frame.columns) or {frame.columns[0]})
        compiled = compile_table(name, expected, rows, keys, as_of, checks)
        wrong = _wrong_kinds(compiled)
        judging = [check for check in compiled.quarantining if not wrong & set(check.needs)]
        judging = [resolve(check, compiled.frame)[0] if check.repeats else check for check in judging]
        gone = set_aside(compiled.frame, judging)[ROW].to_numpy()
        if len(gone):
            kept = np.ones(len(frame), dtype=bool)
            kept[gone] = False
            accepted[name] = frame[kept]
    return accepted


def keys_of(schema: DataSchema, find: Callable[[str, str], Frame | None]) -> Keys:
    """How a foreign key's values are looked up: ``find`` gives the frame of a table with a column, or None."""

    def keys(foreign: ForeignKey) -> pl.Series | None:
        frame = find(foreign.table, foreign.key)
        if frame is None or foreign.key not in frame.dtypes:
            return None
        column = schema.tables[foreign.table].columns[foreign.key]
        lazy = canonical(frame, TableSchema(columns={foreign.key: column}))
        return frame.collect(lazy.select(pl.col(foreign.key).drop_nulls().unique())).to_series()

    return keys


def _wrong_kinds(compiled: CompiledTable) -> frozenset[str]:
    """The columns that hold values of another kind."""
    kinds = {str(check.column): check.bad.any() for check in compiled.row_checks if check.check == "kind"}
    found = compiled.frame.collect(compiled.frame.lazy.select(**kinds)).row(0, named=True) if kinds else {}
    return frozenset(name for name, bad in found.items() if bad)


def resolve(check: RowCheck, frame: Frame) -> tuple[RowCheck, int]:
    """A check of rows that repeat each other, with its bad rows by position, and their number."""
    assert check.repeats
    rows = pl.Series(repeated_rows(frame, check.compared, check.bad, check.repeats), dtype=pl.get_index_type())
    return replace(check, bad=pl.col(ROW).is_in(rows.implode()), repeats=""), len(rows)


def set_aside(frame: Frame, checks: Sequence[RowCheck]) -> pl.DataFrame:
    """The rows that any of the (resolved) checks refuses: their :data:`ROW`, ascending, and the ``reason``.

    A check that needs a column of the wrong kind means nothing, and must not be among them.
    """
    if not checks:
        return nothing_aside()
    reasons = [pl.when(check.bad).then(pl.lit(check.label)) for check in checks]
    # one code for each different reason: of millions of rows, the texts would be most of the memory
    reason = pl.concat_str(reasons, separator="; ", ignore_nulls=True).cast(pl.Categorical).alias("reason")
    refused = pl.any_horizontal([check.bad for check in checks])
    return frame.collect(frame.numbered().filter(refused).select(ROW, reason))


def nothing_aside() -> pl.DataFrame:
    """What :func:`set_aside` gives of a table that is wholly kept."""
    return pl.DataFrame(schema={ROW: pl.get_index_type(), "reason": pl.Categorical})


def _setting_aside(expected: TableSchema | None, checks: Checks) -> tuple[TableSchema | None, set[str]]:
    """The part of a table's schema that sets rows aside, None where nothing does; and the columns that it reads."""
    if expected is None:
        return None, set()
    rules = tuple(rule for rule in expected.rules if rule.severity == "quarantine")
    named = tuple(check for check in expected.checks if check.severity == "quarantine")
    foreign = tuple(key for key in expected.foreign_keys if key.severity == "quarantine")
    used = {key.column for key in foreign}
    used |= {name for rule in rules for name in pl.sql_expr(rule.expression).meta.root_names()}
    used |= {name for check in named if check.name in checks for name in checks[check.name].meta.root_names()}
    columns = {
        name: column if column.severity == "quarantine" else Column(kind=column.kind, nullable=True)
        for name, column in expected.columns.items()
        if column.severity == "quarantine" or name in used
    }
    if not columns and not rules and not named:
        return None, set()
    reading = TableSchema.model_construct(
        rows=RowCount(min=0),
        columns=columns,
        extra_columns="allow",
        ordered=False,
        unique=(),
        max_duplicates=None,
        foreign_keys=foreign,
        rules=rules,
        checks=named,
        freshness=None,
        cadence=(),
        max_quarantine=expected.max_quarantine,
    )
    return reading, used | set(columns)
