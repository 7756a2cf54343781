"""The HTTP face of one environment: predictions, health in the V2 inference protocol's paths, and what is served."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from time import perf_counter
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.serving.answering import Answerer, LookupFailed, ModelError
from clearway.serving.logs import AccessLog, failed, without_words
from clearway.serving.metrics import (
    CONTENT_TYPE,
    describe_readers,
    of_features,
    of_log,
    of_routing,
    of_traffic,
    render,
)
from clearway.serving.requests import RequestError
from clearway.serving.state import Active, Follower
from clearway.serving.whole import Desk, describe_whole, families_of_whole

VERSION_HEADER = "x-clearway-version"
_VERSION_HEADER = VERSION_HEADER.encode()
NOTICE_SECONDS = 0.05
"""How soon the other workers hear that this one serves another table, or refused one."""
COUNT_SECONDS = 0.2
"""How soon they hear what it counted; no sooner than keeps the telling under ``COUNT_SHARE`` of the time."""
COUNT_SHARE = 0.01

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
    ) -> None:
        self._settings = settings
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
        started = perf_counter()
        try:
            response = await self._predict(dict(scope["headers"]), receive, started)
        except Exception as error:  # no fault of the server may end a connection without an answer
            logger.exception("POST /predict")
            response = self._apology(error)
        self._traffic.add(response.status_code, perf_counter() - started)
        await response(scope, receive, send)

    async def _predict(self, headers: Mapping[bytes, bytes], receive: Receive, started: float) -> Response:
        active = self._follower.active
        if active is None:
            return _json({"error": self._follower.error or "no version is loaded yet"}, status=503)
        try:
            body = await self._body(headers, receive)
            wanted = headers.get(_VERSION_HEADER)
            return await self._answer(body, None if wanted is None else wanted.decode("latin-1"), active, started)
        except RequestError as error:
            return _json({"error": str(error)}, error.status, active.table.stable)
        except LookupFailed as error:
            cause = str(error) if error.status == 503 else without_words(str(error))
            failed(headers, error.status, cause, active.table.stable)
            return _json({"error": str(error)}, error.status, active.table.stable)
        except ModelError as error:
            failed(headers, 500, without_words(str(error)), error.digest)
            return _json({"error": str(error), "version": error.digest}, 500, error.digest)
        except ClientDisconnect:
            return _json({"error": "the caller left before its request was complete"}, 400, active.table.stable)

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
        stable = active.stable.reader
        if stable is not None and not stable.store.health.up and stable.settings.on_failure == "fail":
            reason = f"the feature store does not answer: {stable.store.health.error}"
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

    def _state(self) -> dict[str, Any]:
        """What this worker serves, and why it serves no newer table."""
        active = self._follower.active
        table = active.table if active else None
        return {
            "environment": self._environment,
            "revision": table.revision if table else None,
            "stable": table.stable if table else None,
            "canary": table.canary if table else None,
            "canary_weight": table.canary_weight if table else 0,
            "warm": self._follower.warm,
            "runtimes": active.runtimes if active else {},
            "routing": {"key": table.key if table else None, "without_key": self._answerer.without_key},
            "shadow": active.copies.describe() if active and active.copies else None,
            "error": self._follower.error,
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
        failed(dict(request.scope["headers"]), 500, f"the server failed: {type(error).__name__}")
        return self._apology(error)

    def _apology(self, error: Exception) -> Response:
        return _json({"error": f"the server failed: {type(error).__name__}"}, 500, self._stable())

    def _stable(self) -> str | None:
        return self._follower.active.table.stable if self._follower.active else None

    async def _answer(self, body: Any, wanted: str | None, active: Active, started: float) -> Response:
        if type(body) is dict and "rows" in body and "rows" not in active.names:
            answers, digests = await self._answerer.answer_many(self._rows(body), wanted, active, started)
            return _json({"predictions": answers}, version=",".join(digests))
        answer, digest = await self._answerer.answer_one(body, wanted, active, started)
        return _json(answer, version=digest)

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

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> Any:
        """The parsed body, read no further than the limit."""
        kind = headers.get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, f"content-type must be application/json, not {kind[:100]!r}")
        limit = self._settings.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        if len(announced) > 18 or int(announced) > limit:  # the HTTP parser has checked that it is a number
            said = announced.decode("latin-1")
            raise RequestError(413, f"the body has {said} bytes, more than serving.max_body_bytes = {limit}")
        content, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > limit:
                raise RequestError(413, f"the body has more than serving.max_body_bytes = {limit} bytes")
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise RequestError(400, f"the body is not valid JSON: {error}") from None


class _Application:
    """An ASGI application of a coroutine. Starlette would wrap the coroutine itself in a request, at twice the cost."""

    def __init__(self, answer: ASGIApp) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class App(Starlette):
    """The ASGI application. Predictions pass by what Starlette does for each request: it costs more than they do."""

    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] == "/predict"
            and scope["method"] == "POST"
            and not self.user_middleware  # what every request is told of
        ):
            await self.endpoint.predict(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build_app(
    settings: ServingParams, environment: str, follower: Follower, log: PredictionLog, desk: Desk | None = None
) -> App:
    """The ASGI application; its lifespan follows the routing table and drains the log at the end.

    ``desk`` is that of a worker among others.
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
            endpoint.close()
            for reader in follower.active.readers.values() if follower.active else ():
                reader.close()
            if follower.active and follower.active.copies:
                await asyncio.to_thread(follower.active.copies.close, wait=True)
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
    endpoint = Endpoint(settings, environment, follower, log, answerer, desk or Desk.alone())
    app = App(
        routes=[
            Route("/predict", _Application(endpoint.predict), methods=["POST"]),
            Route("/v2/health/live", endpoint.live, methods=["GET"]),
            Route("/v2/health/ready", endpoint.ready, methods=["GET"]),
            Route("/metrics", endpoint.metrics, methods=["GET"]),
            Route("/", endpoint.describe, methods=["GET"]),
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


def _json(
    content: Any, status: int = 200, version: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = orjson.dumps(content)
    sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if version is not None:
        sent.append((_VERSION_HEADER, version.encode("latin-1")))
    if headers:
        sent += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return _Json(body, status, sent)
