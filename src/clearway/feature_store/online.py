"""Features by key, as the server reads them: stored values through Feast's online store, on-demand ones computed here.

Nothing is guessed. A key the store does not know, a value older than its view's TTL, and one of the future of the
question are null, and each says which it is; a store that does not answer is an error, or, where params.yaml says so,
a value read before, within a bound.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any, NamedTuple

from feast import FeatureStore, FeatureView, ValueType
from feast.on_demand_feature_view import OnDemandFeatureView

from clearway.columns import PREDICTION_TIME
from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.batching import BatchingStore, Key, Place, Row, StoredView, StoreUnavailable
from clearway.feature_store.definitions import Definitions
from clearway.histogram import Histogram
from clearway.params import FeatureLookupParams

__all__ = ["FeatureReader", "InputKind", "Lookup", "Outcome", "StoreUnavailable", "input_kinds", "judge"]

AGE_BOUNDS = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0)
"""Seconds."""


class Outcome(StrEnum):
    """What became of one view for one question."""

    PRESENT = "present"
    MISSING = "missing"
    """The store has no row of this key, or the key is null."""
    STALE = "stale"
    """Older than the view's TTL."""
    FUTURE = "future"
    """It became known only after the question."""
    LAST_KNOWN = "last_known"
    """The store is down: the value is one that was read before."""


class InputKind(StrEnum):
    """What a join key or a request field must be."""

    TEXT = "str"
    NUMBER = "float"
    WHOLE = "int"
    TRUTH = "bool"


@dataclass(frozen=True, slots=True)
class Lookup:
    """The features of one question."""

    features: dict[str, Any]
    """By name: float, int, str, bool, or None where there is no value; never NaN."""
    outcomes: dict[str, Outcome]
    """By view."""


