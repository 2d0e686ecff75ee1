"""The ASGI lifespan of app and keeper: https://asgi.readthedocs.io/en/latest/specs/lifespan.html."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from watchkeeper.exceptions import WatchkeeperError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from watchkeeper.http._asgi import ASGIApp, Message, Receive, Scope, Send


class Lifespan:
    """Answers a lifespan scope for the app and the keeper; `stop` is called once for each start."""

    def __init__(
        self, app: ASGIApp, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
    ) -> None:
        self._app = app
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one lifespan from the server's startup message to its shutdown message."""
        await receive()
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 - the service must not run without its keeper
            is_ours = isinstance(error, WatchkeeperError)
            message = str(error) if is_ours else f"{type(error).__name__}: {error}"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        inner = _InnerApp(self._app, scope)
        try:
            failure = await inner.exchange("startup")
            if failure is not None:
                await send(failure)
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            failure = await inner.exchange("shutdown")
        finally:
            await inner.end()
            await self._stop()
        await send(failure or {"type": "lifespan.shutdown.complete"})


class _InnerApp:
    """Runs the app's own lifespan in a task; an app without lifespan support is started anyway."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message | None] = asyncio.Queue()
        self._supported = True
        self._task = asyncio.create_task(self._run(app, scope), name="watchkeeper-lifespan")

    async def end(self) -> None:
        """Cancel the app's task and wait for its end."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def exchange(self, phase: str) -> Message | None:
        """Begin a phase, `startup` or `shutdown`; return the message of its failure, or None."""
        if not self._supported:
            return None
        self._to_app.put_nowait({"type": f"lifespan.{phase}"})
        reply = await self._from_app.get()
        if reply is None:
            self._supported = False
            return None
        return reply if reply["type"] == f"lifespan.{phase}.failed" else None

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        answered = False

        async def send(message: Message) -> None:
            nonlocal answered
            answered = True
            self._from_app.put_nowait(message)

        try:
            await app(scope, self._to_app.get, send)
        except Exception as error:  # noqa: BLE001 - an app without lifespan support may raise anything
            if answered:
                self._from_app.put_nowait({"type": "lifespan.shutdown.failed", "message": str(error)})
        finally:
            self._from_app.put_nowait(None)
