"""A fire drill: deployments in a row under load, one of them bad, rolled back for real, and every answer counted.

It makes a tiny project in a folder of its own, starts its server, and runs the very commands that people and workflows
run. The bad version passes its verification and its warm-up and fails half of what it is asked: what no check before
the traffic can see.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import numpy as np
import yaml

from clearway.bundle import pack, payload_digest
from clearway.canary_state import canary_file
from clearway.encoding import InputSchema, NumericFeature
from clearway.errors import ClearwayError
from clearway.files import write_json
from clearway.ledger import Entry, read_ledger
from clearway.local_target import find_server, stop
from clearway.model import INPUT, OUTPUT
from clearway.project_folder import HOME
from clearway.schema import Column
from clearway.serving.app import VERSION_HEADER
from clearway.workspace import Workspace

By = Literal["command", "canary"]

ENVIRONMENT = "drill"
GOAL_MS = 1000.0
"""From the verdict to the last answer of the bad version."""
SIZES = 32
"""Rows that differ; the bad version fails on the upper half of them."""
TELLING = 5
"""Failed answers after which somebody presses the button."""
_TIMEOUT = 10.0
_COMMAND_SECONDS = 180.0


@dataclass(frozen=True)
class Answer:
    """One request: wall times, status (None: no answer), and the version that answered."""

    sent: float
    done: float
    status: int | None
    version: str | None

    @property
    def failed(self) -> bool:
        return self.status != 200


@dataclass(frozen=True)
class Moment:
    """A moment of the rollback."""

    what: str
    at: float


@dataclass(frozen=True)
class Drill:
    """What came of a drill."""

    bad: str
    rate: float
    """Requests sent per second, as it came out."""
    answers: Sequence[Answer]
    deployments: Sequence[tuple[str, float]]
    """Digest and seconds of each command, in order."""
    moments: Sequence[Moment]
    """The rollback, from the verdict to the last bad answer."""

    @property
    def own_failures(self) -> int:
        """Requests that the bad version failed."""
        return sum(answer.failed and answer.version == self.bad for answer in self.answers)

    @property
    def other_failures(self) -> int:
        """Requests that failed and were not the bad version's: there may be none."""
        return sum(answer.failed and answer.version != self.bad for answer in self.answers)

    @property
    def rollback_ms(self) -> float:
        """From the verdict to the end of the last request that the bad version answered."""
        return (self.moments[-1].at - self.moments[0].at) * 1000


@dataclass
class _Load:
    """Sends requests at a fixed rate, whatever becomes of them, and keeps what came back."""

    url: str
    rate: float
    answers: list[Answer] = field(default_factory=list)

    async def run(self, stopped: asyncio.Event) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            begun = asyncio.get_running_loop().time()
            for number in itertools.count():
                if stopped.is_set():
                    break
                tasks.create_task(self._ask(session, number))
                due = begun + number / self.rate
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        row = {"id": f"q{number}", "entity": f"e{number % 997}", "size": number * 7 % SIZES}
        sent = time.time()
        status, version = None, None
        try:
            async with session.post(f"{self.url}/predict", json=row) as answer:
                await answer.read()
                status, version = answer.status, answer.headers.get(VERSION_HEADER)
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # counted as no answer
        self.answers.append(Answer(sent, time.time(), status, version))

    def failures_of(self, digest: str) -> int:
        return sum(answer.failed and answer.version == digest for answer in self.answers)


