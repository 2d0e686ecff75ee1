"""The transactions of a run: bounded by time-outs, and tried again after transient failures."""

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
        """How long a statement takes that does nothing."""
        self.deleted = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Open a transaction whose statements and lock waits are bounded."""
        self._lease.check()
        tuning = self._run.tuning
        async with self._run.database.transaction() as conn:
            began = time.monotonic()
            await set_transaction(conn, statement=tuning.statement_timeout, lock=tuning.lock_timeout)
            self.round_trip = timedelta(seconds=time.monotonic() - began)
            yield conn

    async def retry(self, attempt: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Try a transaction until it succeeds, with growing waits after transient failures."""
        for wait in self._run.tuning.retry_waits:
            try:
                return await attempt(*args, **kwargs)
            except TRANSIENT:
                self.sizer.shrink()
                self.writers.invalidate()
            await self._lease.sleep(wait)
        return await attempt(*args, **kwargs)

    def count_up_to(self, total: int) -> None:
        """Count up to what the ledger has: a commit whose answer was lost is in it too."""
        rows, self.deleted = total - self.deleted, total
        if rows:
            self._run.observer.deleted(self._run.policy.name, rows)
