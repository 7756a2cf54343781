"""Features through Feast: defined once in the project package, read from there for training and for serving.

Importing this package imports Feast. Feast's classes are decorated with ``typeguard.typechecked``, which rewrites each
of them while it is imported: 6 of 8 seconds, to check at run time the types of what Feast is given.
"""

from typing import Any
from unittest.mock import patch


def _unchanged(target: Any = None, **_: Any) -> Any:
    return (lambda decorated: decorated) if target is None else target


with patch("typeguard.typechecked", _unchanged):
    import feast  # noqa: F401
