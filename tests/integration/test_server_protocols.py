"""One real server asked in every protocol it speaks, by their own clients where these are installed."""

import asyncio
import gzip
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from fruit_server import MAX_CONNECTIONS, MAX_ROWS, NAME, NULLS, ROW, make_project, serving
from live_server import REPOSITORY, Server, deploy, running, until

from clearway.admin_api import TOKEN_VARIABLE
from clearway.bundle import verify
from clearway.bundle_tar import packed
from clearway.mlflow_model import Scorer
from clearway.model import load_model
from clearway.prediction_log import read_log

TOKEN = "t" * 64
MODEL = f"/v2/models/{quote(NAME)}"
DATATYPES = {"weight": "FP64", "sugar": "INT64", "organic": "BOOL", "colour": "BYTES", "shape": "BYTES"}
FRAME = pd.DataFrame([ROW, {**ROW, "sugar": 5, "weight": np.nan}, {**ROW, "shape": "long", "colour": "mauve"}])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves the challenger, with the simple model as a canary of half the traffic."""
    workspace, first, second = make_project(tmp_path_factory.mktemp("fruit"))
    deploy(workspace.environment("staging"), first, second, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        with running(workspace) as made:
            yield made


def digests(server: Server) -> tuple[str, str]:
    state = server.state()
    return state["stable"], state["canary"]


def tensors(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": [len(rows)], "datatype": kind, "data": [row[name] for row in rows]}
        for name, kind in DATATYPES.items()
    ]


def post(server: Server, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.ask("POST", path, content, **{"content_type": "application/json", **headers})


def test_every_protocol_answers_the_same_of_a_row(server: Server) -> None:
    for digest in digests(server):
        header = {"x_clearway_version": digest}
        _, plain, _ = post(server, "/predict", ROW, **header)
        _, many, _ = post(server, "/predict", {"rows": [ROW] * 20}, **header)
        _, tensor, _ = post(server, f"{MODEL}/infer", {"inputs": tensors(ROW)}, **header)
        _, table, _ = post(server, "/invocations", {"dataframe_records": [ROW]}, **header)
        text = f"{','.join(ROW)}\n{','.join(map(str, ROW.values()))}\n".encode()
        _, from_csv, _ = post(server, "/invocations", text, **header, content_type="text/csv")
        # the runtime may round the sums of a batch otherwise
        assert [one["score"] for one in many["predictions"]] == pytest.approx([plain["score"]] * 20, abs=1e-6)
        assert [one["data"] for one in tensor["outputs"]] == [[plain["score"]], [plain["label"]]]
        assert table == from_csv == {"predictions": [{"score": plain["score"], "answer": bool(plain["label"])}]}


def test_open_inference_metadata_and_health(server: Server) -> None:
    stable, canary = digests(server)
    assert server.ask("GET", "/v2")[1] == {"name": "clearway", "version": "0.1.0", "extensions": []}
    for path, digest in ((MODEL, stable), (f"{MODEL}/versions/{canary[:12]}", canary)):
        status, metadata, headers = server.ask("GET", path)
        assert (status, headers["x-clearway-version"], metadata["name"]) == (200, digest, NAME)
        assert metadata["versions"] == [stable, canary]
        assert {one["name"]: one["datatype"] for one in metadata["inputs"]} == DATATYPES
        assert server.ask("GET", f"{path}/ready")[:2] == (200, {"name": NAME, "ready": True})
    for path in ("/v2/models/none", f"{MODEL}/versions/{canary[:11]}", f"{MODEL}/versions/{'f' * 64}/ready"):
        assert server.ask("GET", path)[0] == 404
    assert post(server, "/v2/models/none/infer", {"inputs": tensors(ROW)})[0] == 404
    assert post(server, f"{MODEL}/versions/{'f' * 64}/infer", {"inputs": tensors(ROW)})[0] == 404


def test_tensors_are_answered_by_one_version_which_a_path_may_name(server: Server) -> None:
    for digest in digests(server):
        body = {"id": "42", "inputs": tensors(ROW, NULLS)}
        status, answer, headers = post(server, f"{MODEL}/versions/{digest[:16]}/infer", body)
        assert (status, answer["model_version"], headers["x-clearway-version"]) == (200, digest, digest)
        assert (answer["id"], answer["model_name"]) == ("42", NAME)
    for number in range(20):
        asked = {"id": f"together-{number}", "inputs": tensors(*[ROW] * 20), "outputs": [{"name": "version"}]}
        answer = post(server, f"{MODEL}/infer", asked)[1]
        assert set(answer["outputs"][0]["data"]) == {answer["model_version"]}
    entities = {"name": "entity", "shape": [40], "datatype": "BYTES", "data": [f"tree-{n}" for n in range(40)]}
    answer = post(server, f"{MODEL}/infer", {"inputs": [*tensors(*[ROW] * 40), entities]})[1]
    assert set(answer["model_version"].split(",")) == set(digests(server))


def test_mlflows_client_gets_what_mlflow_would_answer(server: Server) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    stable, canary = digests(server)
    client = ScoringServerClient("127.0.0.1", server.port)
    client.wait_server_ready(timeout=10)
    assert re.fullmatch(r"\d+\.\d+.*", client.get_version())
    answers = client.invoke(FRAME).get_predictions()
    expected = [Scorer(load_model(server.workspace.bundles / one, one)).predict(FRAME) for one in (stable, canary)]
    assert list(answers.columns) == list(expected[0].columns)
    for place, answer in answers.iterrows():
        told = [one.loc[place] for one in expected]
        assert any(answer["answer"] == one["answer"] and abs(answer["score"] - one["score"]) < 1e-6 for one in told)
    with pytest.raises(Exception, match="feature sugar = 101"):
        client.invoke(FRAME.assign(sugar=101))


@pytest.mark.lines
def test_kserves_and_tritons_clients_work_unchanged(server: Server, tmp_path: Path) -> None:
    """In an environment of their own: KServe's client wants another psutil, Triton's another ml-dtypes than we have."""
    python, uv = tmp_path / "bin" / "python", Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path], check=True, timeout=60)
    install = [uv, "pip", "install", "--quiet", "--python", python, "kserve==0.21.0", "tritonclient[http]==2.73.0"]
    subprocess.run(install, check=True, timeout=300)
    script = REPOSITORY / "tests" / "integration" / "oip_clients.py"
    command = [python, script, str(server.port), NAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [{"weight": 180.5, "sugar": 11, "organic": True, "colour": "red", "shape": "round"}]
    rows.append({"weight": 95.0, "sugar": 7, "organic": False, "colour": "green", "shape": "long"})
    told = []
    for digest in digests(server):
        answers = post(server, "/predict", {"rows": rows}, x_clearway_version=digest)[1]["predictions"]
        told.append([one["score"] for one in answers])
    for client, scores in json.loads(done.stdout.splitlines()[-1]).items():
        assert any(scores == pytest.approx(expected, abs=1e-6) for expected in told), client


def test_request_ids_are_given_back_and_logged(server: Server) -> None:
    _, answer, headers = post(server, "/predict", ROW, x_request_id="one-row")
    assert (answer["id"], headers["x-request-id"]) == ("one-row", "one-row")
    _, answer, headers = post(server, "/predict", {**ROW, "id": "own"}, x_request_id="asked")
    assert (answer["id"], headers["x-request-id"]) == ("own", "asked")
    _, answer, headers = post(server, "/predict", {"rows": [ROW, {**ROW, "id": "mine"}]}, x_request_id="many")
    assert [one["id"] for one in answer["predictions"]] == ["many/0", "mine"]
    made = {post(server, "/predict", body)[2]["x-request-id"] for body in (ROW, ROW, 3)}
    assert len(made) == 3
    status, _, headers = post(server, "/predict", ROW, x_request_id="a b")
    assert (status, len(headers["x-request-id"])) == (400, 32)
    post(server, f"{MODEL}/infer", {"id": "tensors", "inputs": tensors(ROW, ROW)})
    deadline, wanted = time.monotonic() + 20, {"one-row", "own", "many/0", "mine", "tensors/0", "tensors/1"}
    while not wanted <= set(read_log(server.folder / "predictions", columns=["id"])["id"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/predict", {"rows": [ROW] * (MAX_ROWS + 1)}, 413, f"serving.max_rows = {MAX_ROWS}"),
        ("/predict", {"rows": [*[ROW] * 20, {**ROW, "sugar": 101}]}, 422, "rows[20]: feature sugar = 101"),
        ("/predict", {"rows": [*[ROW] * 20, {**ROW, "sugar": "1"}]}, 422, "rows[20]: feature sugar must be a number"),
        ("/predict", {"rows": [{**ROW, "age": 1}] * 20}, 422, "rows[0]: unknown field 'age'"),
        ("/predict", b"[" * 50_000, 400, "not valid JSON"),
        ("/predict", {**ROW, "sugar": 10**25}, 422, "feature sugar = 1e+25"),
        (f"{MODEL}/infer", {"inputs": tensors(ROW)[1:]}, 422, "feature weight is missing"),
        (f"{MODEL}/infer", {"inputs": tensors(*[ROW] * 9, {**ROW, "sugar": 101})}, 422, "rows[9]: feature sugar = 101"),
        (f"{MODEL}/infer", {"inputs": tensors(ROW), "outputs": [{"name": "odds"}]}, 422, "output 'odds'"),
        ("/invocations", {"inputs": [{**ROW, "shape": "flat"}]}, 422, "feature shape = 'flat' is not one of"),
        ("/invocations", {"inputs": [{**ROW, "colour": "RED"}]}, 422, "feature colour = 'RED' does not match"),
    ],
)
def test_refusals_name_the_field_in_every_protocol(
    server: Server, path: str, body: Any, status: int, said: str
) -> None:
    found, answer, headers = post(server, path, body)
    assert (found, said in answer.get("error", answer.get("message"))) == (status, True), answer
    assert headers["x-clearway-version"] == digests(server)[0]
    assert len(headers["x-request-id"]) == 32


def test_compressed_and_binary_bodies_are_refused(server: Server) -> None:
    status, answer, _ = post(server, "/predict", gzip.compress(json.dumps(ROW).encode()), content_encoding="gzip")
    assert (status, "content-encoding 'gzip'" in answer["error"]) == (415, True)
    length = {"inference_header_content_length": "10", "content_type": "application/octet-stream"}
    status, answer, _ = post(server, f"{MODEL}/infer", b"{}", **length)
    assert (status, "binary tensor data is not supported" in answer["error"]) == (400, True)


def raw(server: Server, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server sends to a caller that sends these parts, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as caller:
        try:
            for part in parts:
                caller.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # it was cut off while it still sent
        found = b""
        try:
            while more := caller.recv(65_536):
                found += more
        except ConnectionResetError:
            pass
        return found


HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD,),
        (HEAD + b"content-length: 50\r\n\r\n{",),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",),
        (HEAD + b"content-length: 5000\r\n\r\n", *[b" "] * 40),
    ],
    ids=["headers", "body", "chunks", "trickle"],
)
def test_callers_that_dawdle_are_cut_off(server: Server, parts: tuple[bytes, ...]) -> None:
    answer = raw(server, *parts, pause=0.1)
    assert b"408 Request Timeout" in answer or not answer
    assert post(server, "/predict", ROW)[0] == 200


def test_a_silent_connection_is_closed_but_not_one_between_requests(server: Server) -> None:
    assert post(server, "/predict", ROW)[0] == 200
    kept = server.local.connection.sock
    assert raw(server) == b""
    assert post(server, "/predict", ROW)[0] == 200
    assert server.local.connection.sock is kept, "an idle connection was closed too"


def whole(body: Any, *headers: bytes) -> bytes:
    """A request for a prediction."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = b"".join(b"%b\r\n" % line for line in (*headers, b"content-length: %d" % len(content)))
    return HEAD + lines + b"\r\n" + content


