"""The pool on a running server: connections, transactions, time limits and cancellation."""

import asyncio
import contextlib
import logging
import random
from datetime import timedelta

import psycopg
import pytest
from psycopg import errors

from support.postgres import DatabaseUrls
from watchkeeper.database import Database
from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError
from watchkeeper.settings import Secret

SECOND = timedelta(seconds=1)


async def _scratch(urls: DatabaseUrls) -> None:
    async with await psycopg.AsyncConnection.connect(urls.owner_url, autocommit=True) as conn:
        await conn.execute("CREATE TABLE scratch (id integer PRIMARY KEY)")
        await conn.execute("GRANT ALL ON scratch TO keeper")


async def _numbers(database: Database) -> list[int]:
    async with database.connection() as conn:
        cursor = await conn.execute("SELECT id FROM scratch ORDER BY id")
        return [row[0] for row in await cursor.fetchall()]


async def _sleepers(database: Database) -> int:
    async with database.connection() as conn:
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%pg_sleep(60)' AND state = 'active'"
        )
        return int((await cursor.fetchall())[0][0])


async def test_a_connection_commits_each_statement(database_urls: DatabaseUrls, database: Database) -> None:
    """Statements before an exception stay committed."""
    await _scratch(database_urls)

    async def work() -> None:
        async with database.connection() as conn:
            await conn.execute("INSERT INTO scratch VALUES (1)")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await work()
    assert await _numbers(database) == [1]


async def test_a_transaction_is_all_or_nothing(database_urls: DatabaseUrls, database: Database) -> None:
    """It commits at its end, and an exception rolls all of it back."""
    await _scratch(database_urls)

    async def work(error: Exception | None) -> None:
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO scratch SELECT count(*) FROM scratch")
            await conn.execute("INSERT INTO scratch SELECT count(*) FROM scratch")
            if error:
                raise error

    await work(None)
    with pytest.raises(ValueError, match="mine"):
        await work(ValueError("mine"))
    assert await _numbers(database) == [0, 1]


async def test_an_error_of_the_statement_passes_unchanged(
    database_urls: DatabaseUrls, database: Database
) -> None:
    """A constraint violation stays psycopg's own error, and the connection stays usable."""
    await _scratch(database_urls)
    for _ in range(2):
        with pytest.raises(errors.UniqueViolation, match="scratch_pkey"):
            async with database.transaction() as conn:
                await conn.execute("INSERT INTO scratch VALUES (1), (1)")
    assert await _numbers(database) == []


async def test_a_suppressed_error_is_not_a_commit(database_urls: DatabaseUrls, database: Database) -> None:
    """The transaction raises at its end, where PostgreSQL would roll back silently."""
    await _scratch(database_urls)

    async def swallow() -> None:
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO scratch VALUES (1)")
            with contextlib.suppress(errors.UndefinedTable):
                await conn.execute("SELECT FROM nowhere")

    with pytest.raises(errors.InFailedSqlTransaction, match="its error was swallowed"):
        await swallow()
    assert await _numbers(database) == []


async def test_a_savepoint_saves_the_rest(database_urls: DatabaseUrls, database: Database) -> None:
    """An error inside `conn.transaction()` leaves the outer transaction usable."""
    await _scratch(database_urls)
    async with database.transaction() as conn:
        await conn.execute("INSERT INTO scratch VALUES (1)")
        with pytest.raises(errors.UniqueViolation, match="scratch_pkey"):
            async with conn.transaction():
                await conn.execute("INSERT INTO scratch VALUES (1)")
        await conn.execute("INSERT INTO scratch VALUES (2)")
    assert await _numbers(database) == [1, 2]


async def test_the_wait_in_a_full_pool_is_bounded(database_urls: DatabaseUrls) -> None:
    """The error says that all connections are in use."""
    async with Database(database_urls.url, pool_max=1, acquire_timeout=SECOND / 10) as database:
        async with database.connection():
            with pytest.raises(DatabaseUnavailableError, match=r"was free within 0\.1 s: all 1 are in use"):
                await database.ping()
        await database.ping()


