"""Traffic from the source's own later rows: each asked once per rollout, over HTTP, as fast as the server answers.

Where features come from an online store, requests carry keys only, and the store is moved along with the time of the
questions: each is answered when the store holds exactly what was known then.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import numpy as np
import orjson
import pandas as pd
import uvloop
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.columns import ENTITY, PREDICTION_TIME, RESERVED, ROW_ID
from clearway.errors import ClearwayError, UsageError
from clearway.features import NoQuestionsError, replay_events, replay_questions
from clearway.files import read_json, write_json
from clearway.ledger import Entry, read_ledger
from clearway.params import Params, describe
from clearway.project import Project, StoredProject
from clearway.targets import target_of
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.materialise import OnlineFeed

REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class ReplayResult:
    """What came of one :meth:`Replay.send`. Latencies are the caller's, in milliseconds; NaN if nothing was sent."""

    sent: int
    ok: int
    client_errors: int
    server_errors: int
    seconds: float
    p50_ms: float
    p95_ms: float
    exhausted: bool
    """Whether every row there is has now been asked in this rollout."""

    @property
    def per_second(self) -> float:
        return self.sent / self.seconds if self.seconds else 0.0


class Cursor(BaseModel):
    """``replay.json``: how many rows the rollout that began with entry ``rollout`` has used up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollout: int
    asked: int = Field(ge=0)


class Replay:
    """Asks an environment's server the questions that its world asks after ``as_of``, in time order.

    A cursor in ``var/environments/<env>/replay.json`` gives every row to one call of :meth:`send` only. It starts anew
    when a rollout begins. Rows are claimed before they are sent: a replay that is killed skips rows, and never asks
    one twice.

    The online store of a :class:`~clearway.project.StoredProject` is first brought to the time of the first question,
    forwards or back, whatever another replay left in it. Then it is moved on from tick to tick: the questions of a
    tick are sent only when every earlier one is answered and the store holds what was known at their time.

    Parameters
    ----------
    params, workspace, project
        The project; its rows come from :func:`clearway.features.replay_questions`, what the store is told from
        :func:`clearway.features.replay_events`.
    environment
        Whose server is asked.

    Raises
    ------
    NoQuestionsError
        The source has no rows after ``as_of``.
    """

    def __init__(
        self,
        params: Params,
        workspace: Workspace,
        environment: str,
        project: Project | StoredProject | None = None,
    ) -> None:
        params.environment(environment)
        self._params = params
        self._environment = environment
        self._workspace = workspace
        self._folder = workspace.environment(environment)
        self._connections = params.replay.connections
        self._project = project or _project(params, workspace)
        self._store: _MovedStore | None = None
        questions = replay_questions(params, workspace, self._project)
        if questions.empty:
            raise NoQuestionsError(f"no traffic to replay: the source has no rows after as_of = {params.as_of}")
        self._traffic = Traffic(questions, cycles=params.replay.cycles)

    def remaining(self) -> int:
        """How many requests this rollout has left."""
        return len(self._traffic) - self._cursor(self._rollout())

    def send(self, count: int, progress: Callable[[int], None] | None = None) -> ReplayResult:
        """Ask the next ``count`` rows, or as many as are left.

        Parameters
        ----------
        count
            Requests to send.
        progress
            Called with the number of answers so far, about twenty times a second.

        Raises
        ------
        ClearwayError
            No server runs here, it went away, another replay is running, or the online store cannot be moved.
        UsageError
            ``count`` is below 1.
        """
        if count < 1:
            raise UsageError(f"requests = {count}: must be at least 1")
        target = target_of(self._params, self._workspace, self._environment)
        target.pull()
        server = target.find()
        if server is None:
            raise ClearwayError(
                f"no server runs for {self._environment}: start it with scripts/deploy.py --env {self._environment}"
            )
        with self._alone():
            rollout = self._rollout()
            first = self._cursor(rollout)
            end = min(first + count, len(self._traffic))
            store = self._moved_store() if end > first else None
            ticks = self._traffic.ticks(first, end, store.known if store else None)
            if store is not None:
                store.begin(_time(ticks[0]))
            self._claim(rollout, end)
            run = _Run(self._traffic.bodies(first, end), ticks, self._connections, store)
            started = time.perf_counter()
            try:
                uvloop.run(run.send(f"{server.url}/predict", progress, target.tls))
            finally:
                self._claim(rollout, first + run.started)
            seconds = time.perf_counter() - started
        if run.failure is not None:
            raise ClearwayError(
                f"the server of {self._environment} at {server.url} went away after {run.answered} of {end - first} "
                f"requests ({run.failure}): see its log"
            )
        p50, p95 = np.percentile(run.latencies, [50, 95]) if run.latencies else (np.nan, np.nan)
        return ReplayResult(
            sent=run.answered,
            ok=run.ok,
            client_errors=run.client_errors,
            server_errors=run.server_errors,
            seconds=seconds,
            p50_ms=float(p50),
            p95_ms=float(p95),
            exhausted=end >= len(self._traffic),
        )

    def _rollout(self) -> int:
        return rollout_revision(read_ledger(self._folder, self._environment))

    def _cursor(self, rollout: int) -> int:
        path = self._folder / "replay.json"
        if not path.exists():
            return 0
        try:
            cursor = Cursor.model_validate(read_json(path))
        except ValidationError as error:
            raise ClearwayError(f"{path} is damaged ({describe(error)}): delete it to ask from the first row") from None
        return cursor.asked if cursor.rollout == rollout else 0

    def _claim(self, rollout: int, asked: int) -> None:
        write_json(self._folder / "replay.json", Cursor(rollout=rollout, asked=asked).model_dump())

    def _moved_store(self) -> "_MovedStore | None":
        """The online store and the rows it is told; None where requests carry their features."""
        if self._store is None and isinstance(self._project, StoredProject):
            from clearway.feature_store.materialise import OnlineFeed

            events = replay_events(self._params, self._workspace, self._project)
            feed = OnlineFeed(self._params, self._workspace, self._project, events)
            known = _known_times(self._project, events)
            self._store = _MovedStore(feed, known)
        return self._store

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(
                _locked(
                    self._folder / "replay.lock",
                    f"another replay is asking {self._environment}: wait for it to end",
                )
            )
            if isinstance(self._project, StoredProject):  # its time is the same for all environments
                folder = self._workspace.feature_store
                stack.enter_context(
                    _locked(
                        folder / "replay.lock",
                        f"another replay is moving the online store of {folder} in time: wait for it to end",
                    )
                )
            yield


class Tick(NamedTuple):
    """Questions that are sent together."""

    time: datetime | None
    """Of the first of them; None where the data knows no time."""
    questions: int


class Traffic:
    """Rows as request bodies, made on demand; without time in the data they come round again under new ids.

    Parameters
    ----------
    questions
        Reserved columns and features, in the order to ask them.
    cycles
        How often rows without a ``prediction_time`` may be asked.
    """

    def __init__(self, questions: pd.DataFrame, cycles: int) -> None:
        self._questions = questions
        self._cycles = 1 if questions[PREDICTION_TIME].notna().any() else cycles

    def __len__(self) -> int:
        return len(self._questions) * self._cycles

    def bodies(self, first: int, end: int) -> Iterator[bytes]:
        """The bodies of requests ``first`` to ``end`` (excluded)."""
        rows = len(self._questions)
        while first < end:
            cycle, start = divmod(first, rows)
            stop = min(rows, start + end - first)
            yield from _bodies(self._questions.iloc[start:stop], cycle)
            first += stop - start

    def ticks(self, first: int, end: int, known: NDArray[np.int64] | None) -> list[Tick]:
        """How requests ``first`` to ``end`` (excluded) go together.

        Parameters
        ----------
        first, end
            Numbers of requests.
        known : ascending, optional
            When something became known, in microseconds since 1970. Questions between whose times nothing did are one
            tick, since one state of the store answers them all. Without it there is one tick.
        """
        if first >= end:
            return []
        if known is None:
            return [Tick(None, end - first)]
        times = self._questions[PREDICTION_TIME].iloc[first:end]
        states = np.searchsorted(known, _microseconds(times), side="right")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(states)) + 1])
        counts = np.diff(np.append(starts, end - first)).tolist()
        return [Tick(times.iloc[s].to_pydatetime(), n) for s, n in zip(starts.tolist(), counts, strict=True)]


class _MovedStore:
    """An online store that a replay moves in time.

    Parameters
    ----------
    feed
        Fills it.
    known : ascending
        When any of its rows became known, in microseconds since 1970.
    """

    def __init__(self, feed: "OnlineFeed", known: NDArray[np.int64]) -> None:
        self.known = known
        self._feed = feed

    def begin(self, time: datetime) -> None:
        """Have the store hold what was known at ``time``; at no cost where it was left before that by this replay."""
        if not self._feed.can_advance(time):
            self._feed.start_at(time)
        self.advance(time)

    def advance(self, time: datetime) -> None:
        """Have it hold what was known at ``time``, which is not before the last."""
        self._feed.advance(time)


class _Run:
    """One sending of bodies, tick by tick, over a fixed number of connections, and what came back."""

    def __init__(
        self, bodies: Iterator[bytes], ticks: list[Tick], connections: int, store: _MovedStore | None = None
    ) -> None:
        self._bodies = bodies
        self._ticks = ticks
        self._store = store
        self._connections = max(1, min(connections, max((tick.questions for tick in ticks), default=1)))
        self.started = self.ok = self.client_errors = self.server_errors = 0
        self.latencies: list[float] = []
        self.failure: str | None = None

    @property
    def answered(self) -> int:
        return len(self.latencies)

    async def send(self, url: str, progress: Callable[[int], None] | None, tls: ssl.SSLContext | None = None) -> None:
        connector = aiohttp.TCPConnector(limit=self._connections, force_close=False, ssl=tls or True)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            watching = asyncio.create_task(self._watch(progress)) if progress else None
            try:
                for tick in self._ticks:
                    if self._store is not None:
                        self._store.advance(_time(tick))  # a few ms, and nobody waits for the loop: all is answered
                    bodies = islice(self._bodies, tick.questions)
                    workers = min(self._connections, tick.questions)
                    await asyncio.gather(*(self._worker(session, url, bodies) for _ in range(workers)))
                    if self.failure is not None:
                        break
            finally:
                if watching:
                    watching.cancel()
        if progress:
            progress(self.answered)

    async def _worker(self, session: aiohttp.ClientSession, url: str, bodies: Iterable[bytes]) -> None:
        for body in bodies:  # shared: each worker takes the next body when its own answer is in
            if self.failure is not None:
                return
            self.started += 1
            before = time.perf_counter()
            try:
                async with session.post(url, data=body) as answer:
                    await answer.read()
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.failure = str(error) or type(error).__name__
                return
            self.latencies.append((time.perf_counter() - before) * 1000.0)
            if status < 400:
                self.ok += 1
            elif status < 500:
                self.client_errors += 1
            else:
                self.server_errors += 1

    async def _watch(self, progress: Callable[[int], None]) -> None:
        while True:
            await asyncio.sleep(0.05)
            progress(self.answered)


def rollout_revision(entries: list[Entry]) -> int:
    """The revision at which the latest rollout began: the last entry that put a new canary on trial, 0 without any.

    A rollout's steps, its promotion and its rollback all belong to it, so that no row is asked twice.
    """
    began, trial = 0, None
    for entry in entries:
        if entry.canary is not None and entry.canary != trial:
            began = entry.sequence
        trial = entry.canary
    return began


def _bodies(questions: pd.DataFrame, cycle: int) -> Iterator[bytes]:
    """Request bodies of rows: missing is null, numbers are numbers, everything else is a string."""
    suffix = f"~{cycle}" if cycle else ""
    columns: dict[str, list[Any]] = {"id": [f"{row_id}{suffix}" for row_id in questions[ROW_ID]]}
    columns["entity"] = _plain(questions[ENTITY].astype("string"))
    times = questions[PREDICTION_TIME]
    columns["asked_at"] = [None if pd.isna(time) else time.isoformat() for time in times]
    for name in questions.columns:
        if name not in RESERVED:
            columns[str(name)] = _plain(questions[name])
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        yield orjson.dumps(dict(zip(names, values, strict=True)))


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """A column as Python numbers, truth values or strings, with None where it is missing."""
    if pd.api.types.is_numeric_dtype(column.dtype):  # so are truth values, to pandas
        plain = column.astype("object")
    else:
        plain = column.astype("string").astype("object")
    return [None if pd.isna(value) else value for value in plain.tolist()]


def _time(tick: Tick) -> datetime:
    if tick.time is None:
        raise ClearwayError("a question without prediction_time has no features in an online store: give it one")
    return tick.time


def _known_times(project: StoredProject, events: Mapping[str, pd.DataFrame]) -> NDArray[np.int64]:
    """Every time at which a row of any view became known, ascending, in microseconds since 1970."""
    columns = {view.name: view.batch_source.timestamp_field for view in project.definitions().views}
    known = [_microseconds(rows[columns[name]]) for name, rows in events.items()]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *known]))


def _microseconds(times: "pd.Series[Any]") -> NDArray[np.int64]:
    return np.asarray(times.astype("datetime64[us, UTC]").astype("int64"), dtype=np.int64)


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock at ``path``, or refuse at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ClearwayError(refusal) from None
    try:
        yield
    finally:
        lock.release()


def _project(params: Params, workspace: Workspace) -> Project | StoredProject:
    from clearway.project import load_project
    from clearway.schema import flat_columns

    return load_project(params, flat_columns(params, workspace.root))
