"""Records one request: one count, one duration and one line."""

from __future__ import annotations

import contextlib
import os
from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._asgi import CLIENT_LEFT, with_request_id
from watchkeeper.http._disconnect import can_poll, poll
from watchkeeper.http._errors import error_body
from watchkeeper.http._recorder import Recorder
from watchkeeper.http._sampling import RANDOM_FROM
from watchkeeper.http.routes._labels import MATCHED_NOTHING, route_label
from watchkeeper.logs._request_line import UNSAMPLED, RequestLine

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope, Send
    from watchkeeper.http._recorder import RecorderConfig
    from watchkeeper.logs._request_line import SampleRate
    from watchkeeper.metrics._http import RequestSeries

SEND_BUFFER: Final = 64 * 1024
"""The largest body, in bytes, that servers buffer without waiting for the client."""

POLL_AFTER_S: Final = 0.010
"""A client rarely leaves this early, so polling (about 5 µs) pays off only after this delay."""

_MAX_POLLED: Final = 4
"""Messages to read ahead: hypercorn sends the body, its end and the disconnect one by one."""

_INTERNAL_ERROR: Final = "Something went wrong here; the request id finds it in the log."


class RequestRecorder(Recorder):
    """Watches the messages of one request; counts it before its last byte is sent, and logs it after."""

    __slots__ = (
        "_bytes",
        "_complete",
        "_duration",
        "_left_before_start",
        "_method",
        "_next_poll",
        "_polled",
        "_receiving",
        "_series",
        "_trailers",
        "is_probe",
        "recorded",
        "status",
    )

    def __init__(self, config: RecorderConfig, scope: Scope, receive: Receive, send: Send) -> None:
        Recorder.__init__(self, config, scope, receive, send)  # super() took 0.3 µs of 8
        self._next_poll = self._start + POLL_AFTER_S
        self._method: str = scope["method"]
        self._duration = -1.0
        self._series: RequestSeries | None = None
        self._polled: tuple[Message, ...] = ()
        self.status = self._bytes = self._receiving = 0
        self.is_probe = self.recorded = False
        self._trailers = self._complete = self._left_before_start = False

    async def receive(self) -> Message:
        """Pass on what the server sends, and notice that the client leaves."""
        if self._polled:
            message, *later = self._polled
            self._polled = tuple(later)
            return message
        self._receiving += 1
        try:
            message = await self._receive()
        finally:
            self._receiving -= 1
        if message["type"] == "http.disconnect":
            self._note_disconnect()
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
                self._before_last_byte(size)
                await self._send(message)
                if not self._complete:
                    self._finish()
            elif kind == "http.response.start":
                if perf_counter() >= self._next_poll:
                    self._poll_disconnect()
                self.status = message["status"]
                self._trailers = message.get("trailers", False)
                await self._send(with_request_id(message, self.context.request_id))
            else:
                await self._send(message)
                self._note_extension(message)
        except OSError as error:  # how ASGI 2.4 and later report a client that left
            self._send_error = error
            self._client_left = self._client_left or not self._complete
            raise

    async def fail(self, error: Exception) -> None:
        """Log what the app raised; answer with a 500, or raise it again if the response has begun."""
        self._failed = True
        if self._client_left and self._means_client_left(error) and not self._complete:
            self._end("aborted")
        elif not self.status:
            await self._answer_failure(error)
        else:
            self._log_exception(error)
            self._end("failed")
            if not self._complete:
                raise error

    async def end(self) -> None:
        """Record the request when the app has returned."""
        if self.recorded:
            return
        if not self.status and not self._client_left:
            await self._answer_failure(RuntimeError("The app returned without a response."))
        elif not self._complete:
            self._end("aborted" if self._client_left else "failed")
        else:
            self._end("failed" if self._failed else self._outcome())

    def cancel(self) -> None:
        """Record a request that the server cancelled."""
        self._end(self._outcome() if self._complete else "cancelled")

    def _note_disconnect(self) -> None:
        if self._complete:
            return  # servers also send the message once the response is complete
        self._client_left = True
        # The client left before the response began: do not count its status as a server error.
        self._left_before_start = self._left_before_start or not self.status

    def _poll_disconnect(self) -> None:
        """Detect a disconnect while the app is not receiving; keep other messages for the app."""
        self._next_poll = perf_counter() + POLL_AFTER_S
        if self._client_left or self._receiving or not can_poll(self._receive, self._scope):
            return
        for _ in range(_MAX_POLLED):
            message = poll(self._receive)
            if message is None:
                return
            self._polled += (message,)
            if message["type"] == "http.disconnect":
                self._note_disconnect()
                return

    def _note_extension(self, message: Message) -> None:
        """Count the bytes of ASGI's extensions for files and trailers, and notice the end."""
        kind = message["type"]
        if kind == "http.response.zerocopysend":
            self._bytes += message.get("count") or 0
            ends = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.pathsend":
            with contextlib.suppress(OSError):
                self._bytes += os.stat(message["path"]).st_size  # noqa: PTH116 - faster
            ends = True
        else:
            ends = kind == "http.response.trailers" and not message.get("more_trailers", False)
        if ends and not self._complete:
            self._finish()

    def _before_last_byte(self, size: int) -> None:
        now = perf_counter()
        if now >= self._next_poll:
            self._poll_disconnect()
        # Count first: a complete response is counted even if the process is killed right after it.
        if self._duration < 0.0 and self.status:
            if self._series is None:  # an app may send its last message again
                self._count()
            if self._bytes == size <= SEND_BUFFER:
                self._observe(now)

    def _finish(self) -> None:
        self._complete = True
        if self._duration < 0.0:
            self._observe(perf_counter())
        # Starlette sends its 500 and then raises: the outcome of a 5xx is known when the app has returned.
        if self.status < 500:
            if self._client_left:
                self._record("aborted")
            else:  # the usual case
                self.recorded = True
                if self._config.request_lines:
                    self._log_request("completed")

    def _outcome(self) -> str:
        return "aborted" if self._client_left else "completed"

    def _end(self, outcome: str) -> None:
        if not self.recorded:
            self._record(outcome)

    async def _answer_failure(self, error: BaseException) -> None:
        self._failed = True
        body = error_body(500, "internal_error", _INTERNAL_ERROR, self.context.request_id)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self._method == "HEAD":
            body = b""
        try:
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            self._log_exception(error)  # after the response: a traceback takes milliseconds
            self._end("failed")

    def _record(self, outcome: str) -> None:
        self.recorded = True
        if self._left_before_start:
            self.status, outcome = CLIENT_LEFT, "aborted"
        elif not self.status:
            self.status = 500 if outcome == "failed" else CLIENT_LEFT
        if self._duration < 0.0:
            self._observe(perf_counter())
        if self._config.request_lines:
            self._log_request(outcome)

    def _observe(self, now: float) -> None:
        self._duration = duration = now - self._start
        if self._series is None:
            self._count()
        if self._series is not None:
            self._series.observe(duration * self._config.duration_scale, self.context.trace_id)

    def _count(self) -> None:
        status = CLIENT_LEFT if self._left_before_start else self.status
        if not self.route:
            route = self._resolve_route()
            self.route = route_label(route, status) if status in MATCHED_NOTHING else route
        find_series = self._config.find_series
        if find_series is not None:
            self._series = series = find_series(self._method, self.route, status)
            series.count()

    def _log_request(self, outcome: str) -> None:
        config = self._config
        context = self.context
        rate: SampleRate = UNSAMPLED
        if outcome == "completed" and self.status < 500:
            if self.is_probe and self.status < 400:
                return
            rate = config.sample_rate
            if rate is not UNSAMPLED and context.trace_id[RANDOM_FROM:] < config.sample_floor:
                return
        method = self._method
        config.log_request(
            RequestLine(
                method=method,
                url=self._url.decode("utf-8", "backslashreplace"),
                status=self.status,
                duration=int(self._duration * 1_000_000) / 1000,
                request_id=context.request_id,
                route=self.route,
                outcome=outcome,
                trace_id=context.trace_id,
                span_id=context.span_id,
                bytes_sent=0 if method == "HEAD" else self._bytes,
                sample_rate=rate,
            )
        )
