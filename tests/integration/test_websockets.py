import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from litestar import Litestar, Router
from litestar import WebSocket as LitestarSocket
from litestar import websocket as litestar_websocket
from quart import Quart
from quart import websocket as quart_websocket
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket as StarletteSocket

from support.asgi import SERVERS, Watched, serving, watch
from support.websocket import Connection
from watchkeeper.http import note_exception


async def _echo(socket: StarletteSocket | LitestarSocket[Any, Any, Any]) -> None:
    await socket.accept()
    while True:
        text = await socket.receive_text()
        if text == "boom":
            raise ValueError("inside")
        if text == "bye":
            await socket.close(4001)
            return
        await socket.send_text(text)


async def _refuse(socket: StarletteSocket | LitestarSocket[Any, Any, Any]) -> None:
    await socket.close()


def _starlette() -> Starlette:
    routes = [WebSocketRoute("/rooms/{room}", _echo), WebSocketRoute("/closed", _refuse)]
    return Starlette(routes=[Mount("/chat/{tenant}", routes=routes)])


def _fastapi() -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/chat/{tenant}")

    @router.websocket("/rooms/{room}")
    async def room(websocket: WebSocket) -> None:
        await _echo(websocket)

    @router.websocket("/closed")
    async def closed(websocket: WebSocket) -> None:
        await _refuse(websocket)

    app.include_router(router)
    return app


def _litestar() -> Litestar:
    @litestar_websocket("/rooms/{room:str}")
    async def room(socket: LitestarSocket[Any, Any, Any]) -> None:
        await _echo(socket)

    @litestar_websocket("/closed")
    async def closed(socket: LitestarSocket[Any, Any, Any]) -> None:
        await _refuse(socket)

    return Litestar(
        [Router("/chat/{tenant:str}", route_handlers=[room, closed])],
        logging_config=None,
        openapi_config=None,
        after_exception=[note_exception],
    )


def _quart() -> Quart:
    app = Quart(__name__)

    @app.websocket("/chat/<tenant>/rooms/<room>")
    async def room(**_raw: str) -> None:
        await quart_websocket.accept()
        while True:
            text = await quart_websocket.receive()
            if text == "boom":
                raise ValueError("inside")
            if text == "bye":
                await quart_websocket.close(4001)
                return
            await quart_websocket.send(text)

    @app.websocket("/chat/<tenant>/closed")
    async def closed(**_raw: str) -> None:
        await quart_websocket.close(1000)

    @app.errorhandler(ValueError)
    async def answer(error: Exception) -> tuple[str, int]:
        await note_exception(error, quart_websocket.scope)
        return "sorry", 500

    return app


FRAMEWORKS: Final = {"fastapi": _fastapi, "starlette": _starlette, "litestar": _litestar, "quart": _quart}
ROOMS: Final = {"quart": "/chat/<tenant>/rooms/<room>"}
# Quart's close never reaches the client under granian, with or without the keeper.
PAIRS: Final = [
    (framework, server)
    for framework in FRAMEWORKS
    for server in SERVERS
    if (framework, server) != ("quart", "granian")
]


async def _wait_for_sockets(watched: Watched, count: int) -> None:
    for _ in range(250):
        if len(watched.sockets()) >= count:
            return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("framework", "server"), PAIRS)
async def test_websockets_of_each_framework_and_server(tmp_path: Path, framework: str, server: str) -> None:
    """Closed by either side, broken, refused, unknown and failed: one line and one count each."""
    make: Callable[[], Any] = FRAMEWORKS[framework]
    watched = watch(make(), tmp_path)
    watched.logging.install()
    async with serving(watched.app, server) as port:
        async with Connection(port, "/chat/a/rooms/1") as client:
            assert client.status == 101
            request_id = client.headers.get("x-request-id")
            for text in ("one", "two"):
                assert await client.send_and_receive(text) == text
            await client.close(1000)
        async with Connection(port, "/chat/a/rooms/2") as client:
            assert await client.send_and_receive("bye") == ""
            assert client.code == 4001
        async with Connection(port, "/chat/a/rooms/3") as client:
            assert await client.send_and_receive("one") == "one"
            client.cut()
        async with Connection(port, "/chat/a/rooms/4") as client:
            assert await client.send_and_receive("boom") == ""
        for path in ("/chat/a/closed", "/nothing/at/all"):
            async with Connection(port, path) as client:
                assert client.status in {403, 404}
        await _wait_for_sockets(watched, 6)
    logged = {line["url"]: line for line in watched.sockets()}
    assert len(watched.sockets()) == 6
    room = ROOMS.get(framework, "/chat/{tenant}/rooms/{room}")
    assert {line["route"] for url, line in logged.items() if "rooms" in url} == {room}
    assert logged["/nothing/at/all"]["route"] == "unmatched"
    first = logged["/chat/a/rooms/1"]
    assert [first[key] for key in ("outcome", "code", "received", "sent")] == ["completed", 1000, 2, 2]
    if server != "granian":  # granian drops the headers of a handshake
        assert first["requestId"] == request_id
    assert (logged["/chat/a/rooms/2"]["outcome"], logged["/chat/a/rooms/2"]["code"]) == ("completed", 4001)
    assert logged["/chat/a/rooms/3"]["outcome"] == "aborted"
    assert logged["/chat/a/rooms/4"]["outcome"] == "failed"
    assert logged["/chat/a/closed"]["outcome"] == logged["/nothing/at/all"]["outcome"] == "rejected"
    errors = [line for line in watched.lines() if line["level"] == "error"]
    assert [line["error"]["message"] for line in errors] == ["inside"]
    assert watched.registry.sample("websocket_connections_open", route=room) == 0.0
    assert watched.registry.sample("websocket_messages_total", route=room, direction="received") == 5.0
