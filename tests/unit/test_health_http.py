import asyncio
import contextlib
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from watchkeeper.exceptions import ConfigurationError, WatchkeeperError
from watchkeeper.health import HttpCheck, UnhealthyError
from watchkeeper.health._runner import CheckRunner
from watchkeeper.logs import RequestContext
from watchkeeper.logs._context import bind_request, unbind_request

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Server:
    """A local server that answers with raw bytes."""

    def __init__(self, answer: bytes | Behaviour) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def stop(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the next turn of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.requests or isinstance(self.answer, bytes):
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if not isinstance(self.answer, bytes):
                    await self.answer(reader, writer)
                    break
                writer.write(self.answer)
                await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def _serving(answer: bytes | Behaviour, **options: Any) -> AsyncIterator[_Server]:
    server = _Server(answer)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, **options)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.stop()


@contextlib.asynccontextmanager
async def _asking(
    answer: bytes | Behaviour, scheme: str = "http", seconds: float = 5.0, **options: Any
) -> AsyncIterator[tuple[HttpCheck, _Server]]:
    async with _serving(answer, **options) as server:
        check = HttpCheck(
            "gateway", f"{scheme}://127.0.0.1:{server.port}/health?a=b", timeout=timedelta(seconds=seconds)
        )
        try:
            yield check, server
        finally:
            await check.aclose()


JSON = {"Content_Type": "application/json"}


@pytest.mark.parametrize(
    "answer",
    [
        _answer("200 OK", b'{"ok":true,"status":"live"}', **JSON),
        _answer("200 OK", b'{"ok":true}', Content_Type="application/health+json; charset=utf-8"),
        _answer("200 OK", b'{"status":"live"}', **JSON),
        _answer("200 OK", b'\xef\xbb\xbf{"ok":true}', **JSON),
        _answer("200 OK", b"[]", **JSON),
        _answer("200 OK", b'"ok"', **JSON),
        _answer("200 OK", b"ok", Content_Type="text/plain"),
        _answer("200 OK", b"", **JSON),
        _answer("200 OK", b"OK"),
        _answer("299 Fine", b""),
        _answer("204 No Content"),
    ],
)
async def test_a_good_answer_is_healthy(answer: bytes) -> None:
    """A 2xx status without HTML, and without an `ok` other than true, is healthy."""
    async with _asking(answer) as (check, _):
        await check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_answer("200 OK", b'{"ok":false}', **JSON), "says that it is not ok"),
        (_answer("200 OK", b'{"ok":"true"}', **JSON), "says that it is not ok"),
        (_answer("200 OK", b'{"ok":1}', **JSON), "says that it is not ok"),
        (_answer("200 OK", b'{"ok":null}', **JSON), "says that it is not ok"),
        (_answer("200 OK", b'{"ok":false}', Content_Type="text/plain"), "says that it is not ok"),
        (_answer("200 OK", b' \n{"ok":false}'), "says that it is not ok"),
        (_answer("200 OK", b"<!DOCTYPE html><title>x</title>", Content_Type="text/html"), "is an HTML page"),
        (_answer("200 OK", b'{"ok":true}', Content_Type="text/html; charset=utf-8"), "is an HTML page"),
        (_answer("200 OK", b"  <!doctype HTML>"), "is an HTML page"),
        (_answer("200 OK", b"\xef\xbb\xbf<HTML>", Content_Type="text/plain"), "is an HTML page"),
        (_answer("200 OK", b"<?xml?>", Content_Type="application/xhtml+xml"), "is an HTML page"),
        (_answer("200 OK", b'{"ok":tr', **JSON), "is not valid JSON"),
        (_answer("200 OK", b"\xff\xfe", **JSON), "is not valid JSON"),
        (_answer("200 OK", b"{}{}", **JSON), "is not valid JSON"),
        (_answer("301 Moved", Location="/elsewhere"), "has the status 301"),
        (_answer("302 Found", Location="http://127.0.0.1:1/"), "has the status 302"),
        (_answer("304 Not Modified"), "has the status 304"),
        (_answer("404 Not Found", b'{"ok":true}', **JSON), "has the status 404"),
        (_answer("500 Oops", b'{"ok":true}', **JSON), "has the status 500"),
        (_answer("503 Later"), "has the status 503"),
    ],
)
async def test_a_bad_answer_is_unhealthy(answer: bytes, message: str) -> None:
    """An error, a redirect, an HTML page, and JSON that is broken or says `ok: false` are unhealthy."""
    async with _asking(answer) as (check, server):
        with pytest.raises(UnhealthyError, match=message):
            await check()
    assert len(server.requests) == 1


