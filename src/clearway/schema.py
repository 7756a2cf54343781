"""``schema.yaml``: what each raw table must look like, typed. Unknown keys and impossible values are refused."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clearway.errors import UsageError
from clearway.params import Params, Share, UtcTime, describe

Kind = Literal["int", "float", "str", "bool", "timestamp"]
Severity = Literal["error", "warn"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


def _check_order(low: Any, high: Any) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"min = {low} is above max = {high}")


def _check_error_share(severity: Severity, share: float | None) -> None:
    if share is not None and severity == "error":
        raise ValueError("error_share is for severity: warn, as the point where the warning becomes an error")


class Section(BaseModel):
    """A part of ``schema.yaml``: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Bounds(Section):
    """An inclusive range, open where an end is not given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.min, self.max)
        return self


class Column(Section):
    """What one column holds.

    A missing column, a wrong kind and too many missing values are always errors; what else values must be follows
    ``severity``.
    """

    kind: Kind
    nullable: bool = False
    max_null: Share | None = None
    """Largest share of missing values; needs ``nullable``."""
    min: float | UtcTime | None = None
    max: float | UtcTime | None = None
    mean: Bounds | None = None
    """Where the mean of the column lies: catches a change of unit that each single value survives."""
    values: tuple[str | bool | float, ...] | None = None
    """All values there may be."""
    pattern: Annotated[str, AfterValidator(_regular_expression)] | None = None
    """Regular expression that each whole value matches."""
    unique: bool = False
    severity: Severity = "error"
    error_share: Share | None = None
    """A warning turns into an error when more than this share of rows fails."""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.max_null is not None and not self.nullable:
            raise ValueError("max_null needs nullable: true")
        if self.mean is not None and self.kind not in ("int", "float"):
            raise ValueError(f"mean is for numbers, not for kind {self.kind}")
        if self.pattern is not None and self.kind != "str":
            raise ValueError(f"pattern is for kind str, not for {self.kind}")
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
        _check_order(self.min, self.max)
        _check_error_share(self.severity, self.error_share)
        return self


class ForeignKey(Section):
    """Values of ``column`` exist in another table. Missing values are not looked up."""

    column: str
    references: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    """``table.column``."""
    max_missing: Share = 0.0
    """Largest share of rows whose value the other table lacks."""
    severity: Severity = "error"
    error_share: Share | None = None
    """A warning turns into an error when more than this share of rows fails."""

    @property
    def table(self) -> str:
        """The table referred to."""
        return self.references.split(".")[0]

    @property
    def key(self) -> str:
        """The column referred to."""
        return self.references.split(".")[1]

    @model_validator(mode="after")
    def _severity(self) -> Self:
        _check_error_share(self.severity, self.error_share)
        return self


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
    columns: dict[str, Column] = Field(min_length=1)
    unique: tuple[tuple[str, ...], ...] = ()
    """Lists of columns whose values together occur once."""
    foreign_keys: tuple[ForeignKey, ...] = ()

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        named = {name for key in self.unique for name in key} | {key.column for key in self.foreign_keys}
        unknown = sorted(named - set(self.columns))
        if unknown:
            raise ValueError(f"unique or foreign_keys name {', '.join(unknown)}, which columns does not list")
        return self


class DataSchema(Section):
    """All of ``schema.yaml``."""

    tables: dict[str, TableSchema] = Field(min_length=1)

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
        The file is missing, is not YAML, or a key or value in it is wrong; names file, key and value.
    """
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 (both are safe loaders)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: it says what the raw tables look like (see docs/schema.md)") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): params.yaml: schema must name a file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of keys to values, found {type(content).__name__}")
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
