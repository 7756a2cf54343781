"""Asked of a deployed environment: does it serve what its ledger says, correctly, politely and fast enough?

Run as ``pytest tests/integration/ --env staging``; the project is ``$CLEARWAY_PROJECT`` or the current folder. Nothing
here knows a data set: rows and their scores come from the golden evidence of the bundle that is served.
"""

import http.client
import json
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from clearway.bundle import Bundle, verify
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.ledger import read_ledger, stable_digest
from clearway.model import recorded_target
from clearway.params import Params, load_params
from clearway.routing import RoutingTable, read_routing
from clearway.target import Target
from clearway.targets import target_of
from clearway.workspace import Workspace

pytestmark = pytest.mark.endpoint

TIMED_REQUESTS = 200


@dataclass
class Answer:
    """Status, parsed body, headers in lower case, and the milliseconds it took."""

    status: int
    body: Any
    headers: dict[str, str]
    milliseconds: float


@dataclass
class Endpoint:
    """The environment under test, and all that its answers are held against."""

    params: Params
    table: RoutingTable
    ledger_stable: str | None
    bundle: Bundle
    schema: InputSchema
    rows: list[dict[str, Any]]
    scores: list[Any]
    """Of each row a number, or the probability of each class."""
    target: Target
    url: str
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        before = time.perf_counter()
        try:
            self.connection.request(method, f"{urlsplit(self.url).path}{path}", body, sent)
            answer = self.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            pytest.fail(f"{self.url} stopped answering: {type(error).__name__}: {error}", pytrace=False)
        took = (time.perf_counter() - before) * 1000.0
        return Answer(
            answer.status, json.loads(content), {name.lower(): value for name, value in answer.getheaders()}, took
        )

    def post(self, body: bytes | str, kind: str = "application/json") -> Answer:
        """Ask the stable version by name: during a rollout the canary would answer some."""
        content = body.encode() if isinstance(body, str) else body
        return self.ask("POST", "/predict", content, content_type=kind, x_clearway_version=self.table.stable)

    def predict(self, body: Any) -> Answer:
        return self.post(json.dumps(body))

    def apart(self, answers: list[dict[str, Any]], expected: Any) -> float:
        """How far answers are from outputs, at most, in the unit of ``gates.onnx_tolerance``."""
        many = bool(self.target.classes)
        assert not many or all(list(one["probabilities"]) == list(self.target.classes) for one in answers)
        given = [list(one["probabilities"].values()) if many else one["score"] for one in answers]
        return float(self.target.differences(np.array(given), np.array(expected)).max())

    def refusal(self, answer: Answer) -> str:
        assert 400 <= answer.status < 500, answer
        assert isinstance(answer.body["error"], str)
        return str(answer.body["error"])


@pytest.fixture(scope="module")
def endpoint(pytestconfig: pytest.Config) -> Endpoint:
    """The environment named by --env; its absence fails in one line."""
    environment = pytestconfig.getoption("--env")
    workspace = Workspace(Path(os.environ.get("CLEARWAY_PROJECT", ".")))
    try:
        params = load_params(workspace.params_file)
        params.environment(environment)
        folder = workspace.environment(environment)
        deployed = target_of(params, workspace, environment)
        deployed.pull()
        table = read_routing(folder / "routing.json")
        server = deployed.find()
        if server is None:
            raise ClearwayError(
                f"no server runs for {environment}: start it with scripts/deploy.py --env {environment}"
            )
        deployed.fetch(table.stable)
        bundle = verify(workspace.bundles / table.stable, table.stable)
        golden = json.loads(bundle.evidence("golden.json").read_bytes())
        return Endpoint(
            params=params,
            table=table,
            ledger_stable=stable_digest(read_ledger(folder, environment)),
            bundle=bundle,
            schema=InputSchema.model_validate_json(bundle.read("schema.json")),
            rows=golden["rows"],
            scores=golden["scores"],
            target=recorded_target(bundle),
            url=server.url,
            connection=_connection(server.url, deployed.tls),
        )
    except ClearwayError as error:
        pytest.fail(str(error), pytrace=False)


