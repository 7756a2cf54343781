"""The one contract between the line and a project, and the project that needs no code: one flat table."""

import importlib
import importlib.util
import sysconfig
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.errors import ClearwayError, UsageError
from clearway.files import canonical_json, sha256_bytes, sha256_file
from clearway.params import DataParams, Kind, Params

if TYPE_CHECKING:
    import pandas as pd

    from clearway.feature_store.definitions import Definitions

Tables = Mapping[str, "pd.DataFrame"]


@runtime_checkable
class Project(Protocol):
    """What a project package offers as ``PROJECT``. Nothing else of it is ever called."""

    numeric: tuple[str, ...]
    """Names of the numeric features, in order."""
    categorical: tuple[str, ...]
    """Names of the categorical features, in order."""

    def known_at(self, table: str, frame: "pd.DataFrame", as_of: datetime | None) -> "pd.DataFrame":
        """``frame`` as the world knew it at ``as_of``: later rows dropped, later values null. Called by ingest."""
        ...

    def questions(self, tables: Tables) -> "pd.DataFrame":
        """One row per prediction asked, with the reserved columns of :mod:`clearway.columns`, sorted by time."""
        ...

    def features(self, questions: "pd.DataFrame", tables: Tables) -> "pd.DataFrame":
        """The features of each question, same index, computed from what was known at its prediction time."""
        ...


@runtime_checkable
class StoredProject(Protocol):
    """A project package whose features are defined with Feast, and read from its stores in training and in serving.

    It offers what a :class:`Project` offers, but in place of ``features()`` what they are made of.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    def known_at(self, table: str, frame: "pd.DataFrame", as_of: datetime | None) -> "pd.DataFrame":
        """As :meth:`Project.known_at`."""
        ...

    def questions(self, tables: Tables) -> "pd.DataFrame":
        """As :meth:`Project.questions`; every question has a ``prediction_time``."""
        ...

    def definitions(self) -> "Definitions":
        """Entities, feature views, on-demand views, and how the rows of each view are made."""
        ...

    def inputs(self, questions: "pd.DataFrame", tables: Tables) -> "pd.DataFrame":
        """What a caller would send with each question, same index: join keys as text, and the request's fields."""
        ...


class FlatProject:
    """A project without code: each row of one table is a question; columns are its features."""

    def __init__(self, data: DataParams, columns: Mapping[str, str], kind: Kind = "binary") -> None:
        """``columns`` maps each column of the schema to its dtype (``str`` and ``bool`` are categorical)."""
        excluded = {data.label, data.entity, *data.ignore}
        named = [("label", data.label), ("entity", data.entity), *(("ignore", name) for name in data.ignore)]
        for key, name in named:
            if name is not None and name not in columns:  # a column ignored under a wrong name would be a feature
                raise UsageError(f"params.yaml: data.{key} {name!r} is not a column of {data.table!r} in the schema")
        if kind == "regression" and columns[data.label] not in ("int", "float"):
            raise UsageError(
                f"params.yaml: data.label {data.label!r} is of kind {columns[data.label]} in the schema: target.kind = "
                "'regression' needs a number (int or float); several classes are 'multiclass'"
            )
        self._data = data
        self._kind = kind
        self.numeric = tuple(n for n, kind in columns.items() if n not in excluded and kind not in ("str", "bool"))
        self.categorical = tuple(n for n, kind in columns.items() if n not in excluded and kind in ("str", "bool"))

    def known_at(self, table: str, frame: "pd.DataFrame", as_of: datetime | None) -> "pd.DataFrame":
        return frame

    def questions(self, tables: Tables) -> "pd.DataFrame":
        import pandas as pd

        frame = tables[self._data.table]
        label = frame[self._data.label]
        entity = frame[self._data.entity].astype("string") if self._data.entity else pd.Series(pd.NA, index=frame.index)
        return pd.DataFrame(
            {
                ROW_ID: frame.index.astype(str),
                ENTITY: entity.astype("string"),
                PREDICTION_TIME: pd.Series(pd.NaT, index=frame.index, dtype="datetime64[ns, UTC]"),
                LABEL_TIME: pd.Series(pd.NaT, index=frame.index, dtype="datetime64[ns, UTC]"),
                LABEL: self._label(label),
            }
        )

    def _label(self, column: "pd.Series[Any]") -> "pd.Series[Any]":
        if self._kind == "binary":
            return (column == self._data.positive).astype("float64").where(column.notna())
        return column if self._kind == "multiclass" else column.astype("float64")

    def features(self, questions: "pd.DataFrame", tables: Tables) -> "pd.DataFrame":
        frame = tables[self._data.table].loc[questions.index]
        features = frame[[*self.numeric, *self.categorical]].copy()
        for name in self.categorical:
            features[name] = features[name].astype("string")
        return features


