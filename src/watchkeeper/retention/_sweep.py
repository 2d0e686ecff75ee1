"""One bounded delete, and what of its span is left to do.

This is the engine: what goes is decided by the target's predicate, how to get there is the sweep's business.
A sweep finds its rows by the index of their age where there is one, otherwise block by block, so that neither
has to pass again and again over what earlier sweeps left dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._query import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention._target import Target

_ROWS_PER_BLOCK: Final = 50  # a guess to start from; sizes adapt to the time that sweeps take


@dataclass(frozen=True, kw_only=True, slots=True)
class AgeSpan:
    """A stretch of ages, as PostgreSQL writes them, with both ends."""

    start: str = "-infinity"
    stop: str = "infinity"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpan:
    """A stretch of the table's blocks, without its end."""

    start: int
    stop: int


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


async def whole(conn: AsyncConnection[Any], target: Target) -> Span:
    """Return the span of the whole table.

    Args:
        conn: Any connection.
        target: The table.
    """
    if target.indexed:
        return AgeSpan()
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return BlockSpan(start=0, stop=blocks)


async def sweep(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: Span, size: int
) -> Swept:
    """Delete rows of a span that are older than the horizon and that nobody else has locked.

    Args:
        conn: The connection of a transaction that holds the run's lock.
        target: The table.
        horizon: Rows older than this are eligible.
        span: Where to look.
        size: How many rows to take on, about.
    """
    if isinstance(span, AgeSpan):
        return await _sweep_by_age(conn, target, horizon, span, size)
    return await _sweep_by_place(conn, target, horizon, span, size)


async def _sweep_by_age(
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


async def _sweep_by_place(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, span: BlockSpan, size: int
) -> Swept:
    stop = min(span.start + max(size // _ROWS_PER_BLOCK, 1), span.stop)
    seen, held, deleted = await fetch_row(
        conn,
        target.fill(QUERIES["sweep_by_place"]),
        {"horizon": horizon, "start": f"({span.start},0)", "stop": f"({stop},0)"},
    )
    return Swept(
        seen=seen,
        held=held,
        deleted=deleted,
        covered=BlockSpan(start=span.start, stop=stop),
        rest=BlockSpan(start=stop, stop=span.stop) if stop < span.stop else None,
    )
