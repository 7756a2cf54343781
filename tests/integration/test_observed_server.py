"""A real server under observation: by which key it routes, what its log says and keeps to itself, and its spans."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from live_server import until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from small_models import write_model, write_project

from clearway.deployment import check_routing_key, deploy, find_bundle, reconcile
from clearway.errors import ClearwayError, UsageError
from clearway.ledger import read_ledger
from clearway.local_target import describe_server, find_server, stop
from clearway.params import Params, load_params
from clearway.prediction_log import read_log
from clearway.routing import read_routing
from clearway.serving.loading import load_version
from clearway.serving.requests import Envelope
from clearway.serving.state import Active, Follower, check_vouched
from clearway.workspace import Workspace

WHO = {"actor": "test", "reason": "a test"}
TELLING = 7.654321
"""A weight that may be found in no line and no span."""
SECRET = "correct-horse"
PARENT = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Collector:
    """A real OTLP receiver over HTTP."""

    port: int = 0
    content: list[bytes] = field(default_factory=list)

    def spans(self) -> list[Any]:
        found = []
        for body in list(self.content):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found.extend(scope.spans)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.content.append(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()


@dataclass
class Observed:
    """A server with a canary that fails below the weight 8, at half of the trees."""

    workspace: Workspace
    params: Params
    stable: str
    canary: str
    collector: Collector

    def ask(self, row: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
        server = find_server(self.workspace, "staging")
        assert server is not None
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            "POST", "/predict?token=" + SECRET, json.dumps(row), {"content-type": "application/json", **named}
        )
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())
        connection.close()
        return answer

    def state(self) -> dict[str, Any]:
        server = find_server(self.workspace, "staging")
        assert server is not None
        return describe_server(server) or {}

    def tree(self, role: str) -> str:
        """One whose rows this role answers."""
        table = read_routing(self.workspace.environment("staging") / "routing.json")
        return next(tree for tree in (f"tree-{number}" for number in range(99)) if table.route(tree) == role)

    def log(self) -> str:
        return (self.workspace.environment("staging") / "server.log").read_text()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What the server's log says of the request of this id, as far as it is written."""
        made = [json.loads(line) for line in self.log().splitlines()]
        return [line for line in made if line.get("request_id") == name]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with collecting() as collector:
        serving = {
            "routing_key": "tree",
            "log_format": "json",
            "access_log": True,
            "traces": {"endpoint": f"http://127.0.0.1:{collector.port}/v1/traces", "sample": 1.0},
        }
        workspace = write_project(tmp_path_factory.mktemp("observed"), serving=serving)
        params = load_params(workspace.params_file)
        stable, canary = write_model(workspace, 0.05, 0.1), write_model(workspace, 0.05, 0.1, least=8.0)
        deploy(params, workspace, "staging", stable, **WHO)
        deploy(params, workspace, "staging", canary, 50, **WHO)
        try:
            yield Observed(workspace, params, stable, canary, collector)
        finally:
            stop(workspace, "staging")


def test_rows_are_routed_and_logged_by_the_named_key_whatever_their_entity(observed: Observed) -> None:
    table = read_routing(observed.workspace.environment("staging") / "routing.json")
    assert table.key == "tree"
    for number in range(60):
        row = {"id": f"r{number}", "entity": f"e{number}", "weight": 9, "tree": f"tree-{number % 20}"}
        assert observed.ask(row)[1]["role"] == table.route(row["tree"])
    before = observed.state()["routing"]["without_key"]
    assert observed.ask({"id": "x1", "entity": "e1", "weight": 9, "tree": None})[1]["role"] == table.route("e1")
    assert observed.state()["routing"] == {"key": "tree", "without_key": before}
    assert observed.ask({"id": "x2", "weight": 9, "tree": None})[1]["role"] == table.route("x2")
    assert observed.state()["routing"]["without_key"] == before + 1
    folder = observed.workspace.environment("staging") / "predictions"
    until(lambda: {"x1", "x2"} <= set(read_log(folder, columns=("id",))["id"]), "the log")
    log = read_log(folder, columns=("id", "entity")).set_index("id")["entity"]
    assert (log["r25"], log["x1"], log["x2"]) == ("tree-5", "e1", None)


