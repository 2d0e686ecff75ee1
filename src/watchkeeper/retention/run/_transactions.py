"""The transactions of one run: bounded by time-outs, and retried after transient errors."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from watchkeeper.retention._queries import set_transaction
from watchkeeper.retention.run._batch_sizer import BatchSizer
from watchkeeper.retention.run._lease import TRANSIENT
from watchkeeper.retention.run._write_detector import WriteDetector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from psycopg import AsyncConnection

    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._lease import Lease

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Transactions:
    """Opens the transactions of one run, and counts the rows that they deleted."""

    def __init__(self, run: Run, lease: Lease) -> None:
        self._run = run
        self._lease = lease
        self.sizer = BatchSizer(run.tuning, share_time=run.shares_time)
        self.writers = WriteDetector()
        self.round_trip = timedelta(0)
        """How long a statement that does nothing took."""
        self.deleted = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Open a transaction with the run's time-outs, unless the run is interrupted."""
        self._lease.check()
        tuning = self._run.tuning
        async with self._run.database.transaction() as conn:
            began = time.monotonic()
            await set_transaction(conn, statement=tuning.statement_timeout, lock=tuning.lock_timeout)
            self.round_trip = timedelta(seconds=time.monotonic() - began)
            yield conn

    async def retry(self, attempt: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Repeat an attempt after transient errors, with growing waits; the last error is raised."""
        for wait in self._run.tuning.retry_waits:
            try:
                return await attempt(*args, **kwargs)
            except TRANSIENT:
                self.sizer.shrink()
                self.writers.invalidate()
            await self._lease.sleep(wait)
        return await attempt(*args, **kwargs)

    def report_up_to(self, total: int) -> None:
        """Report the rows up to the ledger's total, which includes commits whose response was lost."""
        rows, self.deleted = total - self.deleted, total
        if rows:
            self._run.observer.deleted(self._run.policy.name, rows)