def find_source(package: str) -> Path:
    """The folder of the project package, or the one file of a package that is a module; it is not imported.

    Raises
    ------
    UsageError
        It cannot be found.
    ClearwayError
        It has no source file.
    """
    try:
        found = importlib.util.find_spec(package)  # finds it without importing it, and all that it imports
    except (ImportError, ValueError) as error:
        raise _not_imported(package, error) from None
    if found is None:
        raise UsageError(f"params.yaml: project.package = {package!r} cannot be found: {_INSTALL}")
    if found.origin is None:
        raise ClearwayError(
            f"params.yaml: project.package = {package!r} has no source file: give its folder an __init__.py"
        )
    origin = Path(found.origin)
    return origin if found.submodule_search_locations is None else origin.parent


def own_sources(names: Iterable[str]) -> list[Path]:
    """Where the modules and packages of dotted names lie that are no part of what is installed, each once.

    A file for a module, a folder for a package; what cannot be found is left to whoever imports it.
    """
    found: dict[Path, None] = {}
    for top in dict.fromkeys(name.partition(".")[0] for name in names):
        try:
            source = find_source(top).resolve()
        except ClearwayError:
            continue
        if source.exists() and not any(source.is_relative_to(folder) for folder in _installed()):
            found[source] = None
    return list(found)


def own_sources_sha256(names: Iterable[str]) -> str:
    """Hash of the files of :func:`own_sources`, by their names within each."""
    return sha256_bytes(canonical_json([_files_sha256(source) for source in own_sources(names)]))


def _installed() -> list[Path]:
    """Where Python's own library and installed distributions are."""
    paths = sysconfig.get_paths()
    return [Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]


def _files_sha256(source: Path) -> dict[str, str]:
    """Hash of a module, or of every source file of a package, by its path in it."""
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    folder = source if source.is_dir() else source.parent
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def load_package(name: str) -> ModuleType:
    """Import the project package.

    Raises
    ------
    UsageError
        It cannot be found, or fails while it is imported.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package may raise anything while it is imported
        raise _not_imported(name, error) from None


AnyProject = Project | StoredProject
_ALWAYS = ("numeric", "categorical", "known_at", "questions")
_FEATURES = ("features",)
_STORED = ("definitions", "inputs")


def load_project(params: Params, columns: Mapping[str, str]) -> AnyProject:
    """The project that ``params`` names. ``columns`` (of the schema's table) is used by flat projects only.

    Raises
    ------
    UsageError
        The package is missing, or offers no ``PROJECT`` that fulfils :class:`Project` or :class:`StoredProject`; says
        which members it lacks.
    """
    if params.project.package is None:
        assert params.data is not None  # checked when params were loaded
        return FlatProject(params.data, columns, params.target.kind)
    package = load_package(params.project.package)
    try:
        project = getattr(package, "PROJECT", None)
    except Exception as error:  # a package may import the modules of its project only now
        raise _not_imported(package.__name__, error) from None
    if project is None:
        raise UsageError(f"package {package.__name__!r} must define PROJECT with: {_said(*_ALWAYS)}, and {_choice()}")
    wanted = _STORED if any(hasattr(project, name) for name in _STORED) else _FEATURES
    missing = [name for name in (*_ALWAYS, *wanted) if not hasattr(project, name)]
    if missing:
        choice = f" ({_choice()})" if set(missing) & {*_FEATURES, *_STORED} else ""
        raise UsageError(f"PROJECT of package {package.__name__!r} lacks {_said(*missing)}{choice}")
    if wanted is _STORED and hasattr(project, "features"):
        raise UsageError(
            f"PROJECT of package {package.__name__!r} has features() and {_said(*_STORED)}: features are defined in "
            "one place; remove features()"
        )
    checked: AnyProject = project
    return checked


def definitions_sha256(params: Params) -> str:
    """Hash of the feature definitions: every source file of the project package, or the ``data`` section.

    Raises
    ------
    ClearwayError
        The package has no source files on disk.
    """
    if params.project.package is None:
        assert params.data is not None
        described = params.data.model_dump(mode="json")
        if params.target.kind != "binary":
            described["target"] = params.target.kind
        return sha256_bytes(canonical_json(described))
    return sha256_bytes(canonical_json(_files_sha256(find_source(params.project.package))))


def _not_imported(package: str, error: Exception) -> UsageError:
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    missing = isinstance(error, ModuleNotFoundError) and error.name == package.partition(".")[0]
    hint = f": {_INSTALL}" if missing else ""
    return UsageError(f"params.yaml: project.package = {package!r} cannot be imported: {cause}{hint}")


_INSTALL = "install it, put it into the project's folder, or put its folder on PYTHONPATH"


def _said(*names: str) -> str:
    return ", ".join(name if name in ("numeric", "categorical") else f"{name}()" for name in names)


def _choice() -> str:
    return f"either {_said(*_FEATURES)} or {' and '.join(map(_said, _STORED))}"