def drill(
    folder: Path,
    *,
    deployments: int = 10,
    bad: int = 7,
    rate: float = 500.0,
    pause: float = 1.0,
    by: By = "command",
    progress: Callable[[str], None] = lambda _: None,
) -> Drill:
    """Deploy so many versions in a row under ``rate`` requests a second, the ``bad``-th of which is bad.

    Parameters
    ----------
    folder : Path
        Where the project is made; it is empty or does not exist.
    pause : float
        Seconds of traffic after each deployment.
    by : "command" or "canary"
        Who rolls back: ``scripts/rollback.py``, once answers of the new version have failed; or the canary's judge,
        ``scripts/check_canary.py --watch``, the bad version being on trial at 50%.

    Raises
    ------
    ClearwayError
        A command failed.
    """
    if not 1 < bad <= deployments:
        raise ClearwayError(f"--bad {bad}: it must be one of the deployments 2 to {deployments}")
    workspace = Workspace(folder)
    digests = _make_project(workspace, deployments, bad)
    try:
        progress(f"a project with {deployments} versions, number {bad} of them bad, in {folder}")
        first = _deploy(workspace, digests[0])
        server = find_server(workspace, ENVIRONMENT)
        assert server is not None
        load = _Load(server.url, rate)
        return asyncio.run(_act(workspace, load, digests, first, digests[bad - 1], pause, by, progress))
    finally:
        stop(workspace, ENVIRONMENT)


async def _act(
    workspace: Workspace,
    load: _Load,
    digests: Sequence[str],
    first: float,
    bad: str,
    pause: float,
    by: By,
    progress: Callable[[str], None],
) -> Drill:
    stopped = asyncio.Event()
    began = time.time()
    sending = asyncio.create_task(load.run(stopped))
    done: list[tuple[str, float]] = [(digests[0], first)]
    moments: list[Moment] = []
    try:
        await asyncio.sleep(pause)
        for number, digest in enumerate(digests[1:], 2):
            trial = digest == bad and by == "canary"
            seconds = await asyncio.to_thread(_deploy, workspace, digest, *(("--canary", "50") if trial else ()))
            done.append((digest, seconds))
            progress(f"deployment {number}: {digest[:12]} is served after {seconds * 1000:.0f} ms")
            if digest == bad:
                moments = await (_judged(workspace) if trial else _pressed(workspace, load, bad))
                progress("the bad version is rolled back")
            await asyncio.sleep(pause)
    finally:
        stopped.set()
        await sending
    last = [answer.done for answer in load.answers if answer.version == bad]
    moments.append(Moment("last answer of the bad version", max(last, default=moments[0].at)))
    achieved = len(load.answers) / (time.time() - began)
    return Drill(bad, achieved, load.answers, done, sorted(moments, key=lambda moment: moment.at))


async def _pressed(workspace: Workspace, load: _Load, bad: str) -> list[Moment]:
    """Somebody sees failing answers, and runs the command."""
    deadline = time.monotonic() + _COMMAND_SECONDS
    while load.failures_of(bad) < TELLING:
        if time.monotonic() > deadline:
            raise ClearwayError("the bad version did not fail: is there any traffic?")
        await asyncio.sleep(0.01)
    verdict = Moment("verdict: answers fail, the command is started", time.time())
    await asyncio.to_thread(_script, workspace, "rollback.py", "--reason", "drill: half of the answers fail")
    return [verdict, *_recorded(workspace)]


async def _judged(workspace: Workspace) -> list[Moment]:
    """The canary's judge looks until it has a verdict, and carries it out."""
    await asyncio.to_thread(_script, workspace, "check_canary.py", "--watch", "--timeout", "120", allowed=(4,))
    written = canary_file(workspace.environment(ENVIRONMENT)).stat().st_mtime
    return [Moment("verdict of the canary's judge", written), *_recorded(workspace)]


def _recorded(workspace: Workspace) -> list[Moment]:
    folder = workspace.environment(ENVIRONMENT)
    entry: Entry = read_ledger(folder, ENVIRONMENT)[-1]
    if entry.action != "rollback":
        raise ClearwayError(f"the last entry of {folder} is {entry.action}, not rollback")
    return [
        Moment(f"ledger: entry {entry.sequence}", entry.at.timestamp()),
        Moment("routing table", (folder / "routing.json").stat().st_mtime),
    ]


