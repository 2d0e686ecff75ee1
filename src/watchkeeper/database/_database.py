"""The connection pool: quick to open, quick to recover, and nobody waits in it for ever."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from watchkeeper.database._connection import Connection, connection_string, one_line, translate_errors
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS, MigrationSource
from watchkeeper.database._migrator import MigrationTimeouts, Migrator, has_table
from watchkeeper.database._owner import Owner, committed, connect_once
from watchkeeper.database._queries import Queries
from watchkeeper.database._roles import current_role, find_role_problems
from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError
from watchkeeper.settings import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg
    from psycopg import AsyncConnection

_QUERIES: Final = Queries.load("watchkeeper.database", "migrations")

# The pool's default of 5 minutes backs off to half a minute between attempts, so it would come back 8-22 s
# after the server. This way each attempt is half a second after the last, and only while somebody waits.
_RECONNECT_S: Final = 0.5
_CLOSE_TIMEOUT_S: Final = 1.0


class Database:
    """One PostgreSQL database, as the service's role, and as the owner where migrations run.

    Opening succeeds with the server down; what then asks for a connection gets `DatabaseUnavailableError`
    until the server is back, and a connection from then on, without a restart. As `async with Database(…)`
    it is open inside the block.

    Args:
        url: Connection string of the service's role.
        owner_url: Connection string of the role that owns the tables; default `url`.
        pool_min: Connections that are kept open.
        pool_max: Connections at most.
        prepared_statements: False behind PgBouncer in transaction mode.
        acquire_timeout: Longest wait for a connection.
        statement_timeout: Longest wait for the answer to one statement.

    Raises:
        ConfigurationError: An argument is not usable.
    """

    def __init__(  # noqa: PLR0913  # settings, each by its name
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
        """Start connecting; returns at once, with the server up or down. Opening twice is one opening."""
        if self._pool is not None:
            return
        pool_logger = logging.getLogger("psycopg.pool")
        if pool_logger.level == logging.NOTSET:
            # It writes three `info` lines for each use of a connection.
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
            reconnect_failed=_try_again,
        )
        await self._pool.open()

    async def close(self) -> None:
        """Close the connections; one in use is closed when it comes back. It may be opened again."""
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
        """Lend a connection in autocommit: each statement is its own transaction.

        Args:
            statement_timeout: Instead of the database's own, for this use.

        Raises:
            DatabaseUnavailableError: None came free in time, or the server went away or silent meanwhile. An
                error of a statement itself stays psycopg's own.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError("The database is not open: it is before open() or after close().")
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
        """Lend a connection for one transaction: committed at the end, rolled back on an exception.

        Args:
            statement_timeout: Instead of the database's own, for each statement of this one.

        Raises:
            DatabaseUnavailableError: As for `connection`. When it comes from the commit, whether that took
                place is not known.
            psycopg.errors.InFailedSqlTransaction: An error of a statement was swallowed inside the block, so
                that there is nothing to commit.
        """
        async with (
            self.connection(statement_timeout=statement_timeout) as conn,
            committed(conn),
        ):
            yield conn

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[Owner]:
        """Lend what connects as the owner, for what the service's own role may not do."""
        owner = Owner(self._owner_conninfo, self._answer_timeout)
        try:
            yield owner
        finally:
            await owner.close()

    async def ping(self) -> None:
        """Ask the server for an answer.

        Raises:
            DatabaseUnavailableError: There is none.
        """
        async with self.connection() as conn:
            await conn.execute("SELECT 1")

    async def migrate(
        self, *sources: MigrationSource, timeouts: MigrationTimeouts | None = None
    ) -> list[str]:
        """Apply what the database lacks, as the owner; any number of processes may call it at once.

        Args:
            *sources: Applied in this order; default the library's own.
            timeouts: How long to wait for other processes and locks.

        Returns:
            The migrations that this call applied, such as `watchkeeper/0001_audit_log.sql`.

        Raises:
            MigrationError: One failed, was changed after it ran, or the database is newer than the code.
            DatabaseUnavailableError: The server cannot be reached, or went away meanwhile.
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
        """Say whether the database lacks a migration; a database that is newer lacks none.

        Args:
            *sources: What to look for; default what `migrate` was last called with.

        Raises:
            DatabaseUnavailableError: The server cannot be reached.
        """
        async with self.connection() as conn:
            if not await has_table(conn):
                return True
            newest = dict(await (await conn.execute(_QUERIES["newest"])).fetchall())
        return any(newest.get(source.name, 0) < source.count() for source in sources or self._sources)

    async def inspect(self) -> list[str]:
        """Look at how the service's role stands to the tables, and keep the findings in `warnings`.

        Returns:
            A sentence for each thing that makes the protection of the tables weaker.
        """
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
                raise DatabaseUnavailableError("The database was closed meanwhile.") from error
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
                f"No connection to the database came free {waited}: all {self._pool_size[1]} are in use."
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


async def _try_again(pool: AsyncConnectionPool[Connection]) -> None:
    # The pool has given up, but only a newcomer would make it try again, not those who already wait.
    if pool.get_stats()["requests_waiting"]:
        await pool.check()


def _reveal(url: str | Secret) -> str:
    return url.reveal() if isinstance(url, Secret) else url
