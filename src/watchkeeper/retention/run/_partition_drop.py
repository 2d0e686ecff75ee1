"""Drops old partitions: faster than any delete, and nothing is left for vacuum.

One transaction a partition, as the owner of the tables:

1. Lock the partition against writes, which are rare in an old one.
2. Read its bound again, count its rows in ranges of blocks, and check that none of them is held. That takes
   up to seconds, so it comes before the run is locked in the ledger: adding a hold waits for that lock.
3. Lock the run in the ledger, check that no hold has been added, lock all tables, drop the partition,
   update the ledger's count.

DROP waits for the parent table, and blocks others, for about `LOCK_TIMEOUT` at most; then it is rolled back
and tried again. Once it has all locks, dropping takes a millisecond or so for each table and index. A
statement that could touch any partition (an UPDATE by another column) locks the parent, then all partitions:
it would wait for the partition, and DROP for it. Where that happens, the parent is locked before the count,
if that was quick.

Not DETACH CONCURRENTLY: interrupted, it leaves a partition whose rows are neither in the table nor in the
ledger, and it is refused next to a default partition.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import errors, sql

from watchkeeper.database._connection import one_line
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._queries import QUERIES, fetch_row, milliseconds
from watchkeeper.retention.run._lease import TRANSIENT
from watchkeeper.retention.table._partitions import (
    BUSY,
    HELD,
    LOCK_TIMEOUT,
    Partition,
    Partitions,
    explain_kept,
    read_partitions,
    set_partition_timeouts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg import AsyncConnection

    from watchkeeper.database._owner import Owner
    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._lease import Lease
    from watchkeeper.retention.run._throttle import Throttle
    from watchkeeper.retention.run._transactions import Transactions
    from watchkeeper.retention.table._target import Target

# DROP takes several locks one after another, and keeps the first ones while it waits for the next.
_LOCKS_TIMEOUT: Final = 2 * LOCK_TIMEOUT
_MAX_DROP_TIME: Final = timedelta(seconds=8)  # shorter than the connection's own time-out
_COUNT_TARGET: Final = timedelta(milliseconds=25)
# No retry helps.
_REFUSED: Final = (
    errors.DependentObjectsStillExist,
    errors.InsufficientPrivilege,
    errors.OutOfMemory,  # more locks than the server has room for
    errors.UndefinedTable,
)


class PartitionKeptError(Exception):
    """The partition cannot be dropped; its eligible rows are deleted in batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A dropped partition: the rows that the run has deleted so far, and how long the transaction took."""

    total: int
    took: timedelta = timedelta(0)


class PartitionDrop:
    """Drops the old partitions of one run, as the owner of the tables."""

    def __init__(
        self, run: Run, owner: Owner, lease: Lease, throttle: Throttle, transactions: Transactions
    ) -> None:
        self._run = run
        self._owner = owner
        self._lease = lease
        self._throttle = throttle
        self._transactions = transactions
        self._kept: dict[str, str] = {}
        self._locks_parent = False

    @property
    def notes(self) -> list[str]:
        """Which partitions were not dropped, and why."""
        return explain_kept(self._kept)

    async def drop_all(self, target: Target, partitions: Partitions) -> AsyncIterator[Dropped]:
        """Drop the partitions that can be dropped, and yield after each."""
        self._kept.update(partitions.kept)
        busy = False
        for at, partition in enumerate(partitions.dropped):

            async def drop(partition: Partition = partition) -> Dropped:
                return await self._drop(target, partition)

            await self._throttle.wait_out_pressure()
            away = False
            try:
                # A long query that locks one partition usually locks all: the others get one attempt.
                dropped = await (drop() if busy else self._transactions.retry(drop))
            except PartitionKeptError as error:
                kept = str(error)
            except BUSY:
                kept, busy = "other transactions have it locked", True
            except _REFUSED as error:
                kept = one_line(error)
            except DatabaseUnavailableError as error:
                kept, away = f"its owner cannot drop it: {one_line(error)}", True
            else:
                yield dropped
                continue
            # If the response to a commit was lost, the retry found the partition gone.
            total = await self._total_with(partition)
            if total is None:
                self._kept[partition.name] = kept
            else:
                yield Dropped(total=total)
            if away:  # it was retried; the batches delete the rows
                self._kept.update((rest.name, kept) for rest in partitions.dropped[at + 1 :])
                return

    async def _total_with(self, partition: Partition) -> int | None:
        """Return how many rows the run has deleted if it dropped this partition; None if not."""
        row = None
        with suppress(*TRANSIENT):
            async with self._run.database.connection() as conn:
                parameters = {"run": self._run.claim.id, "partition": partition.name}
                row = await (await conn.execute(QUERIES["dropped_partition"], parameters)).fetchone()
        return None if row is None else int(row[0])

    async def _drop(self, target: Target, partition: Partition) -> Dropped:
        """Drop one partition in its own transaction."""
        self._lease.check()
        began = time.monotonic()
        try:
            async with self._owner.transaction() as conn:
                total = await self._drop_in(conn, target, partition)
        except errors.QueryCanceled as error:  # not for a lock: the next attempt would take as long
            raise PartitionKeptError(f"it takes too long ({error.diag.message_primary})") from error
        self._lease.record_renewal()
        return Dropped(total=total, took=timedelta(seconds=time.monotonic() - began))

    async def _drop_in(self, conn: AsyncConnection[Any], target: Target, partition: Partition) -> int:
        """Drop one partition in this transaction, and return how many rows the run has deleted with it."""
        await set_partition_timeouts(conn)
        if self._locks_parent:
            await conn.execute(sql.SQL(QUERIES["lock_parent"]).format(table=target.table), {})
        await _lock(conn, "lock_partition", target, partition)
        partition = await self._read_again(conn, target, partition)
        target = await target.with_holds(conn)
        rows = 0
        for oid, leaf in partition.leaves.items():
            rows += await self._count(conn, replace(target, oid=oid, table=leaf))
        if not self._locks_parent and await _longest_wait(conn):
            self._locks_parent = True
            raise errors.LockNotAvailable(
                "another transaction has locked the table and waits for the partition"
            )
        await self._run.ledger.lock(conn, self._run.claim)
        if (await target.with_holds(conn)).holds != target.holds:
            raise PartitionKeptError("a hold was added or released during the drop")
        await _limit_statements(conn, _LOCKS_TIMEOUT)
        await _lock(conn, "lock_to_drop", target, partition)
        await _limit_statements(conn, self._drop_timeout(len(partition.leaves)))
        await conn.execute(sql.SQL(QUERIES["drop_partition"]).format(table=partition.table), {})
        total = await self._run.ledger.record_deleted(conn, self._run.claim, rows, partition.bytes)
        await conn.execute(
            QUERIES["record_partition"], {"run": self._run.claim.id, "partition": partition.name}
        )
        return total

    async def _read_again(
        self, conn: AsyncConnection[Any], target: Target, partition: Partition
    ) -> Partition:
        """Read the partition again under its lock: it may have been detached, to be kept elsewhere."""
        found = await read_partitions(conn, target, self._run.claim.horizon, partition.oid)
        if [one.name for one in found.old] != [partition.name]:
            raise PartitionKeptError("it was changed during the drop")
        (again,) = found.old
        if again.kept is not None:
            raise PartitionKeptError(again.kept)
        return again

    async def _count(self, conn: AsyncConnection[Any], leaf: Target) -> int:
        query = leaf.fill(QUERIES["count_blocks"])
        (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": leaf.oid})
        rows, start, size = 0, 0, self._run.tuning.partition_first_blocks
        while start < blocks:
            began = time.monotonic()
            within = {"start": f"({start},0)", "stop": f"({start + size},0)"}
            # All rows are old by the bound, which was read under the lock and excludes NULL timestamps.
            counted, held = await fetch_row(conn, query, within)
            if held:
                raise PartitionKeptError(HELD)
            rows += counted
            start += size
            await self._let_others_in(conn)
            size = self._scale(size, timedelta(seconds=time.monotonic() - began))
        return rows

    async def _let_others_in(self, conn: AsyncConnection[Any]) -> None:
        await self._lease.heartbeat()
        self._lease.check()
        if await _longest_wait(conn) > LOCK_TIMEOUT:
            raise errors.LockNotAvailable("another transaction waits for the partition")

    def _drop_timeout(self, tables: int) -> timedelta:
        tuning = self._run.tuning
        return min(tuning.drop_timeout + tables * tuning.drop_timeout_per_table, _MAX_DROP_TIME)

    def _scale(self, size: int, took: timedelta) -> int:
        factor = min(max(_COUNT_TARGET / max(took, timedelta(milliseconds=1)), 0.5), 4.0)
        return min(max(int(size * factor), 1), self._run.tuning.partition_largest_blocks)


async def _longest_wait(conn: AsyncConnection[Any]) -> timedelta:
    (waited,) = await fetch_row(conn, QUERIES["longest_wait"])
    return timedelta(seconds=waited)


async def _lock(
    conn: AsyncConnection[Any],
    query: Literal["lock_partition", "lock_to_drop"],
    target: Target,
    partition: Partition,
) -> None:
    try:
        await conn.execute(sql.SQL(QUERIES[query]).format(whole=target.table, table=partition.table), {})
    except errors.QueryCanceled as error:  # no single lock took too long, but all of them together
        raise errors.LockNotAvailable(one_line(error)) from error


async def _limit_statements(conn: AsyncConnection[Any], longest: timedelta) -> None:
    await conn.execute(QUERIES["statement_timeout"], {"statement_ms": milliseconds(longest)})
