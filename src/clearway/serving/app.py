"""The HTTP face of one environment: predictions, health in the V2 inference protocol's paths, and what is served."""

import asyncio
import contextlib
import math
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clearway.errors import ClearwayError
from clearway.params import ServingParams
from clearway.prediction_log import PredictionLog
from clearway.routing import Role
from clearway.serving.metrics import CONTENT_TYPE, Traffic, describe_readers, render
from clearway.serving.requests import Envelope, RequestError, read_envelope, strip_envelope
from clearway.serving.state import Active, Follower, Loaded

VERSION_HEADER = "x-clearway-version"


@dataclass(slots=True)
class Question:
    """One row of a request, with the version that will answer it."""

    envelope: Envelope
    id: str
    role: Role
    loaded: Loaded
    row: dict[str, Any]
    """Its features; of a row by key, once they are looked up."""
    asked_at: str | None
    inputs: dict[str, Any] | None = None
    """What a row by key carries: join keys and request fields."""
    outcomes: dict[str, str] | None = None
    """Of a row by key: what became of each view that does not give a present value."""


@dataclass(slots=True)
class Group:
    """The questions of one request that one version answers, and their places in the request."""

    loaded: Loaded
    places: list[int]
    questions: list[Question]
    matrix: NDArray[np.float32]


class ModelError(Exception):
    """A version failed to answer."""

    def __init__(self, digest: str, cause: str) -> None:
        super().__init__(f"version {digest} failed: {cause}")
        self.digest = digest


