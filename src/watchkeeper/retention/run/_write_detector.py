"""Whether anybody but a run itself wrote while it went over a table: if not, no row has moved past it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from psycopg import AsyncConnection


class OtherWriters:
    """Counts the transactions that got an id, which all that write do, against a run's own.

    The ids are the whole server's, whichever database and table somebody wrote to.
    """

    def __init__(self) -> None:
        self._next: int | None = None
        self._own = 0

    async def begin(self, conn: AsyncConnection[Any]) -> None:
        """Count from here on.

        Args:
            conn: The connection of a transaction that has not written.
        """
        self._next, self._own = await _next_id(conn), 0

    def note_own(self) -> None:
        """Note that the run has committed a transaction that wrote."""
        self._own += 1

    def doubt(self) -> None:
        """Note that the run cannot know, such as after an outage: another server may count in its own way."""
        self._next = None

    async def seen(self, conn: AsyncConnection[Any]) -> bool:
        """Say whether there were others. In doubt there were: not every one that is counted has moved a row.

        Args:
            conn: The connection of a transaction that has not written.
        """
        upcoming = await _next_id(conn)
        return self._next is None or upcoming is None or upcoming - self._next != self._own


async def _next_id(conn: AsyncConnection[Any]) -> int | None:
    """Return the id after those of all transactions that have ended; None if one before it has not."""
    quiet, upcoming = await fetch_row(conn, QUERIES["next_id"])
    return int(upcoming) if quiet else None
