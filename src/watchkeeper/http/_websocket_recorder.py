"""Records one websocket connection: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._asgi import CLIENT_LEFT, with_request_id
from watchkeeper.http._recorder import Recorder

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope, Send
    from watchkeeper.http._recorder import RecorderConfig
    from watchkeeper.metrics._websockets import WebsocketSeries

# Close codes: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_NORMAL: Final = 1000
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_INTERNAL_ERROR: Final = 1011
_WITH_ID: Final = frozenset(("websocket.accept", "websocket.http.response.start"))


class WebSocketRecorder(Recorder):
    """Watches the messages of one connection; counts them, and logs the connection once, when it ends."""

    __slots__ = ("_accepted", "_code", "_received", "_sent", "_series")

    def __init__(self, config: RecorderConfig, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(config, scope, receive, send)
        self._series: WebsocketSeries | None = None
        self._accepted = False
        self._code = 0  # the close code of either side; below 1000 the status of a refused handshake
        self._received = self._sent = 0

    async def receive(self) -> Message:
        """Pass on what the server sends: count messages, notice that the client leaves."""
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self._received += 1
            if self._series is not None:
                self._series.received.inc()
        elif kind == "websocket.disconnect" and not self._code:
            self._client_left = True
            self._code = _close_code(message) if self._accepted else CLIENT_LEFT
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, the handshake with the request's id, and count messages."""
        kind = message["type"]
        if kind in _WITH_ID:
            message = with_request_id(message, self.context.request_id)
        try:
            await self._send(message)
        except OSError as error:  # how the protocol reports a lost connection
            self._send_error = error
            self._client_left = True
            self._code = self._code or (_ABNORMAL if self._accepted else CLIENT_LEFT)
            raise
        if kind == "websocket.send":
            self._sent += 1
            if self._series is not None:
                self._series.sent.inc()
        elif kind == "websocket.accept":
            self._accept()
        elif kind == "websocket.close":
            self._code = self._code or (message.get("code", _NORMAL) if self._accepted else 403)
        elif kind == "websocket.http.response.start":
            self._code = self._code or message["status"]

    def end(self) -> None:
        """Record the connection when the app has returned."""
        if self._failed:
            self._record("failed", _INTERNAL_ERROR if self._accepted else 500)
        elif not self._accepted:
            # Neither accepted nor refused: the server answers with an error in the app's place.
            self._record("aborted" if self._client_left else "rejected" if self._code else "failed", 500)
        else:
            self._record("aborted" if self._code == _ABNORMAL else "completed", _NO_STATUS)

    def fail(self, error: Exception) -> bool:
        """Record what the app raised; return whether the client's leaving explains it."""
        explained = self._client_left and self._means_client_left(error)
        if not explained:
            self._failed = True
            self._log_exception(error)
        self.end()
        return explained

    def cancel(self) -> None:
        """Record a connection that the server cancelled."""
        self._record("cancelled", _ABNORMAL if self._accepted else CLIENT_LEFT)

    def _accept(self) -> None:
        self._accepted = True
        self.route = self.route or self._resolve_route()
        if self._config.websocket_metrics is not None:
            self._series = self._config.websocket_metrics.series(self.route)
            self._series.open.inc()

    def _record(self, outcome: str, code: int) -> None:
        duration = perf_counter() - self._start
        config = self._config
        route = self.route or self._resolve_route()
        if self._series is not None:
            self._series.open.dec()
        if config.websocket_metrics is not None:
            config.websocket_metrics.record(route, outcome)
        if config.request_lines:
            config.logs.event(
                "info",
                type="websocket",
                url=self._url.decode("utf-8", "backslashreplace"),
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


def _close_code(message: Message) -> int:
    code = int(message.get("code") or _NO_STATUS)
    # uvicorn reports a lost connection as 1005 too, but without the reason that a close frame has.
    return _ABNORMAL if code == _NO_STATUS and "reason" not in message else code
