"""Limits the size and the duration of request bodies, for all routes.

The middleware raises where the app reads, so that the refusal becomes the app's error response, with its
route in the metrics. A body that is a little too large is read to its end first and discarded: a server that
closes in the middle of a body resets the connection, and the client never sees the response. A body that is
far too large, or that no handler reads, is not read; the server closes the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NoReturn

from realestate.asgi import ASGIApp, Message, Receive, Scope, Send
from realestate.errors import ApiError, ClientLeftError

if TYPE_CHECKING:
    from datetime import timedelta

# A refused body is read to its end if it is at most so many times the limit.
_DRAIN_FACTOR: Final = 4
# The rest of the body must not be read as the connection's next request.
_CLOSE: Final = {"Connection": "close"}


class BodyLimits:
    """Limits the request bodies of an ASGI app to `limit` bytes, and to `timeout` from the first read."""

    def __init__(self, app: ASGIApp, *, limit: int, timeout: timedelta) -> None:
        self._app = app
        self._limit = limit
        self._timeout = timeout.total_seconds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that enforces the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _LimitedBody(receive, _announced_length(scope), self._limit, self._timeout)
        await self._app(scope, body.receive, send)


class _LimitedBody:
    """Receives the body of one request."""

    __slots__ = ("_announced", "_arrived", "_complete", "_deadline", "_limit", "_receive", "_timeout")

    def __init__(self, receive: Receive, announced: int, limit: int, timeout: float) -> None:
        self._receive = receive
        self._announced = announced
        self._limit = limit
        self._timeout = timeout
        self._deadline: float | None = None
        self._arrived = 0
        self._complete = False

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            ApiError: The body is too large (413) or took too long (408).
            ClientLeftError: The client disconnected before its end.
        """
        if self._complete:
            return await self._receive()
        if self._announced > self._limit:
            await self._refuse()
        message = await self._next()
        if self._arrived > self._limit:
            await self._refuse()
        return message

    async def _refuse(self) -> NoReturn:
        drained = self._limit * _DRAIN_FACTOR
        while not self._complete and max(self._announced, self._arrived) <= drained:
            await self._next()
        raise _too_large(self._limit)

    async def _next(self) -> Message:
        message = await self._receive_in_time()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self._arrived += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"The request body did not arrive within {self._timeout:g} seconds.",
                headers=_CLOSE,
            ) from None


def _announced_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The request body is larger than {limit} bytes.", headers=_CLOSE)
