"""The batches of a run: one transaction each, which locks the run, deletes, and updates the ledger's count.

So no row is deleted that the ledger does not count, and a run that another process has closed deletes
nothing. A transaction takes about 50 ms unthrottled. In a throttled run its delete is kept to about
1 ms, because other commits wait while its WAL is flushed. A plain delete barely waits for locks; if it meets
a locked row, the batch is repeated and skips locked rows.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg import errors

from watchkeeper.retention._queries import QUERIES, fetch_row, milliseconds
from watchkeeper.retention.run._archived_batch import Archiver
from watchkeeper.retention.run._batch import (
    BatchResult,
    BlockRange,
    Range,
    delete_plain,
    delete_skip_locked,
    delete_unlocked,
    skip_empty,
)
from watchkeeper.retention.run._statistics import TriggerGuard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from typing import TypeAlias

    from psycopg import AsyncConnection

    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._cursor import Cursor
    from watchkeeper.retention.run._lease import Lease
    from watchkeeper.retention.run._transactions import Transactions
    from watchkeeper.retention.table._target import Target

    _Delete: TypeAlias = Callable[
        [AsyncConnection[Any], Target, datetime, Range, int], Awaitable[BatchResult]
    ]


class Batches:
    """Deletes the eligible rows of a target, one batch at a time."""

    def __init__(
        self, run: Run, lease: Lease, transactions: Transactions, target: Target, row_bytes: float
    ) -> None:
        self._run = run
        self._lease = lease
        self._transactions = transactions
        self._row_bytes = row_bytes
        self._guard = TriggerGuard()
        self._archiver = None
        if run.policy.archive and run.archive is not None:
            self._archiver = Archiver(run, run.archive, lease, transactions)
        self.target = target
        """The table, with the holds that the last batch found."""
        self.cursor: Cursor | None = None
        """How far the first pass has got; None in later passes."""
        self.took = timedelta(0)
        """How long the last batch took."""

    async def delete_first(self, range_: Range) -> BatchResult:
        """Delete a batch of the first pass."""
        if self._archiver is not None:
            return await self._delete_archived(self._archiver, range_)
        return await self._delete_plain_first(range_, delete_plain, delete_unlocked)

    async def delete_again(self, range_: Range) -> BatchResult:
        """Delete a batch of a later pass, in which most batches find nothing."""
        if self._archiver is not None:
            return await self._delete_archived(self._archiver, range_)
        scanned = timedelta(0)
        if isinstance(range_, BlockRange) and not self.target.has_children:
            empty = await self._skip_empty(range_)
            if empty is not None:
                return empty
            scanned = self.took
        return await self._transact(range_, delete_skip_locked, before=scanned)

    async def has_eligible_rows(self) -> bool:
        """Return whether any row is still eligible, without locking the run or writing."""
        try:
            async with self._transactions.open() as conn:
                target = await self.target.with_holds(conn)
                left = await fetch_row(
                    conn, target.fill(QUERIES["any_eligible"]), {"horizon": self._run.claim.horizon}
                )
        except errors.QueryCanceled:
            return True  # the next pass finds out
        return bool(left[0])

    async def _skip_empty(self, range_: BlockRange) -> BatchResult | None:
        """Check the next blocks without a lock, and without a commit that waits for the disk."""
        transactions, sizer = self._transactions, self._transactions.sizer
        began = time.monotonic()
        async with transactions.open() as conn:
            target = await self.target.with_holds(conn)
            looking = time.monotonic()
            empty = await skip_empty(conn, target, self._run.claim.horizon, range_, sizer.scan_size)
            sizer.adapt_scan(timedelta(seconds=time.monotonic() - looking) - transactions.round_trip)
        self.took = timedelta(seconds=time.monotonic() - began)
        if empty is not None:
            await self._lease.heartbeat()
        return empty

    async def _delete_archived(self, archiver: Archiver, range_: Range) -> BatchResult:
        batch = await archiver.take(self.target, range_, self._transactions.sizer.size(range_))
        return await self._delete_plain_first(
            range_, batch.delete, batch.delete_skip_locked, before=batch.rows.took
        )

    async def _delete_plain_first(
        self, range_: Range, plain: _Delete, skip_locked: _Delete, *, before: timedelta = timedelta(0)
    ) -> BatchResult:
        sizer = self._transactions.sizer
        if not sizer.take_skipping():
            try:
                batch = await self._transact(range_, self._with_row_lock_timeout(plain), before=before)
            except errors.LockNotAvailable:
                sizer.record_lock_conflict()
            else:
                sizer.record_clean_batch()
                return batch
        return await self._transact(range_, skip_locked, before=before)

    def _with_row_lock_timeout(self, delete: _Delete) -> _Delete:
        lock_ms = milliseconds(self._run.tuning.row_lock_timeout)

        async def attempt(
            conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: Range, size: int
        ) -> BatchResult:
            await conn.execute(QUERIES["lock_timeout"], {"lock_ms": lock_ms})
            return await delete(conn, target, horizon, range_, size)

        return attempt

    async def _transact(
        self, range_: Range, delete: _Delete, *, before: timedelta = timedelta(0)
    ) -> BatchResult:
        run, transactions, sizer = self._run, self._transactions, self._transactions.sizer
        began = time.monotonic()
        async with transactions.open() as conn:
            await run.ledger.lock(conn, run.claim)
            # Adding a hold takes the same lock: once it has committed, no row that it holds is deleted.
            self.target = target = await self.target.with_holds(conn)
            delete_started = time.monotonic()
            batch = await delete(conn, target, run.claim.horizon, range_, sizer.size(range_))
            delete_ended = time.monotonic()
            size = round(batch.deleted * self._row_bytes)
            cursor = None if self.cursor is None else self.cursor.after(batch)
            total = await run.ledger.record_deleted(conn, run.claim, batch.deleted, size, cursor)
        transactions.writers.record_own_write()
        if total != transactions.deleted + batch.deleted:
            transactions.writers.invalidate()  # the server lost a commit
        self._lease.record_renewal()
        whole = timedelta(seconds=time.monotonic() - began)
        sizer.adapt(
            range_,
            deleted=batch.deleted,
            deleting=timedelta(seconds=delete_ended - delete_started),
            whole=whole,
            round_trip=transactions.round_trip,
        )
        self.took = before + whole
        transactions.report_up_to(total)
        self._guard.check(target.name, batch)
        return batch
