from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware as StarletteMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from support.asgi import fetch, watch
from watchkeeper.http import resolve_route
from watchkeeper.http.routes import _starlette_index


async def _page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def _missing(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("no such thing", status_code=404)


async def _opaque(scope: Any, receive: Any, send: Any) -> None:
    status = 404 if scope["path"].endswith("gone") else 200
    await PlainTextResponse("opaque", status_code=status)(scope, receive, send)


class _Copying:
    """A middleware that passes on a copy of the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


class _Rooting:
    """A middleware that sets a root path, as FastAPI does if it is given one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.update(
            root_path="/elsewhere", path="/elsewhere" + scope["path"].removeprefix(scope["root_path"])
        )
        await self.app(scope, receive, send)


class _Wrapping:
    """A middleware that hides the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._wrapped = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._wrapped(scope, receive, send)


class _Things(HTTPEndpoint):
    async def get(self, _request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")


async def _socket(_websocket: Any) -> None:
    return


def _starlette(folder: Path) -> Starlette:
    inner = Starlette(routes=[Route("/leaf/{z:int}", _page), Route("/only", _page, methods=["POST"])])
    tenant = [
        Route("/users/{user}", _page),
        Mount("/deep/{level:int}", app=inner),
        WebSocketRoute("/feed", _socket),
    ]
    return Starlette(
        routes=[
            Route("/", _page),
            Route("/items/{item_id:int}", _page, methods=["GET", "DELETE"]),
            Route("/missing/{id}", _missing),
            Route("/things", _Things),
            Route("/files/{path:path}", _page),
            WebSocketRoute("/feed", _socket),
            Mount("/tenants/{tenant}", routes=tenant),
            Mount("/v1", app=inner),
            Mount("/v2", app=inner),
            Mount("/opaque", app=_opaque),
            Mount("/static", app=StaticFiles(directory=folder)),
            Mount("/wrapped/{who}", app=_Wrapping(inner)),
            Host(
                "{region}.example", app=Router([Route("/hosted/{id}", _page), Mount("/below/{x}", app=inner)])
            ),
        ]
    )


STARLETTE = [
    ("GET", "/", 200, "/"),
    ("GET", "/items/7", 200, "/items/{item_id}"),
    ("DELETE", "/items/7", 200, "/items/{item_id}"),
    ("HEAD", "/items/7", 200, "/items/{item_id}"),
    ("OPTIONS", "/items/7", 405, "unmatched"),
    ("POST", "/items/7", 405, "unmatched"),
    ("GET", "/items/seven", 404, "unmatched"),
    ("GET", "/items/7/", 307, "unmatched"),
    ("GET", "/missing/7", 404, "/missing/{id}"),
    ("GET", "/things", 200, "/things"),
    ("POST", "/things", 405, "unmatched"),
    ("GET", "/files/a/b/c", 200, "/files/{path}"),
    ("GET", "/feed", 404, "unmatched"),
    ("GET", "/nothing/here", 404, "unmatched"),
    ("GET", "/tenants/acme/users/7", 200, "/tenants/{tenant}/users/{user}"),
    ("GET", "/tenants/acme/nothing", 404, "unmatched"),
    ("GET", "/tenants/acme/feed", 404, "unmatched"),
    ("GET", "/tenants/acme", 307, "unmatched"),
    ("GET", "/tenants/acme/deep/3/leaf/9", 200, "/tenants/{tenant}/deep/{level}/leaf/{z}"),
    ("GET", "/tenants/acme/deep/3/only", 405, "unmatched"),
    ("GET", "/v1/leaf/3", 200, "/v1/leaf/{z}"),
    ("GET", "/v2/leaf/3", 200, "/v2/leaf/{z}"),
    ("GET", "/opaque/a/b", 200, "/opaque/{path}"),
    ("GET", "/opaque/gone", 404, "unmatched"),
    ("GET", "/static/file.txt", 200, "/static/{path}"),
    ("GET", "/static/../secret", 404, "unmatched"),
    ("GET", "/wrapped/me/leaf/3", 200, "/wrapped/{who}/leaf/{z}"),
    ("GET", "/wrapped/me/nothing", 404, "unmatched"),
]


@pytest.fixture
def starlette(tmp_path: Path) -> Starlette:
    """An app with every kind of route of Starlette."""
    (tmp_path / "file.txt").write_text("static")
    return _starlette(tmp_path)


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(("method", "path", "status", "route"), STARLETTE)
async def test_the_route_of_starlette_is_its_template_with_its_mounts(  # noqa: PLR0917 - a table
    tmp_path: Path, starlette: Starlette, method: str, path: str, status: int, route: str, root: str
) -> None:
    """No raw value of a path or mount is in a label, no match is unmatched, and a root path is left out."""
    watched = watch(starlette, tmp_path)
    assert (await fetch(watched.app, root + path, method, root_path=root)).status == status
    assert watched.routes() == {route}


@pytest.mark.parametrize(
    ("path", "route"), [("/hosted/7", "/hosted/{id}"), ("/below/raw/leaf/7", "/below/{x}/leaf/{z}")]
)
async def test_routes_contain_no_host(tmp_path: Path, starlette: Starlette, path: str, route: str) -> None:
    """The client chooses the host."""
    watched = watch(starlette, tmp_path)
    assert (await fetch(watched.app, path, headers=[(b"host", b"south.example")])).status == 200
    assert watched.routes() == {route}


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/anywhere/else", 200, "/anywhere/{here}"),
        ("/x/7/leaf/8", 200, "/x/{y}/leaf/{z}"),
        ("/no", 404, "unmatched"),
    ],
)
async def test_mounts_without_a_path_add_nothing(tmp_path: Path, path: str, status: int, route: str) -> None:
    """Mounts without a path only group routes."""
    below = [Mount("/x/{y}", routes=[Route("/leaf/{z}", _page)]), Route("/anywhere/{here}", _page)]
    watched = watch(Starlette(routes=[Mount("/opaque", app=_opaque), Mount("", routes=below)]), tmp_path)
    assert (await fetch(watched.app, path)).status == status
    assert watched.routes() == {route}


async def test_one_app_mounted_twice_is_two_routes(tmp_path: Path, starlette: Starlette) -> None:
    """Also in alternation, with raw values that repeat."""
    watched = watch(starlette, tmp_path)
    for _ in range(2):
        for path in ("/v1/leaf/1", "/v2/leaf/1", "/tenants/v1/deep/1/leaf/1"):
            assert (await fetch(watched.app, path)).status == 200
    assert watched.routes() == {"/v1/leaf/{z}", "/v2/leaf/{z}", "/tenants/{tenant}/deep/{level}/leaf/{z}"}


async def test_the_cache_of_mounts_is_bounded(tmp_path: Path, starlette: Starlette) -> None:
    """Three thousand tenants are one series."""
    from watchkeeper.http.routes import _starlette as resolver  # noqa: PLC0415 - a private module

    watched = watch(starlette, tmp_path, request_lines=False)
    for number in range(3000):
        await fetch(watched.app, f"/tenants/t{number}/users/u{number}")
    assert watched.routes() == {"/tenants/{tenant}/users/{user}"}
    assert len(resolver._prefixes) <= 1024


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/docs", "/docs"),
        ("/in/acme/docs", "/in/{tenant}/docs"),
        ("/in/acme/leaf", "/in/{tenant}/leaf"),
        ("/no", "unmatched"),
    ],
)
async def test_fastapi_below_hosts_is_found(tmp_path: Path, path: str, route: str) -> None:
    """One app for several hosts, without a route in the scope."""
    inside, other = FastAPI(), FastAPI(docs_url=None)
    inside.add_api_route("/leaf", _none)
    other.mount("/in/{tenant}", inside)
    app = Starlette(
        routes=[Host("one.example", app=inside), Host("two.example", app=other), Mount("/x", app=_opaque)]
    )
    app.router.routes.insert(0, Host("three.example", app=_opaque))
    host = b"one.example" if path == "/docs" else b"two.example"
    watched = watch(app, tmp_path)
    await fetch(watched.app, path, headers=[(b"host", host)])
    assert watched.routes() == {route}


async def test_a_copied_scope_leaves_the_route_unmatched(tmp_path: Path, starlette: Starlette) -> None:
    """The route is not guessed from the path."""
    watched = watch(_Copying(starlette), tmp_path)
    assert (await fetch(watched.app, "/items/7")).status == 200
    assert watched.routes() == {"unmatched"}


async def test_base_http_middleware_does_not_hide_the_route(tmp_path: Path) -> None:
    """Starlette's own middleware class keeps the scope."""

    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = Starlette(
        routes=[Route("/items/{id}", _page)],
        middleware=[StarletteMiddleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    watched = watch(app, tmp_path)
    assert (await fetch(watched.app, "/items/7")).status == 200
    assert watched.routes() == {"/items/{id}"}


async def _none() -> None:
    return


def _fastapi() -> FastAPI:
    app = FastAPI()
    inner = APIRouter(prefix="/inner")
    sub = FastAPI()
    rooted = FastAPI()

    async def endpoint() -> int:
        return 1

    inner.add_api_route("/x/{y}", endpoint)
    inner.add_route("/plain/{z}", _page)
    inner.mount("/opaque/{who}", _opaque)
    middle = APIRouter()
    middle.include_router(inner, prefix="/middle/{m}")
    middle.mount("/sub/{who}", sub)
    app.add_api_route("/direct/{a}", endpoint)
    app.add_api_websocket_route("/feed", _socket)
    app.add_route("/plain/{q}", _page)
    app.include_router(middle, prefix="/v1")
    app.include_router(middle, prefix="/v2/{tenant}")
    sub.add_api_route("/leaf/{z}", endpoint)
    sub.include_router(inner, prefix="/included")
    rooted.add_api_route("/leaf/{z}", endpoint)
    app.mount("/mounted/{tenant}", sub)
    app.mount("/rooted/{tenant}", _Rooting(rooted))
    app.mount("/opaque", _opaque)
    return app


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/direct/7", 200, "/direct/{a}"),
        ("HEAD", "/direct/7", 405, "unmatched"),
        ("OPTIONS", "/direct/7", 405, "unmatched"),
        ("POST", "/direct/7", 405, "unmatched"),
        ("GET", "/nothing", 404, "unmatched"),
        ("GET", "/feed", 404, "unmatched"),
        ("GET", "/plain/7", 200, "/plain/{q}"),
        ("GET", "/docs", 200, "/docs"),
        ("GET", "/openapi.json", 200, "/openapi.json"),
        ("GET", "/v1/middle/5/inner/x/7", 200, "/v1/middle/{m}/inner/x/{y}"),
        ("POST", "/v1/middle/5/inner/x/7", 405, "unmatched"),
        ("GET", "/v2/acme/middle/5/inner/x/7", 200, "/v2/{tenant}/middle/{m}/inner/x/{y}"),
        ("GET", "/v2/acme/middle/5/plain/7", 200, "/v2/{tenant}/middle/{m}/plain/{z}"),
        ("GET", "/v1/middle/5/opaque/me/a", 200, "/v1/middle/{m}/opaque/{who}/{path}"),
        ("GET", "/v1/middle/5/inner/nothing", 404, "unmatched"),
        ("GET", "/v1/sub/me/leaf/7", 200, "/v1/sub/{who}/leaf/{z}"),
        ("GET", "/v1/sub/me/nothing", 404, "unmatched"),
        ("GET", "/v1/sub/me/docs", 200, "/v1/sub/{who}/docs"),
        ("GET", "/mounted/acme/leaf/7", 200, "/mounted/{tenant}/leaf/{z}"),
        ("POST", "/mounted/acme/leaf/7", 405, "unmatched"),
        ("GET", "/mounted/acme/nothing", 404, "unmatched"),
        ("GET", "/mounted/acme/included/inner/x/7", 200, "/mounted/{tenant}/included/inner/x/{y}"),
        ("GET", "/opaque/a/b", 200, "/opaque/{path}"),
        ("GET", "/opaque/gone", 404, "unmatched"),
    ],
)
async def test_the_route_of_fastapi_is_its_template_with_prefixes_and_mounts(  # noqa: PLR0917 - a table
    tmp_path: Path, method: str, path: str, status: int, route: str, root: str
) -> None:
    """Included routers, mounts with parameters and plain routes."""
    watched = watch(_fastapi(), tmp_path)
    assert (await fetch(watched.app, root + path, method, root_path=root)).status == status
    assert watched.routes() == {route}


async def test_a_mounted_app_with_its_own_root_path_shows_no_raw_value(tmp_path: Path) -> None:
    """The mount cannot be found then: no route is better than a wrong one."""
    watched = watch(_fastapi(), tmp_path)
    assert (await fetch(watched.app, "/rooted/acme/leaf/7")).status == 200
    assert watched.routes() == {"unmatched"}


async def test_routes_that_are_added_later_are_found(tmp_path: Path) -> None:
    """The index is rebuilt when the number of routes changes."""
    app = Starlette(routes=[Route("/one/{a}", _page)])
    watched = watch(app, tmp_path)
    await fetch(watched.app, "/one/1")
    app.router.routes.append(Route("/two/{b}", _missing))
    app.router.routes.append(Route("/three/{c}", _page))
    for path in ("/two/2", "/three/3", "/one/1"):
        await fetch(watched.app, path)
    routes = [line["route"] for line in watched.requests()]
    assert routes == ["/one/{a}", "/two/{b}", "/three/{c}", "/one/{a}"]


async def test_an_endpoint_below_a_host_is_matched_again(tmp_path: Path) -> None:
    """It may belong to another route too."""
    below = Router([Route("/below/{a}", _page)])
    routes = [Host("{region}.example", app=below), Route("/above/{b}", _page)]
    watched = watch(Starlette(routes=routes), tmp_path)
    await fetch(watched.app, "/below/1", headers=[(b"host", b"eu.example")])
    await fetch(watched.app, "/above/1")
    assert [line["route"] for line in watched.requests()] == ["/below/{a}", "/above/{b}"]


def test_the_index_of_routers_is_bounded() -> None:
    """A service that creates apps while it runs does not leak them."""
    for _ in range(200):
        router = Router([Route("/one", _page)])
        assert resolve_route({"endpoint": _page, "router": router, "method": "GET", "path": "/one"}) == "/one"
    assert len(_starlette_index._indexes) <= 64
