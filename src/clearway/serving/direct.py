"""uvicorn's HTTP protocol, which answers a prediction as soon as it has read it, where nothing has to be waited for.

A request that passes through ASGI costs a task, an event and some coroutines, together more than a prediction. One that
has to wait passes through it with what was read of it already. All that is not a whole ``POST /predict`` in one piece,
on a connection that is idle and stays open, goes through ASGI as ever.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp

from clearway.serving.connections import Connection

Headers = list[tuple[bytes, bytes]]
PATH = b"/predict"


class Answer(ABC):
    """What is sent back."""

    @abstractmethod
    def as_http(self, more_headers: Headers) -> bytes:
        """As bytes, with the server's own headers too."""


AtOnce = Callable[[Headers, bytes], Answer | ASGIApp | None]
"""From headers, with names in lower case, and body to an answer, or to what answers later; None for the usual way."""


class DirectProtocol(Connection):
    """One connection.

    Parameters
    ----------
    at_once : AtOnce or None
        Answers predictions; None sends all through ASGI.
    options
        Of ``Connection``.
    """

    def __init__(self, at_once: AtOnce | None, **options: Any) -> None:
        super().__init__(**options)
        self._at_once = at_once
        self._held: list[bytes] | None = None
        """The body, so far, of a request that may be answered at once."""
        self.answered: Any = None
        """The scope of the last request that was."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None:  # more of it is to come
            self._give_up()

    def on_headers_complete(self) -> None:
        if self.url == PATH and self._may_answer_at_once():
            self._held = []
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        if self._held is not None:
            assert self._at_once is not None  # else nothing is held
            answer = self._at_once(self.headers, b"".join(self._held))
            if isinstance(answer, Answer):
                self._held, self.answered = None, self.scope
                self.transport.write(answer.as_http(self.server_state.default_headers))
                self.on_response_complete()
                return
            self._give_up(answer)
        super().on_message_complete()

    def _may_answer_at_once(self) -> bool:
        """Whether the request is of a kind that uvicorn would answer at once and leave the connection open."""
        return (
            self._at_once is not None
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.transport.is_closing()
        )

    def _give_up(self, app: ASGIApp | None = None) -> None:
        """Have the request that is held go through ASGI after all, to ``app`` if there is one."""
        held, self._held = self._held, None
        if self.transport.is_closing():  # what followed was no HTTP
            return
        usual = self.app
        self.app = usual if app is None else app
        super().on_headers_complete()
        self.app = usual
        for part in held or ():
            super().on_body(part)
