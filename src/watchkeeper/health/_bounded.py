"""Calls that cannot hang whoever asks: given up after a time, and made once for all who ask meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import timedelta

# Each holds what it was given (a connection, a socket) until its cancellation gets through: not without end.
_STRAGGLERS: Final = 8
_LAST_WAIT: Final = 0.5

_Result = TypeVar("_Result")


class BoundedCall:
    """Awaits a function for a limited time, whatever it does.

    A call that takes too long is cancelled, and its end is not waited for: psycopg takes up to 5 s to cancel.

    Args:
        call: What is awaited.
        timeout: For how long.
    """

    def __init__(self, call: Callable[[], Awaitable[None]], timeout: timedelta) -> None:
        self._call = call
        self._timeout = timeout.total_seconds()
        self._stragglers: set[asyncio.Task[BaseException | None]] = set()

    async def __call__(self) -> BaseException | None:
        """Return what the call raised, a TimeoutError when it took too long, or None when all is well."""
        if len(self._stragglers) >= _STRAGGLERS:
            return TimeoutError(f"{_STRAGGLERS} earlier calls still hang.")
        task = asyncio.create_task(_outcome(self._call))
        self._stragglers.add(task)
        task.add_done_callback(self._stragglers.discard)
        done, _ = await asyncio.wait({task}, timeout=self._timeout)
        if done:
            return task.result()
        task.cancel()
        return TimeoutError(f"No answer within {self._timeout:g} s.")

    async def close(self) -> None:
        """Give up what still runs; wait for it half a second at most."""
        for task in self._stragglers:
            task.cancel()
        if self._stragglers:
            await asyncio.wait(set(self._stragglers), timeout=_LAST_WAIT)


class SharedCall(Generic[_Result]):
    """Makes one call at a time and gives its result to all who ask while it runs.

    Args:
        call: What is called; it must not raise.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, _Result]]) -> None:
        self._call = call
        self._task: asyncio.Task[_Result] | None = None

    async def join(self) -> _Result:
        """Return the result of the call that runs, or of a new one; giving up here does not end it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call())
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Give up the call that runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_LAST_WAIT)


async def _outcome(call: Callable[[], Awaitable[None]]) -> BaseException | None:
    try:
        await call()
    except BaseException as error:  # noqa: BLE001 - a SystemExit of a check would stop the event loop
        return error
    return None
