"""Old partitions, dropped as a whole: quicker than any delete, and nothing is left for vacuum.

One transaction a partition, as the owner of the tables, and all or nothing of it is committed:

1. Lock the partition so that nobody writes to it, which nobody does to an old one as a rule.
2. Read its bound again, count its rows, in stretches of blocks, and see that none of them is held.
3. Lock the run in the ledger, see that no hold has come meanwhile, drop the partition, move the ledger's
   count.

Others wait for about `LOCK_WAIT` at most: that is how long dropping waits for the whole table, with all who
come after it, and how long it keeps others waiting; then it is given up, and tried again. A statement that
could touch any partition (an UPDATE by another column) locks the table, then all of them: it would wait for
the partition, and dropping for it. Where somebody does, the whole table is locked before the count, if that
was quick.

Not DETACH CONCURRENTLY: that one may leave a partition detached by half, with its rows neither there nor in
the ledger, and is refused beside a default partition. The count comes before the lock of the ledger, because
whoever adds a hold waits for that one, and counting may take seconds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias

from psycopg import errors, sql

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._partitions import (
    BUSY,
    HELD,
    LOCK_WAIT,
    Partition,
    Partitions,
    explain,
    limit,
    milliseconds,
    one_line,
    read_partitions,
)
from watchkeeper.retention._query import QUERIES, fetch_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from psycopg import AsyncConnection

    from watchkeeper.database import Owner
    from watchkeeper.retention._ledger import Claim, Ledger
    from watchkeeper.retention._patience import Patience
    from watchkeeper.retention._target import Target

    Patiently: TypeAlias = Callable[[Callable[[], Awaitable[int]]], Awaitable[int]]

# Dropping takes several locks, one after the other, and keeps the first ones while it waits for the next.
_DROP_TIMEOUT: Final = 2 * LOCK_WAIT
_STRETCH: Final = timedelta(milliseconds=25)
_FIRST_BLOCKS: Final = 2048
_LARGEST_BLOCKS: Final = 65_536
# What no waiting mends. A database that is away meets the sweep as well, which says so then.
_REFUSED: Final = (
    DatabaseUnavailableError,
    errors.DependentObjectsStillExist,
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
)


class PartitionKeptError(Exception):
    """A partition is not dropped as a whole; its rows go one by one, as far as they may."""


class PartitionDrop:
    """Drops the old partitions of one run.

    Args:
        owner: Who drops them.
        ledger: Where the run is counted.
        claim: The run.
        patience: Waits for the run.
        patiently: Tries a transaction again while it meets what may pass by itself.
    """

    def __init__(
        self,
        owner: Owner,
        ledger: Ledger,
        claim: Claim,
        *,
        patience: Patience,
        patiently: Patiently,
    ) -> None:
        self._owner = owner
        self._ledger = ledger
        self._claim = claim
        self._patience = patience
        self._patiently = patiently
        self._kept: dict[str, str] = {}
        self._exclusive = False

    @property
    def notes(self) -> list[str]:
        """What was not dropped as a whole, and why."""
        return explain(self._kept)

    async def run(self, target: Target, partitions: Partitions) -> AsyncIterator[int]:
        """Drop what can be dropped, and yield the rows of each.

        Args:
            target: The table.
            partitions: What it is divided into.
        """
        self._kept.update(partitions.kept)
        busy = False
        for partition in partitions.dropped:

            async def drop(partition: Partition = partition) -> int:
                return await self._drop(target, partition)

            await self._patience.give_way()
            try:
                # What keeps one of them locked, such as a long query, keeps them all: the others get one try.
                dropped = await (drop() if busy else self._patiently(drop))
            except PartitionKeptError as kept:
                self._kept[partition.name] = str(kept)
            except BUSY:
                busy = True
                self._kept[partition.name] = "others keep it locked"
            except _REFUSED as error:
                self._kept[partition.name] = one_line(error)
            else:
                yield dropped

    async def _drop(self, target: Target, partition: Partition) -> int:
        """Drop one, and return how many rows it had."""
        self._patience.check()
        async with self._owner.transaction() as conn:
            await limit(conn)
            if self._exclusive:
                await conn.execute(sql.SQL(QUERIES["lock_whole"]).format(table=target.table), {})
            await conn.execute(_fill(QUERIES["lock_partition"], partition), {})
            partition = await self._look_again(conn, target, partition)
            target = await target.with_holds(conn)
            rows = 0
            for oid, leaf in partition.leaves.items():
                rows += await self._count(conn, replace(target, oid=oid, table=leaf))
            if not self._exclusive and await _longest_wait(conn):
                self._exclusive = True
                raise errors.LockNotAvailable("somebody waits for the partition who has locked the table")
            await self._ledger.lock(conn, self._claim)
            if (await target.with_holds(conn)).holds != target.holds:
                raise PartitionKeptError("a hold was added or ended meanwhile")
            await conn.execute(QUERIES["statement_timeout"], {"statement_ms": milliseconds(_DROP_TIMEOUT)})
            await conn.execute(_fill(QUERIES["drop_partition"], partition), {})
            await self._ledger.move(conn, self._claim, rows, partition.bytes)
            await conn.execute(
                QUERIES["note_partition"], {"run": self._claim.id, "partition": partition.name}
            )
        return rows

    async def _look_again(
        self, conn: AsyncConnection[Any], target: Target, partition: Partition
    ) -> Partition:
        """Read under the lock what was read without it: it may have been detached, to be kept elsewhere."""
        found = await read_partitions(conn, target, self._claim.horizon, partition.oid)
        if [one.name for one in found.old] != [partition.name]:
            raise PartitionKeptError("it was changed meanwhile")
        (again,) = found.old
        if again.kept is not None:
            raise PartitionKeptError(again.kept)
        return again

    async def _count(self, conn: AsyncConnection[Any], leaf: Target) -> int:
        query = leaf.fill(QUERIES["count_by_place"])
        (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": leaf.oid})
        rows, start, size = 0, 0, _FIRST_BLOCKS
        while start < blocks:
            began = time.monotonic()
            within = {"start": f"({start},0)", "stop": f"({start + size},0)"}
            # All of them are old: so says the bound, read under the lock, and it takes no row without an age.
            counted, held = await fetch_row(conn, query, within)
            if held:
                raise PartitionKeptError(HELD)
            rows += counted
            start += size
            await self._give_way(conn)
            size = _adapted(size, timedelta(seconds=time.monotonic() - began))
        return rows

    async def _give_way(self, conn: AsyncConnection[Any]) -> None:
        await self._patience.pause(timedelta(0))  # which keeps the lease, and lets the loop turn
        self._patience.check()
        if await _longest_wait(conn) > LOCK_WAIT:
            # What the lock's time-out would raise on the other side.
            raise errors.LockNotAvailable("somebody waits for the partition")


async def _longest_wait(conn: AsyncConnection[Any]) -> timedelta:
    (waited,) = await fetch_row(conn, QUERIES["longest_wait"])
    return timedelta(seconds=waited)


def _fill(query: LiteralString, partition: Partition) -> sql.Composed:
    return sql.SQL(query).format(table=partition.table)


def _adapted(size: int, took: timedelta) -> int:
    factor = min(max(_STRETCH / max(took, timedelta(milliseconds=1)), 0.5), 4.0)
    return min(max(int(size * factor), 1), _LARGEST_BLOCKS)
