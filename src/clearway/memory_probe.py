"""The process that :func:`clearway.footprint.measure_memory` starts: what does loading a model and scoring rows add?

``python -m clearway.memory_probe PAYLOAD DIGEST [TYPE …] [--vouched]`` reads encoded rows (``.npy``) from standard
input and prints ``{"mb": …}``. It imports what a server needs and no more, so that it is quick. Types, and that a
ledger or the last training vouches for the digest, are what its caller was allowed: without, only scikit-learn's own.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - so that what the runtime itself takes is not the model's
import psutil

from clearway.model import NETWORK, load_payload
from clearway.resources import peak_bytes
from clearway.trust import VOUCHED, Trust


def main() -> None:
    payload, digest, *allowed = sys.argv[1:]
    vouched = VOUCHED in allowed
    trust = Trust(frozenset(allowed) - {VOUCHED}, vouched, frozenset({digest} if vouched else ()))
    if not (Path(payload) / NETWORK).exists():
        import skops.io  # noqa: F401 - scikit-learn is then the runtime
    matrix = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    process = psutil.Process()
    before, peak_before = process.memory_info().rss, peak_bytes()
    load_payload(Path(payload), digest, trust).score(matrix)
    after, peak = process.memory_info().rss, peak_bytes()
    most = max(after, peak) if peak > peak_before else after
    print(json.dumps({"mb": max(0.0, (most - before) / 2**20)}))


if __name__ == "__main__":
    main()
