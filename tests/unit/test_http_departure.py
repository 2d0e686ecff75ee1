import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.asgi import response_body, response_start, scope_of, sends, watch
from watchkeeper.http._disconnect import can_poll, poll

LATER = 0.02


class _Server:
    """Behaves like uvicorn: returns its messages at once, then waits."""

    def __init__(self, *messages: str) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        for kind in messages:
            self._queue.put_nowait({"type": kind, "body": b"x"})
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return await self._queue.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def broken(self) -> Any:
        raise OSError("gone")

    def no_coroutine(self) -> Any:
        return asyncio.get_running_loop().create_future()


async def test_poll_returns_what_is_there_and_does_not_wait() -> None:
    """A poll that would wait leaves nothing behind: the next receive gets the next message."""
    server = _Server("http.request")
    assert poll(server.receive) == {"type": "http.request", "body": b"x"}
    assert poll(server.receive) is None
    await server._queue.put({"type": "http.disconnect"})
    assert await server.receive() == {"type": "http.disconnect"}


async def test_poll_ignores_a_receive_that_fails() -> None:
    """The next real receive raises the error again."""
    server = _Server()
    assert poll(server.broken) is None
    assert poll(server.no_coroutine) is None


async def test_only_a_servers_own_coroutine_is_polled() -> None:
    """A middleware's function, granian's awaitable and a client that waits for `100 Continue` are not."""
    server = _Server()

    async def function() -> Any:
        return await server.receive()

    assert can_poll(server.receive, scope_of())
    assert not can_poll(function, scope_of())
    assert not can_poll(server.no_coroutine, scope_of())
    assert not can_poll(server.receive, scope_of(headers=[(b"expect", b"100-continue")]))


def test_only_asyncio_is_polled() -> None:
    """A coroutine of trio may not be stopped half-way."""
    assert not can_poll(_Server().receive, scope_of())


async def _played(folder: Path, server: _Server, delays: Sequence[float]) -> list[tuple[int, str]]:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(delays[0])
        await send(response_start())
        await asyncio.sleep(delays[1])
        await send(response_body(b"all"))

    watched = watch(app, folder)
    await watched.app(scope_of(), server.receive, server.send)
    assert len(server.sent) == 2
    return [(line["statusCode"], line["outcome"]) for line in watched.requests()]


@pytest.mark.parametrize(
    ("coming", "delays", "expected"),
    [
        (["http.disconnect"], (LATER, 0), (499, "aborted")),
        (["http.disconnect"], (0, LATER), (200, "aborted")),
        (["http.disconnect"], (0, 0), (200, "completed")),
        (["http.request", "http.disconnect"], (LATER, 0), (499, "aborted")),
        (["http.request", "http.disconnect"], (0, LATER), (200, "aborted")),
        (["http.request"] * 4 + ["http.disconnect"], (LATER, 0), (200, "completed")),
        (["http.request"] * 4 + ["http.disconnect"], (LATER, LATER), (200, "aborted")),
        ([], (LATER, LATER), (200, "completed")),
    ],
)
async def test_a_late_response_polls_for_a_disconnect(
    tmp_path: Path, coming: list[str], delays: tuple[float, float], expected: tuple[int, str]
) -> None:
    """Before its start and before its last byte, if 10 ms have passed; a quick response does not."""
    assert await _played(tmp_path, _Server(*coming), delays) == [expected]


async def test_the_app_receives_what_a_poll_found(tmp_path: Path) -> None:
    """Even the disconnect, which some servers send only once."""
    seen: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(LATER)
        await send(response_start())
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        await asyncio.sleep(LATER)
        await send(response_body())

    watched = watch(app, tmp_path)
    server = _Server("http.request", "http.disconnect")
    await watched.app(scope_of(), server.receive, server.send)
    assert seen == ["http.request", "http.disconnect"]
    assert [line["outcome"] for line in watched.requests()] == ["aborted"]


async def test_a_waiting_receive_is_not_polled(tmp_path: Path) -> None:
    """A poll would take the message of an app that waits for the disconnect."""
    heard: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        async def listen() -> None:
            heard.append((await receive())["type"])

        task = asyncio.create_task(listen())
        await asyncio.sleep(LATER)
        await send(response_start())
        await server._queue.put({"type": "http.disconnect"})
        await task
        await send(response_body())

    watched = watch(app, tmp_path)
    server = _Server()
    await watched.app(scope_of(), server.receive, server.send)
    assert heard == ["http.disconnect"]
    assert [(line["statusCode"], line["outcome"]) for line in watched.requests()] == [(200, "aborted")]


async def test_an_oserror_of_send_means_that_the_client_left(tmp_path: Path) -> None:
    """From ASGI 2.4 on a server may raise it; it is not logged as a failure."""

    async def gone(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    watched = watch(sends(response_start(), response_body(b"x", more=True)), tmp_path)
    await watched.app(scope_of(), _Server().receive, gone)
    assert [(line["statusCode"], line["outcome"]) for line in watched.lines()] == [(200, "aborted")]
