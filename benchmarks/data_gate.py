"""Speed and memory of the data gate: checks, drift, and what every script imports, beside the tools people use.

Each measurement runs in a process of its own (``benchmarks/tools``), each tool's import is counted apart, and this
process stays small: the peak memory that Linux reports of a child starts at that of its parent.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from _figures import HERE, Figures, arguments
from _peers import python, run
from line import clone
from rich.console import Console
from rich.table import Table

END = "2014-01-01T08:00:00Z"
"""When all 336,776 flights of 2013 are known."""
COPIES = 90
"""Of the flights: 30.3 million rows."""
HEAVY = (
    "numpy", "pandas", "polars", "scipy", "sklearn", "matplotlib", "mlflow", "dvc", "pandera", "onnx", "onnxruntime",
    "skl2onnx", "skops", "pyarrow", "aiohttp", "starlette", "uvicorn", "sqlalchemy",
)  # fmt: skip
UNUSED = {
    "ingest.py": ("scipy", "sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera"),
    "validate_data.py": ("scipy", "sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera"),
    "build_features.py": ("scipy", "sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera"),
    "fetch_champion.py": ("scipy", "sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera", "polars"),
    "check_drift.py": ("sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera"),
    "decide.py": ("sklearn", "matplotlib", "mlflow", "dvc", "onnxruntime", "pandera"),
}
"""The steps up to a first decision, and what none of them needs where there is no champion."""


def process(command: list[str], folder: Path) -> tuple[float, float, int, str]:
    """Run a command to its end: seconds, peak resident memory in MB, exit code, and what it said."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "CLEARWAY_PROJECT": str(folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    return took, usage.ru_maxrss / 1024, child.returncode, text


