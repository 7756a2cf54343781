"""``--env NAME`` turns a test run into the integration tests of one deployed environment."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--env", metavar="NAME", help="collect only the tests marked endpoint, and ask the environment NAME"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --env only endpoint tests run; without it they would have nothing to ask, so they are left out."""
    wanted = config.getoption("--env") is not None
    kept = [item for item in items if (item.get_closest_marker("endpoint") is not None) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture
def repository() -> Path:
    """The root of this repository."""
    return Path(__file__).parent.parent
