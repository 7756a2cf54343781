"""Settings as they may be shown: what opens a door is left out."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NAMED = re.compile(r"password|passwd|secret|token|credential|access_?key|api_?key", re.IGNORECASE)


def shown(value: Any, key: str = "") -> Any:
    """The same value without users and passwords in URLs, and without what a key calls a secret.

    >>> shown({"url": "postgresql://me:pass@host/db", "storage_options": {"secret": "x"}})
    {'url': 'postgresql://***@host/db', 'storage_options': {'secret': '***'}}
    """
    if isinstance(value, Mapping):
        return {name: shown(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(inner, key) for inner in value]
    if _NAMED.search(key) and value is not None:
        return HIDDEN
    return _IN_URL.sub(HIDDEN, value) if isinstance(value, str) else value
