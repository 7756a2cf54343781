"""The page that says what features there are: read back from a registry through Feast's own interface."""

import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feast import FeatureStore, RepoConfig

from clearway.feature_store.definitions import FeatureDefinition, describe_features
from clearway.feature_store.store import apply_definitions, feature_service
from clearway.online_record import EMBEDDED
from clearway.project import StoredProject

OPENING = """# Features

Every feature that the project's definitions register, as Feast's registry tells it. Made by `make docs`; a test keeps
the two the same. A feature that the model `{name}` is trained on is marked with ●. Its feature service is named
`{name}_` and the first 12 characters of the hash of all its features' definitions: each bundle names the one it was
trained from (`features.json`). How stored rows are made: `definitions().events` of the project package.
"""


def render_catalogue(name: str, project: StoredProject) -> str:
    """The page of a project, Markdown. ``name`` is that of the project in params.yaml.

    Raises
    ------
    UsageError
        A definition is wrong.
    """
    definitions = project.definitions()
    described = describe_features(definitions, project.numeric, project.categorical)
    with TemporaryDirectory(prefix="clearway-") as folder:
        store = _empty_store(name, Path(folder))
        apply_definitions(store, definitions, feature_service(name, definitions))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entities = {each.name: each for each in store.list_entities()}
            views = {each.name: each for each in store.list_feature_views()}
            on_demand = {each.name: each for each in store.list_on_demand_feature_views()}
            served = [each.name for each in store.get_feature_service(name).feature_view_projections]
    lines = [OPENING.format(name=name), "## Entities", ""]
    lines += _table(
        ("entity", "join key", "type", "owner", "description"),
        [
            (f"`{each.name}`", f"`{each.join_key}`", each.value_type.name.capitalize(), each.owner, each.description)
            for each in sorted((entities[each.name] for each in definitions.entities), key=lambda each: str(each.name))
        ],
    )
    for view in sorted(views):
        lines += _stored(views[view], entities, described, view in served)
    for view in sorted(on_demand):
        lines += _on_demand(on_demand[view], described, view in served)
    lines += _request(described)
    return "\n".join(lines).rstrip() + "\n"


def _empty_store(name: str, folder: Path) -> FeatureStore:
    config = RepoConfig(
        project=name.replace("-", "_"),
        provider="local",
        registry={"path": str(folder / "registry.db")},
        offline_store={"type": "clearway.feature_store.offline.PointInTimeOfflineStore"},
        online_store={"type": EMBEDDED, "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    return FeatureStore(config=config, repo_path=str(folder))


def _stored(
    view: Any, entities: Mapping[str, Any], described: Mapping[str, FeatureDefinition], served: bool
) -> list[str]:
    keys = ", ".join(f"{name} (`{entities[name].join_key}`)" for name in view.entities)
    source = view.batch_source
    facts = [
        f"- Entity: {keys}",
        f"- TTL: {_ttl(view.ttl)}",
        f"- Owner: {view.owner or 'nobody'}",
        f"- Lineage: `{source.name}` (known from `{source.timestamp_field}` on) → `{view.name}`"
        f"{' → the feature service' if served else ''}",
    ]
    return ["", f"## {view.name}", "", view.description, "", *facts, "", *_fields(view, described)]


def _on_demand(view: Any, described: Mapping[str, FeatureDefinition], served: bool) -> list[str]:
    sources = [
        *(f"`request:{field.name}`" for each in _sorted(view.source_request_sources) for field in each.schema),
        *(
            f"`{each.name}:{field.name}`"
            for each in _sorted(view.source_feature_view_projections)
            for field in each.features
        ),
    ]
    facts = [
        "- Entity: none; computed when it is asked for",
        f"- Owner: {view.owner or 'nobody'}",
        f"- Lineage: {', '.join(sources)} → `{view.name}`{' → the feature service' if served else ''}",
    ]
    return ["", f"## {view.name} (on demand)", "", view.description, "", *facts, "", *_fields(view, described)]


def _fields(view: Any, described: Mapping[str, FeatureDefinition]) -> list[str]:
    return _table(
        ("feature", "model", "type", "description"),
        [
            (
                f"`{field.name}`",
                "●" if field.name in described and described[field.name].view == view.name else "",
                str(field.dtype),
                view.tags.get(field.name, field.description),
            )
            for field in view.features
        ],
    )


def _request(described: Mapping[str, FeatureDefinition]) -> list[str]:
    """Features that the model takes as they are sent."""
    sent = [feature for feature in described.values() if feature.kind == "request"]
    if not sent:
        return []
    rows = [(f"`{each.name}`", "●", each.dtype, each.owner, each.description) for each in sent]
    return ["", "## As sent with the request", "", *_table(("feature", "model", "type", "owner", "description"), rows)]


def _sorted(sources: Mapping[str, Any]) -> list[Any]:
    return [sources[name] for name in sorted(sources)]


def _ttl(ttl: timedelta | None) -> str:
    if not ttl:
        return "none: a row holds until the next one"
    hours = ttl.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours > 48 else f"{hours:g} hours"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
