"""Two processes, in other folders and with other hash seeds, make the same digests from the same rows."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from clearway.files import read_json, write_json
from clearway.workspace import Workspace


def project(root: Path) -> Workspace:
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"size": random.normal(size=400), "weight": random.normal(size=400)})
    frame["colour"] = pd.Series(random.choice(["red", "green", "blue"], 400), dtype="string")
    frame["label"] = (frame["size"] + (frame["colour"] == "red") + random.normal(size=400) > 0.3).astype("float64")
    frame.loc[random.random(400) < 0.1, "size"] = np.nan
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {"arguments": {"max_iter": 10}, "baseline": "sklearn.ensemble.RandomForestClassifier"},
        "environments": {"production": {"port": 0}},
    }
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    workspace = Workspace(root)
    workspace.features.mkdir(parents=True)
    frame.to_parquet(workspace.features / "training.parquet")
    described = {
        "numeric": ["size", "weight"],
        "categorical": ["colour"],
        "declared": {},
        "definitions_sha256": "0" * 64,
    }
    write_json(workspace.features / "features.json", described)
    return workspace


@pytest.mark.lines
def test_two_processes_make_the_same_digests(tmp_path: Path, repository: Path) -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        workspace = project(tmp_path / hash_seed)
        subprocess.run(
            [sys.executable, str(repository / "scripts" / "train.py"), "--project", str(workspace.root)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            timeout=120,
        )
        report = read_json(workspace.reports / "training.json")
        digests.add((report["challenger"]["digest"], report["baseline"]["digest"]))
    assert len(digests) == 1
