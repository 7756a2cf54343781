"""Rows over HTTP: Clearway beside ``mlflow models serve``, MLServer, BentoML and a bare Starlette, on the same model.

The load generator is wrk (Debian: ``apt-get install wrk``). All servers run at the same time, and only one is asked at
a time, in turn: a neighbour that takes the machine for a while takes it from all of them. Clearway runs the whole path:
validation, routing between two versions, look-up of the version, score, log. The answers are checked before they are
counted.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _peers
import _servers
from _figures import HERE, Figures, arguments
from _servers import Serving, free_port, running
from rich.console import Console
from rich.table import Table

TOOLS = HERE / "tools"
WORKERS = 2
CONNECTIONS = (1, 8, 32)
BATCH, BATCH_CONNECTIONS = 1000, 4
STARTS = 5
PEERS = ("mlflow models serve", "MLServer", "BentoML")
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A server, how it is asked for rows, and how its answer is read."""

    serving: Serving
    path: str
    body: Callable[[list[Row]], Any]
    scores: Callable[[Any], list[float]] | None
    """None: it answers nothing of interest."""


def main() -> int:
    options = arguments(__doc__ or "")
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed: apt-get install wrk")
    figures = Figures("serving")
    rounds, seconds = (1, 0.7) if options.quick else (4, 5.0)
    with tempfile.TemporaryDirectory(prefix="clearway-serving-") as temporary:
        folder = Path(temporary)
        for name, kind in (("network", "onnx"), ("estimator", "sklearn")):
            _peers.run("clearway", "serving_model.py", folder / name, WORKERS, kind)
        known = json.loads((folder / "network" / "rows.json").read_text(encoding="utf-8"))
        cold_starts(figures, folder, 1 if options.quick else STARTS)
        with servers(folder) as asked:
            for name, one in asked.items():
                check(name, one, known)
            measured = measure(folder, asked, known["rows"], rounds, seconds)
            workers = asked["Clearway"].serving.process.children()
            figures.add("worker_mb", max(worker.memory_info().rss for worker in workers) / 2**20)
            memory = {name: one.serving.memory_mb() for name, one in asked.items()}
            starts = {name: one.serving.seconds for name, one in asked.items()}
    show(measured, memory, starts)
    tell(figures, measured)
    return figures.finish(check=options.check, quick=options.quick)


def cold_starts(figures: Figures, folder: Path, times: int) -> None:
    """From the start of ``scripts/serve.py`` to its first answer, with two versions."""
    found = []
    for _ in range(times):
        with _servers.clearway(folder / "network" / "project", {}) as serving:
            found.append(serving.seconds)
    figures.add("cold_start_seconds", statistics.median(found))


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, Asked]]:
    """All servers, by name."""
    project, pipeline = folder / "network" / "project", folder / "network" / "pipeline.joblib"

    def one_or_many(rows: list[Row]) -> Any:
        return rows[0] if len(rows) == 1 else {"rows": rows}

    def predicted(answer: Any) -> list[float]:
        return [one["score"] for one in answer.get("predictions", [answer])]

    def many(rows: list[Row]) -> Any:
        return {"rows": rows}

    def records(rows: list[Row]) -> Any:
        return {"dataframe_records": rows}

    def predictions(answer: Any) -> list[float]:
        return list(answer["predictions"])

    def first_output(answer: Any) -> list[float]:
        return list(answer["outputs"][0]["data"])

    with ExitStack() as stack:
        made: dict[str, Asked] = {}

        def add(name: str, serving: Any, path: str, body: Any, scores: Any) -> None:
            made[name] = Asked(stack.enter_context(serving), path, body, scores)

        def add_clearway(name: str, source: Path, canary: bool, script: str = "scripts/serve.py") -> None:
            copy = folder / name
            shutil.copytree(source, copy)
            if not canary:
                tell_all(copy)
            add(name, _servers.clearway(copy, {}, script), "/predict", one_or_many, predicted)

        add_clearway("Clearway", project, canary=True)
        add_clearway("Clearway, one version", project, canary=False)
        add_clearway("Clearway, no routing, no log", project, canary=False, script="benchmarks/tools/serve_bare.py")
        add_clearway("Clearway, no ONNX", folder / "estimator" / "project", canary=True)
        add("bare Starlette", _servers.hello(folder, WORKERS), "/predict", one_or_many, None)
        for workers in (1, WORKERS):  # as they start by themselves, and as many as we have
            more = f", {workers} workers" if workers > 1 else ""
            add(f"mlflow models serve{more}", mlflow(folder, pipeline, workers), "/invocations", records, predictions)
            add(f"MLServer{more}", mlserver(folder, pipeline, workers), "/v2/models/served/infer", table, first_output)
            add(f"BentoML{more}", bentoml(folder, pipeline, workers), "/predict", many, list)
        yield made