@dataclass(slots=True)
class ViewCounts:
    """What one view gave since the server started to read it."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    fields: int = 0
    nulls: int = 0
    ages: Histogram = field(default_factory=lambda: Histogram(AGE_BOUNDS))
    """Seconds from when a value became known to its question; of rows found and not of the future."""


class OnDemand(NamedTuple):
    """One on-demand view as it is computed."""

    name: str
    function: Callable[[dict[str, list[Any]]], Mapping[str, Any]]
    sourced: tuple[str, ...]
    """Stored fields that it is given beside the inputs."""
    outputs: tuple[tuple[str, InputKind], ...]


def judge(row: Row, at: int, ttl: int | None, tolerance: int) -> Outcome:
    """Whether a row answers a question asked ``at``; all times in microseconds.

    A value of exactly the TTL's age still holds, as it does offline.
    """
    if row.values is None:
        return Outcome.MISSING
    if row.event > at + tolerance:
        return Outcome.FUTURE
    return Outcome.STALE if ttl is not None and at - row.event > ttl else Outcome.PRESENT


class FeatureReader:
    """Answers what features are, by key, from Feast's online store.

    Parameters
    ----------
    store
        Feast's store. Its registry is not read: what features are is said by the project's own code.
    definitions
        The project's.
    names
        The features that are asked for.
    settings
        ``serving.features`` of params.yaml.
    counts : optional
        By name of a view: where to count; those of several readers may be one.

    Raises
    ------
    UsageError
        A name is defined nowhere, or twice; a join key is no string; an on-demand view is no function of lists.
    """

    def __init__(
        self,
        store: FeatureStore,
        definitions: Definitions,
        names: Sequence[str],
        settings: FeatureLookupParams,
        counts: dict[str, ViewCounts] | None = None,
    ) -> None:
        self.names = frozenset(names)
        self.inputs = input_kinds(definitions)
        """What a caller sends with each question: join keys and request fields."""
        self.join_keys = frozenset(entity.join_key for entity in definitions.entities) & self.inputs.keys()
        self.settings = settings
        self.cache_hits = 0
        self._names = tuple(names)
        self._on_demand = [
            _on_demand(view) for view in definitions.on_demand if self.names & {output.name for output in view.features}
        ]
        wanted = self.names.union(*(view.sourced for view in self._on_demand))
        keys = {entity.name: _join_key(entity) for entity in definitions.entities}
        views = [_stored_view(view, keys, wanted) for view in definitions.views]
        self._views = tuple(view for view in views if view.fields)
        timed = definitions.request is not None and PREDICTION_TIME in {f.name for f in definitions.request.schema}
        self._timed = timed
        self._source = self._find_sources()
        self.counts = {} if counts is None else counts
        for view in self._views:
            self.counts.setdefault(view.name, ViewCounts())
        self._rows: OrderedDict[Place, Row] = OrderedDict()
        self._keeps = settings.max_staleness_ms > 0 or settings.on_failure == "last_known"
        self._tolerance = round(settings.clock_tolerance_seconds * 1e6)
        self.store = BatchingStore(store, self._views, settings.timeout_ms / 1e3)

    @property
    def looked_up(self) -> frozenset[str]:
        """Those of the names that a caller need not send: stored, or computed on demand."""
        return frozenset(name for name in self._names if self._source[name] is not None)

    @property
    def cache_entries(self) -> int:
        """Rows kept in memory."""
        return len(self._rows)

    def source(self, name: str) -> str | None:
        """The view that a feature comes from; None for one that is passed through."""
        return self._source.get(name)

    async def read(self, inputs: Sequence[Mapping[str, Any]], at: Sequence[float]) -> list[Lookup]:
        """The features of each question.

        Parameters
        ----------
        inputs
            Join keys and request fields of each question, of the kinds that :attr:`inputs` says; any may be None.
        at
            When each was asked: seconds since 1970, UTC.

        Raises
        ------
        StoreUnavailable
            The store does not answer, and no value read before may stand in for its answer.
        ClearwayError
            An on-demand function fails; names the view and the cause.
        """
        keys = [self._keys(question) for question in inputs]
        cached, asked = self._cached(keys)
        self.cache_hits += len(cached)
        found = self.store.read_at_once(asked)
        if found is None:
            try:
                found = await self.store.ask(asked)
            except StoreUnavailable as unavailable:
                if self.settings.on_failure == "fail":
                    raise
                rows = cached | self._last_known(asked, unavailable)
                return self._lookups(inputs, keys, at, rows, frozenset(asked))
        return self._lookups(inputs, keys, at, self._with_cached(cached, asked, found), frozenset())

    def read_at_once(self, inputs: Sequence[Mapping[str, Any]], at: Sequence[float]) -> list[Lookup] | None:
        """As :meth:`read`, without a wait; None, and nothing has happened, where there is something to wait for.

        Raises
        ------
        ClearwayError
            An on-demand function fails; names the view and the cause.
        """
        keys = [self._keys(question) for question in inputs]
        cached, asked = self._cached(keys)
        found = self.store.read_at_once(asked)
        if found is None:
            return None
        self.cache_hits += len(cached)
        return self._lookups(inputs, keys, at, self._with_cached(cached, asked, found), frozenset())

    def close(self) -> None:
        """Let go of the store's thread, when it has answered what was asked."""
        self.store.close()

    def _keys(self, question: Mapping[str, Any]) -> list[Key | None]:
        """The key of each view; None where a part of it is null: no row can have it."""
        keys = [tuple([question[name] for name in view.join_keys]) for view in self._views]
        return [None if None in key else key for key in keys]

    def _cached(self, keys: Sequence[Sequence[Key | None]]) -> tuple[dict[Place, Row], list[Place]]:
        """The rows that were read not too long ago, and the places to ask the store for, in the order of the views."""
        places = dict.fromkeys((number, key) for own in keys for number, key in enumerate(own) if key is not None)
        now = monotonic()
        cached = {place: row for place in places if (row := self._fresh(place, now)) is not None}
        return cached, [place for place in places if place not in cached]

    def _with_cached(
        self, cached: Mapping[Place, Row], asked: Sequence[Place], found: Mapping[Place, Row]
    ) -> Mapping[Place, Row]:
        """All rows; what the store said is kept, where that is wanted."""
        if not self._keeps:
            return found
        for place in asked:
            self._rows[place] = found[place]
            self._rows.move_to_end(place)
        while len(self._rows) > self.settings.cache_entries:
            self._rows.popitem(last=False)
        return {**found, **cached}

    def _lookups(
        self,
        inputs: Sequence[Mapping[str, Any]],
        keys: Sequence[Sequence[Key | None]],
        at: Sequence[float],
        rows: Mapping[Place, Row],
        last_known: frozenset[Place],
    ) -> list[Lookup]:
        known, outcomes = [], []
        for question, own, time in zip(inputs, keys, at, strict=True):
            values, outcome = self._judge(own, rows, last_known, round(time * 1e6))
            known.append({**question, PREDICTION_TIME: time, **values} if self._timed else {**question, **values})
            outcomes.append(outcome)
        for view in self._on_demand:
            given = [*self.inputs, *([PREDICTION_TIME] if self._timed else ()), *view.sourced]
            for values, computed in zip(known, compute(view, known, given), strict=True):
                values.update(computed)
        return [
            Lookup({name: values[name] for name in self._names}, outcome)
            for values, outcome in zip(known, outcomes, strict=True)
        ]

    def _fresh(self, place: Place, now: float) -> Row | None:
        """A row read not too long ago to be used without asking."""
        row = self._rows.get(place)
        if row is None or (now - row.read) * 1e3 > self.settings.max_staleness_ms:
            return None
        self._rows.move_to_end(place)
        return row

    def _last_known(self, places: Iterable[Place], unavailable: StoreUnavailable) -> dict[Place, Row]:
        oldest = monotonic() - self.settings.last_known_seconds
        rows = {}
        for place in places:
            row = self._rows.get(place)
            if row is None or row.read < oldest:
                view = self._views[place[0]].name
                bound = f"{self.settings.last_known_seconds:g} s"
                raise StoreUnavailable(f"{unavailable}; view {view} has no value of this key read in the last {bound}")
            rows[place] = row
        return rows

    def _judge(
        self, keys: Sequence[Key | None], rows: Mapping[Place, Row], last_known: frozenset[Place], at: int
    ) -> tuple[dict[str, Any], dict[str, Outcome]]:
        """The stored values of one question, null where a row does not answer it; counted."""
        values: dict[str, Any] = {}
        outcomes: dict[str, Outcome] = {}
        for number, (view, key) in enumerate(zip(self._views, keys, strict=True)):
            place = None if key is None else (number, key)
            row = _NO_ROW if place is None else rows[place]
            outcome = judge(row, at, view.ttl, self._tolerance)
            counts = self.counts[view.name]
            if outcome is Outcome.PRESENT:
                assert row.values is not None
                values.update(zip(view.fields, row.values, strict=True))
                counts.nulls += row.values.count(None)
                if place in last_known:
                    outcome = Outcome.LAST_KNOWN
            else:
                values.update(dict.fromkeys(view.fields))
                counts.nulls += len(view.fields)
            counts.fields += len(view.fields)
            counts.outcomes[outcome] += 1
            if outcome is not Outcome.MISSING and outcome is not Outcome.FUTURE:
                counts.ages.add((at - row.event) / 1e6)
            outcomes[view.name] = outcome
        return values, outcomes

    def _find_sources(self) -> dict[str, str | None]:
        """Where each name comes from: a view, or, None, the inputs."""
        sources: dict[str, str | None] = {}
        stored = [(name, view.name) for view in self._views for name in view.fields]
        computed = [(name, view.name) for view in self._on_demand for name, _ in view.outputs]
        passed = [(name, None) for name in (*self.inputs, *([PREDICTION_TIME] if self._timed else ()))]
        for name, view in (*stored, *computed, *passed):
            if name in sources:
                raise UsageError(
                    f"{name!r} is defined twice: in {sources[name]} and in {view or 'what a caller sends'}; rename one"
                )
            sources[name] = view
        if lost := [name for name in self._names if name not in sources]:
            raise UsageError(f"feature {lost[0]!r} is defined in no view, and is no join key or request field")
        return sources


