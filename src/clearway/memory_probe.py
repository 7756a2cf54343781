"""The process that :func:`clearway.footprint.measure_memory` starts: what does loading a model and scoring rows add?

``python -m clearway.memory_probe PAYLOAD DIGEST`` reads encoded rows (``.npy``) from standard input and prints
``{"mb": …}``. It imports what a server needs and no more, so that it is quick.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - so that what the runtime itself takes is not the model's
import psutil

from clearway.model import load_payload
from clearway.resources import peak_bytes


def main() -> None:
    payload, digest = sys.argv[1:]
    matrix = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    process = psutil.Process()
    before, peak_before = process.memory_info().rss, peak_bytes()
    load_payload(Path(payload), digest).score(matrix)
    after, peak = process.memory_info().rss, peak_bytes()
    most = max(after, peak) if peak > peak_before else after
    print(json.dumps({"mb": max(0.0, (most - before) / 2**20)}))


if __name__ == "__main__":
    main()
