"""The HTTP face of one environment: predictions, health in the V2 inference protocol's paths, and what is served."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib import metadata
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clearway import __version__
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.serving import invocations, open_inference
from clearway.serving.answering import Answerer, LookupFailed, ModelError, Question
from clearway.serving.bodies import (
    CSV,
    JSON,
    REQUEST_ID,
    UNSAID,
    check_announced,
    check_length,
    new_request_id,
    parse_json,
    read_body,
    read_kind,
    read_request_id,
)
from clearway.serving.direct import Answer, AtOnce
from clearway.serving.logs import AccessLog, failed, request_id, without_words
from clearway.serving.metrics import (
    ADMIN_REFUSED,
    CONTENT_TYPE,
    Traffic,
    describe_readers,
    of_admin,
    of_features,
    of_log,
    of_models,
    of_routing,
    of_traffic,
    render,
)
from clearway.serving.models import Hosting, Models, NotLoadedError, UnknownModelError
from clearway.serving.requests import Columns, RequestError
from clearway.serving.state import Active, Follower, Loaded
from clearway.serving.whole import Desk, describe_whole, families_of_whole

if TYPE_CHECKING:
    from clearway.serving.admin import Admin

VERSION_HEADER = "x-clearway-version"
_VERSION = VERSION_HEADER.encode()
RETRY_LATER = (b"retry-after", b"1")
NOTICE_SECONDS = 0.05
"""How soon the other workers hear that this one serves another table, or refused one."""
COUNT_SECONDS = 0.2
"""How soon they hear what it counted; no sooner than keeps the telling under ``COUNT_SHARE`` of the time."""
COUNT_SHARE = 0.01
MOST_AT_ONCE = 16_384
"""Bytes of a body up to which it is worth a look whether it is a single row."""
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}

logger = logging.getLogger("clearway.serving")


class Endpoint:
    """Answers the requests of one environment from whatever the follower has active.

    A request takes the active table once and keeps it to its end, so that a swap in between cannot mix two.
    """

    def __init__(
        self,
        settings: ServingParams,
        environment: str,
        follower: Follower,
        log: PredictionLog,
        answerer: Answerer,
        desk: Desk,
        name: str,
    ) -> None:
        self.models: Models | None = None
        """All models of the server, where this is its own model's endpoint."""
        self.admin: Admin | None = None
        self._settings = settings
        self._name = name
        self._environment = environment
        self._follower = follower
        self._log = log
        self._desk = desk
        self._answerer = answerer
        self._traffic = answerer.traffic

    @property
    def loaded(self) -> bool:
        """Whether there is a version to answer with."""
        return self._follower.active is not None

    @property
    def refused(self) -> bool:
        """Whether the newest routing table was tried, and is not served."""
        return self._follower.error is not None

    def publish(self) -> None:
        """Tell the other workers what this one serves and has counted."""
        active = self._follower.active
        readers = list(active.readers.values()) if active else []
        families = (
            *of_traffic(self._traffic),
            *of_log(self._log.written, self._log.dropped),
            *of_routing(self._answerer.without_key, active.copies.describe() if active and active.copies else None),
            *of_features(readers),
            *(of_admin(self.admin.refused) if self.admin is not None else ()),
            *(of_models(self.models) if self.models is not None and self.models.traffic else ()),
        )
        try:
            self._desk.say(self._state(), families)
        except (TypeError, ValueError):  # requests are answered all the same
            logger.exception("the other workers do not hear of this one")

    async def publish_on(self) -> None:
        """Publish until cancelled: soon after a change of the table, and now and then what was counted."""
        seen: tuple[Active | None, str | None] | None = None
        count_at = 0.0
        while True:
            found = (self._follower.active, self._follower.error)
            if found != seen or time.monotonic() >= count_at:
                if found != seen and found[0] is not None:
                    self._traffic.forget(found[0].versions)
                seen, began = found, time.monotonic()
                self.publish()
                took = time.monotonic() - began
                count_at = began + max(COUNT_SECONDS, took / COUNT_SHARE)
            await asyncio.sleep(NOTICE_SECONDS)

    def close(self) -> None:
        """Let go of what answers."""
        self._answerer.close()

    async def predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST /predict``: one row, or ``{"rows": [...]}``."""
        await self._exchange(scope, receive, send, self._predict, _plain)

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST /v2/models/NAME[/versions/DIGEST]/infer``: tensors, by the Open Inference Protocol."""
        await self._exchange(scope, receive, send, self._infer, _plain)

    async def invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST /invocations``: tables, by the protocol of MLflow's scoring server."""
        await self._exchange(scope, receive, send, self._invoke, invocations.refusal)

    async def _exchange(
        self, scope: Scope, receive: Receive, send: Send, answer: "Answering", refusal: Callable[[int, str], Any]
    ) -> None:
        """Answer one request for predictions by ``answer``; whatever goes wrong is told in the protocol's own words."""
        started = perf_counter()
        headers = dict(scope["headers"])
        active = self._follower.active
        version = None if active is None else active.table.stable
        identity = ""
        try:
            identity = read_request_id(headers)
            if active is None:
                raise LookupFailed(503, self._follower.error or "no version is loaded yet")
            content, version = await answer(Exchange(scope, headers, receive, active, started, identity))
            status = 200
        except Exception as error:  # no fault of the server may end a connection without an answer
            status, content, version = _failure(error, scope["path"], identity, version, refusal)
        self._traffic.add(status, perf_counter() - started)
        await Reply(content, status, version, identity or new_request_id())(scope, receive, send)

    def predict_at_once(self, asked: list[tuple[bytes, bytes]], content: bytes) -> "Reply | ASGIApp | None":
        """The same as :meth:`predict`, for a request that has arrived whole.

        Parameters
        ----------
        asked : list of (name, value)
            The request's headers. Of a request that is not answered here, they hold its id afterwards: it may be what
            it is routed by.
        content : bytes
            The request's body.

        Returns
        -------
        Reply, ASGIApp or None
            What answers later, without reading the request again, where something is to be waited for; None where the
            body is long. Then nothing has happened.
        """
        if len(content) > MOST_AT_ONCE:
            return None
        started = perf_counter()
        headers = dict(asked)
        active = self._follower.active
        version = None if active is None else active.table.stable
        identity = ""
        try:
            identity = read_request_id(headers)
            if active is None:
                raise LookupFailed(503, self._follower.error or "no version is loaded yet")
            read_kind(headers)
            check_announced(headers, self._settings.max_body_bytes)
            check_length(content, self._settings.max_body_bytes)
            body, wanted = parse_json(content), _wanted(headers)
            if _is_many(body, active):
                return self._later(asked, identity, partial(self._predictions, body))
            answered = self._answerer.answer_at_once(body, wanted, active, started, identity)
            if isinstance(answered, Question):
                return self._later(asked, identity, self._rest(answered, active, started, tester=wanted is not None))
            told, version = answered
            status = 200
        except Exception as error:
            status, told, version = _failure(error, "/predict", identity, version, _plain)
        self._traffic.add(status, perf_counter() - started)
        return Reply(told, status, version, identity or new_request_id())

    def _rest(self, question: Question, active: Active, started: float, *, tester: bool) -> "Answering":
        """What answers a question that has something to wait for."""
        return lambda _: self._answerer.answer_question(question, active, started, tester=tester)

    def _later(self, asked: list[tuple[bytes, bytes]], identity: str, answer: "Answering") -> ASGIApp:
        """What gives this answer to ``POST /predict``."""
        asked.append((REQUEST_ID, identity.encode()))
        return partial(self._exchange, answer=answer, refusal=_plain)

    async def _predict(self, asked: "Exchange") -> "tuple[Any, str]":
        read_kind(asked.headers)
        content = await read_body(asked.headers, asked.receive, self._settings.max_body_bytes)
        return await self._predictions(parse_json(content), asked)

    async def _predictions(self, body: Any, asked: "Exchange") -> "tuple[Any, str]":
        active, wanted = asked.active, asked.wanted
        if _is_many(body, active):
            rows = self._rows(body)
            answers, digests = await self._answerer.answer_many(rows, wanted, active, asked.started, asked.identity)
            return {"predictions": answers}, ",".join(digests)
        return await self._answerer.answer_one(body, wanted, active, asked.started, asked.identity)

    async def _infer(self, asked: "Exchange") -> "tuple[Any, str]":
        active, path = asked.active, asked.scope["path_params"]
        wanted = active.live_digest(path["version"]) if "version" in path else asked.wanted
        if open_inference.HEADER_LENGTH not in asked.headers:
            read_kind(asked.headers, (JSON, UNSAID))  # some clients say nothing
        content = await read_body(asked.headers, asked.receive, self._settings.max_body_bytes)
        body = None if open_inference.HEADER_LENGTH in asked.headers else parse_json(content)
        request = open_inference.read_infer(asked.headers, body, self._name, self._settings.max_rows)
        judged = active.stable if wanted is None else active.chosen(wanted)[1]
        open_inference.check_outputs(request, judged.version.model.target)
        identity = request.id or asked.identity
        answers, version = await self._answer_columns(request.whole(identity), wanted, asked, identity)
        return open_inference.infer_response(self._name, version, request, identity, answers), version

    async def _invoke(self, asked: "Exchange") -> "tuple[Any, str]":
        active = asked.active
        kind = read_kind(asked.headers, (JSON, CSV))
        content = await read_body(asked.headers, asked.receive, self._settings.max_body_bytes)
        model = active.stable.version.model
        fields = active.stable.keyed.fields if active.stable.keyed is not None else {}
        rows = invocations.read_invocation(content, kind, model.schema, fields, self._settings.max_rows)
        answers, version = await self._answer_columns(rows, asked.wanted, asked, asked.identity)
        return invocations.predictions(answers, binary=model.target.binary), version

    async def _answer_columns(
        self, rows: Columns | list[Any], wanted: str | None, asked: "Exchange", identity: str
    ) -> tuple[list[dict[str, Any]], str]:
        """The answers to the rows of a request, and the digests of the versions that gave them."""
        active, started = asked.active, asked.started
        if isinstance(rows, Columns) and rows.count == 1:
            answer, digest = await self._answerer.answer_one(rows.rows()[0], wanted, active, started, identity)
            return [answer], digest
        answers, digests = await self._answerer.answer_many(rows, wanted, active, started, identity)
        return answers, ",".join(digests)

    async def server(self, request: Request) -> Response:
        """``GET /v2``: what this server is."""
        return _json(open_inference.server_metadata(__version__), version=self._stable())

    async def model(self, request: Request) -> Response:
        """``GET /v2/models/NAME[/versions/DIGEST]``: names, datatypes and shapes of inputs and outputs."""
        try:
            loaded = self._asked_for(request.path_params)
        except (RequestError, LookupFailed) as error:
            return _json({"error": str(error)}, error.status, self._stable())
        assert self._follower.active is not None  # else there is nothing to ask for
        digests = list(self._follower.active.versions)
        return _json(open_inference.model_metadata(self._name, loaded.version.model, digests), version=loaded.digest)

    async def model_ready(self, request: Request) -> Response:
        """``GET /v2/models/NAME[/versions/DIGEST]/ready``: whether it answers."""
        try:
            loaded = self._asked_for(request.path_params)
        except (RequestError, LookupFailed) as error:
            return _json({"error": str(error)}, error.status, self._stable())
        down = _without_store(loaded)
        content = {"name": self._name, "ready": not down, **({"error": down} if down else {})}
        return _json(content, 503 if down else 200, loaded.digest)

    def _asked_for(self, path: Mapping[str, str]) -> Loaded:
        """The version that a path names, or the stable one.

        Raises
        ------
        RequestError
            It is not served here; 404.
        LookupFailed
            Nothing is served yet.
        """
        active = self._follower.active
        if active is None:
            raise LookupFailed(503, self._follower.error or "no version is loaded yet")
        return active.chosen(active.live_digest(path["version"]))[1] if "version" in path else active.stable

    async def ping(self, request: Request) -> Response:
        """``GET /ping`` and ``GET /health``: as ready, as MLflow's clients ask it."""
        ready = await self.ready(request)
        return Response(b"\n", ready.status_code, {"content-type": "text/plain; charset=utf-8"})

    async def mlflow_version(self, request: Request) -> Response:
        """``GET /version``: of MLflow, whose protocol this is; of Clearway where it is not installed."""
        try:
            found = metadata.version("mlflow")
        except metadata.PackageNotFoundError:
            found = __version__
        return Response(found, headers={"content-type": "text/plain; charset=utf-8"})

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``: this server, as the versions that are live describe it."""
        from clearway.serving.openapi import describe_api

        content = describe_api(self._follower.active, self._name, self._settings)
        return _json(content, version=self._stable())

    async def docs(self, request: Request) -> Response:
        """``GET /docs``: the same for people."""
        from clearway.serving.docs_page import render_page
        from clearway.serving.openapi import describe_api

        document = describe_api(self._follower.active, self._name, self._settings)
        page = render_page(document, f"{request.url.scheme}://{request.url.netloc}")
        return Response(page, headers={"content-type": "text/html; charset=utf-8"})

    async def live(self, request: Request) -> Response:
        """``GET /v2/health/live``: the process answers."""
        return _json({"live": True}, version=self._stable())

    async def ready(self, request: Request) -> Response:
        """``GET /v2/health/ready``: 200 once a routing table is served, 503 before, and 503 without a feature store.

        It says ``refused`` and why where a worker serves an older table than it should; ``degraded`` where last known
        values may stand in for the store's, or only the canary is without it; and ``filling`` where a fill of the store
        began and did not end: it may hold values of different times.
        """
        active = self._follower.active
        if active is None:
            return _json({"ready": False}, 503)
        content: dict[str, Any] = {"ready": True}
        refusals = [self._follower.error, *(one.state["error"] for one in self._desk.hear()[0])]
        if refusal := next(filter(None, refusals), None):
            content["refused"] = refusal  # what is served goes on
        if reason := _without_store(active.stable):
            return _json({"ready": False, "error": reason}, 503, self._stable())
        if not all(reader.store.health.up for reader in active.readers.values()):
            content["features"] = "degraded"
        elif self._follower.online_state(active) == "filling":
            content["features"] = "filling"
        if active.stable.version.model.runtime != "onnx":
            content["runtime"] = active.stable.version.model.runtime  # ready, and slower than most
        return _json(content, version=self._stable())

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: counts of all workers in the text format of Prometheus."""
        self.publish()
        return Response(render(families_of_whole(*self._desk.hear())), headers={"content-type": CONTENT_TYPE})

    async def describe(self, request: Request) -> Response:
        """``GET /``: what is served by all workers, and why a newer routing table is not."""
        self.publish()
        return _json(describe_whole(*self._desk.hear()), version=self._stable())

    def whole(self) -> dict[str, Any]:
        """What all workers serve, as ``GET /`` says it, and ``admin_refused``: attempts at ``/admin`` they refused."""
        self.publish()
        said, past = self._desk.hear()
        refused = [one for one in families_of_whole(said, past) if one.name == ADMIN_REFUSED]
        return {
            **describe_whole(said, past),
            "admin_refused": sum(int(sample.value) for family in refused for sample in family.samples),
        }

    def _state(self) -> dict[str, Any]:
        """What this worker serves, and why it serves no newer table."""
        active = self._follower.active
        return {
            "environment": self._environment,
            **self._follower.served(),
            "warm": self._follower.warm,
            "runtimes": active.runtimes if active else {},
            "routing": {
                "key": active.table.key if active else None,
                "without_key": self._answerer.without_key,
            },
            "shadow": active.copies.describe() if active and active.copies else None,
            "unseen_categories": active.unseen if active else 0,
            "schema_warnings": active.warned if active else {},
            "log": {"written": self._log.written, "dropped": self._log.dropped},
            "features": describe_readers(list(active.readers.values()), self._follower.online_state(active))
            if active and active.readers
            else None,
        }

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answers for paths and methods that do not exist."""
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path}"
        return _json({"error": message}, error.status_code, self._stable(), error.headers)

    async def apologise(self, request: Request, error: Exception) -> Response:
        """The answer to a fault of the server itself, whose traceback is in its log."""
        failed(request_id(dict(request.scope["headers"])), 500, f"the server failed: {type(error).__name__}")
        return self._apology(error)

    def _apology(self, error: Exception) -> Response:
        return _json({"error": f"the server failed: {type(error).__name__}"}, 500, self._stable())

    def _stable(self) -> str | None:
        return self._follower.active.table.stable if self._follower.active else None

    def _rows(self, body: Mapping[str, Any]) -> list[Any]:
        """The rows of ``{"rows": [...]}``."""
        rows = body["rows"]
        if extra := body.keys() - {"rows"}:
            raise RequestError(422, f"unknown field {min(extra)[:256]!r} beside rows")
        if type(rows) is not list or not rows:
            raise RequestError(422, "rows must be an array with at least one row")
        if len(rows) > self._settings.max_rows:
            raise RequestError(
                413, f"rows has {len(rows)} rows, more than serving.max_rows = {self._settings.max_rows}"
            )
        return rows


class Exchange(NamedTuple):
    """One request for predictions, with the table that answers it to its end."""

    scope: Scope
    headers: Mapping[bytes, bytes]
    receive: Receive
    active: Active
    started: float
    identity: str
    """Of the request: its header ``x-request-id``, or made for it."""

    @property
    def wanted(self) -> str | None:
        """The digest that a tester asked for."""
        return _wanted(self.headers)


Answering = Callable[[Exchange], Awaitable[tuple[Any, str]]]
"""From a request to the content of its answer, and the digests of the versions that gave it."""


class Reply(Answer):
    """A JSON answer that sends itself. Starlette's own response takes a tenth of the time of a prediction."""

    def __init__(self, content: Any, status: int, version: str | None, identity: str) -> None:
        self._body = orjson.dumps(content)
        self._status = status
        self._identity = identity.encode("latin-1")
        self._more = [] if version is None else [(_VERSION, version.encode("latin-1"))]
        if status == 503:
            self._more.append(RETRY_LATER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
            (REQUEST_ID, self._identity),
            *self._more,
        ]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})

    def as_http(self, more_headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The same as a message of HTTP/1.1 (RFC 9112) on a connection that stays open."""
        return b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
            _STATUS_LINES[self._status],
            _lines(more_headers),
            len(self._body),
            self._identity,
            _lines(self._more),
            self._body,
        )


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class ModelsEndpoint:
    """Answers for all models of the server, by their names."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def asgi(self, answer: Callable[[Endpoint, Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
        """``answer`` of the endpoint of the model that the path names."""

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            started = perf_counter()
            try:
                async with self._models.use(scope["path_params"]["name"]) as endpoint:
                    await answer(endpoint, scope, receive, send)
            except (UnknownModelError, NotLoadedError) as error:
                if isinstance(error, NotLoadedError):
                    self._models.traffic[scope["path_params"]["name"]].add(error.status, perf_counter() - started)
                await _unavailable(error, dict(scope["headers"]))(scope, receive, send)

        return _Application(answered)

    def response(
        self, answer: Callable[[Endpoint, Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The same of an answer to a request."""

        async def answered(request: Request) -> Response:
            try:
                async with self._models.use(request.path_params["name"]) as endpoint:
                    return await answer(endpoint, request)
            except (UnknownModelError, NotLoadedError) as error:
                return _unavailable(error)

        return answered

    async def index(self, request: Request) -> Response:
        """``GET /models``: which there are, and which are loaded."""
        return _json(self._models.describe())


class _Application:
    """An ASGI application of a coroutine. Starlette would wrap the coroutine itself in a request, at twice the cost."""

    def __init__(self, answer: ASGIApp) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class App(Starlette):
    """The ASGI application. Predictions pass by what Starlette does for each request: it costs more than they do."""

    endpoint: Endpoint

    @property
    def at_once(self) -> AtOnce | None:
        """What answers predictions whose requests arrived whole; None where something wraps every request."""
        return None if self.user_middleware else self.endpoint.predict_at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # what wraps every request, such as the access log, is wrapped around the rest
        if scope["type"] == "http" and scope["method"] == "POST" and not self.user_middleware:
            if scope["path"] == "/predict":
                await self.endpoint.predict(scope, receive, send)
                return
            if scope["path"] == "/invocations":
                await self.endpoint.invoke(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def build_app(
    settings: ServingParams,
    environment: str,
    follower: Follower,
    log: PredictionLog,
    name: str,
    desk: Desk | None = None,
    hosting: Hosting | None = None,
    admin: "Admin | None" = None,
) -> App:
    """The ASGI application; its lifespan follows the routing table and drains the log at the end.

    ``name`` is what the model is called in paths, ``desk`` that of a worker among others. With ``hosting``, models of
    other projects are answered for by their names too.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(task) for task in (follower.follow(), endpoint.publish_on())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await models.close()
            endpoint.close()
            if admin is not None:
                admin.close()
            await asyncio.to_thread(follower.close)
            await asyncio.to_thread(log.close)
            endpoint.publish()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    middleware = [Middleware(AccessLog)] if settings.access_log else []
    answerer, tracing = Answerer(settings, log), None
    if settings.traces.endpoint is not None:
        from clearway.serving.traces import TracedAnswerer, TraceRequests, Tracing  # imports OpenTelemetry

        tracing = Tracing(settings.traces, environment)
        answerer = TracedAnswerer(settings, log, tracing.tracer)
        middleware.append(Middleware(TraceRequests, tracing.tracer))
    endpoint = Endpoint(settings, environment, follower, log, answerer, desk or Desk.alone(), name)
    endpoint.admin = admin
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    endpoint.models = models = Models(settings, environment, endpoint, hosting or Hosting(name), _hosted_endpoint)
    named = ModelsEndpoint(models)
    app = App(
        routes=[
            Route("/predict", _Application(endpoint.predict), methods=["POST"]),
            *(Route(f"{path}/infer", named.asgi(Endpoint.infer), methods=["POST"]) for path in (model, version)),
            Route("/invocations", _Application(endpoint.invoke), methods=["POST"]),
            *(Route(path, endpoint.server, methods=["GET"]) for path in ("/v2", "/v2/")),
            *(Route(path, named.response(Endpoint.model), methods=["GET"]) for path in (model, version)),
            *(
                Route(f"{path}/ready", named.response(Endpoint.model_ready), methods=["GET"])
                for path in (model, version)
            ),
            *(Route(path, endpoint.ping, methods=["GET"]) for path in ("/ping", "/health")),
            Route("/version", endpoint.mlflow_version, methods=["GET"]),
            Route("/openapi.json", endpoint.openapi, methods=["GET"]),
            Route("/docs", endpoint.docs, methods=["GET"]),
            Route("/v2/health/live", endpoint.live, methods=["GET"]),
            Route("/v2/health/ready", endpoint.ready, methods=["GET"]),
            Route("/metrics", endpoint.metrics, methods=["GET"]),
            Route("/", endpoint.describe, methods=["GET"]),
            *(admin.routes() if admin is not None else ()),
            *_model_routes(named),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: endpoint.refuse, Exception: endpoint.apologise},
        lifespan=lifespan,
    )
    app.endpoint = endpoint
    return app


class _Json(Response):
    """A response whose headers are told as they are sent: to find them out costs more than to encode the content."""

    def __init__(self, content: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = status
        self.body = content
        self.raw_headers = headers
        self.background = None


def _is_many(body: Any, active: Active) -> bool:
    """Whether the body of ``POST /predict`` is ``{"rows": [...]}``, and no row with a feature of that name."""
    return type(body) is dict and "rows" in body and "rows" not in active.names


def _wanted(headers: Mapping[bytes, bytes]) -> str | None:
    wanted = headers.get(_VERSION)
    return None if wanted is None else wanted.decode("latin-1")


def _failure(
    error: Exception, path: str, identity: str, version: str | None, refusal: Callable[[int, str], Any]
) -> tuple[int, Any, str | None]:
    """Status, content and version of the answer to a request that ended so; what is the server's fault is logged."""
    match error:
        case RequestError():
            return error.status, refusal(error.status, str(error)), version
        case LookupFailed():
            failed(identity, error.status, str(error) if error.status == 503 else without_words(str(error)), version)
            return error.status, refusal(error.status, str(error)), version
        case ModelError():
            failed(identity, error.status, without_words(str(error)), error.digest)
            return error.status, {**refusal(error.status, str(error)), "version": error.digest}, error.digest
        case ClientDisconnect():
            return 400, refusal(400, "the caller left before its request was complete"), version
    logger.error("POST %s", path, extra={"request_id": identity}, exc_info=error)
    return 500, refusal(500, f"the server failed: {type(error).__name__}"), version


def _plain(status: int, message: str) -> dict[str, Any]:
    return {"error": message}


def _without_store(loaded: Loaded) -> str:
    """Why a version cannot answer requests by key: its feature store is down, and nothing may stand in; or nothing."""
    reader = loaded.reader
    if reader is None or reader.store.health.up or reader.settings.on_failure != "fail":
        return ""
    return f"the feature store does not answer: {reader.store.health.error}"


def _hosted_endpoint(
    name: str, settings: ServingParams, environment: str, follower: Follower, log: PredictionLog, traffic: Traffic
) -> Endpoint:
    answerer = Answerer(settings, log, traffic)
    return Endpoint(settings, environment, follower, log, answerer, Desk.alone(), name)


def _model_routes(endpoint: ModelsEndpoint) -> list[Route]:
    """Under ``/models/NAME`` each model answers as its own server would; whichever is not loaded is loaded."""
    return [
        Route("/models/{name}/predict", endpoint.asgi(Endpoint.predict), methods=["POST"]),
        Route("/models/{name}/v2/health/ready", endpoint.response(Endpoint.ready), methods=["GET"]),
        *(
            Route(path, endpoint.response(Endpoint.describe), methods=["GET"])
            for path in ("/models/{name}", "/models/{name}/")
        ),
        Route("/models", endpoint.index, methods=["GET"]),
    ]


def _unavailable(error: UnknownModelError | NotLoadedError, asked: Mapping[bytes, bytes] | None = None) -> Response:
    """The answer for a model that is not there; ``asked`` are the headers of a request for predictions."""
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, NotLoadedError) else {}
    if asked is not None:
        try:
            identity = read_request_id(asked)
        except RequestError:
            identity = new_request_id()
        headers[REQUEST_ID.decode()] = identity
    return _json({"error": str(error)}, error.status, headers=headers)


def _json(
    content: Any, status: int = 200, version: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = orjson.dumps(content)
    sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if version is not None:
        sent.append((_VERSION, version.encode("latin-1")))
    if headers:
        sent += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return _Json(body, status, sent)