_NO_ROW = Row(None, 0, 0.0)


def compute(view: OnDemand, known: Sequence[Mapping[str, Any]], given: Sequence[str]) -> list[dict[str, Any]]:
    """What an on-demand view makes of each question, in one call of its function.

    Raises
    ------
    ClearwayError
        The function fails, leaves out an output, or answers another number of values.
    """
    columns = {name: [values[name] for values in known] for name in given}
    try:
        made = view.function(columns)
        outputs = {name: [_plain(value, kind) for value in made[name]] for name, kind in view.outputs}
    except Exception as error:  # the project's own function may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClearwayError(f"on-demand view {view.name} failed: {cause}") from None
    for name, values in outputs.items():
        if len(values) != len(known):
            raise ClearwayError(f"on-demand view {view.name}: {name} has {len(values)} values for {len(known)} rows")
    return [{name: values[place] for name, values in outputs.items()} for place in range(len(known))]


def _plain(value: Any, kind: InputKind) -> Any:
    """A value that a function made, in the type that its definition says; NaN is None."""
    if value is None or value != value:
        return None
    return _TYPES[kind](value)


_TYPES: Mapping[InputKind, Callable[[Any], Any]] = {
    InputKind.TEXT: str,
    InputKind.NUMBER: float,
    InputKind.WHOLE: int,
    InputKind.TRUTH: bool,
}
_KINDS = {
    "String": InputKind.TEXT,
    "Float32": InputKind.NUMBER,
    "Float64": InputKind.NUMBER,
    "Int32": InputKind.WHOLE,
    "Int64": InputKind.WHOLE,
    "Bool": InputKind.TRUTH,
}


