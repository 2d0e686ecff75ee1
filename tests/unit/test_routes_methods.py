from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from litestar import Litestar, get
from litestar.params import FromPath  # noqa: TC002 - Litestar reads the annotations
from quart import Quart
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from support.asgi import fetch, watch

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request


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


@pytest.mark.parametrize(
    ("make", "method", "status", "route"),
    [
        (_starlette, "HEAD", 200, "/items/{item_id}"),
        (_starlette, "OPTIONS", 405, "unmatched"),
        (_fastapi, "HEAD", 405, "unmatched"),
        (_fastapi, "OPTIONS", 405, "unmatched"),
        (_litestar, "HEAD", 405, "unmatched"),
        (_litestar, "OPTIONS", 204, "/items/{item_id}"),
        (_quart, "HEAD", 200, "/items/<item_id>"),
        (_quart, "OPTIONS", 200, "/items/<item_id>"),
    ],
)
async def test_head_and_options_have_their_route(
    tmp_path: Path, make: Any, method: str, status: int, route: str
) -> None:
    """They are answered for the route or refused as 405; HEAD sends no bytes."""
    watched = watch(make(), tmp_path)
    assert (await fetch(watched.app, "/items/7", method)).status == status
    (line,) = watched.requests()
    assert (line["route"], line["outcome"]) == (route, "completed")
    assert watched.count(route, status, method) == 1.0
    if method == "HEAD":
        assert line["bytes"] == 0


def _litestar_in_starlette() -> Any:
    return Starlette(routes=[Mount("/inner/{tenant}", app=_litestar()), Route("/items/{item_id}", _page)])


def _starlette_in_fastapi() -> Any:
    app = _fastapi()
    app.mount("/inner/{tenant}", _starlette())
    return app


def _quart_in_starlette() -> Any:
    return Starlette(routes=[Mount("/inner/{tenant}", app=_quart()), Route("/items/{item_id}", _page)])


def _quart_in_fastapi() -> Any:
    app = _fastapi()
    app.mount("/inner/{tenant}", _quart())
    return app


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(
    ("make", "route"),
    [
        (_litestar_in_starlette, "/inner/{tenant}/items/{item_id}"),
        (_starlette_in_fastapi, "/inner/{tenant}/items/{item_id}"),
        (_quart_in_starlette, "/inner/{tenant}/items/<item_id>"),
        (_quart_in_fastapi, "/inner/{tenant}/items/<item_id>"),
    ],
)
async def test_route_of_a_mounted_app_has_its_mount(tmp_path: Path, make: Any, route: str, root: str) -> None:
    """The outer app's own routes are not changed."""
    watched = watch(make(), tmp_path)
    assert (await fetch(watched.app, root + "/inner/a/items/7", root_path=root)).status == 200
    assert (await fetch(watched.app, root + "/items/7", root_path=root)).status == 200
    assert (await fetch(watched.app, root + "/inner/a/nothing", root_path=root)).status == 404
    assert (await fetch(watched.app, root + "/inner/a/items/7", "PUT", root_path=root)).status == 405
    assert [line["route"] for line in watched.requests()] == [
        route,
        "/items/{item_id}",
        "unmatched",
        "unmatched",
    ]
