"""The code that computes something, as one hash: the same code gives the same hash in any process and any folder.

From a function on, every name it refers to is followed through the source files of its own top-level package and of
``clearway``: functions, classes, module constants, imports inside functions, variables of an enclosing function. What
is hashed of each is its syntax tree without comments, docstrings, line numbers and the type hints of functions. A
module constant counts by its value where that is plain data (numbers, text, times, and tuples, lists, sets and mappings
of these), otherwise by the expression assigned to it.

What cannot be followed is not hashed: other packages and C code (a bundle's lineage has their versions), star imports,
names made at run time (``getattr``), methods of a value whose class the code never names, and variables of an
enclosing function that are neither plain data nor functions. Lambdas that begin on one line count as one.
"""

import ast
import importlib
import importlib.util
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from functools import lru_cache, partial
from inspect import unwrap
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes

_PLAIN = (int, float, complex, str, bytes, date, time, timedelta, type(None))
"""Types whose ``repr`` is their value; bool, datetime and the times of pandas are among them."""
_Place = tuple[str, str]
"""A module and a name at its top level; the name is empty for the module itself."""


def code_sha256(function: Callable[..., Any]) -> str:
    """Hash of ``function`` (a function, a method, or a ``functools.partial`` of one) and of all that it refers to.

    Raises
    ------
    ClearwayError
        Its source cannot be read.
    """
    trace = _Trace({"clearway", _top(_module_of(_plain_function(function)))})
    return sha256_bytes(canonical_json({"start": trace.start(function), "code": trace.follow()}))


class _Trace:
    """What one function reaches, each place once."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages
        self._found: dict[str, Any] = {}
        self._pending: list[_Place] = []
        self._started: set[int] = set()

    def start(self, function: Callable[..., Any]) -> Any:
        """The function itself. Unlike what it refers to, it may be made at run time: a lambda, a closure, a partial."""
        if isinstance(function, partial):
            given = {str(place): value for place, value in enumerate(function.args)} | function.keywords
            arguments = {name: self._captured(value) for name, value in given.items()}
            return {"partial": self.start(function.func), "arguments": arguments}
        plain = _plain_function(function)
        if id(plain) in self._started:  # it calls itself
            return plain.__name__
        self._started.add(id(plain))
        piece = _piece(self._definition(plain), _module_of(plain))
        cells = zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)
        enclosing = {name: self._captured(cell.cell_contents) for name, cell in cells}
        self._refer(piece, _module_of(plain), besides=enclosing)
        if isinstance(function, MethodType):  # what it calls on itself is of its class
            kind = function.__self__ if isinstance(function.__self__, type) else type(function.__self__)
            self._pending.append((kind.__module__, kind.__qualname__.partition(".")[0]))
        return [piece.text, enclosing]

    def follow(self) -> dict[str, Any]:
        """All that is reached, by name, once nothing new turns up."""
        while self._pending:
            module, name = self._pending.pop()
            key = f"{module}.{name}"
            source = self._source(module)
            if source is not None and name in source.statements and key not in self._found:
                self._found[key] = self._top_level(module, name, source.statements[name])
        return self._found

    def _captured(self, value: Any) -> Any:
        """A value that a function was made with."""
        if isinstance(unwrap(value) if callable(value) else value, FunctionType | MethodType | partial):
            return self.start(value)
        try:
            return _as_data(value)
        except TypeError:
            return type(value).__name__

    def _definition(self, function: FunctionType) -> Any:
        """Where ``function`` is defined: the ``def`` that begins on its first line, or all lambdas that do."""
        source = self._source(_module_of(function))
        kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
        on_line = source.functions.get(function.__code__.co_firstlineno, ()) if source is not None else ()
        found: list[Any] = [node for node in on_line if isinstance(node, kinds)]
        if not found:
            raise ClearwayError(f"the source of {function.__qualname__}() cannot be read: define it in a module")
        return found[0] if len(found) == 1 else ast.Tuple(found, ast.Load())

    def _top_level(self, module: str, name: str, statements: tuple[ast.stmt, ...]) -> Any:
        """What ``name`` stands for in ``module``; what it refers to in turn becomes pending."""
        if not any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for each in statements):
            try:
                return _as_data(getattr(importlib.import_module(module), name))
            except (TypeError, AttributeError):
                pass
        pieces = [_piece(each, module) for each in statements]
        for piece in pieces:
            self._refer(piece, module)
        return [piece.text for piece in pieces]

    def _refer(self, piece: "_Piece", module: str, besides: Iterable[str] = ()) -> None:
        """Make pending what a piece of ``module`` refers to by name."""
        source = self._source(module)
        imports = {**(source.imports if source is not None else {}), **piece.imports}
        names = (piece.names | set(piece.imports)) - set(besides)
        for first, *attributes in piece.chains:
            if first in names:
                self._pending.append(self._place(imports.get(first, (module, first)), attributes))

    def _place(self, place: _Place, attributes: list[str]) -> _Place:
        """Where that is defined which is called ``place`` and then ``attributes``: ``times.departure`` is in times."""
        seen: set[_Place] = set()
        while place not in seen:
            seen.add(place)
            module, name = place
            source = self._source(module)
            if not name:
                place = (module, attributes.pop(0)) if attributes else place
            elif source is not None and name not in source.statements:
                place = source.imports[name] if name in source.imports else self._submodule(module, name)
        return place

    def _submodule(self, module: str, name: str) -> _Place:
        if module in sys.modules and not hasattr(sys.modules[module], "__path__"):
            return (module, name)  # no package
        try:
            found = importlib.util.find_spec(f"{module}.{name}")
        except (ImportError, ValueError):
            found = None
        return (module, name) if found is None else (f"{module}.{name}", "")

    def _source(self, module: str) -> "_Source | None":
        """The source of a module of the followed packages; None where there is none to read."""
        if _top(module) not in self._packages:
            return None
        try:
            loaded = sys.modules.get(module)
            spec = None if loaded is not None else importlib.util.find_spec(module)
            file = getattr(loaded, "__file__", None) if spec is None else spec.origin
            return None if file is None else _read(module, Path(file), Path(file).stat().st_mtime_ns)
        except (ImportError, OSError, SyntaxError, ValueError):
            return None


@dataclass(frozen=True)
class _Source:
    """A source file, and what each name at its top level stands for."""

    functions: Mapping[int, tuple[ast.AST, ...]]
    """Every ``def`` and ``lambda``, by its first line, that of its first decorator."""
    statements: Mapping[str, tuple[ast.stmt, ...]]
    imports: Mapping[str, _Place]


@lru_cache(maxsize=256)
def _read(module: str, file: Path, changed: int) -> _Source:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements: dict[str, tuple[ast.stmt, ...]] = {}
    top_level = list(_statements(tree.body))
    for statement in top_level:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = {statement.name}
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
        else:
            continue
        for name in names:
            statements[name] = (*statements.get(name, ()), statement)
    functions: dict[int, tuple[ast.AST, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            line = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
            functions[line] = (*functions.get(line, ()), node)
    return _Source(functions, statements, _imports(top_level, module))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's top level, those under its ``if``, ``try`` and ``with`` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _imports(nodes: Iterable[ast.AST], module: str) -> dict[str, _Place]:
    """What the imports among ``nodes``, pieces of ``module``, bind."""
    bound: dict[str, _Place] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
                origin = importlib.util.resolve_name("." * node.level + origin, package)
            bound |= {alias.asname or alias.name: (origin, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            bound |= {
                alias.asname or _top(alias.name): (alias.name if alias.asname else _top(alias.name), "")
                for alias in node.names
            }
    return bound


@dataclass(frozen=True)
class _Piece:
    """A definition, and what it refers to."""

    text: str
    """As Python would write it: without comments, docstrings and type hints."""
    names: frozenset[str]
    """Names that it does not bind itself."""
    chains: tuple[tuple[str, ...], ...]
    imports: Mapping[str, _Place]
    """What imports inside it bind."""


@lru_cache(maxsize=4096)
def _piece(node: ast.AST, module: str) -> _Piece:
    plain = _without_notes(node)
    chains = tuple(dict.fromkeys(_chains(plain)))
    return _Piece(ast.unparse(plain), frozenset(_free_names(plain)), chains, _imports(ast.walk(plain), module))


def _free_names(node: ast.AST) -> set[str]:
    """The names that ``node`` refers to and does not bind itself."""
    outermost = symtable.symtable(ast.unparse(node), "<definition>", "exec")
    free: set[str] = set()
    tables = [outermost]
    while tables:
        table = tables.pop()
        symbols = [each for each in table.get_symbols() if each.is_referenced()]
        free |= {each.get_name() for each in symbols if table is outermost or each.is_global()}
        tables += table.get_children()
    return free


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name in ``node`` with the attributes read of it: ``times.departure(x)`` gives times, departure; and x."""
    inner: set[int] = set()
    for each in ast.walk(node):  # outer nodes come first
        if id(each) in inner or not isinstance(each, ast.Attribute | ast.Name):
            continue
        attributes: list[str] = []
        root: ast.AST = each
        while isinstance(root, ast.Attribute):
            attributes.insert(0, root.attr)
            root = root.value
            inner.add(id(root))
        if isinstance(root, ast.Name):
            yield (root.id, *attributes)


