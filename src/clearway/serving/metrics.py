"""``GET /metrics``: what the workers of a server count, added up, in the text format of Prometheus.

Requests only add to plain numbers. Each worker tells the others its numbers as families; who is asked adds them up and
puts them into words.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from clearway.histogram import Histogram
from clearway.target import Target

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from clearway.feature_store.online import FeatureReader, ViewCounts
    from clearway.serving.models import Models

__all__ = [
    "CONTENT_TYPE",
    "Answered",
    "Family",
    "Loads",
    "Traffic",
    "add_up",
    "describe_readers",
    "of_models",
    "of_routing",
    "render",
]

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds."""
ADMIN_REFUSED = "clearway_admin_refused"
SHARE_BOUNDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Of scores that are probabilities."""
KEPT_VERSIONS = 20
"""Versions that are no longer served, but whose numbers a worker goes on telling."""
KEPT_SAMPLES = 400
"""Label sets of one family that outlive the workers that counted them."""


def score_bounds(target: Target) -> tuple[float, ...]:
    """Bounds of a histogram of scores: even steps from 0 to 1, or half spreads around the centre of the labels."""
    if target.centre is None or target.spread is None:
        return SHARE_BOUNDS
    return tuple(target.centre + 0.5 * step * target.spread for step in range(-8, 9))


class Answered:
    """Rows that one version was asked in one role: by status, how long they took in seconds, and their scores."""

    __slots__ = ("latency", "scores", "statuses")

    def __init__(self, target: Target) -> None:
        self.statuses: dict[int, int] = {}
        self.latency = Histogram(LATENCY_BOUNDS)
        self.scores = Histogram(score_bounds(target))

    def add(self, status: int, seconds: float, rows: int, scores: Sequence[float]) -> None:
        """Count the rows of one request, which took it so long; ``scores`` of all of them, or none was answered."""
        self.statuses[status] = self.statuses.get(status, 0) + rows
        self.latency.add(seconds, rows)
        self.scores.add_all(scores)


class Traffic:
    """What one worker was asked: answers by HTTP status, and rows by version and role."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latency = Histogram(LATENCY_BOUNDS)
        self.answered: dict[tuple[str, str], Answered] = {}
        """By digest and role."""

    def add(self, status: int, seconds: float) -> None:
        """Count one answer to a request."""
        self.statuses[status] += 1
        self.latency.add(seconds)

    def of(self, digest: str, role: str, target: Target) -> Answered:
        """Where the rows of a version in a role are counted."""
        found = self.answered.get((digest, role))
        if found is None:
            found = self.answered[digest, role] = Answered(target)
        return found

    def forget(self, live: Collection[str]) -> None:
        """Drop what was counted of all but the latest versions that are no longer ``live``."""
        past = list(dict.fromkeys(digest for digest, _ in self.answered if digest not in live))
        for digest in past[:-KEPT_VERSIONS]:
            self.answered = {key: one for key, one in self.answered.items() if key[0] != digest}


@dataclass
class Loads:
    """How often hosted models were loaded, unloaded, and could not be loaded."""

    done: int = 0
    undone: int = 0
    failed: int = 0


class Sample(NamedTuple):
    """The numbers of one label set: one, or the bounds of a histogram, its counts, and the sum of its values."""

    labels: tuple[str, ...]
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass
class Family:
    """One metric of one worker, or of several added up."""

    name: str
    kind: Literal["counter", "gauge", "least", "histogram"]
    """``least`` is a gauge of which the least of all workers counts, not the sum."""
    help: str
    labels: tuple[str, ...] = ()
    samples: list[Sample] = field(default_factory=list)

    def add(self, labels: Sequence[str], value: float) -> Self:
        """Add a number."""
        self.samples.append(Sample(tuple(labels), value))
        return self

    def add_histogram(self, labels: Sequence[str], histogram: Histogram) -> Self:
        """Add a histogram."""
        self.samples.append(Sample(tuple(labels), histogram.total, histogram.bounds, tuple(histogram.counts)))
        return self

    def plain(self) -> list[Any]:
        """As JSON can hold it."""
        return [self.name, self.kind, self.help, self.labels, [[*sample] for sample in self.samples]]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Self:
        """What :meth:`plain` made, from JSON."""
        name, kind, text, labels, samples = plain
        read = [Sample(tuple(each[0]), each[1], tuple(each[2]), tuple(each[3])) for each in samples]
        return cls(name, kind, text, tuple(labels), read)


