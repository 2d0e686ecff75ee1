"""A connection outside the pool, as the owner of the tables, and transactions that really commit."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from psycopg import AsyncConnection, errors
from psycopg.pq import TransactionStatus

from watchkeeper.database._connection import Connection, translate_errors
from watchkeeper.exceptions import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Owner:
    """Connects as the owner of the tables for the first transaction, and again after a lost connection."""

    def __init__(self, conninfo: str, answer_timeout: float) -> None:
        self._conninfo = conninfo
        self._answer_timeout = answer_timeout
        self._conn: Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Provide a connection for one transaction, with the errors of `Database.transaction`."""
        if self._conn is None or self._conn.closed:
            self._conn = await connect_once(self._conninfo, self._answer_timeout)
        with translate_errors(self._conn):
            async with committed(self._conn):
                yield self._conn

    async def close(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


async def connect_once(conninfo: str, answer_timeout: float | None) -> Connection:
    """Open a connection in autocommit outside the pool; raise `DatabaseUnavailableError` where that fails."""
    with translate_errors(None):
        return await Connection.connect(
            conninfo, autocommit=True, prepare_threshold=None, answer_timeout=answer_timeout
        )


@asynccontextmanager
async def committed(conn: AsyncConnection) -> AsyncIterator[None]:
    """Run one transaction, and raise unless it was committed."""
    async with conn.transaction():
        yield
        # psycopg would leave the block silently in both cases, with nothing committed.
        if conn.closed:
            raise DatabaseUnavailableError("The connection to the database was lost: nothing was committed.")
        if conn.info.transaction_status == TransactionStatus.INERROR:
            raise errors.InFailedSqlTransaction(
                "a statement failed and its error was swallowed: nothing is committed; put what may fail"
                " into conn.transaction(), a savepoint"
            )
