"""The rules of the house, held by tests."""

import ast
from pathlib import Path

import pytest
import yaml

from clearway.reference_pages import PAGES, render

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
CLEARWAY = sorted((ROOT / "src" / "clearway").rglob("*.py"))


@pytest.mark.parametrize("path", CLEARWAY, ids=lambda path: path.name)
def test_the_line_knows_nothing_of_the_example(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("flights") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("flights")
    for word in ("flights", "tailnum", "airport", "aircraft", "nycflights"):
        assert word not in text.lower(), f"{path} mentions {word}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stay_thin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    functions = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert functions == ["main"]


def test_every_verb_of_the_design_has_its_script() -> None:
    verbs = {
        "ingest", "validate_data", "build_features", "fetch_champion", "check_drift", "decide", "train",
        "validate_model", "package_model", "register", "deploy", "check_canary", "rollback", "monitor",
    }  # fmt: skip
    assert verbs <= {path.stem for path in SCRIPTS}


def test_the_pipeline_reads_in_the_order_it_runs() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    order = [
        "ingest",
        "validate_data",
        "features",
        "champion",
        "drift",
        "decide",
        "train",
        "holdout_uses",
        "gates",
        "package",
    ]
    assert list(stages) == order
    made: set[str] = set()
    for name, stage in stages.items():
        for dep in stage["deps"]:
            if dep.startswith(("data/", "build/", "reports/")):
                assert any(dep == out or dep.startswith(f"{out}/") for out in made), f"{name} reads {dep} too early"
        for kind in ("outs", "metrics", "plots"):
            made |= {next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])}


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_pages_are_current(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == render(page), "run `make docs`"


def test_both_locks_are_hash_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        blocks = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
        pins = [line for line in blocks if line and not line.startswith((" ", "#"))]
        assert len(pins) > 100
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)