def tell_all(project: Path) -> None:
    """Have the stable version answer all."""
    said = json.loads((project / "var/environments/production/routing.json").read_text(encoding="utf-8"))
    sys.path.insert(0, str(TOOLS))
    import serving_model

    serving_model.deploy(project / "var/environments/production", said["stable"], None)


@contextmanager
def mlflow(folder: Path, pipeline: Path, workers: int) -> Iterator[Serving]:
    model, port = folder / "mlflow", free_port()
    if not model.exists():
        _peers.run("clearway", "mlflow_pipeline.py", pipeline, model)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    command += ["--env-manager", "local", "--workers", str(workers)]
    with running(
        command, folder, f"mlflow.serve.{workers}", port, lambda: _servers.answers_at(port, "/ping")
    ) as serving:
        yield serving


@contextmanager
def mlserver(folder: Path, pipeline: Path, workers: int) -> Iterator[Serving]:
    home = folder / f"mlserver_{workers}"
    home.mkdir()
    port, beside = free_port(), free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": beside, "metrics_port": free_port()}
    settings |= {"parallel_workers": workers, "debug": False}
    model = {"name": "served", "implementation": "mlserver_pipeline.Pipeline", "parameters": {"uri": str(pipeline)}}
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(json.dumps(model))
    shutil.copy(TOOLS / "mlserver_pipeline.py", home)
    interpreter = _peers.python("mlserver")
    command = [interpreter, str(Path(interpreter).with_name("mlserver")), "start", str(home)]
    ready = "/v2/models/served/ready"
    with running(command, home, "mlserver", port, lambda: _servers.answers_at(port, ready), quiet(home)) as serving:
        yield serving


@contextmanager
def bentoml(folder: Path, pipeline: Path, workers: int) -> Iterator[Serving]:
    home, port = folder / f"bentoml_{workers}", free_port()
    home.mkdir()
    service = (TOOLS / "bento_pipeline.py").read_text(encoding="utf-8").replace("workers=1", f"workers={workers}")
    (home / "bento_pipeline.py").write_text(service, encoding="utf-8")
    interpreter = _peers.python("bentoml")
    command = [interpreter, str(Path(interpreter).with_name("bentoml")), "serve", "bento_pipeline:Pipeline"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(home)]
    variables = quiet(home) | {"PIPELINE": str(pipeline), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    with running(command, home, "bentoml", port, lambda: _servers.answers_at(port, "/readyz"), variables) as serving:
        yield serving


def quiet(home: Path) -> dict[str, str]:
    """Variables of a peer, whose scikit-learn must not fight itself for the cores either."""
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(home)}


