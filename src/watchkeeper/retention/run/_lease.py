"""The lease of one run: renewed while it works and waits, so that no other process closes it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from psycopg import errors

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention.ledger._interrupts import RunTimeoutError, StopRequestedError, check_interrupts

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from watchkeeper.retention._model import Reason
    from watchkeeper.retention.run._context import Run

_T = TypeVar("_T")

TRANSIENT: Final = (
    DatabaseUnavailableError,
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    # A row was referenced after the transaction had found it free; the retry sees the reference.
    errors.ForeignKeyViolation,
    errors.RestrictViolation,  # PostgreSQL 18 and later
)
"""Errors that a retry may not meet again."""


class Lease:
    """Renews a run's lease; raises when its process, an operator or its timeout ends it, or it is lost."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.started = self._renewed_at = self._checked_at = time.monotonic()
        self._interval_s = run.tuning.check_interval.total_seconds()
        self.waited_s: defaultdict[Reason, float] = defaultdict(float)

    def check(self) -> None:
        """Raise if the process is stopping or the run's time is up."""
        run = self._run
        if run.stop.is_set():
            again = "it continues" if run.claim.trigger == "schedule" else "run it again, and it continues"
            raise StopRequestedError(
                f"The run on {run.policy.name} was stopped with its process: {again} where it ended."
            )
        if time.monotonic() - self.started > run.limits.timeout.total_seconds():
            raise self._timed_out()

    def record_renewal(self) -> None:
        """Record that a transaction has just renewed the lease and found no operator command."""
        self._renewed_at = self._checked_at = time.monotonic()

    async def heartbeat(self) -> None:
        """Renew the lease and check for operator commands, each if it is time."""
        if time.monotonic() - self._renewed_at >= self._run.ledger.lease.total_seconds() / 3:
            with suppress(*TRANSIENT):
                await self._run.ledger.renew(self._run.claim)
                self._renewed_at = time.monotonic()
        if time.monotonic() - self._checked_at >= self._interval_s:
            with suppress(*TRANSIENT):
                async with self._run.database.connection() as conn:
                    await check_interrupts(conn, self._run.claim)
            self._checked_at = time.monotonic()

    async def sleep(self, pause: timedelta) -> None:
        """Sleep with heartbeats; returns early if the process is stopping."""
        until = time.monotonic() + pause.total_seconds()
        longest = min(self._interval_s, self._run.ledger.lease.total_seconds() / 3)
        while True:
            await self.heartbeat()
            rest = until - time.monotonic()
            if rest <= 0 or self._run.stop.is_set():
                return
            self.check()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._run.stop.wait(), min(rest, longest))

    async def keep_alive(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait with heartbeats for work outside the database, which may hang."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                await asyncio.wait([task], timeout=self._interval_s)
                if task.done():
                    return task.result()
                self.check()
                await self.heartbeat()
        finally:
            task.cancel()

    def _timed_out(self) -> RunTimeoutError:
        waits = [
            f"{timedelta(seconds=round(seconds))} ({reason})"
            for reason, seconds in self.waited_s.items()
            if seconds
        ]
        waited = f" It waited {', '.join(waits)}." if waits else ""
        return RunTimeoutError(
            f"The run on {self._run.policy.name} was ended after {self._run.limits.timeout}, its time limit"
            f" (WATCHKEEPER_RETENTION_TIMEOUT).{waited} The next attempt continues where it ended."
        )
