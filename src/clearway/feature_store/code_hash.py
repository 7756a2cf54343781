"""The code that computes something, as one hash: the same code gives the same hash in any process and any folder.

From a function on, every name it refers to is followed through the source files of its own top-level package and of
``clearway``: functions, classes, module constants, imports, and what a query text names with ``@``. What is hashed of
each is its syntax tree without comments, docstrings, line numbers and the type hints of functions. A module constant
counts by its value where that is plain data (numbers, text, times, and tuples, lists, sets and mappings of these),
otherwise by the expression assigned to it, and by the functions that it holds. A module that is used as a value counts
with all that it defines.

A function made at run time counts with what it was made with: variables of the enclosing function, defaults, arguments
of a ``functools.partial``, the object of a bound method, and each function that it wraps. Of these, plain data counts
by value, an array by its bytes, a function as above, and any other object by its class and all that it would pickle.
What cannot be read this way is refused, never left out.

A path computed from ``__file__`` counts by its expression; one below the package's folder counts from there on. Any
other path counts as it stands.

What is not seen: other packages and C code (a bundle's lineage has their versions); names made at run time
(``getattr``), and methods of a value whose class the code never names; attributes that are set on a module's object or
class by a call (``LIMITS.set(3)``), or functions that such an object registers; functions that code registers
elsewhere, as for ``functools.singledispatch`` in a module that is never imported; what a file, a database or the
environment says, except where a module constant holds it as plain data; and what a wrapper of another package was made
with, unless that is plain data or functions. Lambdas that begin on one line count as one.
"""

import ast
import copyreg
import importlib
import importlib.util
import re
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from enum import Enum
from functools import cached_property, lru_cache, partial
from inspect import unwrap
from pathlib import Path, PurePath
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from clearway.errors import ClearwayError
from clearway.files import canonical_json, sha256_bytes

