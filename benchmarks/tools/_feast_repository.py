"""A Feast repository of the project ``sensors``, as Feast's own documentation makes one.

Whoever imports this finds the package, and has Feast imported as the line imports it.
"""

import sys
from pathlib import Path

import yaml

import clearway.feature_store  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "projects"))

OFFLINE = {
    "clearway": {"type": "clearway.feature_store.offline.PointInTimeOfflineStore"},
    "duckdb": {"type": "duckdb"},
    "dask": {"type": "dask"},
}


def write(folder: Path, offline: str, online: dict[str, str]) -> None:
    """Write ``feature_store.yaml``; the registry is a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "project": "sensors",
        "provider": "local",
        "entity_key_serialization_version": 3,
        "registry": f"registry_{offline}.db",
        "offline_store": OFFLINE[offline],
        "online_store": online,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
