"""``scripts/serve.py`` of a server that neither routes nor logs, to know what the two cost."""

import os
import runpy
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from clearway.serving.answering import Answerer
from clearway.serving.state import Active

if __name__ == "__main__":
    Active.route = lambda active, key: ("stable", active.stable)  # type: ignore[method-assign]
    Answerer._append = lambda *_: None  # type: ignore[method-assign]
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "serve.py"), run_name="__main__")
