"""Calls an ASGI app directly, without sockets or a client, so that only the app's CPU time is measured."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from time import process_time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

BUSY_TURN: Final = 8
"""Requests in one iteration of the event loop: a server with more clients has at least as many ready."""

HEADERS: Final = (
    (b"host", b"api.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"application/json, text/plain, */*"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"referer", b"https://app.example.com/items"),
    (b"x-forwarded-for", b"203.0.113.7"),
    (b"x-forwarded-proto", b"https"),
    (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    (b"cookie", b"session=0123456789abcdef0123456789abcdef; theme=dark"),
)


def make_scope(path: str = "/items/7", **changes: Any) -> dict[str, Any]:
    """Return the scope of a GET request as uvicorn creates it, with `changes` to its keys."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(HEADERS),
        "state": {},
        **changes,
    }


async def receive() -> dict[str, Any]:
    """Send the app a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_message: Any) -> None:
    """Ignore what the app sends."""


async def check(app: Callable[..., Awaitable[None]]) -> None:
    """Raise RuntimeError if the app does not answer 200: an error may be fast."""
    seen: list[int] = []

    async def record(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    await app(make_scope(), receive, record)
    if seen != [HTTPStatus.OK]:
        raise RuntimeError(f"an app of the bench answers {seen}")


async def serve(
    app: Callable[..., Awaitable[None]], scopes: Iterable[MutableMapping[str, Any]], *, turn: int = BUSY_TURN
) -> float:
    """Send these requests to `app` one after the other, and return the CPU seconds that they took.

    Args:
        app: The ASGI app.
        scopes: Of the requests; each is used once.
        turn: How many requests are served in one iteration of the event loop.
    """
    start = process_time()
    for number, scope in enumerate(scopes, start=1):
        await app(scope, receive, send)
        if number % turn == 0:
            await asyncio.sleep(0)
    return process_time() - start
