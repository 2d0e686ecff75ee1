"""Calls with a time limit, and calls shared by concurrent callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import timedelta

# A cancelled call keeps its resources (a connection, a socket) until it ends, so their number is limited.
_MAX_PENDING: Final = 8
_CLOSE_TIMEOUT_S: Final = 0.5

_Result = TypeVar("_Result")


class BoundedCall:
    """Calls a function with a time limit; a late call is cancelled, not awaited: psycopg takes up to 5 s."""

    def __init__(self, call: Callable[[], Awaitable[None]], timeout: timedelta) -> None:
        self._call = call
        self._timeout = timeout.total_seconds()
        self._pending: set[asyncio.Task[BaseException | None]] = set()

    async def __call__(self) -> BaseException | None:
        """Return the exception of the call, a TimeoutError when it took too long, or None."""
        if len(self._pending) >= _MAX_PENDING:
            return TimeoutError(f"{_MAX_PENDING} earlier calls are still running.")
        task = asyncio.create_task(_catch(self._call))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        done, _ = await asyncio.wait({task}, timeout=self._timeout)
        if done:
            return task.result()
        task.cancel()
        return TimeoutError(f"No answer within {self._timeout:g} s.")

    async def close(self) -> None:
        """Cancel the pending calls and wait up to 0.5 s for them."""
        for task in self._pending:
            task.cancel()
        if self._pending:
            await asyncio.wait(set(self._pending), timeout=_CLOSE_TIMEOUT_S)


class SharedCall(Generic[_Result]):
    """Makes one call at a time and returns its result to all callers; `call` must not raise."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, _Result]]) -> None:
        self._call = call
        self._task: asyncio.Task[_Result] | None = None

    async def join(self) -> _Result:
        """Return the result of the running call, or of a new one; cancelling a caller does not cancel it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call())
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Cancel the running call and wait up to 0.5 s for it."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)


async def _catch(call: Callable[[], Awaitable[None]]) -> BaseException | None:
    try:
        await call()
    except BaseException as error:  # noqa: BLE001 - SystemExit raised by a check would stop the event loop
        return error
    return None
