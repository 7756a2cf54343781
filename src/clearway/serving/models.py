"""The models of one server by name: its own project's, and those of other project folders, loaded when they are asked.

A hosted model is all that its project's own server would be: its params, ledger, routing table, canary and prediction
log are those of its folder. What it shares is the process, and with it the memory: at most
``serving.max_loaded_models`` are loaded, and the one that was asked longest ago makes room for the next.

    >>> async with models.use("churn") as endpoint:  # doctest: +SKIP
    ...     await endpoint.predict(scope, receive, send)
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearway.errors import ClearwayError
from clearway.local_target import Server, announce_hosted, withdraw_hosted
from clearway.log_hiding import hiding_of
from clearway.memory import give_back
from clearway.params import Params, ServingParams, load_params
from clearway.prediction_log import PredictionLog
from clearway.serving.metrics import Loads, Traffic
from clearway.serving.state import Follower
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.serving.app import Endpoint

LOADING_AT_ONCE = 2
"""More would only take the interpreter from the requests that are answered meanwhile."""
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 15.0
"""How long a model that failed to load is left alone; twice as long after each further failure."""
TRIM_SECONDS = 1.0
"""Least time between two searches for memory to give back."""
MAX_LISTED = 12

logger = logging.getLogger("clearway.serving")

Make = Callable[[str, ServingParams, str, Follower, PredictionLog, Traffic], "Endpoint"]
"""From name, settings, environment, follower, log and counts to what answers for a hosted model."""


@dataclass(frozen=True)
class Hosting:
    """Whom a server hosts."""

    own: str
    """Name of its own project's model, which is always loaded."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Project folders of the others, by name."""


def hosting(params: Params, workspace: Workspace, environment: str) -> Hosting:
    """What ``params`` says that the server of ``environment`` hosts; a folder that is missing is only warned of."""
    folders = {name: workspace.root / folder for name, folder in params.environment(environment).models.items()}
    for name, folder in folders.items():
        if not (folder / "params.yaml").is_file():  # one absent project must not keep all others from being served
            logger.error("environments.%s.models.%s: %s has no params.yaml", environment, name, folder)
    return Hosting(params.model_name, folders)


def announce(hosting: Hosting, environment: str, server: Server) -> None:
    """Tell the projects that are hosted where their models answer; a project that cannot be told is only warned of."""
    for name, folder in hosting.folders.items():
        if (folder / "params.yaml").is_file():
            try:
                announce_hosted(Workspace(folder), environment, server.model_copy(update={"path": f"/models/{name}"}))
            except (ClearwayError, OSError) as error:
                logger.error("environments.%s.models.%s cannot be told who hosts it: %s", environment, name, error)


def withdraw(hosting: Hosting, environment: str, pid: int) -> None:
    """Take back what :func:`announce` said for the server ``pid``."""
    for folder in hosting.folders.values():
        with contextlib.suppress(ClearwayError, OSError):
            withdraw_hosted(Workspace(folder), environment, pid)


class UnknownModelError(Exception):
    """No model is called so; names those that are."""

    status = 404


class NotLoadedError(Exception):
    """A model cannot be loaded now; names it and the cause."""

    status = 503

    def __init__(self, name: str, cause: str, retry_seconds: float) -> None:
        super().__init__(f"model {name!r} is not loaded: {cause}")
        self.retry_after = max(1, math.ceil(retry_seconds))
        """Seconds."""


@dataclass
class _Loaded:
    """What answers for one hosted model."""

    endpoint: "Endpoint"
    follower: Follower
    log: PredictionLog
    following: "asyncio.Task[None]"


@dataclass
class _Hosted:
    """One hosted model, loaded or not."""

    name: str
    folder: Path
    environment: str
    traffic: Traffic = field(default_factory=Traffic)
    """Counted over all the times that it was loaded."""
    loaded: _Loaded | None = None
    users: int = 0
    """Requests that use it or wait for it: it is not unloaded under them."""
    loading: "asyncio.Task[None] | None" = None
    no_room: bool = False
    """Whether loading waits for another to be unloaded."""
    unloading: "asyncio.Task[None] | None" = None
    failure: str | None = None
    """Why it could not be loaded the last time."""
    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    """By the monotonic clock."""
    failed_with: object = None
    """What was on the disk then: when that changes, there is no reason to wait."""

    @property
    def parked(self) -> bool:
        """Whether it failed a moment ago, and nothing has changed since."""
        return time.monotonic() < self.retry_at and self.failed_with == self.on_disk

    @property
    def on_disk(self) -> tuple[object, ...]:
        """Changes with the project's params and routing table."""
        workspace = Workspace(self.folder)
        paths = (workspace.params_file, workspace.environment(self.environment) / "routing.json")
        return tuple(_fingerprint(path) for path in paths)


