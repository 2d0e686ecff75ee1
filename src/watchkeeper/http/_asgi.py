"""The names of the ASGI protocol: https://asgi.readthedocs.io/en/latest/specs/www.html."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

SCOPE_KEY: Final = "watchkeeper"
"""Under which the edge finds itself again in a scope, or in a copy of one."""

CLIENT_LEFT: Final = 499
"""nginx's number for a client that did not wait; there is no official one."""

_REQUEST_ID: Final = b"x-request-id"


def with_request_id(message: Message, request_id: str) -> Message:
    """Return the start of a response with the request's id in its headers, in the place of the app's own.

    Args:
        message: Left as it is: an app may send one and the same to everybody.
        request_id: Of the request.
    """
    headers = [*message.get("headers", ())]
    if _REQUEST_ID in dict(headers):
        headers = [header for header in headers if header[0] != _REQUEST_ID]
    headers.append((_REQUEST_ID, request_id.encode("ascii")))
    return {**message, "headers": headers}


def path_as_sent(scope: Scope) -> bytes:
    """Return the path as it came; taken before the app has it, for Litestar rewrites it for its mounts."""
    return scope.get("raw_path") or str(scope["path"]).encode("utf-8", "surrogatepass")


def is_about_leaving(error: BaseException, refused: OSError | None) -> bool:
    """Say whether an exception only says that the client left.

    Args:
        error: That an app raised.
        refused: What the server's `send` raised, if it did: that one, or what a framework made of it.
    """
    if type(error).__name__ in {"ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect"}:
        return True
    return refused is not None and refused in (error, error.__cause__, error.__context__)
