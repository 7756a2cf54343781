"""Rows for an empty Redis, as Feast's own store writes them there, encoded a column at a time.

Feast makes a proto of each value, serialises it, and hashes the name of each feature anew for each row: most of the
time of a whole fill.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat

from feast import FeatureStore
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import _versioned_fv_name
from google.protobuf.timestamp_pb2 import Timestamp

from clearway.feature_store.event_rows import EventRows

SECOND = 1_000_000
"""In microseconds."""


def write_into_empty(store: FeatureStore, events: EventRows, rows: Sequence[int]) -> None:
    """Write rows of keys that the store does not have: nothing is asked first, as with Feast's ``skip_dedup``."""
    config = store.config
    settings = config.online_store
    client = store._get_provider().online_store._get_client(settings)
    view, project = _versioned_fv_name(events.view, config), config.project.encode()
    keys = [key + project for key in events.key_bytes(rows, config.entity_key_serialization_version)]
    columns: list[Iterable[str | bytes]] = [repeat(f"_ts:{view}"), map(_timestamp, events.known(rows))]
    for field in events.view.features:
        columns += [repeat(_mmh3(f"{view}:{field.name}")), events.value_bytes(field.name, rows)]
    with client.pipeline(transaction=False) as pipe:
        for key, *content in zip(keys, *columns, strict=False):  # what repeats has no end
            pipe.execute_command("HSET", key, *content)
            if settings.key_ttl_seconds:
                pipe.expire(key, settings.key_ttl_seconds)
        pipe.execute()


@lru_cache(maxsize=65_536)
def _timestamp(known: int) -> bytes:
    """Microseconds since 1970 as a serialised proto; of many rows the times are few."""
    seconds, rest = divmod(known, SECOND)
    encoded: bytes = Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString()
    return encoded
