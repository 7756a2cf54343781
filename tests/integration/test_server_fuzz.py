"""Requests made at random from the OpenAPI document, right and wrong ones: never a fault, and answers as described."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fruit_server import make_project, serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_server import deploy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


class Served:
    """The application on an event loop of its own, which its callers share."""

    def __init__(self, workspace: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready: threading.Event = threading.Event()
        self._workspace = workspace
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with serving(self._workspace) as (app, _):
            self._app = app
            self._ready.set()
            await self._stop.wait()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """From the loop of a test client to that of the application, and back."""
        if scope["type"] != "http":
            return
        here = asyncio.get_running_loop()

        async def received() -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(receive(), here))

        async def sent(message: Any) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(send(message), here))

        asked = asyncio.run_coroutine_threadsafe(self._app(scope, received, sent), self._loop)
        await asyncio.wrap_future(asked)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
