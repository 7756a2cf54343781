"""Has the prediction log compacted while a server runs: by a process of low priority, far from the request path."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from clearway.log_files import is_free
from clearway.project_folder import HOME
from clearway.workspace import Workspace

LOOK_SECONDS = 20.0
STOP_SECONDS = 5.0
MANY_SEGMENTS = 4
"""So many are compacted at the next look, whatever the interval: readers parse what is not compacted."""

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
    """

    def __init__(self, workspace: Workspace, environment: str, minutes: float | None) -> None:
        self._folder = workspace.environment(environment) / "predictions"
        self._command = [sys.executable, str(HOME / "scripts" / "compact_log.py"), "--env", environment]
        self._command += ["--project", str(workspace.root.resolve()), "--background"]
        self._seconds = 0.0 if minutes is None else minutes * 60
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        if minutes is not None:
            self._thread.start()

    def stop(self) -> None:
        """Start nothing more, and end a compaction that runs: the next one finishes what it began."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(min(LOOK_SECONDS, self._seconds)):
            try:
                if claim(self._folder, self._seconds):
                    self._compact()
            except OSError as error:  # a full disk: the log says so itself, and another time may be better
                logger.warning("the prediction log is not compacted: %s", error)

    def _compact(self) -> None:
        process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while True:
            try:
                _, said = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if self._stopping.is_set():
                    process.terminate()
        if process.returncode > 0:
            logger.warning("the prediction log is not compacted: %s", said.strip())


def claim(folder: Path, seconds: float) -> bool:
    """Whether there is something to compact, and nobody has done so for so long; the caller then has to."""
    finished = sum(is_free(path) for path in folder.glob("*.jsonl"))
    if not finished:
        return False
    if finished >= MANY_SEGMENTS:
        seconds = min(seconds, LOOK_SECONDS)
    stamp = folder / "compacted.lock"
    try:
        if time.time() - stamp.stat().st_mtime < seconds:
            return False
    except FileNotFoundError:
        stamp.touch()
    os.utime(stamp)
    return True