@pytest.mark.parametrize("body", [{**ROW, "id": "one"}, {"rows": [ROW, ROW]}, {**ROW, "sugar": "sweet"}, b"{", [ROW]])
def test_a_request_in_one_piece_is_answered_as_one_in_two(server: Server, body: Any) -> None:
    asked = whole(body, b"x-request-id: r1", b"connection: keep-alive")
    answers = []
    for parts in ((asked,), (asked[:-1], asked[-1:]), (asked[:20], asked[20:])):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as caller:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in parts:
                caller.sendall(part)
                time.sleep(0.05)
            caller.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: caller.recv(65_536), b""))
        answers.append(re.sub(rb"date: [^\r]*\r\n", b"", answer))
    assert answers[0].startswith(b"HTTP/1.1 ")
    assert answers == answers[:1] * 3


def test_requests_that_do_not_wait_for_answers_get_them_in_their_order(server: Server) -> None:
    live = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    rows = [whole({**ROW, "id": f"p{number}"}) for number in range(4)]
    last = whole({**ROW, "id": "last"}, b"connection: close")
    answer = raw(server, rows[0] + rows[1] + live + rows[2] + rows[3] + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 6
    assert re.findall(rb'"id":"(\w+)"|("live")', answer) == [
        (b"p0", b""),
        (b"p1", b""),
        (b"", b'"live"'),
        (b"p2", b""),
        (b"p3", b""),
        (b"last", b""),
    ]


def test_a_connection_is_closed_if_the_caller_says_so(server: Server) -> None:
    assert b"connection: close" in raw(server, whole(ROW, b"connection: close"))
    assert b" 200 OK" in raw(server, whole(ROW).replace(b"HTTP/1.1", b"HTTP/1.0"))


def test_a_caller_that_asks_first_is_told_to_go_on(server: Server) -> None:
    answer = raw(server, whole(ROW, b"expect: 100-continue", b"connection: close"))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_an_idle_connection_after_an_answer_is_kept_but_not_half_a_request(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as caller:
        for _ in range(2):
            caller.sendall(whole(ROW))
            found = b""
            while not found.endswith(b"}"):
                found += caller.recv(65_536)
            assert found.startswith(b"HTTP/1.1 200 OK")
            time.sleep(2.0)  # longer than it may take to arrive
        caller.sendall(whole(ROW)[:-5])
        assert b"408 Request Timeout" in caller.recv(65_536)


def test_what_follows_a_request_and_is_no_http_is_refused(server: Server) -> None:
    assert raw(server, whole(ROW) + b"nonsense\r\n\r\n").count(b"400 Bad Request") == 1
    assert post(server, "/predict", ROW)[0] == 200


@pytest.mark.parametrize(
    ("request_line", "more"),
    [(b"POST /predict", b"a"), (b"POST /nowhere", b"a"), (b"GET /v2", b"\r\n")],
    ids=["too large", "nowhere", "empty lines"],
)
def test_callers_that_send_on_after_their_answer_are_cut_off_too(
    server: Server, request_line: bytes, more: bytes
) -> None:
    length = b"" if request_line.startswith(b"GET") else b"content-length: 99999999\r\n"
    head = request_line + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + length + b"\r\n"
    assert raw(server, head, more, pause=0.3).count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(("token", "status"), [(TOKEN, b"200"), ("wrong", b"401")])
def test_an_upload_may_take_longer_than_a_request_if_its_sender_is_let_in(
    server: Server, token: str, status: bytes
) -> None:
    stable = digests(server)[0]
    content = b"".join(packed(verify(server.workspace.bundles / stable, stable)))
    head = f"PUT /admin/bundles/{stable} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n"
    length = f"content-length: {len(content)}\r\n\r\n"
    answer = raw(server, (head + length).encode() + content[:1000], content[1000:], pause=2.5)
    assert answer.startswith(b"HTTP/1.1 " + status), answer


def test_callers_beyond_the_limit_are_turned_away_and_no_others(server: Server) -> None:
    assert post(server, "/predict", ROW)[0] == 200
    address = ("127.0.0.1", server.port)
    silent = [socket.create_connection(address, timeout=30) for _ in range(MAX_CONNECTIONS)]
    try:
        answer = silent[-1].recv(65_536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert b"serving.max_connections" in answer
        assert post(server, "/predict", ROW)[0] == 200, "a caller that was there before is refused"
    finally:
        for caller in silent:
            caller.close()
    until(lambda: raw(server, b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"), "room")


def test_a_request_that_offers_another_protocol_is_answered_in_its_own(server: Server) -> None:
    body = json.dumps(ROW).encode()
    offer = (
        HEAD + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    )
    length = b"content-length: %d\r\n\r\n" % len(body)
    whole = offer + length + body
    last = HEAD + b"connection: close\r\n" + length + body
    for parts in ((whole, last), (whole * 3 + last,), (whole[:150], whole[150:-20], whole[-20:], last)):
        answer = raw(server, *parts, pause=0.05)
        assert answer.count(b"HTTP/1.1 200") == b"".join(parts).count(b"POST"), answer


def test_wrong_lengths_and_chunked_bodies(server: Server) -> None:
    body = json.dumps(ROW).encode()
    close = HEAD + b"connection: close\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"
    assert b" 200 OK" in raw(server, close + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert b" 400 " in raw(server, close + b"content-length: 10\r\n\r\n" + body)
    for length in (b"-1", b"ten", b"1, 2"):
        assert b" 400 " in raw(server, close + b"content-length: " + length + b"\r\n\r\n" + body)


def test_the_page_and_its_examples_work(server: Server) -> None:
    connection = f"http://127.0.0.1:{server.port}"
    page = subprocess.run(["curl", "-s", f"{connection}/docs"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"<pre><code>(curl .*?)</code></pre>", page, re.DOTALL)
    assert len(commands) == 4
    for command in commands:
        run_curl(command.replace("&#39;", "'").replace("&#34;", '"'))


def test_the_examples_of_the_manual_work(server: Server) -> None:
    manual = (REPOSITORY / "docs" / "protocols.md").read_text()
    commands = re.findall(r"^```sh\n(curl .*?)^```", manual, re.DOTALL | re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        run_curl(
            command.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{server.port}").replace("NAME", quote(NAME))
        )


def run_curl(command: str) -> None:
    assert command.startswith("curl ")
    strict = command.replace("curl", "curl -s -S --fail-with-body", 1)
    done = subprocess.run(["sh", "-c", strict], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_columns_are_answered_routed_and_logged_as_rows(server: Server) -> None:
    """The same rows one by one and all at once, in two environments that differ in nothing else."""
    random = np.random.default_rng(3)
    colours = ["red", "green", "mauve", None]
    rows = [
        {
            "weight": None if number % 7 == 0 else float(random.normal(170, 400)),
            "sugar": int(random.integers(0, 100)),
            "organic": (True, False, None)[number % 3],
            "colour": colours[number % 4],
            "shape": "long" if number % 2 else "round",
            "id": f"row-{number}",
            "entity": f"tree-{number}",
        }
        for number in range(40)
    ]
    answers, logged, counted, scores = {}, {}, {}, {}
    for name, bodies in (("single", rows), ("together", [{"rows": rows}])):
        folder = server.workspace.environment(name)
        deploy(folder, *digests(server), 50)
        found, follower_counts = asyncio.run(ask_in_process(server, name, bodies))
        answers[name] = [one for answer in found for one in answer.get("predictions", [answer])]
        log = read_log(folder / "predictions").set_index("id").sort_index()
        logged[name] = log[["role", "version", "entity", "status", "features"]].to_dict(orient="index")
        scores[name] = [one.pop("score") for one in answers[name]]
        assert log.loc[[one["id"] for one in answers[name]], "score"].tolist() == scores[name]
        counted[name] = follower_counts
    assert answers["single"] == answers["together"]
    assert scores["single"] == pytest.approx(scores["together"], abs=1e-6)  # batches may be summed otherwise
    assert {one["role"] for one in answers["single"]} == {"stable", "canary"}
    assert logged["single"] == logged["together"]
    assert counted["single"] == counted["together"]
    assert counted["single"][0] > 0, "no unseen category was asked"


async def ask_in_process(server: Server, environment: str, bodies: list[Any]) -> tuple[list[Any], tuple[int, Any]]:
    answers = []
    async with serving(server.workspace, environment) as (app, follower):
        for body in bodies:
            sent: list[Any] = []
            content = json.dumps(body).encode()

            async def receive(content: bytes = content) -> Any:
                return {"type": "http.request", "body": content, "more_body": False}

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
            await app(scope, receive, send)
            assert sent[0]["status"] == 200, sent
            answers.append(json.loads(sent[1]["body"]))
        return answers, (follower.active.unseen, follower.active.warned)
