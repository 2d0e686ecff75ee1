"""The passes of one run: the first sweeps the whole table, later ones return for locked and moved rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.exceptions import RetentionError
from watchkeeper.retention.ledger._interrupts import show_plan
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
    """Deletes everything that one run may delete."""

    def __init__(self, run: Run, lease: Lease, throttle: Throttle, transactions: Transactions) -> None:
        self._run = run
        self._lease = lease
        self._throttle = throttle
        self._transactions = transactions
        self.notes: list[str] = []

    async def delete_all(self) -> None:
        """Drop old partitions, then delete until no eligible row remains or the rest stays locked."""
        retry = self._transactions.retry
        batches, drawn = await retry(self._start)
        if batches.target.has_children:
            await self._drop_partitions(batches.target)
            drawn = await retry(self._sample, batches.target)
        first = await retry(self._choose_range, batches, drawn)
        left, statistics = await self._sweep([first], batches, batches.delete_first)
        batches.cursor = None
        if not left and await self._is_complete(batches.target, first):
            return
        if isinstance(first, AgeRange) and not await retry(batches.any_left):
            return
        await self._sweep_again(batches, await retry(self._repeat_range, batches, first), statistics)

    async def _start(self) -> tuple[Batches, Sample]:
        """Find the table, and check that the run may delete that share of it."""
        run, transactions = self._run, self._transactions
        async with transactions.open() as conn:
            await transactions.writers.begin(conn)  # first: what is read below is read only once
            target = await (await find_target(conn, run.policy)).with_holds(conn)
            drawn = await sample(conn, target, run.claim.horizon)
            rows = await check_share(conn, target, run.claim.horizon, drawn, run.limits.share)
            row_bytes = await estimate_row_bytes(conn, target, drawn)
            await show_plan(conn, run.claim, rows)
        transactions.writers.record_own()
        return Batches(run, self._lease, transactions, target, row_bytes), drawn

    async def _sample(self, target: Target) -> Sample:
        async with self._transactions.open() as conn:
            return await sample(conn, target, self._run.claim.horizon)

    async def _drop_partitions(self, target: Target) -> None:
        async with self._run.database.owner() as owner:
            partitions = await self._transactions.retry(self._find_partitions, owner, target)
            drop = PartitionDrop(self._run, owner, self._lease, self._throttle, self._transactions)
            async for dropped in drop.drop_all(target, partitions):
                self._transactions.count_up_to(dropped.total)
                await self._throttle.rest(dropped.took)
        self.notes.extend(drop.notes)

    async def _find_partitions(self, owner: Owner, target: Target) -> Partitions:
        async with self._transactions.open() as conn:
            return await find_partitions(conn, owner, target, self._run.claim.horizon, check_holds=False)

    async def _choose_range(self, batches: Batches, drawn: Sample) -> Range:
        async with self._transactions.open() as conn:
            range_ = await choose_range(conn, batches.target, drawn, self._run.tuning.index_scan_share)
            batches.cursor, range_ = await find_cursor(conn, self._run.claim, batches.target, range_)
            return range_

    async def _repeat_range(self, batches: Batches, range_: Range) -> Range:
        async with self._transactions.open() as conn:
            return await repeat_range(conn, batches.target, range_)

    async def _is_complete(self, target: Target, first: Range) -> bool:
        """Return whether a first pass that left nothing cannot have missed anything.

        If no row was locked, a plain DELETE takes every row that it sees. An index scan follows rows that are
        updated meanwhile; in a block scan they may move behind the pass, if anyone else writes. Neither holds
        for child tables, nor for triggers that keep, move or restore rows, as those of foreign keys do.
        """
        if (
            self._transactions.sizer.met_locks
            or target.has_children
            or target.has_delete_triggers
            or target.archived
        ):
            return False
        if isinstance(first, AgeRange):
            return first == AgeRange()
        return first.start == 0 and not await self._transactions.retry(self._others_wrote)

    async def _others_wrote(self) -> bool:
        async with self._transactions.open() as conn:
            return await self._transactions.writers.detected(conn)

    async def _sweep_again(self, batches: Batches, whole: Range, statistics: PassStatistics) -> None:
        """Repeat until no rows remain or the rest stay locked; `statistics` are those of the first pass."""
        nested = batches.target.self_referencing
        reference_passes = self._run.tuning.most_reference_passes if nested else 0
        waits = list(self._run.tuning.pass_waits)
        ranges = [whole]
        while waits:
            if statistics.deleted and reference_passes:
                reference_passes -= 1
            else:
                wait = waits.pop(0)
                if statistics.locked or statistics.kept:
                    await self._lease.sleep(wait)
            left, statistics = await self._sweep(ranges, batches, batches.delete_again)
            if (statistics.eligible and isinstance(ranges[0], BlockRange)) or (nested and statistics.deleted):
                # A row that was updated meanwhile may have moved behind the pass, and rows that a deleted row
                # referenced are eligible now.
                left = [await self._transactions.retry(self._repeat_range, batches, ranges[0])]
            if not left:
                return
            ranges = left
        self._report_rest(batches.target, statistics)

    async def _sweep(
        self, ranges: list[Range], batches: Batches, delete_batch: _DeleteBatch
    ) -> tuple[list[Range], PassStatistics]:
        """Sweep each range once. Return the ranges that still contain eligible rows."""
        left: list[Range] = []
        statistics = PassStatistics()
        for range_ in ranges:
            rest: Range | None = range_
            while rest is not None:
                await self._throttle.wait_for_pressure()
                batch = await self._transactions.retry(delete_batch, rest)
                statistics.add(batch)
                if batch.eligible > batch.deleted:
                    left.append(batch.covered)
                rest = batch.rest
                if rest is not None:
                    await self._throttle.rest(batches.took)
        return left, statistics

    def _report_rest(self, target: Target, statistics: PassStatistics) -> None:
        if target.self_referencing and statistics.deleted:
            self.notes.append(
                f"Rows of {target.name} reference each other over more than"
                f" {self._run.tuning.most_reference_passes} levels: the next run deletes those that are left."
            )
        elif statistics.kept:
            raise kept_by_trigger(target.name)
        elif statistics.locked:
            raise RetentionError(
                f"Up to {statistics.locked} eligible rows of {target.name} are locked by other transactions:"
                " end these (see pg_stat_activity); the next run deletes the rows."
            )
