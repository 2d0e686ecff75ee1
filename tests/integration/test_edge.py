import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.asgi import SERVERS, Watched, response_body, response_start, serving, speak, watch
from watchkeeper.health._runner import CheckRunner
from watchkeeper.settings import Secret

pytestmark = pytest.mark.parametrize("server", SERVERS)

TOKEN = "t0ken-of-the-test"


class _Switched:
    """A check whose result can be changed."""

    name = "db"
    ok = True

    async def __call__(self) -> None:
        if not self.ok:
            raise OSError("db.internal refused")


async def _app(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    if path == "/boom":
        raise ValueError("secret inside")
    if path == "/upload":
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = str(size).encode()
    else:
        body = json.dumps({"path": path, "host": str(scope["client"])}).encode()
    await send(response_start(200, (b"content-type", b"application/json")))
    if path == "/stream":
        for _ in range(5):
            await send(response_body(b"x" * 1000, more=True))
            await asyncio.sleep(0.01)
    if path in {"/cut", "/stops"}:
        await send(response_body(b"half", more=True))
        if path == "/stops":
            return
        raise ValueError("in the middle")
    await send(response_body(body))


def _client(port: int, **more: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False, **more)


def _scraped(text: str, name: str, **labels: str) -> float:
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return next(
        (float(line.split(" ")[1]) for line in text.splitlines() if line.startswith(f"{name}{{{wanted}}} ")),
        0.0,
    )


async def test_metrics_agree_with_the_client(tmp_path: Path, server: str) -> None:
    """Many concurrent requests, some failing: the scrape agrees exactly, and so do the lines."""
    watched = watch(_app, tmp_path, resolve_route=lambda scope: str(scope["path"]))
    async with serving(watched.app, server) as port, _client(port) as client:

        async def play(number: int) -> tuple[str, int, str]:
            path = ("/a", "/stream", "/boom", "/upload")[number % 4]
            reply = await client.request("POST" if path == "/upload" else "GET", path, content=b"y" * number)
            return path, reply.status_code, reply.headers["x-request-id"]

        replies = await asyncio.gather(*(play(number) for number in range(80)))
        text = (await client.get("/metrics")).text
    for path, status, method in (
        ("/a", 200, "GET"),
        ("/stream", 200, "GET"),
        ("/boom", 500, "GET"),
        ("/upload", 200, "POST"),
    ):
        labels = {"method": method, "route": path}
        assert _scraped(text, "http_requests_total", status=str(status), **labels) == 20.0
        assert _scraped(text, "http_request_duration_seconds_count", **labels) == 20.0
    logged = {(line["route"], line["statusCode"], line["requestId"]) for line in watched.requests()}
    assert logged == set(replies)


async def test_the_contracts_probes_work_over_the_wire(tmp_path: Path, server: str) -> None:
    """Bodies and statuses byte for byte, GET and HEAD, up and down."""
    check = _Switched()
    runner = CheckRunner([check], ttl=timedelta(0))
    watched = watch(_app, tmp_path, checks=runner)
    async with serving(watched.app, server) as port, _client(port) as client:
        up = await client.get("/health")
        assert (up.status_code, up.content) == (200, b'{"status":"ok","db":"connected"}')
        assert up.headers["content-type"] == "application/json"
        assert up.headers["cache-control"] == "no-store"
        head = await client.head("/health")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(up.content)))
        assert (await client.get("/health/detailed")).content == b'{"status":"ok","checks":{"db":true}}'
        assert (await client.get("/livez")).content == b'{"status":"ok"}'
        check.ok = False
        down = await client.get("/health")
        assert (down.status_code, down.content) == (503, b'{"status":"error","db":"disconnected"}')
        assert (await client.get("/health/detailed")).status_code == 503
        refused = await client.post("/health", content=b"x")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.get("/health/")).json()["path"] == "/health/"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:3001\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:3001\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:3001\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-FORWARDED-FOR: 127.0.0.1\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nVia: 1.1 proxy\r\n\r\n", 403),
        (b"GET http://localhost/metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    ],
)
async def test_metrics_open_to_local_scrapes(tmp_path: Path, server: str, sent: bytes, status: int) -> None:
    """By the peer, version, `Host` and headers that the real server passes on."""
    watched = watch(_app, tmp_path)
    async with serving(watched.app, server) as port:
        reply = await speak(port, sent, seconds=1, until=b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] (\d+)", reply)[1] == str(status).encode()  # type: ignore[index] # it matches


