import warnings
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from litestar import Controller, Litestar, Router, asgi, get, post
from litestar.params import FromPath
from quart import Blueprint, Quart
from starlette.responses import PlainTextResponse

from support.asgi import fetch, watch
from watchkeeper.http import note_exception


@get("/items/{item_id:int}", sync_to_thread=False)
def _item(item_id: FromPath[int]) -> str:
    return str(item_id)


@get("/files/{path:path}", sync_to_thread=False)
def _file(path: FromPath[str]) -> str:
    return path


@get("/", sync_to_thread=False)
def _root() -> str:
    return "root"


@post("/boom", sync_to_thread=False)
def _boom() -> None:
    raise ValueError("hidden by the framework")


class _Things(Controller):
    path = "/things"

    @get("/{name:str}", sync_to_thread=False)
    def one(self, name: FromPath[str]) -> str:
        return name


async def _opaque(scope: Any, receive: Any, send: Any) -> None:
    status = 404 if scope["path"].rstrip("/").endswith("gone") else 200
    await PlainTextResponse("opaque", status_code=status)(scope, receive, send)


def _litestar(**options: Any) -> Litestar:
    inside = FastAPI()

    async def leaf() -> int:
        return 1

    inside.add_api_route("/leaf/{z}/", leaf)

    @asgi("/opaque", is_mount=True, copy_scope=True)
    async def opaque(scope: Any, receive: Any, send: Any) -> None:
        await _opaque(scope, receive, send)

    @asgi(["/one", "/two"], is_mount=True, copy_scope=True)
    async def either(scope: Any, receive: Any, send: Any) -> None:
        await _opaque(scope, receive, send)

    @asgi("/inside", is_mount=True, copy_scope=False)
    async def framework(scope: Any, receive: Any, send: Any) -> None:
        await inside(scope, receive, send)

    group = Router("/group/", route_handlers=[_Things, either, framework])
    handlers: list[Any] = [_root, _item, _file, _boom, opaque, group]
    return Litestar(handlers, logging_config=None, openapi_config=None, **options)


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/", 200, "/"),
        ("GET", "/items/7", 200, "/items/{item_id}"),
        ("GET", "/items/7/", 200, "/items/{item_id}"),
        ("GET", "/items/seven", 404, "unmatched"),
        ("POST", "/items/7", 405, "unmatched"),
        ("HEAD", "/items/7", 405, "unmatched"),
        ("OPTIONS", "/items/7", 204, "/items/{item_id}"),
        ("GET", "/files/a/b", 200, "/files/{path}"),
        ("GET", "/nothing", 404, "unmatched"),
        ("POST", "/boom", 500, "/boom"),
        ("GET", "/group/things/x", 200, "/group/things/{name}"),
        ("GET", "/opaque", 200, "/opaque/{path}"),
        ("GET", "/opaque/raw/value", 200, "/opaque/{path}"),
        ("GET", "/opaque/gone", 404, "unmatched"),
        ("GET", "/group/one/raw", 200, "/group/one/{path}"),
        ("GET", "/group/two/raw", 200, "/group/two/{path}"),
        ("GET", "/group/inside/leaf/7", 200, "/group/inside/leaf/{z}/"),
        ("GET", "/group/inside/nothing", 404, "unmatched"),
    ],
)
async def test_the_route_of_litestar_is_its_template_with_its_mounts(  # noqa: PLR0917 - a table
    tmp_path: Path, method: str, path: str, status: int, route: str, root: str
) -> None:
    """Handlers, controllers, routers, mounts on several paths, and another framework's app below one."""
    watched = watch(_litestar(), tmp_path)
    assert (await fetch(watched.app, root + path, method, root_path=root)).status == status
    assert watched.routes() == {route}
    assert watched.requests()[0]["url"] == root + path


