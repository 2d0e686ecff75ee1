"""One bounded delete: a batch covers the first part of a range, of the table's blocks or timestamps.

A plain batch is one statement, by far the fastest way, and fails if it meets a locked row. The other kind
skips locked rows and counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._sample import Sample
    from watchkeeper.retention.table._target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class AgeRange:
    """A closed range of timestamps, as PostgreSQL writes them, except for some rows (table and ctid)."""

    start: str = "-infinity"
    stop: str = "infinity"
    skip: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRange:
    """A half-open range of the table's blocks, except for some rows (table and ctid)."""

    start: int
    stop: int
    skip: tuple[tuple[str, str], ...] = ()

    def cut(self, blocks: int) -> tuple[BlockRange, BlockRange | None]:
        """Return the first blocks of the range, and the remainder."""
        stop = min(self.start + blocks, self.stop)
        rest = BlockRange(start=stop, stop=self.stop) if stop < self.stop else None
        return BlockRange(start=self.start, stop=stop), rest

    def parameters(self) -> dict[str, str]:
        """Return the range as parameters of a query."""
        return {"start": f"({self.start},0)", "stop": f"({self.stop},0)"}


Range = AgeRange | BlockRange


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchResult:
    """The outcome of one batch."""

    eligible: int  # rows in the covered part
    available: int  # of these, rows that no other transaction had locked
    deleted: int  # of these; a trigger may keep some
    covered: Range
    rest: Range | None  # for the next batch; None at the end


async def choose_range(
    conn: AsyncConnection[Any], target: Target, sampled: Sample, index_scan_share: float
) -> Range:
    """Return the whole table as the first pass scans it: by age if few rows are old, else by block."""
    if target.indexed and sampled.share <= index_scan_share:
        return AgeRange()
    return await _all_blocks(conn, target)


async def repeat_range(conn: AsyncConnection[Any], target: Target, range_: Range) -> Range:
    """Return the whole table as a later pass scans it.

    A block scan is repeated as one: the index still has an entry for every deleted row.
    """
    return AgeRange() if isinstance(range_, AgeRange) else await _all_blocks(conn, target)


async def delete_plain(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: Range, size: int
) -> BatchResult:
    """Delete eligible rows; raises LockNotAvailable if another transaction has locked one of them."""
    if isinstance(range_, AgeRange):
        return await _delete_ages(conn, target, horizon, range_, size)
    covered, rest = range_.cut(size)
    deleted = await conn.execute(
        target.fill(QUERIES["delete_blocks"]), {"horizon": horizon, **covered.parameters()}
    )
    return _all_deleted(deleted.rowcount, covered, rest)


async def skip_empty(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: BlockRange, size: int
) -> BatchResult | None:
    """Return an empty batch if the next blocks have no eligible row, None if they have one."""
    covered, rest = range_.cut(size)
    (found,) = await fetch_row(
        conn, target.fill(QUERIES["any_in_blocks"]), {"horizon": horizon, **covered.parameters()}
    )
    return None if found else _all_deleted(0, covered, rest)


async def delete_unlocked(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: Range, size: int
) -> BatchResult:
    """Delete as `delete_skip_locked`, but count the remaining rows only if none is deleted.

    For the first pass: later ones scan the whole table, and counting would read each block a second time.
    """
    if isinstance(range_, BlockRange) and not target.has_children:
        covered, rest = range_.cut(size)
        deleted = await _delete_unlocked_blocks(conn, target, horizon, covered)
        if deleted:
            return _all_deleted(deleted, covered, rest)
    return await delete_skip_locked(conn, target, horizon, range_, size)


async def delete_skip_locked(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: Range, size: int
) -> BatchResult:
    """Delete eligible rows that no other transaction has locked, and count those that are kept."""
    if isinstance(range_, AgeRange):
        return await _delete_ages_skip_locked(conn, target, horizon, range_, size)
    covered, rest = range_.cut(size)
    within = {"horizon": horizon, **covered.parameters()}
    if target.has_children:
        eligible, available, deleted = await fetch_row(
            conn, target.fill(QUERIES["delete_child_blocks_skip_locked"]), within
        )
    else:
        deleted = await _delete_unlocked_blocks(conn, target, horizon, covered)
        left, free = await fetch_row(conn, target.fill(QUERIES["count_left_in_blocks"]), within)
        eligible, available = deleted + left, deleted + free
    return BatchResult(eligible=eligible, available=available, deleted=deleted, covered=covered, rest=rest)


async def _delete_ages(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: AgeRange, size: int
) -> BatchResult:
    within = {"horizon": horizon, "start": range_.start, "stop": range_.stop}
    found = await conn.execute(target.fill(QUERIES["age_after"]), {**within, "size": size})
    after = await found.fetchone()
    covered, rest = range_, None
    if after is not None:
        if not after[1]:  # more rows with one timestamp than a batch may delete
            return await _delete_ages_skip_locked(conn, target, horizon, range_, size)
        covered = AgeRange(start=range_.start, stop=after[0])
        rest = AgeRange(start=after[0], stop=range_.stop)
    deleted = await conn.execute(
        target.fill(QUERIES["delete_ages"]), {**within, "stop": covered.stop, "last": rest is None}
    )
    return _all_deleted(deleted.rowcount, covered, rest)


async def _delete_ages_skip_locked(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: AgeRange, size: int
) -> BatchResult:
    eligible, available, deleted, newest = await fetch_row(
        conn,
        target.fill(QUERIES["delete_ages_skip_locked"]),
        {"horizon": horizon, "start": range_.start, "stop": range_.stop, "size": size},
    )
    covered, rest = range_, None
    # If only locked rows with one timestamp remain, the next batch would find the same rows again.
    if eligible >= size and (deleted or newest != range_.start):
        covered = AgeRange(start=range_.start, stop=newest)
        rest = AgeRange(start=newest, stop=range_.stop)
    return BatchResult(eligible=eligible, available=available, deleted=deleted, covered=covered, rest=rest)


async def _delete_unlocked_blocks(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, range_: BlockRange
) -> int:
    within = {"horizon": horizon, **range_.parameters()}
    untouched = await conn.execute(target.fill(QUERIES["delete_blocks_never_locked"]), within)
    others = await conn.execute(target.fill(QUERIES["delete_blocks_skip_locked"]), within)
    return untouched.rowcount + others.rowcount


async def _all_blocks(conn: AsyncConnection[Any], target: Target) -> BlockRange:
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return BlockRange(start=0, stop=blocks)


def _all_deleted(rows: int, covered: Range, rest: Range | None) -> BatchResult:
    return BatchResult(eligible=rows, available=rows, deleted=rows, covered=covered, rest=rest)
