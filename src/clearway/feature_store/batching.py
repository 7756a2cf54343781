"""The online store behind one reader: what is asked at the same time is read at once, and a slow store blocks nobody.

Feast's cost is per call. So while one batch is read, everything asked meanwhile becomes the next: one ``online_read``
per view with the distinct keys of all callers. A thread reads, so that the event loop only waits for futures; but to
wake one takes longer than to read a few keys. So Redis is read by the event loop, which waits for its answers as it
does for its callers, and the embedded store too, a few keys at once, while that store is quick.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from clearway.errors import ClearwayError
from clearway.feature_store.embedded import EmbeddedOnlineStore
from clearway.feature_store.redis_clients import LoopClient, fail_fast
from clearway.feature_store.store import without_secrets
from clearway.histogram import Histogram
from clearway.instants import micros
from clearway.pace import Pace

if TYPE_CHECKING:
    from feast.infra.provider import Provider

FIRST_PROBE_SECONDS, PROBE_SECONDS = 0.05, 0.5
"""How soon a store that went down is asked whether it answers again, and, after doubling each time, how often."""
IDLE_SECONDS = 1.0
"""How often a store that nobody asks is asked whether it still answers."""
KEYS_AT_ONCE = 1000
"""Most keys of one read: who asks for many must not keep the others waiting for all of them."""
FEW_KEYS = 16
"""Most keys that the event loop reads itself."""
LATENCY_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds."""
STALL_SECONDS = 0.02
"""A deadline noticed this long after it passed says that this process did not run, not that the store is slow."""
MAX_CAUSE = 300

Key = tuple[str, ...]
"""The values of a view's join keys."""
Place = tuple[int, Key]
"""Number of a view, and a key of it."""

logger = logging.getLogger("clearway.features")


class StoreUnavailable(ClearwayError):  # noqa: N818  # it is no fault of the line
    """The online store did not answer, and nothing may stand in for its answer. Names the view and the cause."""


class StoredView(NamedTuple):
    """One feature view as it is read."""

    view: FeatureView
    name: str
    join_keys: tuple[str, ...]
    fields: tuple[str, ...]
    """Those that are needed."""
    ttl: int | None
    """Microseconds; None: a value holds until the next one."""


class Row(NamedTuple):
    """What the store said of one key."""

    values: tuple[Any, ...] | None
    """In the order of the view's ``fields``, null is None; None: the store has no such row."""
    event: int
    """When the values became known: microseconds since 1970."""
    read: float
    """When the store was asked: seconds of :func:`time.monotonic`."""


class _Ask(Enum):
    """What the thread is told besides what to read."""

    NOW = "ask the store whether it answers again"


@dataclass(slots=True, eq=False)
class _Batch:
    """What is asked at once, by any number of callers."""

    loop: asyncio.AbstractEventLoop
    places: dict[Place, None] = field(default_factory=dict)
    waiting: list["asyncio.Future[Mapping[Place, Row]]"] = field(default_factory=list)
    due: float = 0.0
    """Until when its callers wait once it is read, by the loop's clock."""
    deadline: asyncio.TimerHandle | None = None
    excused: bool = False
    """It was given more time once, because this process did not run."""
    answer: Mapping[Place, Row] | StoreUnavailable | None = None
    """Set by the reader."""
    took: float | None = None
    """Seconds that the store took for it, set by the reader; None if it failed."""
    reading: "asyncio.Task[None] | None" = None
    """Where the event loop reads it."""


@dataclass(frozen=True)
class Health:
    """Whether the store answers."""

    up: bool
    since: datetime
    error: str | None = None
    """One line: the view and the cause."""


