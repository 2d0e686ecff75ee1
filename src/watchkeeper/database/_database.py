"""The connection pool: opens with the server down, recovers within half a second, bounds every wait."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from watchkeeper.database._connection import Connection, connection_string, one_line, translate_errors
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS, QUERIES, MigrationSource
from watchkeeper.database._migrator import MigrationTimeouts, Migrator, has_table
from watchkeeper.database._owner import Owner, committed, connect_once
from watchkeeper.database._roles import current_role, find_role_problems
from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError
from watchkeeper.settings import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg
    from psycopg import AsyncConnection


# With psycopg_pool's default of 5 minutes the back-off grows to half a minute, and the pool recovers 8-22 s
# after the server. With this value the attempts are half a second apart, and made only while a request waits.
_RECONNECT_S: Final = 0.5
_CLOSE_TIMEOUT_S: Final = 1.0


class Database:
    """One PostgreSQL database: a pool for the service's role, and the owner's role for migrations.

    It can be opened with the server down: a connection then raises `DatabaseUnavailableError` until the
    server is back. `async with Database(…)` opens it for the block.

    Args:
        url: Connection string of the service's role.
        owner_url: Connection string of the role that owns the tables; default `url`.
        pool_min: Connections that are kept open; default 1.
        pool_max: Largest number of connections; default 10.
        prepared_statements: False behind PgBouncer in transaction mode; default True.
        acquire_timeout: Longest wait for a connection; default 2 s.
        statement_timeout: Longest wait for the answer to one statement; default 10 s.
    """

    def __init__(  # noqa: PLR0913  # options, all named
        self,
        url: str | Secret,
        *,
        owner_url: str | Secret | None = None,
        pool_min: int = 1,
        pool_max: int = 10,
        prepared_statements: bool = True,
        acquire_timeout: timedelta = timedelta(seconds=2),
        statement_timeout: timedelta = timedelta(seconds=10),
    ) -> None:
        if not 0 <= pool_min <= pool_max or pool_max < 1:
            raise ConfigurationError("pool_max must be at least 1, and pool_min between 0 and pool_max.")
        if min(acquire_timeout, statement_timeout) <= timedelta(0):
            raise ConfigurationError("acquire_timeout and statement_timeout must be longer than 0.")
        self._conninfo = connection_string(_reveal(url), "DATABASE_URL")
        self._owner_conninfo = (
            connection_string(_reveal(owner_url), "DATABASE_OWNER_URL") if owner_url else self._conninfo
        )
        self._pool_size = (pool_min, pool_max)
        self._prepare_threshold = 5 if prepared_statements else None
        self._acquire_timeout = acquire_timeout.total_seconds()
        self._answer_timeout = statement_timeout.total_seconds()
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._last_error: psycopg.Error | None = None
        self._sources: tuple[MigrationSource, ...] = (LIBRARY_MIGRATIONS,)
        self.warnings: list[str] = []

    async def open(self) -> None:
        """Start connecting and return at once, with the server up or down; a second call does nothing."""
        if self._pool is not None:
            return
        pool_logger = logging.getLogger("psycopg.pool")
        if pool_logger.level == logging.NOTSET:
            # It logs three `info` lines for each use of a connection.
            pool_logger.setLevel(logging.WARNING)
        self._pool = AsyncConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs={
                "autocommit": True,
                "prepare_threshold": self._prepare_threshold,
                "answer_timeout": self._answer_timeout,
                "report": self._record_error,
            },
            name="database",
            min_size=self._pool_size[0],
            max_size=self._pool_size[1],
            open=False,
            timeout=self._acquire_timeout,
            reconnect_timeout=_RECONNECT_S,
            reconnect_failed=_retry_if_awaited,
        )
        await self._pool.open()

    async def close(self) -> None:
        """Close the idle connections now, and those in use when they are returned; it can be opened again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=_CLOSE_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(
        self, *, statement_timeout: timedelta | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """Provide a connection in autocommit; `statement_timeout` replaces the database's.

        Raises:
            DatabaseUnavailableError: No connection was free in time, or the server stopped answering. Errors
                in the statements are raised unchanged, as psycopg errors.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError("The database is not open: call open() first.")
        conn = await self._acquire(pool)
        conn.answer_timeout = (
            self._answer_timeout if statement_timeout is None else statement_timeout.total_seconds()
        )
        try:
            with translate_errors(conn):
                yield conn
        finally:
            await pool.putconn(conn)

    @asynccontextmanager
    async def transaction(
        self, *, statement_timeout: timedelta | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """Provide a connection for one transaction: committed at the end, rolled back on an exception.

        Raises:
            DatabaseUnavailableError: As for `connection`. If the commit raises it, the outcome of the
                transaction is unknown.
            psycopg.errors.InFailedSqlTransaction: The block suppressed the error of a statement.
        """
        async with self.connection(statement_timeout=statement_timeout) as conn, committed(conn):
            yield conn

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[Owner]:
        """Provide transactions as the owner of the tables, for what the service's role may not do."""
        owner = Owner(self._owner_conninfo, self._answer_timeout)
        try:
            yield owner
        finally:
            await owner.close()

    async def ping(self) -> None:
        """Query the server; raise `DatabaseUnavailableError` if it does not answer."""
        async with self.connection() as conn:
            await conn.execute("SELECT 1")

    async def migrate(
        self, *sources: MigrationSource, timeouts: MigrationTimeouts | None = None
    ) -> list[str]:
        """Apply the missing migrations as the owner; any number of processes may call this at once.

        Args:
            *sources: Applied in this order; default the library's own.
            timeouts: How long to wait for other processes and locks.

        Returns:
            The migrations that this call applied, such as `watchkeeper/0001_audit_log.sql`.

        Raises:
            MigrationError: One failed, was changed after it ran, or the database is newer than the code.
        """
        self._sources = sources or (LIBRARY_MIGRATIONS,)
        async with self._connect_directly(self._conninfo, self._answer_timeout) as conn:
            service = await current_role(conn)
        async with self._connect_directly(self._owner_conninfo, None) as conn:
            owner = await current_role(conn)
            migrator = Migrator(
                conn, service=None if owner == service else service, timeouts=timeouts or MigrationTimeouts()
            )
            applied = await migrator.run(self._sources)
        await self.inspect()
        return applied

    async def pending(self, *sources: MigrationSource) -> bool:
        """Return whether the database lacks a migration of `sources`, default those of the last `migrate`."""
        async with self.connection() as conn:
            if not await has_table(conn):
                return True
            newest = dict(await (await conn.execute(QUERIES["newest"])).fetchall())
        return any(newest.get(source.name, 0) < source.count() for source in sources or self._sources)

    async def inspect(self) -> list[str]:
        """Check the privileges of the service's role; return the problems and store them in `warnings`."""
        async with self._connect_directly(self._conninfo, self._answer_timeout) as conn:
            self.warnings = await find_role_problems(conn)
        return self.warnings

    async def _acquire(self, pool: AsyncConnectionPool[Connection]) -> Connection:
        deadline = time.monotonic() + self._acquire_timeout
        while True:
            try:
                conn = await pool.getconn(timeout=max(deadline - time.monotonic(), 0))
            except PoolTimeout as error:
                raise self._no_connection() from (self._last_error or error)
            except PoolClosed as error:
                raise DatabaseUnavailableError("The database was closed during the wait.") from error
            alive = False
            try:
                alive = await conn.is_alive()
            finally:
                if not alive:
                    await pool.putconn(conn)
            if alive:
                return conn

    def _no_connection(self) -> DatabaseUnavailableError:
        waited = f"within {self._acquire_timeout:g} s"
        if self._last_error is None:
            return DatabaseUnavailableError(
                f"No connection to the database was free {waited}: all {self._pool_size[1]} are in use."
            )
        return DatabaseUnavailableError(
            f"No connection to the database could be made {waited}: {one_line(self._last_error)}"
        )

    def _record_error(self, error: psycopg.Error | None) -> None:
        self._last_error = error

    @asynccontextmanager
    async def _connect_directly(
        self, conninfo: str, answer_timeout: float | None
    ) -> AsyncIterator[Connection]:
        conn = await connect_once(conninfo, answer_timeout)
        try:
            with translate_errors(conn):
                yield conn
        finally:
            await conn.close()


async def _retry_if_awaited(pool: AsyncConnectionPool[Connection]) -> None:
    # The pool has given up: a new request makes it try again, but those that already wait do not.
    if pool.get_stats()["requests_waiting"]:
        await pool.check()


def _reveal(url: str | Secret) -> str:
    return url.reveal() if isinstance(url, Secret) else url
