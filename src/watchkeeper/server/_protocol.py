"""Refuses what is not HTTP, and request heads that are too large or too slow.

Such requests never reach the app, and get the same error body, metrics and log line as all others. uvicorn
alone has no limits for heads, so any client could fill its memory or hold its connections.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from watchkeeper.http import error_body
from watchkeeper.http._ids import read_ids
from watchkeeper.logs._request_line import RequestLine

if TYPE_CHECKING:
    import asyncio

    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.logs import RequestContext

MAX_HEAD: Final = 64 * 1024  # largest head of a request (request line and headers), in bytes

HEAD_TIMEOUT_S: Final = 10.0
"""How long a head may take to arrive, from the connection or from its first byte."""

_NOT_HTTP: Final = "Invalid HTTP request received."  # uvicorn's message for what it cannot parse
_REASONS: Final = {
    400: (b"Bad Request", "This is not valid HTTP/1.1: check method, target and headers."),
    408: (b"Request Timeout", f"The head of the request did not arrive within {HEAD_TIMEOUT_S:g} seconds."),
    431: (b"Request Header Fields Too Large", f"The head of the request is larger than {MAX_HEAD} bytes."),
}


class Config(uvicorn.Config):
    """uvicorn's configuration, with the keeper for the protocol."""

    def __init__(self, app: Any, keeper: Watchkeeper, **options: Any) -> None:
        super().__init__(app, http=_Protocol, **options)
        self.keeper = keeper
        # The request's own line reports it; uvicorn's would lack the request id.
        logging.getLogger("uvicorn.error").addFilter(_is_not_parse_error)


def _is_not_parse_error(record: logging.LogRecord) -> bool:
    return record.msg != _NOT_HTTP


class _HeadTooLargeError(Exception):
    """Stops the parser for a head that arrived in one piece and is too large."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits for the head of a request."""

    config: Config

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_is_open = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and refuse a head that exceeds its limit."""
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._head_is_open or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD:
            self._refuse(431)
        elif self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_is_open = True

    def on_headers_complete(self) -> None:
        self._head_is_open = False
        self._stop_head_timer()
        arrived, self._head_bytes = self._head_bytes, 0
        # The bytes may include a body, so a large piece is measured exactly.
        if arrived > MAX_HEAD and sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._refusal = 431
            raise _HeadTooLargeError
        if not self.url.startswith((b"/", b"*")):
            self._take_host_from_target()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's message is not sent
        """Refuse what cannot be parsed."""
        self._refuse(self._refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: the request is answered as a plain one and has its own line."""

    def _take_host_from_target(self) -> None:
        # RFC 9112, 3.2.2: the authority of an absolute target replaces Host. Otherwise code that trusts Host,
        # as /metrics does, could mistake a remote address for this machine.
        target = httptools.parse_url(self.url)
        host = target.host or b""
        authority = b"[%s]" % host if b":" in host else host
        if target.port:
            authority += b":%d" % target.port
        self.headers[:] = [header for header in self.headers if header[0] != b"host"]
        self.headers.append((b"host", authority))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._is_answering():
            self._start_head_timer()  # a pipelined request: its head can wait
        elif self._head_bytes:
            self._refuse(408)
        else:
            self.transport.close()  # no request began

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int) -> None:
        reason, message = _REASONS[status]
        ids = read_ids(())
        body = error_body(status, message=message, request_id=ids.request_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", ids.request_id.encode("ascii")),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        # The middleware records a request that is being answered: its body is incomplete.
        if not self._is_answering():
            self._record(status, ids, len(body))
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, reason, head, body))
        self.transport.close()

    def _record(self, status: int, ids: RequestContext, size: int) -> None:
        keeper = self.config.keeper
        if keeper.settings.metrics:
            keeper.http_metrics.record("_OTHER", "unmatched", status, 0.0)
        if keeper.settings.request_lines:
            keeper.logging.log_request(
                RequestLine(
                    method="_OTHER",
                    url="",
                    status=status,
                    duration=0.0,
                    request_id=ids.request_id,
                    route="unmatched",
                    outcome="unreadable",
                    trace_id=ids.trace_id,
                    span_id=ids.span_id,
                    bytes_sent=size,
                )
            )
