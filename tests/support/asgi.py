"""ASGI apps driven in process, message by message, and behind real servers on a free port."""

import asyncio
import contextlib
import json
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from granian.server.embed import Server as EmbeddedGranian

from support.metrics import ScrapedRegistry
from watchkeeper.health._runner import CheckRunner
from watchkeeper.http._endpoints import Endpoints
from watchkeeper.http._middleware import Middleware
from watchkeeper.http._recorder import RecorderConfig
from watchkeeper.http.routes._resolve import resolver_for
from watchkeeper.logs import Redactor
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics._websockets import WebsocketMetrics
from watchkeeper.settings import Settings

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]

SERVERS: Final = ("uvicorn", "granian")
LOCAL_HOST: Final = (b"host", b"127.0.0.1:3001")


def scope_of(path: str = "/", method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return an HTTP scope as a server makes it, from a client on this machine; `more` overrides keys."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [LOCAL_HOST],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 3001),
        "state": {},
        "extensions": {},
    }
    return scope | more


def response_start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    """Return the message that starts a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def response_body(content: bytes = b"", *, more: bool = False) -> Message:
    """Return a message with a part of a response's body; the last one by default."""
    return {"type": "http.response.body", "body": content, "more_body": more}


def sends(*steps: Message | Exception | None) -> App:
    """Return an app that sends messages and raises exceptions, one after the other; None waits for ever."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for step in steps:
            if step is None:
                await asyncio.Event().wait()
            elif isinstance(step, Exception):
                raise step
            else:
                await send(step)

    return app


@dataclass
class Reply:
    """What an app sent for one request."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int:
        """Status of the response; 0 when there is none."""
        return next((int(one["status"]) for one in self.messages if one["type"] == "http.response.start"), 0)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response; a duplicate fails the test."""
        start = next(one for one in self.messages if one["type"] == "http.response.start")
        pairs = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in start["headers"]
        ]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    @property
    def body(self) -> bytes:
        """All of the body."""
        return b"".join(one.get("body", b"") for one in self.messages if one["type"] == "http.response.body")

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    @property
    def complete(self) -> bool:
        """Whether the last byte of the body was sent."""
        return any(
            one["type"] == "http.response.body" and not one.get("more_body", False) for one in self.messages
        )


async def fetch(
    app: App,
    path: str = "/",
    method: str = "GET",
    *,
    body: Sequence[bytes] = (b"",),
    leaves: bool = False,
    on_send: Callable[[Message], Awaitable[None]] | None = None,
    **more: Any,
) -> Reply:
    """Send one request; with `leaves` the client disconnects after the body, or for its last, empty piece."""
    reply = Reply()
    pieces = list(body)

    async def receive() -> Message:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or leaves}
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if on_send is not None:
            await on_send(message)
        reply.messages.append(dict(message))

    try:
        await app(scope_of(path, method, **more), receive, send)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        reply.error = error
    return reply


@dataclass
class Watched:
    """An app with the middleware around it, and its metrics and lines."""

    app: Middleware
    registry: ScrapedRegistry
    logging: Logging
    _file: int

    def lines(self) -> list[dict[str, Any]]:
        """Return every line so far."""
        self.logging.flush()
        size = os.fstat(self._file).st_size
        return [json.loads(line) for line in os.pread(self._file, size, 0).splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        """Return the request lines so far."""
        return [line for line in self.lines() if line.get("type") == "request"]

    def sockets(self) -> list[dict[str, Any]]:
        """Return the lines of websocket connections so far."""
        return [line for line in self.lines() if line.get("type") == "websocket"]

    def count(self, route: str, status: int, method: str = "GET") -> float:
        """Return how many requests were counted."""
        return (
            self.registry.sample("http_requests_total", method=method, route=route, status=str(status)) or 0.0
        )

    def durations(self, route: str, method: str = "GET") -> float:
        """Return the sum of the measured durations in seconds."""
        return self.registry.sample("http_request_duration_seconds_sum", method=method, route=route) or 0.0

    def routes(self) -> set[str]:
        """Return every route that has a series."""
        text = self.registry.text()
        return {
            line.split('route="')[1].split('"')[0]
            for line in text.splitlines()
            if line.startswith("http_requests_total{")
        }


async def _nothing() -> dict[str, Any]:
    return {}


def watch(
    app: App,
    folder: Path,
    *,
    resolve_route: Callable[[Any], str] | None = None,
    checks: CheckRunner | None = None,
    ready: Callable[[], Awaitable[dict[str, bool]]] = _nothing,
    details: Callable[[], Awaitable[dict[str, Any]]] = _nothing,
    before_scrape: Sequence[Callable[[], Awaitable[None]]] = (),
    **settings: Any,
) -> Watched:
    """Put the middleware around `app`, with its lines in `folder`; `settings` are the service's."""
    file = os.open(folder / "lines", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
    logging = Logging(service="watched", env="test", sink=Sink(file), redactor=Redactor(["s3cret-value"]))
    registry = ScrapedRegistry(third_party=None)
    of_service = Settings(service="watched", state_dir=folder, **settings)
    endpoints = Endpoints(
        of_service,
        logging=logging,
        exporter=registry.exporter,
        checks=CheckRunner([]) if checks is None else checks,
        ready=ready,
        details=details,
        before_scrape=before_scrape,
    )
    config = RecorderConfig.from_settings(
        of_service,
        logs=logging,
        metrics=HttpMetrics(registry),
        websocket_metrics=WebsocketMetrics(registry),
        resolve_route=resolve_route or resolver_for(app),
    )
    watched = Watched(Middleware(app, config, endpoints=endpoints, lifespan=app), registry, logging, file)
    weakref.finalize(watched, os.close, file)
    return watched


@contextlib.asynccontextmanager
async def serving(app: App, server: str = "uvicorn", **options: Any) -> AsyncIterator[int]:
    """Serve `app` on 127.0.0.1 during the block; yields the port. `options` are uvicorn's."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if server == "uvicorn":
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, **options)
        async with _uvicorn(uvicorn.Server(config), listener):
            yield port
        return
    listener.close()
    async with _granian(app, port):
        yield port


@contextlib.asynccontextmanager
async def _uvicorn(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not task.done(), task
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


@contextlib.asynccontextmanager
async def _granian(app: App, port: int) -> AsyncIterator[None]:
    from granian.constants import Interfaces  # noqa: PLC0415 - beside its only use

    server = EmbeddedGranian(app, port=port, interface=Interfaces.ASGINL, log_enabled=False)
    task = asyncio.create_task(server.serve())
    for _ in range(500):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            break
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.stop()  # type: ignore[no-untyped-call] # it has no types
        await task


async def speak(
    port: int, *pieces: bytes, pause: float = 0.0, seconds: float = 5.0, until: bytes | None = None
) -> bytes:
    """Send raw bytes, with pauses, and return the response up to `until`, its end, or the time limit."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = bytearray()
    try:
        async with asyncio.timeout(seconds):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            while data := await reader.read(65536):
                answer += data
                if until is not None and until in answer:
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return bytes(answer)
