"""Whether who asks the champion can ask the challenger: a request that is valid for one is valid for the other.

What a server accepts is known exactly (:mod:`clearway.serving.requests`): every feature is sent, null where it is not
known, and nothing else. So a new feature is a breaking change, nullable or not, and so is one taken away; unless
features are read by key, where only the keys and fields of the request matter.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from clearway.encoding import CategoricalFeature, Feature, InputSchema
from clearway.gates import Gate
from clearway.schema import Column
from clearway.serving.requests import RequestError, compile_check
from clearway.target import BINARY, Target

_LISTED = 6
_GIVEN = "prediction_time"
"""A field of every request by key, which the line itself fills in."""


@dataclass(frozen=True)
class Interface:
    """How a model is asked, and what it answers: ``schema``, ``definitions`` and ``target`` of a model."""

    schema: InputSchema
    definitions: Mapping[str, Mapping[str, Any]] | None = None
    """How each feature is defined with Feast, by name; None where all features are sent."""
    target: Target = BINARY


def schema_gate(champion: Interface, challenger: Interface, accepted: Collection[str] = ()) -> Gate:
    """No request that the champion answers is refused by the challenger.

    Breaking: another way of asking (by key or by features), a feature, join key or request field that is new or gone
    where callers send it, and a feature whose allowed values became fewer. A category that the challenger was not
    trained on is none: a server takes it as missing, and counts it. Another kind of answer is (``target`` accepts it);
    classes that came or went are named and break nothing.

    Parameters
    ----------
    champion, challenger : Interface
    accepted : collection of str
        Features, keys and fields whose callers are known to be ready: no change of these is breaking.

    Returns
    -------
    Gate
        ``schema_compatibility``; ``estimate`` is the number of breaking changes.
    """
    changes = breaking(champion, challenger)
    broken = [f"{name} {said}" for name, said in changes.items() if name not in accepted]
    waived = sorted(name for name in changes if name in accepted)
    parts = [f"{len(broken)} changes refuse requests that the champion answers"]
    if broken:
        parts[0] += ": " + _listed(broken)
    if waived:
        parts.append(f"accepted by params.yaml: {_listed(waived)}")
    if dropped := dropped_categories(champion.schema, challenger.schema):
        said = _listed([f"{name} ({_listed(list(values))})" for name, values in dropped.items()])
        parts.append(f"categories that are now taken as missing: {said}")
    if champion.target.kind == challenger.target.kind and champion.target.classes != challenger.target.classes:
        ours, theirs = set(challenger.target.classes), set(champion.target.classes)
        news = [("now also answers", ours - theirs), ("never answers any more", theirs - ours)]
        parts += [f"{words} {_listed([repr(name) for name in sorted(names)])}" for words, names in news if names]
    n = len(champion.schema.features)
    return Gate("schema_compatibility", "fail" if broken else "pass", "; ".join(parts), len(broken), threshold=0, n=n)


def breaking(champion: Interface, challenger: Interface) -> dict[str, str]:
    """What refuses requests that the champion answers: the feature, join key or field, and what became of it."""
    kinds = champion.target.kind, challenger.target.kind
    if kinds[0] != kinds[1]:
        return {"target": f"was {kinds[0]} and is {kinds[1]}: callers get other answers"}
    by_key = champion.definitions is not None
    if by_key and challenger.definitions is None:
        return {"request": "is by key for the champion, and the challenger reads no features by key"}
    before = {feature.name: feature for feature in champion.schema.features}
    after = {feature.name: feature for feature in challenger.schema.features}
    if by_key:
        sent, wanted = _inputs(champion), _inputs(challenger)
    else:
        sent, wanted = dict.fromkeys(before, "feature"), dict.fromkeys(after, "feature")
    changes = {name: f"is a new {kind}: callers do not send it" for name, kind in wanted.items() if name not in sent}
    changes |= {
        name: f"is no {kind} any more: a row that has it is refused"
        for name, kind in sent.items()
        if name not in wanted
    }
    for name in before.keys() & after.keys():
        if refused := narrower(before[name], after[name]):
            changes[name] = "; ".join(refused)
    return dict(sorted(changes.items()))


def dropped_categories(champion: InputSchema, challenger: InputSchema) -> dict[str, tuple[str, ...]]:
    """Categories that the champion was trained on and the challenger was not, by feature."""
    after = {feature.name: feature for feature in challenger.features}
    dropped = {}
    for feature in champion.features:
        now = after.get(feature.name)
        if isinstance(feature, CategoricalFeature) and isinstance(now, CategoricalFeature):
            dropped[feature.name] = tuple(value for value in feature.categories if value not in set(now.categories))
    return {name: values for name, values in dropped.items() if values}


def narrower(before: Feature, after: Feature) -> list[str]:
    """Why some value that a server takes for ``before`` is refused for ``after``; empty if all are taken.

    What ``schema.yaml`` only warns of refuses nothing. Two patterns are compared as text: another one may refuse.
    """
    said = ["may not be null any more"] if _nullable(before) and not _nullable(after) else []
    old, new = _hard(before), _hard(after)
    if old.values is not None:  # few enough to try each
        return said + _refused_values(old.values, compile_check(after))
    was, now = _wire(before), _wire(after)
    if was != now and (was, now) != ("whole number", "number"):
        return [f"was a {was} and is a {now}"]
    if new.values is not None:
        said.append("must be one of a list now")
    if (new.low, new.high) != (-math.inf, math.inf) and (old.low < new.low or old.high > new.high):
        said.append(f"must lie in [{new.low:g}, {new.high:g}] now, lay in [{old.low:g}, {old.high:g}]")
    if new.pattern is not None and new.pattern != old.pattern:
        said.append(f"must match {new.pattern} now")
    if old.shortest < new.shortest or old.longest > new.longest:
        said.append(f"must have {new.shortest:g} to {new.longest:g} characters now")
    return said


@dataclass(frozen=True)
class _Hard:
    """What a server refuses, beside null and other types."""

    low: float = -math.inf
    high: float = math.inf
    values: tuple[Any, ...] | None = None
    pattern: str | None = None
    shortest: float = 0
    longest: float = math.inf


def _hard(feature: Feature) -> _Hard:
    declared = feature.declared
    if declared is None or declared.severity == "warn":
        return _Hard(values=(False, True)) if _is_truth(declared) else _Hard()
    values = declared.values if declared.min_known is None else None
    if values is None and _is_truth(declared):
        values = (False, True)
    return _Hard(
        low=declared.min if isinstance(declared.min, float) else -math.inf,
        high=declared.max if isinstance(declared.max, float) else math.inf,
        values=values,
        pattern=declared.pattern,
        shortest=declared.min_length or 0,
        longest=math.inf if declared.max_length is None else declared.max_length,
    )


def _is_truth(declared: Column | None) -> bool:
    return declared is not None and declared.kind == "bool"


def _refused_values(values: tuple[Any, ...], check: Callable[[Any], bool]) -> list[str]:
    refused = []
    for value in values:
        try:
            check(value)
        except RequestError:
            refused.append(repr(value))
    return [f"refuses {_listed(refused)} now"] if refused else []


def _wire(feature: Feature) -> str:
    """What a value is in JSON."""
    kind = None if feature.declared is None else feature.declared.kind
    if feature.kind == "numeric":
        return "whole number" if kind == "int" else "number"
    return "truth value" if kind == "bool" else "text"


def _nullable(feature: Feature) -> bool:
    return feature.nullable and (feature.declared is None or feature.declared.nullable)


def _inputs(interface: Interface) -> dict[str, str]:
    """What a request by key must carry, and what each is: entities, and the fields that features are made of."""
    found: dict[str, str] = {}
    for name in interface.schema.names:
        definition = (interface.definitions or {}).get(name, {})
        sources = [str(source).partition(":") for source in definition.get("sources", ())]
        fields = [field for origin, _, field in sources if origin == "request" and field != _GIVEN]
        found |= dict.fromkeys(fields, "field of the request")
        found |= dict.fromkeys(definition.get("entity", ()), "entity to be found by")
    return found


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
