"""A real Dask cluster: a scheduler and two workers, each a process, on loopback."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from clearway.encoding import learn_schema
from clearway.errors import ClearwayError
from clearway.export import to_onnx, to_skops
from clearway.parallel import joblib_backend
from clearway.params import JoblibParams
from clearway.training import Recipe, fit

distributed = pytest.importorskip("distributed")

ROWS = 3000
RANDOM = np.random.default_rng(4)
FRAME = pd.DataFrame({name: RANDOM.normal(size=ROWS) for name in ("size", "weight", "length")})
FRAME["colour"] = pd.Series(RANDOM.choice(["red", "green", "blue"], ROWS), dtype="string")
LABELS = (FRAME["size"] + (FRAME["colour"] == "red") + RANDOM.normal(size=ROWS) > 0.3).to_numpy(np.float64)
SCHEMA = learn_schema(FRAME, ("colour",), ("size", "weight", "length"))
MATRIX = SCHEMA.encode(FRAME)


@dataclass(frozen=True)
class Cluster:
    address: str
    workers: dict[str, subprocess.Popen[bytes]]
    """By the address of each."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    scheduler, *workers = free_ports(3)
    address = f"tcp://127.0.0.1:{scheduler}"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [["scheduler", *local, "--port", str(scheduler)]]
    for port in workers:
        one = ["--no-nanny", "--nthreads", "2", "--worker-port", str(port), "--local-directory", str(folder)]
        commands.append(["worker", address, *local, *one])
    with (folder / "log").open("wb") as log:
        started = [
            subprocess.Popen([sys.executable, "-m", "dask", *each], cwd=folder, stdout=log, stderr=log)
            for each in commands
        ]
    try:
        with distributed.Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        yield Cluster(
            address, {f"tcp://127.0.0.1:{port}": each for port, each in zip(workers, started[1:], strict=True)}
        )
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=10)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def forest(chosen: JoblibParams, threads: int = 1, trees: int = 8) -> tuple[bytes, bytes]:
    recipe = Recipe("challenger", "train.estimator", FOREST, "train.arguments", {"n_estimators": trees})
    with joblib_backend(chosen, threads):
        fitted, _ = fit(recipe, SCHEMA, MATRIX, LABELS, seed=3, threads=threads)
    return to_skops(fitted), to_onnx(fitted, 4)


FOREST = "sklearn.ensemble.RandomForestClassifier"
LOCAL = JoblibParams()


def test_the_forest_of_a_cluster_is_that_of_this_machine_byte_for_byte(cluster: Cluster) -> None:
    here = forest(LOCAL)
    with distributed.Client(cluster.address) as client, distributed.get_task_stream(client) as ran:
        there = forest(JoblibParams(backend="dask", address=cluster.address))
    assert there == here
    trees = [task for task in ran.data if "build_trees" in task["key"]]
    assert {task["worker"] for task in trees} == set(cluster.workers), "both workers built trees"


def test_a_cluster_that_is_not_there_is_named() -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ClearwayError, match=rf"train\.joblib\.address = {address} cannot be used") as caught:
        forest(JoblibParams(backend="dask", address=address, connect_seconds=1))
    assert "\n" not in str(caught.value)


def test_a_killed_worker_never_makes_another_model_and_no_worker_never_hangs(cluster: Cluster) -> None:
    """The last test of this cluster: it ends its workers."""
    chosen = JoblibParams(backend="dask", address=cluster.address, connect_seconds=2)
    first, second = cluster.workers.items()
    with killed_while_busy(cluster.address, *first):
        try:
            made = forest(chosen, trees=40)
        except ClearwayError as error:
            made, said = None, str(error)
    assert made == forest(LOCAL, trees=40) if made else "train.joblib.address = " in said
    with killed_while_busy(cluster.address, *second), pytest.raises(ClearwayError, match=r"train\.joblib\.address = "):
        forest(chosen, trees=1000)  # far more than it gets to
    with pytest.raises(ClearwayError, match=r"cannot be used \(it has no worker after 2 s: start one\)"):
        forest(chosen)


@contextmanager
def killed_while_busy(scheduler: str, worker: str, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """kill -9 a worker as soon as it has tasks to do; the block must keep it busy."""
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and not client.processing().get(worker):
            time.sleep(0.01)
        if not over.is_set():
            os.kill(process.pid, signal.SIGKILL)

    with distributed.Client(scheduler, set_as_default=False) as client:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join(timeout=30)
    assert process.wait(timeout=10) == -signal.SIGKILL, "it was not busy"
