from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Litestar, get
from litestar.params import FromPath
from quart import Quart
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from support.asgi import fetch, watch


async def _page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def _starlette() -> Starlette:
    return Starlette(routes=[Route("/items/{item_id}", _page)])


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        return item_id

    return app


def _litestar() -> Any:
    @get("/items/{item_id:str}")
    async def item(item_id: FromPath[str]) -> str:
        return item_id

    return Litestar([item], logging_config=None, openapi_config=None)


def _quart() -> Any:
    app = Quart(__name__)

    @app.get("/items/<item_id>")
    async def item(item_id: str) -> str:
        return item_id

    return app


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(
    ("outer", "inner", "item"),
    [
        (_starlette, _litestar, "{item_id}"),
        (_fastapi, _starlette, "{item_id}"),
        (_starlette, _quart, "<item_id>"),
        (_fastapi, _quart, "<item_id>"),
    ],
)
async def test_route_of_a_mounted_app_has_its_mount(
    tmp_path: Path, outer: Any, inner: Any, item: str, root: str
) -> None:
    """The outer app's own routes are not changed."""
    app = outer()
    app.mount("/inner/{tenant}", inner())
    watched = watch(app, tmp_path)
    assert (await fetch(watched.app, root + "/inner/a/items/7", root_path=root)).status == 200
    assert (await fetch(watched.app, root + "/items/7", root_path=root)).status == 200
    assert (await fetch(watched.app, root + "/inner/a/nothing", root_path=root)).status == 404
    assert (await fetch(watched.app, root + "/inner/a/items/7", "PUT", root_path=root)).status == 405
    routes = [line["route"] for line in watched.requests()]
    assert routes == [f"/inner/{{tenant}}/items/{item}", "/items/{item_id}", "unmatched", "unmatched"]
