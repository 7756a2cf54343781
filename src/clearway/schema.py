"""``schema.yaml``: what each raw table must look like, typed. Unknown keys and impossible values are refused."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clearway.errors import UsageError
from clearway.params import Params, Share, Slug, UtcTime, describe
from clearway.strict_yaml import read_mapping

Kind = Literal["int", "float", "str", "bool", "timestamp"]
Hour = Annotated[int, Field(ge=0, le=23)]
Severity = Literal["error", "quarantine", "warn"]
"""``error`` stops the line, ``quarantine`` sets the offending rows aside, ``warn`` only reports."""


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


def _sql_expression(text: str) -> str:
    import polars  # only where a schema has rules

    try:
        polars.sql_expr(text)
    except Exception as error:  # Polars raises several kinds, and panics at some texts
        raise ValueError(f"is not a SQL expression: {' '.join(str(error).split())}") from None
    return text


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not an IANA time zone, such as America/New_York") from None
    return name


def _check_order(low: Any, high: Any) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"min = {low} is above max = {high}")


def _check_error_share(severity: Severity, share: float | None) -> None:
    if share is not None and severity == "error":
        raise ValueError("error_share is for warn and quarantine, as the point where they become an error")


class Section(BaseModel):
    """A part of ``schema.yaml``: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)


