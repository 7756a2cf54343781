"""Open Feast's feature store as ``feature_store.yaml`` says, and register a project's definitions in it."""

import inspect
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureService, FeatureStore, RepoConfig
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigError, load_repo_config
from filelock import FileLock, Timeout
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store.definitions import Definitions, definitions_hash, describe_features, service_name
from clearway.params import Params
from clearway.project import StoredProject
from clearway.strict_yaml import read_mapping
from clearway.workspace import Workspace

LOCK_SECONDS = 120.0
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")
_SECRET = re.compile("user|passw|secret|token", re.IGNORECASE)
"""In the name of a key whose value is not shown."""
_HOST = re.compile(r"[A-Za-z0-9._-]+:([0-9]{1,5})")
_SETTING = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_USER_IN_URL = re.compile(r"://([^/@:]*):?([^/@]*)@")
HIDDEN = "***"


def open_store(params: Params, workspace: Workspace, *, repo: Path | None = None) -> FeatureStore:
    """Feast's store, configured by the file that ``params.feature_store`` names.

    Variables of the environment (``${NAME}``) are expanded. Relative paths are relative to ``repo``, the project
    folder by default; the folders of an embedded registry and online store are made. Nothing is connected to yet.

    Raises
    ------
    UsageError
        The file is missing or wrong, or a variable it names is not set; names file, key and value as it is written.
    """
    path = workspace.root / params.feature_store
    written = read_mapping(path, "params.yaml: feature_store must name Feast's configuration")
    for key, text in _texts(written):
        for braced, bare in _VARIABLE.findall(text):
            if (braced or bare) not in os.environ:
                raise UsageError(f"{path}: {key} = {text!r}: ${braced or bare} is not set: set it in the environment")
    folder = repo or workspace.root
    config = _load(path, folder, written)
    _make_folders(config, folder)
    return FeatureStore(config=config, repo_path=str(folder))


def register(store: FeatureStore, params: Params, project: StoredProject) -> FeatureService:
    """:func:`apply_definitions` of a project, with the service that is named after their hash; that service.

    Raises
    ------
    UsageError, ClearwayError
        As :func:`apply_definitions`, and as :func:`clearway.feature_store.definitions.describe_features`.
    """
    definitions = project.definitions()
    described = describe_features(definitions, project.numeric, project.categorical)
    service = feature_service(service_name(params.project.name, definitions_hash(described)), definitions)
    apply_definitions(store, definitions, service)
    return service


def feature_service(name: str, definitions: Definitions) -> FeatureService:
    """The service ``name``: every feature that ``definitions`` holds, stored and on demand."""
    return FeatureService(name=name, features=[*definitions.views, *definitions.on_demand])


def apply_definitions(store: FeatureStore, definitions: Definitions, service: FeatureService) -> None:
    """Register ``definitions`` and ``service``; views, on-demand views and entities no longer defined are deleted.

    Services of earlier model versions stay: each bundle names its own.

    Raises
    ------
    UsageError
        Feast refuses a definition.
    ClearwayError
        Another process is registering, and does not end.
    """
    with _registry_lock(store), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gone = _no_longer_defined(store, definitions)
        for name in _on_demand_no_longer_defined(store, definitions):
            store.registry.delete_feature_view(name, store.project)
        wanted = [*definitions.entities, *definitions.views, *definitions.on_demand, service]
        try:
            store.apply(wanted, objects_to_delete=gone, partial=False)
        except (FeastError, ValueError, TypeError) as error:
            raise UsageError(f"the feature definitions are refused by Feast: {_line(error)}") from error


def _no_longer_defined(store: FeatureStore, definitions: Definitions) -> list[Any]:
    """Entities and views of the registry, as it is now on disk, that have no place in ``definitions``.

    Raises
    ------
    ClearwayError
        Feast was stopped while it wrote the registry.
    """
    try:
        store.refresh_registry()
        entities, views = store.list_entities(), store.list_feature_views()
    except DecodeError:
        path = registry_file(store.config, Path(store.repo_path))
        raise ClearwayError(f"{path} is not a whole registry: delete it and run scripts/build_features.py") from None
    names = {DUMMY_ENTITY_NAME, *(entity.name for entity in definitions.entities)}
    gone = [entity for entity in entities if entity.name not in names]
    return [*gone, *(view for view in views if view.name not in {own.name for own in definitions.views})]


def _on_demand_no_longer_defined(store: FeatureStore, definitions: Definitions) -> list[str]:
    """Names of on-demand views of the registry to delete: without a place in ``definitions``, or unreadable.

    To compare a view with its earlier self Feast imports the earlier one's function, which may be gone or renamed.
    """
    kept = {view.name for view in definitions.on_demand}
    gone = []
    for proto in store.registry.proto().on_demand_feature_views:
        if proto.spec.project == store.project:
            try:
                OnDemandFeatureView.from_proto(proto)
                readable = True
            except Exception:  # importing a function may raise anything
                readable = False
            if proto.spec.name not in kept or not readable:
                gone.append(proto.spec.name)
    return gone