class BatchingStore:
    """Reads views of Feast's online store in batches, in a thread of its own or, from Redis, on the event loop.

    After a failure, or when an answer takes longer than the timeout, the store counts as down: callers are refused at
    once, and the thread asks now and then whether it answers again, in time.

    Parameters
    ----------
    store
        Feast's store; from now on read by this thread and the event loop only.
    views
        What can be asked.
    timeout
        Longest wait of a caller for the store, in seconds.
    """

    def __init__(self, store: FeatureStore, views: Sequence[StoredView], timeout: float) -> None:
        self.health = Health(True, datetime.now(UTC))
        self.failures = 0
        """Batches that failed or took too long; of the questions that only try the store, those that found it down."""
        self.latency = Histogram(LATENCY_BOUNDS)
        """Seconds that the store took for one batch, of those that succeeded."""
        self._config = store.config
        self._provider: Provider = store._get_provider()
        self._views = tuple(views)
        self._timeout = timeout
        self._open: deque[_Batch] = deque()
        self._busy = False
        self._asked = ""
        """The view that was asked last."""
        self._pace = Pace()
        online = self._provider.online_store
        self._embedded = online if isinstance(online, EmbeddedOnlineStore) else None
        self._queue: queue.SimpleQueue[_Batch | _Ask | None] = queue.SimpleQueue()
        self._asked_once, self._closed = threading.Event(), threading.Event()
        self._reading_since: float | None = None
        hang_up = fail_fast(online, self._config.online_store, timeout)
        self._client = None if hang_up is None else LoopClient(online, self._config.online_store)
        threading.Thread(target=self._run, name="feature-store", daemon=True).start()
        if hang_up is not None:
            threading.Thread(target=self._watch, args=(hang_up,), name="feature-store-watch", daemon=True).start()

    def wait(self) -> None:
        """Wait until the store has answered for the first time, or not within the timeout: then it is down."""
        if not self._asked_once.wait(self._timeout):
            self._mark_down(f"view {self._asked}: no answer within timeout_ms = {self._timeout * 1e3:g}")

    def read_at_once(self, places: Collection[Place]) -> Mapping[Place, Row] | None:
        """The rows at ``places``, read without a wait; None where there is something to wait for. On the event loop."""
        if not places:
            return {}
        if self._embedded is None or not self._pace.quick or not self.health.up or len(places) > FEW_KEYS:
            return None
        self._embedded.wait_for_no_lock()
        started = perf_counter()
        try:
            rows = self._read(places, self._fetch)
        except Exception:  # the thread will meet it too, and say so
            self._pace = Pace()
            return None
        self._count(perf_counter() - started)
        return rows

    async def ask(self, places: Iterable[Place]) -> Mapping[Place, Row]:
        """The rows at ``places``, and perhaps of others. On the event loop only.

        Raises
        ------
        StoreUnavailable
            The store is down, failed, or took longer than the timeout.
        """
        if not self.health.up:
            raise self._refusal()
        waiting = self._join(places)
        if len(waiting) == 1:
            return await waiting[0]
        return {place: row for answer in await asyncio.gather(*waiting) for place, row in answer.items()}

    def close(self) -> None:
        """Let the thread end, when it has answered what was asked."""
        self._queue.put(None)
        self._closed.set()
        if self._client is not None:
            self._client.close()

    # on the event loop

    def _join(self, places: Iterable[Place]) -> "list[asyncio.Future[Mapping[Place, Row]]]":
        """Add the places to what is asked next, and to as many batches after it as they need."""
        joined: list[_Batch] = []
        for place in places:
            if not self._open or len(self._open[-1].places) >= KEYS_AT_ONCE:
                self._begin()
            batch = self._open[-1]
            batch.places[place] = None
            if not joined or joined[-1] is not batch:
                joined.append(batch)
        waiting = [batch.loop.create_future() for batch in joined]
        for batch, future in zip(joined, waiting, strict=True):
            batch.waiting.append(future)
        return waiting

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._open and not self._busy:
            loop.call_soon(self._submit)  # after all that is ready to run now: it may ask too
        self._open.append(_Batch(loop))

    def _submit(self) -> None:
        if self._open and not self._busy:
            batch = self._open.popleft()
            self._busy = True
            self._wait_for(batch)
            if self._client is None:
                self._queue.put(batch)
            else:
                batch.reading = batch.loop.create_task(self._read_on_loop(batch, self._client))

    async def _read_on_loop(self, batch: _Batch, client: LoopClient) -> None:
        started = perf_counter()
        rows: dict[Place, Row] = {}
        name = self._views[0].name
        try:
            await client.prepare()
            for number, keys in _by_view(batch.places):
                view, asked = self._views[number], monotonic()
                name = self._asked = view.name
                # a list of its own: Feast's Redis store adds to it
                found = await self._provider.online_read_async(
                    self._config, view.view, _entity_keys(view, keys), list(view.fields)
                )
                rows.update(_rows(view, number, keys, found, asked))
        except asyncio.CancelledError:
            if batch.answer is None:  # the server ends
                raise
            self._queue.put(_Ask.NOW)  # it took too long, and its callers know
        except Exception as error:  # each store raises types of its own
            self._asked = name  # the thread may have asked meanwhile
            batch.answer = self._failure(error)
            self._queue.put(_Ask.NOW)
        else:
            batch.answer, batch.took = rows, perf_counter() - started
        self._delivered(batch)

    def _count(self, seconds: float) -> None:
        self.latency.add(seconds)
        self._pace.add(seconds)

    def _delivered(self, batch: _Batch) -> None:
        self._busy = False
        if batch.took is not None:
            self._count(batch.took)
        self._settle(batch)
        self._submit()

    def _wait_for(self, batch: _Batch) -> None:
        batch.due = batch.loop.time() + self._timeout
        batch.deadline = batch.loop.call_at(batch.due, self._expire, batch)

    def _expire(self, batch: _Batch) -> None:
        if batch.answer is None and not batch.excused and batch.loop.time() - batch.due > STALL_SECONDS:
            batch.excused = True
            self._wait_for(batch)
            return
        if batch.answer is None:
            self._mark_down(f"view {self._asked}: no answer within timeout_ms = {self._timeout * 1e3:g}")
            self.failures += 1
            batch.answer = self._refusal()
            if batch.reading is not None:
                batch.reading.cancel()
        self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        """Tell the callers of ``batch``; after a failure also those that come next, who would only fail too."""
        if batch.deadline is not None:
            batch.deadline.cancel()
        waiting, batch.waiting = batch.waiting, []
        if isinstance(batch.answer, StoreUnavailable):
            waiting += [future for following in self._open for future in following.waiting]
            self._open.clear()
        for future in waiting:
            if future.done():  # its caller has left
                continue
            if isinstance(batch.answer, StoreUnavailable):
                future.set_exception(StoreUnavailable(str(batch.answer)))
            elif batch.answer is not None:
                future.set_result(batch.answer)

    # in the thread

    def _run(self) -> None:
        self._probe()
        self._asked_once.set()
        pause = FIRST_PROBE_SECONDS
        while True:
            try:
                batch = self._queue.get(timeout=IDLE_SECONDS if self.health.up else pause)
            except queue.Empty:
                self._probe()
                pause = min(2 * pause, PROBE_SECONDS)
                continue
            if batch is None:
                return
            pause = FIRST_PROBE_SECONDS
            if isinstance(batch, _Ask):  # it failed those who asked it on the event loop
                continue
            answer = self._answer(batch)
            if batch.answer is None:
                batch.answer = answer
            elif not isinstance(answer, StoreUnavailable):  # too late for its callers, but perhaps it is quick again
                self._probe()
            try:
                batch.loop.call_soon_threadsafe(self._delivered, batch)
            except RuntimeError:  # the loop is closed: the server has stopped
                return

    def _answer(self, batch: _Batch) -> Mapping[Place, Row] | StoreUnavailable:
        started = perf_counter()
        try:
            rows = self._read(batch.places, self._read_view)
        except Exception as error:  # each store raises types of its own
            return self._failure(error)
        batch.took = perf_counter() - started
        return rows

    def _read_view(self, number: int, keys: Sequence[Key]) -> dict[Place, Row]:
        """As :meth:`_fetch`, for those who watch this thread."""
        self._asked = self._views[number].name
        self._reading_since = monotonic()
        try:
            return self._fetch(number, keys)
        finally:
            self._reading_since = None

    def _probe(self) -> None:
        """Ask every view for a key that nobody has."""
        started = perf_counter()
        for number, view in enumerate(self._views):
            try:
                self._read_view(number, [("",) * len(view.join_keys)])
            except Exception as error:
                self.failures += self.health.up
                self._mark_down(f"view {view.name}: {self._cause(error)}")
                return
        took = perf_counter() - started
        if took > self._timeout:
            self.failures += self.health.up
            self._mark_down(f"it takes {took * 1e3:.0f} ms to answer, longer than timeout_ms = {self._timeout * 1e3:g}")
            return
        if self.health.up:
            return
        down = (datetime.now(UTC) - self.health.since).total_seconds()
        self.health = Health(True, datetime.now(UTC), self.health.error)
        logger.warning("the feature store answers again, after %.1f s", down)

    # in a thread of its own

    def _watch(self, hang_up: Callable[[], object]) -> None:
        """End a read whose answer trickles in: the timeout of a connection holds for each piece of it only."""
        while not self._closed.wait(self._timeout):
            since = self._reading_since
            if since is not None and monotonic() - since > 2 * self._timeout:
                hang_up()

    # anywhere

    def _read(
        self, places: Iterable[Place], read_view: Callable[[int, Sequence[Key]], dict[Place, Row]]
    ) -> Mapping[Place, Row]:
        wanted = _by_view(places)
        rows: dict[Place, Row] = {}
        # one view is of one state anyhow, and each statement more lets the other threads go first
        with self._one_state() if len(wanted) > 1 else nullcontext():
            for number, keys in wanted:
                rows.update(read_view(number, keys))
        return rows

    def _one_state(self) -> AbstractContextManager[Any]:
        """In which all views are read as they were at one moment, where the store can do that."""
        return nullcontext() if self._embedded is None else self._embedded.reading(self._config)

    def _fetch(self, number: int, keys: Sequence[Key]) -> dict[Place, Row]:
        view, asked = self._views[number], monotonic()
        # a list of its own: Feast's Redis store adds to it
        found = self._provider.online_read(self._config, view.view, _entity_keys(view, keys), list(view.fields))
        return _rows(view, number, keys, found, asked)

    def _failure(self, error: Exception) -> StoreUnavailable:
        """What its callers are told of a batch that failed; the store counts as down."""
        self.failures += 1
        self._mark_down(f"view {self._asked}: {self._cause(error)}")
        return self._refusal()

    def _mark_down(self, error: str) -> None:
        if self.health.up:
            self.health = Health(False, datetime.now(UTC), error)
            logger.error("the feature store is down: %s", error)
        elif self.health.error != error:
            self.health = Health(False, self.health.since, error)

    def _refusal(self) -> StoreUnavailable:
        return StoreUnavailable(f"the feature store does not answer: {self.health.error}")

    def _cause(self, error: Exception) -> str:
        return " ".join(without_secrets(self._config, f"{type(error).__name__}: {error}").split())[:MAX_CAUSE]


