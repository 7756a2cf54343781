"""The HTTP face of one environment: predictions, health in the V2 inference protocol's paths, and what is served."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.serving.answering import Answerer, LookupFailed, ModelError
from clearway.serving.metrics import CONTENT_TYPE, Traffic, describe_readers, render
from clearway.serving.requests import RequestError
from clearway.serving.state import Active, Follower

if TYPE_CHECKING:
    from clearway.serving.admin import Admin

VERSION_HEADER = "x-clearway-version"


class Endpoint:
    """Answers the requests of one environment from whatever the follower has active.

    A request takes the active table once and keeps it to its end, so that a swap in between cannot mix two.
    """

    def __init__(self, settings: ServingParams, environment: str, follower: Follower, log: PredictionLog) -> None:
        self._settings = settings
        self._environment = environment
        self._follower = follower
        self._log = log
        self._answerer = Answerer(settings, log)
        self._traffic = Traffic()

    def close(self) -> None:
        """Let go of what answers."""
        self._answerer.close()

    async def predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``POST /predict``: one row, or ``{"rows": [...]}``."""
        started = perf_counter()
        response = await self._predict(dict(scope["headers"]), receive, started)
        self._traffic.add(response.status_code, perf_counter() - started)
        await response(scope, receive, send)

    async def _predict(self, headers: Mapping[bytes, bytes], receive: Receive, started: float) -> Response:
        active = self._follower.active
        if active is None:
            return _json({"error": self._follower.error or "no version is loaded yet"}, status=503)
        try:
            body = await self._body(headers, receive)
            wanted = headers.get(VERSION_HEADER.encode())
            return await self._answer(body, None if wanted is None else wanted.decode("latin-1"), active, started)
        except RequestError as error:
            return _json({"error": str(error)}, error.status, active.table.stable)
        except LookupFailed as error:
            return _json({"error": str(error)}, error.status, active.table.stable)
        except ModelError as error:
            return _json({"error": str(error), "version": error.digest}, 500, error.digest)
        except ClientDisconnect:
            return _json({"error": "the caller left before its request was complete"}, 400, active.table.stable)

    async def live(self, request: Request) -> Response:
        """``GET /v2/health/live``: the process answers."""
        return _json({"live": True}, version=self._stable())

    async def ready(self, request: Request) -> Response:
        """``GET /v2/health/ready``: 200 once a routing table is served, 503 before, and 503 without a feature store.

        It says ``degraded`` where last known values may stand in for the store's, or only the canary is without it, and
        ``filling`` where a fill of the store began and did not end: it may hold values of different times.
        """
        active = self._follower.active
        if active is None:
            return _json({"ready": False}, 503)
        content: dict[str, Any] = {"ready": True}
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
        """``GET /metrics``: counts in the text format of Prometheus."""
        active = self._follower.active
        content = render(self._traffic, list(active.readers.values()) if active else [])
        return Response(content, headers={"content-type": CONTENT_TYPE})

    async def describe(self, request: Request) -> Response:
        """``GET /``: what is served, and why a newer routing table is not."""
        active = self._follower.active
        content = {
            "environment": self._environment,
            **self._follower.served(),
            "runtimes": active.runtimes if active else {},
            "pid": os.getpid(),
            "unseen_categories": active.unseen if active else 0,
            "schema_warnings": active.warned if active else {},
            "log": {"written": self._log.written, "dropped": self._log.dropped},
            "features": describe_readers(list(active.readers.values()), self._follower.online_state(active))
            if active and active.readers
            else None,
        }
        return _json(content, version=self._stable())

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answers for paths and methods that do not exist."""
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path}"
        return _json({"error": message}, error.status_code, self._stable(), error.headers)

    async def apologise(self, request: Request, error: Exception) -> Response:
        """The answer to a fault of the server itself, whose traceback is in its log."""
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


def build_app(
    settings: ServingParams,
    environment: str,
    follower: Follower,
    log: PredictionLog,
    admin: "Admin | None" = None,
) -> Starlette:
    """The ASGI application; its lifespan follows the routing table and drains the log at the end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(follower.follow())
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            endpoint.close()
            if admin is not None:
                admin.close()
            for reader in follower.active.readers.values() if follower.active else ():
                reader.close()
            await asyncio.to_thread(log.close)

    endpoint = Endpoint(settings, environment, follower, log)
    return Starlette(
        routes=[
            Route("/predict", _Application(endpoint.predict), methods=["POST"]),
            Route("/v2/health/live", endpoint.live, methods=["GET"]),
            Route("/v2/health/ready", endpoint.ready, methods=["GET"]),
            Route("/metrics", endpoint.metrics, methods=["GET"]),
            Route("/", endpoint.describe, methods=["GET"]),
            *(admin.routes() if admin is not None else ()),
        ],
        exception_handlers={HTTPException: endpoint.refuse, Exception: endpoint.apologise},
        lifespan=lifespan,
    )


def _json(
    content: Any, status: int = 200, version: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    sent = {"content-type": "application/json", **(headers or {})}
    if version is not None:
        sent[VERSION_HEADER] = version
    return Response(orjson.dumps(content), status, sent)