class Models:
    """Gives the endpoint of a model by name, loading it first where it is not loaded.

    All of it belongs to the event loop. Loading happens in threads: a model is verified and warmed up as on a server
    of its own, and other models go on answering meanwhile.

    Parameters
    ----------
    settings
        Of the server's own project; what a hosted model's requests may hold is in its own.
    environment
        Name of the environment, here and in the hosted projects.
    own
        What answers for the server's own model.
    make
        Makes what answers for a hosted model.
    """

    def __init__(
        self,
        settings: ServingParams,
        environment: str,
        own: "Endpoint",
        hosting: Hosting,
        make: Make,
    ) -> None:
        self.loads = Loads()
        self._settings = settings
        self._environment = environment
        self._own = own
        self._own_name = hosting.own
        self._make = make
        self._hosted = {name: _Hosted(name, folder, environment) for name, folder in hosting.folders.items()}
        self._recent: OrderedDict[str, None] = OrderedDict()
        """Those that are loaded, the one that was asked longest ago first."""
        self._taken = 0
        """How many are loaded or being loaded."""
        self._freed = asyncio.Event()
        self._lanes = asyncio.Semaphore(LOADING_AT_ONCE)
        self._trimming: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All models, the server's own first."""
        return (self._own_name, *self._hosted)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The hosted models that are loaded, the one that was asked longest ago first."""
        return tuple(self._recent)

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What each hosted model was asked, by name."""
        return {name: hosted.traffic for name, hosted in self._hosted.items()}

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> "AsyncIterator[Endpoint]":
        """What answers for ``name``, loaded, and kept loaded until the end of the block.

        Raises
        ------
        UnknownModelError
            No model is called so.
        NotLoadedError
            It cannot be loaded, all that fit are in use, or loading takes longer than ``serving.load_seconds``.
        """
        if name == self._own_name:
            yield self._own
            return
        hosted = self._hosted.get(name)
        if hosted is None:
            more = f" and {len(self.names) - MAX_LISTED} more" if len(self.names) > MAX_LISTED else ""
            raise UnknownModelError(f"no model is called {name[:256]!r} (models: {_listed(self.names)}{more})")
        hosted.users += 1
        try:
            loaded = hosted.loaded or await self._ensure(hosted)
            self._recent.move_to_end(name)
            yield loaded.endpoint
        finally:
            hosted.users -= 1
            if not hosted.users:
                self._freed.set()
                if hosted.no_room and hosted.loading is not None:
                    hosted.loading.cancel()

    def describe(self) -> dict[str, Any]:
        """What ``GET /models`` says; it loads nothing."""
        return {
            "own": self._own_name,
            "models": {
                name: {
                    "loaded": hosted.loaded is not None,
                    "in_flight": hosted.users,
                    "error": hosted.failure if hosted.loaded is None else hosted.loaded.follower.error,
                }
                for name, hosted in self._hosted.items()
            },
            "max_loaded_models": self._settings.max_loaded_models,
            "loads": self.loads.done,
            "unloads": self.loads.undone,
            "failed_loads": self.loads.failed,
        }

    async def close(self) -> None:
        """Unload all, write out their logs. Requests have ended by now."""
        for hosted in self._hosted.values():
            if hosted.loading is not None:
                hosted.loading.cancel()
                await asyncio.wait({hosted.loading})
            if hosted.loaded is not None:
                self._unload(hosted)
        closing = {hosted.unloading for hosted in self._hosted.values() if hosted.unloading is not None}
        if closing:
            await asyncio.wait(closing)
        if self._trimming is not None:
            self._trimming.cancel()

    async def _ensure(self, hosted: _Hosted) -> _Loaded:
        """Load a model, or wait for whoever began to."""
        deadline = time.monotonic() + self._settings.load_seconds
        while hosted.loaded is None:
            if hosted.loading is None:
                if hosted.parked:
                    assert hosted.failure is not None  # set with it
                    raise NotLoadedError(hosted.name, hosted.failure, hosted.retry_at - time.monotonic())
                hosted.loading = asyncio.create_task(self._load(hosted))
            done, _ = await asyncio.wait({hosted.loading}, timeout=max(0.0, deadline - time.monotonic()))
            if hosted.loaded is None and hosted.failure is not None:
                raise NotLoadedError(hosted.name, hosted.failure, hosted.retry_at - time.monotonic())
            if not done:
                most, longest = self._settings.max_loaded_models, self._settings.load_seconds
                if hosted.no_room:
                    cause = f"all {most} models that fit are in use (serving.max_loaded_models)"
                else:
                    cause = f"loading takes longer than serving.load_seconds = {longest:g}"
                raise NotLoadedError(hosted.name, cause, 1)
        return hosted.loaded

    async def _load(self, hosted: _Hosted) -> None:
        """Load a model into its place, or leave there why not."""
        hosted.failure, found = None, hosted.on_disk
        taken = False
        try:
            if hosted.unloading is not None:  # two would write into one log
                await asyncio.wait({hosted.unloading})
            await self._make_room(hosted)
            self._taken += 1
            taken = True
            async with self._lanes:
                hosted.loaded = await self._open(hosted)
        except ClearwayError as error:
            self._leave_alone(hosted, str(error), found)
        except Exception as error:  # whatever a broken file makes a library raise fails this model alone
            logger.exception("model %s cannot be loaded", hosted.name)
            self._leave_alone(hosted, f"{type(error).__name__}: {error}", found)
        else:
            hosted.failures = 0
            self.loads.done += 1
            self._recent[hosted.name] = None
        finally:
            hosted.loading = None
            if hosted.loaded is None and taken:
                self._taken -= 1
            self._freed.set()

    async def _open(self, hosted: _Hosted) -> _Loaded:
        workspace = Workspace(hosted.folder)
        params = await asyncio.to_thread(load_params, workspace.params_file)
        params.environment(self._environment)
        follower = Follower(params, workspace, self._environment, stored_features=False)
        await follower.catch_up()
        if follower.active is None:
            raise ClearwayError(follower.error or "it has no routing table")
        folder = workspace.environment(self._environment) / "predictions"
        log = PredictionLog(folder, hiding=hiding_of(params.serving.log))
        endpoint = self._make(hosted.name, params.serving, self._environment, follower, log, hosted.traffic)
        return _Loaded(endpoint, follower, log, asyncio.create_task(follower.follow()))

    def _leave_alone(self, hosted: _Hosted, cause: str, found: object) -> None:
        hosted.failure, hosted.failed_with = cause, found
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(hosted.failures, 10))
        hosted.retry_at = time.monotonic() + pause
        hosted.failures += 1
        self.loads.failed += 1

    async def _make_room(self, hosted: _Hosted) -> None:
        """Unload until one more fits; wait, as long as somebody waits for it, for one that nobody uses."""
        while self._taken >= self._settings.max_loaded_models:
            idle = next((name for name in self._recent if not self._hosted[name].users), None)
            if idle is not None:
                self._unload(self._hosted[idle])
                continue
            hosted.no_room = True
            try:
                self._freed.clear()
                await self._freed.wait()
            finally:
                hosted.no_room = False

    def _unload(self, hosted: _Hosted) -> None:
        """Let a model go that nobody uses."""
        assert hosted.loaded is not None  # it is among the recent
        loaded, hosted.loaded = hosted.loaded, None
        del self._recent[hosted.name]
        self._taken -= 1
        self.loads.undone += 1
        hosted.unloading = asyncio.create_task(self._close(hosted, loaded))

    async def _close(self, hosted: _Hosted, loaded: _Loaded) -> None:
        try:
            loaded.following.cancel()
            await asyncio.wait({loaded.following})
            loaded.endpoint.close()
            await asyncio.to_thread(loaded.follower.close)
            await asyncio.to_thread(loaded.log.close)
        finally:
            hosted.unloading = None
            if self._trimming is None or self._trimming.done():
                self._trimming = asyncio.create_task(_trim())


async def _trim() -> None:
    await asyncio.sleep(TRIM_SECONDS)
    await asyncio.to_thread(give_back)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MAX_LISTED])
