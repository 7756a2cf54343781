"""Half a minute of load while the model is swapped every 5 s and a worker is killed every 10."""

import asyncio
import json
from pathlib import Path

import pytest
from live_server import deploy, running, until
from small_bundle import small_bundle, write_small_project
from soak_load import soak

SECONDS, RATE = 30.0, 300.0


@pytest.mark.lines
def test_no_request_fails_but_on_the_connections_of_a_killed_worker(tmp_path: Path) -> None:
    workspace = write_small_project(tmp_path, workers=2)
    scores = {small_bundle(workspace, score): score for score in (0.25, 0.75)}
    first, second = scores
    folder = workspace.environment("staging")
    deploy(folder, first)
    bodies = [json.dumps({"weight": number / 2, "entity": f"tree-{number}"}).encode() for number in range(50)]

    def swap(number: int) -> None:
        """To the other model by way of a canary, and back."""
        stable, canary = (first, second) if number % 4 < 2 else (second, first)
        deploy(folder, stable, canary if number % 2 else None, 50 if number % 2 else 0)

    with running(workspace) as server:
        until(lambda: len(server.state()["workers"]) == 2, "two workers")
        soaked = asyncio.run(
            soak(
                server.port,
                server.process.pid,
                bodies,
                lambda answer: answer["score"] == scores[answer["version"]],
                swap,
                seconds=SECONDS,
                rate=RATE,
                callers=16,
                swap_every=5.0,
                kill_every=10.0,
            )
        )
        assert soaked.failed == []
        assert soaked.kills >= 2
        assert soaked.swaps >= 4
        assert soaked.lost <= 16 * soaked.kills, "more than the connections there were"
        assert soaked.answered > 0.5 * SECONDS * RATE
        assert server.stop() == 0
