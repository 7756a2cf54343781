"""What a request may hold, compiled from a model's input schema: each row is checked and encoded in one pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway.encoding import CategoricalFeature, InputSchema
from clearway.errors import ClearwayError

FLOAT32_MAX = float(np.finfo(np.float32).max)
MISSING = float("nan")
MAX_NAME = 256

ENVELOPE = ("id", "entity", "asked_at")
"""Optional fields of a row beside its features."""


class RequestError(Exception):
    """A request that is refused: the HTTP status (4xx), and one line naming the field."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who asks, about what, and when: the fields of a row that are no features."""

    id: str | None
    entity: str | None
    asked_at: str | None


class RowEncoder:
    """Checks a row against an :class:`~clearway.encoding.InputSchema` and writes its float32 vector.

    It yields exactly what ``InputSchema.encode`` yields for the same row, without pandas. Refused, each naming the
    feature: an absent key, null where the feature is not nullable, a value of another type (true and false are not
    numbers, strings are not numbers), a number beyond float32, a field that no live version knows.

    A category that training never saw is accepted, encoded as missing and counted in ``unseen``: new destinations
    and new machines are what production is made of, and refusing them would be an outage that the model does not need.

    Parameters
    ----------
    schema
        The features of the version that answers.
    also_known
        Names that a row may carry although this version does not use them: features of the other live versions,
        since during a rollout the caller cannot know which version will answer.
    """

    def __init__(self, schema: InputSchema, also_known: Iterable[str] = ()) -> None:
        if clash := set(schema.names) & set(ENVELOPE):
            raise ClearwayError(f"a feature cannot be called {clash.pop()!r}: a request uses that name for itself")
        self.width = len(schema.features)
        self.unseen = 0
        self._known = {*schema.names, *also_known, *ENVELOPE}
        self._plan: list[tuple[int, str, bool, dict[str, float] | None]] = []
        for position, feature in enumerate(schema.features):
            codes = None
            if isinstance(feature, CategoricalFeature):
                codes = {category: float(code) for code, category in enumerate(feature.categories)}
            self._plan.append((position, feature.name, feature.nullable, codes))

    def encode_into(self, row: Mapping[str, Any], vector: NDArray[np.float32]) -> None:
        """Write the encoding of ``row`` into ``vector``, shape (features,), overwriting all of it.

        Raises
        ------
        RequestError
            The row is refused; 422, naming the field.
        """
        found = 0
        for position, name, nullable, codes in self._plan:
            try:
                value = row[name]
            except KeyError:
                raise RequestError(422, f"feature {name} is missing: send null if it is not known") from None
            found += 1
            if value is None:
                if not nullable:
                    raise RequestError(422, f"feature {name} may not be null")
                vector[position] = MISSING
            elif codes is None:
                kind = type(value)
                if kind is int:
                    value = float(value)
                elif kind is not float:
                    raise RequestError(422, f"feature {name} must be a number or null, not {_json_kind(value)}")
                if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # also false for NaN
                    raise RequestError(422, f"feature {name} = {value!r} is not a finite number that fits float32")
                vector[position] = value
            elif type(value) is str:
                code = codes.get(value)
                if code is None:
                    self.unseen += 1
                    code = MISSING
                vector[position] = code
            else:
                raise RequestError(422, f"feature {name} must be a string or null, not {_json_kind(value)}")
        if len(row) > found:
            for name in row:
                if name not in self._known:
                    raise RequestError(422, f"unknown field {name[:MAX_NAME]!r}: it is no feature of this model")


def read_envelope(row: Any) -> Envelope:
    """The fields of a row that are no features, checked.

    Raises
    ------
    RequestError
        The row is no object, or ``id``, ``entity`` or ``asked_at`` is wrong; 422, naming it.
    """
    if type(row) is not dict:
        raise RequestError(422, f"a row must be an object of features, not {_json_kind(row)}")
    asked_at = row.get("asked_at")
    if asked_at is not None:
        try:
            known_zone = datetime.fromisoformat(asked_at).tzinfo is not None
        except (ValueError, TypeError):
            known_zone = False
        if not known_zone:
            raise RequestError(422, "asked_at must be an ISO 8601 time with its zone, such as 2013-07-01T12:00:00Z")
    return Envelope(_name(row, "id"), _name(row, "entity"), asked_at)


def strip_envelope(row: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields that are no features from ``row``, and return it."""
    for name in ENVELOPE:
        row.pop(name, None)
    return row


def _name(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if type(value) is not str:
        raise RequestError(422, f"{field} must be a string or null, not {_json_kind(value)}")
    if not 0 < len(value) <= MAX_NAME:
        raise RequestError(422, f"{field} must have 1 to {MAX_NAME} characters, has {len(value)}")
    return value


def _json_kind(value: Any) -> str:
    kinds = {str: "a string", bool: "a boolean", dict: "an object", list: "an array", type(None): "null"}
    return kinds.get(type(value), "a number")