class LookupFailed(Exception):  # noqa: N818  # the name says what happened
    """Features could not be looked up: the HTTP status (5xx), and one line naming the view and the cause."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """Answers the requests of one environment from whatever the follower has active.

    A request takes the active table once and keeps it to its end, so that a swap in between cannot mix two.

    The stable version scores on the event loop, where it costs least; a canary scores in a thread of its own, so that
    one that is slow, or never ends, keeps only its own callers waiting.
    """

    def __init__(self, settings: ServingParams, environment: str, follower: Follower, log: PredictionLog) -> None:
        self._settings = settings
        self._environment = environment
        self._follower = follower
        self._log = log
        self._row = np.empty((0, 0), dtype=np.float32)
        self._traffic = Traffic()
        self._trial = ThreadPoolExecutor(max_workers=1, thread_name_prefix="canary")

    def close(self) -> None:
        """Let go of the canary's thread."""
        self._trial.shutdown(wait=False, cancel_futures=True)

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
        table = active.table if active else None
        content = {
            "environment": self._environment,
            "revision": table.revision if table else None,
            "stable": table.stable if table else None,
            "canary": table.canary if table else None,
            "canary_weight": table.canary_weight if table else 0,
            "runtimes": active.runtimes if active else {},
            "error": self._follower.error,
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

    async def _answer(self, body: Any, wanted: str | None, active: Active, started: float) -> Response:
        if type(body) is dict and "rows" in body and "rows" not in active.names:
            return await self._answer_many(body, wanted, active, started)
        question = _assign(body, wanted, active)
        loaded = question.loaded
        if question.inputs is not None:
            await self._look_up([question], active, started, tester=wanted is not None)
        vector = self._scratch(loaded.encoder.width, question.role)
        try:
            _encode_into(vector[0], question)
        except RequestError:
            self._write_refused([question], active, started, tester=wanted is not None)
            raise
        group = Group(loaded, [0], [question], vector)
        answers, failure = await self._score(group, active, started, tester=wanted is not None)
        if failure is not None:
            raise failure
        return _json(answers[0], version=loaded.digest)

    async def _answer_many(
        self, body: Mapping[str, Any], wanted: str | None, active: Active, started: float
    ) -> Response:
        rows = body["rows"]
        if extra := body.keys() - {"rows"}:
            raise RequestError(422, f"unknown field {min(extra)[:256]!r} beside rows")
        if type(rows) is not list or not rows:
            raise RequestError(422, "rows must be an array with at least one row")
        if len(rows) > self._settings.max_rows:
            raise RequestError(
                413, f"rows has {len(rows)} rows, more than serving.max_rows = {self._settings.max_rows}"
            )
        tester = wanted is not None
        questions = []
        for place, row in enumerate(rows):
            with _naming(place):
                questions.append(_assign(row, wanted, active))
        if any(question.inputs is not None for question in questions):
            await self._look_up(questions, active, started, tester=tester)
        groups: dict[Role, Group] = {}
        for place, question in enumerate(questions):
            group = groups.get(question.role)
            if group is None:
                matrix = np.empty((len(rows), question.loaded.encoder.width), dtype=np.float32)
                group = groups[question.role] = Group(question.loaded, [], [], matrix)
            try:
                with _naming(place):
                    _encode_into(group.matrix[len(group.places)], question)
            except RequestError:
                self._write_refused([question], active, started, tester=tester)
                raise
            group.places.append(place)
            group.questions.append(question)
        predictions: list[Any] = [None] * len(rows)
        failures = []
        for group in groups.values():
            group.matrix = group.matrix[: len(group.places)]
            answers, failure = await self._score(group, active, started, tester=tester)
            if failure is not None:
                failures.append(failure)
                continue
            for place, answer in zip(group.places, answers, strict=True):
                predictions[place] = answer
        # Each version's rows are logged as that version fared, but the caller gets all of its answers or none.
        if failures:
            raise failures[0]
        versions = ",".join(group.loaded.digest for group in groups.values())
        return _json({"predictions": predictions}, version=versions)

    async def _score(
        self, group: Group, active: Active, started: float, *, tester: bool
    ) -> tuple[list[dict[str, Any]], ModelError | None]:
        """Score one version's rows and log each; the answers, or why there are none."""
        digest, model = group.loaded.digest, group.loaded.version.model
        failure = None
        try:
            if group.questions[0].role == "stable":
                outputs = model.output(group.matrix)
            else:
                outputs = await asyncio.get_running_loop().run_in_executor(self._trial, model.output, group.matrix)
            told: list[dict[str, Any] | None] = [*model.target.told(outputs, model.threshold)]
            if not all(math.isfinite(one["score"]) for one in told if one is not None):
                raise ArithmeticError("it answered a score that is not finite")
        except Exception as error:  # whatever the runtime raises is this version's failure, never the server's
            failure = ModelError(digest, f"{type(error).__name__}: {error}")
            told = [None] * len(group.questions)
        status = 200 if failure is None else 500
        self._write(group.questions, told, status, active, started, tester=tester)
        answers = []
        for question, one in zip(group.questions, told, strict=True):
            if one is not None:
                answer = {"id": question.id, "version": digest, "role": question.role, **one}
                if question.outcomes is not None:
                    answer["features"] = question.outcomes
                answers.append(answer)
        return answers, failure

    def _write(
        self,
        questions: Sequence[Question],
        told: Sequence[Mapping[str, Any] | None],
        status: int,
        active: Active,
        started: float,
        *,
        tester: bool,
    ) -> None:
        """Log what became of each question; features only of those that got as far as having them.

        ``told`` is what was answered: see :meth:`clearway.target.Target.told`.
        """
        elapsed = (perf_counter() - started) * 1000.0
        now = datetime.now(UTC)
        for question, one in zip(questions, told, strict=True):
            by_key = question.inputs is not None
            record = {
                "id": question.id,
                "revision": active.table.revision,
                "version": question.loaded.digest,
                # a tester chose the version, so that its requests are no sample of either side
                "role": "tester" if tester else question.role,
                "entity": question.envelope.entity,
                "asked_at": question.asked_at,
                "served_at": now,
                "status": status,
                "latency_ms": elapsed,
                "score": None if one is None else one["score"],
            }
            if one is not None and "probabilities" in one:
                record["probabilities"] = one["probabilities"]
            if self._settings.log_features:
                if by_key:
                    record["inputs"] = question.inputs
                if not by_key or question.outcomes is not None:
                    record["features"] = strip_envelope(question.row)
            self._log.append(record)

    async def _look_up(self, questions: Sequence[Question], active: Active, started: float, *, tester: bool) -> None:
        """Read the features of those questions that are by key, all at once.

        Raises
        ------
        LookupFailed
            The feature store does not answer, or a function of the project fails; all questions are logged as failed.
        """
        by_reader: dict[int, list[Question]] = {}
        for question in questions:
            if question.inputs is not None:
                by_reader.setdefault(id(question.loaded.reader), []).append(question)
        for together in by_reader.values():
            await self._look_up_together(together, questions, active, started, tester=tester)

    async def _look_up_together(
        self, by_key: list[Question], questions: Sequence[Question], active: Active, started: float, *, tester: bool
    ) -> None:
        reader = by_key[0].loaded.reader
        assert reader is not None  # else no row is by key
        at = []
        for question in by_key:
            time = datetime.now(UTC) if question.asked_at is None else datetime.fromisoformat(question.asked_at)
            question.asked_at = question.asked_at or time.isoformat()
            at.append(time.timestamp())
        try:
            lookups = await reader.read([question.inputs or {} for question in by_key], at)
        except ClearwayError as error:
            from clearway.feature_store.online import StoreUnavailable  # here, because it imports Feast: the reader did

            status = 503 if isinstance(error, StoreUnavailable) else 500
            self._write(questions, [None] * len(questions), status, active, started, tester=tester)
            raise LookupFailed(status, str(error)) from None
        for question, lookup in zip(by_key, lookups, strict=True):
            question.row = {name: lookup.features[name] for name in question.loaded.encoder.names}
            question.outcomes = {view: outcome for view, outcome in lookup.outcomes.items() if outcome != "present"}

    def _write_refused(self, questions: Sequence[Question], active: Active, started: float, *, tester: bool) -> None:
        """Log the rows by key whose features the model refuses: these are the store's, no caller can mend them."""
        by_key = [question for question in questions if question.outcomes is not None]
        self._write(by_key, [None] * len(by_key), 422, active, started, tester=tester)

    def _scratch(self, width: int, role: Role) -> NDArray[np.float32]:
        """The one row that stable's single requests are encoded into: no await lies between filling and scoring."""
        if role != "stable":
            return np.empty((1, width), dtype=np.float32)
        if self._row.shape[1] != width:
            self._row = np.empty((1, width), dtype=np.float32)
        return self._row


class _Application:
    """An ASGI application of a coroutine. Starlette would wrap the coroutine itself in a request, at twice the cost."""

    def __init__(self, answer: ASGIApp) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


def build_app(settings: ServingParams, environment: str, follower: Follower, log: PredictionLog) -> Starlette:
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
        ],
        exception_handlers={HTTPException: endpoint.refuse, Exception: endpoint.apologise},
        lifespan=lifespan,
    )