async def test_a_slow_statement_is_cancelled(database_urls: DatabaseUrls) -> None:
    """It ends for the caller and on the server, and the pool stays usable."""

    async def work() -> None:
        async with database.connection() as conn:
            await conn.execute("SELECT pg_sleep(60)")

    async with Database(database_urls.url, pool_max=1, statement_timeout=SECOND / 5) as database:
        with pytest.raises(DatabaseUnavailableError, match=r"gave no answer within 0\.2 s"):
            await work()
        assert await _sleepers(database) == 0


async def test_one_connection_may_have_its_own_timeout(database_urls: DatabaseUrls) -> None:
    """The next user of the connection has the default again."""

    async def work(limit: timedelta | None) -> None:
        async with database.transaction(statement_timeout=limit) as conn:
            await conn.execute("SELECT pg_sleep(0.5)")

    async with Database(database_urls.url, pool_max=1, statement_timeout=SECOND / 5) as database:
        await work(5 * SECOND)
        with pytest.raises(DatabaseUnavailableError, match=r"gave no answer within 0\.2 s"):
            await work(None)


async def test_a_cancelled_task_leaves_nothing_running(database_urls: DatabaseUrls) -> None:
    """Its statement ends on the server, its transaction is rolled back, and its connection is free."""
    await _scratch(database_urls)

    async def work() -> None:
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO scratch VALUES (1)")
            await conn.execute("SELECT pg_sleep(60)")

    async with Database(database_urls.url, pool_max=1) as database:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.3)
        assert await _numbers(database) == []
        assert await _sleepers(database) == 0


async def test_cancelling_at_random_loses_no_connection(database_urls: DatabaseUrls) -> None:
    """After many cancelled tasks all connections of the pool are available."""
    chance = random.Random(7)
    barrier = asyncio.Barrier(4)

    async def work() -> None:
        async with database.transaction() as conn:
            await conn.execute("SELECT pg_sleep(0.001)")

    async def hold() -> None:
        async with database.connection() as conn:
            await barrier.wait()
            await conn.execute("SELECT 1")

    async with Database(database_urls.url, pool_max=4, acquire_timeout=5 * SECOND) as database:
        for _ in range(20):
            tasks = [asyncio.create_task(work()) for _ in range(20)]
            await asyncio.sleep(chance.random() * 0.01)
            for task in chance.sample(tasks, 15):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(hold() for _ in range(4)))


async def test_opening_succeeds_without_a_server() -> None:
    """The first use of a connection raises with the reason and without the password."""
    url = Secret("postgresql://keeper:hush-hush@127.0.0.1:1/x")
    async with Database(url, acquire_timeout=SECOND / 2) as database:
        with pytest.raises(DatabaseUnavailableError, match="Connection refused") as caught:
            await database.ping()
    assert "hush-hush" not in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


async def test_migrating_without_a_server_says_why() -> None:
    """Migrating raises unavailability with the reason."""
    database = Database("postgresql://keeper@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnavailableError, match=r"cannot be reached: .*Connection refused"):
        await database.migrate()


async def test_a_closed_database_raises_and_can_be_opened_again(database: Database) -> None:
    """Connections are refused before open and after close; opening twice is harmless."""
    await database.close()
    await database.close()
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        await database.ping()
    await database.open()
    await database.open()
    await database.ping()


async def test_closing_ends_the_wait_for_a_connection(database_urls: DatabaseUrls) -> None:
    """A request that waits in the pool fails at once when it is closed."""
    async with (
        Database(database_urls.url, pool_max=1, acquire_timeout=30 * SECOND) as database,
        database.connection(),
    ):
        waiting = asyncio.create_task(database.ping())
        await asyncio.sleep(0.05)
        await database.close()
        with pytest.raises(DatabaseUnavailableError, match="closed during the wait"):
            await waiting


async def test_the_pool_does_not_log_each_use(database_urls: DatabaseUrls) -> None:
    """Its `info` lines are off unless an operator has set a level for its logger."""
    logger = logging.getLogger("psycopg.pool")
    before = logger.level
    try:
        for given, expected in ((logging.NOTSET, logging.WARNING), (logging.DEBUG, logging.DEBUG)):
            logger.setLevel(given)
            async with Database(database_urls.url):
                assert logger.level == expected
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool_min": 3, "pool_max": 2}, "pool_min between 0 and pool_max"),
        ({"pool_min": 0, "pool_max": 0}, "pool_max must be at least 1"),
        ({"acquire_timeout": timedelta(0)}, "must be longer than 0"),
        ({"statement_timeout": -SECOND}, "must be longer than 0"),
    ],
)
def test_settings_of_the_pool_are_checked(arguments: dict[str, object], message: str) -> None:
    """A pool that could not work is refused when it is created."""
    with pytest.raises(ConfigurationError, match=message):
        Database("postgresql://keeper@/x", **arguments)  # type: ignore[arg-type]  # that is the point


