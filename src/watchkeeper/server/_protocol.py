"""What is not HTTP never reaches the app: it gets the one error body, a count and a line all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from watchkeeper.http import error_body, read_ids

if TYPE_CHECKING:
    from watchkeeper.keeper import Watchkeeper

_MESSAGE = "The request is not HTTP/1.1 that this server can read: look at its method, target and headers."


class Config(uvicorn.Config):
    """uvicorn's configuration, with the keeper for the protocol to find.

    Args:
        app: The wrapped app.
        keeper: The keeper that it is wrapped by.
        **options: Further options of uvicorn.
    """

    def __init__(self, app: Any, keeper: Watchkeeper, **options: Any) -> None:
        super().__init__(app, http=Protocol, **options)
        self.keeper = keeper


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone answers what it cannot parse with plain text and without a trace."""

    config: Config

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words are for nobody
        """Answer what cannot be parsed, and close the connection."""
        ids = read_ids(())
        body = error_body(400, message=_MESSAGE, request_id=ids.request_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", ids.request_id.encode("ascii")),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n%s" % (head, body))
        self.transport.close()
        keeper = self.config.keeper
        if keeper.settings.metrics:
            keeper.http_metrics.record("_OTHER", "unmatched", 400, 0.0)
        if keeper.settings.request_lines:
            keeper.logging.request(
                method="_OTHER",
                url="",
                status=400,
                duration_ms=0.0,
                request_id=ids.request_id,
                route="unmatched",
                outcome="unreadable",
                trace_id=ids.trace_id,
                span_id=ids.span_id,
                bytes_sent=len(body),
            )
