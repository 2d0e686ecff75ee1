"""The loop that looks after what is due.

Purpose: to look every few seconds whether something is due, in each replica; the ledger sees to it that it is
run once. An outage of the database is waited for and told once, not with each look.

Lines: those of the job; `{type: "schedule", name, status: "waiting" | "resumed"}` at both ends of an outage.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import DatabaseUnavailableError

if TYPE_CHECKING:
    from watchkeeper.retention import Retention

POLL: Final = timedelta(seconds=15)
"""Longest time between two looks: retries, missed runs and runs that others left open are found by it."""

GRACE: Final = timedelta(seconds=10)
"""How long a run that is going on may take to end its transaction and be closed, when the loop is stopped."""

_OUTAGE: Final = "outage"
_SOON: Final = timedelta(milliseconds=50)


class Scheduler:
    """Looks after a job until it is cancelled.

    Args:
        job: What is run when it is due.
        poll: Longest time between two looks.
        grace: How long a run may take to stop.
    """

    def __init__(self, job: Retention, *, poll: timedelta = POLL, grace: timedelta = GRACE) -> None:
        self._job = job
        self._poll = poll
        self._grace = grace
        self._stopping = asyncio.Event()
        self._trouble: str | None = None

    async def run(self) -> None:
        """Look and run, for ever; cancel it to stop.

        A run that is going on then ends its transaction and is closed, so that another replica, or the next
        start, goes on at once. One that takes longer than the grace is left to its lease.
        """
        loop = asyncio.create_task(self._loop(), name="watchkeeper-schedule")
        try:
            await asyncio.shield(loop)
        finally:
            self._stopping.set()
            self._job.interrupt()
            await asyncio.wait({loop}, timeout=self._grace.total_seconds())
            loop.cancel()
            await asyncio.wait({loop})

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            await self._tick()
            now = datetime.now(UTC)
            # A moment late rather than early: it is the database's clock that decides.
            pause = min(self._job.next_due(now) - now + _SOON, self._poll)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause.total_seconds())

    async def _tick(self) -> None:
        try:
            await self._job.tick()
        except DatabaseUnavailableError as error:
            if self._trouble != _OUTAGE:
                self._job.lines.waiting(error)
            self._trouble = _OUTAGE
        except Exception as error:  # noqa: BLE001 - the loop outlives whatever a job does
            if self._trouble != repr(error):
                self._job.lines.broke(error)
            self._trouble = repr(error)
        else:
            if self._trouble is not None:
                self._job.lines.resumed()
            self._trouble = None
