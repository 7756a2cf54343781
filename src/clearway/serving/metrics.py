"""``GET /metrics``: what the server counts, in the text format of Prometheus.

Requests only add to plain numbers; these are put into words when they are asked for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from clearway.histogram import Histogram

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader, ViewCounts

__all__ = ["CONTENT_TYPE", "Traffic", "describe_readers", "of_routing", "render"]

LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds."""


class Traffic:
    """Answers to ``POST /predict``: by status, and how long they took in seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latency = Histogram(LATENCY_BOUNDS)

    def add(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        self.latency.add(seconds)


def render(traffic: Traffic, readers: "Sequence[FeatureReader]", more: Sequence[Metric] = ()) -> bytes:
    """The text of all metrics; those of features only where they are read by key.

    ``readers`` are those of the versions that are served, stable first; one that serves two stands there twice.
    ``more`` comes last.
    """
    registry = CollectorRegistry(auto_describe=False)
    distinct = list({id(reader): reader for reader in readers}.values())
    registry.register(_Collected([*_of_traffic(traffic), *(_of_features(distinct) if distinct else ()), *more]))
    return generate_latest(registry)


def of_routing(without_key: int, shadow: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Metrics of how requests are routed, and of what became of a shadow's copies.

    ``shadow`` is what :meth:`clearway.serving.shadow.ShadowCopies.describe` says.
    """
    unkeyed = CounterMetricFamily(
        "clearway_rows_without_routing_key", "Rows that were routed by their id, or by chance."
    )
    unkeyed.add_metric([], without_key)
    yield unkeyed
    if shadow is None:
        return
    copies = CounterMetricFamily(
        "clearway_shadow_copies",
        "Copies of answered rows by what became of them: answered, failed (the shadow refused or failed at them), "
        "dropped (the queue was full, or the shadow was lost).",
        labels=["version", "outcome"],
    )
    outcomes = {"answered": shadow["answered"] - shadow["failed"], "failed": shadow["failed"]}
    for outcome, count in {**outcomes, "dropped": shadow["dropped"]}.items():
        copies.add_metric([shadow["digest"], outcome], count)
    yield copies
    up = GaugeMetricFamily("clearway_shadow_up", "1 while the shadow's process answers, else 0.", labels=["version"])
    up.add_metric([shadow["digest"]], float(shadow["state"] == "up"))
    yield up


def describe_readers(readers: "Sequence[FeatureReader]", online_state: str | None) -> dict[str, Any]:
    """What ``GET /`` says of the feature store.

    Parameters
    ----------
    readers : sequence of at least one
        As of :func:`render`. If only some are without the store, the status is ``degraded``.
    online_state
        What the last fill left.
    """
    distinct = list({id(reader): reader for reader in readers}.values())
    down = [reader for reader in distinct if not reader.store.health.up]
    health = (down or distinct)[0].store.health
    return {
        "status": "up" if not down else "down" if len(down) == len(distinct) else "degraded",
        "since": health.since.isoformat(),
        "last_error": health.error,
        "online_store": online_state,
        "on_failure": distinct[0].settings.on_failure,
        "failures": sum(reader.store.failures for reader in distinct),
        "cache_entries": sum(reader.cache_entries for reader in distinct),
        "cache_hits": sum(reader.cache_hits for reader in distinct),
        "outcomes": {
            view: {outcome.value: count for outcome, count in counts.outcomes.items()}
            for view, counts in _counts(distinct).items()
        },
    }


def _counts(readers: "Sequence[FeatureReader]") -> "dict[str, ViewCounts]":
    """By view; readers of one server count together."""
    return {view: counts for reader in readers for view, counts in reader.counts.items()}


class _Collected(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _of_traffic(traffic: Traffic) -> Iterator[Metric]:
    requests = CounterMetricFamily("clearway_requests", "Answers to POST /predict by HTTP status.", labels=["status"])
    for status, count in sorted(traffic.statuses.items()):
        requests.add_metric([str(status)], count)
    yield requests
    latency = HistogramMetricFamily("clearway_request_seconds", "Time to answer POST /predict, in seconds.")
    latency.add_metric([], traffic.latency.cumulative(), traffic.latency.total)
    yield latency


def _of_features(readers: "Sequence[FeatureReader]") -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "clearway_feature_lookups",
        "Views read for one question each, by what became of it: present, missing (no such row), stale (older than "
        "the TTL), future (known only after the question), last_known (read before the store went down).",
        labels=["view", "outcome"],
    )
    fields = CounterMetricFamily("clearway_feature_fields", "Values of features looked up.", labels=["view"])
    nulls = CounterMetricFamily(
        "clearway_feature_null_fields", "Values of features looked up that are null.", labels=["view"]
    )
    ages = HistogramMetricFamily(
        "clearway_feature_age_seconds",
        "Freshness: from when a value became known to its question, in seconds.",
        labels=["view"],
    )
    for view, counts in _counts(readers).items():
        for outcome, count in sorted(counts.outcomes.items()):
            lookups.add_metric([view, outcome.value], count)
        fields.add_metric([view], counts.fields)
        nulls.add_metric([view], counts.nulls)
        ages.add_metric([view], counts.ages.cumulative(), counts.ages.total)
    yield from (lookups, fields, nulls, ages)
    latency = HistogramMetricFamily(
        "clearway_feature_store_seconds", "Time of the online store to answer one batch of keys, in seconds."
    )
    taken = reduce(Histogram.plus, (reader.store.latency for reader in readers))
    latency.add_metric([], taken.cumulative(), taken.total)
    yield latency
    yield GaugeMetricFamily(
        "clearway_feature_store_up",
        "1 while the online store answers for every version, else 0.",
        all(reader.store.health.up for reader in readers),
    )
    yield CounterMetricFamily(
        "clearway_feature_store_failures",
        "Batches that the online store failed to answer in time.",
        sum(reader.store.failures for reader in readers),
    )
    yield CounterMetricFamily(
        "clearway_feature_cache_hits",
        "Keys answered from memory, within max_staleness_ms.",
        sum(reader.cache_hits for reader in readers),
    )
    yield GaugeMetricFamily(
        "clearway_feature_cache_entries", "Keys kept in memory.", sum(reader.cache_entries for reader in readers)
    )