def _without_notes(node: ast.AST) -> ast.AST:
    """A copy of ``node`` without docstrings and without the type hints of functions and variables."""
    copied = _Notes().visit(ast.parse(ast.unparse(node)).body[0])
    return copied.value if isinstance(copied, ast.Expr) else copied


class _Notes(ast.NodeTransformer):
    """Takes out what is written for readers only. The hints of a class's own variables stay: a dataclass is them."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [each if isinstance(each, ast.AnnAssign) else self.visit(each) for each in _undocumented(node.body)]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.body = _undocumented(node.body)
        node.returns = None
        for part in ast.walk(node.args):
            if isinstance(part, ast.arg):
                part.annotation = None
        return self.generic_visit(node)


def _undocumented(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements without docstrings, wherever they stand: a text that nothing uses does nothing."""
    kept = [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    return kept or [ast.Pass()]


def _as_data(value: Any) -> Any:
    """Plain data as JSON.

    Raises
    ------
    TypeError
        It is no plain data.
    """
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(_as_data(each) for each in value)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((_as_data(each) for each in value), key=canonical_json)]
    if isinstance(value, Mapping):
        return ["mapping", *([_as_data(key), _as_data(each)] for key, each in value.items())]
    raise TypeError(type(value).__name__)


def _plain_function(function: Callable[..., Any]) -> FunctionType:
    """The ``def`` or ``lambda`` behind decorators, methods and partials."""
    while isinstance(function, partial):
        function = function.func
    function = unwrap(function)
    if isinstance(function, MethodType):
        function = unwrap(function.__func__)
    if not isinstance(function, FunctionType):
        raise ClearwayError(f"{type(function).__name__} {function!r} is no function: define it with def, in a module")
    return function


def _module_of(function: FunctionType) -> str:
    """Where the function is defined; Feast's decorators overwrite its ``__module__``."""
    return str(function.__globals__["__name__"])


def _top(module: str) -> str:
    return module.partition(".")[0]
