"""What the prediction log does not say: fields that are left out, and fields of which only a keyed hash is written."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import orjson

from clearway.errors import ClearwayError, UsageError
from clearway.params import LogParams

KEY_VARIABLE = "CLEARWAY_LOG_KEY"
KEY_BYTES = 16
"""Fewest bytes of a key: of a known kind of value, such as a name, all can be tried against a guessable one."""
GROUPS = ("features", "inputs")


@dataclass(frozen=True)
class Hiding:
    """How records are made to say less before they are written. Without fields it changes nothing."""

    left_out: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    key: bytes = field(default=b"", repr=False)

    @cached_property
    def fields(self) -> str | None:
        """All of them, as the column ``hidden`` of a record holds them; None without any."""
        return ",".join(sorted({*self.left_out, *self.hashed})) or None

    def apply(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record as it may be written. The one that was given stays as it is: an answer may still be using it."""
        hidden = self.fields
        if hidden is None:
            return record
        made = {**record, "hidden": hidden}
        for name in self.left_out:
            group, _, inner = name.partition(".")
            if not inner:
                made.pop(group, None)
            elif isinstance(made.get(group), dict):
                made[group] = {key: value for key, value in made[group].items() if key != inner}
        for name in self.hashed:
            group, _, inner = name.partition(".")
            held = made.get(group)
            if group == "entity":
                made[group] = self._token(held)
            elif isinstance(held, dict):
                made[group] = {key: self._token(value) if inner in ("", key) else value for key, value in held.items()}
        return made

    def entity(self, name: str | None) -> str | None:
        """An entity as the log holds it."""
        token: str | None = self._token(name) if "entity" in self.hashed else name
        return token

    def _token(self, value: Any) -> Any:
        """The same for the same value, whatever field holds it; what is missing stays missing."""
        if value is None:
            return None
        return "hashed:" + blake2b(orjson.dumps(value), key=self.key, digest_size=16).hexdigest()


NOTHING_HIDDEN = Hiding()


def hiding_of(settings: LogParams, environ: Mapping[str, str] = os.environ) -> Hiding:
    """What ``serving.log`` asks to hide.

    Raises
    ------
    UsageError
        Fields are to be hashed, and the key is missing or short.
    """
    key = environ.get(KEY_VARIABLE, "").encode()
    if settings.hash and len(key) < KEY_BYTES:
        raise UsageError(
            f"params.yaml: serving.log.hash = {list(settings.hash)}, but ${KEY_VARIABLE} has {len(key)} bytes: "
            f"set it to a secret of at least {KEY_BYTES}, the same for every server and command of this project"
        )
    return Hiding(settings.leave_out, settings.hash, blake2b(key).digest() if settings.hash else b"")


def check_hiding(
    settings: LogParams,
    routing_key: str,
    features: Collection[str],
    inputs: Collection[str],
    elsewhere: Callable[[], Collection[str]],
) -> None:
    """Check that what ``serving.log`` names is hidden: that there is such a field, and that no other field tells it.

    Parameters
    ----------
    settings
        ``serving.log``.
    routing_key
        Name of the field whose value is logged as ``entity``.
    features, inputs
        Fields that the log can have of each group.
    elsewhere
        Fields of versions that are not served, and columns of the schema: asked for only where a name is in neither
        group, since what comes to be served may bring it.

    Raises
    ------
    ClearwayError
        A name is that of no field, or its value stands in another field too; names both.
    """
    named = {"leave_out": settings.leave_out, "hash": settings.hash}
    hidden = {*settings.leave_out, *settings.hash}
    written = {name for group, names in zip(GROUPS, (features, inputs), strict=True) for name in _within(group, names)}
    plain = {name for name in written - hidden if name.partition(".")[0] not in hidden}
    for key, names in named.items():
        for name in names:
            group, dot, inner = name.partition(".")
            same = _within("features", (inner,)) | _within("inputs", (inner,)) if dot else set[str]()
            if dot and not same & written and inner not in elsewhere():
                known = ", ".join(sorted(features if group == "features" else inputs)) or "none"
                raise ClearwayError(
                    f"params.yaml: serving.log.{key} names {name}, which no version here has and schema.yaml does not "
                    f"know ({group}: {known}): it would hide nothing; correct or remove it"
                )
            if name == "entity":
                same = _within("features", (routing_key,)) | _within("inputs", (routing_key,))
            if told := sorted(same & plain):
                raise ClearwayError(
                    f"params.yaml: serving.log.{key} hides {name}, but the log tells the same value as "
                    f"{' and '.join(told)}: add that to serving.log.hash or leave_out"
                )
            if dot and inner == routing_key and same & written and "entity" not in settings.hash:
                raise ClearwayError(
                    f"params.yaml: serving.log.{key} hides {name}, but it is serving.routing_key, and the log tells it "
                    "as entity: add entity to serving.log.hash"
                )


def _within(group: str, names: Collection[str]) -> set[str]:
    return {f"{group}.{name}" for name in names}


def hidden_in(fields: str | None, group: str) -> frozenset[str] | None:
    """The hidden names of a group (``features``, ``inputs``) by the column ``hidden`` of a record; None if all are."""
    names = (fields or "").split(",")
    if group in names:
        return None
    return frozenset(name.partition(".")[2] for name in names if name.startswith(f"{group}."))