def test_key_that_is_no_single_value_is_refused_by_name(observed: Observed) -> None:
    status, answer = observed.ask({"weight": 9, "tree": ["north"]})
    assert status == 422
    assert "tree, by which requests are routed, must be a string" in answer["error"]


def test_changed_key_moves_nobody_in_the_open_rollout_and_is_said(observed: Observed) -> None:
    content = yaml.safe_load(observed.workspace.params_file.read_text())
    content["serving"] |= {"routing_key": "weight", "salt": "another"}
    changed = Params.model_validate(content)
    path = observed.workspace.environment("staging") / "routing.json"
    before = read_routing(path)
    reconcile(changed, observed.workspace, "staging")
    assert read_routing(path) == before
    outcome = deploy(changed, observed.workspace, "staging", observed.canary, 50, **WHO)
    assert "the open rollout keeps 'tree' and 'clearway'" in " ".join(outcome.warnings)
    assert observed.state()["error"] is None


def test_key_that_no_row_has_is_refused_before_the_rollout(observed: Observed) -> None:
    bundles = [find_bundle(observed.workspace, digest) for digest in (observed.stable, observed.canary)]
    with pytest.raises(UsageError, match=r"'aircraft' in params.yaml is no field of a request: .* tree, weight"):
        check_routing_key("aircraft", bundles)
    for key in ("id", "entity", "tree"):
        check_routing_key(key, bundles)


def test_key_that_no_row_has_is_refused_by_the_server_too_while_a_rollout_is_open(observed: Observed) -> None:
    bundles = observed.workspace.bundles
    versions = {digest: load_version(bundles, digest, 1e-4) for digest in (observed.stable, observed.canary)}
    table = read_routing(observed.workspace.environment("staging") / "routing.json")
    assert Active(table, versions).unit({"tree": "north"}, Envelope(None, "e", None)) == "north"
    wrong = table.model_copy(update={"key": "aircraft"})
    with pytest.raises(ClearwayError, match="key is 'aircraft', which is no field of a request"):
        Active(wrong, versions)
    Active(wrong.model_copy(update={"canary": None, "canary_weight": 0}), versions)  # the way back is open


@pytest.mark.parametrize(
    ("hashed", "said"),
    [
        (["features.wieght"], "hash names features.wieght, which no version here has"),
        (["features.tree"], "hides features.tree, but it is serving.routing_key"),
        (["entity"], "hides entity, but the log tells the same value as features.tree"),
        (["entity", "features.tree", "features.weight"], None),
    ],
)
def test_a_server_whose_log_would_not_hide_what_it_should_serves_nothing(
    observed: Observed, hashed: list[str], said: str | None
) -> None:
    content = yaml.safe_load(observed.workspace.params_file.read_text())
    content["serving"]["log"] = {"hash": hashed}
    follower = Follower(Params.model_validate(content), observed.workspace, "staging")
    asyncio.run(follower.catch_up())
    assert (follower.active is None) == (said is not None)
    assert follower.error == said or (said is not None and said in (follower.error or ""))


@pytest.mark.parametrize("change", [{"key": "weight"}, {"salt": "another"}, {"shadow": "c" * 64}])
def test_table_that_splits_or_copies_otherwise_than_the_ledger_says_is_refused(
    observed: Observed, change: dict[str, Any]
) -> None:
    folder = observed.workspace.environment("staging")
    table, entries = read_routing(folder / "routing.json"), read_ledger(folder, "staging")
    check_vouched(table, "staging", entries)
    with pytest.raises(ClearwayError, match=rf"routing.json: {next(iter(change))} is .* it was changed by hand"):
        check_vouched(table.model_copy(update=change), "staging", entries)


