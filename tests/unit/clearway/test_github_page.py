"""docs/github.md and the code name the same variables."""

import importlib.util
import re
from pathlib import Path

import yaml

from clearway.params import load_params
from clearway.targets import variable_prefix

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "github.md").read_text()
NAME = re.compile(r"\b(?:CLEARWAY|MLFLOW)_[A-Z_]+\b")
OTHERS = {
    "mlflow": (
        "environment_variables.py",
        {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"},
    ),
    "botocore": ("credentials.py", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
}
"""What packages read by themselves, and in which of their files."""
INTERNAL = {
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
}
"""What the code sets for MLflow, and nobody else needs to."""


def read_by_the_code() -> set[str]:
    files = [path for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in files for name in re.findall(r"[\"']([A-Z_]+)[\"']", path.read_text())}
    found |= set(re.findall(r"\$\{([A-Z_]+)\}", (ROOT / "feature_store.redis.yaml").read_text()))
    for name in load_params(ROOT / "params.yaml").environments:
        found |= {f"{variable_prefix(name)}_URL", f"{variable_prefix(name)}_TOKEN"}
    return {name for name in found if NAME.fullmatch(name)} - INTERNAL


def told() -> set[str]:
    return set(NAME.findall(PAGE))


def test_every_variable_of_the_page_is_read() -> None:
    foreign = {name for _, names in OTHERS.values() for name in names}
    assert foreign <= set(re.findall(r"`([A-Z_]+)`", PAGE))
    read_by_github = {"CLEARWAY_TRAINING_RUNNER", "CLEARWAY_PROVENANCE"}
    assert told() - foreign - read_by_github - read_by_the_code() == set()
    for package, (file, names) in OTHERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        text = (Path(spec.submodule_search_locations[0]) / file).read_text()
        assert all(name in text for name in names)


def test_every_variable_that_is_read_is_on_the_page() -> None:
    assert read_by_the_code() - told() == set()


def test_the_repository_variables_of_the_page_are_those_that_workflows_ask_for() -> None:
    table = PAGE.split("## Variables")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE)
    files = [*(ROOT / ".github").rglob("*.yml")]
    asked = {name for path in files for name in re.findall(r"\bvars\.([A-Za-z_]+)", path.read_text())}
    assert set(rows) == asked
    delivery = yaml.safe_load((ROOT / ".github/workflows/delivery.yml").read_text())
    handed = {name for name, value in delivery["env"].items() if value == f"${{{{ vars.{name} }}}}"}
    assert handed == asked - {"CLEARWAY_TRAINING_RUNNER", "CLEARWAY_PROVENANCE"}
    assert "vars.CLEARWAY_PROVENANCE == 'required'" in (ROOT / ".github/workflows/delivery.yml").read_text()
    assert "vars.CLEARWAY_TRAINING_RUNNER" in delivery["jobs"]["train"]["runs-on"]


def test_tests_that_the_page_names_exist() -> None:
    text = (ROOT / "tests/integration/workflows/test_workflow_files.py").read_text()
    names = set(re.findall(r"`(test_\w+)`", PAGE))
    assert names
    assert all(f"def {name}(" in text for name in names)
