"""``--env NAME`` turns a run into the tests of one deployed environment; ``--shard K/N`` runs a part of the files."""

from collections.abc import Iterable
from pathlib import Path

import pytest

SECONDS = {
    "test_flights_line.py": 280,
    "test_flat_line.py": 250,
    "test_delivery_rollout.py": 170,
    "test_delivery.py": 150,
    "test_feature_skew.py": 150,
    "test_deployment_local.py": 120,
    "test_server_workers.py": 120,
    "test_server_fuzz.py": 90,
    "test_dvc.py": 85,
    "test_reproduce.py": 80,
    "test_feature_store_filling.py": 75,
    "test_server_features.py": 65,
    "test_training_on_a_cluster.py": 65,
    "test_delivery_state.py": 60,
    "test_model_gates_bind.py": 40,
    "test_monitor_workflow.py": 40,
    "test_pull_request_workflow.py": 40,
    "test_server.py": 40,
    "test_killed_training.py": 35,
    "test_replay_traffic.py": 30,
    "test_server_soak.py": 30,
    "test_ui.py": 30,
}
"""Of whole files, on one of two busy cores. For order and balance alone: a file that is not named runs too."""
_OTHERWISE, _FIRST = 15, 80
_INTEGRATION = Path(__file__).parent / "integration"
_PART = pytest.StashKey[frozenset[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--env", metavar="NAME", help="collect only the tests marked endpoint, and ask the environment NAME"
    )
    parser.addoption("--shard", metavar="K/N", help="of the files in tests/integration, run part K of N")


def pytest_configure(config: pytest.Config) -> None:
    asked = config.getoption("--shard")
    if asked is None:
        return
    place, _, number = asked.partition("/")
    if not (place.isdecimal() and number.isdecimal() and 1 <= int(place) <= int(number)):
        raise pytest.UsageError(f"--shard {asked!r}: expected K/N, such as 2/5")
    config.stash[_PART] = shards(_INTEGRATION.rglob("test_*.py"), int(number))[int(place) - 1]


def shards(files: Iterable[Path], number: int) -> list[frozenset[Path]]:
    """Deal whole files out, whose tests share what they set up: the longest first, each to where least is to do."""
    dealt: list[list[Path]] = [[] for _ in range(number)]
    for path in sorted(files, key=lambda path: (-_seconds(path), str(path))):
        min(dealt, key=lambda part: sum(map(_seconds, part))).append(path)
    return [frozenset(part) for part in dealt]


def _seconds(path: Path) -> int:
    return SECONDS.get(path.name, _OTHERWISE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --env, files without endpoint tests are not even imported: a deployment waits for this run."""
    if collection_path.suffix != ".py":
        return None
    part = config.stash.get(_PART, None)
    if part is not None and collection_path.is_relative_to(_INTEGRATION) and collection_path not in part:
        return True
    if config.getoption("--env") is None:
        return None
    return True if "mark.endpoint" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --env only endpoint tests run; without it they would have nothing to ask, so they are left out.

    Files that take long begin first, so that no worker ends alone.
    """
    wanted = config.getoption("--env") is not None
    kept = [item for item in items if (item.get_closest_marker("endpoint") is not None) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = sorted(kept, key=lambda item: min(0, _FIRST - _seconds(item.path)))


@pytest.fixture
def repository() -> Path:
    """The root of this repository."""
    return Path(__file__).parent.parent
