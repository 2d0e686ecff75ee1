"""Names of the ASGI protocol: https://asgi.readthedocs.io/en/latest/specs/www.html."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

CLIENT_LEFT: Final = 499  # nginx's status for a client that did not wait; there is no official one

_REQUEST_ID: Final = b"x-request-id"


def with_request_id(message: Message, request_id: str) -> Message:
    """Return a copy of a response's start that carries the request's id, instead of the app's."""
    headers = [*message.get("headers", ())]
    if _REQUEST_ID in dict(headers):
        headers = [header for header in headers if header[0] != _REQUEST_ID]
    headers.append((_REQUEST_ID, request_id.encode("ascii")))
    return {**message, "headers": headers}