def input_kinds(definitions: Definitions) -> dict[str, InputKind]:
    """What a caller sends with each question, by name: every join key of a view, and every field of the request.

    Raises
    ------
    UsageError
        A field is of a type that no request can carry; names it.
    """
    keys = {entity.name: _join_key(entity) for entity in definitions.entities}
    kinds = {keys[name]: InputKind.TEXT for view in definitions.views for name in view.entities}
    fields = definitions.request.schema if definitions.request is not None else ()
    return kinds | {field.name: _kind(field, "request field") for field in fields if field.name != PREDICTION_TIME}


def _kind(field: Any, what: str) -> InputKind:
    kind = _KINDS.get(str(field.dtype))
    if kind is None:
        raise UsageError(f"{what} {field.name!r} is of type {field.dtype}: use one of {', '.join(_KINDS)}")
    return kind


def _join_key(entity: Any) -> str:
    if entity.value_type not in (ValueType.STRING, ValueType.UNKNOWN):
        raise UsageError(f"entity {entity.name!r} is of type {entity.value_type.name}: join keys are strings")
    return str(entity.join_key)


def _stored_view(view: FeatureView, keys: Mapping[str, str], wanted: frozenset[str]) -> StoredView:
    if unknown := [name for name in view.entities if name not in keys]:
        raise UsageError(f"feature view {view.name!r} is of entity {unknown[0]!r}, which is not among the entities")
    ttl = view.ttl.total_seconds() if view.ttl else 0.0
    return StoredView(
        view,
        view.name,
        tuple(keys[name] for name in view.entities),
        tuple(field.name for field in view.features if field.name in wanted),
        round(ttl * 1e6) or None,  # Feast: 0 is forever
    )


def _on_demand(view: OnDemandFeatureView) -> OnDemand:
    if str(view.mode) != "python" or view.singleton:
        raise UsageError(f'on-demand view {view.name!r} must be a function of lists: mode="python", not singleton')
    sourced = [f.name for projection in view.source_feature_view_projections.values() for f in projection.features]
    outputs = tuple((f.name, _kind(f, f"on-demand view {view.name}: output")) for f in view.features)
    return OnDemand(view.name, view.feature_transformation.udf, tuple(dict.fromkeys(sourced)), outputs)
