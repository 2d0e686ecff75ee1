"""The named queries of retention, and what every statement needs."""

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
    Queries.load("watchkeeper.retention", "archive")
    | Queries.load("watchkeeper.retention", "batches")
    | Queries.load("watchkeeper.retention", "estimates")
    | Queries.load("watchkeeper.retention", "holds")
    | Queries.load("watchkeeper.retention", "ledger")
    | Queries.load("watchkeeper.retention", "partitions")
    | Queries.load("watchkeeper.retention", "pressure")
    | Queries.load("watchkeeper.retention", "tables")
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


async def set_transaction(conn: AsyncConnection[Any], *, statement: timedelta, lock: timedelta) -> None:
    """Set the time-outs of this transaction, and the settings that the predicates rely on."""
    timeouts = {"statement_ms": milliseconds(statement), "lock_ms": milliseconds(lock)}
    await conn.execute(QUERIES["set_transaction"], timeouts)


def milliseconds(duration: timedelta) -> str:
    """Return a duration as PostgreSQL's settings take it."""
    return str(round(duration / timedelta(milliseconds=1)))


def escape_percent(text: str) -> str:
    """Escape text for a statement with parameters, where a % begins a parameter."""
    return text.replace("%", "%%")