def _by_view(places: Iterable[Place]) -> list[tuple[int, list[Key]]]:
    """Numbers of the views, in the order in which they are first asked, each with its keys."""
    wanted: dict[int, list[Key]] = {}
    for number, key in places:
        wanted.setdefault(number, []).append(key)
    return list(wanted.items())


def _entity_keys(view: StoredView, keys: Iterable[Key]) -> list[EntityKey]:
    return [EntityKey(join_keys=view.join_keys, entity_values=[Value(string_val=part) for part in key]) for key in keys]


def _rows(view: StoredView, number: int, keys: Sequence[Key], found: Any, asked: float) -> dict[Place, Row]:
    """What Feast found for each key."""
    rows = [read_row(view.fields, event, values, asked) for event, values in found]
    return dict(zip([(number, key) for key in keys], rows, strict=True))


def read_row(fields: Sequence[str], event: datetime | None, values: Mapping[str, Value] | None, read: float) -> Row:
    """What Feast's ``online_read`` says of one key, in plain values."""
    if not values or event is None:
        return Row(None, 0, read)
    known = micros(event)
    plain = tuple([plain_value(values.get(name)) for name in fields])
    if known == 0 and all(value is None for value in plain):  # so Feast's Redis store says that there is no row
        return Row(None, 0, read)
    return Row(plain, known, read)


def plain_value(value: Value | None) -> Any:
    """A value of Feast's as a plain one; null and NaN are None."""
    kind = None if value is None else value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    plain = getattr(value, kind)
    return plain if plain == plain else None
