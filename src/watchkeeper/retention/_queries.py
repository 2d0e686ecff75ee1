"""The named queries of retention, and the few that always have exactly one row."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.database import Queries

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import LiteralString

    from psycopg import AsyncConnection
    from psycopg.sql import Composed

QUERIES: Final = (
    Queries.load("watchkeeper.retention", "ledger")
    | Queries.load("watchkeeper.retention", "tables")
    | Queries.load("watchkeeper.retention", "sweep")
    | Queries.load("watchkeeper.retention", "archive")
    | Queries.load("watchkeeper.retention", "partitions")
)


async def fetch_row(
    conn: AsyncConnection[Any],
    query: LiteralString | Composed,
    parameters: Mapping[str, object] | None = None,
) -> tuple[Any, ...]:
    """Return the row of a query that always has exactly one, such as an aggregate."""
    row: tuple[Any, ...] | None = await (await conn.execute(query, parameters)).fetchone()
    if row is None:
        raise AssertionError("an aggregate has a row")
    return row


def milliseconds(duration: timedelta) -> str:
    """Return a duration as PostgreSQL's settings take it."""
    return str(round(duration / timedelta(milliseconds=1)))