def _assign(row: Any, wanted: str | None, active: Active) -> Question:
    """Route by entity, else by id, else at random; or to the version that a tester named."""
    envelope = read_envelope(row)
    # not of the system's randomness: for each call to the system the other threads get a turn first
    identity = envelope.id or f"{random.getrandbits(128):032x}"  # it is no secret
    role, loaded = active.chosen(wanted) if wanted is not None else active.route(envelope.entity or identity)
    inputs = None
    if loaded.keyed is not None:
        inputs = loaded.keyed.read(row)
    elif active.looks_by_key(row) and not row.keys() >= set(loaded.encoder.names):
        raise RequestError(
            422, f"version {loaded.digest[:12]} was not trained from the feature store: send all its features"
        )
    return Question(envelope, identity, role, loaded, row, envelope.asked_at, inputs)


def _encode_into(vector: NDArray[np.float32], question: Question) -> None:
    """Encode a question's features; of what was looked up and is refused, say where it comes from.

    Raises
    ------
    RequestError
        A feature is refused.
    """
    try:
        question.loaded.encoder.encode_into(question.row, vector)
    except RequestError as error:
        name = question.loaded.encoder.refused(question.row) if question.outcomes is not None else None
        reader = question.loaded.reader
        view = reader.source(name) if name is not None and reader is not None else None
        if name is None or view is None or question.outcomes is None:
            raise
        outcome = question.outcomes.get(view, "present")
        value = "null" if question.row[name] is None else "this value"
        raise RequestError(error.status, f"{error}: view {view} had {value} for it (outcome: {outcome})") from None


@contextlib.contextmanager
def _naming(place: int) -> Iterator[None]:
    """Say which row is refused."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.status, f"rows[{place}]: {error}") from None


def _json(
    content: Any, status: int = 200, version: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    sent = {"content-type": "application/json", **(headers or {})}
    if version is not None:
        sent[VERSION_HEADER] = version
    return Response(orjson.dumps(content), status, sent)
