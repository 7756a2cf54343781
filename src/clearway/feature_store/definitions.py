"""What a project defines of its features, and the hash of each definition that a bundle records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from posixpath import normpath
from typing import Any, Literal

import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, RequestSource
from feast.on_demand_feature_view import OnDemandFeatureView
from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.code_hash import code_sha256
from clearway.files import canonical_json, sha256_bytes
from clearway.params import describe
from clearway.project import Tables

FEATURE_TABLES = "data/feature_tables"
"""Where the line builds the rows of each view, from the project's folder (:class:`clearway.workspace.Workspace`)."""
EventBuilder = Callable[[Tables], pd.DataFrame]
"""From the raw tables to the rows of one feature view: its join keys, its timestamp field (when each row became known,
UTC), its fields; a row holds until the next one of its key, or until the view's TTL has passed."""


@dataclass(frozen=True)
class Definitions:
    """What a project package defines with Feast; offered by :meth:`clearway.project.StoredProject.definitions`."""

    entities: tuple[Entity, ...]
    views: tuple[FeatureView, ...]
    """Stored features. Each view's source is a ``FileSource`` of ``data/feature_tables/<view>.parquet``."""
    events: Mapping[str, EventBuilder]
    """How the rows of each view are made, by name of the view."""
    request: RequestSource | None = None
    """What a caller knows and sends beside the join keys. A field named ``prediction_time`` (Float64, seconds since
    1970) is given by the line itself. An on-demand view may name a source of fewer of these fields as its own."""
    on_demand: tuple[OnDemandFeatureView, ...] = ()
    """Features made of the request and of stored features, by functions of lists (``mode="python"``)."""


class FeatureDefinition(BaseModel):
    """What one feature of a model is, and the hash of all that decides its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["stored", "on_demand", "request"]
    """Read from a view; computed when it is asked for; or passed through as the caller sent it."""
    view: str | None
    entity: tuple[str, ...]
    """The entities by whose keys it is found; empty if it is found by none."""
    dtype: str
    """Feast's name of the type."""
    ttl_seconds: float | None
    """How long a value holds at most; None without an end."""
    owner: str
    description: str
    sources: tuple[str, ...]
    """The view's table; or ``request:<field>`` and ``<view>:<field>`` that it is computed from."""
    sha256: str
    """Of the declaration, without owner and description, and of the code that makes the rows of its view, or computes
    it (see :mod:`clearway.feature_store.code_hash`). What a caller sends is not hashed: it is not computed here."""


def on_demand_view(
    name: str,
    function: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    schema: Sequence[Field],
    sources: Sequence[Any],
    *,
    owner: str = "",
    description: str = "",
) -> OnDemandFeatureView:
    """An on-demand view of a function from lists to lists.

    The function is given a dict of lists, of the request's fields and of the stored features that are its sources (None
    where missing), and returns one of its features, each as long.

    Feast's own decorator keeps the function's source text in the registry and runs that, without the module it came
    from; and when it is applied, it calls the function with made-up values and refuses fields that have descriptions.
    Here the registry holds an import of the function, so that whoever runs it runs the project's own code; its fields
    are those of ``schema``, and their descriptions, which Feast would lose, become tags of the view.
    """
    importable = "<" not in function.__qualname__
    imported = f"from {function.__module__} import {function.__name__}"
    view = OnDemandFeatureView(
        name=name,
        udf=function,
        udf_string=imported if importable else f"# {function.__qualname__}",  # Feast then unpickles it
        mode="python",
        schema=[Field(name=field.name, dtype=field.dtype) for field in schema],
        sources=list(sources),
        owner=owner,
        description=description,
        tags={field.name: field.description for field in schema},
    )
    view.infer_features = lambda: None
    return view


def describe_features(
    definitions: Definitions, numeric: Sequence[str], categorical: Sequence[str]
) -> dict[str, FeatureDefinition]:
    """What each feature of a model is, by name, numeric ones first.

    Raises
    ------
    UsageError
        A feature is defined nowhere or twice, or is categorical and no text, or numeric and text; a view has no event
        builder, or an event builder no view; a view's source is not its feature table, or renames columns; or a TTL is
        negative.
    clearway.errors.ClearwayError
        The source of a function cannot be read.
    """
    _check_events(definitions)
    stored = {
        (view.name, field.name): feature
        for view in definitions.views
        for field, feature in zip(view.features, _stored(view, definitions), strict=True)
    }
    found: dict[str, list[FeatureDefinition]] = {}
    sent = {field.name for field in definitions.request.schema} if definitions.request is not None else set()
    computed = [feature for view in definitions.on_demand for feature in _on_demand(view, stored, sent)]
    for feature in (*stored.values(), *computed, *_passed_through(definitions)):
        found.setdefault(feature.name, []).append(feature)
    described = {}
    for name in (*numeric, *categorical):
        places = found.get(name, [])
        if not places:
            raise UsageError(
                f"feature {name} of the project is in none of its definitions(): no field of a view "
                f"({', '.join(view.name for view in definitions.views)}), no output of an on-demand view, no join key "
                "and no field of the request; define it, or take it out of numeric and categorical"
            )
        if len(places) > 1:
            where = " and ".join(str(place.view or "the request") for place in places)
            raise UsageError(f"feature {name} of the project is defined {len(places)} times, in {where}: rename one")
        described[name] = places[0]
    _check_types(described, numeric, categorical)
    return described


