"""Whether other transactions wrote during a block scan: if not, no row moved to a block already scanned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from psycopg import AsyncConnection


class WriteDetector:
    """Compares the transaction ids that the whole server gave out, to all writers, with the run's own."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._own = 0

    async def begin(self, conn: AsyncConnection[Any]) -> None:
        """Start counting; the transaction must not have written yet."""
        self._next, self._own = await _next_id(conn), 0

    def record_own_write(self) -> None:
        """Record that the run has committed a transaction that wrote."""
        self._own += 1

    def invalidate(self) -> None:
        """Record that the run cannot know, for example after an outage: a new server counts on its own."""
        self._next = None

    async def detected(self, conn: AsyncConnection[Any]) -> bool:
        """Return whether others wrote, or may have; the transaction must not have written yet."""
        upcoming = await _next_id(conn)
        return self._next is None or upcoming is None or upcoming - self._next != self._own


async def _next_id(conn: AsyncConnection[Any]) -> int | None:
    """Return the id after those of all transactions that have ended; None if one before it has not."""
    quiet, upcoming = await fetch_row(conn, QUERIES["next_transaction_id"])
    return int(upcoming) if quiet else None
