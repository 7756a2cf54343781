"""On how many threads, processes and machines the parts of a fit run, such that the model is the same on any number.

What may be spread is what gives the same bits however it is spread: loops of OpenMP in scikit-learn's trees, and
joblib's tasks, each seeded by itself. Linear algebra is not: how many threads share a sum changes its last bits. Nor is
a prediction of an ensemble, whose members are summed up in the order in which they come.
"""

import _thread
import importlib
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from typing import Any

from joblib import parallel_config
from threadpoolctl import threadpool_limits

from clearway.errors import ClearwayError, UsageError
from clearway.params import JoblibParams
from clearway.secretless import addresses

COMPARED = ("scikit-learn", "numpy", "scipy", "joblib")
"""Packages that must have one version here and on every worker: another may train another model."""
NO_WORKER_SECONDS = 10.0
"""How long a fit waits for a worker to come back when the last is gone."""
NO_ANSWER_SECONDS = 60.0
"""How long a fit waits for the scheduler to say how many workers there are: a busy one may be slow."""
_BEAT_SECONDS = 1.0


@contextmanager
def numeric_threads(threads: int) -> Iterator[None]:
    """Let OpenMP use so many threads, and linear algebra one, in this process."""
    with threadpool_limits(limits={"blas": 1, "openmp": threads}):
        yield


@contextmanager
def in_order() -> Iterator[None]:
    """Let estimators predict on one thread, so that an ensemble adds its members up in their order."""
    with numeric_threads(1), parallel_config(backend="sequential"):
        yield


@contextmanager
def joblib_backend(chosen: JoblibParams, threads: int) -> Iterator[None]:
    """Run joblib's tasks where ``train.joblib`` says: on so many cores of this machine, or on a cluster.

    Parameters
    ----------
    chosen : JoblibParams
        ``train.joblib``.
    threads : int
        Cores of this machine, for the local backend. A cluster is used whole.

    Raises
    ------
    UsageError
        The package that speaks to the cluster is not installed.
    ClearwayError
        The cluster cannot be reached, has no worker or workers with other versions; it was lost, or a task of it was,
        and could not be run again.
    """
    with ExitStack() as stack:
        if chosen.backend == "local":
            # Threads even where an estimator would rather have processes: scikit-learn's loops let go of the
            # interpreter, and a process of its own would use as many threads for linear algebra as it likes.
            stack.enter_context(parallel_config(backend="threading", n_jobs=threads))
        elif chosen.backend == "dask":
            stack.enter_context(_dask(chosen))
        else:
            stack.enter_context(_ray(chosen))
        yield


def different_versions(here: Mapping[str, str], there: Mapping[str, Mapping[str, str]]) -> str:
    """Which worker has another version of which package, one phrase; empty where none has.

    Parameters
    ----------
    here : mapping of package → version
        Of this process.
    there : mapping of worker → package → version
        Of each worker; a package that it lacks is not in it.
    """
    for worker, versions in sorted(there.items()):
        for package, wanted in here.items():
            found = versions.get(package)
            if found != wanted:
                return f"worker {worker} has {package} {found or '(not installed)'}, here it is {wanted}"
    return ""


@contextmanager
def _dask(chosen: JoblibParams) -> Iterator[None]:
    distributed = _import("distributed", "dask")
    assert chosen.address is not None
    address, seconds = chosen.address, chosen.connect_seconds
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it would say on many lines is said on one
    try:
        client = distributed.Client(address, timeout=seconds, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise _unreachable(chosen, _one_line(error)) from None
    try:
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise _unreachable(chosen, f"it has no worker after {seconds:g} s: start one") from None
        here = {**{package: version(package) for package in COMPARED}, "python": platform.python_version()}
        differing = different_versions(here, _versions_there(client))
        if differing:
            raise ClearwayError(
                f"{_named(chosen)}: {differing}: install the same on both, since another version may train another "
                "model"
            )

        def workers() -> int:
            return len(client.sync(client.scheduler.ncores, callback_timeout=3 * _BEAT_SECONDS))

        with _watched(chosen, workers), parallel_config(backend="dask", client=client):
            yield
    finally:
        with suppress(Exception):  # it may be gone already
            client.close(timeout=2)


@contextmanager
def _ray(chosen: JoblibParams) -> Iterator[None]:
    ray = _import("ray", "ray")
    register = importlib.import_module("ray.util.joblib").register_ray
    try:
        ray.init(address=chosen.address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ray raises ConnectionError, ValueError, RuntimeError and types of its own
        raise _unreachable(chosen, _one_line(error)) from None
    try:
        register()
        with parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _watched(chosen: JoblibParams, workers: Callable[[], int]) -> Iterator[None]:
    """End a fit that waits for a cluster without workers, and say what failed in one line.

    Tasks of a worker that is lost are given to another one. Without another one they would wait for ever.
    """
    over, lost = threading.Event(), threading.Event()

    def beat() -> None:
        answered = staffed = time.monotonic()
        while not over.wait(_BEAT_SECONDS):
            with suppress(Exception):  # whatever it raises, it is no answer
                count, answered = workers(), time.monotonic()
                staffed = answered if count else staffed
            if answered - staffed > NO_WORKER_SECONDS or time.monotonic() - answered > NO_ANSWER_SECONDS:
                lost.set()
                if not over.is_set():
                    _thread.interrupt_main()
                if not over.wait(NO_WORKER_SECONDS):  # whoever started this process lets it ignore interrupts
                    print(f"error: {_without_workers(chosen)}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    watch = threading.Thread(target=beat, name="clearway-cluster-watch", daemon=True)
    watch.start()
    try:
        yield
    except (ClearwayError, MemoryError):
        raise
    except BaseException as error:
        if lost.is_set():
            raise ClearwayError(_without_workers(chosen)) from None
        if of_cluster(error):
            raise ClearwayError(
                f"{_named(chosen)}: a task was lost ({type(error).__name__}: {_one_line(error)}): see the workers' "
                "logs, and train again"
            ) from None
        raise
    finally:
        over.set()


def of_cluster(error: BaseException) -> bool:
    """Whether the cluster raised it, and not an estimator; a task that is cancelled is no :class:`Exception`."""
    return type(error).__module__.startswith(("distributed", "asyncio", "concurrent", "tornado"))


def _versions_there(client: Any) -> dict[str, dict[str, str]]:
    """Versions on each worker. What is sent is of Python's own library: a worker need not have this line."""
    found: dict[str, dict[str, str]] = {}
    for package in COMPARED:
        for worker, said in client.run(version, package, on_error="return").items():
            found.setdefault(worker, {}).update({package: said} if isinstance(said, str) else {})
    for worker, said in client.run(platform.python_version).items():
        found.setdefault(worker, {})["python"] = said
    return found


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"params.yaml: train.joblib.backend = {extra} needs a package that is not installed ({error}): "
            f"run `pip install -e '.[{extra}]'`"
        ) from None


def _unreachable(chosen: JoblibParams, reason: str) -> ClearwayError:
    return ClearwayError(
        f"{_named(chosen)} cannot be used ({reason}): start the cluster, correct the address, or set "
        "train.joblib.backend: local"
    )


def _without_workers(chosen: JoblibParams) -> str:
    return f"{_named(chosen)}: its workers are gone, or it no longer answers: start it again, and train again"


def _named(chosen: JoblibParams) -> str:
    return f"train.joblib.address = {addresses(chosen.address or '')}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