def definitions_hash(described: Mapping[str, FeatureDefinition]) -> str:
    """One hash of all features' hashes, whatever their order."""
    return sha256_bytes(canonical_json({name: feature.sha256 for name, feature in described.items()}))


def service_name(project: str, sha256: str) -> str:
    """Name of the feature service that serves exactly the definitions with this hash."""
    return f"{project}_{sha256[:12]}"


def parse_definitions(recorded: Mapping[str, Mapping[str, Any]], owner: str) -> dict[str, FeatureDefinition]:
    """The definitions that a bundle recorded (:func:`clearway.model.recorded_definitions`), by feature.

    Raises
    ------
    ClearwayError
        One of them is none; names ``owner`` (whose they are), feature and field.
    """
    parsed = {}
    for name, definition in recorded.items():
        try:
            parsed[name] = FeatureDefinition.model_validate(definition)
        except ValidationError as error:
            raise ClearwayError(f"{owner}: features.json: definitions.{name}: {describe(error)}") from None
    return parsed


def differences(recorded: Mapping[str, FeatureDefinition], own: Mapping[str, FeatureDefinition]) -> tuple[str, ...]:
    """What differs between a bundle's definitions and one's own: one phrase per differing feature, none if they agree.

    A feature that the bundle does not know is no difference: its model does without.

    Examples of phrases: ``temp: ttl 21600 s, the bundle has 3600 s``; ``dewp: is not defined here``.
    """
    phrases = []
    for name, feature in recorded.items():
        if name not in own:
            phrases.append(f"{name}: is not defined here")
        elif feature.sha256 != own[name].sha256:
            phrases.append(f"{name}: {_difference(feature, own[name])}")
    return tuple(phrases)


def _difference(recorded: FeatureDefinition, own: FeatureDefinition) -> str:
    said: dict[str, tuple[str, Callable[[Any], str]]] = {
        "kind": ("kind", str),
        "view": ("view", lambda view: view or "none"),
        "entity": ("entity", lambda names: ", ".join(names) or "none"),
        "dtype": ("type", str),
        "ttl_seconds": ("ttl", lambda seconds: "none" if seconds is None else f"{seconds:g} s"),
        "sources": ("sources", ", ".join),
    }
    parts = [
        f"{word} {text(getattr(own, field))}, the bundle has {text(getattr(recorded, field))}"
        for field, (word, text) in said.items()
        if getattr(own, field) != getattr(recorded, field)
    ]
    if parts:
        return "; ".join(parts)
    if own.kind == "request":
        return "its declaration differs from the bundle's"
    return "the code that computes it differs from the bundle's, or its source's columns"


