"""Fixtures for retention: a database with tables to prune, and everything that retention needs around it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from support.lines import LineFile
from support.metrics import ScrapedRegistry
from support.postgres import OWNER, SERVICE, DatabaseUrls, PostgresServer
from watchkeeper.database import Database
from watchkeeper.logs._logging import Logging
from watchkeeper.retention import (
    Archive,
    Condition,
    FolderArchive,
    Hold,
    Limits,
    Policy,
    Retention,
    RunResult,
)
from watchkeeper.retention._metrics import RetentionMetrics
from watchkeeper.retention._model import RunObserver
from watchkeeper.retention._retention import Calendar
from watchkeeper.retention.ledger._ledger import LEASE
from watchkeeper.retention.run._tuning import Tuning

EVENTS: Final = Policy(table="inbound_events", age_column="received_at", keep=timedelta(days=30))
SESSIONS: Final = Policy(table="chat_sessions", age_column="updated_at", keep=timedelta(days=90))
UNTHROTTLED: Final = Limits(share=1.0, budget=1.0)
BOTH_SCANS: Final = pytest.mark.parametrize("indexed", [True, False], ids=["index scan", "block scan"])
OPEN_RUN: Final = (
    "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon)"
    " VALUES ('inbound_events', 'manual', now(), 1, now() + interval '1 minute', now())"
)


class FixedSchedule:
    """A schedule with one scheduled time, which only the test moves."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def last_before(self, now: datetime) -> datetime:  # noqa: ARG002 - the protocol names it
        """Return the scheduled time."""
        return self.time

    def next_after(self, now: datetime) -> datetime:
        """Return tomorrow."""
        return now + timedelta(days=1)


class OnDeleted(RunObserver):
    """Calls a function with the table and the number of rows after each transaction that deleted some."""

    def __init__(self, call: Callable[[str, int], object]) -> None:
        self._call = call

    def deleted(self, table: str, rows: int) -> None:
        """Call the function."""
        self._call(table, rows)