class Bounds(Section):
    """An inclusive range, open where an end is not given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self


class Judged(Section):
    """What every check has: how bad a failure is, and how much of it is too much."""

    severity: Severity = "error"
    error_share: Share | None = None
    """A warning, or setting aside, turns into an error when more than this share of rows fails."""

    @model_validator(mode="after")
    def _severity(self) -> Self:
        _check_error_share(self.severity, self.error_share)
        return self


class Column(Judged):
    """What one column holds.

    A missing column, a wrong kind, and what can only be said of the whole column (``max_null``, ``min_known``,
    ``mean``, ``std``, ``min_distinct``) are errors unless ``severity`` is ``warn``; a missing column, a wrong kind and
    ``max_null`` even then. What each value must be follows ``severity``.
    """

    kind: Kind
    nullable: bool = False
    max_null: Share | None = None
    """Largest share of missing values; needs ``nullable``."""
    min: float | UtcTime | None = None
    max: float | UtcTime | None = None
    mean: Bounds | None = None
    """Where the mean of the column lies: catches a change of unit that each single value survives."""
    std: Bounds | None = None
    """Where its standard deviation lies."""
    values: tuple[str | bool | float, ...] | None = None
    """The values that are known."""
    min_known: Share | None = None
    """Smallest share of rows whose value is among ``values``, where new ones are tolerated; without it all must be."""
    pattern: Annotated[str, AfterValidator(_regular_expression)] | None = None
    """Regular expression that each whole value matches."""
    min_length: int | None = Field(None, ge=0)
    """Characters of the shortest text."""
    max_length: int | None = Field(None, ge=0)
    unique: bool = False
    min_distinct: int | None = Field(None, ge=2)
    """Smallest number of different values: 2 refuses a column that has become constant."""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.max_null is not None and not self.nullable:
            raise ValueError("max_null needs nullable: true")
        for name, bounds in (("mean", self.mean), ("std", self.std)):
            if bounds is not None and self.kind not in ("int", "float"):
                raise ValueError(f"{name} is for numbers, not for kind {self.kind}")
        for name in ("pattern", "min_length", "max_length"):
            if getattr(self, name) is not None and self.kind != "str":
                raise ValueError(f"{name} is for kind str, not for {self.kind}")
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and self.kind in ("str", "bool"):
                raise ValueError(f"{name} is for numbers and timestamps, not for kind {self.kind}")
            if bound is not None and isinstance(bound, float) == (self.kind == "timestamp"):
                raise ValueError(f"{name} = {bound} does not fit kind {self.kind}")
        types = {"str": str, "bool": bool, "int": float, "float": float}
        if self.values is not None and self.kind not in types:
            raise ValueError(f"values cannot be listed for kind {self.kind}: use min and max")
        for value in self.values or ():
            if not isinstance(value, types[self.kind]):
                raise ValueError(f"values: {value!r} is not of kind {self.kind} (quote text in YAML)")
        if self.min_known is not None and self.values is None:
            raise ValueError("min_known needs values")
        _check_order(self.min, self.max)
        _check_order(self.min_length, self.max_length)
        return self


class ForeignKey(Judged):
    """Values of ``column`` exist in another table. Missing values are not looked up."""

    column: str
    references: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    """``table.column``."""
    max_missing: Share = 0.0
    """Largest share of rows whose value the other table lacks."""

    @property
    def table(self) -> str:
        """The table referred to."""
        return self.references.split(".")[0]

    @property
    def key(self) -> str:
        """The column referred to."""
        return self.references.split(".")[1]


class Rule(Judged):
    """What the columns of one row say about each other, as a SQL expression that is true of a good row.

    The expression may use every column of the table, and ``as_of``. Where it is null, because a value is missing, the
    row passes. Functions are those of Polars SQL.
    """

    name: Slug
    expression: Annotated[str, AfterValidator(_sql_expression)]
    max_failing: Share = 0.0
    """Largest share of rows that may fail."""


class PythonCheck(Judged):
    """A check of the project package: an entry of ``CHECKS`` in its module ``checks``, a Polars expression.

    As in a rule, it is true of a good row, and null passes.
    """

    name: str
    max_failing: Share = 0.0
    """Largest share of rows that may fail."""


class Freshness(Judged):
    """The last row is not too old at ``as_of``."""

    column: str
    """A timestamp."""
    max_age_days: float = Field(gt=0, le=36_500)


class Cadence(Judged):
    """Rows come at every step of time, without gaps: a dropped hour is missing."""

    column: str
    """A timestamp."""
    every: Annotated[str, Field(pattern=r"^[1-9][0-9]*(m|h|d)$")]
    """Length of a step: ``30m``, ``1h``, ``1d``."""
    by: tuple[str, ...] = ()
    """Columns of whose every combination the steps are counted, from its first to its last row."""
    zone: Annotated[str, AfterValidator(_time_zone)] = "UTC"
    """IANA time zone of ``hours``."""
    hours: tuple[Hour, Hour] | None = None
    """First and last hour of the day in which rows are expected; null: all day."""
    max_missing: int = Field(0, ge=0)
    """Largest number of steps without a row."""


class RowCount(Section):
    """How many rows a table has."""

    min: int = Field(1, ge=0)
    max: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self


class TableSchema(Section):
    """One table."""

    rows: RowCount = RowCount()
    extra_columns: Literal["allow", "error"] = "error"
    ordered: bool = False
    """Whether the columns must stand in the order of ``columns``."""
    columns: dict[str, Column] = Field(min_length=1)
    unique: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = ()
    """Lists of columns whose values together occur once."""
    max_duplicates: Share | None = None
    """Largest share of rows that repeat an earlier row wholly; null: not counted."""
    foreign_keys: tuple[ForeignKey, ...] = ()
    rules: tuple[Rule, ...] = ()
    checks: tuple[PythonCheck, ...] = ()
    freshness: Freshness | None = None
    cadence: tuple[Cadence, ...] = ()
    max_quarantine: Share = 0.01
    """Largest share of rows that may be set aside; above it the table is broken."""

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        named = {name for key in self.unique for name in key} | {key.column for key in self.foreign_keys}
        named |= {name for steps in self.cadence for name in (steps.column, *steps.by)}
        named |= {self.freshness.column} if self.freshness else set()
        unknown = sorted(named - set(self.columns))
        if unknown:
            raise ValueError(
                f"unique, foreign_keys, freshness or cadence name {', '.join(unknown)}, which columns does not list"
            )
        timed = [steps.column for steps in self.cadence] + ([self.freshness.column] if self.freshness else [])
        for name in timed:
            if self.columns[name].kind != "timestamp":
                raise ValueError(f"freshness and cadence need a timestamp; {name} is of kind {self.columns[name].kind}")
        rules: tuple[Rule | PythonCheck, ...] = (*self.rules, *self.checks)
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rules and checks have two named {', '.join(twice)}")
        return self


class DataSchema(Section):
    """All of ``schema.yaml``."""

    tables: dict[str, TableSchema] = Field(min_length=1)
    features: dict[str, Column] = Field(default_factory=dict)
    """What a model of a project package may be trained on and asked with, by feature: one rule for both. Features not
    listed are only checked for their kind. A flat table's features are checked by its columns, and are not listed."""

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        for name, table in self.tables.items():
            for key in table.foreign_keys:
                if key.table not in self.tables or key.key not in self.tables[key.table].columns:
                    raise ValueError(f"tables.{name}.foreign_keys: references = {key.references!r} is no table.column")
        return self

    def table(self, name: str) -> TableSchema:
        """The schema of one table.

        Raises
        ------
        UsageError
            There is none of that name.
        """
        if name not in self.tables:
            raise UsageError(f"table {name!r} is not in the schema (tables: {', '.join(self.tables)})")
        return self.tables[name]

    def kinds(self, table: str) -> dict[str, str]:
        """The kind of each column of ``table``, in the schema's order: int, float, str, bool or timestamp.

        Raises
        ------
        UsageError
            There is no such table.
        """
        return {name: column.kind for name, column in self.table(table).columns.items()}


def load_schema(path: Path) -> DataSchema:
    """Read and check ``schema.yaml``.

    Raises
    ------
    UsageError
        The file is missing, is not YAML, or a key or value in it is wrong or a key stands twice; names file, key and
        value.
    """
    purpose = "params.yaml: schema must name a file that says what the raw tables look like (see docs/schema.md)"
    content = read_mapping(path, purpose)
    try:
        return DataSchema.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}") from None


def flat_columns(params: Params, root: Path) -> dict[str, str]:
    """The column kinds that :func:`clearway.project.load_project` asks for: empty where a package is the project.

    Raises
    ------
    UsageError
        The schema is wrong, or lacks the table that ``data.table`` names.
    """
    return {} if params.data is None else load_schema(root / params.data_schema).kinds(params.data.table)