def add_up(families: Iterable[Family], *, kinds: Collection[str] | None = None) -> list[Family]:
    """Families of one name as one, label set by label set, in the order in which they first come.

    ``kinds`` leaves out the families of other kinds: what outlives a worker is what it counted.
    """
    made: dict[str, Family] = {}
    found: dict[str, dict[tuple[str, ...], Sample]] = {}
    for family in families:
        if kinds is not None and family.kind not in kinds:
            continue
        if family.name not in made:
            made[family.name] = Family(family.name, family.kind, family.help, family.labels)
            found[family.name] = {}
        samples = found[family.name]
        for sample in family.samples:
            before = samples.get(sample.labels)
            samples[sample.labels] = sample if before is None else _together(before, sample, family.kind)
    for name, family in made.items():
        family.samples = list(found[name].values())
    return list(made.values())


def _together(one: Sample, other: Sample, kind: str) -> Sample:
    if kind == "least":
        return min(one, other, key=lambda sample: sample.value)
    if one.bounds != other.bounds:  # a worker of another day: the first goes on
        return one
    counts = tuple(mine + theirs for mine, theirs in zip(one.counts, other.counts, strict=True))
    return Sample(one.labels, one.value + other.value, one.bounds, counts)


def render(families: Iterable[Family]) -> bytes:
    """The text of all metrics, each name once."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Collected(Collector):
        def collect(self) -> "Iterator[Metric]":
            return map(_metric, families)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry)


def _metric(family: Family) -> "Metric":
    from prometheus_client import metrics_core

    if family.kind == "histogram":
        histogram = metrics_core.HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for sample in family.samples:
            read = Histogram(sample.bounds)
            read.counts = list(sample.counts)
            histogram.add_metric(sample.labels, read.cumulative(), sample.value)
        return histogram
    kind = metrics_core.CounterMetricFamily if family.kind == "counter" else metrics_core.GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for sample in family.samples:
        metric.add_metric(sample.labels, sample.value)
    return metric


def of_traffic(traffic: Traffic) -> Iterator[Family]:
    """What was asked."""
    requests = Family(
        "clearway_requests",
        "counter",
        "Answers to requests for predictions, in every protocol, by HTTP status.",
        ("status",),
    )
    for status, count in sorted(traffic.statuses.items()):
        requests.add([str(status)], count)
    yield requests
    latency = Family("clearway_request_seconds", "histogram", "Time to answer a request for predictions, in seconds.")
    yield latency.add_histogram([], traffic.latency)
    who = ("version", "role")
    rows = Family(
        "clearway_predictions",
        "counter",
        "Rows that a version was asked, by its role (stable, canary, tester) and the HTTP status of their answer.",
        (*who, "status"),
    )
    seconds = Family("clearway_prediction_seconds", "histogram", "Time until a row was answered, in seconds.", who)
    scores = Family("clearway_prediction_score", "histogram", "Scores answered.", who)
    for key, answered in traffic.answered.items():
        for status, count in sorted(answered.statuses.items()):
            rows.add([*key, str(status)], count)
        seconds.add_histogram(key, answered.latency)
        scores.add_histogram(key, answered.scores)
    yield from (rows, seconds, scores)


def of_log(written: int, dropped: int) -> Iterator[Family]:
    """What became of the records of the prediction log."""
    yield Family("clearway_log_written", "counter", "Predictions written to the log.").add([], written)
    yield Family("clearway_log_dropped", "counter", "Predictions that the log lost.").add([], dropped)


def of_admin(refused: int) -> Iterator[Family]:
    """Who knocked at ``/admin``."""
    yield Family(ADMIN_REFUSED, "counter", "Requests to /admin that were not let in.").add([], refused)


def of_features(readers: "Sequence[FeatureReader]") -> Iterator[Family]:
    """What was looked up by key; nothing where nothing is.

    ``readers`` are those of the versions that are served, stable first; one that serves two stands there twice.
    ``more`` comes last.
    """
    readers = list({id(reader): reader for reader in readers}.values())
    if not readers:
        return
    lookups = Family(
        "clearway_feature_lookups",
        "counter",
        "Views read for one question each, by what became of it: present, missing (no such row), stale (older than "
        "the TTL), future (known only after the question), last_known (read before the store went down).",
        ("view", "outcome"),
    )
    fields = Family("clearway_feature_fields", "counter", "Values of features looked up.", ("view",))
    nulls = Family("clearway_feature_null_fields", "counter", "Values of features looked up that are null.", ("view",))
    ages = Family(
        "clearway_feature_age_seconds",
        "histogram",
        "Freshness: from when a value became known to its question, in seconds.",
        ("view",),
    )
    for view, counts in _counts(readers).items():
        for outcome, count in sorted(counts.outcomes.items()):
            lookups.add([view, outcome.value], count)
        fields.add([view], counts.fields)
        nulls.add([view], counts.nulls)
        ages.add_histogram([view], counts.ages)
    yield from (lookups, fields, nulls, ages)
    latency = Family(
        "clearway_feature_store_seconds",
        "histogram",
        "Time of the online store to answer one batch of keys, in seconds.",
    )
    yield latency.add_histogram([], reduce(Histogram.plus, (reader.store.latency for reader in readers)))
    up = Family("clearway_feature_store_up", "least", "1 while the online store answers for every version, else 0.")
    yield up.add([], all(reader.store.health.up for reader in readers))
    failures = Family(
        "clearway_feature_store_failures", "counter", "Batches that the online store failed to answer in time."
    )
    yield failures.add([], sum(reader.store.failures for reader in readers))
    hits = Family("clearway_feature_cache_hits", "counter", "Keys answered from memory, within max_staleness_ms.")
    yield hits.add([], sum(reader.cache_hits for reader in readers))
    entries = Family("clearway_feature_cache_entries", "gauge", "Keys kept in memory.")
    yield entries.add([], sum(reader.cache_entries for reader in readers))


def of_routing(without_key: int, shadow: Mapping[str, Any] | None) -> Iterator[Family]:
    """How requests are routed, and what became of a shadow's copies.

    ``shadow`` is what :meth:`clearway.serving.shadow.ShadowCopies.describe` says.
    """
    unkeyed = Family("clearway_rows_without_routing_key", "counter", "Rows that were routed by their id, or by chance.")
    yield unkeyed.add([], without_key)
    if shadow is None:
        return
    copies = Family(
        "clearway_shadow_copies",
        "counter",
        "Copies of answered rows by what became of them: answered, failed (the shadow refused or failed at them), "
        "dropped (the queue was full, or the shadow was lost).",
        ("version", "outcome"),
    )
    outcomes = {"answered": shadow["answered"] - shadow["failed"], "failed": shadow["failed"]}
    for outcome, count in {**outcomes, "dropped": shadow["dropped"]}.items():
        copies.add([shadow["digest"], outcome], count)
    yield copies
    up = Family("clearway_shadow_up", "least", "1 while every worker's shadow process answers, else 0.", ("version",))
    yield up.add([shadow["digest"]], float(shadow["state"] == "up"))


def of_models(models: "Models") -> Iterator[Family]:
    """What hosted models were asked, and how often they were loaded."""
    requests = Family(
        "clearway_model_requests",
        "counter",
        "Answers to requests for predictions of a hosted model, in every protocol, by HTTP status.",
        ("model", "status"),
    )
    latency = Family(
        "clearway_model_request_seconds",
        "histogram",
        "Time to answer a request for predictions of a hosted model, in seconds.",
        ("model",),
    )
    for name, traffic in models.traffic.items():
        if not traffic.statuses:
            continue
        for status, count in sorted(traffic.statuses.items()):
            requests.add([name, str(status)], count)
        latency.add_histogram([name], traffic.latency)
    yield from (requests, latency)
    loads = models.loads
    yield Family("clearway_models_loaded", "gauge", "Hosted models in memory.").add([], len(models.loaded))
    yield Family("clearway_model_loads", "counter", "Times that a hosted model was loaded.").add([], loads.done)
    yield Family("clearway_model_unloads", "counter", "Times that one was unloaded.").add([], loads.undone)
    yield Family("clearway_model_load_failures", "counter", "Times that one could not be.").add([], loads.failed)


def describe_readers(readers: "Sequence[FeatureReader]", online_state: str | None) -> dict[str, Any]:
    """What ``GET /`` says of the feature store.

    Parameters
    ----------
    readers : sequence of at least one
        As of :func:`of_features`. If only some are without the store, the status is ``degraded``.
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
