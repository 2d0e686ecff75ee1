"""A connection beside the pool, as the owner of the tables, and how a transaction ends."""

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
    """Connects when the first transaction begins, and anew after the connection was lost.

    Args:
        conninfo: Connection string of the role that owns the tables.
        answer_timeout: Longest wait for the answer to one statement, in seconds.
    """

    def __init__(self, conninfo: str, answer_timeout: float) -> None:
        self._conninfo = conninfo
        self._answer_timeout = answer_timeout
        self._conn: Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend the connection for one transaction: committed at the end, rolled back on an exception.

        Raises:
            DatabaseUnavailableError: The owner cannot connect, or the server went away meanwhile. When it
                comes from the commit, whether that took place is not known.
            psycopg.errors.InFailedSqlTransaction: An error of a statement was swallowed inside the block.
        """
        if self._conn is None or self._conn.closed:
            self._conn = await connect_once(self._conninfo, self._answer_timeout)
        with translate_errors(self._conn):
            async with committed(self._conn):
                yield self._conn

    async def close(self) -> None:
        """Let go of the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


async def connect_once(conninfo: str, answer_timeout: float | None) -> Connection:
    """Make a connection in autocommit that is in no pool.

    Args:
        conninfo: What `connection_string` made.
        answer_timeout: Longest wait for the answer to one statement, in seconds; None for no limit.

    Raises:
        DatabaseUnavailableError: The server cannot be reached, or lets this role not in.
    """
    with translate_errors(None):
        return await Connection.connect(
            conninfo, autocommit=True, prepare_threshold=None, answer_timeout=answer_timeout
        )


@asynccontextmanager
async def committed(conn: AsyncConnection) -> AsyncIterator[None]:
    """Have one transaction, and see that it was committed.

    Args:
        conn: A connection in autocommit.
    """
    async with conn.transaction():
        yield
        # psycopg would leave both of these silently, with nothing committed.
        if conn.closed:
            raise DatabaseUnavailableError("The connection to the database was lost: nothing was committed.")
        if conn.info.transaction_status == TransactionStatus.INERROR:
            raise errors.InFailedSqlTransaction(
                "a statement failed and its error was swallowed: nothing is committed; put what may fail"
                " into conn.transaction(), a savepoint"
            )
