"""One request and its response, as the edge sees them."""

from __future__ import annotations

import contextlib
import os
from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._asgi import (
    CLIENT_LEFT,
    SCOPE_KEY,
    is_about_leaving,
    path_as_sent,
    with_request_id,
)
from watchkeeper.http._disconnect import can_be_asked, receive_at_once
from watchkeeper.http._errors import error_body
from watchkeeper.http._ids import read_ids
from watchkeeper.http._sampling import RANDOM_FROM
from watchkeeper.http.routes._resolve import MATCHED_NOTHING, UNMATCHED, route_label
from watchkeeper.logs import UNSAMPLED

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope, Send
    from watchkeeper.http._middleware import Middleware
    from watchkeeper.logs import SampleRate
    from watchkeeper.metrics import RequestSeries

AT_ONCE: Final = 64 * 1024
"""What a server takes of a body in one message without waiting for the client; its buffers hold as much."""

LOOK_AFTER_S: Final = 0.010
"""A client hardly leaves within so short a time: only after it a look is worth its cost (some 5 µs)."""

_A_FEW: Final = range(4)
"""Messages to look behind: hypercorn tells of the body, its end and the leaving one after the other."""

_INTERNAL_ERROR: Final = "Something went wrong here; the request id finds it in the log."


class Exchange:
    """Watches the messages of one request go by; counts and logs it once.

    Args:
        edge: What counts and logs.
        scope: Of the request, before the app has it.
        receive: The server's.
        send: The server's.
    """

    # Slots, each set here: a default of the class would be looked up in two places.
    __slots__ = (
        "_asking",
        "_bytes",
        "_complete",
        "_duration",
        "_edge",
        "_failed",
        "_held",
        "_left",
        "_look_at",
        "_method",
        "_path",
        "_query",
        "_receive",
        "_refused",
        "_scope",
        "_send",
        "_series",
        "_start",
        "_trailers",
        "_unheard",
        "context",
        "is_probe",
        "recorded",
        "route",
        "status",
    )

    def __init__(self, edge: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._start = start = perf_counter()
        self._look_at = start + LOOK_AFTER_S
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method: str = scope["method"]
        self._path: bytes = scope.get("raw_path") or path_as_sent(scope)
        self._query: bytes = scope["query_string"]
        self._duration = -1.0
        self._series: RequestSeries | None = None
        self._refused: OSError | None = None
        self._held: tuple[Message, ...] = ()
        self.route = ""
        self.status = self._bytes = self._asking = 0
        self.is_probe = self.recorded = False
        self._trailers = self._complete = self._failed = self._left = self._unheard = False
        self.context = read_ids(scope["headers"])
        scope[SCOPE_KEY] = self

    async def receive(self) -> Message:
        """Pass on what comes from the server, and notice that the client leaves."""
        if self._held:
            message, *later = self._held
            self._held = tuple(later)
            return message
        self._asking += 1
        try:
            message = await self._receive()
        finally:
            self._asking -= 1
        if message["type"] == "http.disconnect":
            self._note_leaving()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, with the request's id, and notice the last byte."""
        kind = message["type"]
        try:
            if kind == "http.response.body":
                size = len(message.get("body", b""))
                self._bytes += size
                if message.get("more_body", False) or self._trailers:
                    await self._send(message)
                    return
                self._begin_last(size)
                await self._send(message)
                if not self._complete:
                    self._finish()
            elif kind == "http.response.start":
                if perf_counter() >= self._look_at:
                    self._look()
                self.status = message["status"]
                self._trailers = message.get("trailers", False)
                await self._send(with_request_id(message, self.context.request_id))
            else:
                await self._send(message)
                self._notice(message)
        except OSError as error:  # what the protocol has for a client that left, from version 2.4 on
            self._refused = error
            self._left = self._left or not self._complete
            raise

    async def fail(self, error: Exception) -> None:
        """Say what the app raised; answer for it if nothing was sent yet.

        Raises:
            Exception: The app's, where its response had begun and not ended: the server has to close.
        """
        self._failed = True
        if self._left and is_about_leaving(error, self._refused) and not self._complete:
            self._end("aborted")
        elif not self.status:
            await self._answer_failure(error)
        else:
            self._tell(error)
            self._end("failed")
            if not self._complete:
                raise error

    async def end(self) -> None:
        """Close the books when the app has returned."""
        if self.recorded:
            return
        if not self.status and not self._left:
            await self._answer_failure(RuntimeError("The app returned without a response."))
        elif not self._complete:
            self._end("aborted" if self._left else "failed")
        else:
            self._end("failed" if self._failed else self._how_it_ended())

    def cancel(self) -> None:
        """Close the books on a request that the server cancelled."""
        self._end(self._how_it_ended() if self._complete else "cancelled")

    def note(self, error: BaseException) -> None:
        """Log an exception that the framework answers by itself, and remember that the request failed."""
        if self._left and is_about_leaving(error, self._refused):
            return
        self._failed = True
        self._tell(error)

    def _note_leaving(self) -> None:
        if self._complete:
            return  # a server also says so once the response is complete
        self._left = True
        # What the app makes of it reaches nobody: it is not the app's 5xx.
        self._unheard = self._unheard or not self.status

    def _look(self) -> None:
        """Notice a client that left without anybody asking, and keep for the app what came instead."""
        self._look_at = perf_counter() + LOOK_AFTER_S
        if self._left or self._asking or not can_be_asked(self._receive, self._scope):
            return
        for _ in _A_FEW:
            message = receive_at_once(self._receive)
            if message is None:
                return
            self._held += (message,)
            if message["type"] == "http.disconnect":
                self._note_leaving()
                return

    def _notice(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.zerocopysend":
            self._bytes += message.get("count") or 0
            ends = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.pathsend":
            with contextlib.suppress(OSError):
                self._bytes += os.stat(message["path"]).st_size  # noqa: PTH116 - the quick way
            ends = True
        else:
            ends = kind == "http.response.trailers" and not message.get("more_trailers", False)
        if ends and not self._complete:
            self._finish()

    def _begin_last(self, size: int) -> None:
        now = perf_counter()
        if now >= self._look_at:
            self._look()
        # Before the last byte leaves: a client that has it was counted, whatever kills this process.
        if self._duration < 0.0 and self.status:
            if self._series is None:  # an app may send its last message again
                self._count()
            if self._bytes == size <= AT_ONCE:
                self._measure(now)

    def _finish(self) -> None:
        self._complete = True
        if self._duration < 0.0:
            self._measure(perf_counter())
        # Starlette sends its 500 and raises then: what became of a 5xx is known when the app has ended.
        if self.status < 500:
            if self._left:
                self._record("aborted")
            else:  # the usual way
                self.recorded = True
                if self._edge.request_lines:
                    self._say("completed")

    def _how_it_ended(self) -> str:
        return "aborted" if self._left else "completed"

    def _end(self, outcome: str) -> None:
        if not self.recorded:
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

    def _record(self, outcome: str) -> None:
        self.recorded = True
        if self._unheard:
            self.status, outcome = CLIENT_LEFT, "aborted"
        elif not self.status:
            self.status = 500 if outcome == "failed" else CLIENT_LEFT
        if self._duration < 0.0:
            self._measure(perf_counter())
        if self._edge.request_lines:
            self._say(outcome)

    def _measure(self, now: float) -> None:
        self._duration = duration = now - self._start
        if self._series is None:
            self._count()
        if self._series is not None:
            self._series.observe(duration * self._edge.scale, self.context.trace_id)

    def _count(self) -> None:
        edge = self._edge
        route = self.route
        status = CLIENT_LEFT if self._unheard else self.status
        if not route:
            try:
                route = edge.resolve_route(self._scope)
            except Exception as error:  # noqa: BLE001 - the service's own resolver must not cost the response
                self._tell(error)
                route = UNMATCHED
            if status in MATCHED_NOTHING:
                route = route_label(route, status)
            self.route = route
        if edge.series is not None:
            self._series = series = edge.series(self._method, route, status)
            series.count()

    def _say(self, outcome: str) -> None:
        edge = self._edge
        context = self.context
        rate: SampleRate = UNSAMPLED
        if outcome == "completed" and self.status < 500:
            if self.is_probe and self.status < 400:
                return
            rate = edge.sample_rate
            if rate is not UNSAMPLED and context.trace_id[RANDOM_FROM:] < edge.sample_floor:
                return
        method = self._method
        url = self._path + b"?" + self._query if self._query else self._path
        edge.say(
            (
                method,
                url.decode("utf-8", "backslashreplace"),
                self.status,
                int(self._duration * 1_000_000) / 1000,
                context.request_id,
                self.route,
                outcome,
                context.trace_id,
                context.span_id,
                0 if method == "HEAD" else self._bytes,
                rate,
            )
        )
