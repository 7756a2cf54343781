"""What every benchmark shares: --quick and --check, a table of figures beside their goals, a file of results."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def arguments(description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Parse the options that every benchmark has, and ``--only`` of those with parts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller measurement, under 50 seconds")
    parser.add_argument("--check", action="store_true", help="exit 1 naming each figure that misses its goal")
    if parts:
        parser.add_argument("--only", choices=parts, help="measure this part alone; its file of results is its own")
    return parser.parse_args()


class Figures:
    """The measured figures of one benchmark."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._values: dict[str, float] = {}
        self._goals = yaml.safe_load((HERE / "goals.yaml").read_text(encoding="utf-8")).get(benchmark, {})

    def add(self, name: str, value: float) -> None:
        """Record one figure; names with a goal are those in goals.yaml."""
        self._values[name] = value

    def finish(self, *, check: bool, quick: bool, part: str | None = None) -> int:
        """Print figures beside goals, keep them under results/, and return the exit code."""
        table = Table(title=f"{self._benchmark} on {os.cpu_count()} cores", title_justify="left", box=None)
        for column in ("figure", "measured", "goal", ""):
            table.add_column(column, justify="right" if column in ("measured", "goal") else "left")
        missed = []
        for name, value in self._values.items():
            goal = self._goals.get(name, {})
            ok = goal.get("min", float("-inf")) <= value <= goal.get("max", float("inf"))
            text = " ".join(f"{'≥' if side == 'min' else '≤'} {limit}" for side, limit in goal.items())
            table.add_row(name, f"{value:,.4g}", text, "" if not goal else "ok" if ok else "MISSED")
            if not ok:
                missed.append(f"{name} = {value:,.4g}, goal {text}")
        unmeasured = [name for name in self._goals if name not in self._values]
        Console().print(table)
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        record = {"quick": quick, "machine": platform.processor() or platform.machine(), "figures": self._values}
        name = f"{self._benchmark}_{part}" if part else self._benchmark
        (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if check and not quick and part is None:
            missed += [f"{name} was not measured" for name in unmeasured]
        for line in missed:
            print(f"missed: {self._benchmark}: {line}")
        return 1 if check and missed else 0