def _check_events(definitions: Definitions) -> None:
    views = {view.name for view in definitions.views}
    for name in views - set(definitions.events):
        raise UsageError(f"feature view {name} has no event builder: add it to events in the project's definitions()")
    for name in set(definitions.events) - views:
        raise UsageError(f"definitions().events names {name!r}, but there is no feature view of that name")
    names = [*(view.name for view in definitions.views), *(view.name for view in definitions.on_demand)]
    for name in {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{names.count(name)} feature views are named {name}: each needs a name of its own")


def _check_types(
    described: Mapping[str, FeatureDefinition], numeric: Sequence[str], categorical: Sequence[str]
) -> None:
    """What is learnt as text must be sent and stored as text: a number or a truth value is written in several ways."""
    for name in categorical:
        if described[name].dtype != "String":
            raise UsageError(
                f"feature {name} of the project is categorical, but its dtype in {_where(described[name])} is "
                f"{described[name].dtype}: make it String, or list it in numeric"
            )
    for name in numeric:
        if described[name].dtype == "String":
            raise UsageError(
                f"feature {name} of the project is numeric, but its dtype in {_where(described[name])} is String: give "
                "it a number's dtype, or list it in categorical"
            )


def _where(feature: FeatureDefinition) -> str:
    if feature.view is not None:
        return f"view {feature.view}"
    return f"entity {', '.join(feature.entity)}" if feature.entity else "the request"


def _check_source(view: FeatureView) -> None:
    """Training reads what the line has built, under the names that its builder gave: no other file, no other names."""
    source, table = view.batch_source, f"{FEATURE_TABLES}/{view.name}.parquet"
    if not isinstance(source, FileSource):
        raise UsageError(
            f"feature view {view.name}: its source is {type(source).__name__}: make it FileSource({table!r})"
        )
    if normpath(source.path) != table:
        raise UsageError(
            f"feature view {view.name}: its source reads {source.path}, but its rows are built to {table}: make that "
            "its path"
        )
    if source.field_mapping:
        raise UsageError(
            f"feature view {view.name}: its source has field_mapping {dict(source.field_mapping)}: take it out, and "
            "let the event builder name its columns as the view does"
        )
    if view.ttl is not None and view.ttl < timedelta(0):
        raise UsageError(
            f"feature view {view.name}: ttl is {view.ttl.total_seconds():g} s: it must be positive, or zero for no end"
        )


def _stored(view: FeatureView, definitions: Definitions) -> list[FeatureDefinition]:
    """Of each field of a view, in order."""
    entities = {entity.name: entity for entity in definitions.entities}
    missing = [name for name in view.entities if name not in entities]
    if missing:
        raise UsageError(f"feature view {view.name}: entity {', '.join(missing)} is not among definitions().entities")
    _check_source(view)
    source = view.batch_source
    ttl = view.ttl.total_seconds() if view.ttl else None  # Feast's zero is no end
    code = code_sha256(definitions.events[view.name])
    of_view = {
        "view": view.name,
        "keys": [[name, entities[name].join_key, entities[name].value_type.name] for name in view.entities],
        "ttl": ttl,
        "source": [
            type(source).__name__,
            source.name,
            source.timestamp_field,
            source.created_timestamp_column,
            {},  # no column is renamed
        ],
        "code": code,
    }
    return [
        FeatureDefinition(
            name=field.name,
            kind="stored",
            view=view.name,
            entity=tuple(view.entities),
            dtype=str(field.dtype),
            ttl_seconds=ttl,
            owner=view.owner,
            description=field.description,
            sources=(source.name,),
            sha256=_hash({**of_view, "name": field.name, "dtype": str(field.dtype)}),
        )
        for field in view.features
    ]


def _on_demand(
    view: OnDemandFeatureView, stored: Mapping[tuple[str, str], FeatureDefinition], sent: set[str]
) -> list[FeatureDefinition]:
    """Of each output of an on-demand view, in order. What its sources are made of decides its value too."""
    function = getattr(view.feature_transformation, "udf", None)
    if view.mode != "python" or view.singleton or function is None:
        raise UsageError(
            f"on-demand view {view.name}: mode = {view.mode!r}, singleton = {view.singleton}: it must be a function of "
            'lists (mode="python", singleton=False)'
        )
    sources: dict[str, str] = {}
    entities: list[str] = []
    for request in view.source_request_sources.values():
        sources |= {f"request:{field.name}": str(field.dtype) for field in request.schema}
        unsent = [field.name for field in request.schema if field.name not in sent]
        if unsent:
            raise UsageError(f"on-demand view {view.name}: {', '.join(unsent)} is no field of definitions().request")
    for projection in view.source_feature_view_projections.values():
        for field in projection.features:
            feature = stored.get((projection.name, field.name))
            if feature is None:
                raise UsageError(
                    f"on-demand view {view.name}: its source {projection.name}:{field.name} is no field of a view in "
                    "definitions().views"
                )
            sources[f"{projection.name}:{field.name}"] = feature.sha256
            entities += [name for name in feature.entity if name not in entities]
    of_view = {"view": view.name, "sources": sources, "code": code_sha256(function)}
    return [
        FeatureDefinition(
            name=field.name,
            kind="on_demand",
            view=view.name,
            entity=tuple(entities),
            dtype=str(field.dtype),
            ttl_seconds=None,
            owner=view.owner,
            description=view.tags.get(field.name, field.description),
            sources=tuple(sources),
            sha256=_hash({**of_view, "name": field.name, "dtype": str(field.dtype)}),
        )
        for field in view.features
    ]


def _passed_through(definitions: Definitions) -> list[FeatureDefinition]:
    """Join keys and fields of the request: features as they are sent."""
    requests = [] if definitions.request is None else [definitions.request]
    features = [
        _passed(field.name, (), str(field.dtype), request.owner, field.description, (f"request:{field.name}",))
        for request in requests
        for field in request.schema
    ]
    keys = [
        _passed(
            entity.join_key,
            (entity.name,),
            entity.value_type.name.capitalize(),
            entity.owner,
            entity.description,
            (f"request:{entity.join_key}",),
        )
        for entity in definitions.entities
    ]
    return [*features, *keys]


def _passed(
    name: str, entity: tuple[str, ...], dtype: str, owner: str, description: str, sources: tuple[str, ...]
) -> FeatureDefinition:
    return FeatureDefinition(
        name=name,
        kind="request",
        view=None,
        entity=entity,
        dtype=dtype,
        ttl_seconds=None,
        owner=owner,
        description=description,
        sources=sources,
        sha256=_hash({"name": name, "entity": list(entity), "dtype": dtype}),
    )


def _hash(declared: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(declared))
