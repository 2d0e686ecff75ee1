"""Applies migrations: one transaction each, one process at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors, sql

from watchkeeper.database._connection import one_line
from watchkeeper.database._migrations import QUERIES, Migration, MigrationSource, find_missing
from watchkeeper.exceptions import MigrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

    from watchkeeper.database._connection import Connection

_OLDEST_SERVER: Final = 150000


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationTimeouts:
    """How long a migration waits: for its turn, for the lock on a table, and between attempts to get it."""

    turn: timedelta = timedelta(minutes=10)
    lock: timedelta = timedelta(seconds=3)  # short and retried: a waiting migration blocks all others
    attempts: int = 10
    pause: timedelta = timedelta(seconds=1)


class Migrator:
    """Migrates over the owner's connection; `service` is the role for the grants, None if it is the owner."""

    def __init__(self, conn: Connection, *, service: str | None, timeouts: MigrationTimeouts) -> None:
        self._conn = conn
        self._service = service
        self._timeouts = timeouts

    async def run(self, sources: Sequence[MigrationSource]) -> list[str]:
        """Apply the missing migrations, then the grants; return the names of what was applied."""
        if self._conn.info.server_version < _OLDEST_SERVER:
            raise MigrationError(
                f"The server is PostgreSQL {self._conn.info.server_version // 10000}: take 15 or newer."
            )
        known = [(source, source.read()) for source in sources]
        try:
            return await self._migrate(known)
        except psycopg.Error as error:
            if self._conn.closed:
                raise
            raise MigrationError(f"The migration failed: {one_line(error)}.") from error

    async def _migrate(self, known: Sequence[tuple[MigrationSource, list[Migration]]]) -> list[str]:
        await self._create_table()
        done: list[str] = []
        for source, migrations in known:
            while applied := await self._apply_next_with_retries(source, migrations):
                done.append(str(applied))
        if self._service is not None:
            await self._grant([source for source, _ in known], sql.Identifier(self._service))
        return done

    async def _create_table(self) -> None:
        try:
            async with self._conn.transaction():
                await self._acquire_lock()
                if not await has_table(self._conn):
                    await self._conn.execute(QUERIES["create_table"])
        except errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"The role {self._conn.info.user} may not create tables here ({one_line(error)}): grant it"
                " CREATE on the schema, or set DATABASE_OWNER_URL to a role that may."
            ) from error

    async def _apply_next_with_retries(
        self, source: MigrationSource, migrations: list[Migration]
    ) -> Migration | None:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._apply_next(source, migrations)
            except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
                if attempt >= self._timeouts.attempts:
                    raise MigrationError(
                        f"Migrating {source.name} got no lock in {attempt} attempts: {one_line(error)}."
                        " Another session holds it: find it in pg_locks, end it, and start again."
                    ) from error
            await asyncio.sleep(self._timeouts.pause.total_seconds())

    async def _apply_next(self, source: MigrationSource, migrations: list[Migration]) -> Migration | None:
        async with self._conn.transaction():
            await self._acquire_lock()
            cursor = await self._conn.execute(QUERIES["applied"], {"source": source.name})
            missing = find_missing(source.name, migrations, dict(await cursor.fetchall()))
            if not missing:
                return None
            await self._apply(missing[0])
            return missing[0]

    async def _acquire_lock(self) -> None:
        await self._set_lock_timeout(self._timeouts.turn)
        try:
            await self._conn.execute(QUERIES["acquire_lock"])
        except errors.LockNotAvailable as error:
            raise MigrationError(
                f"Another process has been migrating this database for {self._timeouts.turn}: see in"
                " pg_stat_activity what it waits for."
            ) from error
        await self._set_lock_timeout(self._timeouts.lock)

    async def _apply(self, migration: Migration) -> None:
        try:
            before = await self._transaction_id()
            await self._conn.execute(migration.sql)
            after = await self._transaction_id()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            raise
        except psycopg.Error as error:
            if self._conn.closed:
                raise
            raise MigrationError(
                f"{migration} failed{_line_of(migration.sql, error)}: {one_line(error)}. None of it was"
                " applied."
            ) from error
        if before != after:
            raise MigrationError(
                f"{migration} ends its transaction by itself: remove COMMIT, ROLLBACK and BEGIN from it."
                " What it did before that remains: undo it by hand."
            )
        await self._conn.execute(
            QUERIES["record"],
            {
                "source": migration.source,
                "number": migration.number,
                "name": migration.name,
                "checksum": migration.checksum,
            },
        )

    async def _grant(self, sources: Sequence[MigrationSource], service: sql.Identifier) -> None:
        async with self._conn.transaction():
            await self._acquire_lock()
            await self._conn.execute(sql.SQL(QUERIES["grant_read"]).format(service=service))
            for source in sources:
                text = source.grants()
                if text is None:
                    continue
                try:
                    await self._conn.execute(sql.SQL(text).format(service=service))
                except psycopg.Error as error:
                    if self._conn.closed:
                        raise
                    raise MigrationError(f"{source.name}/grants.sql failed: {one_line(error)}.") from error

    async def _transaction_id(self) -> str:
        cursor = await self._conn.execute(QUERIES["transaction_id"])
        return str((await cursor.fetchall())[0][0])

    async def _set_lock_timeout(self, limit: timedelta) -> None:
        await self._conn.execute(
            "SELECT set_config('lock_timeout', %s, true)", [f"{int(limit.total_seconds() * 1000)}ms"]
        )


async def has_table(conn: AsyncConnection) -> bool:
    """Return whether the current role sees the table of applied migrations."""
    cursor = await conn.execute(QUERIES["has_table"])
    return bool((await cursor.fetchall())[0][0])


def _line_of(text: str, error: psycopg.Error) -> str:
    position = error.diag.statement_position
    return f" in line {text.count(chr(10), 0, int(position) - 1) + 1}" if position else ""
