"""Minutes of load at half of what a server can do, a model swapped every 5 s, a worker killed every 20 s.

No request may fail but those on the connections of a killed worker, and memory may not grow.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import _peers
import _servers
from _figures import HERE, Figures, arguments

sys.path[:0] = [str(HERE / "tools"), str(HERE.parent / "tests" / "integration")]

CALLERS, WORKERS = 32, 2
MOST = 1500.0
"""Requests a second that the generator can send from one process."""


def capacity(port: int, bodies: list[str], folder: Path) -> float:
    """Requests a second that the server answers when it is asked as fast as it can."""
    path = folder / "bodies.txt"
    path.write_text("\n".join(bodies) + "\n", encoding="utf-8")
    command = ["wrk", "-t1", f"-c{CALLERS}", "-d5s", "-s", str(HERE / "tools" / "post.lua")]
    url = f"http://127.0.0.1:{port}/predict"
    done = subprocess.run([*command, url, "--", str(path)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["requests_per_second"])


def main() -> int:
    options = arguments(__doc__ or "")
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed: apt-get install wrk")
    from serving_model import deploy
    from soak_load import soak

    figures = Figures("soak")
    with tempfile.TemporaryDirectory(prefix="clearway-soak-") as temporary:
        folder = Path(temporary)
        first, second = _peers.run("clearway", "serving_model.py", folder, WORKERS, "onnx")["digests"]
        rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))["rows"]
        bodies = [json.dumps({**row, "entity": f"entity-{number}"}) for number, row in enumerate(rows)]
        environment = folder / "project" / "var" / "environments" / "production"

        def swap(number: int) -> None:
            """To the other model by way of a canary, and back."""
            stable, canary = (first, second) if number % 4 < 2 else (second, first)
            deploy(environment, stable, canary if number % 2 else None)

        def right(answer: dict[str, Any]) -> bool:
            return answer["version"] in (first, second) and 0.0 <= answer["score"] <= 1.0

        with _servers.clearway(folder / "project", {}) as serving:
            rate = min(MOST, capacity(serving.port, bodies, folder) / 2)
            soaked = asyncio.run(
                soak(
                    serving.port,
                    serving.process.pid,
                    [body.encode() for body in bodies],
                    right,
                    swap,
                    seconds=25.0 if options.quick else 600.0,
                    rate=rate,
                    callers=CALLERS,
                    swap_every=5.0,
                    kill_every=10.0 if options.quick else 20.0,
                )
            )
            with urllib.request.urlopen(f"http://127.0.0.1:{serving.port}/", timeout=10) as answer:
                said = json.loads(answer.read())
    for line in soaked.failed[:20]:
        print(line)
    figures.add("requests_per_second", rate)
    figures.add("answered", soaked.answered)
    figures.add("failed", len(soaked.failed))
    figures.add("lost_per_kill", soaked.lost / max(soaked.kills, 1))
    figures.add("kills", soaked.kills)
    figures.add("restarts", said["restarts"])
    figures.add("swaps", soaked.swaps)
    figures.add("log_dropped", said["log"]["dropped"])
    figures.add("memory_mb", soaked.memory_mb[-1])
    figures.add("memory_growth", soaked.growth())
    return figures.finish(check=options.check, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
