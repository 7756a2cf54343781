"""How much room a model takes: bytes of its payload, and memory of a process that loads it and answers."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearway.gates import Gate
from clearway.trust import NOTHING_MORE, VOUCHED, Trust

SCORED_ROWS = 1000
LONGEST_SECONDS = 60.0
_MB = 2**20


@dataclass(frozen=True)
class MemoryGrowth:
    """What a model added to the resident memory of a fresh process, in MB (2²⁰ bytes); None where it is not known."""

    mb: float | None
    problem: str = ""
    """Why it is not known."""


def payload_bytes(folder: Path) -> int:
    """Bytes of all files of a payload."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_gate(size_bytes: int, max_mb: float) -> Gate:
    """The payload is at most ``max_mb`` (2²⁰ bytes each); an empty one is none."""
    size = size_bytes / _MB
    passed = 0 < size <= max_mb
    detail = f"the model's files are {size:.3g} MB, at most {max_mb:g} MB are allowed"
    return Gate("bundle_size", "pass" if passed else "fail", detail, size, threshold=max_mb, n=None)


def memory_gate(growth: MemoryGrowth, max_mb: float) -> Gate:
    """Loading the model and scoring takes at most ``max_mb`` (2²⁰ bytes each) of memory; not measured is a fail."""
    if growth.mb is None or not np.isfinite(growth.mb):
        detail = f"memory was not measured: {growth.problem or 'no number'}"
        return Gate("memory", "fail", detail, threshold=max_mb)
    detail = f"loading it and scoring adds {growth.mb:.3g} MB to a process, at most {max_mb:g} MB are allowed"
    return Gate("memory", "pass" if growth.mb <= max_mb else "fail", detail, growth.mb, threshold=max_mb)


def measure_memory(
    payload: Path,
    digest: str,
    matrix: NDArray[np.float32],
    trust: Trust = NOTHING_MORE,
    timeout: float = LONGEST_SECONDS,
) -> MemoryGrowth:
    """Load the payload and score ``SCORED_ROWS`` rows in a fresh process, which is ended after ``timeout`` seconds.

    Parameters
    ----------
    payload : Path
    digest : str
        What the payload must hash to; the process verifies it again.
    matrix : float32 array of shape (rows, features)
        Rows to score, repeated or cut to ``SCORED_ROWS``.
    trust : Trust
        What the process may read.
    timeout : float
        Seconds.

    Returns
    -------
    MemoryGrowth
        The larger of what is resident afterwards and the peak, less what was resident once the libraries were loaded.
        Without a number, if the process failed, was killed (by the kernel, for one) or took too long.
    """
    if not len(matrix):
        return MemoryGrowth(None, "there are no rows to score")
    stream = io.BytesIO()
    np.save(stream, np.resize(matrix, (SCORED_ROWS, matrix.shape[1])), allow_pickle=False)
    command = [sys.executable, "-m", "clearway.memory_probe", str(payload.resolve()), digest, *sorted(trust.types)]
    if trust.joblib and digest in trust.vouched:
        command.append(VOUCHED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a server runs
    if len(command) > 5:  # classes of the project's own, which only its scripts know where to find
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            command, input=stream.getvalue(), capture_output=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return MemoryGrowth(None, f"the process took more than {timeout:g} s")
    except OSError as error:
        return MemoryGrowth(None, f"the process could not be started: {error}")
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return MemoryGrowth(None, f"the process ended with {done.returncode}: {lines[-1] if lines else 'no word'}")
    try:
        return MemoryGrowth(float(json.loads(done.stdout)["mb"]))
    except (ValueError, TypeError, KeyError):
        return MemoryGrowth(None, f"the process said {done.stdout[:80]!r}")
