"""The loop that runs the retention job on schedule, in each replica; the ledger lets only one run it.

Lines: those of the job; `{type: "schedule", name, status: "waiting" | "resumed"}` at both ends of an outage.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import DatabaseUnavailableError

if TYPE_CHECKING:
    from watchkeeper.retention._retention import Retention

POLL: Final = timedelta(seconds=15)
"""Maximum time between two ticks, which also find retries, missed runs and lapsed leases."""

GRACE: Final = timedelta(seconds=10)
"""How long a cancelled loop waits for the current run to end its transaction and be closed."""

_OUTAGE: Final = "outage"
_MARGIN: Final = timedelta(milliseconds=50)


class Scheduler:
    """Runs a retention job when it is due, until it is cancelled."""

    def __init__(self, job: Retention, *, poll: timedelta = POLL, grace: timedelta = GRACE) -> None:
        self._job = job
        self._poll = poll
        self._grace = grace
        self._stopping = asyncio.Event()
        self._failure: str | None = None

    async def run(self) -> None:
        """Tick until cancelled; the current run then gets `grace` to end its transaction and be closed."""
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
            # Late is better than early: the database's clock decides.
            pause = min(self._job.next_due(now) - now + _MARGIN, self._poll)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause.total_seconds())

    async def _tick(self) -> None:
        try:
            await self._job.tick()
        except DatabaseUnavailableError as error:
            if self._failure != _OUTAGE:
                self._job.log.schedule_waiting(error)
            self._failure = _OUTAGE
        except Exception as error:  # noqa: BLE001 - the loop survives any failure of a job
            if self._failure != repr(error):
                self._job.log.job_failed(error)
            self._failure = repr(error)
        else:
            if self._failure is not None:
                self._job.log.schedule_resumed()
            self._failure = None
