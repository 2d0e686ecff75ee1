import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from watchkeeper.exceptions import EmbeddedServerError
from watchkeeper.http._lifespan import Lifespan

Message = MutableMapping[str, Any]


class _Host:
    """The server's side of one lifespan, and a keeper that records its start and stop."""

    def __init__(self, app: Any, *, failing: Exception | None = None) -> None:
        self.events: list[str] = []
        self.failing = failing
        self.sent: list[Message] = []
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._answered = asyncio.Event()
        lifespan = Lifespan(app, self._start, self._stop)
        self._task = asyncio.create_task(lifespan({"type": "lifespan"}, self._to_app.get, self._send))

    async def _start(self) -> None:
        self.events.append("keeper starts")
        if self.failing:
            raise self.failing

    async def _stop(self) -> None:
        self.events.append("keeper stops")

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._answered.set()

    async def say(self, phase: str) -> Message:
        self._answered.clear()
        self._to_app.put_nowait({"type": f"lifespan.{phase}"})
        async with asyncio.timeout(60):
            await self._answered.wait()
        return self.sent[-1]

    async def end(self) -> None:
        async with asyncio.timeout(60):
            await self._task


async def test_the_keeper_starts_before_the_app_and_stops_after_it() -> None:
    """The app has its database at startup and at shutdown."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            message = await receive()
            host.events.append(f"app {phase}")
            await send({"type": f"{message['type']}.complete"})

    host = _Host(app)
    assert await host.say("startup") == {"type": "lifespan.startup.complete"}
    assert await host.say("shutdown") == {"type": "lifespan.shutdown.complete"}
    await host.end()
    assert host.events == ["keeper starts", "app startup", "app shutdown", "keeper stops"]


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_app_without_lifespan_support_is_started(how: str) -> None:
    """The keeper starts and stops alone."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        if how == "raises":
            raise RuntimeError("lifespan is not supported")

    host = _Host(app)
    assert await host.say("startup") == {"type": "lifespan.startup.complete"}
    assert await host.say("shutdown") == {"type": "lifespan.shutdown.complete"}
    await host.end()
    assert host.events == ["keeper starts", "keeper stops"]


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (EmbeddedServerError("The disk is full."), "The disk is full."),
        (KeyError("not foreseen"), "KeyError: 'not foreseen'"),
    ],
)
async def test_a_failed_keeper_fails_the_start(failing: Exception, message: str) -> None:
    """The server gets the keeper's message, and the app is not started."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        host.events.append("app")

    host = _Host(app, failing=failing)
    assert await host.say("startup") == {"type": "lifespan.startup.failed", "message": message}
    await host.end()
    assert host.events == ["keeper starts"]


async def test_a_failed_app_stops_the_keeper() -> None:
    """The app's message reaches the server."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no licence"})

    host = _Host(app)
    assert await host.say("startup") == {"type": "lifespan.startup.failed", "message": "no licence"}
    await host.end()
    assert host.events == ["keeper starts", "keeper stops"]


async def test_an_exception_at_shutdown_is_reported_after_the_keeper_stopped() -> None:
    """The app's exception is the server's to report."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("could not say goodbye")

    host = _Host(app)
    await host.say("startup")
    assert await host.say("shutdown") == {
        "type": "lifespan.shutdown.failed",
        "message": "could not say goodbye",
    }
    await host.end()
    assert host.events == ["keeper starts", "keeper stops"]
