"""``GET /metrics``: what the server counts, in the text format of Prometheus.

Requests only add to plain numbers; these are put into words when they are asked for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from clearway.histogram import Histogram

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader, ViewCounts
    from clearway.serving.models import Models

__all__ = ["CONTENT_TYPE", "Loads", "Traffic", "describe_readers", "render"]

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


@dataclass
class Loads:
    """How often hosted models were loaded, unloaded, and could not be loaded."""

    done: int = 0
    undone: int = 0
    failed: int = 0


def render(traffic: Traffic, readers: "Sequence[FeatureReader]", models: "Models | None" = None) -> bytes:
    """The text of all metrics; those of features only where they are read by key, those of hosted models if there are.

    ``readers`` are those of the versions that are served, stable first; one that serves two stands there twice.
    """
    registry = CollectorRegistry(auto_describe=False)
    hosted = () if models is None or not models.traffic else _of_models(models)
    distinct = list({id(reader): reader for reader in readers}.values())
    registry.register(_Collected([*_of_traffic(traffic), *(_of_features(distinct) if distinct else ()), *hosted]))
    return generate_latest(registry)


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


def _of_models(models: "Models") -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "clearway_model_requests", "Answers to POST /models/NAME/predict by HTTP status.", labels=["model", "status"]
    )
    latency = HistogramMetricFamily(
        "clearway_model_request_seconds", "Time to answer POST /models/NAME/predict, in seconds.", labels=["model"]
    )
    for name, traffic in models.traffic.items():
        if not traffic.statuses:
            continue
        for status, count in sorted(traffic.statuses.items()):
            requests.add_metric([name, str(status)], count)
        latency.add_metric([name], traffic.latency.cumulative(), traffic.latency.total)
    yield from (requests, latency)
    yield GaugeMetricFamily("clearway_models_loaded", "Hosted models in memory.", len(models.loaded))
    yield CounterMetricFamily("clearway_model_loads", "Times that a hosted model was loaded.", models.loads.done)
    yield CounterMetricFamily("clearway_model_unloads", "Times that one was unloaded.", models.loads.undone)
    yield CounterMetricFamily("clearway_model_load_failures", "Times that one could not be.", models.loads.failed)


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
