"""The pool while its server stops, returns, crashes, freezes and drops connections."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from support.postgres import DatabaseUrls, PostgresServer
from watchkeeper.database import Database
from watchkeeper.exceptions import DatabaseUnavailableError

SECOND = timedelta(seconds=1)


@pytest.fixture
def urls(postgres_private: PostgresServer) -> DatabaseUrls:
    """A database on a server that the test may stop or crash."""
    return postgres_private.create_database()


@pytest.fixture
async def fragile(urls: DatabaseUrls) -> AsyncIterator[Database]:
    """That database, opened, with one connection in the pool."""
    async with Database(
        urls.url, pool_max=1, acquire_timeout=SECOND / 2, statement_timeout=SECOND / 2
    ) as database:
        await database.ping()
        yield database


async def _until_back(database: Database) -> None:
    """Wait until the database answers."""
    started = time.monotonic()
    while True:
        try:
            await database.ping()
        except DatabaseUnavailableError:
            assert time.monotonic() - started < 60
        else:
            return


async def test_a_waiting_request_is_served_after_the_outage(
    urls: DatabaseUrls, postgres_private: PostgresServer
) -> None:
    """A request made during the outage gets its connection without another request."""
    async with Database(urls.url, acquire_timeout=60 * SECOND) as database:
        await database.ping()
        postgres_private.stop()
        waiting = asyncio.create_task(database.ping())
        await asyncio.sleep(2.5)
        postgres_private.start()
        await waiting


async def test_a_restart_between_two_requests_is_not_noticed(
    fragile: Database, postgres_private: PostgresServer
) -> None:
    """The dead connections of the pool are detected and replaced."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        postgres_private.stop(sign)
        postgres_private.start()
        await fragile.ping()


async def test_losing_the_server_in_a_transaction_is_unavailability(
    fragile: Database, postgres_private: PostgresServer
) -> None:
    """The next statement raises, whether the server was stopped or crashed."""

    async def work(sign: signal.Signals) -> None:
        async with fragile.transaction() as conn:
            await conn.execute("SELECT 1")
            postgres_private.stop(sign)
            await conn.execute("SELECT 2")

    for sign in (signal.SIGINT, signal.SIGKILL):
        with pytest.raises(DatabaseUnavailableError, match="was lost"):
            await work(sign)
        postgres_private.start()
        await _until_back(fragile)


async def test_a_lost_transaction_is_never_taken_for_a_commit(
    fragile: Database, postgres_private: PostgresServer
) -> None:
    """This holds when the server stops before the commit and when the block suppresses the error."""

    async def go_on() -> None:
        async with fragile.transaction() as conn:
            await conn.execute("SELECT 1")
            postgres_private.stop()

    async def swallow() -> None:
        async with fragile.transaction() as conn:
            await conn.execute("SELECT 1")
            postgres_private.stop()
            with contextlib.suppress(psycopg.OperationalError):
                await conn.execute("SELECT 2")

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        await go_on()
    postgres_private.start()
    await _until_back(fragile)
    with pytest.raises(DatabaseUnavailableError, match="nothing was committed"):
        await swallow()


async def test_killed_connections_are_replaced(urls: DatabaseUrls, postgres_private: PostgresServer) -> None:
    """After `pg_terminate_backend` of each there are as many as before, and no request fails."""

    async def use(barrier: asyncio.Barrier) -> None:
        async with database.connection() as conn:
            await barrier.wait()
            await conn.execute("SELECT 1")

    async with Database(urls.url, pool_max=5) as database:
        for _ in range(3):
            barrier = asyncio.Barrier(5)
            await asyncio.gather(*(use(barrier) for _ in range(5)))
            postgres_private.terminate_clients()


async def test_a_message_does_not_invalidate_a_connection(fragile: Database, urls: DatabaseUrls) -> None:
    """A readable socket does not always mean that the server has stopped."""
    async with fragile.connection() as conn:
        await conn.execute("LISTEN news")
        before = conn.info.backend_pid
    async with await psycopg.AsyncConnection.connect(urls.url, autocommit=True) as other:
        await other.execute("NOTIFY news")
    await asyncio.sleep(0.1)
    async with fragile.connection() as conn:
        assert conn.info.backend_pid == before


async def test_a_terminated_statement_is_unavailability(
    fragile: Database, postgres_private: PostgresServer
) -> None:
    """A statement that the administrator terminates fails as unavailable; the next one works."""

    async def work() -> None:
        async with fragile.connection() as conn:
            await conn.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    postgres_private.terminate_clients()
    with pytest.raises(DatabaseUnavailableError, match="terminating connection due to administrator command"):
        await task
    await fragile.ping()


async def test_nothing_hangs_on_a_frozen_server(fragile: Database, postgres_private: PostgresServer) -> None:
    """Each request ends within its limits, a cancelled one at once, and all works after the thaw."""
    postgres_private.freeze()
    with pytest.raises(DatabaseUnavailableError, match="gave no answer within"):
        async with fragile.transaction() as conn:
            await conn.execute("SELECT 1")
    with pytest.raises(DatabaseUnavailableError, match="No connection to the database"):
        await fragile.ping()
    postgres_private.thaw()
    await _until_back(fragile)


async def test_a_cancelled_request_does_not_wait_for_a_frozen_server(
    urls: DatabaseUrls, postgres_private: PostgresServer
) -> None:
    """Alone, psycopg would hang for up to ten seconds."""
    async with Database(urls.url) as database:
        await database.ping()
        postgres_private.freeze()
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(database.ping(), 0.2)
        assert time.monotonic() - started < 9
        postgres_private.thaw()


async def test_too_many_connections_are_unavailability(
    urls: DatabaseUrls, postgres_private: PostgresServer
) -> None:
    """The error of a role at its limit has the server's reason."""
    postgres_private.execute(sql.SQL("ALTER ROLE keeper CONNECTION LIMIT 1"))
    async with (
        await psycopg.AsyncConnection.connect(urls.url),
        Database(urls.url, acquire_timeout=SECOND / 5) as database,
    ):
        with pytest.raises(DatabaseUnavailableError, match="too many connections"):
            await database.ping()


async def test_many_requests_survive_a_restart(urls: DatabaseUrls, postgres_private: PostgresServer) -> None:
    """Fifty users of five connections get unavailability or success only, and finally succeed."""
    outcomes: set[str] = set()
    over = asyncio.Event()

    async def use() -> str:
        outcome = "never"
        while outcome != "success" or not over.is_set():
            try:
                async with database.transaction() as conn:
                    await conn.execute("SELECT pg_sleep(0.001)")
                outcome = "success"
            except DatabaseUnavailableError:
                outcome = "unavailable"
            outcomes.add(outcome)
        return outcome

    async with Database(urls.url, pool_max=5, acquire_timeout=SECOND / 2) as database:
        users = [asyncio.create_task(use()) for _ in range(50)]
        await asyncio.sleep(0.3)
        postgres_private.stop(signal.SIGKILL)
        await asyncio.sleep(1)
        postgres_private.start()
        over.set()
        assert set(await asyncio.gather(*users)) == {"success"}
    assert outcomes == {"success", "unavailable"}
