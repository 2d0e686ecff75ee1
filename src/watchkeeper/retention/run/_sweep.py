"""One bounded delete, and what of its span is left to do.

This is the engine: what goes is decided by the target's predicate, how to get there is the sweep's business.
A sweep goes over a stretch of the table's blocks or of its ages. Usually it deletes what it finds there by
one plain statement, which is quickest by far. A careful one leaves the rows alone that others have locked,
and tells how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._share import Sample
    from watchkeeper.retention.table._target import Target

# Below this share of old rows each one is looked up by the index of their age, above it all blocks are read.
# Measured with 2.5 M rows: some 8 us for each row that is looked up, 0.1 us for each that is read.
_FEW: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class AgeSpan:
    """A stretch of ages, as PostgreSQL writes them, with both ends, but for some rows (table and place)."""

    start: str = "-infinity"
    stop: str = "infinity"
    skip: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpan:
    """A stretch of the table's blocks, without its end, but for some rows (table and place)."""

    start: int
    stop: int
    skip: tuple[tuple[str, str], ...] = ()


Span = AgeSpan | BlockSpan


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What one sweep came to.

    Args:
        seen: Eligible rows in what it covered.
        held: How many of them it could lock.
        deleted: How many of those went.
        covered: The part of the span that it dealt with.
        rest: The part that the next one deals with; None at the end.
    """

    seen: int
    held: int
    deleted: int
    covered: Span
    rest: Span | None


async def first_span(conn: AsyncConnection[Any], target: Target, drawn: Sample) -> Span:
    """Return the whole table as it is gone over first: by ages where few rows are old, else by blocks.

    Args:
        conn: Any connection.
        target: The table.
        drawn: A sample of it.
    """
    if target.indexed and drawn.share <= _FEW:
        return AgeSpan()
    return await _all_blocks(conn, target)


async def again(conn: AsyncConnection[Any], target: Target, span: Span) -> Span:
    """Return the whole table as it is gone over after this span, for what was left and for rows that moved.

    By blocks again where it was by blocks: the index still leads to all that is gone, row by row.

    Args:
        conn: Any connection.
        target: The table.
        span: As it was gone over before.
    """
    return AgeSpan() if isinstance(span, AgeSpan) else await _all_blocks(conn, target)


async def sweep(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: Span, size: int
) -> Swept:
    """Delete rows of a span that are older than the horizon.

    Args:
        conn: The connection of a transaction that holds the run's lock.
        target: The table.
        horizon: Rows older than this are eligible.
        span: Where to look.
        size: How many rows, or blocks, to take on, about.

    Raises:
        psycopg.errors.LockNotAvailable: Somebody has locked one of them.
    """
    if isinstance(span, AgeSpan):
        return await _sweep_ages(conn, target, horizon, span, size)
    covered, rest = cut(span, size)
    deleted = await conn.execute(
        target.fill(QUERIES["delete_by_place"]), {"horizon": horizon, **places(covered)}
    )
    return _all_deleted(deleted.rowcount, covered, rest)


async def look_ahead(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: BlockSpan, size: int
) -> Swept | None:
    """Return what a sweep of a span would come to where it finds nothing; None where there is something.

    Args:
        conn: Any connection.
        target: The table, without parts.
        horizon: Rows older than this are eligible.
        span: Where to look.
        size: How many blocks to take on.
    """
    covered, rest = cut(span, size)
    (found,) = await fetch_row(
        conn, target.fill(QUERIES["any_by_place"]), {"horizon": horizon, **places(covered)}
    )
    return None if found else _all_deleted(0, covered, rest)


async def sweep_unlocked(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: Span, size: int
) -> Swept:
    """Delete as `sweep_carefully`, but do not count what stays of a range of blocks if anything goes.

    For a first pass: those after it look at the whole table, and counting takes a second look at each block.

    Args:
        conn: The connection of a transaction that holds the run's lock.
        target: The table.
        horizon: Rows older than this are eligible.
        span: Where to look.
        size: How many rows, or blocks, to take on, about.
    """
    if isinstance(span, BlockSpan) and not target.in_parts:
        covered, rest = cut(span, size)
        deleted = await _delete_unlocked(conn, target, horizon, covered)
        if deleted:
            return _all_deleted(deleted, covered, rest)
    return await sweep_carefully(conn, target, horizon, span, size)


async def sweep_carefully(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: Span, size: int
) -> Swept:
    """Delete rows of a span that are older than the horizon and that nobody else has locked.

    Args:
        conn: The connection of a transaction that holds the run's lock.
        target: The table.
        horizon: Rows older than this are eligible.
        span: Where to look.
        size: How many rows, or blocks, to take on, about.
    """
    if isinstance(span, AgeSpan):
        return await _sweep_ages_carefully(conn, target, horizon, span, size)
    covered, rest = cut(span, size)
    within = {"horizon": horizon, **places(covered)}
    if target.in_parts:
        seen, held, deleted = await fetch_row(conn, target.fill(QUERIES["sweep_by_place"]), within)
        return Swept(seen=seen, held=held, deleted=deleted, covered=covered, rest=rest)
    deleted = await _delete_unlocked(conn, target, horizon, covered)
    left, free = await fetch_row(conn, target.fill(QUERIES["left_by_place"]), within)
    return Swept(seen=deleted + left, held=deleted + free, deleted=deleted, covered=covered, rest=rest)


async def _sweep_ages(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: AgeSpan, size: int
) -> Swept:
    within = {"horizon": horizon, "start": span.start, "stop": span.stop}
    found = await conn.execute(target.fill(QUERIES["age_after"]), {**within, "size": size})
    after = await found.fetchone()
    if after is None:
        last, covered, rest = True, span, None
    elif after[1]:
        last, covered, rest = (
            False,
            AgeSpan(start=span.start, stop=after[0]),
            AgeSpan(start=after[0], stop=span.stop),
        )
    else:  # more rows of one age than a sweep may take on
        return await _sweep_ages_carefully(conn, target, horizon, span, size)
    deleted = await conn.execute(
        target.fill(QUERIES["delete_by_age"]), {**within, "stop": covered.stop, "last": last}
    )
    return _all_deleted(deleted.rowcount, covered, rest)


async def _sweep_ages_carefully(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: AgeSpan, size: int
) -> Swept:
    seen, held, deleted, newest = await fetch_row(
        conn,
        target.fill(QUERIES["sweep_by_age"]),
        {"horizon": horizon, "start": span.start, "stop": span.stop, "size": size},
    )
    if seen < size:
        return Swept(seen=seen, held=held, deleted=deleted, covered=span, rest=None)
    if newest == span.start and not deleted:
        # Nothing but rows of one age that cannot be had: going on would find the same again.
        return Swept(seen=seen, held=held, deleted=0, covered=span, rest=None)
    return Swept(
        seen=seen,
        held=held,
        deleted=deleted,
        covered=AgeSpan(start=span.start, stop=newest),
        rest=AgeSpan(start=newest, stop=span.stop),
    )


async def _delete_unlocked(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: BlockSpan
) -> int:
    within = {"horizon": horizon, **places(span)}
    untouched = await conn.execute(target.fill(QUERIES["delete_by_place_untouched"]), within)
    others = await conn.execute(target.fill(QUERIES["delete_by_place_unlocked"]), within)
    return untouched.rowcount + others.rowcount


async def _all_blocks(conn: AsyncConnection[Any], target: Target) -> BlockSpan:
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return BlockSpan(start=0, stop=blocks)


def _all_deleted(rows: int, covered: Span, rest: Span | None) -> Swept:
    return Swept(seen=rows, held=rows, deleted=rows, covered=covered, rest=rest)


def cut(span: BlockSpan, blocks: int) -> tuple[BlockSpan, BlockSpan | None]:
    """Return so many blocks of the span, and the others."""
    stop = min(span.start + blocks, span.stop)
    rest = BlockSpan(start=stop, stop=span.stop) if stop < span.stop else None
    return BlockSpan(start=span.start, stop=stop), rest


def places(span: BlockSpan) -> dict[str, str]:
    """Return the span as parameters."""
    return {"start": f"({span.start},0)", "stop": f"({span.stop},0)"}
