"""Has the prediction log compacted while a server runs: by a process of low priority, far from the request path."""

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

from clearway.errors import ClearwayError
from clearway.log_files import PARQUET, is_free
from clearway.params import load_params
from clearway.project_folder import HOME
from clearway.workspace import Workspace

LOOK_SECONDS = 20.0
STOP_SECONDS = 5.0
MANY_SEGMENTS = 4
"""So many are compacted at the next look, whatever the interval: readers parse what is not compacted."""
DAY_SECONDS = 86_400.0
STAMP = "compacted.lock"

logger = logging.getLogger("clearway.serving")


class Housekeeper:
    """Starts ``scripts/compact_log.py`` whenever there is something to compact and the last time is long enough ago.

    Of several servers or workers of one environment any may do it; a file says when one last did.

    Parameters
    ----------
    workspace, environment
        Whose log.
    minutes
        Between two compactions; None leaves the log alone.
    hosted
        Folders of the projects whose models this server answers for: no server of their own looks after their logs.
        How often is said by their own params.yaml.
    """

    def __init__(
        self, workspace: Workspace, environment: str, minutes: float | None, hosted: Collection[Path] = ()
    ) -> None:
        self._environment = environment
        self._own = workspace
        self._minutes = minutes
        self._hosted = [Workspace(folder) for folder in hosted]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        if minutes is not None or hosted:
            self._thread.start()

    def stop(self) -> None:
        """Start nothing more, and end a compaction that runs: the next one finishes what it began."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        pause = LOOK_SECONDS if self._minutes is None else min(LOOK_SECONDS, self._minutes * 60)
        while not self._stopping.wait(pause):
            for workspace in (self._own, *self._hosted):
                try:
                    self._look_after(workspace)
                except OSError as error:  # a full disk: the log says so itself, and another time may be better
                    logger.warning("the prediction log of %s is not compacted: %s", workspace.root, error)

    def _look_after(self, workspace: Workspace) -> None:
        folder = workspace.environment(self._environment) / "predictions"
        if self._stopping.is_set() or not is_due(folder):
            return
        minutes = self._minutes if workspace is self._own else _minutes_of(workspace)
        if minutes is not None and claim(folder, minutes * 60):
            self._compact(workspace)

    def _compact(self, workspace: Workspace) -> None:
        command = [sys.executable, str(HOME / "scripts" / "compact_log.py"), "--env", self._environment]
        command += ["--project", str(workspace.root.resolve()), "--background"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while True:
            try:
                _, said = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if self._stopping.is_set():
                    process.terminate()
        if process.returncode > 0:
            logger.warning("the prediction log of %s is not compacted: %s", workspace.root, said.strip())


def _minutes_of(workspace: Workspace) -> float | None:
    """How often a hosted project wants its log compacted."""
    try:
        return load_params(workspace.params_file).serving.log.compact_minutes
    except ClearwayError as error:
        logger.warning("the prediction log of %s is not compacted: %s", workspace.root, error)
        return None


def is_due(folder: Path) -> bool:
    """Whether a log may want a compaction: what is finished is to be compacted, and what is old is to be removed."""
    return _finished(folder) > 0 or ((folder / PARQUET).is_dir() and _age(folder) >= DAY_SECONDS)


def claim(folder: Path, seconds: float) -> bool:
    """Whether there is something to do, and nobody has done so for so long; the caller then has to.

    Once a day there always is where anything is compacted: ``serving.log.retention_days`` passes without traffic too.
    """
    if not is_due(folder):
        return False
    if _finished(folder) >= MANY_SEGMENTS:
        seconds = min(seconds, LOOK_SECONDS)
    if _age(folder) < seconds:
        return False
    stamp = folder / STAMP
    stamp.touch()
    os.utime(stamp)
    return True


def _finished(folder: Path) -> int:
    return sum(is_free(path) for path in folder.glob("*.jsonl"))


def _age(folder: Path) -> float:
    """Seconds since a log was compacted; infinite if it never was."""
    try:
        return time.time() - (folder / STAMP).stat().st_mtime
    except FileNotFoundError:
        return math.inf
