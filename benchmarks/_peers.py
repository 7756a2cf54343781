"""The tools that are measured beside Clearway, each in an environment of its own under ``benchmarks/.peers``.

An environment is made with uv on first use, from the pins below; a changed pin makes it anew. A script of
``benchmarks/tools`` does one measurement in the process of one tool, and prints its result as the last line, in JSON.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMON = ("numpy==2.4.6", "pandas==2.3.3", "scipy==1.17.1", "pyarrow==25.0.1")
SERVED = ("numpy==2.4.6", "pandas==2.3.3", "scikit-learn==1.9.1", "joblib==1.6.0")
PEERS = {
    "bentoml": ("bentoml==1.4.39", *SERVED),
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0", *SERVED),  # with 0.22 its workers do not start
    "evidently": ("evidently==0.7.23", *COMMON),
    "great_expectations": ("great-expectations==1.24.1", *COMMON),
}
UV = Path(sys.executable).with_name("uv")


def python(tool: str) -> str:
    """The interpreter of a peer's environment, made first if need be; this one for every other tool."""
    if tool not in PEERS:
        return sys.executable
    folder = HERE / ".peers" / tool
    pins, made = "\n".join(PEERS[tool]) + "\n", folder / "pins.txt"
    interpreter = folder / "bin" / "python"
    if not made.is_file() or made.read_text(encoding="utf-8") != pins:
        print(f"making {folder}: {', '.join(PEERS[tool])}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([str(UV), "venv", "--quiet", "--python", sys.executable, str(folder)])
        _run([str(UV), "pip", "install", "--quiet", "--compile-bytecode", "--python", str(interpreter), *PEERS[tool]])
        made.write_text(pins, encoding="utf-8")
    return str(interpreter)


def run(tool: str, script: str, *arguments: str | Path | int) -> dict[str, Any]:
    """Run ``tools/SCRIPT`` in the tool's environment, on one thread of BLAS, and return what it measured."""
    command = [python(tool), str(HERE / "tools" / script), *map(str, arguments)]
    return json.loads(_run(command).splitlines()[-1])


def _run(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nothing would be compiled, and every import cost seconds
    environment |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore",
    }
    environment["GX_ANALYTICS_ENABLED"] = "false"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout
