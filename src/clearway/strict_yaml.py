"""YAML files of settings, read strictly: a key that stands twice is refused.

PyYAML's own loaders silently keep the last of such keys: a limit written further up would bind nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from clearway.errors import UsageError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C, where PyYAML was built with it."""
_MERGE = "tag:yaml.org,2002:merge"


def read_mapping(path: Path, purpose: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Parameters
    ----------
    path : Path
    purpose : str
        Which file belongs there, for the line that says that it is missing or cannot be read.

    Raises
    ------
    UsageError
        The file is missing, cannot be read, is not YAML or no mapping, or a key stands twice in one mapping of it:
        names the key and both lines.
    """
    try:
        loader = _LOADER(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            repeated = next(_repeated_keys(node, "", set()), "")
            content = loader.construct_document(node) if node is not None and not repeated else None
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: {purpose}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): {purpose}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date such as 2013-13-01
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if repeated:
        raise UsageError(f"{path} {repeated}")
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of keys to values, found {type(content).__name__}")
    return content


def _repeated_keys(node: yaml.Node | None, place: str, seen: set[int]) -> Iterator[str]:
    """What to say of each key that stands twice in one mapping. What is merged in (``<<``) may be overridden."""
    if id(node) in seen:  # an alias is the node that it stands for, over again
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _repeated_keys(item, f"{place}.{position}", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):  # refused by all that settings are read into
                continue
            inner, name, line = f"{place}.{key.value}".lstrip("."), (key.tag, key.value), key.start_mark.line + 1
            if name in lines and key.tag != _MERGE:
                yield f"line {line}: key {inner} stands twice, first in line {lines[name]}: keep one"
            lines[name] = line
            yield from _repeated_keys(value, inner, seen)