def test_a_bad_connection_string_is_not_repeated() -> None:
    """The error shows an example instead of the string, which may contain a password."""
    with pytest.raises(
        ConfigurationError, match="DATABASE_OWNER_URL is not a PostgreSQL connection string"
    ) as caught:
        Database("postgresql://keeper@/x", owner_url="mysql://keeper:hush-hush@/x")
    assert "hush-hush" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://keeper:hush-hush@h:notaport/d", "has an invalid port"),
        ("postgresql://keeper:hush-hush@h:99999/d", "has an invalid port"),
        ("postgresql://keeper:hush-hush@h:0/d", "has an invalid port"),
        ("postgresql://keeper:hush-hush@h:54x2,i:5432/d", "has an invalid port"),
        ("host=h port=5432,5433 password=hush-hush", "has an invalid port"),
        ("postgresql://keeper:hush-hush@h/d?connect_timeout=soon", "has an invalid connect_timeout"),
        ("postgresql://keeper:hush-hush@h/d?keepalives_idle=10s", "has an invalid keepalives_idle"),
        ("postgresql://keeper:hush-hush@h/d?sslmode=banana", "has an invalid sslmode"),
        ("postgresql://keeper:hush-hush@h/d?load_balance_hosts=hush-hush", "has an invalid load_balance"),
        ("postgresql://keeper:hush-hush@h/d?ssl_min_protocol_version=9", "has an invalid ssl_min_proto"),
        ("postgresql://keeper:hush-hush\udcff@h/d", "is not a PostgreSQL connection string"),
        ("postgresql://keeper:hush-hush@h/d?service=hush-hush", "has an invalid service"),
        ("postgresql://keeper:hush-hush@h/d?sslmod=require", "is not a PostgreSQL connection string"),
        ("postgresql://keeper:hush-hush%zz@h/d", "is not a PostgreSQL connection string"),
        ("postgresql://keeper:hush-hush@[::1/d", "is not a PostgreSQL connection string"),
    ],
)  # fmt: skip
def test_a_connection_string_that_can_never_work_is_refused(url: str, named: str) -> None:
    """The error names the parameter; the service does not wait for a server."""
    with pytest.raises(ConfigurationError, match=f"^DATABASE_URL {named}") as caught:
        Database(url)
    assert "hush-hush" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://keeper@h:5432,i:5433/d?target_session_attrs=read-write&load_balance_hosts=random",
        "postgresql://keeper@h,i:5433/d",
        "postgresql://keeper@h/d?sslmode=verify-full&sslrootcert=/not/there/yet.pem",
        "postgresql://keeper@[::1]:5432/d?connect_timeout=5&keepalives=1&application_name=h%C3%A9",
        "host=/run/postgresql port=' 5432 ' user=keeper",
        "hostaddr=127.0.0.1,127.0.0.2 port=5432,5433",
        "postgresql:///d",
        "port=5432,5433",
        "postgresql://keeper@/d?port=",
        "",
    ],
)
def test_a_valid_connection_string_is_accepted(url: str) -> None:
    """It may name files and hosts that do not exist yet."""
    assert Database(url).warnings == []
