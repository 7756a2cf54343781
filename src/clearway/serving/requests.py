"""What a request may hold, compiled from a model's input schema: each row is checked and encoded in one pass."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clearway.encoding import CategoricalFeature, Feature, InputSchema, NumericFeature, as_encoded
from clearway.errors import ClearwayError
from clearway.schema import Column

FLOAT32_MAX = float(np.finfo(np.float32).max)
MISSING = float("nan")
MAX_NAME = 256
MAX_SHOWN = 80
"""Characters of a refused value in the answer."""
MAX_LISTED = 12
"""Allowed values named in the answer."""

ENVELOPE = ("id", "entity", "asked_at")
EARLIEST_YEAR, LATEST_YEAR = 1700, 2200
"""Times whose nanoseconds since 1970 fit into 64 bits, as what reads the log counts them."""
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


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows that all have the same fields: their values by field, each a sequence of ``count``."""

    values: Mapping[str, Sequence[Any]]
    count: int

    def rows(self) -> list[dict[str, Any]]:
        """The same, row by row."""
        names = tuple(self.values)
        if not names:
            return [{} for _ in range(self.count)]
        return [dict(zip(names, values)) for values in zip(*self.values.values())]  # noqa: B905  # strict costs more than both


def as_columns(rows: Sequence[Any]) -> Columns | None:
    """Rows as columns; None where they are not all objects of the same fields."""
    first = rows[0]
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(first)}:
        return None
    try:
        return Columns({name: list(map(itemgetter(name), rows)) for name in first}, len(rows))
    except KeyError:
        return None


