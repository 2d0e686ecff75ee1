import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from litestar import Litestar, get
from litestar.background_tasks import BackgroundTask as LitestarTask
from litestar.params import FromPath
from litestar.response import Response as LitestarResponse
from litestar.response import Stream
from quart import Quart
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse
from starlette.responses import StreamingResponse as StarletteStream
from starlette.routing import Route

from support.asgi import SERVERS, serving, watch
from watchkeeper.http import note_exception
from watchkeeper.logs import current_request

SLOW: Final = 0.3
ENDED: Final[list[datetime]] = []


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(4):
        await asyncio.sleep(0.01)
        yield b"piece"


async def _later() -> None:
    await asyncio.sleep(SLOW)
    ENDED.append(datetime.now(UTC))


def _seen() -> str:
    context = current_request()
    return "" if context is None else context.request_id


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item_id}")
    def item(item_id: int) -> str:  # a sync endpoint, which FastAPI runs in a thread
        return f"{item_id}:{_seen()}"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_pieces())

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> str:
        tasks.add_task(_later)
        return "now"

    @app.get("/boom")
    async def boom() -> None:
        raise ValueError("secret inside")

    return app


def _starlette() -> Starlette:
    async def item(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.path_params['item_id']}:{_seen()}")

    async def stream(_request: Request) -> StarletteStream:
        return StarletteStream(_pieces())

    async def later(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("now", background=BackgroundTask(_later))

    async def boom(_request: Request) -> None:
        raise ValueError("secret inside")

    return Starlette(
        routes=[
            Route("/items/{item_id:int}", item),
            Route("/stream", stream),
            Route("/later", later),
            Route("/boom", boom),
        ]
    )


def _litestar() -> Litestar:
    @get("/items/{item_id:int}", sync_to_thread=True)
    def item(item_id: FromPath[int]) -> str:
        return f"{item_id}:{_seen()}"

    @get("/stream")
    async def stream() -> Stream:
        return Stream(_pieces())

    @get("/later")
    async def later() -> LitestarResponse[str]:
        return LitestarResponse("now", background=LitestarTask(_later))

    @get("/boom")
    async def boom() -> None:
        raise ValueError("secret inside")

    return Litestar(
        [item, stream, later, boom],
        logging_config=None,
        openapi_config=None,
        after_exception=[note_exception],
    )


def _quart() -> Quart:
    app = Quart(__name__)

    @app.get("/items/<int:item_id>")
    async def item(item_id: int) -> str:
        return f"{item_id}:{_seen()}"

    @app.get("/stream")
    async def stream() -> Any:
        return _pieces()

    @app.get("/later")
    async def later() -> str:
        app.add_background_task(_later)
        return "now"

    @app.get("/boom")
    async def boom() -> str:
        raise ValueError("secret inside")

    return app


FRAMEWORKS: Final = {"fastapi": _fastapi, "starlette": _starlette, "litestar": _litestar, "quart": _quart}
ITEM_ROUTES: Final = {"quart": "/items/<int:item_id>"}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_an_app_of_each_framework_on_each_server(tmp_path: Path, framework: str, server: str) -> None:
    """Ids in the handler, the template of the route, streams, background work, failures and unknown paths."""
    make: Callable[[], Any] = FRAMEWORKS[framework]
    ENDED.clear()
    watched = watch(make(), tmp_path)
    watched.logging.install()
    async with (
        serving(watched.app, server) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        item = await client.get("/items/7", headers={"X-Request-ID": "order-7"})
        assert (item.text.strip('"'), item.headers["x-request-id"]) == ("7:order-7", "order-7")
        assert (await client.get("/stream")).content == b"piece" * 4
        assert (await client.get("/later")).text.strip('"') == "now"
        assert (await client.get("/nothing/at/all")).status_code == 404
        assert (await client.put("/items/7")).status_code == 405
        boom = await client.get("/boom")
        assert boom.status_code == 500
        assert "secret inside" not in boom.text
        while not ENDED:  # noqa: ASYNC110 - set by the app
            await asyncio.sleep(0.01)
    logged = {line["url"]: line for line in watched.requests()}
    assert {url: line["route"] for url, line in logged.items()} == {
        "/items/7": "unmatched",  # the last one was the 405
        "/stream": "/stream",
        "/later": "/later",
        "/nothing/at/all": "unmatched",
        "/boom": "/boom",
    }
    assert watched.count(ITEM_ROUTES.get(framework, "/items/{item_id}"), 200) == 1.0
    assert logged["/stream"]["bytes"] == 20
    assert logged["/stream"]["duration"] >= 40
    assert datetime.fromisoformat(logged["/later"]["time"]) < ENDED[-1]
    assert logged["/boom"]["statusCode"] == 500
    errors = [line for line in watched.lines() if line["level"] == "error"]
    assert [line["error"]["message"] for line in errors] == ["secret inside"]
    assert errors[0]["requestId"] == logged["/boom"]["requestId"]
    if framework != "quart":  # whose exceptions are known only through an error handler
        assert logged["/boom"]["outcome"] == "failed"


@pytest.mark.parametrize("server", SERVERS)
async def test_the_bytes_of_a_file_are_counted(tmp_path: Path, server: str) -> None:
    """Also if the server sends the file itself, as granian does."""
    (tmp_path / "picture").write_bytes(b"x" * 300_000)

    async def picture(_request: Request) -> FileResponse:
        return FileResponse(tmp_path / "picture")

    watched = watch(Starlette(routes=[Route("/picture", picture)]), tmp_path)
    async with (
        serving(watched.app, server) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        assert len((await client.get("/picture")).content) == 300_000
        assert (await client.head("/picture")).headers["content-length"] == "300000"
    assert [(line["method"], line["bytes"], line["outcome"]) for line in watched.requests()] == [
        ("GET", 300_000, "completed"),
        ("HEAD", 0, "completed"),
    ]
