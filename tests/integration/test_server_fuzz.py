"""Requests made at random from the OpenAPI document, right and wrong ones: never a fault, and answers as described."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import requests
import schemathesis
from fruit_server import make_project
from hypothesis import HealthCheck, Phase, given, seed, settings
from live_server import Server, deploy, running
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

PREDICTING = ("predict", "invoke", "infer", "infer_version")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace, first, second = make_project(tmp_path_factory.mktemp("fuzzed"))
    deploy(workspace.environment("staging"), first, second, 50)
    with running(workspace) as made:
        yield made


def run(strategy: Any, count: int, ask: Callable[[Any], None]) -> None:
    """Call ``ask`` with so many cases of ``strategy``, the same in every run."""

    @seed(20130701)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def asked(case: Any) -> None:
        ask(case)

    asked()


def ask_and_count(asked: dict[str, Any], statuses: Counter[int], case: Any) -> None:
    response = case.call(**asked)
    statuses[response.status_code] += 1
    # that the columns of a table or of tensors fit one another is more than a schema can say
    excluded = [] if case.path == "/predict" else [positive_data_acceptance]
    if response.status_code == 413:  # a refusal too, but none that schemathesis counts as one
        excluded.append(negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded)


def ask_at_random(server: Server, cases: int) -> dict[tuple[str, str], Counter[int]]:
    """Ask each way to predict ``cases`` requests, half of them wrong; how often each status came, by way and mode."""
    base = f"http://127.0.0.1:{server.port}"
    document = schemathesis.openapi.from_url(f"{base}/openapi.json")
    asked = {"base_url": base, "session": requests.Session()}
    counted: dict[tuple[str, str], Counter[int]] = {}
    for found in document.get_all_operations():
        operation = found.ok()
        name = operation.definition.raw["operationId"]
        # what takes nothing cannot be asked wrongly
        modes = tuple(GenerationMode) if name in PREDICTING else (GenerationMode.POSITIVE,)
        for mode in modes:
            statuses = counted[name, mode.value] = Counter()
            count = cases // 2 if name in PREDICTING else 2
            strategy = operation.as_strategy(generation_mode=mode)
            run(strategy, count, partial(ask_and_count, asked, statuses))
    return counted


def check(server: Server, cases: int) -> None:
    counted = ask_at_random(server, cases)
    print(counted)
    assert set(counted["predict", "positive"]) == {200}
    for name in PREDICTING:
        assert not any(status >= 500 for mode in ("positive", "negative") for status in counted[name, mode])
        assert sum(sum(counted[name, mode].values()) for mode in ("positive", "negative")) >= 0.9 * cases
    assert server.process.poll() is None


def test_requests_at_random_are_answered_as_the_document_says(server: Server) -> None:
    check(server, 24)


@pytest.mark.lines
def test_ten_thousand_requests_at_random_are_answered_as_the_document_says(server: Server) -> None:
    check(server, 2600)
