"""Old partitions, dropped as a whole: quicker than any delete, and nothing is left for vacuum.

One transaction a partition, as the owner of the tables, and all or nothing of it is committed:

1. Lock the partition so that nobody writes to it, which nobody does to an old one as a rule.
2. Read its bound again, count its rows, in stretches of blocks, and see that none of them is held.
3. Lock the run in the ledger, see that no hold has come meanwhile, lock all that goes, drop the partition,
   move the ledger's count.

Others wait for about `LOCK_WAIT` at most: that is how long dropping waits for the whole table, with all who
come after it, and how long it keeps others waiting; then it is given up, and tried again. Once it waits for
nobody, dropping takes what it takes: a millisecond or so for each table and index. A statement that
could touch any partition (an UPDATE by another column) locks the table, then all of them: it would wait for
the partition, and dropping for it. Where somebody does, the whole table is locked before the count, if that
was quick.

Not DETACH CONCURRENTLY: that one may leave a partition detached by half, with its rows neither there nor in
the ledger, and is refused beside a default partition. The count comes before the lock of the ledger, because
whoever adds a hold waits for that one, and counting may take seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from psycopg import errors, sql

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.run._throttle import PASSING
from watchkeeper.retention.table._partitions import (
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.database._owner import Owner
    from watchkeeper.retention.ledger._ledger import Claim, Ledger
    from watchkeeper.retention.run._throttle import Patience
    from watchkeeper.retention.table._target import Target

    Patiently: TypeAlias = Callable[[Callable[[], Awaitable["Dropped"]]], Awaitable["Dropped"]]

# Dropping takes several locks, one after the other, and keeps the first ones while it waits for the next.
_LOCKS_TIMEOUT: Final = 2 * LOCK_WAIT
# Then it waits for nobody; a slow disk is given its time, for each table with its indexes.
_DROP_TIMEOUT: Final = timedelta(seconds=1)
_TABLE_TIMEOUT: Final = timedelta(milliseconds=10)
_LONGEST_DROP: Final = timedelta(seconds=8)  # before the connection loses its own patience
_STRETCH: Final = timedelta(milliseconds=25)
_FIRST_BLOCKS: Final = 2048
_LARGEST_BLOCKS: Final = 65_536
# What no waiting mends.
_REFUSED: Final = (
    errors.DependentObjectsStillExist,
    errors.InsufficientPrivilege,
    errors.OutOfMemory,  # more locks than the server has room for
    errors.UndefinedTable,
)


class PartitionKeptError(Exception):
    """A partition is not dropped as a whole; its rows go one by one, as far as they may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A partition is gone.

    Args:
        total: How many rows the run has deleted with it.
        took: How long its transaction took.
    """

    total: int
    took: timedelta = timedelta(0)


class PartitionDrop:
    """Drops the old partitions of one run.

    Args:
        database: Where the ledger is read.
        owner: Who drops them.
        ledger: Where the run is counted.
        claim: The run.
        patience: Waits for the run.
        patiently: Tries a transaction again while it meets what may pass by itself.
    """

    def __init__(  # noqa: PLR0913 - one of each part that takes part
        self,
        database: Database,
        owner: Owner,
        ledger: Ledger,
        claim: Claim,
        *,
        patience: Patience,
        patiently: Patiently,
    ) -> None:
        self._database = database
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

    async def run(self, target: Target, partitions: Partitions) -> AsyncIterator[Dropped]:
        """Drop what can be dropped, and yield each that went.

        Args:
            target: The table.
            partitions: What it is divided into.
        """
        self._kept.update(partitions.kept)
        busy = False
        for at, partition in enumerate(partitions.dropped):

            async def drop(partition: Partition = partition) -> Dropped:
                return await self._drop(target, partition)

            await self._patience.give_way()
            away = False
            try:
                # What keeps one of them locked, such as a long query, keeps them all: the others get one try.
                dropped = await (drop() if busy else self._patiently(drop))
            except PartitionKeptError as error:
                kept = str(error)
            except BUSY:
                kept, busy = "others keep it locked", True
            except _REFUSED as error:
                kept = one_line(error)
            except DatabaseUnavailableError as error:
                kept, away = f"its owner cannot drop it: {one_line(error)}", True
            else:
                yield dropped
                continue
            # Where the answer to a commit was lost, what came after it found the partition gone.
            total = await self._total_with(partition)
            if total is None:
                self._kept[partition.name] = kept
            else:
                yield Dropped(total=total)
            if away:  # it has been waited for; the sweep goes on without it
                self._kept.update((rest.name, kept) for rest in partitions.dropped[at + 1 :])
                return

    async def _total_with(self, partition: Partition) -> int | None:
        """Return how many rows the run has deleted if it dropped this one after all, None if not."""
        row = None
        with suppress(*PASSING):
            async with self._database.connection() as conn:
                parameters = {"run": self._claim.id, "partition": partition.name}
                row = await (await conn.execute(QUERIES["dropped"], parameters)).fetchone()
        return None if row is None else int(row[0])

    async def _drop(self, target: Target, partition: Partition) -> Dropped:
        """Drop one, all or nothing."""
        self._patience.check()
        began = time.monotonic()
        try:
            async with self._owner.transaction() as conn:
                total = await self._drop_in(conn, target, partition)
        except errors.QueryCanceled as error:  # no lock was waited for, and the next try would take as long
            raise PartitionKeptError(f"it takes too long ({error.diag.message_primary})") from error
        self._patience.renewed()
        return Dropped(total=total, took=timedelta(seconds=time.monotonic() - began))

    async def _drop_in(self, conn: AsyncConnection[Any], target: Target, partition: Partition) -> int:
        """Drop one in this transaction, and return how many rows the run has deleted with it."""
        await limit(conn)
        if self._exclusive:
            await conn.execute(sql.SQL(QUERIES["lock_whole"]).format(table=target.table), {})
        await _lock(conn, "lock_partition", target, partition)
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
        await _limit_statements(conn, _LOCKS_TIMEOUT)
        await _lock(conn, "lock_to_drop", target, partition)
        await _limit_statements(conn, _drop_timeout(len(partition.leaves)))
        await conn.execute(sql.SQL(QUERIES["drop_partition"]).format(table=partition.table), {})
        total = await self._ledger.move(conn, self._claim, rows, partition.bytes)
        await conn.execute(QUERIES["note_partition"], {"run": self._claim.id, "partition": partition.name})
        return total

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


async def _lock(
    conn: AsyncConnection[Any],
    query: Literal["lock_partition", "lock_to_drop"],
    target: Target,
    partition: Partition,
) -> None:
    try:
        await conn.execute(sql.SQL(QUERIES[query]).format(whole=target.table, table=partition.table), {})
    except errors.QueryCanceled as error:  # each of its tables was waited for, and none for too long
        raise errors.LockNotAvailable(one_line(error)) from error


async def _limit_statements(conn: AsyncConnection[Any], longest: timedelta) -> None:
    await conn.execute(QUERIES["statement_timeout"], {"statement_ms": milliseconds(longest)})


def _drop_timeout(tables: int) -> timedelta:
    return min(_DROP_TIMEOUT + tables * _TABLE_TIMEOUT, _LONGEST_DROP)


def _adapted(size: int, took: timedelta) -> int:
    factor = min(max(_STRETCH / max(took, timedelta(milliseconds=1)), 0.5), 4.0)
    return min(max(int(size * factor), 1), _LARGEST_BLOCKS)
