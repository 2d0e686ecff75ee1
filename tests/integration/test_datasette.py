"""Datasette is a real ASGI application with its own router: https://datasette.io."""

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasette.app import Datasette  # type: ignore[import-untyped] # it has no types

from support.asgi import serving
from watchkeeper import Settings, Watchkeeper

ROWS = 20_000


@pytest.fixture
def datasette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Datasette]:
    """Datasette with a small database."""
    # A bug of Datasette 0.65: with rich installed it prints 404s, and fails if nothing was raised.
    monkeypatch.setattr("datasette.handle_exception.rich", None)
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("create table items (id integer primary key, name text)")
        database.executemany(
            "insert into items (name) values (?)", [(f"item {number}",) for number in range(ROWS)]
        )
    database.close()
    app = Datasette([str(tmp_path / "shop.db")], settings={"max_csv_mb": 0})
    yield app
    for one in app.databases.values():
        one.close()
    app.executor.shutdown()


def resolver_of(datasette: Datasette) -> Callable[[Any], str]:
    """Return an adapter that matches Datasette's own patterns again: it leaves nothing in the scope."""
    routes = [pattern for pattern, _ in datasette._routes()]

    def resolve(scope: Any) -> str:
        pattern = next((one for one in routes if one.match(scope["path"])), None)
        return "unmatched" if pattern is None else _template_of(pattern.pattern)

    return resolve


def _template_of(pattern: str) -> str:
    without_format = re.sub(r"\(\\\.\(\?P<format>[^()]*\)\)\?", "", pattern.removesuffix("$"))
    return re.sub(r"\(\?P<(\w+)>[^()]*\)", r"{\1}", without_format).replace("\\", "")


async def _play(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        page = await client.get("/")
        assert (page.status_code, "shop" in page.text) == (200, True)
        assert re.fullmatch("[0-9a-f]{32}", page.headers["x-request-id"])
        assert (await client.get("/shop/items")).status_code == 200
        assert (await client.get("/shop/items/7.json")).json()["rows"][0][1] == "item 6"
        assert (await client.get("/shop/nothing")).status_code == 404
        assert (await client.get("/a/b/c/d")).status_code == 404
        assert (await client.head("/-/static/app.css")).status_code == 200
        assert len((await client.get("/-/static/app.css")).content) > 10_000
        table = await client.get("/shop/items.csv", params={"_stream": "on"})
        assert len(list(csv.reader(io.StringIO(table.text)))) == ROWS + 1


@contextlib.asynccontextmanager
async def _serving_kept(
    datasette: Datasette, folder: Path
) -> AsyncIterator[tuple[int, Callable[[], list[dict[str, Any]]]]]:
    """Serve Datasette with a keeper; yields the port and a function that reads the lines."""
    file = os.open(folder / "lines", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
    keeper = Watchkeeper("data", settings=Settings(service="data", state_dir=folder), lines_to=file)
    app = keeper.wrap(datasette.app(), resolve_route=resolver_of(datasette))
    await keeper.start()

    def lines() -> list[dict[str, Any]]:
        keeper.logging.flush()
        return [json.loads(line) for line in (folder / "lines").read_bytes().splitlines()]

    try:
        async with serving(app) as port:
            yield port, lines
    finally:
        await keeper.stop()
        os.close(file)


async def test_datasette_with_an_adapter(datasette: Datasette, tmp_path: Path) -> None:
    """Pages, JSON, 404s, static files, a streamed CSV: one count and one line each, by pattern."""
    async with _serving_kept(datasette, tmp_path) as (port, lines):
        await _play(port)
        async with httpx.AsyncClient(trust_env=False) as client:
            metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        logged = [line for line in lines() if line.get("type") == "request"]
    assert [(line["method"], line["route"], line["statusCode"], line["outcome"]) for line in logged] == [
        ("GET", "/", 200, "completed"),
        ("GET", "/{database}/{table}", 200, "completed"),
        ("GET", "/{database}/{table}/{pks}", 200, "completed"),
        ("GET", "/{database}/{table}", 404, "completed"),
        ("GET", "unmatched", 404, "completed"),
        ("HEAD", "/-/static/{path}", 200, "completed"),
        ("GET", "/-/static/{path}", 200, "completed"),
        ("GET", "/{database}/{table}", 200, "completed"),
    ]
    assert logged[-1]["bytes"] > 10 * ROWS
    assert [line for line in lines() if line["level"] != "info"] == []
    assert 'http_requests_total{method="GET",route="/{database}/{table}",status="200"} 2.0' in metrics


async def test_leaving_datasettes_stream_is_aborted(datasette: Datasette, tmp_path: Path) -> None:
    """Datasette does not receive while it streams: the poll before the last byte notices."""
    async with _serving_kept(datasette, tmp_path) as (port, lines):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /shop/items.csv?_stream=on HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"item 1")
        writer.transport.abort()
        for _ in range(250):
            logged = [line for line in lines() if line.get("type") == "request"]
            if logged:
                break
            await asyncio.sleep(0.02)
    assert [(line["route"], line["statusCode"], line["outcome"]) for line in logged] == [
        ("/{database}/{table}", 200, "aborted")
    ]