def _connection(url: str, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    netloc = urlsplit(url).netloc
    if tls is None:
        return http.client.HTTPConnection(netloc, timeout=10)
    return http.client.HTTPSConnection(netloc, timeout=10, context=tls)


def test_endpoint_is_ready(endpoint: Endpoint) -> None:
    assert endpoint.ask("GET", "/v2/health/live").status == 200
    assert endpoint.ask("GET", "/v2/health/ready").status == 200


def test_endpoint_serves_what_the_ledger_says(endpoint: Endpoint) -> None:
    state = endpoint.ask("GET", "/").body
    assert state["error"] is None
    assert state["stable"] == endpoint.table.stable == endpoint.ledger_stable
    assert state["revision"] == endpoint.table.revision
    answer = endpoint.predict(endpoint.rows[0])
    assert answer.body["version"] == answer.headers["x-clearway-version"] == endpoint.ledger_stable


def test_golden_rows_get_their_scores(endpoint: Endpoint) -> None:
    for position, (row, score) in enumerate(zip(endpoint.rows, endpoint.scores, strict=True)):
        answer = endpoint.predict({**row, "id": f"golden-{position}"})
        assert answer.status == 200, answer
        assert answer.body["id"] == f"golden-{position}"
        assert endpoint.apart([answer.body], [score]) <= 1e-5, f"golden row {position}"


def test_a_batch_answers_as_its_rows_do_alone(endpoint: Endpoint) -> None:
    rows = endpoint.rows[: endpoint.params.serving.max_rows]
    together = endpoint.predict({"rows": rows}).body["predictions"]
    alone = [endpoint.predict(row).body for row in rows]
    many = bool(endpoint.target.classes)
    expected = [list(one["probabilities"].values()) if many else one["score"] for one in alone]
    assert endpoint.apart(together, expected) <= 1e-6
    if endpoint.target.kind != "regression":  # there the label is the score
        assert [one["label"] for one in together] == [one["label"] for one in alone]


def test_unknown_field_is_refused_by_name(endpoint: Endpoint) -> None:
    answer = endpoint.predict({**endpoint.rows[0], "no_such_feature": 1})
    assert "no_such_feature" in endpoint.refusal(answer)


def test_each_missing_feature_is_refused_by_name(endpoint: Endpoint) -> None:
    for name in endpoint.schema.names:
        answer = endpoint.predict({key: value for key, value in endpoint.rows[0].items() if key != name})
        assert name in endpoint.refusal(answer)


def test_each_value_of_another_type_is_refused_by_name(endpoint: Endpoint) -> None:
    for feature in endpoint.schema.features:
        truth = feature.declared is not None and feature.declared.kind == "bool"
        wrong: list[Any] = ["1", True, []] if feature.kind == "numeric" else [1, "yes" if truth else True, []]
        for value in wrong:
            assert feature.name in endpoint.refusal(endpoint.predict({**endpoint.rows[0], feature.name: value}))


@pytest.mark.parametrize("body", ["", "{", "[1,", "nonsense", '{"x": NaN}', "[" * 5000])
def test_malformed_json_is_refused(endpoint: Endpoint, body: str) -> None:
    assert "JSON" in endpoint.refusal(endpoint.post(body))


def test_other_content_type_is_refused(endpoint: Endpoint) -> None:
    assert "content-type" in endpoint.refusal(endpoint.post(json.dumps(endpoint.rows[0]), kind="text/plain"))


def test_too_many_rows_are_refused(endpoint: Endpoint) -> None:
    # small objects, so that it is the number of rows that is refused and not the size of the body
    rows: list[dict[str, Any]] = [{}] * (endpoint.params.serving.max_rows + 1)
    assert "serving.max_" in endpoint.refusal(endpoint.predict({"rows": rows}))


def test_latency_and_errors_are_within_the_gates(endpoint: Endpoint) -> None:
    answers = [endpoint.predict(endpoint.rows[number % len(endpoint.rows)]) for number in range(TIMED_REQUESTS)]
    assert {answer.status for answer in answers} == {200}
    p95 = float(np.percentile([answer.milliseconds for answer in answers], 95))
    assert p95 < endpoint.params.gates.latency_ms, f"p95 {p95:.1f} ms"
