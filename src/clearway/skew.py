"""Train-serve skew: whether the values a model was served are those that are recomputed offline, and how they differ.

Nothing here reads a file or a store: :func:`compare` gets both sides, and says what differs first and, where the
values themselves prove it, why.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from clearway.instants import MICROSECOND, micros

if TYPE_CHECKING:
    import pandas as pd

Value = float | int | str | bool | None
"""A feature's value as a request holds it; None is missing."""
Verdict = Literal["no_skew", "skew", "unknown"]

EXAMINED = 1_000
"""Predictions of each kind, differing and equal, that an explanation must hold for."""
TELLING = 3
"""Different values, or rows, that it takes to call what they have in common a cause."""
SHOWN = 80
"""Characters of a value, or of a name that a caller chose, that people are shown."""
_QUARTERS = sorted(range(1, 57), key=lambda quarters: (4 // math.gcd(quarters, 4), quarters))
SHIFTS = tuple(hours for quarters in _QUARTERS for hours in (quarters / 4, -quarters / 4))
"""Hours between time zones: whole ones first, then half and quarter ones, the smallest first."""


class _Absent:
    """What stands where a record does not name a feature."""


ABSENT: Final = _Absent()


class Example(BaseModel):
    """One value that differs."""

    model_config = ConfigDict(frozen=True)
    feature: str
    id: str | None
    asked_at: datetime
    version: str
    served: Value
    recomputed: Value
    inputs: dict[str, Any]
    """Join keys and request fields of the question."""


class FeatureSkew(BaseModel):
    """One feature over all compared predictions."""

    model_config = ConfigDict(frozen=True)
    name: str
    view: str | None
    """The view that stores it, or the on-demand view that makes it; None if the caller sends it."""
    compared: int
    different: int
    share: float
    within_tolerance: int = 0
    """Values that differ, and are those of the question's time plus the clock tolerance: served as documented."""
    largest: float | None
    """Largest absolute difference between two numbers; None where no two numbers differ."""
    first: Example | None
    """The earliest question whose value differs."""
    hint: str
    """What the values prove about the cause; empty where they prove nothing."""


class NotCompared(BaseModel):
    """Predictions that were left out for one reason."""

    model_config = ConfigDict(frozen=True)
    reason: str
    predictions: int


class SkewReport(BaseModel):
    """``reports/skew.json``."""

    model_config = ConfigDict(frozen=True)
    verdict: Verdict
    sentence: str
    environment: str
    predictions: int
    """Predictions of which at least one value was compared."""
    values: int
    """Values compared."""
    different: int
    """Values that differ."""
    predictions_different: int
    within_tolerance: int = 0
    """Values that became known after the question, within the clock tolerance; not counted as different."""
    version: str | None = None
    """Digest of the version whose every feature had to be compared; None if no version was named."""
    lacking: tuple[str, ...] = ()
    """Its features of which no value was compared."""
    rollout: int | None = None
    """Only predictions since this revision of the ledger, at which the rollout began; None for the whole log."""
    asked_from: datetime | None
    asked_until: datetime | None
    first: Example | None
    """The first differing feature: of the earliest question; among its features the first in the model's order."""
    features: tuple[FeatureSkew, ...]
    not_compared: tuple[NotCompared, ...]


@dataclass(frozen=True)
class StoredView:
    """The rows of a feature view as they became known, for explanations only."""

    name: str
    keys: tuple[str, ...]
    """Its join keys, names of inputs."""
    time: str
    """The column that says when a row became known (UTC)."""
    fields: tuple[str, ...]
    """Those of its fields that are features of the model."""
    ttl: timedelta | None
    """How long a row holds; None is for ever."""
    rows: "pd.DataFrame"


@dataclass(frozen=True)
class Served:
    """Predictions to compare, in the order they were asked. All sequences have the same length."""

    id: Sequence[str | None]
    asked_at: Sequence[datetime]
    version: Sequence[str]
    inputs: Sequence[Mapping[str, Any]]
    features: Sequence[Mapping[str, Value]]
    """What the model saw, as the prediction log holds it."""

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Required:
    """A version that is to be cleared, and the features of its model."""

    digest: str
    features: Sequence[str]


@dataclass
class _Column:
    """One feature of all predictions, both sides in one notation."""

    name: str
    numeric: bool
    served: list[Any]
    recomputed: list[Value]
    wrong: list[int] = field(default_factory=list)
    """Places that differ, ascending."""
    within_tolerance: int = 0

    def __post_init__(self) -> None:
        pairs = zip(self.served, self.recomputed, strict=True)
        self.wrong = [i for i, (served, own) in enumerate(pairs) if served != own and served is not ABSENT]

    def tolerate(self, later: Mapping[int, Value]) -> None:
        """Take what differs, and is the value of a later time, for right."""
        wrong = [i for i in self.wrong if i not in later or self.served[i] != later[i]]
        self.within_tolerance, self.wrong = len(self.wrong) - len(wrong), wrong

    def numbers(self) -> list[tuple[float, float]]:
        """The differing pairs, where both are numbers."""
        pairs = ((self.served[i], self.recomputed[i]) for i in self.wrong)
        return [(a, b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]


def compare(
    served: Served,
    recomputed: "pd.DataFrame",
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    environment: str,
    views: Sequence[StoredView] = (),
    view_of: Mapping[str, str | None] | None = None,
    not_compared: Mapping[str, int] | None = None,
    tolerated: "pd.DataFrame | None" = None,
    required: Required | None = None,
    rollout: int | None = None,
) -> SkewReport:
    """Compare each served value with the recomputed one, exactly.

    Null equals null, and nothing else. Numbers are compared as float64, so that 3 equals 3.0; text as text; a truth
    value of a category as its name, as the model reads it.

    Parameters
    ----------
    served : Served
        The predictions, the earliest question first.
    recomputed : DataFrame of shape (predictions, features)
        The same features as of the same times, in the same order of rows.
    numeric, categorical : sequence of str
        Names of the model's features, in its order.
    environment : str
        Where they were served; for the report.
    views : sequence of StoredView, optional
        From which a cause may be told.
    view_of : mapping of feature to view, optional
        For the report.
    not_compared : mapping of reason to int, optional
        Predictions left out before.
    tolerated : DataFrame, optional
        The features of some predictions, indexed by their places, with what became known within the server's clock
        tolerance after their questions: what differs and equals them was served as it should be.
    required : Required, optional
        The version that is to be cleared: without a value of each of its features nothing is proven of it, whatever
        other versions were served.
    rollout : int, optional
        The ledger revision from which on predictions were read; for the report.

    Raises
    ------
    ValueError
        Rows are not as many as predictions, or a feature was not recomputed.
    """
    if len(recomputed) != len(served):
        raise ValueError(f"{len(served)} predictions, but {len(recomputed)} recomputed rows")
    names = (*numeric, *categorical)
    if absent := [name for name in names if name not in recomputed.columns]:
        raise ValueError(f"not recomputed: {', '.join(absent)}")
    columns = _columns(served, recomputed, numeric, categorical)
    if tolerated is not None:
        for name, column in columns.items():
            later = plain(tolerated[name], numeric=column.numeric)
            column.tolerate(dict(zip(tolerated.index.tolist(), later, strict=True)))
    lacking = _lacking(columns, served, required)
    hints = _hints(columns, served, views)
    features = tuple(_judge(column, served, hints, view_of or {}) for column in columns.values())
    left_out = Counter(not_compared or {}) + _unmatched(served, names)
    any_compared = [any(column.served[i] is not ABSENT for column in columns.values()) for i in range(len(served))]
    asked = [time for time, compared in zip(served.asked_at, any_compared, strict=True) if compared]
    examples = [feature.first for feature in features if feature.first is not None]
    place = {name: column.wrong[0] for name, column in columns.items() if column.wrong}
    report = SkewReport(
        verdict="skew" if examples else "no_skew" if asked and not lacking else "unknown",
        sentence="",
        environment=environment,
        predictions=len(asked),
        values=sum(feature.compared for feature in features),
        different=sum(feature.different for feature in features),
        predictions_different=len({i for column in columns.values() for i in column.wrong}),
        within_tolerance=sum(column.within_tolerance for column in columns.values()),
        version=required.digest if required else None,
        lacking=lacking,
        rollout=rollout,
        asked_from=min(asked, default=None),
        asked_until=max(asked, default=None),
        # min takes the first of equals: the features are in the model's order
        first=min(examples, key=lambda example: place[example.feature], default=None),
        features=features,
        not_compared=tuple(NotCompared(reason=r, predictions=n) for r, n in sorted(left_out.items()) if n),
    )
    return report.model_copy(update={"sentence": _sentence(report)})


def differing(
    served: Served, recomputed: "pd.DataFrame", numeric: Sequence[str], categorical: Sequence[str]
) -> list[int]:
    """Places of the predictions of which any value differs, ascending; arguments as of :func:`compare`."""
    columns = _columns(served, recomputed, numeric, categorical)
    return sorted({i for column in columns.values() for i in column.wrong})


def plain(column: "pd.Series[Any]", *, numeric: bool) -> list[Value]:
    """A column as Python numbers (float) or text, None where it is missing; what is of neither kind stays as it is."""
    missing = column.isna().tolist()
    return [
        None if gone else _notation(value, numeric)
        for value, gone in zip(column.astype("object").tolist(), missing, strict=True)
    ]


def shown(value: Any) -> str:
    """A value for people: every digit that tells it from its neighbours; text on one line, and not long."""
    return "null" if value is None else _cut(repr(value))


def named(name: str | None) -> str:
    """A name that a caller chose: as it is if it is short and plain, else quoted, with its line breaks escaped."""
    if name is None:
        return "without id"
    return name if _PLAIN_NAME.fullmatch(name) else _cut(repr(name))


_PLAIN_NAME = re.compile(r"[\w.:~/-]{1,80}", re.ASCII)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _columns(
    served: Served, recomputed: "pd.DataFrame", numeric: Sequence[str], categorical: Sequence[str]
) -> dict[str, _Column]:
    numbers = set(numeric)
    return {name: _column(name, served, recomputed[name], name in numbers) for name in (*numeric, *categorical)}


def _lacking(columns: Mapping[str, _Column], served: Served, required: Required | None) -> tuple[str, ...]:
    """The features of the version to be cleared of which none of its own predictions was compared."""
    if required is None:
        return ()
    places = [i for i, version in enumerate(served.version) if version == required.digest]

    def compared(name: str) -> bool:
        column = columns.get(name)
        return column is not None and any(column.served[i] is not ABSENT for i in places)

    return tuple(name for name in required.features if not compared(name))


def _column(name: str, served: Served, recomputed: "pd.Series[Any]", numeric: bool) -> _Column:
    values = (row.get(name, ABSENT) for row in served.features)
    return _Column(name, numeric, [_notation(value, numeric) for value in values], plain(recomputed, numeric=numeric))


def _notation(value: Any, numeric: bool) -> Any:
    """One notation for both sides: numbers as float64; truth values as numbers or names, as the feature has it."""
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if type(value) is bool and not numeric:
        return str(value)
    return float(value) if isinstance(value, (int, float)) else value


def _judge(column: _Column, served: Served, hints: Mapping[str, str], view_of: Mapping[str, str | None]) -> FeatureSkew:
    compared = sum(value is not ABSENT for value in column.served)
    first = column.wrong[0] if column.wrong else None
    return FeatureSkew(
        name=column.name,
        view=view_of.get(column.name),
        compared=compared,
        different=len(column.wrong),
        within_tolerance=column.within_tolerance,
        share=len(column.wrong) / compared if compared else 0.0,
        largest=max((abs(a - b) for a, b in column.numbers()), default=None),
        first=None
        if first is None
        else Example(
            feature=column.name,
            id=served.id[first],
            asked_at=served.asked_at[first],
            version=served.version[first],
            served=column.served[first],
            recomputed=column.recomputed[first],
            inputs=dict(served.inputs[first]),
        ),
        hint=hints.get(column.name, ""),
    )


def _unmatched(served: Served, names: Sequence[str]) -> Counter[str]:
    """What only one of the sides names, by feature."""
    own, unmatched = set(names), Counter[str]()
    for row in served.features:
        if row.keys() != own:
            unmatched.update(f"feature {name} is not in the record" for name in own - row.keys())
            unmatched.update(f"feature {named(name)} is not defined here" for name in row.keys() - own)
    return unmatched


def _sentence(report: SkewReport) -> str:
    notes = [f"{one.predictions:,} predictions not compared: {one.reason}" for one in report.not_compared]
    left_out = "; ".join(notes)
    if report.within_tolerance:
        notes.insert(
            0, f"{report.within_tolerance:,} values became known within the clock tolerance after the question"
        )
    rest = f" ({'; '.join(notes)})" if notes else ""
    since = "" if report.rollout is None else f" since the rollout began (revision {report.rollout})"
    compared = f"{report.values:,} values of {report.predictions:,} predictions"
    if report.verdict == "unknown" and not report.predictions:
        why = left_out or f"no prediction was served by key{since}"
        return f"Nothing was compared, so nothing is proven: {why}."
    if report.verdict == "unknown":
        assert report.version is not None
        more = f" and {len(report.lacking) - 1} others" if len(report.lacking) > 1 else ""
        return (
            f"No value of {report.lacking[0]}{more} was compared of version {report.version[:12]}{since}, so nothing "
            f"is proven of it; none of {compared} differs{rest}."
        )
    if report.first is None:
        return f"None of {compared} differs from what is recomputed as of its time{rest}."
    first = report.first
    wrong = [feature for feature in report.features if feature.different]
    hint = next((f": {feature.hint}" for feature in wrong if feature.name == first.feature and feature.hint), "")
    others = f" in {len(wrong)} features" if len(wrong) > 1 else ""
    return (
        f"{first.feature} is the first feature that differs{hint}. Question {named(first.id)} of "
        f"{first.asked_at:%Y-%m-%dT%H:%M:%SZ} was served {shown(first.served)}, recomputed {shown(first.recomputed)}; "
        f"{report.different:,} of {compared} differ{others}{rest}."
    )


# Causes: each is said only where it explains every value that was looked at.


def _hints(columns: Mapping[str, _Column], served: Served, views: Sequence[StoredView]) -> dict[str, str]:
    """A cause for each differing feature that shows one."""
    hints: dict[str, str] = {}
    for view in views:
        parts = [columns[name] for name in view.fields]
        if any(part.wrong for part in parts) and (hint := _view_hint(view, parts, served)):
            hints |= {part.name: hint for part in parts if part.wrong}
    for column in columns.values():
        if column.wrong and column.name not in hints:
            hints[column.name] = _value_hint(column, columns)
    return hints


def _value_hint(column: _Column, columns: Mapping[str, _Column]) -> str:
    """What the pairs of one feature have in common."""
    pairs = column.numbers()
    if len(pairs) == len(column.wrong):
        if all(a == _float32(b) for a, b in pairs):
            return "served values are rounded to float32"
        if len({b for _, b in pairs}) >= TELLING:
            first, own = pairs[0]
            # a ratio of 1, as a last bit gives it, is no constant; nor is a difference of that size
            if all(b for _, b in pairs) and _constant([a / b for a, b in pairs]) and abs(first / own - 1) > 1e-6:
                return f"served values are {first / own:.6g} times the recomputed: another constant"
            if _constant([a - b for a, b in pairs]) and abs(first - own) > 1e-12 * max(abs(b) for _, b in pairs):
                return f"served values are the recomputed {first - own:+.6g}: another constant"
    for other in columns.values():
        distinct = {column.served[i] for i in column.wrong}
        if other is not column and len(distinct) >= TELLING - 1 and column.served == other.recomputed:
            return f"served values are those of {other.name}: columns renamed or exchanged"
    if all(column.served[i] is None for i in column.wrong):
        return "nothing was served where a value is known: the store lacks the column or the rows, or drops them"
    return ""


def _float32(number: float) -> float:
    import numpy as np

    with np.errstate(over="ignore"):
        return float(np.float32(number))


def _constant(numbers: Sequence[float]) -> bool:
    low, high = min(numbers), max(numbers)
    return high - low <= 1e-9 * max(abs(low), abs(high))


def _view_hint(view: StoredView, parts: Sequence[_Column], served: Served) -> str:
    """Which other row, or which other time, gives the values that were served."""
    known = [i for i in range(len(served)) if all(part.served[i] is not ABSENT for part in parts)]
    wrong = {i for part in parts for i in part.wrong}
    differing = [i for i in known if i in wrong][:EXAMINED]
    equal = [i for i in known if i not in wrong][:EXAMINED]
    if all(part.served[i] is None for part in parts for i in differing):
        return ""  # nothing proves what nothing is the value of
    questions = {i: (_key(view, served.inputs[i]), micros(served.asked_at[i])) for i in (*differing, *equal)}
    history = _History(view, [part.numeric for part in parts], {key for key, _ in questions.values()})

    def explains(places: Sequence[int], *, hours: float = 0, step: int = 0, ttl: bool = True) -> bool:
        asked = ((i, *questions[i]) for i in places)
        return all(
            history.row(key, at - round(hours * _HOUR), step=step, ttl=ttl) == [part.served[i] for part in parts]
            for i, key, at in asked
        )

    if view.ttl is not None and explains(differing, ttl=False):
        cause = "it was not applied" if explains(equal, ttl=False) else "another TTL was applied"
        return f"served values are of rows older than the TTL of {view.name} ({view.ttl}): {cause}"
    if len({history.place(*questions[i]) for i in differing}) >= TELLING:
        for hours in SHIFTS:
            if explains((*differing, *equal), hours=hours):
                size = f"{abs(hours):g} h"
                way, arrive = ("later", f"arrive {size} late") if hours > 0 else ("earlier", f"are stored {size} early")
                return (
                    f"the store's rows of {view.name} count from {size} {way}: times of another time zone, or rows "
                    f"that {arrive}"
                )
    if explains(differing, step=-1):
        return f"served values are of the row before in {view.name}: a late event, or a stale store"
    if explains(differing, step=1):
        return f"served values are of the next row in {view.name}: the store held what was not yet known"
    return ""


class _History:
    """The rows of some keys of a view in the order they became known; of equal times the last counts."""

    def __init__(self, view: StoredView, numeric: Sequence[bool], keys: set[tuple[str, ...]]) -> None:
        rows = view.rows
        for place, name in enumerate(view.keys):
            rows = rows[rows[name].isin({key[place] for key in keys})]
        rows = rows.sort_values(view.time, kind="stable").drop_duplicates([*view.keys, view.time], keep="last")
        fields = [plain(rows[name], numeric=kind) for name, kind in zip(view.fields, numeric, strict=True)]
        times = rows[view.time].astype("datetime64[us, UTC]").astype("int64").tolist()
        names = [tuple(key) for key in rows[list(view.keys)].astype(str).to_numpy()]
        self._nothing: list[Value] = [None] * len(fields)
        self._ttl = None if view.ttl is None else view.ttl // MICROSECOND
        self._times: dict[tuple[str, ...], list[int]] = {}
        self._values: dict[tuple[str, ...], list[list[Value]]] = {}
        for key, time, *values in zip(names, times, *fields, strict=True):
            self._times.setdefault(key, []).append(time)
            self._values.setdefault(key, []).append(values)

    def place(self, key: tuple[str, ...], at: int) -> tuple[tuple[str, ...], int]:
        """Which row of its key holds at ``at`` (microseconds since 1970); -1 before the first."""
        return key, bisect_right(self._times.get(key, []), at) - 1

    def row(self, key: tuple[str, ...], at: int, *, step: int = 0, ttl: bool = True) -> list[Value]:
        """The values of the row that holds at ``at``, or of one ``step`` rows from it; null where there is none."""
        number, times = self.place(key, at)[1] + step, self._times.get(key, [])
        if not 0 <= number < len(times) or (ttl and self._ttl is not None and at - times[number] > self._ttl):
            return self._nothing
        return self._values[key][number]


def _key(view: StoredView, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(inputs.get(name)) for name in view.keys)


_HOUR = 3_600_000_000
