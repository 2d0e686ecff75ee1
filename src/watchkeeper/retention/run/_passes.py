"""The passes of one run: the first scans the whole table, later ones retry locked and moved rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.exceptions import RetentionError
from watchkeeper.retention.ledger._interrupts import record_planned_rows
from watchkeeper.retention.run._batch import AgeRange, BlockRange, choose_range, repeat_range
from watchkeeper.retention.run._batches import Batches
from watchkeeper.retention.run._cursor import find_cursor
from watchkeeper.retention.run._partition_drop import PartitionDrop
from watchkeeper.retention.run._share_guard import check_share
from watchkeeper.retention.run._statistics import PassStatistics, kept_by_trigger
from watchkeeper.retention.table._partitions import find_partitions
from watchkeeper.retention.table._sample import estimate_row_bytes, sample
from watchkeeper.retention.table._target import find_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from watchkeeper.database._owner import Owner
    from watchkeeper.retention.run._batch import BatchResult, Range
    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._lease import Lease
    from watchkeeper.retention.run._throttle import Throttle
    from watchkeeper.retention.run._transactions import Transactions
    from watchkeeper.retention.table._partitions import Partitions
    from watchkeeper.retention.table._sample import Sample
    from watchkeeper.retention.table._target import Target

    _DeleteBatch: TypeAlias = Callable[[Range], Awaitable[BatchResult]]


class Passes:
    """Deletes all rows that one run may delete."""

    def __init__(self, run: Run, lease: Lease, throttle: Throttle, transactions: Transactions) -> None:
        self._run = run
        self._lease = lease
        self._throttle = throttle
        self._transactions = transactions
        self.notes: list[str] = []

    async def delete_all(self) -> None:
        """Drop old partitions, then delete until no eligible row remains or the remaining rows are locked."""
        retry = self._transactions.retry
        batches, sampled = await retry(self._start)
        if batches.target.has_children:
            await self._drop_partitions(batches.target)
            sampled = await retry(self._sample, batches.target)
        first = await retry(self._choose_range, batches, sampled)
        left, statistics = await self._sweep([first], batches, batches.delete_first)
        batches.cursor = None
        if not left and await self._is_complete(batches.target, first):
            return
        if isinstance(first, AgeRange) and not await retry(batches.has_eligible_rows):
            return
        await self._sweep_again(batches, await retry(self._repeat_range, batches, first), statistics)

    async def _start(self) -> tuple[Batches, Sample]:
        """Find the table, and check that the share of rows to delete is within the limit."""
        run, transactions = self._run, self._transactions
        async with transactions.open() as conn:
            await transactions.writers.begin(conn)  # before the reads below, to miss no later write
            target = await (await find_target(conn, run.policy)).with_holds(conn)
            sampled = await sample(conn, target, run.claim.horizon)
            rows = await check_share(conn, target, run.claim.horizon, sampled, run.limits.share)
            row_bytes = await estimate_row_bytes(conn, target, sampled)
            await record_planned_rows(conn, run.claim, rows)
        transactions.writers.record_own_write()
        return Batches(run, self._lease, transactions, target, row_bytes), sampled

    async def _sample(self, target: Target) -> Sample:
        async with self._transactions.open() as conn:
            return await sample(conn, target, self._run.claim.horizon)

    async def _drop_partitions(self, target: Target) -> None:
        async with self._run.database.owner() as owner:
            partitions = await self._transactions.retry(self._find_partitions, owner, target)
            drop = PartitionDrop(self._run, owner, self._lease, self._throttle, self._transactions)
            async for dropped in drop.drop_all(target, partitions):
                self._transactions.report_up_to(dropped.total)
                await self._throttle.pause(dropped.took)
        self.notes.extend(drop.notes)

    async def _find_partitions(self, owner: Owner, target: Target) -> Partitions:
        async with self._transactions.open() as conn:
            return await find_partitions(conn, owner, target, self._run.claim.horizon, check_holds=False)

    async def _choose_range(self, batches: Batches, sampled: Sample) -> Range:
        async with self._transactions.open() as conn:
            range_ = await choose_range(conn, batches.target, sampled, self._run.tuning.index_scan_share)
            batches.cursor, range_ = await find_cursor(conn, self._run.claim, batches.target, range_)
            return range_

    async def _repeat_range(self, batches: Batches, range_: Range) -> Range:
        async with self._transactions.open() as conn:
            return await repeat_range(conn, batches.target, range_)

    async def _is_complete(self, target: Target, first: Range) -> bool:
        """Return whether a first pass that left nothing cannot have missed anything.

        If no row was locked, a plain DELETE deletes every row in its snapshot. An index scan finds rows that
        are updated during it; in a block scan such a row may move to a block already scanned. None of this
        holds for child tables or for triggers that keep, move or restore rows, such as those of foreign keys.
        """
        if (
            self._transactions.sizer.saw_locks
            or target.has_children
            or target.has_delete_triggers
            or target.archived
        ):
            return False
        if isinstance(first, AgeRange):
            return first == AgeRange()
        return first.start == 0 and not await self._transactions.retry(self._other_writes_detected)

    async def _other_writes_detected(self) -> bool:
        async with self._transactions.open() as conn:
            return await self._transactions.writers.detected(conn)

    async def _sweep_again(self, batches: Batches, full_range: Range, statistics: PassStatistics) -> None:
        """Repeat until no rows remain or all are locked; `statistics` are those of the first pass."""
        references_itself = batches.target.self_referencing
        reference_passes = self._run.tuning.max_reference_passes if references_itself else 0
        waits = list(self._run.tuning.pass_waits)
        ranges = [full_range]
        while waits:
            if statistics.deleted and reference_passes:
                reference_passes -= 1
            else:
                wait = waits.pop(0)
                if statistics.locked or statistics.kept:
                    await self._lease.sleep(wait)
            left, statistics = await self._sweep(ranges, batches, batches.delete_again)
            if (statistics.eligible and isinstance(ranges[0], BlockRange)) or (
                references_itself and statistics.deleted
            ):
                # A row that was updated may now be in a block already scanned, and rows that a deleted row
                # referenced are eligible now.
                left = [await self._transactions.retry(self._repeat_range, batches, ranges[0])]
            if not left:
                return
            ranges = left
        self._report_remaining(batches.target, statistics)

    async def _sweep(
        self, ranges: list[Range], batches: Batches, delete_batch: _DeleteBatch
    ) -> tuple[list[Range], PassStatistics]:
        """Sweep each range once. Return the ranges that still contain eligible rows."""
        left: list[Range] = []
        statistics = PassStatistics()
        for range_ in ranges:
            remaining: Range | None = range_
            while remaining is not None:
                await self._throttle.wait_out_pressure()
                batch = await self._transactions.retry(delete_batch, remaining)
                statistics.add(batch)
                if batch.eligible > batch.deleted:
                    left.append(batch.covered)
                remaining = batch.rest
                if remaining is not None:
                    await self._throttle.pause(batches.took)
        return left, statistics

    def _report_remaining(self, target: Target, statistics: PassStatistics) -> None:
        if target.self_referencing and statistics.deleted:
            self.notes.append(
                f"Rows of {target.name} reference each other over more than"
                f" {self._run.tuning.max_reference_passes} levels: the next run deletes the remaining rows."
            )
        elif statistics.kept:
            raise kept_by_trigger(target.name)
        elif statistics.locked:
            raise RetentionError(
                f"Up to {statistics.locked} eligible rows of {target.name} are locked by other transactions:"
                " end those transactions (see pg_stat_activity); the next run deletes the rows."
            )
