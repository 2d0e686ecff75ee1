"""One websocket connection, as the edge sees it.

Protocol: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._asgi import (
    CLIENT_LEFT,
    SCOPE_KEY,
    is_about_leaving,
    path_as_sent,
    with_request_id,
)
from watchkeeper.http._ids import read_ids
from watchkeeper.http.routes._resolve import UNMATCHED

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope, Send
    from watchkeeper.http._middleware import Middleware
    from watchkeeper.metrics import WebsocketSeries

# https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_NORMAL: Final = 1000
_NO_CODE: Final = 1005
_BROKEN: Final = 1006
_WITH_ID: Final = frozenset(("websocket.accept", "websocket.http.response.start"))


class Socket:
    """Watches the messages of one connection go by; counts and logs it once, at its end.

    Args:
        edge: What counts and logs.
        scope: Of the connection, before the app has it.
        receive: The server's.
        send: The server's.
    """

    def __init__(self, edge: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._start = perf_counter()
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._path = path_as_sent(scope)
        self._query = scope.get("query_string", b"")
        self._series: WebsocketSeries | None = None
        self._accepted = False
        self._failed = False
        self._code = 0  # what either side said of the end; below 1000 it is the status of a refused handshake
        self._left = False
        self._refused: OSError | None = None
        self._received = self._sent = 0
        self.route = ""
        self.context = read_ids(scope["headers"])
        scope[SCOPE_KEY] = self

    async def receive(self) -> Message:
        """Pass on what comes from the server: count messages, notice that the client leaves."""
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self._received += 1
            if self._series is not None:
                self._series.received.inc()
        elif kind == "websocket.disconnect" and not self._code:
            self._left = True
            self._code = _code_of(message) if self._accepted else CLIENT_LEFT
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, the handshake with the request's id, and count messages."""
        kind = message["type"]
        if kind in _WITH_ID:
            message = with_request_id(message, self.context.request_id)
        try:
            await self._send(message)
        except OSError as error:  # what the protocol has for a connection that is gone
            self._refused = error
            self._left = True
            self._code = self._code or (_BROKEN if self._accepted else CLIENT_LEFT)
            raise
        if kind == "websocket.send":
            self._sent += 1
            if self._series is not None:
                self._series.sent.inc()
        elif kind == "websocket.accept":
            self._open()
        elif kind == "websocket.close":
            self._code = self._code or (message.get("code", _NORMAL) if self._accepted else 403)
        elif kind == "websocket.http.response.start":
            self._code = self._code or message["status"]

    def end(self) -> None:
        """Close the books when the app has returned."""
        if self._failed:
            self._record("failed", 1011 if self._accepted else 500)
        elif not self._accepted:
            # Neither accepted nor refused: the server answers with an error in the app's place.
            self._record("aborted" if self._left else "rejected" if self._code else "failed", 500)
        else:
            self._record("aborted" if self._code == _BROKEN else "completed", _NO_CODE)

    def fail(self, error: Exception) -> bool:
        """Say what the app raised; False where the server has to hear of it too, and to close."""
        if self._left and is_about_leaving(error, self._refused):
            self.end()
            return True
        self._failed = True
        self._edge.lines.exception(error, message="Unhandled exception.")
        self.end()
        return False

    def cancel(self) -> None:
        """Close the books on a connection that the server cancelled."""
        self._record("cancelled", _BROKEN if self._accepted else CLIENT_LEFT)

    def note(self, error: BaseException) -> None:
        """Log an exception that the framework handles by itself, and remember that the connection failed."""
        if self._left and is_about_leaving(error, self._refused):
            return
        self._failed = True
        self._edge.lines.exception(error, message="Unhandled exception.")

    def _open(self) -> None:
        self._accepted = True
        self.route = self.route or self._resolve()
        if self._edge.websockets is not None:
            self._series = self._edge.websockets.series(self.route)
            self._series.open.inc()

    def _resolve(self) -> str:
        try:
            return self._edge.resolve_route(self._scope)
        except Exception as error:  # noqa: BLE001 - the service's own resolver must not cost the connection
            self._edge.lines.exception(error, message="Unhandled exception.")
            return UNMATCHED

    def _record(self, outcome: str, code: int) -> None:
        duration = perf_counter() - self._start
        route = self.route or self._resolve()
        if self._series is not None:
            self._series.open.dec()
        if self._edge.websockets is not None:
            self._edge.websockets.record(route, outcome)
        if self._edge.request_lines:
            url = self._path + b"?" + self._query if self._query else self._path
            self._edge.lines.event(
                "info",
                type="websocket",
                url=url.decode("utf-8", "backslashreplace"),
                route=route,
                code=self._code or code,
                duration=int(duration * 1_000_000) / 1000,
                requestId=self.context.request_id,
                outcome=outcome,
                received=self._received,
                sent=self._sent,
                trace_id=self.context.trace_id,
                span_id=self.context.span_id,
            )


def _code_of(message: Message) -> int:
    code = int(message.get("code") or _NO_CODE)
    # uvicorn gives a close frame its reason, empty or not, and a lost connection the same code without one.
    return _BROKEN if code == _NO_CODE and "reason" not in message else code
