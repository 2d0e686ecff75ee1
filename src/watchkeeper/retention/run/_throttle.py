"""The waiting of one run: its lease is kept, operators are heard, and what it would hurt is let go first.

Lines:
    `{type: "retention", status: "waiting", table, run, reason, msg}` when it begins to wait, and when the
    reason changes; `{…, status: "resumed", table, run, reason, duration}` when it goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from psycopg import errors

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention.ledger._interrupts import (
    RunTimeoutError,
    StopRequestedError,
    look_for_orders,
    show_waiting,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.ledger._ledger import Claim, Ledger
    from watchkeeper.retention.run._pressure import Pressure, PressureWatch, Reason
    from watchkeeper.settings import Limits

_T = TypeVar("_T")

PASSING: Final = (
    DatabaseUnavailableError,
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    # Somebody referred to a row after it was seen to be free; the next try sees that.
    errors.ForeignKeyViolation,
    errors.RestrictViolation,  # from PostgreSQL 18 on
)
"""What may pass by itself, and is tried again."""

_LOOK_S: Final = 1.0
# A run makes dead rows itself. Only those count that it found, until autovacuum could have been here, which
# comes once a minute as a rule (autovacuum_naptime).
_VACUUM_GRACE: Final = timedelta(minutes=2)
_SHOW_S: Final = 10.0  # how often the ledger is told the details anew


class Patience:
    """Waits for one run.

    Args:
        database: Where the ledger is.
        ledger: Where the lease is kept.
        policy: What the run prunes.
        claim: The run.
        limits: How long it may take, and from where on it waits.
        stopping: Set by whoever wants the process to stop.
        watch: Looks at what the run would hurt; None if it hurts nobody.
    """

    def __init__(  # noqa: PLR0913 - one of each part that takes part
        self,
        database: Database,
        ledger: Ledger,
        policy: Policy,
        claim: Claim,
        *,
        limits: Limits,
        stopping: asyncio.Event,
        watch: PressureWatch | None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._policy = policy
        self._claim = claim
        self._limits = limits
        self._stopping = stopping
        self._watch = watch
        self._began = self._renewed_at = self._heard_at = time.monotonic()
        self._looked_at = self._began - _LOOK_S
        self._has_looked = False
        self._shown: Pressure | None = None
        self._shown_at = self._began
        self._waited_s: defaultdict[Reason, float] = defaultdict(float)

    def check(self) -> None:
        """Go on, unless the process is to stop or the time is up.

        Raises:
            StopRequestedError: The process is to stop.
            RunTimeoutError: The run took longer than it may.
        """
        if self._stopping.is_set():
            again = "its due goes on" if self._claim.trigger == "schedule" else "run it again, and it goes on"
            raise StopRequestedError(
                f"The run on {self._policy.name} was asked to stop: {again} where it ended."
            )
        if time.monotonic() - self._began > self._limits.timeout.total_seconds():
            raise self._timed_out()

    def renewed(self) -> None:
        """Note that a transaction of the run has just renewed its lease, and met no operator's word."""
        self._renewed_at = self._heard_at = time.monotonic()

    async def pause(self, pause: timedelta) -> None:
        """Wait, unless the process is to stop or an operator wants the run to; the lease is kept.

        With no time to wait it does the rest of that, for work that takes long without a transaction that
        renews the lease.

        Raises:
            RunPausedError: An operator wants it to stop for now.
            RunCancelledError: An operator wants it to end for good.
            RunLostError: It is not ours any more.
            RunTimeoutError: The run took longer than it may.
        """
        until = time.monotonic() + pause.total_seconds()
        third = self._ledger.lease.total_seconds() / 3
        while True:
            if time.monotonic() - self._renewed_at >= third:
                with suppress(*PASSING):
                    await self._ledger.renew(self._claim)
                    self._renewed_at = time.monotonic()
            if time.monotonic() - self._heard_at >= _LOOK_S:
                await self._listen()
            rest = until - time.monotonic()
            if rest <= 0 or self._stopping.is_set():
                return
            self.check()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(rest, _LOOK_S, third))

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for work that is not the database's and may hang; the lease is kept, and orders are heard.

        Args:
            work: What takes its time.

        Raises:
            StopRequestedError: The process is to stop, or an operator paused the policy.
            RunCancelledError: An operator wants it to end for good.
            RunTimeoutError: The run took longer than it may.
            RunLostError: It is not ours any more.
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                await asyncio.wait([task], timeout=_LOOK_S)
                if task.done():
                    return task.result()
                self.check()
                await self.pause(timedelta(0))
        finally:
            task.cancel()

    async def give_way(self) -> None:
        """Wait as long as going on would hurt others; looks once a second at most.

        Raises:
            StopRequestedError: The process is to stop, or an operator paused the policy.
            RunCancelledError: An operator wants it to end for good.
            RunTimeoutError: The run took longer than it may.
            RunLostError: It is not ours any more.
        """
        watch = self._watch
        if watch is None or time.monotonic() - self._looked_at < _LOOK_S:
            return
        began, told = time.monotonic(), None
        while (found := await self._look(watch, waits=told is not None)) is not None:
            await self._show(found)
            if found.reason != told:
                told = found.reason
                watch.lines.waits(self._policy.name, self._claim.id, found)
            at = time.monotonic()
            await self.pause(timedelta(seconds=_LOOK_S))
            self._waited_s[found.reason] += time.monotonic() - at
            self.check()
        await self._show(None)
        if told is not None:
            waited = timedelta(seconds=time.monotonic() - began)
            watch.lines.goes_on(self._policy.name, self._claim.id, told, waited)

    async def _look(self, watch: PressureWatch, *, waits: bool) -> Pressure | None:
        thresholds = self._limits.thresholds
        found = await watch.look(
            self._policy,
            thresholds,
            patient=self._limits.budget < 1.0,
            vacuum=self._minds_vacuum(),
            waits=waits,
        )
        self._looked_at = time.monotonic()
        self._has_looked = True
        return found

    def _minds_vacuum(self) -> bool:
        if self._waited_s["vacuum"] >= self._limits.thresholds.vacuum_wait.total_seconds():
            return False
        found = not self._has_looked or (self._shown is not None and self._shown.reason == "vacuum")
        return found or time.monotonic() - self._began > _VACUUM_GRACE.total_seconds()

    async def _listen(self) -> None:
        with suppress(*PASSING):
            async with self._database.connection() as conn:
                await look_for_orders(conn, self._claim)
        self._heard_at = time.monotonic()

    async def _show(self, found: Pressure | None) -> None:
        now = time.monotonic()
        kind, shown = found and found.reason, self._shown and self._shown.reason
        if kind == shown and (found == self._shown or now - self._shown_at < _SHOW_S):
            return
        with suppress(*PASSING):
            async with self._database.connection() as conn:
                await show_waiting(conn, self._claim, None if found is None else str(found))
            self._shown, self._shown_at = found, now

    def _timed_out(self) -> RunTimeoutError:
        waits = [
            f"{timedelta(seconds=round(seconds))} ({reason})"
            for reason, seconds in self._waited_s.items()
            if seconds
        ]
        waited = f" It waited {', '.join(waits)}." if waits else ""
        return RunTimeoutError(
            f"The run on {self._policy.name} was ended after {self._limits.timeout}, the longest that one may"
            f" take (WATCHKEEPER_RETENTION_TIMEOUT).{waited} The next attempt goes on where it ended."
        )
