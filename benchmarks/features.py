"""The feature store beside Feast's own paths: training sets, reads over HTTP, and filling the online store.

Everything is measured in one run on this machine: each store in a process of its own, each server on a free port of
the loopback address, asked by a process of its own (``tools/load.py``), whose own ceiling is measured first.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import _servers
import psutil
import yaml
from _figures import HERE, Figures, arguments
from _servers import Serving
from data_gate import END, edit_schema, required, show, weather_ends_early
from line import clone

PARTS = ("offline", "flights", "online", "materialise")
CONNECTIONS, CLIENTS, RATE = 16, 100, 1000
WORKERS = 2
"""Processes of each server that answers over HTTP: one for each core."""
GUARD_GB = 14.0
"""Resident memory at which a measured process is ended."""
ALL_TIME = 1000
"""A TTL in days that covers every reading: each question has all earlier readings of its entity to choose from."""
WEEK = 7
NO_RECYCLING = ("--max-requests", "0", "--max-requests-jitter", "0")
"""``feast serve`` starts its worker anew every 1,000 requests, unless told otherwise."""
STORES = {"SQLite": "feature_store.yaml", "Redis": "feature_store.redis.yaml"}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    histories: int
    """Entities with fifty readings each in the offline measurement."""
    questions: int
    repeats: int
    sensors: int
    """Entities of the online measurement."""
    rounds: int
    """How often each server of ours and the bare one are asked over HTTP, in turn."""
    closed_seconds: float
    open_seconds: float
    rows: int
    """Rows filled by the line."""
    feast_rows: int
    """Rows filled by Feast, which takes long."""
    flights_as_of: str


FULL = Sizes(5000, 300_000, 5, 10_000, 3, 10.0, 60.0, 1_000_000, 100_000, END)
QUICK = Sizes(500, 30_000, 2, 2_000, 1, 2.0, 3.0, 50_000, 5_000, "2013-03-01T08:00:00Z")


class Details:
    """Every row of every table that was shown, for the file beside the figures."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, dict[str, Any]]] = {}

    def show(self, title: str, rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
        self._tables[title] = rows
        known = {name: {key: value for key, value in row.items() if value is not None} for name, row in rows.items()}
        show(title, known, columns)

    def write(self, *, quick: bool) -> None:
        path = HERE / "results" / "features_details.json"
        path.write_text(json.dumps({"quick": quick, "tables": self._tables}, indent=2) + "\n", encoding="utf-8")


def tool(script: str, *given: object, limit: float = 900.0, **variables: str) -> dict[str, Any]:
    """Run ``tools/SCRIPT`` and return what it measured; ``stopped`` says why it was ended before."""
    command = [sys.executable, str(HERE / "tools" / script), *map(str, given)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, env=_servers.environment(**variables), stdout=said, stderr=errors)
        started, process = time.perf_counter(), psutil.Process(child.pid)
        stopped = ""
        while child.poll() is None and not stopped:
            time.sleep(0.05)
            try:
                if process.memory_info().rss > GUARD_GB * 2**30:
                    stopped = f"above {GUARD_GB:g} GB"
            except psutil.NoSuchProcess:
                continue
            if time.perf_counter() - started > limit:
                stopped = f"after {limit:g} s"
        if stopped:
            child.kill()
            child.wait(10)
            return {"stopped": stopped}
        for stream in (said, errors):
            stream.seek(0)
        if child.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with exit code {child.returncode}: {errors.read()[-3000:]}")
        return dict(json.loads(said.read().splitlines()[-1]))


def offline(folder: Path, figures: Figures, details: Details, sizes: Sizes) -> None:
    """``get_historical_features`` of every store, where nothing expires and where readings hold a week."""
    tool("write_sensors.py", "historical", folder, sizes.histories, sizes.questions)
    columns = {
        "seconds": "seconds",
        "extra_mb": "extra MB",
        "lost": "rows lost",
        "different": "rows unlike duckdb's",
        "import_seconds": "import, s",
        "first_seconds": "first call, s",
        "stopped": "stopped",
    }
    names = {"clearway": "Clearway", "duckdb": "Feast, duckdb", "dask": "Feast, dask (default)"}
    for days, stores in ((ALL_TIME, ("duckdb", "clearway", "dask")), (WEEK, ("duckdb", "clearway"))):
        measured = {}
        for store in stores:
            repeats = {"clearway": sizes.repeats, "duckdb": min(3, sizes.repeats), "dask": 1}[store]
            measured[store] = tool("historical.py", folder, store, days, repeats, limit=400)
        answered = [store for store in stores if "stopped" not in measured[store]]
        for store, said in tool("same_answers.py", *(folder / f"{store}.parquet" for store in answered)).items():
            measured[store] |= said
        kept = "nothing expires" if days == ALL_TIME else f"a reading holds {days} days"
        title = (
            f"get_historical_features: {sizes.questions:,} questions × 5 features of "
            f"{sizes.histories * 50 + sizes.histories // 5:,} rows; {kept}"
        )
        details.show(title, {names[store]: measured[store] for store in stores}, columns)
        ours, theirs = measured["clearway"], measured["duckdb"]
        suffix = "" if days == ALL_TIME else "_week"
        figures.add(f"historical{suffix}_seconds", ours["seconds"])
        figures.add(f"historical{suffix}_over_duckdb", theirs["seconds"] / ours["seconds"])
        figures.add(f"historical{suffix}_extra_gb", ours["extra_mb"] / 1024)
        figures.add(f"historical{suffix}_rows_lost", ours["lost"])
        figures.add(f"historical{suffix}_rows_unlike_duckdb", ours["different"])
        if "lost" in measured.get("dask", {}):
            figures.add("historical_dask_rows_lost", measured["dask"]["lost"])


def flights(folder: Path, figures: Figures, details: Details, sizes: Sizes) -> None:
    """The training set of the example: every feature of every flight."""
    project = clone(folder / "flights")
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    params["as_of"] = sizes.flights_as_of
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    edit_schema(project, weather_ends_early)
    required([sys.executable, "scripts/ingest.py"], project)
    measured = tool("flights_training_set.py", project, sizes.repeats, PYTHONPATH=str(project / "src"))
    columns = {
        "questions": "flights",
        "views": "views",
        "features": "features",
        "event_rows": "rows of views",
        "events_seconds": "make the rows, s",
        "seconds": "training set, s",
        "extra_mb": "extra MB",
    }
    details.show("The flights' training set, all views", {"Clearway": measured}, columns)
    figures.add("flights_seconds", measured["seconds"])
    figures.add("flights_events_seconds", measured["events_seconds"])
    figures.add("flights_rows_lost", measured["lost"])


def write_project(folder: Path, as_of: datetime) -> None:
    """The settings of the project ``sensors`` (its package is in ``projects/``)."""
    number = {"kind": "float", "nullable": True}
    readings: dict[str, Any] = {"sensor": {"kind": "str"}, "known_at": {"kind": "timestamp"}}
    readings |= dict.fromkeys(("heat", "load", "noise", "pressure", "speed"), number)
    alarms = {"alarm": "str", "sensor": "str", "asked_at": "timestamp", "raised": "int"}
    schema = {
        "tables": {
            "readings": {"rows": {"min": 1}, "columns": readings},
            "alarms": {"rows": {"min": 1}, "columns": {name: {"kind": kind} for name, kind in alarms.items()}},
        }
    }
    params = {
        "project": {"name": "sensors", "package": "sensors"},
        "as_of": as_of.isoformat(),
        "sources": {name: {"kind": "parquet", "path": f"source/{name}.parquet"} for name in schema["tables"]},
        "split": {"holdout_days": 1, "current_days": 1},
        "drift": {"domain": {"enabled": False}},
        "train": {
            "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
            "arguments": {"max_iter": 10, "min_samples_leaf": 50},
        },
        "environments": {"production": {"port": 0, "workers": WORKERS}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("params", params), ("schema", schema)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for name in STORES.values():
        text = (HERE.parent / name).read_text(encoding="utf-8").replace("project: flights", "project: sensors")
        (folder / name).write_text(text, encoding="utf-8")


def configure(project: Path, store: str, max_staleness_ms: float = 0.0) -> None:
    """Which online store the project reads, and how long a value once read may be used again."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["feature_store"] = STORES[store]
    params["serving"] = {"features": {"max_staleness_ms": max_staleness_ms}}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@contextmanager
def stores(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, dict[str, str]]]:
    """The environment variables with which each named store is reached; Redis is started for it."""
    variables: dict[str, dict[str, str]] = {name: {} for name in names}
    if "Redis" not in names:
        yield variables
        return
    with _servers.redis(folder) as server:
        variables["Redis"] = {"CLEARWAY_REDIS": f"127.0.0.1:{server.port},db=0"}
        yield variables


def online(folder: Path, figures: Figures, details: Details, sizes: Sizes, *, quick: bool) -> None:
    """Five features of one entity by its key over HTTP: the line's server, and ``feast serve``."""
    first = make_model(folder / "line", sizes)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {"closed": {}, "open": {}}

    def measure(name: str, serving: Serving, requests: Path) -> None:
        started = {"start": serving.seconds}
        for kind in runs:
            plan = (CONNECTIONS, sizes.closed_seconds) if kind == "closed" else (CLIENTS, RATE, sizes.open_seconds)
            used = serving.processor_seconds()
            measured = tool("load.py", kind, serving.port, requests, *plan) | started
            measured["processor_us"] = (serving.processor_seconds() - used) / measured["sent"] * 1e6
            measured["memory_mb"] = serving.memory_mb()
            runs[kind].setdefault(name, []).append(measured)

    with stores(folder, tuple(STORES)) as variables:
        for store in STORES:
            project = folder / store.lower()
            shutil.copytree(first, project)
            configure(project, store)
            tool("fill.py", project, as_of_of(project).isoformat(), **variables[store])
        for _ in range(sizes.rounds):
            with _servers.hello(folder, WORKERS) as serving:
                measure("bare Starlette, no features", serving, first / "requests.json")
            for store, staleness in product(STORES, (0.0, 1000.0)):
                project = folder / store.lower()
                configure(project, store, staleness)
                with _servers.clearway(project, variables[store]) as serving:
                    check_scores(serving, project)
                    name = f"Clearway, {store}" + (", cached 1 s" if staleness else "")
                    measure(name, serving, project / "requests.json")
                    tell_lookups(serving, name)
    with _servers.redis(folder) as server:
        peers: list[tuple[str, str, tuple[str, ...]]] = [("feast serve, SQLite", "sqlite", ())]
        if not quick:
            peers += [("feast serve, SQLite, not recycled", "sqlite", NO_RECYCLING)]
            peers += [("feast serve, Redis", f"redis:{server.port}", ())]
        for name, store, options in peers:
            repository = folder / store.partition(":")[0].join(("feast_", ""))
            if not repository.exists():
                shutil.copytree(first / "data" / "feature_tables", repository / "data" / "feature_tables")
                tool("feast_materialize.py", repository, store, as_of_of(first).isoformat())
            with _servers.feast(repository, "--no-access-log", "--workers", str(WORKERS), *options) as serving:
                check_values(serving, first)
                measure(name, serving, first / "requests_feast.json")
    results = {kind: {name: in_the_middle(found) for name, found in named.items()} for kind, named in runs.items()}
    columns = {"requests_per_second": "requests/s", "p50_ms": "p50, ms", "p95_ms": "p95, ms", "p99_ms": "p99, ms"}
    columns |= {"errors": "errors"}
    entities = f"5 features of one of {sizes.sensors:,} entities, {WORKERS} workers"
    if sizes.rounds > 1:
        entities += f"; ours and the bare one: the middle one of {sizes.rounds} rounds by p95, errors of all"
    title = f"{entities}; {CONNECTIONS} connections that always ask"
    more = {"processor_us": "CPU µs each", "start": "start, s", "memory_mb": "MB", "generator_cpu": "CPUs to ask"}
    details.show(title, results["closed"], columns | more)
    title = f"{entities}; {RATE:,} requests/s from {CLIENTS} clients, {sizes.open_seconds:g} s, counted from when due"
    details.show(
        title, results["open"], columns | {"processor_us": "CPU µs each", "sent_late_p95_ms": "sent late, p95 ms"}
    )
    for store in STORES:
        closed, opened = (results[kind][f"Clearway, {store}"] for kind in ("closed", "open"))
        name = f"online_{store.lower()}"
        figures.add(f"{name}_requests_per_second", closed["requests_per_second"])
        figures.add(f"{name}_p95_ms", closed["p95_ms"])
        figures.add(f"{name}_errors", closed["errors"])
        figures.add(f"{name}_start_seconds", closed["start"])
        figures.add(f"{name}_open_p95_ms", opened["p95_ms"])
        figures.add(f"{name}_open_p99_ms", opened["p99_ms"])
        figures.add(f"{name}_open_errors", opened["errors"])
    ours, theirs = (results["closed"][name] for name in ("Clearway, SQLite", "feast serve, SQLite"))
    if theirs["requests_per_second"]:
        figures.add("online_over_feast_serve", ours["requests_per_second"] / theirs["requests_per_second"])


def in_the_middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in the middle by its p95, with the errors of all."""
    middle = sorted(runs, key=lambda run: run["p95_ms"])[len(runs) // 2]
    return middle | {"errors": sum(run["errors"] for run in runs)}


def make_model(project: Path, sizes: Sizes) -> Path:
    """A project whose model was trained by the scripts of the line and is in production; nothing is filled yet."""
    as_of = now()
    write_project(project, as_of)
    tool("write_sensors.py", "online", project, sizes.sensors, as_of.isoformat())
    for script in ("ingest.py", "validate_data.py", "build_features.py", "train.py"):
        command = [sys.executable, str(HERE.parent / "scripts" / script), "--project", str(project)]
        done = subprocess.run(command, env=_servers.environment(), capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{script} ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    tool("sensors_model.py", project, 20_000)
    shutil.rmtree(project / "var" / "feature_store", ignore_errors=True)
    return project


def now() -> datetime:
    """The full hour: readings must be fresh by the clock too, which is what Feast's own server goes by."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def as_of_of(project: Path) -> datetime:
    return datetime.fromisoformat(yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["as_of"])


def check_scores(serving: Serving, project: Path) -> None:
    """Stop unless the server scores entities by their key as scikit-learn scores their latest features."""
    for row in json.loads((project / "expected.json").read_text(encoding="utf-8")):
        answer = post(serving, "/predict", row["body"])
        if abs(answer["score"] - row["score"]) > 1e-5:
            sys.exit(f"the server answers {answer['score']} for {row['sensor']}, expected {row['score']}")


def check_values(serving: Serving, project: Path) -> None:
    """Stop unless Feast's server answers with the latest features."""
    rows = json.loads((project / "expected.json").read_text(encoding="utf-8"))
    features = [f"readings:{name}" for name in rows[0]["features"]]
    for row in rows[:16]:
        body = {"features": features, "entities": {"sensor": [row["sensor"]]}}
        answer = post(serving, "/get-online-features", body)
        values = {
            name: result["values"][0]
            for name, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
        }
        if any(values[name] != value for name, value in row["features"].items()):
            sys.exit(f"feast serve answers {values} for {row['sensor']}, expected {row['features']}")


def tell_lookups(serving: Serving, name: str) -> None:
    """Print what became of the look-ups; stop if features were missing: the speed would be of something else."""
    with urllib.request.urlopen(f"http://127.0.0.1:{serving.port}/", timeout=10) as answer:
        told = json.loads(answer.read())["features"]
    outcomes = {outcome: count for counts in told["outcomes"].values() for outcome, count in counts.items()}
    if set(outcomes) != {"present"}:
        sys.exit(f"{name}: not every feature was there: {outcomes}")
    asked = outcomes["present"]
    print(
        f"{name}: {asked:,} look-ups, {told['cache_hits'] / asked:.0%} from memory; store failures: {told['failures']}"
        + (f" ({told['last_error']})" if told["failures"] else "")
    )


def post(serving: Serving, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{serving.port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.loads(answer.read()))


def materialise(folder: Path, figures: Figures, details: Details, sizes: Sizes, *, quick: bool) -> None:
    """Event tables into an empty online store: the line's ``fill_online``, and Feast's ``materialize``."""
    measured = {}
    as_of = now()
    with stores(folder, tuple(STORES)) as variables:
        for store in STORES:
            project = folder / f"fill_{store.lower()}"
            write_project(project, as_of)
            configure(project, store)
            tool("write_sensors.py", "events", project, sizes.rows, as_of.isoformat())
            measured[f"Clearway, {store}"] = tool("fill.py", project, as_of.isoformat(), **variables[store])
            figures.add(f"materialise_{store.lower()}_seconds", measured[f"Clearway, {store}"]["seconds"])
    with _servers.redis(folder) as server:
        for name, store in (("Feast, SQLite", "sqlite"), ("Feast, Redis", f"redis:{server.port}"))[: 1 if quick else 2]:
            repository = folder / f"materialize_{store.partition(':')[0]}"
            tool("write_sensors.py", "events", repository, sizes.feast_rows, as_of.isoformat())
            measured[name] = tool("feast_materialize.py", repository, store, as_of.isoformat())
    for row in measured.values():
        row["rows_per_second"] = row["rows"] / row["seconds"]
    columns = {
        "rows": "rows",
        "seconds": "seconds",
        "rows_per_second": "rows/s",
        "extra_mb": "extra MB",
        "again_seconds": "again, nothing new, s",
        "import_seconds": "import, s",
    }
    details.show("Filling an empty online store: one row of five features per entity", measured, columns)
    for store in STORES:
        ours, theirs = measured[f"Clearway, {store}"], measured.get(f"Feast, {store}")
        figures.add(f"materialise_{store.lower()}_rows", ours["rows"])
        if theirs:
            ratio = ours["rows_per_second"] / theirs["rows_per_second"]
            figures.add(f"materialise_{store.lower()}_over_feast", ratio)


def main() -> int:
    options = arguments((__doc__ or "").splitlines()[0], PARTS)
    figures, details = Figures("features"), Details()
    sizes = QUICK if options.quick else FULL
    os.environ.pop("CLEARWAY_REDIS", None)
    chosen = (options.only,) if options.only else PARTS
    with tempfile.TemporaryDirectory(prefix="clearway-bench-") as temporary:
        folder = Path(temporary)
        if "offline" in chosen:
            offline(folder / "offline", figures, details, sizes)
        if "flights" in chosen:
            flights(folder, figures, details, sizes)
        if "online" in chosen:
            online(folder, figures, details, sizes, quick=options.quick)
        if "materialise" in chosen:
            materialise(folder, figures, details, sizes, quick=options.quick)
    code = figures.finish(check=options.check, quick=options.quick, part=options.only)
    details.write(quick=options.quick)
    return code


if __name__ == "__main__":
    sys.exit(main())
