"""Train-serve skew of the flights: replay eight weeks after July began through a real server, recompute every value.

Runs in a clone of this repository in a temporary folder, on free ports, with the Python that runs it: the line up to
the bundle, a server on this machine with the embedded online store, ``replay_traffic.py``, ``check_skew.py``. The whole
takes some minutes, most of them the replay: a question is asked only when the store holds what was known at its time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from _figures import Figures, arguments
from line import STAGES, clone, measure

AS_OF = "2013-07-01"
DAYS, QUICK_DAYS = 56, 2
ENVIRONMENT = "staging"
ALL = 10_000_000
"""More requests than there are questions."""


def set_params(folder: Path, days: int) -> None:
    """Replay ``days`` after July began."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["as_of"] = AS_OF
    params["replay"] = {**params.get("replay", {}), "days": days}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def timed(folder: Path, script: str, *options: str) -> float:
    """Seconds of a script whose last line is worth reading, whatever its exit code."""
    command = [sys.executable, f"scripts/{script}.py", "--env", ENVIRONMENT, *options]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "CLEARWAY_PROJECT": str(folder)}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"{script} said nothing"]
    print(f"{seconds:,.1f} s: {lines[-1]}", flush=True)
    return seconds


def main() -> int:
    options = arguments(__doc__ or "")
    figures = Figures("skew")
    with tempfile.TemporaryDirectory(prefix="clearway-bench-") as temporary:
        folder = clone(Path(temporary) / "flights")
        set_params(folder, QUICK_DAYS if options.quick else DAYS)
        for stage in STAGES:
            measure([sys.executable, f"scripts/{stage}.py"], folder)
        try:
            timed(folder, "deploy")
            replay_seconds = timed(folder, "replay_traffic", "--requests", str(ALL))
            time.sleep(1.0)  # the server writes its log
            check_seconds = timed(folder, "check_skew")
        finally:
            measure([sys.executable, "scripts/stop.py"], folder)
        report = json.loads((folder / "reports" / "skew.json").read_text(encoding="utf-8"))
    figures.add("predictions", report["predictions"])
    figures.add("values", report["values"])
    figures.add("differences", report["different"])
    figures.add("not_compared", sum(one["predictions"] for one in report["not_compared"]))
    figures.add("replay_seconds", replay_seconds)
    figures.add("check_seconds", check_seconds)
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
