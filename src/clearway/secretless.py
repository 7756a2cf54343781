"""Settings as they may be shown: what opens a door is left out."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_OPENS = r"password|passwd|pwd|secret|token|credential|access_?key|account_?key|api_?key"
_NAMED = re.compile(_OPENS, re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/?#:@\s\"']*:(?!\d+(?:[/?#\s\"']|$))[^\s\"']+(?=@)")
"""With the user before it; a password may hold what a URL should have escaped. A port is none."""
_USER = re.compile(r"(?<=://)[^/?#\s\"']+(?=@)")
_TOKEN = re.compile(r"(?:(?<=http://)|(?<=https://))[^/?#\s\"']+(?=@)", re.IGNORECASE)
_SIGNATURE = re.compile(
    rf"(?<=[?&;])((?:[^?&;=\s\"']*(?:{_OPENS}|signature)|sig)=)((?:\$\{{\w+\}}|[^&;#\s\"',\[\]{{}}])+)", re.IGNORECASE
)
"""Ends where YAML's flow of a mapping or list does."""
_VARIABLE = re.compile(r"(?:[^:]*:)?(?:\$\{[A-Za-z_][A-Za-z0-9_]*\})+")


def shown(value: Any, key: str = "") -> Any:
    """The same value without users and passwords in URLs, signatures in their queries, and what a key calls a secret.

    >>> shown({"url": "postgresql://me:pass@host/db", "storage_options": {"secret": "x"}})
    {'url': 'postgresql://***@host/db', 'storage_options': {'secret': '***'}}
    """
    if isinstance(value, Mapping):
        return {name: shown(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(inner, key) for inner in value]
    if _NAMED.search(key) and value is not None:
        return HIDDEN
    if not isinstance(value, str):
        return value
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, _PASSWORD.sub(HIDDEN, value)))


def addresses(text: str) -> str:
    """A text with URLs in it, without users and passwords, and with what signs them hidden: where something is.

    >>> addresses("tcp://me:pass@10.0.0.5:8786")
    'tcp://10.0.0.5:8786'
    """
    return str(shown(text)).replace(f"{HIDDEN}@", "")


def without_secrets(text: str) -> str:
    """A text with URLs in it, such as ``params.yaml``, without the passwords and signatures in them; the rest as it is.

    What is taken from an environment variable stays.

    >>> without_secrets("url: sql://me:${PASSWORD}@host, path: s3://me:pass@bucket/key?sig=abc")
    'url: sql://me:${PASSWORD}@host, path: s3://***@bucket/key?sig=***'
    """

    def hidden(found: re.Match[str]) -> str:
        return found[0] if _VARIABLE.fullmatch(found[0]) else HIDDEN

    def unsigned(found: re.Match[str]) -> str:
        return found[0] if _VARIABLE.fullmatch(found[2]) else f"{found[1]}{HIDDEN}"

    return _SIGNATURE.sub(unsigned, _TOKEN.sub(hidden, _PASSWORD.sub(hidden, text)))


def bared(value: Any) -> Any:
    """The same value, each text in it as :func:`without_secrets` has it."""
    if isinstance(value, Mapping):
        return {name: bared(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [bared(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def with_secrets(params: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` that were bared, with each source of ``now`` that nothing but secrets tells from theirs.

    Parameters
    ----------
    params, now : mapping
        The content of a ``params.yaml``: of a bundle, and of the project as it is.
    """
    sources, current = params.get("sources"), now.get("sources")
    if not isinstance(sources, Mapping) or not isinstance(current, Mapping):
        return dict(params)
    same = {name: source for name, source in current.items() if name in sources and sources[name] == bared(source)}
    return {**params, "sources": {**sources, **same}}