_PLAIN = (int, float, complex, str, bytes, date, time, timedelta, type(None))
"""Types whose ``repr`` is their value; bool, datetime and the times of pandas are among them."""
_FUNCTIONS = (FunctionType, MethodType, partial)
_QUERY_NAME = re.compile(r"@([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
"""What the text of a pandas query names of the code around it."""
_ABSENT = object()
_Place = tuple[str, str]
"""A module and a name at its top level; the name is empty for the module itself."""


def code_sha256(function: Callable[..., Any]) -> str:
    """Hash of ``function`` (a function, a method, or a ``functools.partial`` of one) and of all that it refers to.

    Raises
    ------
    ClearwayError
        Its source cannot be read, or it was made with something whose value cannot be; names function and variable.
    """
    trace = _Trace({"clearway", _top(_module_of(_plain_function(function)))})
    return sha256_bytes(canonical_json({"start": trace.start(function), "code": trace.follow()}))


class _Trace:
    """What one function reaches, each place once."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages
        self._found: dict[str, Any] = {}
        self._seen: set[_Place] = set()
        self._pending: list[_Place] = []
        self._active: list[int] = []
        """What is being hashed, by identity: a function may hold itself."""
        self._folders = [folder for folder in map(_folder_of, sorted(packages)) if folder]

    def start(self, function: Callable[..., Any]) -> Any:
        """The function itself. Unlike what it refers to, it may be made at run time: a lambda, a closure, a partial."""
        if isinstance(function, partial):
            owner, inner = _name(function), function.func
            given = {str(place): value for place, value in enumerate(function.args)} | function.keywords
            arguments = {name: self._held(value, f"{owner}: {name}") for name, value in given.items()}
            start = self.start(inner) if _is_function(inner) else self._held(inner, owner)
            return {"partial": start, "arguments": arguments}
        if isinstance(function, MethodType):
            of = self._held(function.__self__, f"{_name(function)}: self")
            return {"method": self.start(function.__func__), "of": of}
        wrapped = getattr(function, "__wrapped__", None)
        if not isinstance(function, FunctionType):
            return self.start(_plain_function(function) if wrapped is None else wrapped)
        if id(function) in self._active:
            return ["again", function.__qualname__]
        before = len(self._active)
        self._active += [id(function), id(wrapped)]  # what it wraps is among its variables too: once is enough
        try:
            made = self._made(function)
        finally:
            del self._active[before:]
        if wrapped is None:
            return made
        self._active.append(id(function))
        try:
            return [*made, {"wraps": self.start(wrapped)}]
        finally:
            del self._active[before:]

    def follow(self) -> dict[str, Any]:
        """All that is reached, by name, once nothing new turns up."""
        while self._pending:
            module, name = place = self._pending.pop()
            source = self._source(module)
            if source is None or place in self._seen:
                continue
            self._seen.add(place)
            if not name:
                places = [self._place((module, each), []) for each in (*source.statements, *source.imports)]
                self._pending += [each for each in places if each[1]]  # modules that it imports it does not define
            elif name in source.statements:
                self._found[f"{module}.{name}"] = self._top_level(module, name, source.statements[name])
            elif not name.startswith("__") and (value := _runtime(module, name)) is not _ABSENT:
                self._found[f"{module}.{name}"] = self._registered(value)
        return self._found

    # Functions that are made at run time

    def _made(self, function: FunctionType) -> list[Any]:
        """One function without what it wraps: its text, its variables of the enclosing function, its defaults."""
        owner, module = _name(function), _module_of(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        enclosing = {name: cell.cell_contents for name, cell in cells if not _is_empty(cell)}
        defaults = _defaults(function)
        if not self._own(module):
            return [
                f"{module}.{function.__code__.co_qualname}",
                self._registered(_given(function, enclosing, defaults)),
            ]
        definition = self._definition(function)
        piece = _piece(definition, module)
        held = {name: self._held(value, f"{owner}: {name}") for name, value in enclosing.items()}
        self._refer(piece, module, besides=enclosing)
        given = {name: self._held(value, f"{owner}: {name}") for name, value in defaults.items()}
        return [piece.text, held, *([{"defaults": given}] if given else [])]

    def _definition(self, function: FunctionType) -> Any:
        """Where ``function`` is defined: the ``def`` that begins on its first line, or all lambdas that do."""
        source = self._source(_module_of(function))
        kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
        on_line = source.functions.get(function.__code__.co_firstlineno, ()) if source is not None else ()
        found: list[Any] = [node for node in on_line if isinstance(node, kinds)]
        if not found:
            raise ClearwayError(f"the source of {function.__qualname__}() cannot be read: define it in a module")
        return found[0] if len(found) == 1 else ast.Tuple(found, ast.Load())

    # Values

    def _held(self, value: Any, owner: str) -> Any:
        """A value that a function was made with; ``owner`` says which, in error lines."""
        try:
            return self._as_data(value)
        except TypeError:
            pass
        if id(value) in self._active:
            return ["again", type(value).__name__]
        if _is_function(value):
            return self._function(value)
        self._active.append(id(value))
        try:
            return self._no_data(value, owner)
        finally:
            self._active.pop()

    def _no_data(self, value: Any, owner: str) -> Any:
        if isinstance(value, ModuleType):
            self._pending.append((value.__name__, ""))
            return ["module", value.__name__]
        if isinstance(value, type):
            return ["class", self._class(value, owner)]
        if isinstance(value, Enum):
            return ["enum", self._class(type(value), owner), value.name, self._held(value.value, owner)]
        if isinstance(value, PurePath):
            return ["path", self._from_package(str(value))]
        if type(value) is np.ndarray or isinstance(value, np.generic):
            return ["array", *self._array(np.asarray(value), owner)]
        if not self._own(type(value).__module__):
            if isinstance(value, list | tuple):
                return [type(value).__name__, *(self._held(each, f"{owner}[{i}]") for i, each in enumerate(value))]
            if isinstance(value, set | frozenset):
                return ["set", *sorted((self._held(each, f"{owner}[…]") for each in value), key=canonical_json)]
            if isinstance(value, Mapping):
                pairs = [(key, self._held(key, owner), each) for key, each in value.items()]
                return ["mapping", *([name, self._held(each, f"{owner}[{key!r}]")] for key, name, each in pairs)]
        return self._object(value, owner)

    def _array(self, array: np.ndarray[Any, Any], owner: str) -> list[Any]:
        shape = [str(array.dtype.descr), list(array.shape)]
        if array.dtype.hasobject:
            return [*shape, self._held(array.tolist(), owner)]
        return [*shape, sha256_bytes(np.ascontiguousarray(array).tobytes())]

    def _object(self, value: Any, owner: str) -> Any:
        """An object as it would be pickled: its class, and its attributes."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(2) if reduce is None else reduce(value)
        except Exception as error:  # a class may raise anything where it is not meant to be pickled
            raise ClearwayError(
                f"{owner} is {type(value).__module__}.{type(value).__qualname__}, whose value cannot be hashed "
                f"({' '.join(str(error).split())[:80]}): make it inside the function, or give plain data, an array or "
                "an object of such attributes"
            ) from None
        kind = self._class(type(value), owner)
        if isinstance(reduced, str):
            return ["global", kind, getattr(value, "__module__", None), reduced]
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        made = [self._held(make, owner), *(self._held(each, owner) for each in arguments)]
        states = state if isinstance(state, tuple) else (state,)  # of slots: two
        for each in states:
            if isinstance(each, Mapping):
                cached = [name for name in each if isinstance(getattr(type(value), str(name), None), cached_property)]
                kept = {str(name): held for name, held in each.items() if name not in cached}
                made += [{name: self._held(held, f"{owner}.{name}") for name, held in kept.items()}] if kept else []
            elif each is not None:
                made += [self._held(each, owner)]
        return ["object", kind, *made, self._held([*(items or ())], owner), self._held([*(pairs or ())], owner)]

    def _class(self, kind: type, owner: str) -> str:
        """Where a class is defined, which becomes pending."""
        module, name = kind.__module__, kind.__qualname__
        if self._own(module):
            source = self._source(module)
            first = name.partition(".")[0]
            if source is None or "<locals>" in name or first not in source.statements:
                raise ClearwayError(f"{owner} is of class {module}.{name}, whose source cannot be read or is made at "
                                    "run time: define the class at the top of a module")  # fmt: skip
            self._pending.append((module, first))
        return f"{module}.{name}"

    def _function(self, value: Any) -> Any:
        """A function by its name where it has one, which becomes pending; otherwise as :meth:`start`."""
        module, name = str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
        source = None if isinstance(value, MethodType | partial) else self._source(module)
        if source is not None and name in source.statements and _runtime(module, name) is value:
            self._pending.append((module, name))
            return ["function", module, name]
        return self.start(value)

    def _registered(self, value: Any) -> Any:
        """A value that no function was made with: its plain data and its functions, in lists and mappings too.

        Other objects count by the name of their class here: what they are is in the code that makes them.
        """
        try:
            return self._as_data(value)
        except TypeError:
            pass
        if id(value) in self._active:
            return "again"
        if _is_function(value):
            return self._function(value)
        if isinstance(value, ModuleType | type):
            own = isinstance(value, ModuleType) or value.__qualname__.partition(".")[0] in getattr(
                self._source(value.__module__), "statements", ()
            )
            return self._no_data(value, "") if own else f"{value.__module__}.{value.__qualname__}"
        self._active.append(id(value))
        try:
            if isinstance(value, list | tuple):
                return [type(value).__name__, *map(self._registered, value)]
            if isinstance(value, set | frozenset):
                return ["set", *sorted(map(self._registered, value), key=canonical_json)]
            if isinstance(value, Mapping):
                return ["mapping", *([self._registered(key), self._registered(each)] for key, each in value.items())]
        finally:
            self._active.pop()
        return type(value).__name__

    def _as_data(self, value: Any, path: Callable[[str], str] | None = None) -> Any:
        """Plain data as JSON; ``path`` rewrites text that is a path.

        Raises
        ------
        TypeError
            It is no plain data. Data of the package's own classes is none: their methods count too.
        """
        kind = type(value)
        if self._own(kind.__module__):
            raise TypeError(kind.__name__)
        if isinstance(value, str):
            return f"{kind.__name__} {(path or self._from_package)(value)!r}"
        if isinstance(value, _PLAIN):
            return f"{kind.__name__} {value!r}"
        if isinstance(value, list | tuple):
            return [kind.__name__, *(self._as_data(each, path) for each in value)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted((self._as_data(each, path) for each in value), key=canonical_json)]
        if isinstance(value, Mapping):
            pairs = value.items()
            return ["mapping", *([self._as_data(key, path), self._as_data(each, path)] for key, each in pairs)]
        raise TypeError(kind.__name__)

    def _from_package(self, text: str) -> str:
        """A path in the folder of a followed package, from there on: it is another folder elsewhere."""
        if text.startswith("/"):
            for folder in self._folders:
                if text == folder or text.startswith(f"{folder}/"):
                    return f"<package>{text.removeprefix(folder)}"
        return text

    # Names

    def _top_level(self, module: str, name: str, statements: tuple[ast.stmt, ...]) -> Any:
        """What ``name`` stands for in ``module``; what it refers to in turn becomes pending."""
        value = _runtime(module, name)
        more: list[Any] = []
        if any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for each in statements):
            if _dispatches(value):
                more = [{"registry": self._registered(value.registry)}]
        elif value is not _ABSENT:
            try:
                data, outside = self._as_data(value), self._as_data(value, _outside(module))
                if data == outside or not self._reaches_file(module, statements):
                    return data
                more = [{"value": outside}]
            except TypeError:
                more = [{"value": self._registered(value)}] if _holds_functions(value) else []
        pieces = [_piece(each, module) for each in statements]
        for piece in pieces:
            self._refer(piece, module)
        return [*(piece.text for piece in pieces), *more]

    def _reaches_file(self, module: str, statements: tuple[ast.stmt, ...]) -> bool:
        """Whether ``__file__`` decides the value of these statements."""
        pending, seen = [(module, each) for each in statements], set[_Place]()
        while pending:
            where, statement = pending.pop()
            piece = _piece(statement, where)
            if any("__file__" in chain for chain in piece.chains):
                return True
            for place in set(self._places(piece, where)) - seen:
                seen.add(place)
                source = self._source(place[0])
                pending += [(place[0], each) for each in (source.statements.get(place[1], ()) if source else ())]
        return False

    def _refer(self, piece: "_Piece", module: str, besides: Iterable[str] = ()) -> None:
        """Make pending what a piece of ``module`` refers to by name."""
        self._pending += self._places(piece, module, besides)

    def _places(self, piece: "_Piece", module: str, besides: Iterable[str] = ()) -> Iterator[_Place]:
        source = self._source(module)
        imports = {**(source.imports if source is not None else {}), **piece.imports}
        names = (piece.names | set(piece.imports)) - set(besides)
        for first, *attributes in piece.chains:
            if first in names:
                yield self._place(imports.get(first, (module, first)), attributes)

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
                place = source.imports[name] if name in source.imports else self._elsewhere(source, module, name)
        return place

    def _elsewhere(self, source: "_Source", module: str, name: str) -> _Place:
        """A name that a module neither defines nor imports by name: of a star import, or a submodule."""
        for star in source.stars:
            offered = self._source(star)
            if offered is not None and (name in offered.statements or name in offered.imports):
                return (star, name)
        return self._submodule(module, name)

    def _submodule(self, module: str, name: str) -> _Place:
        if module in sys.modules and not hasattr(sys.modules[module], "__path__"):
            return (module, name)  # no package
        try:
            found = importlib.util.find_spec(f"{module}.{name}")
        except (ImportError, ValueError):
            found = None
        return (module, name) if found is None else (f"{module}.{name}", "")

    def _own(self, module: str) -> bool:
        return _top(module) in self._packages

    def _source(self, module: str) -> "_Source | None":
        """The source of a module of the followed packages; None where there is none to read."""
        if not self._own(module):
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
    stars: tuple[str, ...]
    """Modules of which everything is imported."""


