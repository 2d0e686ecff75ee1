"""Throttles one run: waits while the database is under pressure, and leaves a share of the time to others."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.retention.ledger._interrupts import show_waiting
from watchkeeper.retention.run._lease import TRANSIENT

if TYPE_CHECKING:
    from watchkeeper.retention._model import Pressure, Reason
    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._lease import Lease

_SHOW_EVERY_S: Final = 10.0  # how often the details in the ledger are updated


class Throttle:
    """Pauses one run."""

    def __init__(self, run: Run, lease: Lease) -> None:
        self._run = run
        self._lease = lease
        self._interval = run.tuning.check_interval
        self._measured_at = lease.started - self._interval.total_seconds()
        self._has_measured = False
        self._shown: Pressure | None = None
        self._shown_at = lease.started

    async def pause(self, worked: timedelta) -> None:
        """Pause after work that took this long, so that the run keeps to its budget."""
        if self._run.shares_time:
            await self._lease.sleep(worked * (1.0 / self._run.limits.budget - 1.0))

    async def wait_out_pressure(self) -> None:
        """Wait while the database is under pressure; measures once per check interval at most."""
        if time.monotonic() - self._measured_at < self._interval.total_seconds():
            return
        began = time.monotonic()
        reason: Reason | None = None
        while (pressure := await self._measure(waiting=reason is not None)) is not None:
            await self._show(pressure)
            if pressure.reason != reason:
                reason = pressure.reason
                self._run.observer.waiting(self._run.policy.name, self._run.claim.id, pressure)
            at = time.monotonic()
            await self._lease.sleep(self._interval)
            self._lease.waited_s[pressure.reason] += time.monotonic() - at
            self._lease.check()
        await self._show(None)
        if reason is not None:
            waited = timedelta(seconds=time.monotonic() - began)
            self._run.observer.resumed(self._run.policy.name, self._run.claim.id, reason, waited)

    async def _measure(self, *, waiting: bool) -> Pressure | None:
        pressure = await self._run.pressure.measure(
            self._run.policy,
            self._run.limits.thresholds,
            share_time=self._run.shares_time,
            vacuum=self._waits_for_vacuum(),
            waiting=waiting,
        )
        self._measured_at = time.monotonic()
        self._has_measured = True
        return pressure

    def _waits_for_vacuum(self) -> bool:
        if self._lease.waited_s["vacuum"] >= self._run.limits.thresholds.vacuum_wait.total_seconds():
            return False
        found = not self._has_measured or (self._shown is not None and self._shown.reason == "vacuum")
        return found or time.monotonic() - self._lease.started > self._run.tuning.vacuum_grace.total_seconds()

    async def _show(self, pressure: Pressure | None) -> None:
        now = time.monotonic()
        reason, shown = pressure and pressure.reason, self._shown and self._shown.reason
        if reason == shown and (pressure == self._shown or now - self._shown_at < _SHOW_EVERY_S):
            return
        with suppress(*TRANSIENT):
            async with self._run.database.connection() as conn:
                await show_waiting(conn, self._run.claim, None if pressure is None else str(pressure))
            self._shown, self._shown_at = pressure, now