def table(rows: list[Row]) -> Any:
    """Rows as MLServer reads a table: a tensor for each column."""
    kinds = {str: "BYTES", float: "FP64", int: "FP64"}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    inputs = [
        {"name": name, "shape": [len(rows), 1], "datatype": kinds[type(values[0])], "data": values}
        | ({"parameters": {"content_type": "str"}} if type(values[0]) is str else {})
        for name, values in columns.items()
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


def check(name: str, asked: Asked, known: dict[str, Any]) -> None:
    """Stop unless the server scores rows as scikit-learn does, within float32; the canary is another model."""
    if asked.scores is None:
        return
    wrong = 0
    for row, score in zip(known["rows"][:20], known["scores"][:20], strict=True):
        content = json.dumps(asked.body([row])).encode()
        url = f"http://127.0.0.1:{asked.serving.port}{asked.path}"
        request = urllib.request.Request(url, content, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            (said,) = asked.scores(json.loads(answer.read()))
        wrong += abs(said - score) > 0.05
    if wrong > 8:
        sys.exit(f"{name}: {wrong} of 20 scores are not the model's")


def measure(
    folder: Path, asked: dict[str, Asked], rows: list[Row], rounds: int, seconds: float
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """What wrk says of each server by the number of connections, of each round."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in asked}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for name, one in asked.items():
                if name.startswith(PEERS) and name.endswith("workers") and connections != CONNECTIONS[-1]:
                    continue  # to know which is faster under load, it is enough to look there
                said = load(folder, one, [[row] for row in rows], connections, seconds)
                found[name].setdefault(str(connections), []).append(said)
        for name in ("Clearway",):
            said = load(folder, asked[name], [rows[:BATCH]], BATCH_CONNECTIONS, seconds)
            found[name].setdefault("batch", []).append(said)
    return found


def load(folder: Path, asked: Asked, asks: list[list[Row]], connections: int, seconds: float) -> dict[str, float]:
    """One run of wrk; the processor time that the server spent is added."""
    bodies = folder / "bodies.txt"
    bodies.write_text("\n".join(json.dumps(asked.body(rows)) for rows in asks) + "\n", encoding="utf-8")
    url = f"http://127.0.0.1:{asked.serving.port}{asked.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    used = asked.serving.processor_seconds()
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "-s", str(TOOLS / "post.lua"), url, "--", str(bodies)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"wrk failed: {done.stdout}{done.stderr}")
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    answered = said["requests_per_second"] * (time.perf_counter() - began)
    said["processor_us"] = (asked.serving.processor_seconds() - used) / max(answered, 1.0) * 1e6
    return said


def middle(measured: list[dict[str, float]], what: str) -> float:
    return statistics.median(one[what] for one in measured)


def tell(figures: Figures, measured: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """The figures that have goals."""

    def rate(name: str, connections: str) -> float:
        return middle(measured[name][connections], "requests_per_second")

    ours = measured["Clearway"]
    for connections in map(str, CONNECTIONS):
        figures.add(f"single_{connections}_requests_per_second", rate("Clearway", connections))
        for share in (50, 95, 99):
            figures.add(f"single_{connections}_p{share}_ms", middle(ours[connections], f"p{share}_ms"))
    for name in PEERS:
        short = name.partition(" ")[0].lower()
        figures.add(f"single_32_over_{short}", rate("Clearway", "32") / max(rate(name, "32"), 1e-9))
        both = rate(f"{name}, {WORKERS} workers", "32")
        figures.add(f"single_32_over_{short}_{WORKERS}_workers", rate("Clearway", "32") / max(both, 1e-9))
    figures.add("hello_over_single_32", rate("bare Starlette", "32") / rate("Clearway", "32"))
    figures.add("errors", sum(one["errors"] for runs in ours.values() for one in runs))
    figures.add("batch_rows_per_second", BATCH * rate("Clearway", "batch"))
    bare, whole = rate("Clearway, no routing, no log", "32"), rate("Clearway, one version", "32")
    figures.add("routing_and_log_share", 1.0 - whole / bare)
    figures.add("no_onnx_32_over_bentoml", rate("Clearway, no ONNX", "32") / max(rate("BentoML", "32"), 1e-9))


def show(
    measured: dict[str, dict[str, list[dict[str, float]]]], memory: dict[str, float], starts: dict[str, float]
) -> None:
    title = f"one row a request, {WORKERS} workers of ours, those of others by default 1; median of rounds"
    table = Table(title=title, title_justify="left", box=None)
    columns = ("server", "connections", "requests/s", "p50, ms", "p95, ms", "p99, ms", "CPU µs each", "errors")
    for column in (*columns, "start, s", "MB"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for name, runs in measured.items():
        for connections, found in runs.items():
            values = [middle(found, what) for what in ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")]
            more = [f"{middle(found, 'processor_us'):,.0f}", f"{sum(one['errors'] for one in found):,.0f}"]
            table.add_row(
                name,
                connections,
                *(f"{one:,.4g}" for one in values),
                *more,
                f"{starts[name]:.2f}",
                f"{memory[name]:,.0f}",
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
