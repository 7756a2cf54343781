"""``fill_online`` of the project ``sensors`` from its event tables: ``fill.py PROJECT AS_OF``.

Which store is filled follows from the project's params.yaml. Filled a second time, it has nothing to do.
"""

import sys
import time
from datetime import datetime
from pathlib import Path

from _measure import peak_mb, report

started = time.perf_counter()
import _feast_repository  # noqa: E402, F401
from sensors import PROJECT  # noqa: E402

from clearway.feature_store.materialise import Filled, fill_online  # noqa: E402
from clearway.params import load_params  # noqa: E402
from clearway.workspace import Workspace  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    workspace, as_of = Workspace(Path(sys.argv[1])), datetime.fromisoformat(sys.argv[2])
    params = load_params(workspace.params_file)
    took: list[float] = []
    made: list[Filled] = []

    def fill() -> None:
        began = time.perf_counter()
        made.append(fill_online(params, workspace, PROJECT, as_of))
        took.append(time.perf_counter() - began)

    peak = peak_mb(fill)
    fill()
    rows = sum(made[0].rows.values())
    report(import_seconds=imported, seconds=took[0], again_seconds=took[1], rows=rows, extra_mb=peak)


if __name__ == "__main__":
    main()