async def test_a_litestar_mount_on_several_paths_needs_the_raw_path(tmp_path: Path) -> None:
    """Without it the mount is ambiguous."""
    watched = watch(_litestar(), tmp_path)
    assert (await fetch(watched.app, "/group/one/raw", raw_path=None)).status == 200
    assert watched.routes() == {"unmatched"}
    assert [line["level"] for line in watched.lines()] == ["info"]


async def test_an_exception_in_litestar_is_logged_by_its_hook(tmp_path: Path) -> None:
    """Once: Litestar answers and raises nothing. Its own 404 reaches the hook too, and is no failure."""
    watched = watch(_litestar(after_exception=[note_exception]), tmp_path)
    reply = await fetch(watched.app, "/boom", "POST")
    assert (reply.status, reply.error) == (500, None)
    exception, request = watched.lines()
    assert exception["error"]["message"] == "hidden by the framework"
    assert (request["statusCode"], request["outcome"], request["route"]) == (500, "failed", "/boom")
    await fetch(watched.app, "/nothing")
    assert [(line["statusCode"], line["outcome"]) for line in watched.lines()[2:]] == [(404, "completed")]


def _quart(**options: Any) -> Quart:
    app = Quart(__name__, **options)
    blueprint = Blueprint("things", __name__, url_prefix="/things")

    @app.get("/items/<int:item_id>")
    async def item(item_id: int) -> str:
        return str(item_id)

    @app.websocket("/feed")
    async def feed() -> None:
        return

    @app.post("/boom")
    async def boom() -> str:
        raise ValueError("hidden by the framework")

    @blueprint.get("/<name>/")
    async def one(name: str) -> str:
        return name

    app.register_blueprint(blueprint)
    return app


@pytest.mark.parametrize("root", ["", "/prefix"])
@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/items/7", 200, "/items/<int:item_id>"),
        ("HEAD", "/items/7", 200, "/items/<int:item_id>"),
        ("OPTIONS", "/items/7", 200, "/items/<int:item_id>"),
        ("POST", "/items/7", 405, "unmatched"),
        ("GET", "/items/seven", 404, "unmatched"),
        ("GET", "/things/x/", 200, "/things/<name>/"),
        ("GET", "/things/x", 308, "unmatched"),
        ("GET", "/feed", 400, "unmatched"),
        ("GET", "/nothing", 404, "unmatched"),
    ],
)
async def test_the_route_of_quart_is_its_rule(  # noqa: PLR0917 - a table
    tmp_path: Path, method: str, path: str, status: int, route: str, root: str
) -> None:
    """Quart leaves nothing in the scope, so its URL map is matched again."""
    watched = watch(_quart(), tmp_path)
    assert (await fetch(watched.app, root + path, method, root_path=root)).status == status
    assert watched.routes() == {route}


async def test_an_exception_in_quart_is_logged_by_its_error_handler(tmp_path: Path) -> None:
    """Once: Quart answers and raises nothing."""
    app = _quart()

    @app.errorhandler(Exception)
    async def answer(error: Exception) -> tuple[str, int]:
        from quart import request  # noqa: PLC0415 - beside its only use

        await note_exception(error, request.scope)
        return "sorry", 500

    watched = watch(app, tmp_path)
    assert (await fetch(watched.app, "/boom", "POST")).status == 500
    exception, request_line = watched.lines()
    assert exception["error"]["message"] == "hidden by the framework"
    assert (request_line["statusCode"], request_line["outcome"]) == (500, "failed")


async def test_a_client_that_leaves_quart_is_aborted(tmp_path: Path) -> None:
    """Quart cancels its handler and returns without a response."""
    app = Quart(__name__)

    @app.post("/slow")
    async def slow() -> str:
        from quart import request  # noqa: PLC0415 - beside its only use

        return str(await request.get_data())

    watched = watch(app, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reply = await fetch(watched.app, "/slow", "POST", body=[b"half"], leaves=True)
    assert reply.error is None
    assert [(line["statusCode"], line["outcome"]) for line in watched.lines()] == [(499, "aborted")]