def judged(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak MB and last line of a command that passes or refuses its data, and does not break."""
    took, peak, code, text = process(command, folder)
    if code not in (0, 1) or "Traceback" in text:
        sys.exit(f"{' '.join(command)} ended with exit code {code}: {text[-2000:]}")
    return took, peak, text.strip().splitlines()[-1]


def required(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of a command that must succeed."""
    took, peak, code, text = process(command, folder)
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {code}: {text[-2000:]}")
    return took, peak


def measure_process(command: list[str], folder: Path, *, quick: bool) -> tuple[float, str]:
    """Median seconds of five runs, after one that fills caches, and the last line it said; quickly, of one run."""
    runs = [judged(command, folder) for _ in range(1 if quick else 6)]
    return statistics.median(took for took, _, _ in (runs if quick else runs[1:])), runs[0][2]


def show(title: str, rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    """A table of what each tool measured; ``columns`` maps keys to headings."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("tool")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for tool, measured in rows.items():
        cells = (measured.get(key, "") for key in columns)
        table.add_row(tool, *(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=110).print(table)


def checks(project: Path, figures: Figures, *, quick: bool) -> None:
    """The flights of 2013, all of schema.yaml: the checks in memory, and a process from its start to the verdict."""
    flights = project / "data" / "raw" / "flights.parquet"
    measured = {"Clearway": run("clearway", "clearway_checks.py", project, "flights", 3 if quick else 9)}
    for tool, name in (("Great Expectations", "great_expectations"), ("plain pandas", "pandas")):
        command = [python(name), str(HERE / "tools" / f"{name}_checks.py"), str(flights), "1"]
        walls, said = measure_process(command, project, quick=quick)
        measured[tool] = json.loads(said)
        if not quick:
            measured[tool] = run(name, f"{name}_checks.py", flights, 5)
        measured[tool]["process"] = walls
    walls, said = measure_process([sys.executable, "scripts/validate_data.py"], project, quick=quick)
    measured["Clearway"]["process"] = walls
    print(f"validate_data.py: {said}")
    columns = {
        "checks": "checks",
        "seconds": "checks, s",
        "import_seconds": "import, s",
        "read_seconds": "read, s",
        "set_up_seconds": "set up, s",
        "process": "whole process, s",
        "verdict": "verdict",
    }
    show(
        "Checks of the flights, 336,776 × 19 (Clearway's process checks all tables and writes reports)",
        measured,
        columns,
    )
    ours, other = measured["Clearway"], measured["Great Expectations"]
    figures.add("checks", ours["checks"])
    figures.add("checks_seconds", ours["seconds"])
    figures.add("checks_over_great_expectations", other["seconds"] / ours["seconds"])
    figures.add("checks_over_pandas", measured["plain pandas"]["seconds"] / ours["seconds"])
    figures.add("process_seconds", ours["process"])
    figures.add("process_over_great_expectations", other["process"] / ours["process"])


def edit_schema(project: Path, edit: Callable[[dict[str, Any]], None]) -> str:
    """Change the tables of a project's schema.yaml; returns the text that was there."""
    path = project / "schema.yaml"
    before = path.read_text(encoding="utf-8")
    schema = yaml.safe_load(before)
    edit(schema["tables"])
    path.write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return before


def weather_ends_early(tables: dict[str, Any]) -> None:
    """The source's weather ends a day before its flights, and at the end of the year that is rightly an error."""
    weather = tables["weather"]
    weather.pop("freshness", None)
    weather["rules"] = [rule for rule in weather.get("rules", ()) if "as_of" not in rule["expression"]]


def allow_many(tables: dict[str, Any]) -> None:
    """Any number of flights, told apart by their number."""
    tables["flights"]["rows"] = {"min": 1}
    tables["flights"]["columns"]["flight"] = {"kind": "int", "min": 1}


def many_rows(project: Path, figures: Figures, *, copies: int) -> None:
    """A file of many rows, streamed: ``validate_data.py --against``."""
    big = project / "many.parquet"
    raw = project / "data" / "raw" / "flights.parquet"
    required(
        [sys.executable, str(HERE / "tools" / "write_tables.py"), "many", str(raw), str(big), str(copies)], project
    )
    kept = edit_schema(project, allow_many)
    command = [sys.executable, "scripts/validate_data.py", "--against", str(big), "--table", "flights"]
    took, peak, said = judged(command, project)
    (project / "schema.yaml").write_text(kept, encoding="utf-8")
    big.unlink()
    print(f"{copies} × the flights, streamed: {took:.1f} s, {peak:,.0f} MB; {said}")
    figures.add("many_rows_seconds", took)
    figures.add("many_rows_peak_gb", peak / 1024)


def drift(folder: Path, figures: Figures, *, sizes: tuple[int, int], quick: bool) -> None:
    """15 columns, the full verdict; quickly, the peers only at the first size."""
    columns = {"import_seconds": "import, s", "seconds": "verdict, s", "extra_mb": "extra MB", "data_mb": "data MB"}
    took: dict[int, float] = {}
    for rows in sizes:
        required([sys.executable, str(HERE / "tools" / "write_tables.py"), "drift", str(folder), str(rows)], folder)
        files = [folder / f"{side}-{rows}.parquet" for side in ("reference", "current")]
        measured = {"Clearway": run("clearway", "clearway_drift.py", *files, 5 if rows < 10**6 else 3)}
        if not quick or rows == sizes[0]:
            measured["Evidently"] = run("evidently", "evidently_drift.py", *files)
        if not quick:
            measured["plain pandas and SciPy"] = run("pandas", "pandas_drift.py", *files)
        show(f"Drift of 15 columns, {rows:,} rows against {rows:,}", measured, columns)
        ours = measured["Clearway"]
        took[rows] = ours["seconds"]
        name = f"{rows // 1_000_000}m" if rows >= 10**6 else f"{rows // 1000}k"
        figures.add(f"drift_{name}_seconds", ours["seconds"])
        if "Evidently" in measured:
            figures.add(f"drift_{name}_over_evidently", measured["Evidently"]["seconds"] / ours["seconds"])
            figures.add(f"drift_{name}_evidently_seconds", measured["Evidently"]["seconds"])
        figures.add(f"drift_{name}_extra_memory", ours["extra_mb"] / ours["data_mb"])
    first, last = sizes[0], sizes[-1]
    figures.add("drift_growth_rows", took[last] / took[first] / (last / first))
    twice = [folder / f"{side}-{first}-twice.parquet" for side in ("reference", "current")]
    more = run("clearway", "clearway_drift.py", *twice, 5)
    figures.add("drift_growth_columns", more["seconds"] / took[first] / 2)
    files = [folder / f"{side}-{last}.parquet" for side in ("reference", "current")]
    domain = run("clearway", "clearway_domain.py", *files, 1 if quick else 3)
    figures.add("domain_seconds", domain["seconds"])
    figures.add("domain_import_seconds", domain["import_seconds"])


def loaded(script: list[str], project: Path) -> set[str]:
    """The heavy libraries that a script imports."""
    _, _, code, text = process([sys.executable, "-X", "importtime", *script], project)
    if code not in (0, 1):
        sys.exit(f"{' '.join(script)} ended with exit code {code}: {text[-2000:]}")
    names = re.findall(r"^import time:.*\|\s*([A-Za-z_0-9.]+)$", text, flags=re.MULTILINE)
    return {name.split(".")[0] for name in names} & set(HEAVY)


def scripts(project: Path, figures: Figures, *, quick: bool) -> None:
    """``--help`` of every script, and the imports of the steps up to a first decision."""
    table = Table(title="Imports", title_justify="left", box=None)
    for column in ("script", "--help, s", "loads for it", "loads in its work"):
        table.add_column(column, justify="right" if column == "--help, s" else "left")
    slowest, unused = 0.0, []
    steps = list(UNUSED)[:2] if quick else list(UNUSED)
    work = {name: loaded([f"scripts/{name}"], project) for name in steps}  # in the order of the line
    for path in sorted((project / "scripts").glob("*.py")):
        command = [sys.executable, f"scripts/{path.name}", "--help"]
        took, _ = measure_process(command, project, quick=quick)
        for_help = loaded(command[1:], project)
        slowest = max(slowest, took)
        wrong = for_help | (work.get(path.name, set()) & set(UNUSED.get(path.name, ())))
        unused += [f"{path.name}: {library}" for library in sorted(wrong)]
        table.add_row(path.name, f"{took:.2f}", ", ".join(for_help), ", ".join(sorted(work.get(path.name, ()))))
    Console(width=110).print(table)
    if unused:
        print(f"imported without need: {'; '.join(unused)}")
    figures.add("help_seconds", slowest)
    figures.add("unused_imports", len(unused))


def main() -> int:
    options = arguments((__doc__ or "").splitlines()[0])
    figures = Figures("data_gate")
    for peer in ("evidently", "great_expectations"):
        python(peer)
    with tempfile.TemporaryDirectory(prefix="clearway-bench-") as temporary:
        project = clone(Path(temporary) / "project")
        params = (project / "params.yaml").read_text(encoding="utf-8")
        params = re.sub(r'^as_of: "[^"]*"', f'as_of: "{END}"', params, flags=re.MULTILINE)
        (project / "params.yaml").write_text(params, encoding="utf-8")
        edit_schema(project, weather_ends_early)
        required([sys.executable, "scripts/ingest.py"], project)
        checks(project, figures, quick=options.quick)
        many_rows(project, figures, copies=3 if options.quick else COPIES)
        drift(
            Path(temporary),
            figures,
            sizes=(30_000, 100_000) if options.quick else (300_000, 3_000_000),
            quick=options.quick,
        )
        scripts(project, figures, quick=options.quick)
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