class RetentionDB:
    """A database, the replicas that run retention on it, and what they logged and counted."""

    def __init__(self, urls: DatabaseUrls, database: Database, folder: Path, lines: LineFile) -> None:
        self.urls = urls
        self.folder = folder
        self.database = database
        self.registry = ScrapedRegistry()
        self.schedule = FixedSchedule(datetime.now(UTC) - timedelta(minutes=1))
        self._lines = lines
        self._tuning = Tuning()
        self.reconnect()
        self._logging = Logging(service="test", env="test", sink=lines.sink)
        self._metrics: RetentionMetrics | None = None
        self._replicas: list[Retention] = []

    def retention(
        self,
        *policies: Policy,
        database: Database | None = None,
        schedule: Calendar | None = None,
        lease: timedelta = LEASE,
        limits: Limits = UNTHROTTLED,
        archive: Archive | None = None,
        free_space: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> Retention:
        """Return one replica's retention; all replicas count in one registry, declared with the first."""
        chosen = policies or (EVENTS, SESSIONS)
        self._metrics = self._metrics or RetentionMetrics(self.registry, chosen)
        retention = Retention(
            database or self.database,
            chosen,
            schedule=schedule or self.schedule,
            metrics=self._metrics,
            logging=self._logging,
            lease=lease,
            limits=limits,
            archive=archive or FolderArchive(self.folder / "archive"),
            free_space=free_space,
            tuning=self._tuning,
        )
        self._replicas.append(retention)
        return retention

    def tune(self, **changes: Any) -> None:
        """Change the sizes and waits of replicas made from now on."""
        self._tuning = replace(self._tuning, **changes)

    def force_index_scans(self) -> None:
        """Let replicas made from now on find old rows by the index, however many there are."""
        self.tune(index_scan_share=1.0)

    def limit_batches(self, *, rows: int | None = None, blocks: int | None = None) -> None:
        """Limit the batches of replicas made from now on."""
        if rows is not None:
            ages = self._tuning.ages
            self.tune(ages=replace(ages, first=min(ages.first, rows), largest=rows))
        if blocks is not None:
            self.tune(blocks=replace(self._tuning.blocks, largest=blocks))

    async def overdue(self, *policies: Policy, **options: Any) -> Retention:
        """Return a retention whose policies have been registered for ten days, so that a run is due."""
        retention = self.retention(*policies, **options)
        await retention.register()
        self.sql("UPDATE retention_policies SET since = now() - interval '10 days'")
        return retention

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner, and return its rows."""
        cursor = self._owner.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def make_table(
        self, table: str = "inbound_events", age: str = "received_at", *, indexed: bool = True, old: int = 0
    ) -> None:
        """Make a table like those of the backend, with so many rows of 40 days."""
        self.sql(f"CREATE TABLE {table} (id text PRIMARY KEY, {age} timestamptz)")
        if indexed:
            self.sql(f"CREATE INDEX ON {table} ({age})")
        self.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO keeper")
        if old:
            self.fill(table, 40, old, age)

    def fill(self, table: str, days: float, rows: int, age: str = "received_at") -> None:
        """Insert rows that are this many days old, a microsecond apart."""
        self.sql(
            f"INSERT INTO {table} (id, {age})"  # noqa: S608 - the tests choose the names
            " SELECT %s || g, now() - make_interval(secs => %s) - g * interval '1 us'"
            " FROM generate_series(1, %s) g",
            f"{days}-",
            days * 86400,
            rows,
        )

    def on_delete(self, action: str, when: str = "BEFORE DELETE ON inbound_events") -> None:
        """Have a trigger run PL/pgSQL statements."""
        body = f"$$BEGIN {action}; END$$"
        self.sql(f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS {body}")
        self.sql(f"CREATE TRIGGER act {when} EXECUTE FUNCTION act()")

    def slow_down(self, seconds: float) -> None:
        """Make each DELETE on inbound_events take this long."""
        self.on_delete(f"PERFORM pg_sleep({seconds}); RETURN NULL")

    def make_contract_tables(self) -> None:
        """Make the contract's two tables: with three and two old rows, and one young row each."""
        self.make_table()
        self.make_table("chat_sessions", "updated_at")
        self.fill("inbound_events", 31, 3)
        self.fill("inbound_events", 29, 1)
        self.fill("chat_sessions", 91, 2, "updated_at")
        self.fill("chat_sessions", 89, 1, "updated_at")

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - the tests choose the name

    def audit_payloads(self, table: str | None = None) -> list[dict[str, Any]]:
        """Return the payloads of the prune entries, oldest first."""
        return [
            payload
            for (payload,) in self.sql(
                "SELECT payload FROM audit_log WHERE action = 'retention.prune'"
                " AND entity = coalesce(%s, entity) ORDER BY id",
                table,
            )
        ]

    def runs(self, table: str = "inbound_events") -> list[tuple[Any, ...]]:
        """Return attempt, state and deleted rows of a table's runs, oldest first."""
        return self.sql(
            "SELECT attempt, state, rows_deleted FROM retention_runs WHERE table_name = %s ORDER BY id", table
        )

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Return the log lines of one type so far."""
        return [line for line in self._lines.read() if line["type"] == kind]

    def job_statuses(self) -> list[str]:
        """Return the statuses of the job's log lines so far."""
        return [line["status"] for line in self.lines("job")]

    def sample(self, name: str, **labels: str) -> float | None:
        """Return a metric's value."""
        return self.registry.sample(name, **labels)

    def reset_metrics(self) -> None:
        """Start from empty metrics, as a new process does."""
        self.registry = ScrapedRegistry()
        self._metrics = None

    def reconnect(self) -> None:
        """Connect as the owner, for the statements of the test."""
        self._owner = psycopg.connect(self.urls.owner_url, autocommit=True)

    def close(self) -> None:
        """Close the owner's connection."""
        self._owner.close()

    async def close_replicas(self) -> None:
        """End the background tasks of the replicas."""
        for retention in self._replicas:
            await retention.backlog.close()


@asynccontextmanager
async def open_db(urls: DatabaseUrls, folder: Path) -> AsyncIterator[RetentionDB]:
    """Open a database for tests of retention; log lines and archives go to the folder."""
    database = Database(urls.url, owner_url=urls.owner_url)
    lines = LineFile(folder / "lines")
    await database.open()
    try:
        db = RetentionDB(urls, database, folder, lines)
        # Templates with the backend's migrations have these; the tests make plainer ones.
        db.sql("DROP TABLE IF EXISTS inbound_events, chat_sessions")
        yield db
        await db.close_replicas()
        db.close()
    finally:
        await database.close()
        lines.close()


@pytest.fixture
async def db(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[RetentionDB]:
    """A database for retention; modules override it to add their tables."""
    async with open_db(database_urls, tmp_path) as opened:
        yield opened


@pytest.fixture
async def any_db(any_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[RetentionDB]:
    """A database for retention, on each supported server in turn."""
    async with open_db(any_urls, tmp_path) as opened:
        yield opened


@pytest.fixture
async def private_db(postgres_private: PostgresServer, tmp_path: Path) -> AsyncIterator[RetentionDB]:
    """A database on a server that the test may stop or kill; what is committed is on its disk."""
    for role in (OWNER, SERVICE):
        postgres_private.execute(
            sql.SQL("ALTER ROLE {} SET synchronous_commit = on").format(sql.Identifier(role))
        )
    async with open_db(postgres_private.create_database("wk_template"), tmp_path) as opened:
        yield opened


async def hold_rows(retention: Retention, condition: str) -> Hold:
    """Hold the rows of inbound_events that meet a condition."""
    conditions = [Condition.parse(condition)]
    return await retention.operator.hold("inbound_events", conditions, reason="case", owner="legal")


async def open_databases(stack: AsyncExitStack, url: str, number: int, **options: Any) -> list[Database]:
    """Open a database for each replica, as separate processes would."""
    return [await stack.enter_async_context(Database(url, **options)) for _ in range(number)]


async def until(happened: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - it is in another process, or in the database
            await asyncio.sleep(0.01)


async def tick_beside(db: RetentionDB, retention: Retention, other: Retention) -> list[RunResult]:
    """Tick, while another replica finds the run taken however often it looks."""
    ticking = asyncio.create_task(retention.tick())
    while not db.runs():
        assert not ticking.done()
        await asyncio.sleep(0.01)
    while not ticking.done():
        assert await other.tick() == []
        await asyncio.sleep(0.05)
    return await ticking


def close_run_as_peer(db: RetentionDB) -> None:
    """Close the open run as another process would, in one transaction with its audit entry."""
    assert db.sql(
        "WITH run AS (SELECT id, rows_deleted FROM retention_runs WHERE state = 'running' FOR UPDATE),"
        " entry AS (INSERT INTO audit_log (actor_type, actor_id, action, entity, payload)"
        " SELECT 'system', 'other', 'retention.prune', 'inbound_events',"
        " jsonb_build_object('deleted', rows_deleted) FROM run RETURNING id)"
        " UPDATE retention_runs SET state = 'failed', epoch = epoch + 1, finished_at = now(),"
        " audit_id = entry.id FROM run, entry WHERE retention_runs.id = run.id RETURNING audit_id"
    )
