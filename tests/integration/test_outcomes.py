import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from litestar import Litestar, get, post
from litestar.response import Stream
from quart import Quart
from quart import request as quart_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from support.asgi import SERVERS, Watched, response_body, response_start, serving, speak, watch
from watchkeeper.http import note_exception

SLOW: Final = 0.6  # seconds, well above the 0.1 after which the clients leave


async def _events() -> AsyncIterator[bytes]:
    while True:
        yield b"data: tick\n\n"
        await asyncio.sleep(0.02)


async def _breaking() -> AsyncIterator[bytes]:
    yield b"half"
    await asyncio.sleep(0.02)
    raise ValueError("in the middle")


async def _late() -> str:
    await asyncio.sleep(SLOW)
    return "late"


def _busy() -> str:  # in a thread
    time.sleep(SLOW)
    return "late"


def _fastapi() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/slow", _late)
    app.add_api_route("/busy", _busy)
    app.add_api_route("/unread", _late, methods=["POST"])

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(_events(), media_type="text/event-stream")

    @app.get("/breaking")
    async def breaking() -> StreamingResponse:
        return StreamingResponse(_breaking())

    return app


def _starlette() -> Starlette:
    async def slow(_request: Request) -> PlainTextResponse:
        return PlainTextResponse(await _late())

    def busy(_request: Request) -> PlainTextResponse:
        return PlainTextResponse(_busy())

    async def events(_request: Request) -> StreamingResponse:
        return StreamingResponse(_events(), media_type="text/event-stream")

    async def breaking(_request: Request) -> StreamingResponse:
        return StreamingResponse(_breaking())

    return Starlette(
        routes=[
            Route("/slow", slow),
            Route("/busy", busy),
            Route("/unread", slow, methods=["POST"]),
            Route("/events", events),
            Route("/breaking", breaking),
        ]
    )


def _litestar() -> Litestar:
    @get("/events")
    async def events() -> Stream:
        return Stream(_events(), media_type="text/event-stream")

    @get("/breaking")
    async def breaking() -> Stream:
        return Stream(_breaking())

    late = [
        get("/slow")(_late),
        get("/busy", sync_to_thread=True)(_busy),
        post("/unread", status_code=200)(_late),
    ]
    return Litestar(
        [*late, events, breaking], logging_config=None, openapi_config=None, after_exception=[note_exception]
    )


def _quart() -> Quart:
    app = Quart(__name__)
    app.get("/slow")(_late)
    app.post("/unread")(_late)
    app.get("/busy")(_busy)

    @app.get("/events")
    async def events() -> Any:
        return _events(), {"content-type": "text/event-stream"}

    @app.get("/breaking")
    async def breaking() -> Any:
        return _breaking()

    @app.errorhandler(ValueError)
    async def answer(error: Exception) -> tuple[str, int]:
        await note_exception(error, quart_request.scope)
        return "sorry", 500

    return app


FRAMEWORKS: Final[dict[str, Callable[[], Any]]] = {
    "fastapi": _fastapi,
    "starlette": _starlette,
    "litestar": _litestar,
    "quart": _quart,
}


async def _leave(port: int, path: str, *, method: str = "GET", after: float = 0.0, body: bytes = b"") -> None:
    """Request `path`, wait for the first bytes or for `after` seconds, and break the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    if after:
        await asyncio.sleep(after)
    else:
        while b"tick" not in await reader.read(4096):
            pass
    writer.transport.abort()


async def _wait_for(watched: Watched, count: int) -> list[tuple[Any, ...]]:
    for _ in range(3000):
        if len(watched.requests()) >= count:
            break
        await asyncio.sleep(0.02)
    return [(line["url"], line["statusCode"], line["outcome"]) for line in watched.requests()]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_leaving_clients_are_seen_where_possible(tmp_path: Path, framework: str, server: str) -> None:
    """While a handler waits, computes in a thread or leaves a body unread; an endless stream ends at once."""
    watched = watch(FRAMEWORKS[framework](), tmp_path)
    # granian reports it only to an app that receives, as Quart does with each request.
    late = (499, "aborted") if server == "uvicorn" or framework == "quart" else (200, "completed")
    async with serving(watched.app, server) as port:
        await _leave(port, "/slow", after=0.1)
        await _leave(port, "/busy", after=0.1)
        await _leave(port, "/unread", method="POST", after=0.1, body=b"hello")
        await _wait_for(watched, 3)
        await _leave(port, "/events")
        logged = await _wait_for(watched, 4)
        await asyncio.sleep(0.1)
    unseen = [(path, *late) for path in ("/busy", "/slow", "/unread")]
    assert sorted(logged) == sorted([*unseen, ("/events", 200, "aborted")])
    assert len(watched.requests()) == 4
    assert watched.count("/slow", late[0]) == 1.0
    assert watched.count("/events", 200) == 1.0
    assert [line for line in watched.lines() if line["level"] == "error"] == []


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_generator_that_raises_midway_has_failed(tmp_path: Path, framework: str, server: str) -> None:
    """The exception and the request have one line each, and the client knows that its body is incomplete."""
    watched = watch(FRAMEWORKS[framework](), tmp_path)
    watched.logging.install()
    async with serving(watched.app, server) as port:
        reply = await speak(port, b"GET /breaking HTTP/1.1\r\nHost: x\r\n\r\n", seconds=3)
        assert await _wait_for(watched, 1) == [("/breaking", 200, "failed")]
    assert b"half" in reply
    assert not reply.endswith(b"0\r\n\r\n")
    (error,) = [line for line in watched.lines() if line["level"] == "error"]
    if framework != "litestar":  # its middleware raises another exception with this one in a group
        assert error["error"]["message"] == "in the middle"


async def _raw(_scope: Any, receive: Any, send: Any) -> None:
    """Start late, then read the body and send it back."""
    await asyncio.sleep(0.05)
    await send(response_start(200))
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body, more = body + message["body"], message.get("more_body", False)
    await asyncio.sleep(0.05)
    await send(response_body(body))


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("size", [0, 5, 300_000])
async def test_polling_loses_nothing_of_the_body(tmp_path: Path, http: str, size: int) -> None:
    """A polled message is returned by the app's next receive."""
    watched = watch(_raw, tmp_path)
    async with (
        serving(watched.app, "uvicorn", http=http) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        for _ in range(2):  # over one connection
            assert (await client.post("/", content=b"x" * size)).content == b"x" * size
    assert [(line["outcome"], line["bytes"]) for line in watched.requests()] == [("completed", size)] * 2


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_polling_does_not_request_the_body(tmp_path: Path, http: str) -> None:
    """A client that waits for `100 Continue` does not get it if the app does not read the body."""

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.05)
        await send(response_start(413, (b"content-length", b"0")))
        await send(response_body())

    watched = watch(refuse, tmp_path)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    async with serving(watched.app, "uvicorn", http=http) as port:
        reply = await speak(port, head, seconds=1, until=b"\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413 ")
