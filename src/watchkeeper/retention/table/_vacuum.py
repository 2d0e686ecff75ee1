"""What deleting leaves behind: dead rows, and whether vacuum keeps up with them."""

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
    """How a table, with its parts, stands to vacuum; as far as the server's statistics know.

    Args:
        table: The policy's name.
        dead: Rows that are deleted and still there.
        due: Those of them that autovacuum looks after; it is off for the others.
        starts_at: From how many on it would start; 0 if it is off for all of the table.
        automatic: Whether autovacuum looks after any of it.
        vacuumed_at: When any of it was last vacuumed, by whomever; None if it never was.
    """

    table: str
    dead: int
    due: int
    starts_at: float
    automatic: bool
    vacuumed_at: datetime | None

    def is_behind(self, times: float = _BEHIND) -> bool:
        """Say whether autovacuum should have been here long since.

        Args:
            times: In multiples of what it would start at.
        """
        return self.automatic and self.due > self.starts_at * times


async def read_vacuum(conn: AsyncConnection[Any], policies: Sequence[Policy]) -> dict[str, Vacuum]:
    """Read how the tables of policies stand to vacuum; those that are not there are missing.

    Args:
        conn: Any connection.
        policies: What is declared.
    """
    parameters = {
        "names": [policy.name for policy in policies],
        "tables": [policy.table for policy in policies],
        "schemas": [policy.schema for policy in policies],
    }
    async with conn.cursor(row_factory=class_row(Vacuum)) as cursor:
        await cursor.execute(QUERIES["vacuum"], parameters)
        return {state.table: state for state in await cursor.fetchall()}