def timeline(found: Drill) -> str:
    """The drill as two aligned tables: each deployment with its requests, and the rollback in milliseconds."""
    asked = Counter(answer.version for answer in found.answers)
    failed = Counter(answer.version for answer in found.answers if answer.failed)
    lines = ["deployment    version       served after  requests  failed"]
    for number, (digest, seconds) in enumerate(found.deployments, 1):
        note = "  the bad one" if digest == found.bad else ""
        counts = f"{asked[digest]:>8,}  {failed[digest]:>6,}"
        lines.append(f"{number:>10}    {digest[:12]}  {seconds * 1000:>9,.0f} ms  {counts}{note}")
    start = found.moments[0].at
    width = max(len(moment.what) for moment in found.moments)
    lines += ["", f"{'rollback'.ljust(width)}      after"]
    lines += [f"{moment.what.ljust(width)}  {(moment.at - start) * 1000:>6,.0f} ms" for moment in found.moments]
    goal = "within" if found.rollback_ms <= GOAL_MS else "NOT within"
    return "\n".join(
        [
            *lines,
            "",
            f"{len(found.answers):,} requests, {found.rate:,.0f} a second; {found.own_failures:,} failed by the bad "
            f"version, {found.other_failures:,} by anything else",
            f"rolled back in {found.rollback_ms:,.0f} ms, {goal} the goal of {GOAL_MS:,.0f} ms",
        ]
    )


def _deploy(workspace: Workspace, digest: str, *arguments: str) -> float:
    began = time.perf_counter()
    _script(workspace, "deploy.py", "--digest", digest, "--reason", "drill", *arguments)
    return time.perf_counter() - began


def _script(workspace: Workspace, name: str, *arguments: str, allowed: Sequence[int] = (0,)) -> None:
    script = str(HOME / "scripts" / name)
    command = [sys.executable, script, "--project", str(workspace.root), "--env", ENVIRONMENT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    if done.returncode not in allowed:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise ClearwayError(f"{name} ended with exit code {done.returncode}: {said[-1].removeprefix('error: ')}")


def _make_project(workspace: Workspace, versions: int, bad: int) -> list[str]:
    """A project without data or training: what is drilled is what comes after."""
    params = {
        "project": {"name": "drill"},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "data": {"table": "rows", "label": "large"},
        # MLflow's alias follows the last environment: the drill's own is another, and needs no registry
        "environments": {ENVIRONMENT: {"port": 0}, "unused": {"port": 0, "requires": ENVIRONMENT}},
    }
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.params_file.write_text(yaml.safe_dump(params))
    return [make_version(workspace, number, fails=number == bad) for number in range(1, versions + 1)]


def make_version(workspace: Workspace, number: int, *, fails: bool) -> str:
    """A model that looks its answer up by the row's size, in a table that is too short where it is to fail."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    payload = workspace.build / f"version-{number}"
    payload.mkdir(parents=True)
    schema = InputSchema(features=(NumericFeature(name="size", declared=Column(kind="float")),))
    write_json(payload / "schema.json", schema.model_dump(mode="json"))
    train = {"estimator": "none", "arguments": {}, "threads": 1}
    write_json(payload / "params.json", {"project": "drill", "seed": number, "threshold": 0.5, "train": train})
    write_json(payload / "features.json", {"numeric": ["size"], "categorical": []})
    (payload / "model.skops").write_bytes(b"never read by a server")
    table = np.full((SIZES // 2 if fails else SIZES, 2), 0.5, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [INPUT, "column"], ["size"], axis=1),
            helper.make_node("Cast", ["size"], ["position"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "position"], [OUTPUT]),
        ],
        "drill",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(0, dtype=np.int64), "column")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, payload / "model.onnx")
    digest = payload_digest(payload)
    golden = json.dumps({"rows": [{"size": 1.0}], "scores": [0.5]}).encode()
    pack(payload, {"golden.json": golden}, workspace.bundles / digest)
    return digest