class RowEncoder:
    """Checks a row against an :class:`~clearway.encoding.InputSchema` and writes its float32 vector.

    It yields exactly what ``InputSchema.encode`` yields for the same row, without pandas. Refused, each naming the
    feature: an absent key, what :func:`compile_check` refuses, a field that no live version knows.

    A category that training never saw is accepted, encoded as missing and counted in ``unseen``: new destinations
    and new machines are what production is made of, and refusing them would be an outage that the model does not need.
    A value that ``schema.yaml`` only warns of is accepted and counted in ``warned``.

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
        self.names = schema.names
        self.width = len(schema.features)
        self._unseen: Counter[str] = Counter()
        self.warned: Counter[str] = Counter()
        """Values accepted although the schema warns of them, by feature."""
        self._needed = frozenset(schema.names)
        self._known = {*schema.names, *also_known, *ENVELOPE}
        self._may_be_null = {feature.name for feature in schema.features if _nullable(feature)}
        self._numbers: list[_Number] = []
        self._categories: list[_Category] = []
        self._checks = {feature.name: compile_check(feature) for feature in schema.features}
        for position, feature in enumerate(schema.features):
            if isinstance(feature, NumericFeature):
                self._numbers.append(self._compile_number(position, feature))
            else:
                self._categories.append(self._compile_category(position, feature))

    @property
    def unseen(self) -> int:
        """Categories that training never saw, in all rows so far."""
        return self._unseen.total()

    def encode_into(self, row: Mapping[str, Any], vector: NDArray[np.float32]) -> None:
        """Write the encoding of ``row`` into ``vector``, shape (features,), overwriting all of it.

        Raises
        ------
        RequestError
            The row is refused; 422, naming the field.
        """
        # The values of nearly all requests are settled here, without a call; admit judges all others in full.
        try:
            for position, name, nullable, low, high, whole, admit in self._numbers:
                value = row[name]
                kind = type(value)
                if kind is float:
                    good = low <= value <= high and (not whole or value.is_integer())  # false for NaN
                else:
                    good = kind is int and low <= value <= high
                vector[position] = value if good else MISSING if value is None and nullable else admit(value)
            for position, name, nullable, codes, admit in self._categories:
                value = row[name]
                code = codes.get(value) if type(value) is str else MISSING if value is None and nullable else None
                vector[position] = admit(value) if code is None else code
        except KeyError:
            hint = "send null if it is not known" if name in self._may_be_null else "it may not be null"
            raise RequestError(422, f"feature {name} is missing: {hint}") from None
        if len(row) > self.width:
            for name in row:
                if name not in self._known:
                    raise RequestError(422, f"unknown field {name[:MAX_NAME]!r}: it is no feature of this model")

    def fits(self, names: Collection[str]) -> bool:
        """Whether a row of these fields has all features, and none that nobody knows."""
        return self._needed <= set(names) <= self._known

    def encode_columns(self, columns: Mapping[str, Sequence[Any]], matrix: NDArray[np.float32]) -> None:
        """Write the encoding of many rows, a column at a time: the bits and counts of :meth:`encode_into` row by row.

        Parameters
        ----------
        columns
            Values by field, of fields that :meth:`fits`; all of one length.
        matrix
            Shape (rows, features); all of it is overwritten.

        Raises
        ------
        RequestError
            A value is refused. It may not be the one that is refused first row by row, which is therefore what to do
            next: nothing was counted.
        """
        counted = self.counted()
        try:
            for number in self._numbers:
                matrix[:, number.position] = _encode_numbers(columns[number.name], number)
            for category in self._categories:
                matrix[:, category.position] = _encode_categories(columns[category.name], category)
        except RequestError:
            self.count(counted)
            raise

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """What was counted so far, to go back to it."""
        return self._unseen.copy(), self.warned.copy()

    def count(self, counted: tuple[Counter[str], Counter[str]]) -> None:
        """Go back to what was counted earlier."""
        for counter, before in zip((self._unseen, self.warned), counted, strict=True):
            counter.clear()  # in place: what encodes holds the counters, not the encoder
            counter.update(before)

    def refused(self, row: Mapping[str, Any]) -> str | None:
        """The name of the first feature of ``row``, which has all, whose value is refused."""
        for name, check in self._checks.items():
            try:
                check(row[name])
            except RequestError:
                return name
        return None

    def _compile_number(self, position: int, feature: NumericFeature) -> "_Number":
        check = self._checks[feature.name]
        low, high, whole = -FLOAT32_MAX, FLOAT32_MAX, False
        if feature.declared is not None:
            column = as_encoded(feature.declared)
            low, high = max(low, _end(column.min, low)), min(high, _end(column.max, high))
            whole = column.kind == "int"
            if whole:
                low, high = max(low, -(2.0**62)), min(high, 2.0**62)
            if column.values is not None:
                low, high = math.inf, -math.inf  # each value is looked up
        return _Number(
            position, feature.name, _nullable(feature), low, high, whole, self._admit_number(feature.name, check)
        )

    def _compile_category(self, position: int, feature: CategoricalFeature) -> "_Category":
        check = self._checks[feature.name]
        trained = {category: float(code) for code, category in enumerate(feature.categories)}
        good = {category: code for category, code in trained.items() if _is_good(check, category)}
        admit = self._admit_category(feature.name, check, trained)
        return _Category(position, feature.name, _nullable(feature), good, admit)

    def _admit_number(self, name: str, check: Callable[[Any], bool]) -> Callable[[Any], float]:
        warned = self.warned  # not self: in a circle, an encoder would outlive its version until the collector comes

        def admit(value: Any) -> float:
            if not check(value):
                warned[name] += 1
            return MISSING if value is None else float(value)

        return admit

    def _admit_category(
        self, name: str, check: Callable[[Any], bool], trained: Mapping[str, float]
    ) -> Callable[[Any], float]:
        warned, unseen = self.warned, self._unseen

        def admit(value: Any) -> float:
            if not check(value):
                warned[name] += 1
            if value is None:
                return MISSING
            code = trained.get(str(value))  # a declared truth value: true is the category "True"
            if code is None:
                unseen[name] += 1
                return MISSING
            return code

        return admit


class _Number(NamedTuple):
    """A numeric feature as :meth:`RowEncoder.encode_into` reads it."""

    position: int
    name: str
    nullable: bool
    """Whether null is good."""
    low: float
    high: float
    whole: bool
    """Numbers in [low, high] are good, if they are whole where this is set."""
    admit: Callable[[Any], float]
    """Judges any value in full, counts it where it is unusual, and encodes it."""


class _Category(NamedTuple):
    """A categorical feature as :meth:`RowEncoder.encode_into` reads it."""

    position: int
    name: str
    nullable: bool
    codes: Mapping[str, float]
    """Those categories that training saw and that are good."""
    admit: Callable[[Any], float]


_EXACT = 2.0**53
"""Whole numbers up to here are float64 numbers; a larger one is judged before it is rounded to one."""
_FLOAT, _NUMBERS_OR_NULL = {float}, {float, int, type(None)}
_TEXT_OR_NULL = {str, type(None)}


def _encode_numbers(values: Sequence[Any], number: _Number) -> NDArray[Any]:
    """A column of numbers as float64. What is not plainly good is judged as a single value would be."""
    kinds = set(map(type, values))
    if not kinds <= _NUMBERS_OR_NULL:
        return np.array([_encode_number(value, number) for value in values], dtype=np.float64)
    try:
        found = np.array(values, dtype=np.float64)  # null is NaN
    except OverflowError:  # of a whole number
        return np.array([_encode_number(value, number) for value in values], dtype=np.float64)
    low, high = number.low, number.high
    if kinds != _FLOAT:
        low, high = max(low, -_EXACT), min(high, _EXACT)
    good = (found >= low) & (found <= high)
    if number.whole:
        good &= found == np.floor(found)
    if not good.all():
        for place in np.flatnonzero(~good).tolist():
            found[place] = _encode_number(values[place], number)
    return found


def _encode_number(value: Any, number: _Number) -> float:
    return MISSING if value is None and number.nullable else number.admit(value)


def _encode_categories(values: Sequence[Any], category: _Category) -> NDArray[Any]:
    """A column of categories as their codes, likewise."""
    codes, nullable, admit = category.codes, category.nullable, category.admit
    if set(map(type, values)) <= _TEXT_OR_NULL:
        found = list(map(codes.get, values))
    else:
        found = [codes.get(value) if type(value) is str else None for value in values]
    if None in found:
        found = [
            code if code is not None else MISSING if value is None and nullable else admit(value)
            for code, value in zip(found, values, strict=True)
        ]
    return np.array(found, dtype=np.float64)


class _Rule(NamedTuple):
    """One thing that a declaration says of a value."""

    holds: Callable[[Any], object]
    tolerated: bool
    """Whether a value that breaks it is accepted."""
    broken: str
    """What to say of such a value, after it."""


def compile_check(feature: Feature) -> Callable[[Any], bool]:
    """A plain function that judges one JSON value of a feature as the rows of training were judged.

    It returns True for a good value, and False for one that is accepted although the schema warns of it (``severity:
    warn``) or tolerates it as new (``min_known``). It raises :class:`RequestError` (422), naming feature, value and
    what is allowed, for null where that may not be, a value of another type (true and false are no numbers, a number is
    no text), a number beyond float32, a fraction in a whole number, and a value that the schema calls an error or sets
    aside. A number is judged as the model sees it, rounded to float32, but is whole only if it was sent so. What needs
    more than one row to judge (mean, unique, shares of rows) is not judged.
    """
    name, declared = feature.name, feature.declared
    nullable = _nullable(feature)
    read = _reader(feature)
    rules = () if declared is None else _rules(declared)

    def check(value: Any) -> bool:
        if value is None:
            if not nullable:
                raise RequestError(422, f"feature {name} may not be null")
            return True
        seen = read(value)
        good = True
        for holds, tolerated, broken in rules:
            if holds(seen):
                continue
            if not tolerated:
                raise RequestError(422, f"feature {name} = {_shown(value)} {broken}")
            good = False
        return good

    return check


class KeyedRows:
    """Tells rows that carry features from rows by key, which carry what features are read by, and checks the latter.

    Parameters
    ----------
    keys
        Names of the join keys: strings or null.
    fields
        The request's fields: name → what it must be, beside null: ``str``, ``float``, ``int`` or ``bool``.
    looked_up
        The features that a row by key leaves out.
    features
        All features.
    also_known
        Features of other versions: a row that carries all features may carry these.
    """

    def __init__(
        self,
        keys: Collection[str],
        fields: Mapping[str, str],
        looked_up: Collection[str],
        features: Collection[str],
        also_known: Collection[str] = (),
    ) -> None:
        if clash := {*keys, *fields} & {*ENVELOPE, "rows"}:
            raise ClearwayError(f"an input cannot be called {min(clash)!r}: a request uses that name for itself")
        kinds = {**fields, **dict.fromkeys(keys, "key")}
        self.fields = kinds
        """What a row by key carries: name → ``key``, or the type of the field."""
        self._inputs = [(name, name in keys, _INPUTS[kind]) for name, kind in kinds.items()]
        self._looked_up = frozenset(looked_up)
        self._features = tuple(features)
        self._no_features = frozenset(kinds).difference(features, also_known)
        self._known = {*kinds, *ENVELOPE}

    def read(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The join keys and request fields of a row by key; None for a row that carries its features.

        Raises
        ------
        RequestError
            The row carries a part of each, or lacks a key or a field, or has one of the wrong type, or a field that
            nobody knows; 422, naming it.
        """
        if not self._looked_up or not self._looked_up.isdisjoint(row):
            if not self._no_features.isdisjoint(row):
                raise self._mixed(row)
            return None
        inputs = {}
        for name, is_key, read in self._inputs:
            value = row.get(name, _ABSENT)
            if value is _ABSENT:
                what = "join key" if is_key else "request field"
                raise RequestError(422, f"{what} {name} is missing: send null if it is not known, or send all features")
            inputs[name] = None if value is None else read(name, value)
        if len(row) > len(inputs):
            for name in row:
                if name not in self._known:
                    raise RequestError(422, f"unknown field {name[:MAX_NAME]!r}: it is no join key or request field")
        return inputs

    def looks_by_key(self, row: Mapping[str, Any]) -> bool:
        """Whether a row carries all that features are read by, and none of the features that are read."""
        return self._looked_up.isdisjoint(row) and all(name in row for name, _, _ in self._inputs)

    def _mixed(self, row: Mapping[str, Any]) -> RequestError:
        sent, extra = self._looked_up.intersection(row), self._no_features.intersection(row)
        lacking = [name for name in self._features if name not in row]
        add = f" and add {_listed(lacking)}" if lacking else ""
        by_key = f"leave out {_listed(sent)} (the feature store has them), or " if sent else ""
        return RequestError(
            422,
            "a row carries either all features or what they are read by, not some of each: "
            f"{by_key}leave out {_listed(extra)}{add}",
        )


