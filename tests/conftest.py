"""``--env NAME`` turns a test run into the integration tests of one deployed environment."""

from pathlib import Path

import pytest

_LONGEST_FIRST = {
    "test_flights_line.py": -5,
    "test_delivery.py": -4,
    "test_delivery_rollout.py": -4,
    "test_delivery_state.py": -4,
    "test_flat_line.py": -3,
    "test_dvc.py": -2,
    "test_reproduce.py": -2,
}
"""Files whose tests take a minute or more begin first, so that no worker ends alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--env", metavar="NAME", help="collect only the tests marked endpoint, and ask the environment NAME"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --env, files without endpoint tests are not even imported: a deployment waits for this run."""
    if config.getoption("--env") is None or collection_path.suffix != ".py":
        return None
    return True if "mark.endpoint" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --env only endpoint tests run; without it they would have nothing to ask, so they are left out."""
    wanted = config.getoption("--env") is not None
    kept = [item for item in items if (item.get_closest_marker("endpoint") is not None) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = sorted(kept, key=lambda item: _LONGEST_FIRST.get(item.path.name, 0))


@pytest.fixture
def repository() -> Path:
    """The root of this repository."""
    return Path(__file__).parent.parent
