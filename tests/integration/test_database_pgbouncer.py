"""The pool, the migrations and the audit log behind a real PgBouncer in transaction mode."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from support.pgbouncer import running_bouncer, through
from support.postgres import SERVICE, DatabaseUrls, PostgresServer
from watchkeeper import audit
from watchkeeper.database import Database
from watchkeeper.exceptions import DatabaseUnavailableError


@pytest.fixture(scope="module")
def bouncer(postgres: PostgresServer) -> Iterator[Path]:
    """The socket folder of a PgBouncer."""
    with running_bouncer(postgres) as folder:
        yield folder


@pytest.fixture
def urls(bouncer: Path, postgres: PostgresServer) -> Iterator[DatabaseUrls]:
    """A new, empty database through PgBouncer."""
    there = postgres.create_database()
    yield through(bouncer, there)
    postgres.drop_database(there.name)


async def test_everything_works_without_prepared_statements(urls: DatabaseUrls) -> None:
    """This includes migrations and more concurrent transactions than server connections."""

    async def work(database: Database) -> None:
        for _ in range(10):
            async with database.transaction() as conn:
                await conn.execute("SELECT set_config('lock_timeout', '1234ms', true)")
                await audit.append(
                    conn, actor_type="user", actor_id="u", action="test.run", entity="thing", payload={"a": 1}
                )

    async with Database(urls.url, owner_url=urls.owner_url, prepared_statements=False) as database:
        await database.migrate()
        assert database.warnings == []
        await asyncio.gather(*(work(database) for _ in range(10)))
        async with database.connection() as conn:
            assert len(await audit.recent(conn, limit=1000)) == 100
            # A setting of one transaction does not stay on the shared server connection.
            assert await (await conn.execute("SHOW lock_timeout")).fetchall() == [("0",)]


async def test_the_statement_timeout_holds_through_pgbouncer(urls: DatabaseUrls) -> None:
    """The client enforces it, and its cancel request reaches the server."""

    async def work() -> None:
        async with database.connection() as conn:
            await conn.execute("SELECT pg_sleep(60)")

    limit = timedelta(seconds=0.3)
    async with Database(
        urls.url, owner_url=urls.owner_url, prepared_statements=False, statement_timeout=limit
    ) as database:
        for _ in range(4):
            with pytest.raises(DatabaseUnavailableError, match=r"gave no answer within 0\.3 s"):
                await work()
        async with database.connection() as conn:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)'"
            )
            assert await cursor.fetchall() == [(0,)]


async def test_a_missing_database_is_unavailability(bouncer: Path) -> None:
    """PgBouncer's error counts as a refused connection."""
    url = f"postgresql://{SERVICE}@/nowhere?host={bouncer}&port=6432"
    async with Database(url, prepared_statements=False, acquire_timeout=timedelta(seconds=0.5)) as database:
        with pytest.raises(DatabaseUnavailableError, match='"nowhere" does not exist'):
            await database.ping()


async def test_losing_a_server_connection_is_unavailability(
    urls: DatabaseUrls, postgres: PostgresServer
) -> None:
    """PgBouncer reports it with its own error; the next request works."""

    async def work() -> None:
        async with database.transaction() as conn:
            await conn.execute("SELECT 1")
            with psycopg.connect(postgres.url(urls.name), autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND usename = 'keeper'"
                )
            await conn.execute("SELECT 1")

    async with Database(urls.url, prepared_statements=False) as database:
        with pytest.raises(DatabaseUnavailableError, match="was lost"):
            await work()
        await database.ping()
