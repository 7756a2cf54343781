"""Traffic from the source's own later rows: each asked once per rollout, over HTTP, as fast as the server answers."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import orjson
import pandas as pd
import uvloop
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clearway.columns import ENTITY, PREDICTION_TIME, RESERVED, ROW_ID
from clearway.errors import ClearwayError, UsageError
from clearway.features import replay_questions
from clearway.files import read_json, write_json
from clearway.ledger import Entry, read_ledger
from clearway.local_target import find_server
from clearway.params import Params, describe
from clearway.project import Project
from clearway.workspace import Workspace

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

    Parameters
    ----------
    params, workspace, project
        The project; its rows come from :func:`clearway.features.replay_questions`.
    environment
        Whose server is asked.

    Raises
    ------
    ClearwayError
        The source has no rows after ``as_of``.
    """

    def __init__(self, params: Params, workspace: Workspace, environment: str, project: Project | None = None) -> None:
        params.environment(environment)
        self._environment = environment
        self._workspace = workspace
        self._folder = workspace.environment(environment)
        self._connections = params.replay.connections
        questions = replay_questions(params, workspace, project or _project(params, workspace))
        if questions.empty:
            raise ClearwayError(f"no traffic to replay: the source has no rows after as_of = {params.as_of}")
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
            No server runs here, it went away, or another replay is running.
        UsageError
        ``count`` is below 1.
        """
        if count < 1:
            raise UsageError(f"requests = {count}: must be at least 1")
        server = find_server(self._workspace, self._environment)
        if server is None:
            raise ClearwayError(
                f"no server runs for {self._environment}: start it with scripts/deploy.py --env {self._environment}"
            )
        with self._alone():
            rollout = self._rollout()
            first = self._cursor(rollout)
            end = min(first + count, len(self._traffic))
            self._claim(rollout, end)
            run = _Run(self._traffic.bodies(first, end), end - first, self._connections)
            started = time.perf_counter()
            try:
                uvloop.run(run.send(f"{server.url}/predict", progress))
            finally:
                self._claim(rollout, first + run.started)
            seconds = time.perf_counter() - started
        if run.failure is not None:
            raise ClearwayError(
                f"the server of {self._environment} at {server.url} went away after {run.answered} of {end - first} "
                f"requests ({run.failure}): see {self._folder / 'server.log'}"
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "replay.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ClearwayError(f"another replay is asking {self._environment}: wait for it to end") from None
        try:
            yield
        finally:
            lock.release()


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


class _Run:
    """One sending of bodies over a fixed number of connections, and what came back."""

    def __init__(self, bodies: Iterator[bytes], count: int, connections: int) -> None:
        self._bodies = bodies
        self._count = count
        self._connections = max(1, min(connections, count))
        self.started = self.ok = self.client_errors = self.server_errors = 0
        self.latencies: list[float] = []
        self.failure: str | None = None

    @property
    def answered(self) -> int:
        return len(self.latencies)

    async def send(self, url: str, progress: Callable[[int], None] | None) -> None:
        connector = aiohttp.TCPConnector(limit=self._connections, force_close=False)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            watching = asyncio.create_task(self._watch(progress)) if progress else None
            try:
                await asyncio.gather(*(self._worker(session, url) for _ in range(self._connections)))
            finally:
                if watching:
                    watching.cancel()
        if progress:
            progress(self.answered)

    async def _worker(self, session: aiohttp.ClientSession, url: str) -> None:
        for body in self._bodies:  # shared: each worker takes the next body when its own answer is in
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
    """A column as Python numbers or strings, with None where it is missing."""
    if pd.api.types.is_bool_dtype(column.dtype):
        column = column.astype("Float64")
    if pd.api.types.is_numeric_dtype(column.dtype):
        plain = column.astype("object")
    else:
        plain = column.astype("string").astype("object")
    return [None if pd.isna(value) else value for value in plain.tolist()]


def _project(params: Params, workspace: Workspace) -> Project:
    from clearway.project import load_project
    from clearway.schema import flat_columns

    return load_project(params, flat_columns(params, workspace.root))
