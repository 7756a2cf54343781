"""The process of a shadow version: reads copies of answered rows, scores them, logs its answers, shows them to nobody.

It speaks lines of JSON with :class:`clearway.serving.shadow.ShadowCopies` and ends with its input.
"""

import asyncio
import math
import os
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from clearway.bundle import verify
from clearway.cli import parser
from clearway.errors import ClearwayError
from clearway.log_hiding import hiding_of
from clearway.model import recorded_features
from clearway.params import Params
from clearway.prediction_log import PredictionLog
from clearway.serving.loading import Version, check_definitions, load_version, open_reader, own_features
from clearway.serving.requests import RequestError, RowEncoder
from clearway.signing import check_for
from clearway.trust import trust_in
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.feature_store.online import FeatureReader

NICENESS = 10
"""What answers callers goes first."""
ROLE = "shadow"


class Shadow:
    """A loaded version that answers copies.

    The features are those that were looked up for the answer itself; a row by key from which this version needs others
    is looked up again, a moment later.
    """

    def __init__(self, version: Version, reader: "FeatureReader | None" = None) -> None:
        self._version = version
        self._reader = reader
        self._encoder = RowEncoder(version.model.schema)
        self._vector = np.empty((1, self._encoder.width), dtype=np.float32)
        self._runner = asyncio.Runner()

    def answer(self, copy: Mapping[str, Any]) -> dict[str, Any]:
        """The record of its answer: ``status`` 422 where it refuses the row, 500 where it fails."""
        started = perf_counter()
        record = {name: copy[name] for name in ("id", "revision", "entity", "asked_at", "served_at")}
        record |= {"version": self._version.digest, "role": ROLE, "status": 200, "score": None}
        model = self._version.model
        try:
            self._encoder.encode_into(self._features(copy), self._vector[0])
            told = model.target.told(model.output(self._vector), model.threshold)
            (score,) = told.scores
            if not math.isfinite(score):
                raise ArithmeticError("it answered a score that is not finite")
            record["score"] = score
            if told.probabilities is not None:
                (record["probabilities"],) = told.probabilities
        except RequestError:
            record["status"] = 422
        except Exception:  # whatever the runtime raises is this version's failure
            record["status"] = 500
        record["latency_ms"] = (perf_counter() - started) * 1000.0
        return record

    def _features(self, copy: Mapping[str, Any]) -> dict[str, Any]:
        row, inputs, names = copy["row"], copy["inputs"], self._encoder.names
        if self._reader is not None and inputs is not None and any(name not in row for name in names):
            at = datetime.fromisoformat(copy["asked_at"]).timestamp()
            row = self._runner.run(self._reader.read([inputs], [at]))[0].features
        return {name: row[name] for name in names if name in row}


def load_shadow(params: Params, workspace: Workspace, environment: str, digest: str, stable: str) -> Shadow:
    """Verify, load and warm up ``digest`` as a server does with what it serves.

    The feature store is opened only if it needs features that ``stable`` does not look up.

    Raises
    ------
    ClearwayError
        It does not verify, is not signed as the environment requires, or fails its warm-up.
    """
    folder = workspace.bundles / digest
    if folder.is_dir():
        check_for(params, environment, verify(folder, digest), workspace.root)
    trust = trust_in(params.trust, frozenset({digest}))
    version = load_version(workspace.bundles, digest, params.gates.onnx_tolerance, trust)
    names = version.model.schema.names
    given = recorded_features(verify(workspace.bundles / stable, stable))
    if version.model.definitions is None or set(given).issuperset(names):
        return Shadow(version)
    own = own_features(params)
    check_definitions(version, own)
    return Shadow(version, open_reader(params, workspace, own, frozenset(names), {}))


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env", required=True)
    options.add_argument("--digest", required=True)
    options.add_argument("--stable", required=True, help="whose answers are copied")
    arguments = options.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server ends this process when it has drained
    os.nice(NICENESS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    channel = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no line of the conversation
    from clearway.params import load_params

    workspace = Workspace(arguments.project)
    try:
        params = load_params(workspace.params_file)
        hiding = hiding_of(params.serving.log)
        shadow = load_shadow(params, workspace, arguments.env, arguments.digest, arguments.stable)
    except ClearwayError as error:
        _say(channel, {"error": str(error)})
        return 1
    log = PredictionLog(workspace.environment(arguments.env) / "predictions", hiding=hiding)
    _say(channel, {"ready": True})
    for line in sys.stdin.buffer:
        records = [shadow.answer(copy) for copy in orjson.loads(line)]
        for record in records:
            log.append(record)
        _say(channel, {"failed": sum(record["status"] != 200 for record in records)})
    log.close()
    return 0


def _say(channel: int, content: dict[str, Any]) -> None:
    line = orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
    while line:
        line = line[os.write(channel, line) :]


if __name__ == "__main__":
    sys.exit(main())