async def test_the_token_opens_metrics_over_the_wire(tmp_path: Path, server: str) -> None:
    """Without it 401 with a challenge, with it the metrics."""
    watched = watch(_app, tmp_path, metrics_token=Secret(TOKEN))
    async with serving(watched.app, server) as port, _client(port) as client:
        closed = await client.get("/metrics")
        assert (closed.status_code, closed.headers["www-authenticate"]) == (401, 'Bearer realm="metrics"')
        opened = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert opened.status_code == 200
        detailed = await client.get("/health/detailed", headers={"Authorization": f"Bearer {TOKEN}"})
        assert "details" in detailed.json()
        assert "details" not in (await client.get("/health/detailed")).json()


@pytest.mark.parametrize("path", ["/cut", "/stops"])
async def test_half_a_response_ends_the_connection(tmp_path: Path, server: str, path: str) -> None:
    """The chunked body has no end, so the client knows that it is incomplete."""
    watched = watch(_app, tmp_path)
    async with serving(watched.app, server) as port:
        reply = await speak(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), seconds=5)
        again = await speak(port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", seconds=1, until=b"}")
    assert b"half" in reply
    assert not reply.endswith(b"0\r\n\r\n")
    assert b'{"status":"ok"}' in again
    assert [(line["statusCode"], line["outcome"]) for line in watched.requests()] == [(200, "failed")]


async def test_a_failure_leaves_the_connection_usable(tmp_path: Path, server: str) -> None:
    """After a complete 500 the next request uses the same connection."""
    watched = watch(_app, tmp_path)
    request = b"GET /boom HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(watched.app, server) as port:
        reply = await speak(port, request, request, pause=0.2, seconds=2)
    assert reply.count(b"500 Internal Server Error") == 2
    assert reply.count(b'"code":"internal_error"') == 2
    assert b"secret inside" not in reply


async def test_nothing_can_be_injected_through_ids(tmp_path: Path, server: str) -> None:
    """An invalid id appears neither as a header nor in a line."""
    watched = watch(_app, tmp_path)
    evil = b"GET /a HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x0bSet-Cookie: x=1\r\nTraceparent: 00-\x85\r\n\r\n"
    async with serving(watched.app, server) as port:
        reply = await speak(port, evil, seconds=1, until=b"\r\n\r\n")
        head = b"GET /a HTTP/1.1\r\nHost: x\r\nX-Request-ID: my-id.7\r\n\r\n"
        good = await speak(port, head, seconds=1, until=b"}")
    assert b"set-cookie" not in reply.lower()
    assert b"x-request-id: my-id.7\r\n" in good.lower()
    assert [line["requestId"] for line in watched.requests()][-1] == "my-id.7"


async def test_the_url_of_the_line_is_as_it_was_sent(tmp_path: Path, server: str) -> None:
    """Escapes are kept, and the query is complete, except for a secret in it."""
    watched = watch(_app, tmp_path)
    async with serving(watched.app, server) as port:
        head = b"GET /caf%C3%A9/%0d%0a?q=%00&r=a+b&access_token=abc123 HTTP/1.1\r\nHost: x\r\n\r\n"
        await speak(port, head, seconds=1, until=b"}")
    assert watched.requests()[0]["url"] == "/caf%C3%A9/%0d%0a?q=%00&r=a+b&access_token=***"


async def _leave(port: int, request: bytes, after: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    await asyncio.sleep(after)
    del reader
    writer.transport.abort()


async def _wait_for_lines(watched: Watched, count: int) -> None:
    for _ in range(200):
        if len(watched.requests()) >= count:
            return
        await asyncio.sleep(0.02)


async def test_clients_may_leave_at_any_time(tmp_path: Path, server: str) -> None:
    """During the upload or the response: one line each, no 5xx, and the next request is served."""
    watched = watch(_app, tmp_path)
    async with serving(watched.app, server) as port, _client(port) as client:
        await _leave(port, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf", 0.1)
        await _leave(port, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n", 0.01)
        await _wait_for_lines(watched, 2)
        assert (await client.get("/a")).status_code == 200
    logged = {line["url"]: (line["statusCode"], line["outcome"]) for line in watched.requests()}
    assert logged["/upload"] == (499, "aborted")
    assert logged["/stream"][0] == 200
    assert [line for line in watched.lines() if line["level"] == "error"] == []
