"""Seconds and peak memory of every step of the line on the flights, then `make run` whole: cold, and again unchanged.

Runs in a clone of this repository in a temporary folder, on free ports, with the Python that runs it.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from _figures import Figures, arguments
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    "ingest", "validate_data", "build_features", "fetch_champion", "check_drift", "decide", "train",
    "count_holdout_uses", "validate_model",
    "package_model", "register",
)  # fmt: skip
SCRIPTS = {
    "deploy staging": ("deploy.py", "--env", "staging"),
    "test staging": (),
    "canary 10%": ("deploy.py", "--env", "production", "--canary", "10"),
    "watch canary": ("check_canary.py", "--env", "production", "--watch", "--replay"),
    "promote": ("deploy.py", "--env", "production", "--canary", "100"),
}


def clone(folder: Path) -> Path:
    """The work tree as it is (tracked files), as a git repository of its own, on free ports."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    files = subprocess.run(["git", "ls-files", "-z", "-m", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    params = (folder / "params.yaml").read_text()
    for environment in yaml.safe_load(params)["environments"].values():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            params = params.replace(f"port: {environment['port']}", f"port: {probe.getsockname()[1]}")
    (folder / "params.yaml").write_text(params)
    return folder


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command to its end: seconds, and the peak resident memory of its largest process in MB."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "CLEARWAY_PROJECT": str(folder)}
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}: {errors[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def steps(folder: Path, *, quick: bool) -> None:
    """Every script of the line by itself, so that each has its own memory."""
    table = Table(title="Each step in a process of its own", title_justify="left", box=None)
    for column in ("step", "seconds", "peak MB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    python = [sys.executable]
    commands = {name: [*python, f"scripts/{name}.py"] for name in STAGES}
    if not quick:
        commands |= {name: [*python, f"scripts/{script[0]}", *script[1:]] for name, script in SCRIPTS.items() if script}
        commands["test staging"] = [*python, "-m", "pytest", "-q", "tests/integration", "--env", "staging"]
        order = [*STAGES, *SCRIPTS]
        commands = {name: commands[name] for name in order}
    try:
        for name, command in commands.items():
            seconds, peak = measure(command, folder)
            table.add_row(name, f"{seconds:.1f}", f"{peak:,.0f}")
    finally:
        measure([*python, "scripts/stop.py"], folder)
    Console().print(table)


def main() -> int:
    options = arguments(__doc__ or "")
    figures = Figures("line")
    with tempfile.TemporaryDirectory(prefix="clearway-bench-") as temporary:
        first = clone(Path(temporary) / "steps")
        steps(first, quick=options.quick)
        report = json.loads((first / "reports" / "model_validation.json").read_text())
        figures.add("holdout_roc_auc", report["metrics"]["challenger"]["roc_auc"])
        if not options.quick:
            whole = clone(Path(temporary) / "whole")
            run = [sys.executable, "scripts/run_line.py", "--no-ui"]
            try:
                figures.add("cold_run_seconds", measure(run, whole)[0])
                figures.add("warm_run_seconds", measure(run, whole)[0])
            finally:
                measure([sys.executable, "scripts/stop.py"], whole)
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
