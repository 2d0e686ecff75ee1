"""One request and its response, as the edge sees them."""

from __future__ import annotations

import contextlib
import os
from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._errors import error_body
from watchkeeper.http._ids import read_ids
from watchkeeper.http._routes import UNMATCHED, route_label

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope, Send
    from watchkeeper.http._middleware import Middleware

SCOPE_KEY: Final = "watchkeeper"
CLIENT_LEFT: Final = 499
"""nginx's number for a client that did not wait; there is no official one."""

_INTERNAL_ERROR: Final = "Something went wrong here; the request id finds it in the log."


class Exchange:
    """Watches the messages of one request go by; counts and logs it once.

    Args:
        edge: What counts and logs.
        scope: Of the request, before the app has it.
        receive: The server's.
        send: The server's.
    """

    # Defaults of the class: an attribute that a usual request never touches costs it nothing.
    route = ""
    status = 0
    _bytes = 0
    _duration = -1.0
    _trailers = False
    _recorded = False
    _failed = False
    _left = False
    _unheard = False

    def __init__(self, edge: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._start = perf_counter()
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method = scope["method"]
        # Taken before the app has it: Litestar rewrites the path for its mounts.
        self._path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
        self._query = scope["query_string"]
        self.context = read_ids(scope["headers"])
        scope[SCOPE_KEY] = self

    async def receive(self) -> Message:
        """Pass on what comes from the server, and notice that the client leaves."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = True
            # What the app makes of it reaches nobody: it is not the app's 5xx.
            self._unheard = self._unheard or not self.status
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, with the request's id, and notice the last byte."""
        kind = message["type"]
        if kind == "http.response.body":
            self._bytes += len(message.get("body", b""))
            await self._send(message)
            if not message.get("more_body", False) and not self._trailers:
                self._finish()
        elif kind == "http.response.start":
            self.status = message["status"]
            if message.get("trailers"):
                self._trailers = True
            headers = [header for header in message.get("headers", ()) if header[0] != b"x-request-id"]
            headers.append((b"x-request-id", self.context.request_id.encode("ascii")))
            # A copy: an app may send one and the same message to everybody.
            await self._send({**message, "headers": headers})
        else:
            await self._send(message)
            self._notice(message)

    async def fail(self, error: Exception) -> None:
        """Say what the app raised; answer for it if nothing was sent yet.

        Raises:
            Exception: The app's, where its response had begun and not ended: the server has to close.
        """
        self._failed = True
        if self._unheard and _is_about_leaving(error):
            self._end("aborted")
        elif not self.status:
            await self._answer_failure(error)
        else:
            self._tell(error)
            cut_short = self._duration < 0.0
            self._end("failed")
            if cut_short:
                raise error

    async def end(self) -> None:
        """Close the books when the app has returned."""
        if self._recorded:
            return
        if not self.status and not self._left:
            await self._answer_failure(RuntimeError("The app returned without a response."))
        elif self._duration < 0.0:
            self._end("aborted" if self._left else "failed")
        else:
            self._end("failed" if self._failed else "completed")

    def cancel(self) -> None:
        """Close the books on a request that the server cancelled."""
        self._end("cancelled" if self._duration < 0.0 else "completed")

    def let_go(self) -> None:
        """Come apart from the scope, so that both are freed at once and not by the garbage collector."""
        self._scope.pop(SCOPE_KEY, None)

    def note(self, error: BaseException) -> None:
        """Log an exception that the framework answers by itself, and remember that the request failed."""
        self._failed = True
        self._tell(error)

    def _notice(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.zerocopysend":
            self._bytes += message.get("count") or 0
            if not message.get("more_body", False) and not self._trailers:
                self._finish()
        elif kind == "http.response.pathsend":
            with contextlib.suppress(OSError):
                self._bytes += os.stat(message["path"]).st_size  # noqa: PTH116 - the quick way
            self._finish()
        elif kind == "http.response.trailers" and not message.get("more_trailers", False):
            self._finish()

    def _finish(self) -> None:
        if self._duration >= 0.0:
            return
        self._duration = perf_counter() - self._start
        # Starlette sends its 500 and raises then: what became of a 5xx is known when the app has ended.
        if self.status < 500:
            self._record("completed")

    def _end(self, outcome: str) -> None:
        if not self._recorded:
            self._record(outcome)

    def _tell(self, error: BaseException) -> None:
        self._edge.lines.exception(error, message="Unhandled exception.")

    async def _answer_failure(self, error: BaseException) -> None:
        self._failed = True
        body = error_body(500, "internal_error", _INTERNAL_ERROR, self.context.request_id)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        try:
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send(
                {
                    "type": "http.response.body",
                    "body": b"" if self._method == "HEAD" else body,
                    "more_body": False,
                }
            )
        finally:
            self._tell(error)  # after the answer: a traceback takes milliseconds
            self._end("failed")

    def _resolve(self, status: int) -> str:
        try:
            return route_label(self._edge.resolve_route, self._scope, status)
        except Exception as error:  # noqa: BLE001 - the service's own resolver must not cost the response
            self._tell(error)
            return UNMATCHED

    def _record(self, outcome: str) -> None:
        self._recorded = True
        if self._duration < 0.0:
            self._duration = perf_counter() - self._start
        status = self.status or (500 if outcome == "failed" else CLIENT_LEFT)
        if self._unheard:
            status, outcome = CLIENT_LEFT, "aborted"
        edge = self._edge
        route = self.route or self._resolve(status)
        if edge.metrics is not None:
            edge.metrics.record(self._method, route, status, self._duration)
        if edge.wants_line(route, status, outcome):
            context = self.context
            url = self._path + b"?" + self._query if self._query else self._path
            edge.lines.request(
                method=self._method,
                url=url.decode("utf-8", "backslashreplace"),
                status=status,
                duration_ms=self._duration * 1000.0,
                request_id=context.request_id,
                route=route,
                outcome=outcome,
                trace_id=context.trace_id,
                span_id=context.span_id,
                bytes_sent=0 if self._method == "HEAD" else self._bytes,
            )


def _is_about_leaving(error: Exception) -> bool:
    """Say whether an exception only says that the client left, as Starlette's and the server's do."""
    return isinstance(error, OSError) or type(error).__name__ in {"ClientDisconnect", "ClientDisconnected"}