async def _silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(2000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _drip_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(2000):
        writer.write(b"X-%d: y\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("behaviour", [_silent, _drip, _drip_headers])
async def test_the_timeout_covers_the_whole_response(behaviour: Behaviour) -> None:
    """A server that keeps sending single bytes still times out."""
    async with _asking(behaviour, seconds=0.3) as (check, _):
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"^$"):
            await check()
        assert 0.25 < time.monotonic() - start < 50


async def test_a_large_body_is_not_read_to_its_end() -> None:
    """At most one mebibyte is read."""
    sent = 0

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        for _ in range(4096):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with _asking(endless, seconds=20) as (check, _):
        with pytest.raises(UnhealthyError, match="longer than 1048576 bytes"):
            await check()
    assert sent < 64 << 20


async def test_a_compressed_body_is_not_unpacked() -> None:
    """Compression is not requested, so a body that grows a thousandfold is not decompressed."""
    packed = gzip.compress(b'{"ok":true}' + b" " * 5_000_000)
    async with _asking(_answer("200 OK", packed, Content_Encoding="gzip", **JSON)) as (check, server):
        with pytest.raises(UnhealthyError, match="is not valid JSON"):
            await check()
    assert b"accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("garbage", [b"\0\1\2", b"HTTP/9.9 what\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
async def test_a_response_that_is_not_http_is_unhealthy(garbage: bytes) -> None:
    """Another protocol on the port is not a healthy service."""

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await writer.drain()

    async with _asking(speak) as (check, _):
        result = (await CheckRunner([check]).run())["gateway"]
    assert not result.ok
    assert result.error is not None
    assert result.error.startswith(("RemoteProtocolError", "ReadError"))


async def test_a_closed_port_is_unhealthy_at_once() -> None:
    """A refused connection fails without waiting for the timeout."""
    async with _serving(b"") as server:
        port = server.port
    check = HttpCheck("gateway", f"http://127.0.0.1:{port}/", timeout=timedelta(seconds=20))
    await check.aopen()
    result = (await CheckRunner([check]).run())["gateway"]
    assert result.latency < timedelta(seconds=10)
    assert result.error is not None
    assert result.error.startswith("ConnectError")


async def test_plain_text_where_tls_should_be_is_unhealthy() -> None:
    """The request is not sent in plain text either."""
    heard = bytearray()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(4096))
        writer.write(_answer("400 Bad Request"))
        writer.close()

    listening = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    check = HttpCheck("gateway", f"https://127.0.0.1:{port}/health", timeout=timedelta(seconds=20))
    result = (await CheckRunner([check]).run())["gateway"]
    listening.close()
    assert result.error is not None
    assert result.error.startswith("ConnectError")
    assert heard
    assert b"health" not in heard


async def test_tls_where_plain_text_should_be_is_unhealthy() -> None:
    """A server that expects TLS drops the plain request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with _asking(_answer(), ssl=context) as (check, _):
        assert not (await CheckRunner([check]).run())["gateway"].ok


async def test_connections_are_reused_and_closed() -> None:
    """Ten checks use one connection, and a closed check can be used again."""
    async with _asking(_answer("200 OK", b'{"ok":true}', **JSON)) as (check, server):
        for _ in range(10):
            await check()
        assert (server.connections, len(server.requests)) == (1, 10)
        await CheckRunner([check]).close()
        await check.aclose()
        await check()
        assert server.connections == 2


async def test_failed_checks_leak_no_connections() -> None:
    """A thousand failed checks leave no connection open."""
    async with _asking(_answer("503 Later", b"x" * 5000)) as (check, server):
        for _ in range(20):
            with pytest.raises(UnhealthyError, match="503"):
                await check()
    assert server.connections <= 2


async def test_the_trace_headers_are_sent() -> None:
    """The gateway's log lines can be found by the ids of ours."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    ids = RequestContext(request_id="order-7", trace_id=trace, span_id=span)
    async with _asking(_answer()) as (check, server):
        token = bind_request(ids)
        try:
            await CheckRunner([check]).run()
        finally:
            unbind_request(token)
        await check()
    first, second = (request.decode().lower() for request in server.requests)
    assert first.startswith("get /health?a=b http/1.1\r\n")
    assert "x-request-id: order-7\r\n" in first
    assert f"traceparent: 00-{trace}-{span}-01\r\n" in first
    assert "traceparent" not in second


async def test_credentials_in_the_url_are_sent_as_basic_authorization() -> None:
    """The password appears in no error."""
    async with _serving(_answer("403 Forbidden")) as server:
        check = HttpCheck("gateway", f"http://us%40er:p%C3%A9@127.0.0.1:{server.port}/health")
        await check.aopen()
        await check.aopen()
        result = (await CheckRunner([check]).run())["gateway"]
        await check.aclose()
    assert b"Authorization: Basic dXNAZXI6cMOp\r\n" in server.requests[0]
    assert result.error == "UnhealthyError: The response has the status 403."


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for external addresses must not handle a local gateway."""
    async with _serving(_answer("502 Bad Gateway")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with _asking(_answer()) as (check, server):
            await check()
        assert (len(server.requests), len(proxy.requests)) == (1, 0)


async def test_cookies_are_not_kept() -> None:
    """Every request is the same."""
    async with _asking(_answer("200 OK", Set_Cookie="a=b")) as (check, server):
        await check()
        await check()
    assert b"cookie" not in server.requests[1].lower()


@pytest.mark.parametrize("url", ["", "gateway:18789", "ftp://127.0.0.1/", "http://", "/health", "http:///x"])
def test_an_unusable_url_is_refused(url: str) -> None:
    """It is refused when the check is declared, and not shown, because it may contain a password."""
    with pytest.raises(ConfigurationError, match="'gateway' needs a URL such as http:") as error:
        HttpCheck("gateway", url)
    assert isinstance(error.value, WatchkeeperError)


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-1)])
def test_the_timeout_must_be_positive(timeout: timedelta) -> None:
    """With no time at all, every check would fail."""
    with pytest.raises(ConfigurationError, match="timeout of the check 'gateway' must be positive"):
        HttpCheck("gateway", "http://127.0.0.1/", timeout=timeout)


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is declared without httpx is refused with the name of the extra."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"needs httpx: install watchkeeper\[checks\]"):
        HttpCheck("gateway", "http://127.0.0.1/")
