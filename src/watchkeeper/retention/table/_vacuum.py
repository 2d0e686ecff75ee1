"""The dead rows that deletes leave behind, and whether autovacuum keeps up with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import class_row

from watchkeeper.retention._queries import QUERIES
from watchkeeper.settings import Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy

_BEHIND: Final = Thresholds().dead_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Vacuum:
    """The state of a table and its children, as the server's statistics have it."""

    table: str  # the policy's name
    dead: int  # number of dead rows
    due: int  # those of them in tables that autovacuum is on for
    starts_at: float  # the number at which autovacuum starts; 0 if it is off
    automatic: bool  # whether autovacuum is on for any part of the table
    vacuumed_at: datetime | None  # when any part of it was last vacuumed

    def is_behind(self, times: float = _BEHIND) -> bool:
        """Return whether there are this many times the dead rows at which autovacuum starts."""
        return self.automatic and self.due > self.starts_at * times


async def read_vacuum(conn: AsyncConnection[Any], policies: Sequence[Policy]) -> dict[str, Vacuum]:
    """Return the state of each policy's table by its name, without tables that do not exist."""
    parameters = {
        "names": [policy.name for policy in policies],
        "tables": [policy.table for policy in policies],
        "schemas": [policy.schema for policy in policies],
    }
    async with conn.cursor(row_factory=class_row(Vacuum)) as cursor:
        await cursor.execute(QUERIES["vacuum"], parameters)
        return {state.table: state for state in await cursor.fetchall()}
