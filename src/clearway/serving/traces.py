"""OpenTelemetry: a span for each request, and in it one for routing, look-up and scoring. Imported only if configured.

A request that comes with a W3C ``traceparent`` continues its caller's trace and follows the caller's choice whether to
record; of all others ``serving.traces.sample`` are recorded. Spans go out in batches from a thread of their own; where
the collector is away they are dropped. What the exporter must know beside its endpoint, such as a token, it reads from
OpenTelemetry's own environment variables (``OTEL_EXPORTER_OTLP_HEADERS``).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clearway.errors import UsageError
from clearway.params import ServingParams, TraceParams
from clearway.prediction_log import PredictionLog
from clearway.serving.answering import Answerer, Group, LookupFailed, ModelError, Question
from clearway.serving.state import Active

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise UsageError(
        f"serving.traces.endpoint is set in params.yaml, but {error.name} is not installed: pip install "
        "'clearway[traces]', or remove the endpoint"
    ) from None

EXPORT_SECONDS = 2.0
"""How long one batch may take, and with it the end of the server."""


class Tracing:
    """Makes spans and sends them to ``settings.endpoint``."""

    def __init__(self, settings: TraceParams, environment: str) -> None:
        resource = Resource.create({"service.name": "clearway", "deployment.environment.name": environment})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample)), resource=resource, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("clearway")

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


class TraceRequests:
    """ASGI middleware: a server span around each request."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # its words may quote a row
            set_status_on_exception=False,
        ) as span:

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    for name, value in message["headers"]:
                        if name == b"x-clearway-version":
                            span.set_attribute("clearway.version", value.decode("latin-1"))
                    if status == 404:
                        span.update_name(scope["method"])  # paths that strangers think of are no names
                    if status >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, watch)


class TracedAnswerer(Answerer):
    """An answerer whose steps are spans."""

    def __init__(self, settings: ServingParams, log: PredictionLog, tracer: Tracer) -> None:
        super().__init__(settings, log)
        self._tracer = tracer

    def _assign(self, row: Any, wanted: str | None, active: Active, identity: str) -> Question:
        with self._step("route") as span:
            question = super()._assign(row, wanted, active, identity)
            span.set_attribute("clearway.role", question.role)
            span.set_attribute("clearway.version", question.loaded.digest)
            return question

    async def _look_up(self, questions: Sequence[Question], active: Active, started: float, *, tester: bool) -> None:
        with self._step("look up") as span:
            span.set_attribute("clearway.rows", len(questions))
            try:
                await super()._look_up(questions, active, started, tester=tester)
            except LookupFailed:
                span.set_status(StatusCode.ERROR)
                raise

    async def _score(
        self, group: Group, active: Active, started: float, *, tester: bool
    ) -> tuple[list[dict[str, Any]], ModelError | None]:
        with self._step("score") as span:
            span.set_attribute("clearway.version", group.loaded.digest)
            span.set_attribute("clearway.rows", len(group.ids))
            answers, failure = await super()._score(group, active, started, tester=tester)
            if failure is not None:
                span.set_status(StatusCode.ERROR)
            return answers, failure

    def _step(self, name: str) -> AbstractContextManager[Span]:
        """A span that is told nothing of exceptions: their words may quote a row."""
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)