def _load(path: Path, folder: Path, written: dict[str, Any]) -> RepoConfig:
    """Feast's reading of the file. Errors quote values as they are written: an expanded one may hold a password."""
    try:
        config = load_repo_config(folder, path)
        # Feast reads these only when they are first used
        _ = config.registry, config.offline_store, config.online_store
    except FeastConfigError as error:
        cause = error.__context__
        detail = _describe(cause, written) if isinstance(cause, ValidationError) else "it is no configuration of Feast"
        raise UsageError(f"{path}: {detail}") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {_describe(error, written)}") from None
    except yaml.YAMLError as error:
        names = ", ".join(sorted({b or n for _, text in _texts(written) for b, n in _VARIABLE.findall(text)}))
        where = getattr(error, "problem", None) or "syntax"
        raise UsageError(f"{path} is not valid YAML once {names} is expanded ({where}): quote the value") from None
    except (FeastError, KeyError, TypeError, ValueError) as error:
        cause = error.__cause__
        raise UsageError(f"{path}: {_line(error)}" + (f" ({_line(cause)})" if cause else "")) from None
    if is_redis(config):
        _check_redis(path, config)
        # Feast would delete the rows of other projects whose names end in this one's: a whole fill deletes exactly
        config.online_store.full_scan_for_deletion = False
    return config


def is_redis(config: RepoConfig) -> bool:
    """Whether the online store is Feast's for Redis, in any of its forms."""
    return hasattr(config.online_store, "redis_type")


def without_secrets(config: RepoConfig, text: str) -> str:
    """``text`` without the user names, passwords, secrets and tokens that the online store is configured with."""
    hidden: set[str] = set()
    for key, value in _texts(config.online_store.model_dump()):
        if _SECRET.search(key):
            hidden.add(value)
        for part in value.split(","):
            setting = _SETTING.fullmatch(part)
            if setting and _SECRET.search(setting[1]):
                hidden |= {setting[2], setting[2].strip('"')}  # Feast reads a text in quotes as JSON
        for user, password in _USER_IN_URL.findall(value):
            hidden |= {user, password}
    hidden |= {escaped for secret in hidden for escaped in (repr(secret)[1:-1], repr(f'"{secret}')[2:-1])}
    # the longest first: one may hold another
    for secret in sorted(hidden - {""}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _check_redis(path: Path, config: RepoConfig) -> None:
    """Refuse an address that Feast would misread; never show it: what is misplaced may be a password.

    Raises
    ------
    UsageError
        Names the part by its number.
    """
    online, version = config.online_store, config.entity_key_serialization_version
    if version != 3:
        raise UsageError(f"{path}: entity_key_serialization_version = {version}: in a Redis it must be 3")
    key = f"{path}: online_store.connection_string"
    parts = online.connection_string.split(",")
    hosts = 0
    for number, part in enumerate(parts, 1):
        where = f"{key}: part {number} of {len(parts)} between commas (not shown: it may hold a password)"
        setting = _SETTING.fullmatch(part)
        host = _HOST.fullmatch(part)
        if setting is None and (host is None or not 1 <= int(host[1]) <= 65535):
            raise UsageError(
                f"{where} must be host:port with a port of 1 to 65535, or name=value, such as username=… or "
                "password=…, which cannot hold a comma"
            )
        if setting is not None and online.redis_type == "redis" and setting[1] not in _redis_settings():
            raise UsageError(
                f"{where} is no setting of a Redis client: correct its name, such as db, username, password"
            )
        hosts += setting is None
    if not hosts:
        raise UsageError(f"{key} has no host:port: write host:port,name=value,…")


def _redis_settings() -> frozenset[str]:
    from redis import Redis

    return frozenset(inspect.signature(Redis).parameters)


def _describe(error: ValidationError, written: dict[str, Any]) -> str:
    """One line: each key with its value as written, and what is wrong with it."""
    lines = []
    for problem in error.errors():
        keys = [str(part) for part in problem["loc"]]
        if keys and keys[0] not in written:  # Feast checks the sections by themselves, and leaves their names out
            holds = [name for name, section in written.items() if isinstance(section, dict) and keys[0] in section]
            keys = [*holds[:1], *keys]
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {'.'.join(keys)}: remove it or correct its name")
        else:
            value = _written(written, keys)
            lines.append(f"{'.'.join(keys) or 'content'}{value}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _written(content: Any, keys: list[str]) -> str:
    """`` = value`` of the key as the file has it; empty where it has none."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return ""
        content = content[key]
    return "" if isinstance(content, dict) else f" = {content!r}"


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of the file with its key."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)


def _make_folders(config: RepoConfig, folder: Path) -> None:
    for local in (registry_file(config, folder), getattr(config.online_store, "path", None)):
        if local:
            (folder / local).parent.mkdir(parents=True, exist_ok=True)


def registry_file(config: RepoConfig, folder: Path) -> Path | None:
    """Where the registry lies if it is a local file."""
    registry = config.registry
    if registry.registry_type != "file" or "://" in registry.path:
        return None
    return folder / str(registry.path)


@contextmanager
def _registry_lock(store: FeatureStore) -> Iterator[None]:
    """Feast reads the registry, changes it in memory and writes it back without a lock of its own."""
    path = registry_file(store.config, Path(store.repo_path))
    if path is None:
        yield
        return
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise ClearwayError(f"another process holds {path}.lock for over {LOCK_SECONDS:.0f} s: end it") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