def test_failed_request_is_a_line_with_its_id_and_without_its_row(observed: Observed) -> None:
    row = {"weight": TELLING, "tree": observed.tree("canary")}
    assert observed.ask(row, x_request_id="broken-1", authorization=f"Bearer {SECRET}")[0] == 500
    until(lambda: len(observed.lines("broken-1")) == 2, f"two lines: {observed.log()[-2000:]}")
    failure, request = sorted(observed.lines("broken-1"), key=lambda line: str(line["logger"]), reverse=True)
    assert (failure["level"], failure["status"], failure["version"]) == ("error", 500, observed.canary)
    assert failure["cause"] == f"version {observed.canary} failed: ArithmeticError"
    assert (request["logger"], request["method"], request["path"]) == ("clearway.access", "POST", "/predict")
    assert (request["status"], request["version"]) == (500, observed.canary)
    assert request["ms"] > 0
    assert SECRET not in observed.log()
    assert str(TELLING) not in observed.log()


def test_failed_request_without_an_id_is_said_with_the_one_that_its_answer_carries(observed: Observed) -> None:
    def failures() -> set[str]:
        made = [json.loads(line) for line in observed.log().splitlines()]
        return {line["request_id"] for line in made if line["message"] == "a request failed"}

    before = failures()
    assert observed.ask({"weight": TELLING, "tree": observed.tree("canary")})[0] == 500
    until(lambda: len(failures() - before) == 1, "a line of the failure")
    (identity,) = failures() - before
    assert identity
    until(lambda: len(observed.lines(identity)) == 2, "the line of the answer, by its own header")


def test_request_is_a_span_of_its_caller_s_trace_with_its_steps_in_it(observed: Observed) -> None:
    caller = "b7ad6b7169203331"
    row = {"weight": 9.5, "tree": observed.tree("stable")}
    assert observed.ask(row, traceparent=f"00-{PARENT}-{caller}-01")[0] == 200

    def mine() -> dict[str, Any]:
        return {span.name: span for span in observed.collector.spans() if span.trace_id.hex() == PARENT}

    until(lambda: len(mine()) == 3, "three spans")
    spans = mine()
    request = spans["POST /predict"]
    assert request.parent_span_id.hex() == caller
    assert {spans[name].parent_span_id for name in ("route", "score")} == {request.span_id}
    assert request.start_time_unix_nano <= spans["score"].start_time_unix_nano <= request.end_time_unix_nano
    about = {one.key: one.value.string_value or one.value.int_value for one in request.attributes}
    assert (about["http.response.status_code"], about["clearway.version"]) == (200, observed.stable)
    assert about["url.path"] == "/predict"


def test_failure_is_an_error_of_its_spans_that_quotes_nothing_and_an_unsampled_trace_is_none(
    observed: Observed,
) -> None:
    row = {"weight": TELLING, "tree": observed.tree("canary")}
    skipped, traced = "1" * 32, "2" * 32
    assert observed.ask(row, traceparent=f"00-{skipped}-{'3' * 16}-00")[0] == 500
    assert observed.ask(row, traceparent=f"00-{traced}-{'3' * 16}-01")[0] == 500
    refused = "4" * 32
    assert observed.ask(row, x_clearway_version=SECRET, traceparent=f"00-{refused}-{'3' * 16}-01")[0] == 422

    def of(trace: str) -> list[Any]:
        return [span for span in observed.collector.spans() if span.trace_id.hex() == trace]

    until(lambda: len(of(traced)) == 3 and len(of(refused)) == 2, "three spans, and two")
    found = of(traced)
    assert {span.name: span.status.code for span in found} == {"POST /predict": 2, "route": 0, "score": 2}
    assert all(span.trace_id.hex() != skipped for span in observed.collector.spans())
    everything = b"".join(observed.collector.content)
    assert str(TELLING).encode() not in everything
    assert SECRET.encode() not in everything
