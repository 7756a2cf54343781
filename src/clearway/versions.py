"""Versions of the repository: ``v1.4.0``, each above every one before."""

import re
from collections.abc import Iterable

from clearway.errors import ClearwayError, UsageError

VERSION = re.compile(r"v(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
"""Three numbers without leading zeros (semver.org, 2.0.0), and nothing after them."""


def check_next(version: str, tags: Iterable[str]) -> str | None:
    """The newest version among ``tags``, above which ``version`` is; None if it is the first.

    Tags that are no versions are of no account.

    Raises
    ------
    UsageError
        It is no version.
    ClearwayError
        It is not above every version before.
    """
    asked = _numbers(version)
    if asked is None:
        raise UsageError(f"version {version[:64]!r} is not three numbers such as v1.4.0")
    before = max(((found, tag) for tag in tags if (found := _numbers(tag)) is not None), default=None)
    if before is None:
        return None
    if asked <= before[0]:
        raise ClearwayError(f"version {version} is not above {before[1]}, which is released: choose a higher one")
    return before[1]


def _numbers(text: str) -> tuple[int, ...] | None:
    found = VERSION.fullmatch(text)
    return tuple(map(int, found.groups())) if found else None