@lru_cache(maxsize=256)
def _read(module: str, file: Path, changed: int) -> _Source:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements: dict[str, tuple[ast.stmt, ...]] = {}
    top_level = list(_statements(tree.body))
    for statement in top_level:
        for names, part in _bound(statement):
            for name in names:
                statements[name] = (*statements.get(name, ()), part)
    functions: dict[int, tuple[ast.AST, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            line = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
            functions[line] = (*functions.get(line, ()), node)
    imports = _imports(top_level, module)
    stars = tuple(origin for name, (origin, _) in imports.items() if name.startswith("*"))
    return _Source(functions, statements, {name: place for name, place in imports.items() if name[0] != "*"}, stars)


def _bound(statement: ast.stmt) -> Iterator[tuple[set[str], ast.stmt]]:
    """The names that a statement binds itself, without those in its body, and the statement that says to what."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield {statement.name}, statement
        return
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield {name for target in targets for name in _names(target)}, statement
    elif isinstance(statement, ast.For):
        yield _names(statement.target), _assigned(statement.target, statement.iter)
    elif isinstance(statement, ast.With):
        for item in statement.items:
            if item.optional_vars is not None:
                yield _names(item.optional_vars), _assigned(item.optional_vars, item.context_expr)
    pending = [each for each in ast.iter_child_nodes(statement) if not isinstance(each, ast.stmt)]
    while pending:  # a walrus binds a name wherever it stands
        node = pending.pop()
        if isinstance(node, ast.NamedExpr):
            yield {node.target.id}, _assigned(node.target, node.value)
        if not isinstance(node, ast.Lambda | ast.ExceptHandler | ast.match_case):
            pending += ast.iter_child_nodes(node)


def _names(target: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}


def _assigned(target: ast.expr, value: ast.expr) -> ast.stmt:
    return ast.copy_location(ast.Assign([target], value), value)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's top level, those under its ``if``, ``try``, ``with``, ``match`` and loops too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While | ast.Match):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, part, []))
            for inner in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
                yield from _statements(inner.body)


def _imports(nodes: Iterable[ast.AST], module: str) -> dict[str, _Place]:
    """What the imports among ``nodes``, pieces of ``module``, bind; of everything in a module: under ``*`` and it."""
    bound: dict[str, _Place] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
                origin = importlib.util.resolve_name("." * node.level + origin, package)
            stars = {f"*{origin}": (origin, "") for alias in node.names if alias.name == "*"}
            named = [alias for alias in node.names if alias.name != "*"]
            bound |= stars | {alias.asname or alias.name: (origin, alias.name) for alias in named}
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
    queried = [tuple(name.split(".")) for name in _queried(plain)]
    chains = tuple(dict.fromkeys([*_chains(plain), *queried]))
    names = frozenset(_free_names(plain) | {first for first, *_ in queried})
    return _Piece(ast.unparse(plain), names, chains, _imports(ast.walk(plain), module))


def _queried(node: ast.AST) -> list[str]:
    """What texts in ``node`` name with ``@``, as ``frame.query("late > @LIMIT")`` does."""
    texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return [name for text in texts for name in _QUERY_NAME.findall(text)]


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


def _runtime(module: str, name: str) -> Any:
    """The value of a name of a module, which is imported if it is not yet."""
    try:
        return getattr(importlib.import_module(module), name, _ABSENT)
    except Exception:  # a module may raise anything while it is imported
        return _ABSENT


def _outside(module: str) -> Callable[[str], str]:
    """Leaves out paths beside a module, however far above: what ``__file__`` makes other in other folders."""
    file = Path(str(getattr(sys.modules.get(module), "__file__", None) or "/"))
    folders = {str(folder) for path in (file, file.resolve()) for folder in path.parents} - {"/", "."}

    def left_out(text: str) -> str:
        beside = text in folders or any(text.startswith(f"{folder}/") for folder in folders)
        return "<folder>" if beside else text

    return left_out


def _folder_of(package: str) -> str:
    """The folder that a package or module lies in; empty if there is none."""
    loaded = sys.modules.get(package)
    paths = [*getattr(loaded, "__path__", ())] or [getattr(loaded, "__file__", None) or "/"]
    return "" if str(Path(paths[0]).parent) == "/" else str(Path(paths[0]).parent)


def _is_function(value: Any) -> bool:
    """Whether there is Python code behind a value: a function, a method, a partial, or what wraps one."""
    return isinstance(value, _FUNCTIONS) or (
        not isinstance(value, type) and callable(value) and isinstance(unwrap(value), _FUNCTIONS)
    )


def _holds_functions(value: Any, depth: int = 20) -> bool:
    """Whether lists and mappings hold a function somewhere."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if depth and isinstance(value, list | tuple | set | frozenset):
        return any(_is_function(each) or _holds_functions(each, depth - 1) for each in value)
    return False


def _dispatches(value: Any) -> bool:
    return (
        isinstance(value, FunctionType) and value.__globals__["__name__"] == "functools" and hasattr(value, "registry")
    )


def _given(function: FunctionType, enclosing: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """What a function of another package was made with at run time. The standard library's own keep state there."""
    if _module_of(function) == "functools":
        return getattr(function, "registry", None)
    return {**enclosing, **defaults} if "<" in function.__code__.co_qualname else None


def _defaults(function: FunctionType) -> dict[str, Any]:
    """The defaults of a function, by parameter."""
    code, given = function.__code__, function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount][code.co_argcount - len(given) :]
    return dict(zip(positional, given, strict=True)) | (function.__kwdefaults__ or {})


def _is_empty(cell: CellType) -> bool:
    """Whether an enclosing function has not set the variable yet."""
    try:
        cell.cell_contents  # noqa: B018 - raises where there is nothing
    except ValueError:
        return True
    return False


def _name(function: Any) -> str:
    """As error lines name a function."""
    while isinstance(function, partial):
        function = function.func
    return f"{getattr(function, '__qualname__', type(function).__name__)}()"


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
