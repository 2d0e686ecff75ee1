"""The same small service in four frameworks, without monitoring, which is added elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper import Settings, Watchkeeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    ASGIApp = Callable[..., Awaitable[None]]
    Scope = MutableMapping[str, Any]


def bare_fastapi() -> Any:
    """Return the service in FastAPI."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/items/{item_id}")
    async def read_item(item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "item"}

    return app


def bare_starlette() -> Any:
    """Return the service in Starlette."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def read_item(request: Any) -> JSONResponse:
        return JSONResponse({"id": int(request.path_params["item_id"]), "name": "item"})

    return Starlette(routes=[Route("/items/{item_id}", read_item)])


def bare_litestar() -> Any:
    """Return the service in Litestar."""
    from litestar import Litestar, get

    @get("/items/{item_id:int}")
    async def read_item(item_id: int) -> dict[str, object]:
        return {"id": item_id, "name": "item"}

    return Litestar([read_item], logging_config=None, openapi_config=None)


def bare_asgi() -> ASGIApp:
    """Return the service as a plain ASGI app, which answers every path."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"23")]

    async def app(_scope: Scope, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id":7,"name":"item"}\n'})

    return app


def keeper(**settings: Any) -> Watchkeeper:
    """Return a keeper without a database, which logs to standard output."""
    return Watchkeeper("bench", settings=Settings(service="bench", **settings), database=False)


def watched_fastapi() -> ASGIApp:
    """Return the service in FastAPI, monitored by Watchkeeper."""
    return keeper().wrap(bare_fastapi())


def watched_litestar() -> ASGIApp:
    """Return the service in Litestar, monitored by Watchkeeper."""
    return keeper().wrap(bare_litestar())
