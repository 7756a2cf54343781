"""The reference pages: params.yaml and schema.yaml from the types that check them, the features from their registry."""

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from clearway.cli import markdown_cell
from clearway.params import Params, load_params
from clearway.project import StoredProject, load_project
from clearway.project_folder import HOME
from clearway.schema import DataSchema, flat_columns


def render(page: str) -> str:
    """One page of ``PAGES``, Markdown."""
    return PAGES[page]()


def _settings(file: str, opening: str, model: type[BaseModel]) -> str:
    lines = [
        f"# {file}\n\n{opening}. An unknown key, a wrong type or an impossible value is refused with one line that",
        "names it. Made by `make docs` from the types that check the file; a test keeps the two the same.\n",
    ]
    _section(lines, "", model, seen=set())
    return "\n".join(lines).rstrip() + "\n"


def _features() -> str:
    params = load_params(HOME / "params.yaml")
    project = load_project(params, flat_columns(params, HOME))
    if not isinstance(project, StoredProject):
        return f"# Features\n\nThe project {params.project.name} stores no features.\n"
    from clearway.feature_store.catalogue import render_catalogue  # imports Feast

    return render_catalogue(params.project.name, project)


PAGES: dict[str, Callable[[], str]] = {
    "params.md": partial(_settings, "params.yaml", "Every setting of the line", Params),
    "schema.md": partial(_settings, "schema.yaml", "What each raw table must look like", DataSchema),
    "features.md": _features,
}
"""File under docs/, and what makes it."""


def _section(lines: list[str], path: str, model: type[BaseModel], seen: set[str]) -> None:
    title = f"`{path}`" if path else "Top level"
    lines += [f"## {title}", ""]
    for paragraph in (model.__doc__ or "").split("\n\n"):
        if paragraph.strip():
            lines += [" ".join(paragraph.split()).replace("``", "`"), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    nested: list[tuple[str, type[BaseModel]]] = []
    docstrings = _docstrings(model)
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = _models(field.annotation)
        nested += [(f"{path}.{key}".lstrip("."), each) for each in inner]
        lines.append(
            f"| `{key}` | {_type(field.annotation)} | {_default(field, bool(inner))} "
            f"| {_meaning(field, docstrings.get(name, ''))} |"
        )
    lines.append("")
    for inner_path, each in nested:
        kind = each.model_fields.get("kind")
        choices = typing.get_args(kind.annotation) if kind else ()
        label = f"{inner_path} (kind: {choices[0]})" if len(choices) == 1 else inner_path
        if label not in seen:
            seen.add(label)
            _section(lines, label, each, seen)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in typing.get_args(annotation)))
    if origin is dict:
        return f"map of {_type(typing.get_args(annotation)[1])}"
    if origin is tuple:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "time (UTC)" if "atetime" in str(annotation) else "any"
    )


def _default(field: FieldInfo, is_section: bool) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if is_section or value is PydanticUndefined:
        return ""
    return f"`{'true' if value is True else 'false' if value is False else 'null' if value is None else value}`"


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field, of the class or of one it inherits from.

    Pydantic could keep it with the field, but would read every class's source whenever a script starts.
    """
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner is BaseModel or not issubclass(owner, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def _meaning(field: FieldInfo, docstring: str) -> str:
    bounds = [str(limit) for limit in field.metadata if type(limit).__name__ in ("Ge", "Gt", "Le", "Lt")]
    signs = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    limits = [
        f"{signs[type(limit).__name__]} {getattr(limit, type(limit).__name__.lower())}"
        for limit in field.metadata
        if type(limit).__name__ in signs
    ]
    text = markdown_cell(field.description or docstring)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return " ".join(part for part in (text, f"({', '.join(limits)})" if bounds else "") if part)