_ABSENT = object()


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:MAX_LISTED]) + (
        f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    )


def _read_key(name: str, value: Any) -> str:
    if type(value) is not str:
        raise RequestError(422, f"join key {name} must be a string or null, not {_refused(value)}")
    if len(value) > MAX_NAME:
        raise RequestError(422, f"join key {name} must have at most {MAX_NAME} characters, has {len(value)}")
    return value


def _read_text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise RequestError(422, f"request field {name} must be a string or null, not {_refused(value)}")
    return value


def _read_number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise RequestError(422, f"request field {name} must be a number or null, not {_refused(value)}")
    return float(value)


def _read_whole(name: str, value: Any) -> int:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise RequestError(422, f"request field {name} must be a whole number or null, not {_refused(value)}")
    if value != int(value) or not -(2**63) <= value < 2**63:
        raise RequestError(422, f"request field {name} = {_shown(value)} must be a whole number of 64 bits or null")
    return int(value)


def _read_truth(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise RequestError(422, f"request field {name} must be true, false or null, not {_refused(value)}")
    return value


_INPUTS: Mapping[str, Callable[[str, Any], Any]] = {
    "key": _read_key,
    "str": _read_text,
    "float": _read_number,
    "int": _read_whole,
    "bool": _read_truth,
}


def _reader(feature: Feature) -> Callable[[Any], Any]:
    """A function from a value that is not null to what the model sees of it; refuses what is of another kind."""
    name, declared = feature.name, feature.declared
    null = " or null" if _nullable(feature) else ""
    truths = "true, false or null" if null else "true or false"
    whole = declared is not None and declared.kind == "int"

    def number(value: Any) -> float:
        if type(value) not in (int, float):
            raise RequestError(422, f"feature {name} must be a number{null}, not {_refused(value)}")
        if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # also false for NaN
            raise RequestError(422, f"feature {name} = {_shown(value)} is not a finite number that fits float32")
        seen = float(np.float32(value))
        if whole and not (float(value).is_integer() and -(2.0**63) < seen < 2.0**63):  # as sent: rounding may hide it
            raise RequestError(422, f"feature {name} = {_shown(value)} must be a whole number of 64 bits{null}")
        return seen

    def truth(value: Any) -> str:
        if type(value) is bool or value in ("True", "False"):
            return str(value)
        raise RequestError(422, f"feature {name} must be {truths}, not {_refused(value)}")

    def text(value: Any) -> str:
        if type(value) is not str:
            raise RequestError(422, f"feature {name} must be a string{null}, not {_refused(value)}")
        return value

    if isinstance(feature, NumericFeature):
        return number
    return truth if declared is not None and declared.kind == "bool" else text


def _rules(declared: Column) -> tuple[_Rule, ...]:
    """What is declared of a value that is not null and of the right kind."""
    lenient = declared.severity == "warn"
    column = as_encoded(declared)
    rules = []
    if column.min is not None or column.max is not None:
        low, high = _end(column.min, -math.inf), _end(column.max, math.inf)
        rules.append(_Rule(lambda value: low <= value <= high, lenient, _outside(declared.min, declared.max)))
    if column.values is not None:
        known = frozenset(column.values)
        listed = ", ".join(map(_shown, (declared.values or ())[:MAX_LISTED]))
        more = f" … ({len(known)} values)" if len(known) > MAX_LISTED else ""
        tolerated = lenient or column.min_known is not None
        rules.append(_Rule(known.__contains__, tolerated, f"is not one of {listed}{more}"))
    if column.pattern is not None:
        rules.append(_Rule(re.compile(column.pattern).fullmatch, lenient, f"does not match {column.pattern}"))
    shortest, longest = column.min_length or 0, column.max_length
    if shortest:
        rules.append(_Rule(lambda value: len(value) >= shortest, lenient, f"has fewer than {shortest} characters"))
    if longest is not None:
        rules.append(_Rule(lambda value: len(value) <= longest, lenient, f"has more than {longest} characters"))
    return tuple(rules)


def _nullable(feature: Feature) -> bool:
    return feature.nullable and (feature.declared is None or feature.declared.nullable)


def _is_good(check: Callable[[Any], bool], value: Any) -> bool:
    try:
        return check(value)
    except RequestError:
        return False


def _end(bound: Any, otherwise: float) -> float:
    return otherwise if bound is None else float(bound)


def _outside(low: Any, high: Any) -> str:
    if low is None:
        return f"is above {high:.12g}"
    return f"is below {low:.12g}" if high is None else f"is not between {low:.12g} and {high:.12g}"


def _shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    if isinstance(value, (str, bool)):
        shown = repr(value)
    else:  # a whole number may be too large to be shown so
        shown = f"{value:.12g}" if not isinstance(value, int) or abs(value) < 10**308 else "a larger number"
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _refused(value: Any) -> str:
    """A value of the wrong kind: its kind, and what it is where that is one thing."""
    shown = "" if isinstance(value, (dict, list)) else f": {_shown(value)}"
    return _json_kind(value) + shown


def read_envelope(row: Any) -> Envelope:
    """The fields of a row that are no features, checked.

    Raises
    ------
    RequestError
        The row is no object, or ``id``, ``entity`` or ``asked_at`` is wrong; 422, naming it.
    """
    if type(row) is not dict:
        raise RequestError(422, f"a row must be an object of features, not {_json_kind(row)}")
    if row.keys().isdisjoint(ENVELOPE):
        return NOBODY
    return Envelope(_name(row, "id"), _name(row, "entity"), _asked_at(row.get("asked_at")))


NOBODY = Envelope(None, None, None)
"""That of a row without any of its fields."""


class Envelopes(NamedTuple):
    """The fields of many rows that are no features, by column."""

    ids: list[str | None]
    entities: list[str | None]
    asked_at: list[str | None]


def read_envelopes(columns: Columns) -> Envelopes:
    """The same of each of many rows.

    Raises
    ------
    RequestError
        As :func:`read_envelope`, of any row.
    """
    present = {name: columns.values[name] for name in ENVELOPE if name in columns.values}
    if not present:
        nobody: list[str | None] = [None] * columns.count
        return Envelopes(nobody, nobody, nobody)
    found = [read_envelope(row) for row in Columns(present, columns.count).rows()]
    return Envelopes([one.id for one in found], [one.entity for one in found], [one.asked_at for one in found])


def _asked_at(value: Any) -> str | None:
    """The time of a question in one form, UTC: whoever reads the log need not know all others."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is None or not EARLIEST_YEAR <= time.year <= LATEST_YEAR:
            raise ValueError
    except (ValueError, TypeError):
        raise RequestError(
            422,
            "asked_at must be an ISO 8601 time with its zone, such as 2013-07-01T12:00:00Z, "
            f"of the years {EARLIEST_YEAR} to {LATEST_YEAR}",
        ) from None
    return time.astimezone(UTC).isoformat()


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
