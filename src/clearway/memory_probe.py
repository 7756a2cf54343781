"""The process that :func:`clearway.footprint.measure_memory` starts: what does loading a model and scoring rows add?

``python -m clearway.memory_probe PAYLOAD DIGEST`` reads encoded rows (``.npy``) from standard input and prints
``{"mb": …}``. It imports what a server needs and no more, so that it is quick.
"""

import io
import json
import resource
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - so that what the runtime itself takes is not the model's
import psutil

from clearway.model import load_payload


def main() -> None:
    payload, digest = sys.argv[1:]
    matrix = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    process = psutil.Process()
    before, peak_before = process.memory_info().rss, _peak_bytes()
    load_payload(Path(payload), digest).score(matrix)
    after, peak = process.memory_info().rss, _peak_bytes()
    most = max(after, peak) if peak > peak_before else after
    print(json.dumps({"mb": max(0.0, (most - before) / 2**20)}))


def _peak_bytes() -> int:
    """Largest resident size so far.

    On Linux of this program alone: ``ru_maxrss`` also counts the process that started it, as it was before ``exec``.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (FileNotFoundError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
