"""A second project, without any Python: the breast-cancer table as a CSV, a params.yaml and a schema.yaml."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

FlatProject = Callable[[Path], Path]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_flat_project(folder: Path) -> Path:
    """Write the project into ``folder``: 569 rows: 30 measurements, a truth value, the diagnosis; no time, entity."""
    import pandas as pd  # here, because a deployment waits for the tests of its endpoint, which need none of these
    import yaml
    from sklearn.datasets import load_breast_cancer

    folder.mkdir(parents=True, exist_ok=True)
    bunch = load_breast_cancer(as_frame=True)
    table = bunch.data.rename(columns=lambda name: name.replace(" ", "_"))
    table.insert(0, "diagnosis", pd.Series(bunch.target).map({0: "malignant", 1: "benign"}))
    table["repeated"] = table.index % 3 == 0
    table.to_csv(folder / "cells.csv", index=False)
    columns = {name: {"kind": "float", "min": 0} for name in table.columns if name != "diagnosis"}
    columns = {"diagnosis": {"kind": "str", "values": ["benign", "malignant"]}, **columns, "repeated": {"kind": "bool"}}
    schema = {"tables": {"cells": {"rows": {"min": 300}, "columns": columns}}}
    floors = {"accuracy": 0.85, "roc_auc": 0.85, "precision": 0.80, "recall": 0.80, "f1": 0.80}
    params = {
        "project": {"name": "breast-cancer"},
        "sources": {"cells": {"kind": "csv", "path": "cells.csv"}},
        "data": {"table": "cells", "label": "diagnosis", "positive": "malignant"},
        "train": {"arguments": {"max_iter": 60}},
        "gates": {
            "floors": floors,
            # 135 rows tell no smaller differences
            "champion": {"margin": 0.2},
            "noise": {"keep": 0.9},
            "latency_ms": 100,
            "through_server": False,  # the flights' own test measures through it
        },
        # wide margins, so that a tenth of the requests of the default steps will do
        "canary": {
            "steps": [{"weight": weight, "margin": 0.15, "min_requests": 80} for weight in (10, 25, 50)],
            "score_margin": 0.4,
        },
        "environments": {
            "staging": {"port": free_port()},
            "production": {"port": free_port(), "requires": "staging"},
        },
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


@pytest.fixture
def flat_project() -> FlatProject:
    """Writes the second project into a folder and returns the folder."""
    return write_flat_project
